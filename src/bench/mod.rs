//! What a pass over a batch costs and what it takes.
//!
//! Worked out from the configuration alone: [`ops`] (the ops of a pass, in order), [`cost`] (what each of them costs),
//! [`gpu`] (the cards, and how much of its ceilings a kernel is expected to reach), [`roofline`] (the time that follows),
//! [`memory`] (what is kept on the card). All of it is plain data, so that what was measured can be put beside it.
//!
//! Measured: [`shapes`] (models and random batches), [`operands`] and [`calls`] (every op, ready to be called),
//! [`measure`] (how long a call takes), [`ceilings`] (what the device reaches), [`kernels`] (every op on its own),
//! [`pass`](mod@pass) (whole steps and forward passes).

pub mod calls;
pub mod ceilings;
pub mod cost;
pub mod gpu;
pub mod kernels;
pub mod measure;
pub mod memory;
pub mod operands;
pub mod ops;
pub mod pass;
pub mod roofline;
pub mod shapes;
#[cfg(test)]
mod tests;

pub use gpu::Gpu;
pub use memory::Memory;
pub use ops::{Load, Op};
pub use roofline::{Time, Total};
