//! A validated plan of a run.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::data::pack::{Long, PackPlan, Packing, Shuffle};
use crate::data::split::{Split, Subset};
use crate::model::Config;

use super::optimizer::AdamSettings;
use super::outliers::Outliers;
use super::policy::{Every, Metric, Policy};
use super::schedule::{Schedule, ScheduleKind, Warmup};
use super::step::Replay;
use super::task::Task;
use super::{Error, Result};

/// The most tokens of a posting that a model sees at once, where nothing else is asked for.
pub const DEFAULT_MAX_LENGTH: usize = 512;
/// Tokens in a batch, where nothing else is asked for: what a few CPU cores work through in seconds.
pub const DEFAULT_BATCH_TOKENS: usize = 4096;

/// How samples become batches.
#[derive(Debug, Clone, PartialEq)]
pub struct Batching {
    /// One posting a sequence, or chunks of all text.
    pub packing: Packing,
    /// What happens to a posting longer than `max_length`.
    pub long: Long,
    /// L: longest sequence, [CLS] and [SEP] included.
    pub max_length: usize,
    /// N: tokens in a batch at most.
    pub batch_tokens: usize,
    /// Only the first so many samples of the set.
    pub limit: Option<u64>,
    /// Percentage of groups that is held out.
    pub validation_split_percentage: f64,
}

impl Default for Batching {
    fn default() -> Self {
        Batching {
            packing: Packing::Documents,
            long: Long::Split,
            max_length: DEFAULT_MAX_LENGTH,
            batch_tokens: DEFAULT_BATCH_TOKENS,
            limit: None,
            validation_split_percentage: 5.0,
        }
    }
}

impl Batching {
    /// The split.
    pub fn split(&self) -> Split {
        Split { held_fraction: self.validation_split_percentage / 100.0 }
    }

    /// B: sequences in a batch at most. Eight tokens a posting on average are fewer than any real file has.
    pub fn max_sequences(&self) -> usize {
        self.batch_tokens.div_ceil(8)
    }

    /// The packer's plan for one side of the split.
    pub fn pack_plan(&self, task: &Task, subset: Subset, shuffle: Shuffle) -> PackPlan {
        PackPlan {
            packing: self.packing,
            long: self.long,
            need: task.need(),
            empty: task.empty(),
            subset,
            split: self.split(),
            shuffle,
            batch_tokens: self.batch_tokens,
            max_sequences: self.max_sequences(),
            max_length: self.max_length,
            limit: self.limit,
        }
    }

    /// Checks the numbers against each other and the model; errors name flags.
    pub fn check(&self, config: &Config) -> Result<()> {
        let positions = config.max_position_embeddings;
        let percentage = self.validation_split_percentage;
        let (name, longest) = match self.packing {
            Packing::Documents => ("--max-length", self.max_length),
            Packing::Chunks { length } => ("--chunk-length", length),
        };
        if !(3..=positions).contains(&longest) {
            return Err(Error::Plan(format!("{name} {longest}: the model takes 3 to {positions} tokens")));
        }
        if self.batch_tokens < longest {
            return Err(Error::Plan(format!(
                "--batch-tokens {} has no room for one sequence of {name} {longest}; raise it",
                self.batch_tokens
            )));
        }
        if !(0.0..100.0).contains(&percentage) {
            return Err(Error::Plan(format!("--validation-split-percentage {percentage} is not from 0 to below 100")));
        }
        Ok(())
    }
}

/// How long a run is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Length {
    /// So many passes over the training side; fractions allowed.
    Epochs(f64),
    /// So many steps.
    Steps(u64),
}

/// What the steps of a run are made on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Feed {
    /// One batch after the other, epoch after epoch.
    AllBatches,
    /// The first step's batches, again and again: a model and a learning rate that are any good know them by heart soon.
    FirstStep,
}

/// What an output directory that holds something means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Occupied {
    /// An error.
    Refuse,
    /// What an earlier run wrote there is deleted.
    Overwrite,
}

/// What reads a run's figures beside `metrics.jsonl`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReportTo {
    /// Nothing.
    None,
    /// TensorBoard, from an event file.
    Tensorboard,
}

/// Everything about a run but the model it starts from and the data.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainPlan {
    /// The run directory.
    pub out: PathBuf,
    /// What to do where it holds something.
    pub occupied: Occupied,
    /// What to train for.
    pub task: Task,
    /// How samples become batches.
    pub batching: Batching,
    /// Batches a step.
    pub accumulation: usize,
    /// The optimizer.
    pub adam: AdamSettings,
    /// The learning rate over the run.
    pub schedule: Schedule,
    /// How long.
    pub length: Length,
    /// When to evaluate, save, stop.
    pub policy: Policy,
    /// Steps whose update is withheld.
    pub outliers: Outliers,
    /// What the steps are made on.
    pub feed: Feed,
    /// A line of `metrics.jsonl` every so many steps.
    pub logging_steps: u64,
    /// What else reads them.
    pub report_to: ReportTo,
    /// Of order, masks and dropout.
    pub seed: u64,
    /// How steps are computed; makes no difference to what comes of them.
    pub replay: Replay,
    /// What the caller adds to `run.toml`: which model, which data.
    pub provenance: toml::Table,
}

