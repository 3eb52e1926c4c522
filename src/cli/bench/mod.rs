//! `handbert bench`: what this device takes, beside what it cannot but take.

mod kernels;
mod pass;
mod save;
mod table;

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::builder::RangedU64ValueParser;
use serde_json::{Value, json};

use super::batch_tokens::LARGEST;
use super::device::Computation;
use super::figures::grouped;
use super::{Common, Outcome};
use crate::backend::{Backend, Precision};
use crate::bench::ceilings::Measured;
use crate::bench::measure::Effort;
use crate::bench::roofline::Ceilings;
use crate::bench::shapes::base_config;
use crate::bench::{Gpu, Load};
use crate::model::Config;

#[derive(Debug, clap::Subcommand)]
pub enum Task {
    /// Every op of a training step, forward and backward, on its own
    Kernels(kernels::Args),
    /// Whole training steps of masked-language modelling from random weights, on random tokens or a token set's
    Train(pass::TrainArgs),
    /// Whole forward passes of a classifier, on random tokens
    Predict(pass::PassArgs),
}

#[derive(Debug, clap::Args)]
pub struct Size {
    /// A config.json [default: that of distilbert-base-uncased]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Tokens in a batch [default: 65536 on a GPU; on a CPU 2048 for kernels, 4096 for passes]
    #[arg(long, value_name = "TOKENS", value_parser = tokens())]
    batch_tokens: Option<usize>,
    /// Few and short runs on little memory: to see that everything works, not to measure
    #[arg(long, hide = true)]
    quick: bool,
}

fn tokens() -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(8..=LARGEST as u64)
}

/// Tokens in a batch on a GPU.
const GPU_TOKENS: usize = 65_536;
/// Frames, a mask and some words.
const SMALLEST_VOCABULARY: usize = 8;

pub fn run(task: &Task, common: &Common) -> Result<Outcome> {
    common.backend()?.run(Bench { task, common })
}

struct Bench<'a> {
    task: &'a Task,
    common: &'a Common,
}

impl Computation for Bench<'_> {
    fn on<B: Backend>(self, be: &B) -> Result<Outcome> {
        match self.task {
            Task::Kernels(args) => kernels::run(be, args, self.common),
            Task::Train(args) => pass::train(be, args, self.common),
            Task::Predict(args) => pass::predict(be, args, self.common),
        }
    }
}

impl Size {
    fn config(&self) -> Result<Config> {
        let Some(file) = &self.config else { return Ok(base_config()) };
        let config = Config::read(file)?;
        if config.vocab_size < SMALLEST_VOCABULARY {
            bail!("{}: a vocabulary of {} is too small for a batch", file.display(), config.vocab_size);
        }
        Ok(config)
    }

    fn tokens(&self, precision: Precision, on_cpu: usize) -> usize {
        let default = if precision == Precision::Bf16 { GPU_TOKENS } else { on_cpu };
        self.batch_tokens.unwrap_or(default)
    }

    fn effort(&self, precision: Precision) -> Effort {
        if self.quick { Effort::quick() } else { Effort::full(precision) }
    }
}

/// What is measured on.
struct Machine {
    device: String,
    precision: Precision,
    measured: Measured,
    gpu: Option<&'static Gpu>,
}

impl Machine {
    fn new<B: Backend>(be: &B, effort: &Effort) -> Result<Machine> {
        let device = be.describe();
        let measured = Measured::new(be, effort).context("measuring what the device reaches")?;
        tracing::info!("{device}: {}", rates(&measured.ceilings()));
        Ok(Machine { precision: be.precision(), gpu: Gpu::of_device(&device), device, measured })
    }

    /// Measures once more what the device reaches, after everything else, and keeps the better.
    fn again<B: Backend>(self, be: &B, effort: &Effort) -> Result<Machine> {
        let later = Measured::new(be, effort).context("measuring what the device reaches")?;
        Ok(Machine { measured: self.measured.or(later), ..self })
    }

    /// What floors are worked out from: the datasheet where the card is known, else what was measured.
    fn ceilings(&self) -> Ceilings {
        self.gpu.map_or(self.measured.ceilings(), Gpu::ceilings)
    }

