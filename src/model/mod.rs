//! What DistilBERT is: its configuration, its parameters, its forward and backward pass, written
//! once over [`crate::backend::Backend`].
//!
//! In reading order: [`config`], [`params`] (the one table every tensor is in), [`encoder`]
//! (embeddings and blocks), [`block`], [`mlm_head`], [`class_head`], [`distilbert`] (the parts put
//! together); [`hub`] reads and writes what `transformers` reads and writes.
//! `forward` and `backward` of a part stand in one file, steps numbered 1..n and n..1.

pub mod block;
pub mod class_head;
pub mod config;
pub mod distilbert;
pub mod encoder;
mod error;
pub mod hub;
pub mod mlm_head;
pub mod params;
pub mod shapes;

pub use config::Config;
pub use distilbert::{Activations, DistilBert, Head};
pub use error::{Error, Result};
pub use params::{Init, ParamSpec, ParamTable};
pub use shapes::Mode;
