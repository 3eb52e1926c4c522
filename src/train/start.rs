//! What a run starts from: a loaded model, or a checkpoint.

use std::path::Path;

use crate::model::hub::{self, Loaded, Wanted};
use crate::model::{Config, Head};

use super::checkpoint::Checkpoint;
use super::{Error, Result};

/// What a run starts from.
#[derive(Debug, Clone)]
pub struct Start {
    /// Of the model.
    pub config: Config,
    /// Its head.
    pub head: Head,
    /// Its weights, in table order.
    pub values: Vec<f32>,
    /// The checkpoint they came from, where a run goes on.
    pub checkpoint: Option<Checkpoint>,
}

impl Start {
    /// A new run from a loaded model.
    pub fn fresh(loaded: Loaded) -> Self {
        Start { config: loaded.config, head: loaded.head, values: loaded.values, checkpoint: None }
    }

    /// The newest checkpoint of a run directory; that there is none is an error.
    pub fn resume(run: &Path) -> Result<Self> {
        let none = || Error::file(run, "holds no checkpoint to resume; leave --resume out to start a run there");
        Start::from_checkpoint(Checkpoint::latest(run)?.ok_or_else(none)?)
    }

    /// A checkpoint.
    pub fn from_checkpoint(checkpoint: Checkpoint) -> Result<Self> {
        let loaded = hub::load(&checkpoint.dir, &Wanted::AsSaved, 0)?;
        Ok(Start { checkpoint: Some(checkpoint), ..Start::fresh(loaded) })
    }
}
