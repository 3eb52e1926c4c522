//! What every command takes.

use std::io::{IsTerminal, Write};
use std::str::FromStr;

use anyhow::{Context, Result, bail};
use clap::builder::RangedU64ValueParser;
use indicatif::{ProgressBar, ProgressStyle};

use crate::backend::cpu::Cpu;

/// Options of every command.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Common options")]
pub struct Common {
    /// Where to compute: auto, cpu, cuda or cuda:N
    #[arg(long, global = true, default_value = "auto", env = "HANDBERT_DEVICE")]
    pub device: DeviceArg,
    /// CPU threads; 0 = all cores
    #[arg(long, global = true, default_value_t = 0, env = "HANDBERT_THREADS", value_parser = threads())]
    pub threads: usize,
    /// Seed of everything random: initial weights, order, masks, dropout
    #[arg(long, global = true, default_value_t = 42)]
    pub seed: u64,
    /// Whether the seed was typed: then it wins over that of a --config-file.
    #[arg(skip)]
    pub seed_given: bool,
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

/// Where to compute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceArg {
    /// CUDA where it is found, else the CPU.
    Auto,
    /// The CPU.
    Cpu,
    /// The GPU of this number.
    Cuda(u32),
}

impl FromStr for DeviceArg {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "auto" => Ok(DeviceArg::Auto),
            "cpu" => Ok(DeviceArg::Cpu),
            "cuda" => Ok(DeviceArg::Cuda(0)),
            _ => s
                .strip_prefix("cuda:")
                .and_then(|n| n.parse().ok())
                .map(DeviceArg::Cuda)
                .ok_or_else(|| "expected auto, cpu, cuda or cuda:N".to_owned()),
        }
    }
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
            .init();
    }

    /// The backend asked for, with rayon's global pool at `--threads`.
    pub fn backend(&self) -> Result<Cpu> {
        if let DeviceArg::Cuda(n) = self.device {
            bail!("--device cuda:{n}: this version computes on the CPU only; use --device cpu");
        }
        self.start_threads()?;
        Ok(Cpu::new())
    }

    /// Sets rayon's global pool to `--threads`, for commands that need no backend; call it once.
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

    /// One JSON object with --json, else the text; to stdout.
    pub fn print(&self, json: &serde_json::Value, text: &str) -> Result<()> {
        let mut out = std::io::stdout().lock();
        if self.json { writeln!(out, "{json}") } else { write!(out, "{text}") }.context("stdout")?;
        out.flush().context("stdout")
    }
}
