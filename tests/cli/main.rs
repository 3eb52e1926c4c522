//! The built binary, end to end: what it writes, what it says, how it exits.

mod as_trained;
mod bad_files;
mod bad_models;
mod bad_rows;
#[path = "../support/binary.rs"]
mod binary;
mod devices;
mod kills;
mod outputs;
mod quickstart;
mod runs;
#[path = "../support/skip.rs"]
mod skip;
mod streams;
mod support;
mod workflow;
