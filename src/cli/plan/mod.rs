//! `handbert plan`.

mod corpus;
mod report;

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use clap::builder::RangedU64ValueParser;

use self::corpus::Corpus;
use super::batch_tokens::{self, Needs};
use super::figures::grouped;
use super::{Common, Outcome};
use crate::backend::Capacity;
use crate::bench::{Gpu, Load, Memory};
use crate::model::{Config, Head, Mode, hub};
use crate::train::plan::DEFAULT_MAX_LENGTH;
use crate::train::{self, Batching};
/// [CLS] and [SEP].
const FRAME: f64 = 2.0;
/// Tokens of a sequence, where nothing else is said.
const DEFAULT_MEAN_LENGTH: f64 = 300.0;
/// Of the tokens, in masked-language modelling.
const MASKED: f64 = 0.15;
/// As in `train`.
const DEFAULT_EPOCHS: f64 = 3.0;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The model: a directory or a hub id; its config.json alone is read
    #[arg(long, required_unless_present = "config", conflicts_with = "config")]
    model: Option<String>,
    /// A config.json, instead of a model
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The card: h200, h100, a100, l40s or 4090
    #[arg(long, value_parser = Gpu::by_id)]
    gpu: &'static Gpu,
    /// What to do with it
    #[arg(long, value_enum, default_value_t = Task::Mlm)]
    task: Task,
    /// Tokens in a batch [default: as many thousands as fit 90 % of the card's memory, at most 65536]
    #[arg(long, value_name = "TOKENS", value_parser = tokens())]
    batch_tokens: Option<usize>,
    /// Longest sequence, [CLS] and [SEP] included [default: 512, or what the model takes]
    #[arg(long, value_name = "TOKENS", value_parser = tokens())]
    max_length: Option<usize>,
    /// Mean length of a sequence, [CLS] and [SEP] included [default: 300, or --max-length]
    #[arg(long, value_name = "TOKENS")]
    mean_length: Option<f64>,
    /// Time and disk for a corpus of so many tokens, [CLS] and [SEP] not counted
    #[arg(long, value_name = "TOKENS", conflicts_with = "corpus_postings", value_parser = up_to(10u64.pow(15)))]
    corpus_tokens: Option<u64>,
    /// The same for so many postings of the mean length
    #[arg(long, value_name = "POSTINGS", value_parser = up_to(10u64.pow(11)))]
    corpus_postings: Option<u64>,
    /// Passes over the corpus in training [default: 3]
    #[arg(long)]
    epochs: Option<f64>,
}

fn tokens() -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(1..=batch_tokens::LARGEST as u64)
}

fn up_to(most: u64) -> RangedU64ValueParser<u64> {
    RangedU64ValueParser::new().range(1..=most)
}

/// What is planned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
enum Task {
    /// Training by masked-language modelling
    Mlm,
    /// Training a classifier
    Classifier,
    /// Labelling with a classifier: forward passes alone
    Predict,
}

impl Task {
    fn mode(self) -> Mode {
        if self == Task::Predict { Mode::Inference } else { Mode::Training }
    }

    fn in_training(self) -> train::Task {
        if self == Task::Mlm { train::Task::MLM } else { train::Task::CLASSIFIER }
    }
}

pub fn run(args: &Args, common: &Common) -> Result<Outcome> {
    let plan = Plan::new(args)?;
    common.print(&report::as_json(&plan), &report::as_text(&plan))?;
    Ok(Outcome::Done)
}

/// What was asked for, checked, with the defaults filled in.
struct Plan {
    config: Config,
    head: Head,
    task: Task,
    gpu: &'static Gpu,
    batching: Batching,
    load: Load,
    capacity: Capacity,
    memory: Memory,
    corpus: Option<Corpus>,
}

