//! What can go wrong between a file and a batch.

use std::path::PathBuf;

/// Where a row stands: file and line (or row number in formats without lines), both 1-based.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Location {
    /// The file, or `-` for standard input.
    pub file: PathBuf,
    /// Line of the file on which the row begins.
    pub line: u64,
}

impl std::fmt::Display for Location {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.file.display(), self.line)
    }
}

/// Result of the data room.
pub type Result<T> = std::result::Result<T, Error>;

/// What can go wrong between a file and a batch: what, where, what to do next.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be opened, read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file, or `-`.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// One row is bad; the rows after it can still be read.
    #[error("{at}: {why}")]
    Row {
        /// File and line.
        at: Location,
        /// What is wrong with it, and what to do.
        why: String,
    },
    /// A whole file or directory cannot be used.
    #[error("{path}: {why}")]
    File {
        /// The file or directory.
        path: PathBuf,
        /// What is wrong with it, and what to do.
        why: String,
    },
    /// Options that contradict each other or the data.
    #[error("{0}")]
    Invalid(String),
}

impl Error {
    /// Whether only one row is lost, so that reading can go on.
    pub fn is_row(&self) -> bool {
        matches!(self, Error::Row { .. })
    }
}
