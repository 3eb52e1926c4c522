//! `handbert bench train` and `handbert bench predict`.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use clap::builder::RangedU64ValueParser;
use serde_json::{Value, json};

use super::kernels::{outcome, tell};
use super::{Machine, Size, batch_json, batch_text, caution, duration, model_text, rate, save};
use crate::backend::{Backend, Precision};
use crate::bench::Total;
use crate::bench::kernels::{Measurement, Wanted};
use crate::bench::ops::{Op, ops};
use crate::bench::pass::{self, Paces, Plan};
use crate::bench::shapes::Lengths;
use crate::cli::figures::grouped;
use crate::cli::{Common, Outcome};
use crate::data::TokenSet;
use crate::model::{Config, Head, Mode};
use crate::train::Batching;
use crate::train::plan::DEFAULT_MAX_LENGTH;
use crate::train::task::MicroBatch;

/// Tokens in a batch on a CPU.
const CPU_TOKENS: usize = 4096;

/// Not timed on a GPU: the first step is computed op by op and recorded after it, the second replayed for the first time.
const GPU_WARM_UP: usize = 3;
/// Not timed on a CPU: the first step touches all memory for the first time.
const CPU_WARM_UP: usize = 1;
/// Timed on a GPU, where a step takes hundredths of a second.
const GPU_STEPS: usize = 50;
/// Timed on a CPU, where it takes seconds.
const CPU_STEPS: usize = 5;
/// Of a token set; each is kept in the host's memory.
const REAL_BATCHES: usize = 32;

#[derive(Debug, clap::Args)]
pub struct PassArgs {
    #[command(flatten)]
    size: Size,
    /// Steps, or batches, that are timed [default: 50 on a GPU, 5 on a CPU]
    #[arg(long, value_name = "N", value_parser = steps())]
    steps: Option<usize>,
    /// Lengths of the sequences
    #[arg(long, value_enum, default_value_t = LengthsArg::Mixed)]
    lengths: LengthsArg,
    /// Leave out the time of each op
    #[arg(long)]
    no_ops: bool,
}

#[derive(Debug, clap::Args)]
pub struct TrainArgs {
    #[command(flatten)]
    pass: PassArgs,
    /// Batches of this token set, packed and masked as `train mlm` does, instead of random ones
    #[arg(long, value_name = "SET", conflicts_with = "lengths")]
    data: Option<PathBuf>,
    /// With --data: how many batches, the first that `train mlm` would make, take turns
    #[arg(long, value_name = "N", requires = "data", default_value_t = REAL_BATCHES, value_parser = steps())]
    batches: usize,
    /// Write what the steps start from and work on: a model directory, and batches.safetensors in it
    #[arg(long, value_name = "DIR")]
    save: Option<PathBuf>,
}

fn steps() -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(1..=100_000)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum LengthsArg {
    /// As in postings: 292 on average, 512 at most
    Mixed,
    /// 512, or as many as the model takes
    Equal,
}

impl From<LengthsArg> for Lengths {
    fn from(lengths: LengthsArg) -> Lengths {
        match lengths {
            LengthsArg::Mixed => Lengths::Mixed,
            LengthsArg::Equal => Lengths::Equal,
        }
    }
}

pub fn train<B: Backend>(be: &B, args: &TrainArgs, common: &Common) -> Result<Outcome> {
    let TrainArgs { pass: args, data, batches: count, save } = args;
    if let Some(dir) = save {
        save::check_free(dir)?;
    }
    let (config, tokens) = (args.size.config()?, args.size.tokens(be.precision(), CPU_TOKENS));
    let batches = match data {
        Some(set) => real_batches(set, &config, tokens, *count, common.seed)?,
        None => pass::random_batches(&config, args.lengths.into(), tokens, common.seed),
    };
    let mut run = Run::new(be, args, config, tokens, (Head::Mlm, Mode::Training))?;
    let plan = run.plan(args, &batches, common);
    if let Some(dir) = save {
        save::save(dir, &plan)?;
    }
    let steps = pass::train(be, &plan)?;
    let measured = run.ops(be, args)?;
    run.machine = run.machine.again(be, &args.size.effort(be.precision()))?;
    let report = Report { run: &run, args, paces: &steps.paces, measured: &measured };
    let (mut json, mut text) = (report.as_json(), report.as_text(["step", "steps"]));
    let (first, last) = (steps.losses[0], steps.losses[steps.losses.len() - 1]);
    json["data"] = json!(data);
    json["losses"] = json!(steps.losses);
    text += &format!("loss     {first:.4} at the first step, {last:.4} at the last\n");
    common.print(&json, &(text + &report.table()))?;
    Ok(outcome(&measured))
}

