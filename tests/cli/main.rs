//! The built binary, end to end: what it writes, what it says, how it exits.

mod bad_files;
mod bad_models;
mod bad_rows;
#[path = "../support/binary.rs"]
mod binary;
mod devices;
mod outputs;
mod quickstart;
mod streams;
mod support;
mod workflow;
