//! What can go wrong between a model directory and a loss.

use std::path::{Path, PathBuf};

/// Result of the model room.
pub type Result<T> = std::result::Result<T, Error>;

/// What can go wrong between a model directory and a loss: what, where, what to do next.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A field of config.json is missing, unknown or not supported.
    #[error("{file}: field {field:?}: {why}")]
    Config {
        /// The configuration file.
        file: PathBuf,
        /// The field.
        field: String,
        /// What is wrong with it, and what to do.
        why: String,
    },
    /// A file of a model directory cannot be used.
    #[error("{path}: {why}")]
    File {
        /// The file or directory.
        path: PathBuf,
        /// What is wrong with it, and what to do.
        why: String,
    },
    /// A tensor of a weights file cannot be used.
    #[error("{file}: tensor {tensor}: {why}")]
    Tensor {
        /// The weights file, or the directory where no file has the tensor.
        file: PathBuf,
        /// Its name in the file.
        tensor: String,
        /// What is wrong with it, and what to do.
        why: String,
    },
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A hub id could not be resolved.
    #[error("model {id:?}: {why}")]
    Hub {
        /// What the user typed.
        id: String,
        /// Where was looked, and what to do.
        why: String,
    },
    /// The model has no head of the kind asked for.
    #[error("this model has no {wanted} head (it has {found}); {advice}")]
    Head {
        /// The head asked for.
        wanted: &'static str,
        /// What it has.
        found: &'static str,
        /// What to do.
        advice: &'static str,
    },
    /// An op failed.
    #[error(transparent)]
    Backend(#[from] crate::backend::Error),
}

impl Error {
    /// For `map_err` on what the system says about `path`.
    pub(crate) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Error + use<> {
        let path = path.to_owned();
        move |source| Error::Io { path, source }
    }
}