fn real_batches(set: &Path, config: &Config, tokens: usize, count: usize, seed: u64) -> Result<Vec<MicroBatch>> {
    let set = TokenSet::open(set)?;
    let entries = set.tokenizer()?.vocab_size();
    if entries > config.vocab_size {
        bail!("the token set's vocabulary has {entries} entries, the model's {}; give its --config", config.vocab_size);
    }
    let max_length = DEFAULT_MAX_LENGTH.min(config.max_position_embeddings);
    let batching = Batching { batch_tokens: tokens, max_length, ..Batching::default() };
    batching.check(config)?;
    Ok(pass::real_batches(&set, &batching, count, seed)?)
}

pub fn predict<B: Backend>(be: &B, args: &PassArgs, common: &Common) -> Result<Outcome> {
    let (config, tokens) = (args.size.config()?, args.size.tokens(be.precision(), CPU_TOKENS));
    let batches = pass::random_batches(&config, args.lengths.into(), tokens, common.seed);
    let mut run = Run::new(be, args, config, tokens, (Head::Classifier { classes: 2 }, Mode::Inference))?;
    let paces = pass::predict(be, &run.plan(args, &batches, common))?;
    let measured = run.ops(be, args)?;
    run.machine = run.machine.again(be, &args.size.effort(be.precision()))?;
    let report = Report { run: &run, args, paces: &paces, measured: &measured };
    let (mut json, mut text) = (report.as_json(), report.as_text(["batch", "batches"]));
    json["rows_per_second"] = json!(paces.sequences_per_second());
    text += &format!("rows     {} a second, each of them one sequence\n", grouped(paces.sequences_per_second() as u64));
    common.print(&json, &(text + &report.table()))?;
    Ok(outcome(&measured))
}

/// What is run, on what.
struct Run {
    machine: Machine,
    config: Config,
    tokens: usize,
    head: Head,
    mode: Mode,
}

impl Run {
    fn new<B: Backend>(
        be: &B, args: &PassArgs, config: Config, tokens: usize, (head, mode): (Head, Mode),
    ) -> Result<Run> {
        let machine = Machine::new(be, &args.size.effort(be.precision()))?;
        Ok(Run { machine, config, tokens, head, mode })
    }

    fn plan<'a>(&'a self, args: &PassArgs, batches: &'a [MicroBatch], common: &Common) -> Plan<'a> {
        let steps = match self.machine.precision {
            Precision::Bf16 => GPU_STEPS,
            Precision::F32 => CPU_STEPS,
        };
        let timed = args.steps.unwrap_or(steps);
        Plan { config: &self.config, batches, warm_up: self.warm_up(), timed, seed: common.seed }
    }

    fn warm_up(&self) -> usize {
        match self.machine.precision {
            Precision::Bf16 => GPU_WARM_UP,
            Precision::F32 => CPU_WARM_UP,
        }
    }

    /// Each op of the pass on its own, on sequences of mixed lengths.
    fn ops<B: Backend>(&self, be: &B, args: &PassArgs) -> Result<Vec<Measurement>> {
        if args.no_ops {
            return Ok(Vec::new());
        }
        let effort = args.size.effort(be.precision());
        let wanted = Wanted { config: &self.config, tokens: self.tokens, effort: &effort, only: &[] };
        Ok(wanted.pass(be, self.head, self.mode, &mut tell)?)
    }
}

/// What came of it.
struct Report<'a> {
    run: &'a Run,
    args: &'a PassArgs,
    paces: &'a Paces,
    measured: &'a [Measurement],
}

