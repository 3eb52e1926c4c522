//! What can go wrong in labelling a file.

use std::path::PathBuf;

/// Result of the predict room.
pub type Result<T> = std::result::Result<T, Error>;

/// What can go wrong in labelling a file: what, where, what to do next.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An input file or the tokenizer.
    #[error(transparent)]
    Data(#[from] crate::data::Error),
    /// The model.
    #[error(transparent)]
    Model(#[from] crate::model::Error),
    /// The output could not be written.
    #[error("{path}: {source}")]
    Write {
        /// The file, or `-`.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file or directory stands in the way, or an extension is not known.
    #[error("{path}: {why}")]
    Output {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, and what to do.
        why: String,
    },
    /// Options that contradict each other or the model.
    #[error("{0}")]
    Invalid(String),
    /// The user asked to stop.
    #[error("interrupted")]
    Interrupted,
    /// Something failed on the way; what was written before is kept.
    #[error("{failure}; {kept}")]
    Unfinished {
        /// What failed; said in full by this error, so not its source.
        failure: Box<Error>,
        /// How many rows were written, and where they are.
        kept: String,
    },
}
