//! Hopper's instructions on the simulator: layouts against the PTX manual's figures, products against f64, and pipelines
//! with one fault at a time, each of which must be caught.

mod case;
mod layouts;
mod pipeline;
mod product;
mod tables;