impl Report<'_> {
    /// The mean over all that were timed of what their ops come to.
    fn mean(&self, of: impl Fn(&[Op]) -> f64) -> f64 {
        let Run { machine, config, head, mode, .. } = self.run;
        let sum: f64 =
            self.paces.0.iter().map(|pace| of(&ops(config, *head, &pace.load, *mode, machine.precision))).sum();
        sum / self.paces.0.len() as f64
    }

    /// Of a pass.
    fn flops(&self) -> f64 {
        self.mean(|ops| ops.iter().map(|op| op.times as f64 * op.cost.flops).sum())
    }

    /// The least seconds that a pass takes.
    fn floor(&self) -> f64 {
        let ceilings = self.run.machine.ceilings();
        self.mean(|ops| ops.iter().map(|op| op.times as f64 * ceilings.floor(&op.cost)).sum())
    }

    /// Seconds that are expected of a card.
    fn expected(&self) -> Option<f64> {
        let gpu = self.run.machine.gpu?;
        Some(self.mean(|ops| Total::of(ops, gpu).expected))
    }

    fn flops_per_second(&self) -> f64 {
        self.flops() / self.paces.mean()
    }

    /// FLOP/s over the device's matrix rate.
    fn utilisation(&self) -> f64 {
        self.flops_per_second() / self.run.machine.ceilings().matrix_rate
    }

    fn ops_seconds(&self) -> f64 {
        self.measured.iter().map(|m| m.times as f64 * m.seconds().unwrap_or(f64::NAN)).sum()
    }

    fn as_json(&self) -> Value {
        let (run, paces) = (self.run, self.paces);
        let mut json = run.machine.as_json();
        json["quick"] = json!(self.args.size.quick);
        json["config"] = run.config.to_json(run.head.architecture());
        json["batch"] = batch_json(&paces.0[0].load);
        json["warm_up"] = json!(run.warm_up());
        json["steps"] = json!(paces.0.len());
        json["tokens_per_second"] = json!(paces.tokens_per_second());
        json["seconds_per_step"] = json!(paces.mean());
        json["seconds_per_step_median"] = json!(paces.median());
        json["seconds"] = json!(paces.0.iter().map(|pace| pace.seconds).collect::<Vec<_>>());
        json["flops_per_step"] = json!(self.flops());
        json["flops_per_second"] = json!(self.flops_per_second());
        json["mfu"] = json!(self.utilisation());
        json["mfu_of"] = json!({
            "flops_per_second": run.machine.ceilings().matrix_rate,
            "by": run.machine.floors_by(),
        });
        json["floor_seconds"] = json!(self.floor());
        json["expected_seconds"] = json!(self.expected());
        if !self.measured.is_empty() {
            json["ops"] = self.measured.iter().map(|m| run.machine.op_json(m)).collect();
            json["ops_seconds"] = json!(self.ops_seconds());
        }
        json
    }

    fn as_text(&self, [one, many]: [&str; 2]) -> String {
        let (run, paces) = (self.run, self.paces);
        let by = match run.machine.gpu {
            Some(_) => "by the datasheet",
            None => "as measured above",
        };
        let expected = self.expected().map_or(String::new(), |seconds| format!(", expected {}", duration(seconds)));
        format!(
            "{}{}{}{}\npace     {} tokens/s over {} {many} after {}\n{one:<9}{} on average, {} the median; at least {}{expected}\n\
             work     {}: {:.1} % of the matrix rate, {} {by}\n",
            run.machine.as_text(),
            model_text(&run.config),
            batch_text(&paces.0[0].load),
            caution(&self.args.size),
            grouped(paces.tokens_per_second() as u64),
            paces.0.len(),
            run.warm_up(),
            duration(paces.mean()),
            duration(paces.median()),
            duration(self.floor()),
            rate(self.flops_per_second(), "FLOP/s"),
            100.0 * self.utilisation(),
            rate(run.machine.ceilings().matrix_rate, "FLOP/s"),
        )
    }

    /// Each op beside its floor, and how much of the pass they account for.
    fn table(&self) -> String {
        if self.measured.is_empty() {
            return String::new();
        }
        let share = 100.0 * self.ops_seconds() / self.paces.mean();
        format!(
            "\n{}The ops on their own, on mixed lengths, come to {share:.1} % of the time above.\n",
            self.run.machine.ops_text(self.measured)
        )
    }
}
