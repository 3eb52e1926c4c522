//! What can go wrong in a run.

use std::path::{Path, PathBuf};

/// Result of the training room.
pub type Result<T> = std::result::Result<T, Error>;

/// What can go wrong in a run: what, where, what to do next.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Settings that contradict each other, the model or the data.
    #[error("{0}")]
    Plan(String),
    /// A file or directory of the run cannot be used.
    #[error("{path}: {why}")]
    File {
        /// The file or directory.
        path: PathBuf,
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
    /// What the checkpoint was made with is not what it is resumed with.
    #[error("{path}: cannot go on from it: {}; give what it was begun with, or name another --out", .differences.join("; "))]
    Differs {
        /// The checkpoint.
        path: PathBuf,
        /// One entry for each thing that differs: what, then, now.
        differences: Vec<String>,
    },
    /// What was to be kept could not be written.
    #[error(
        "step {step} could not be saved: {cause}; {}",
        .last.map_or(
            "there is no checkpoint yet: mend that and start over with --overwrite".to_owned(),
            |last| format!("checkpoint-{last} is whole: mend that and go on from it with --resume")
        )
    )]
    Unsaved {
        /// Steps made.
        step: u64,
        /// The newest checkpoint there is.
        last: Option<u64>,
        /// What went wrong.
        cause: Box<Error>,
    },
    /// Loss or gradients are no numbers any more, or all outliers.
    #[error(
        "step {step}: {count} steps in a row were skipped, as their loss or gradient was not finite or an outlier \
         (last loss {loss}, gradient norm {grad_norm}); \
         the weights are those before them; lower --learning-rate or raise --warmup-steps"
    )]
    Diverged {
        /// The last of the steps.
        step: u64,
        /// How many.
        count: u32,
        /// Loss of the last.
        loss: f64,
        /// Gradient norm of the last.
        grad_norm: f64,
    },
    /// The data room failed.
    #[error(transparent)]
    Data(#[from] crate::data::Error),
    /// The model room failed.
    #[error(transparent)]
    Model(#[from] crate::model::Error),
}

impl From<crate::backend::Error> for Error {
    fn from(error: crate::backend::Error) -> Self {
        Error::Model(error.into())
    }
}

impl Error {
    /// For `map_err` on what the system says about `path`.
    pub(crate) fn io(path: impl AsRef<Path>) -> impl FnOnce(std::io::Error) -> Error {
        let path = path.as_ref().to_path_buf();
        move |source| Error::Io { path, source }
    }

    /// A file or directory that cannot be used, and why.
    pub(crate) fn file(path: impl AsRef<Path>, why: impl Into<String>) -> Error {
        Error::File { path: path.as_ref().to_path_buf(), why: why.into() }
    }
}
