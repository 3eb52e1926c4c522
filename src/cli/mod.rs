//! The command line: one command, one file, each from typed arguments to a validated plan to the run.
//!
//! Results go to stdout, logs to stderr. Exit codes: 0 done, 1 done but some rows were bad, 2 nothing
//! done, and why.

mod batch_tokens;
mod bench;
mod common;
mod corpus;
mod device;
mod eval;
mod figures;
mod fill_mask;
mod inspect;
mod inspect_model;
mod inspect_set;
mod interrupt;
mod kernels;
mod plan;
mod predict;
pub mod quickstart;
mod settings;
mod synth;
mod tokenize;
mod train;

use std::io::Write;
use std::process::ExitCode;

use clap::parser::ValueSource;
use clap::{ArgMatches, CommandFactory, FromArgMatches, Parser, Subcommand};

pub use common::Common;
pub use device::{DeviceArg, Matmul};
pub use settings::overlay;
pub use train::args::{ClassifierArgs, MlmArgs};
pub use train::plan::{classifier as classifier_plan, mlm as mlm_plan};

/// DistilBERT by hand: adapt it to job postings, fine-tune a classifier, label files of any size.
#[derive(Debug, Parser)]
#[command(version, propagate_version = true, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// The whole story on synthetic postings, in minutes on two cores
    Quickstart(quickstart::Args),
    /// Turn postings into a token set
    Tokenize(tokenize::Args),
    /// Train a model
    #[command(subcommand)]
    Train(train::Task),
    /// Measure a model on held-out postings
    #[command(subcommand)]
    Eval(eval::Task),
    /// Fill in the [MASK] of a text
    FillMask(fill_mask::Args),
    /// Label posting files of any size
    Predict(predict::Args),
    /// Describe a token set, a model or a checkpoint; with --verify, check every byte
    Inspect(inspect::Args),
    /// What a training step or a forward pass takes on a GPU, before a run: time, memory, disk
    Plan(plan::Args),
    /// The CUDA kernels: what there is, whether they are right, and compiling them ahead of time
    #[command(subcommand)]
    Kernels(kernels::Task),
    /// Measure this device: every op, whole training steps, forward passes
    #[command(subcommand)]
    Bench(bench::Task),
    /// Write synthetic labelled postings, deterministic
    Synth(synth::Args),
}

/// How a command ended, when it did its work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Everything was done.
    Done,
    /// Done, but some rows were bad; they were counted and the first ones named.
    SomeRowsBad,
}

/// Parses the arguments, runs the command, prints the error chain.
pub fn main() -> ExitCode {
    let matches = Cli::command().get_matches();
    let Cli { command, mut common } = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    common.seed_given = typed(&matches, "seed");
    common.computed = ["device", "matmul", "threads"].iter().filter_map(|option| again(&matches, option)).collect();
    common.start_logging();
    let outcome = match &command {
        Command::Quickstart(args) => quickstart::run(args, &common),
        Command::Tokenize(args) => tokenize::run(args, &common),
        Command::Train(task) => train::run(task, &common),
        Command::Eval(task) => eval::run(task, &common),
        Command::FillMask(args) => fill_mask::run(args, &common),
        Command::Predict(args) => predict::run(args, &common),
        Command::Inspect(args) => inspect::run(args, &common),
        Command::Plan(args) => plan::run(args, &common),
        Command::Kernels(task) => kernels::run(task, &common),
        Command::Bench(task) => bench::run(task, &common),
        Command::Synth(args) => synth::run(args, &common),
    };
    match outcome {
        Ok(Outcome::Done) => ExitCode::SUCCESS,
        Ok(Outcome::SomeRowsBad) => ExitCode::from(1),
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            // Not eprintln!: it panics where stderr is closed.
            let _ = writeln!(std::io::stderr(), "handbert: {}", told(&error));
            ExitCode::from(2)
        }
    }
}

/// The error and its causes, without those that the error's own words already end in.
fn told(error: &anyhow::Error) -> String {
    let mut told = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if !told.ends_with(&cause) {
            told.push_str(if told.is_empty() { "" } else { ": " });
            told.push_str(&cause);
        }
    }
    told
}

/// Whether an option of every command was typed rather than left at its default.
fn typed(matches: &ArgMatches, option: &str) -> bool {
    let here =
        matches.try_contains_id(option).is_ok() && matches.value_source(option) == Some(ValueSource::CommandLine);
    here || matches.subcommand().is_some_and(|(_, matches)| typed(matches, option))
}

/// An option of every command, if it was typed, as it would be typed again.
fn again(matches: &ArgMatches, option: &str) -> Option<String> {
    if !typed(matches, option) {
        return None;
    }
    // A subcommand's matches hold it too.
    let value = matches.get_raw(option)?.next()?.to_string_lossy().into_owned();
    Some(format!(" --{option} {value}"))
}

/// The reader of our output has seen enough, as `head` does.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<std::io::Error>())
        .any(|io| io.kind() == std::io::ErrorKind::BrokenPipe)
}
