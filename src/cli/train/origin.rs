//! Where a run's model comes from.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::args::DataArgs;
use crate::cli::corpus::absolute;
use crate::data::token_set::TokenSet;
use crate::data::tokenizer::Tokenizer;
use crate::model::hub::{self, Loaded, Wanted};
use crate::model::{Config, Head, ParamTable};
use crate::train::Start;
use crate::train::checkpoint::Checkpoint;

/// Where a run's model comes from.
pub enum Origin {
    /// The newest checkpoint of the run directory.
    Checkpoint(Box<Checkpoint>),
    /// A model directory, as named by the user.
    Model {
        /// Resolved.
        dir: PathBuf,
        /// As typed.
        name: String,
    },
    /// A config.json, for a model from scratch.
    Config(PathBuf),
}

impl Origin {
    /// With --resume, the run directory; else what --model or --config names.
    pub fn new(args: &DataArgs, out: &Path, config: Option<&Path>) -> Result<Origin> {
        if args.resume {
            let found = Checkpoint::latest(out)?;
            let none = || {
                format!("{}: holds no checkpoint yet; start over with --overwrite instead of --resume", out.display())
            };
            return found.map(|found| Origin::Checkpoint(Box::new(found))).with_context(none);
        }
        match (&args.model, config) {
            (Some(_), Some(_)) => bail!("--model and --config exclude each other"),
            (Some(name), None) => Ok(Origin::Model { dir: hub::resolve(name)?, name: name.clone() }),
            (None, Some(file)) => Ok(Origin::Config(file.to_path_buf())),
            (None, None) => bail!("--model is missing: which model to start from?"),
        }
    }

    fn dir(&self) -> Option<&Path> {
        match self {
            Origin::Checkpoint(checkpoint) => Some(&checkpoint.dir),
            Origin::Model { dir, .. } => Some(dir),
            Origin::Config(_) => None,
        }
    }

    /// The model's configuration.
    pub fn config(&self) -> Result<Config> {
        Ok(match self {
            Origin::Config(file) => Config::read(file)?,
            Origin::Model { dir, .. } => Config::read(&dir.join(hub::CONFIG))?,
            Origin::Checkpoint(checkpoint) => Config::read(&checkpoint.dir.join(hub::CONFIG))?,
        })
    }

    /// Labels of a model that is a classifier already.
    pub fn labels(&self) -> Result<Option<Vec<String>>> {
        let Some(dir) = self.dir() else { return Ok(None) };
        let path = dir.join(hub::CONFIG);
        let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let fields: serde_json::Value = serde_json::from_str(&text).with_context(|| path.display().to_string())?;
        let classifier = Head::Classifier { classes: 0 }.architecture();
        let labels = self.config()?.labels;
        Ok((fields["architectures"][0] == classifier && !labels.is_empty()).then_some(labels))
    }

    /// The model's tokenizer, or the one named beside a configuration; `None` where there is none. Ids of another
    /// one would mean other tokens to a model. A checkpoint holds what was named when its run began.
    pub fn tokenizer(&self, named: Option<&str>) -> Result<Option<Tokenizer>> {
        match (self, named) {
            (Origin::Model { name, .. }, Some(_)) => {
                bail!("--tokenizer is for --config; {name} has a tokenizer of its own")
            }
            (Origin::Model { dir, .. }, None) => Ok(Some(Tokenizer::load(dir)?)),
            (Origin::Checkpoint(checkpoint), _) => Ok(Some(Tokenizer::load(&checkpoint.dir)?)),
            (Origin::Config(_), Some(name)) => Ok(Some(Tokenizer::load(&hub::resolve(name)?)?)),
            (Origin::Config(_), None) => Ok(None),
        }
    }

    /// What to call it in a message.
    pub fn name(&self) -> String {
        match self {
            Origin::Checkpoint(checkpoint) => absolute(&checkpoint.dir),
            Origin::Model { name, .. } => name.clone(),
            Origin::Config(file) => absolute(file),
        }
    }

    /// The weights, with the head `wanted`; `seed` is that of fresh ones. A model from scratch gets the vocabulary
    /// size and the padding of the token set.
    pub fn start(self, wanted: &Wanted, set: &TokenSet, seed: u64) -> Result<Start> {
        let (dir, name) = match self {
            Origin::Checkpoint(checkpoint) => return Ok(Start::from_checkpoint(*checkpoint)?),
            Origin::Config(file) => return Ok(Start::fresh(from_scratch(&file, &set.tokenizer()?, seed)?)),
            Origin::Model { dir, name } => (dir, name),
        };
        let loaded = hub::load(&dir, wanted, seed)?;
        if let Wanted::Classifier { labels } = wanted
            && loaded.unused.iter().any(|tensor| tensor.starts_with("classifier."))
        {
            let known = Config::read(&dir.join(hub::CONFIG))?.labels;
            bail!(
                "{name} is a classifier of [{}], and the data has the labels [{}]; give the data its labels, or start \
                 from a model without a classifier",
                known.join(", "),
                labels.join(", ")
            );
        }
        if !loaded.fresh.is_empty() {
            tracing::info!("{name} has no such head; fresh: {}", loaded.fresh.join(", "));
        }
        Ok(Start::fresh(loaded))
    }
}

fn from_scratch(file: &Path, tokenizer: &Tokenizer, seed: u64) -> Result<Loaded> {
    let (tokens, padding) = (tokenizer.vocab_size(), tokenizer.special().pad);
    let config = Config { labels: Vec::new(), ..Config::read(file)? };
    if config.vocab_size != tokens {
        tracing::info!(
            "vocab_size is {tokens}, the tokenizer's, and not {} as in {}",
            config.vocab_size,
            file.display()
        );
    }
    if config.pad_token_id != padding {
        tracing::info!(
            "pad_token_id is {padding}, the tokenizer's, and not {} as in {}",
            config.pad_token_id,
            file.display()
        );
    }
    let config = Config { vocab_size: tokens, pad_token_id: padding, ..config };
    let table = ParamTable::new(&config, Head::Mlm);
    let values = table.initial_weights(&config, seed);
    let fresh = table.specs.iter().map(|spec| spec.hf_name.clone()).collect();
    Ok(Loaded { config, head: Head::Mlm, values, fresh, unused: Vec::new() })
}