    fn floors_by(&self) -> &'static str {
        if self.gpu.is_some() { "datasheet" } else { "measured" }
    }

    fn as_json(&self) -> Value {
        let m = &self.measured;
        json!({
            "device": self.device,
            "precision": self.precision,
            "measured": true,
            "ceilings": {
                "copy": {
                    "bytes_per_second": m.ceilings().bandwidth,
                    "bytes": m.copy_bytes,
                    "formula": "bytes read + bytes written, over the seconds of the quickest run",
                    "timing": m.copy,
                },
                "product": {
                    "flops_per_second": m.ceilings().matrix_rate,
                    "flops": m.product_flops(),
                    "shape": m.product_shape,
                    "formula": "2 · rows · inputs · outputs, over the seconds of the quickest run",
                    "timing": m.product,
                },
                "datasheet": self.gpu.map(|gpu| json!({
                    "name": gpu.name,
                    "flops_per_second": gpu.matrix_rate,
                    "bytes_per_second": gpu.bandwidth,
                    "source": gpu.source,
                })),
            },
            "floors_by": self.floors_by(),
        })
    }

    fn as_text(&self) -> String {
        let m = &self.measured;
        let measured = m.ceilings();
        let card = match self.gpu {
            Some(gpu) => {
                format!("{}: {} by its datasheet; floors are worked out from it", gpu.name, rates(&gpu.ceilings()))
            }
            None => "no datasheet is known here for this device; floors are worked out from the two above".to_owned(),
        };
        format!(
            "device   {}\ncopy     {}: {:.0} MB read and written in {}\nproduct  {}: 2 · {} · {} · {} FLOP in {}\ncard     {card}\n",
            self.device,
            rate(measured.bandwidth, "B/s"),
            m.copy_bytes / 1e6,
            duration(m.copy.best),
            rate(measured.matrix_rate, "FLOP/s"),
            m.product_shape[0],
            m.product_shape[1],
            m.product_shape[2],
            duration(m.product.best),
        )
    }
}

fn rates(ceilings: &Ceilings) -> String {
    format!("{}, {}", rate(ceilings.matrix_rate, "FLOP/s"), rate(ceilings.bandwidth, "B/s"))
}

/// A rate in units of powers of 1,000.
fn rate(per_second: f64, unit: &str) -> String {
    let (mut size, mut prefix) = (per_second, "");
    for next in ["k", "M", "G", "T", "P"] {
        if size >= 999.5 {
            (size, prefix) = (size / 1e3, next);
        }
    }
    let digits = if size < 99.95 { 1 } else { 0 };
    format!("{size:.digits$} {prefix}{unit}")
}

fn duration(seconds: f64) -> String {
    match seconds {
        s if s < 1e-3 => format!("{:.1} us", s * 1e6),
        s if s < 1.0 => format!("{:.2} ms", s * 1e3),
        s => format!("{s:.2} s"),
    }
}

fn batch_json(load: &Load) -> Value {
    json!({
        "tokens": load.tokens,
        "sequences": load.sequences(),
        "mean_length": load.mean_length,
        "attended_length": load.attended,
        "masked": load.masked,
        "words": load.words,
    })
}

fn batch_text(load: &Load) -> String {
    let masked = match load.masked {
        0 => String::new(),
        masked => format!("{} masked, ", grouped(masked as u64)),
    };
    format!(
        "batch    {} random tokens in {} sequences of {:.1} on average; {:.1} is the length of that which a token is in; \
         {masked}{} different words\n",
        grouped(load.tokens as u64),
        load.sequences().round(),
        load.mean_length,
        load.attended,
        grouped(load.words.unwrap_or(0) as u64),
    )
}

fn model_text(config: &Config) -> String {
    format!(
        "model    {} layers of width {}, {} between, {} heads, a vocabulary of {}\n",
        config.n_layers,
        config.dim,
        config.hidden_dim,
        config.n_heads,
        grouped(config.vocab_size as u64),
    )
}

/// What is said where little was measured.
fn caution(size: &Size) -> &'static str {
    if size.quick { "A quick run: its figures say that everything works, not how fast.\n" } else { "" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_and_times_are_told_in_units_people_use() {
        let rates = [0.5, 999.4, 1234.0, 314e9, 4.26e12, 989e12].map(|x| rate(x, "FLOP/s"));
        assert_eq!(rates, ["0.5 FLOP/s", "999 FLOP/s", "1.2 kFLOP/s", "314 GFLOP/s", "4.3 TFLOP/s", "989 TFLOP/s"]);
        assert_eq!([2.5e-6, 1.5e-3, 2.0].map(duration), ["2.5 us", "1.50 ms", "2.00 s"]);
    }
}
