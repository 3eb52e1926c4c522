//! `handbert inspect`.

use anyhow::Result;

use super::{Common, Outcome};

#[derive(Debug, clap::Args)]
pub struct Args {}

pub fn run(_args: &Args, _common: &Common) -> Result<Outcome> {
    anyhow::bail!("not built yet")
}
