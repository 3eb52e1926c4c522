//! Text → token ids → token set (memory-mapped) → packed batches → masks.
//!
//! In reading order: [`source`] opens files of any format and yields [`record::Row`]s;
//! [`record`] turns a row into a [`record::Record`] of text, label and group; [`tokenizer`] turns
//! text into ids; [`token_set`] keeps the ids of a corpus on disk and maps them into memory;
//! [`split`] says which samples are for training; [`order`] permutes them; [`pack`] fills batches
//! of a fixed number of tokens without padding; [`mask`] hides 15 % of them; [`synth`] invents
//! labelled postings. This room knows nothing of models.

pub mod batch;
pub mod mask;
pub mod order;
pub mod pack;
pub mod record;
pub mod source;
pub mod split;
pub mod synth;
pub mod token_set;
pub mod tokenizer;

mod error;

pub use batch::{DrawKey, MaskedBatch, PackedBatch, Piece};
pub use error::{Error, Location, Result};
pub use record::{Record, RecordSpec, Row};
pub use token_set::TokenSet;
pub use tokenizer::{SpecialIds, Tokenizer};
