//! `handbert train mlm|classifier`.

use anyhow::Result;

use super::{Common, Outcome};

#[derive(Debug, clap::Subcommand)]
pub enum Task {
    /// Masked-language modelling
    Mlm,
    /// Classification
    Classifier,
}

pub fn run(_task: &Task, _common: &Common) -> Result<Outcome> {
    anyhow::bail!("not built yet")
}
