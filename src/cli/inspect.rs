//! `handbert inspect`.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

use super::inspect_model::describe_model;
use super::inspect_set::describe_set;
use super::{Common, Outcome};
use crate::model::hub;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// A token set, a model directory, a checkpoint, or the hub id of a model
    #[arg(value_name = "SET|MODEL|CHECKPOINT")]
    path: PathBuf,
    /// Read every byte: against its checksum where there is one, else every value for itself
    #[arg(long)]
    verify: bool,
}

pub fn run(args: &Args, common: &Common) -> Result<Outcome> {
    common.start_threads()?;
    let (json, text) = describe(&args.path, args.verify)?;
    common.print(&json, &text)?;
    Ok(Outcome::Done)
}

/// What a directory is, its own description says: meta.json that of a token set, config.json that of a model.
fn describe(path: &Path, verify: bool) -> Result<(serde_json::Value, String)> {
    if path.join("meta.json").exists() {
        return describe_set(path, verify);
    }
    if path.join("config.json").exists() {
        return describe_model(path, verify);
    }
    if path.exists() {
        bail!(
            "{}: neither a token set (it has no meta.json) nor a model or a checkpoint (it has no config.json)",
            path.display()
        );
    }
    describe_model(&hub::resolve(&path.to_string_lossy())?, verify)
}
