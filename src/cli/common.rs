//! What every command takes.

use std::io::{IsTerminal, Write};

use anyhow::{Context, Result};
use clap::builder::RangedU64ValueParser;
use indicatif::{ProgressBar, ProgressStyle};

use super::{DeviceArg, Matmul};

/// Options of every command.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Common options")]
pub struct Common {
    /// Where to compute: auto, cpu, cuda or cuda:N
    #[arg(long, global = true, default_value = "auto", env = "HANDBERT_DEVICE")]
    pub device: DeviceArg,
    /// How a GPU multiplies matrices
    #[arg(long, global = true, value_enum, default_value_t = Matmul::Auto, env = "HANDBERT_MATMUL")]
    pub matmul: Matmul,
    /// CPU threads; 0 = all cores
    #[arg(long, global = true, default_value_t = 0, env = "HANDBERT_THREADS", value_parser = threads())]
    pub threads: usize,
    /// Seed of everything random: initial weights, order, masks, dropout
    #[arg(long, global = true, default_value_t = 42)]
    pub seed: u64,
    /// Whether the seed was typed: then it wins over that of a --config-file.
    #[arg(skip)]
    pub seed_given: bool,
    /// How it is computed, as far as that was typed: what a command that goes on with a run repeats.
    #[arg(skip)]
    pub computed: String,
    /// Print one JSON object on stdout instead of text
    #[arg(long, global = true)]
    pub json: bool,
    /// No progress and no logs below warnings
    #[arg(long, global = true)]
    pub quiet: bool,
}

/// Every thread asked for is started, which takes minutes for a slip of the keyboard.
fn threads() -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(..=1024)
}

impl Common {
    /// Logs go to stderr; RUST_LOG overrides the level.
    pub(super) fn start_logging(&self) {
        let level = if self.quiet { "warn" } else { "info" };
        let filter = tracing_subscriber::EnvFilter::try_from_default_env()
            .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(format!("handbert={level}")));
        tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_writer(std::io::stderr)
            .with_target(false)
            .without_time()
            .with_ansi(std::io::stderr().is_terminal())
            // A line that could not be written is lost; saying so to the same closed stderr would panic.
            .log_internal_errors(false)
            .init();
    }

    /// Sets rayon's global pool to `--threads`, for commands that compute on no device; call it once.
    pub fn start_threads(&self) -> Result<()> {
        rayon::ThreadPoolBuilder::new().num_threads(self.threads).build_global().context("starting the threads")
    }

    /// A bar on stderr, shown only on a terminal and without --quiet. `total` 0 = unknown.
    pub fn progress(&self, total: u64, template: &str) -> Result<ProgressBar> {
        if self.quiet || !std::io::stderr().is_terminal() {
            return Ok(ProgressBar::hidden());
        }
        let bar = if total == 0 { ProgressBar::no_length() } else { ProgressBar::new(total) };
        bar.set_style(ProgressStyle::with_template(template).context("progress template")?.progress_chars("━╸ "));
        Ok(bar)
    }

    /// What became of a command, on stderr where stdout holds its rows; whoever closed stderr does not want to know.
    pub fn tell(&self, json: &serde_json::Value, text: &str) {
        let mut err = std::io::stderr().lock();
        let _ = match self.json {
            true => writeln!(err, "{json}"),
            false if self.quiet => Ok(()),
            false => write!(err, "{text}"),
        };
    }

    /// One JSON object with --json, else the text; to stdout.
    pub fn print(&self, json: &serde_json::Value, text: &str) -> Result<()> {
        let mut out = std::io::stdout().lock();
        if self.json { writeln!(out, "{json}") } else { write!(out, "{text}") }.context("stdout")?;
        out.flush().context("stdout")
    }
}
