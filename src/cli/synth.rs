//! `handbert synth`: synthetic labelled postings.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use super::{Common, Outcome, interrupt};
use crate::data::source::{Compression, Format, is_stream};
use crate::data::synth::file::{Job, write_file, write_stream};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// How many postings to invent
    #[arg(long)]
    rows: u64,
    /// File to write: .jsonl, .csv or .tsv, also .gz or .zst; - is standard output
    #[arg(long)]
    out: PathBuf,
    /// Format of the file, where its name does not say; standard output is JSONL
    #[arg(long)]
    format: Option<Format>,
    /// Replace the file if there is one
    #[arg(long)]
    overwrite: bool,
}

/// Where the rows go.
#[derive(Debug, PartialEq, Eq)]
enum Target {
    Stdout,
    File(PathBuf),
}

/// A request that can be carried out.
#[derive(Debug)]
struct Plan {
    target: Target,
    job: Job,
}

impl Args {
    fn plan(&self, common: &Common) -> Result<Plan> {
        let target = if self.out.as_os_str() == "-" { Target::Stdout } else { Target::File(self.out.clone()) };
        if let Target::File(path) = &target {
            self.check_place(path)?;
        }
        let format = match (&target, self.format) {
            (_, Some(format @ (Format::Csv | Format::Tsv | Format::Jsonl))) => format,
            (Target::Stdout, None) => Format::Jsonl,
            (Target::File(path), None) => match Format::of_name(path) {
                Some(format @ (Format::Csv | Format::Tsv | Format::Jsonl)) => format,
                _ => {
                    bail!("{}: name the file .jsonl, .csv or .tsv (also .gz or .zst), or say --format", path.display())
                }
            },
            (_, Some(Format::Txt | Format::Parquet)) => bail!("--format: postings are written as jsonl, csv or tsv"),
        };
        let compression = match &target {
            Target::Stdout if common.json => bail!("--json and --out - both want standard output; name a file"),
            Target::Stdout => Compression::None,
            Target::File(path) => Compression::of_name(path),
        };
        Ok(Plan { target, job: Job { rows: self.rows, seed: common.seed, format, compression } })
    }

    /// Refuses what would fail or destroy something only after the work.
    fn check_place(&self, path: &Path) -> Result<()> {
        if path.is_dir() {
            bail!("{}: is a directory; name a file in it", path.display());
        }
        // Renamed over, /dev/null would be a device no more.
        if is_stream(path) {
            bail!("{}: is a pipe or a device; write to - and let the shell redirect it", path.display());
        }
        if path.exists() && !self.overwrite {
            bail!("{}: exists already; name another file, or replace it with --overwrite", path.display());
        }
        match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() && !parent.is_dir() => {
                bail!("{}: there is no such directory; make it first", parent.display())
            }
            _ => Ok(()),
        }
    }
}

pub fn run(args: &Args, common: &Common) -> Result<Outcome> {
    let Plan { target, job } = args.plan(common)?;
    let threads =
        rayon::ThreadPoolBuilder::new().num_threads(common.threads).build().context("starting the threads")?;
    let bar = common.progress(job.rows, "{bar:30} {human_pos} of {human_len} postings, {per_sec}, {eta} left")?;
    let stop = interrupt::stop_flag()?;
    let mut progress = |rows: u64| {
        bar.set_position(rows);
        if stop.load(Ordering::Relaxed) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let start = Instant::now();
    let (name, bytes) = match &target {
        Target::Stdout => {
            let name = Path::new("-");
            (name, threads.install(|| write_stream(name, &mut std::io::stdout(), &job, &mut progress))?)
        }
        Target::File(path) => (path.as_path(), threads.install(|| write_file(path, &job, &mut progress))?),
    };
    bar.finish_and_clear();
    let seconds = start.elapsed().as_secs_f64();
    let text = format!("{}: {} postings, {:.1} MB, {seconds:.1} s\n", name.display(), job.rows, bytes as f64 / 1e6);
    match target {
        Target::Stdout => tracing::info!("{}", text.trim_end()),
        Target::File(_) => {
            let json = serde_json::json!({"rows": job.rows, "seconds": seconds, "bytes": bytes, "out": name});
            common.print(&json, &text)?;
        }
    }
    Ok(Outcome::Done)
}
