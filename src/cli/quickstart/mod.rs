//! `handbert quickstart`: the whole story on synthetic postings, in minutes on two cores.
//!
//! [`Recipe`] holds every number of it and the commands that do the same by hand; [`carry_out`] does the work, stage by
//! stage, says how it went, and makes the report of it.

mod page;
mod recipe;
mod stages;
mod story;

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail};

use super::device::Computation;
use super::{Common, Outcome};
use crate::backend::Backend;
pub use recipe::{Recipe, Size};
use stages::Stages;
use story::Story;

/// Says that a directory is a quickstart's, which `--overwrite` may clear.
const MARK: &str = "quickstart.toml";
/// What a quickstart writes, the mark last.
const WRITTEN: [&str; 9] = [
    recipe::POSTINGS,
    recipe::CONFIG,
    recipe::TOKENS,
    recipe::MLM,
    recipe::CLASSIFIER,
    recipe::NEW_POSTINGS,
    recipe::PREDICTIONS,
    "report.html",
    MARK,
];

/// What `handbert quickstart` takes.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Where everything goes
    #[arg(long, value_name = "DIR", default_value = "handbert-quickstart")]
    out: PathBuf,
    /// Start over where an earlier quickstart has been
    #[arg(long)]
    overwrite: bool,
    /// How many postings to invent
    #[arg(long, default_value_t = recipe::ROWS)]
    rows: u64,
    /// Steps of the language model's training
    #[arg(long, default_value_t = recipe::STEPS)]
    steps: u64,
}

/// Makes the directory ready, then carries the recipe out on what `--device` says.
pub fn run(args: &Args, common: &Common) -> Result<Outcome> {
    let recipe = Recipe::new(&args.out, args.rows, args.steps, common.seed)?;
    claim(&args.out, args.overwrite)?;
    let mark = args.out.join(MARK);
    std::fs::write(&mark, recipe.settings()).with_context(|| mark.display().to_string())?;

    let began = Instant::now();
    common.backend()?.run(Quickstart { recipe: &recipe, began, common })
}

struct Quickstart<'a> {
    recipe: &'a Recipe,
    began: Instant,
    common: &'a Common,
}

impl Computation for Quickstart<'_> {
    fn on<B: Backend>(self, be: &B) -> Result<Outcome> {
        carry_out(be, self.recipe, self.common, self.began)?;
        Ok(Outcome::Done)
    }
}

/// All stages on this backend, told on stdout, and the report. The recipe's directory exists and holds nothing that a
/// quickstart writes but its mark; seconds count from `began`.
///
/// # Errors
/// A stage fails, or stdout or the report cannot be written.
pub fn carry_out<B: Backend>(be: &B, recipe: &Recipe, common: &Common, began: Instant) -> Result<()> {
    let device = &be.describe();
    let mut story = Story::new(common);
    let stages = Stages { recipe, be, common };
    story.begins(recipe, device)?;
    let data = story.told(|| stages.data())?;
    let mlm = story.told(|| stages.mlm(&data))?;
    let classifier = story.told(|| stages.classifier(&data))?;
    let labelled = story.told(|| stages.label())?;
    let filled = story.told(|| stages.fill())?;
    let seconds = began.elapsed().as_secs_f64();
    let facts = story::Facts { recipe, device, data, mlm, classifier, labelled, filled, seconds };
    let report = page::write(&facts)?;
    story.ends(&facts, &report)
}

/// Makes the directory, or makes sure that it is free; with `--overwrite`, clears it of what a
/// quickstart wrote and of nothing else.
fn claim(dir: &Path, overwrite: bool) -> Result<()> {
    std::fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
    let mut entries = std::fs::read_dir(dir).with_context(|| dir.display().to_string())?;
    if entries.next().is_none() {
        return Ok(());
    }
    if !dir.join(MARK).exists() {
        bail!("{}: is not empty and holds no quickstart; name another directory with --out", dir.display());
    }
    if !overwrite {
        bail!("{}: holds a quickstart already; name another directory with --out, or give --overwrite", dir.display());
    }
    for path in WRITTEN.iter().map(|name| dir.join(name)) {
        let removed = if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
        match removed {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| path.display().to_string());
            }
            _ => {}
        }
    }
    Ok(())
}
