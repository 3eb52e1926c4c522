//! The simulator of kernels/sim: wrong kernels are caught, with kernel, block and thread named, and their right twins pass.
//!
//! Kernels are in kernels/, one file for each file here. Each is run in several orders of threads.

#[path = "../support/simulator.rs"]
mod simulator;
#[path = "../support/skip.rs"]
mod skip;

mod tables;
mod trial;

mod barriers;
mod bounds;
mod copies;
mod hopper;
mod layouts;
mod together;
mod warps;
