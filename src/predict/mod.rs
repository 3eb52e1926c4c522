//! Labels files of any size in constant memory.
//!
//! Four stages, each on a thread of its own, joined by short channels:
//! [`input`] reads rows in blocks, [`tokens`] turns their texts into sequences, [`run`] packs the
//! sequences of many rows into full batches ([`queue`]) and computes ([`classify`]), [`output`]
//! writes each row, in input order, with the columns that [`columns`] adds.
//!
//! No padding: a batch is a flat row of tokens, and a row's score does not depend on which other
//! rows it was computed with.

pub mod classify;
pub mod columns;
mod error;
pub mod input;
pub mod output;
pub mod queue;
pub mod run;
pub mod tokens;

pub use columns::{Added, Scores};
pub use error::{Error, Result};
pub use input::{Inputs, TextColumns};
pub use output::{Destination, Form};
pub use run::{Job, Options, Progress, Summary, run};
