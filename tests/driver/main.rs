//! The device over the CUDA driver, as it ships, against a stand-in for the driver that needs no GPU: stand_in.cpp and its
//! neighbours, built with the C++ compiler at hand, over the simulator that runs our kernels.
//!
//! It is loaded before anything asks for the driver, under the name that is looked for first, so the loader takes it. What it
//! does and refuses is written from NVIDIA's manual, not from the bindings.

#[path = "../support/binary.rs"]
mod binary;
mod commands;
mod device;
mod refusals;
mod runs;
#[path = "../support/sim_device.rs"]
mod sim_device;
#[path = "../support/simulator.rs"]
mod simulator;
#[path = "../support/skip.rs"]
mod skip;
mod stand_in;
#[path = "../support/training.rs"]
mod training;

use handbert::model::Config;

/// The tiny model of a corpus, with one block.
fn one_block(corpus: &training::Corpus) -> Config {
    Config { n_layers: 1, ..training::config(corpus.tokenizer.vocab_size()) }
}