impl Plan {
    fn new(args: &Args) -> Result<Plan> {
        let config = Config::read(&config_file(args)?)?;
        let (task, gpu) = (args.task, args.gpu);
        let head = match task {
            Task::Mlm => Head::Mlm,
            Task::Classifier | Task::Predict => Head::Classifier { classes: config.labels.len().max(2) },
        };
        let (in_training, mode) = (task.in_training(), task.mode());
        let needs = Needs { config: &config, head, task: &in_training, mode };
        let max_length = args.max_length.unwrap_or(DEFAULT_MAX_LENGTH.min(config.max_position_embeddings));
        let batch_tokens = match args.batch_tokens {
            Some(tokens) => tokens,
            None => default_tokens(&needs, gpu, max_length)?,
        };
        let batching = Batching { max_length, batch_tokens, ..Batching::default() };
        batching.check(&config)?;
        let memory = needs.memory(batch_tokens);
        if memory.total() > gpu.memory {
            bail!("{}", too_large(&needs, batch_tokens, gpu));
        }
        let mean_length = mean_length(args.mean_length, max_length)?;
        let masked = if task == Task::Mlm { (MASKED * batch_tokens as f64).round() as usize } else { 0 };
        let load = Load::uniform(batch_tokens, mean_length, masked);
        let corpus = corpus(args, &config, mean_length)?;
        let capacity = needs.capacity(batch_tokens);
        Ok(Plan { head, task, gpu, batching, load, capacity, memory, corpus, config })
    }
}

fn config_file(args: &Args) -> Result<PathBuf> {
    match (&args.config, &args.model) {
        (Some(file), _) => Ok(file.clone()),
        (None, Some(model)) if Path::new(model).is_file() => bail!("--model {model} is a file; give it as --config"),
        (None, Some(model)) => Ok(hub::resolve_config(model)?),
        (None, None) => bail!("give a --model or a --config"),
    }
}

fn mean_length(given: Option<f64>, max_length: usize) -> Result<f64> {
    let longest = max_length as f64;
    let mean = given.unwrap_or(DEFAULT_MEAN_LENGTH.min(longest));
    // A sequence shows one token at least; NaN is in no range.
    if (FRAME + 1.0..=longest).contains(&mean) {
        return Ok(mean);
    }
    bail!("--mean-length {mean}: the mean of lengths from 3 to --max-length {max_length} lies between them");
}

fn corpus(args: &Args, config: &Config, mean_length: f64) -> Result<Option<Corpus>> {
    let shown = mean_length - FRAME;
    let (tokens, postings) = match (args.corpus_tokens, args.corpus_postings) {
        (Some(tokens), _) => (tokens, (tokens as f64 / shown).ceil() as u64),
        (None, Some(postings)) => ((postings as f64 * shown).round() as u64, postings),
        (None, None) if args.epochs.is_some() => bail!("--epochs is for --corpus-tokens or --corpus-postings"),
        (None, None) => return Ok(None),
    };
    let epochs = match (args.task, args.epochs) {
        (Task::Predict, Some(_)) => bail!("--epochs is for training; predict reads a corpus once"),
        (Task::Predict, None) => 1.0,
        (_, epochs) => epochs.unwrap_or(DEFAULT_EPOCHS),
    };
    if !(epochs > 0.0 && epochs <= 1e6) {
        bail!("--epochs {epochs} is not a number above 0 and up to 1,000,000");
    }
    let labelled = args.task == Task::Classifier;
    Ok(Some(Corpus { tokens, postings, epochs, vocab: config.vocab_size as u64, labelled }))
}

fn default_tokens(needs: &Needs<'_>, gpu: &Gpu, max_length: usize) -> Result<usize> {
    match needs.most_tokens(gpu.memory, batch_tokens::MOST) {
        Some(tokens) => Ok(tokens),
        None => bail!("{}", too_large(needs, max_length.max(batch_tokens::UNIT), gpu)),
    }
}

/// That a batch does not fit, what it takes, and what would fit.
fn too_large(needs: &Needs<'_>, tokens: usize, gpu: &Gpu) -> String {
    let memory = needs.memory(tokens);
    let mut kinds = memory.by_kind();
    kinds.sort_by_key(|&(_, bytes)| std::cmp::Reverse(bytes));
    let [(most, bytes), ..] = kinds;
    let advice = match needs.most_tokens(gpu.memory, batch_tokens::LARGEST) {
        Some(fits) => format!("--batch-tokens {fits} is the most that fits 90 % of it"),
        None => "no batch fits; take a smaller model or a larger card".to_owned(),
    };
    format!(
        "a batch of {} tokens takes {} ({most}: {}), an {} has {}; {advice}",
        grouped(tokens as u64),
        report::bytes(memory.total()),
        report::bytes(bytes),
        gpu.name,
        report::bytes(gpu.memory),
    )
}