impl TrainPlan {
    /// The defaults, which are those of Hugging Face's `TrainingArguments` where it has one, but for
    /// evaluation (each epoch, not never) and logging (every 10 steps, not 500).
    pub fn new(task: Task, out: PathBuf) -> Self {
        let long = match task {
            Task::Mlm { .. } => Long::Split,
            Task::Classifier { .. } => Long::Truncate,
        };
        TrainPlan {
            out,
            occupied: Occupied::Refuse,
            task,
            batching: Batching { long, ..Batching::default() },
            accumulation: 1,
            adam: AdamSettings::default(),
            schedule: Schedule { kind: ScheduleKind::Linear, warmup: Warmup::Steps(0) },
            length: Length::Epochs(3.0),
            policy: Policy {
                evaluate: Every::Epoch,
                save_steps: None,
                save_total_limit: None,
                metric: Metric::Loss,
                patience: None,
            },
            outliers: Outliers::IGNORED,
            feed: Feed::AllBatches,
            logging_steps: 10,
            report_to: ReportTo::Tensorboard,
            seed: 42,
            replay: Replay::WhenItCan,
            provenance: toml::Table::new(),
        }
    }

    /// Checks the numbers; errors name flags.
    pub fn check(&self, config: &Config) -> Result<()> {
        self.batching.check(config)?;
        self.task.check()?;
        self.outliers.check()?;
        let a = &self.adam;
        // As the f32 that is computed with: what rounds to one or to zero there divides by zero.
        let fraction = |x: f64| x >= 0.0 && (x as f32) < 1.0;
        let positive = |x: f64| x as f32 > 0.0 && (x as f32).is_finite();
        let not_negative = |x: f64| x >= 0.0 && (x as f32).is_finite();
        let (epochs, steps) = match self.length {
            Length::Epochs(epochs) => (epochs, 1),
            Length::Steps(steps) => (1.0, steps),
        };
        let ratio = match self.schedule.warmup {
            Warmup::Ratio(ratio) => ratio,
            Warmup::Steps(_) => 0.0,
        };
        let eval_steps = if let Every::Steps(steps) = self.policy.evaluate { steps } else { 1 };
        let wrong = [
            ("--learning-rate", not_negative(a.learning_rate), "is not a number from 0"),
            ("--weight-decay", not_negative(a.weight_decay), "is not a number from 0"),
            ("--adam-beta1", fraction(a.beta1), "is not from 0 to below 1"),
            ("--adam-beta2", fraction(a.beta2), "is not from 0 to below 1"),
            ("--adam-epsilon", positive(a.epsilon), "is not above 0"),
            ("--max-grad-norm", not_negative(a.max_grad_norm), "is not a number from 0"),
            ("--num-train-epochs", positive(epochs), "is not above 0"),
            ("--max-steps", steps > 0, "is not above 0"),
            ("--warmup-ratio", (0.0..=1.0).contains(&ratio), "is not from 0 to 1"),
            ("--gradient-accumulation-steps", self.accumulation > 0, "is not above 0"),
            ("--logging-steps", self.logging_steps > 0, "is not above 0"),
            ("--eval-steps", eval_steps > 0, "is not above 0"),
            ("--save-steps", self.policy.save_steps != Some(0), "is not above 0"),
            ("--patience", self.policy.patience != Some(0), "is not above 0"),
        ];
        match wrong.iter().find(|(_, right, _)| !right) {
            Some((flag, _, why)) => Err(Error::Plan(format!("{flag} {why}"))),
            None => self.check_policy(),
        }
    }

    fn check_policy(&self) -> Result<()> {
        let evaluates = self.policy.evaluate != Every::Never;
        if self.feed == Feed::FirstStep && evaluates {
            return Err(Error::Plan(
                "--overfit-one-batch says nothing of postings held out; leave --eval-strategy and --eval-steps out"
                    .into(),
            ));
        }
        if self.policy.patience.is_some() && !evaluates {
            return Err(Error::Plan("--patience counts evaluations, and --eval-strategy is no".into()));
        }
        let for_classes = !matches!(self.policy.metric, Metric::Loss | Metric::Accuracy);
        if for_classes && matches!(self.task, Task::Mlm { .. }) {
            return Err(Error::Plan("--metric-for-best-model: a masked-language model has loss and accuracy".into()));
        }
        if evaluates && self.batching.validation_split_percentage == 0.0 {
            return Err(Error::Plan(
                "--validation-split-percentage 0 leaves nothing to evaluate; add --eval-strategy no".into(),
            ));
        }
        Ok(())
    }
}
