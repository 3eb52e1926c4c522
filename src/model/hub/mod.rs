//! Model directories as `transformers` reads and writes them, and the hub's cache.
//!
//! In reading order: [`cache`] finds the directory of a model named by hub id, [`download`] fetches it;
//! [`tensors`] reads and writes one safetensors file; [`load`](fn@load) makes a model's values of a
//! directory and [`save`](fn@save) a directory of the values; [`flat`] keeps what a checkpoint adds.

pub mod cache;
#[cfg(feature = "download")]
pub mod download;
pub mod flat;
mod load;
mod save;
pub mod tensors;
mod weights;

pub use cache::{Hub, resolve, resolve_config};
pub use flat::{load_flat, save_flat};
pub use load::{Loaded, Wanted, load};
pub use save::save;
pub use weights::Weights;

/// Name of the configuration in a model directory.
pub const CONFIG: &str = "config.json";
/// Name of the weights in a model directory.
pub const WEIGHTS: &str = "model.safetensors";
/// Name of the list of weights files, where there are several.
pub const INDEX: &str = "model.safetensors.index.json";
