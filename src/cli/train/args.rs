//! What the user types, on the command line or in a TOML file; everything may be left open.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::cli::batch_tokens::BatchTokens;
use crate::cli::settings::{list, named, trimmed};
use crate::train::schedule::ScheduleKind;
use crate::train::{Metric, Occupied, Replay, ReportTo};

/// Column of the label, where nothing else is said.
pub const LABEL_COLUMN: &str = "label";

/// Where a run starts, what it reads, where it writes.
#[derive(Debug, Clone, Default, clap::Args, Serialize, Deserialize)]
#[serde(default)]
pub struct DataArgs {
    /// The model to start from: a directory or a hub id
    #[arg(long)]
    pub model: Option<String>,
    /// A token set, or posting files (.csv .tsv .jsonl .txt .parquet, also .gz or .zst, or -), tokenized into OUT/tokens first
    #[arg(long, num_args = 1.., value_name = "SET|FILES")]
    #[serde(deserialize_with = "list")]
    pub data: Option<Vec<String>>,
    /// The run directory: the best model, checkpoint-<step>/, metrics.jsonl, run.toml, report.html
    #[arg(long, value_name = "DIR")]
    #[serde(skip)]
    pub out: Option<PathBuf>,
    /// Go on from the newest checkpoint in OUT, with the settings in OUT/run.toml
    #[arg(long)]
    #[serde(skip)]
    pub resume: bool,
    /// Delete the earlier run in OUT
    #[arg(long, conflicts_with = "resume")]
    #[serde(skip)]
    pub overwrite: bool,
    /// On a GPU, launch each op by itself instead of recording a step once and replaying it; changes no result
    #[arg(long)]
    #[serde(skip)]
    pub no_graph: bool,
    /// Another run of the same kind: report.html draws its curves beside this one's and says which settings differ
    #[arg(long, value_name = "RUN")]
    #[serde(skip)]
    pub compare: Option<PathBuf>,
    /// Settings, named like these flags in snake_case; the command line wins over them
    #[arg(long, value_name = "RUN.toml")]
    #[serde(skip)]
    pub config_file: Option<PathBuf>,
    /// Columns whose texts are joined, in this order [default: text, body, description or title and description]
    #[arg(long, value_delimiter = ',', value_name = "COLUMNS")]
    #[serde(deserialize_with = "list")]
    pub text_columns: Option<Vec<String>>,
    /// Column whose values stay together on one side of the split [default: each text is its own group]
    #[arg(long, value_name = "COLUMN")]
    pub group_column: Option<String>,
    /// Only the first so many postings
    #[arg(long, value_name = "POSTINGS")]
    pub limit: Option<u64>,
    /// Percentage of groups held out for evaluation, by hash, so that none ever changes sides [default: 5]
    #[arg(long, value_name = "PERCENT")]
    pub validation_split_percentage: Option<f64>,
    /// Tokens in a batch; there is no padding, so lengths need no grouping. auto: as many thousands as fit the GPU's free
    /// memory, at most 65536; on a CPU the default [default: 4096]
    #[arg(long, value_name = "TOKENS|auto")]
    pub batch_tokens: Option<BatchTokens>,
    /// Longest sequence, [CLS] and [SEP] included [default: 512, or what the model takes]
    #[arg(long, value_name = "TOKENS")]
    pub max_length: Option<usize>,
}

impl DataArgs {
    /// Takes over what only a command line says.
    pub fn keep_command_line_of(&mut self, typed: &DataArgs) {
        let DataArgs { out, resume, overwrite, no_graph, compare, config_file, .. } = typed.clone();
        (self.out, self.resume, self.overwrite, self.config_file) = (out, resume, overwrite, config_file);
        (self.no_graph, self.compare) = (no_graph, compare);
    }

    /// What an --out that holds something means.
    pub fn occupied(&self) -> Occupied {
        if self.overwrite { Occupied::Overwrite } else { Occupied::Refuse }
    }

    /// How steps are computed.
    pub fn replay(&self) -> Replay {
        if self.no_graph { Replay::Never } else { Replay::WhenItCan }
    }
}

/// How to train. Names and defaults are those of Hugging Face's TrainingArguments where it has one.
#[derive(Debug, Clone, Default, clap::Args, Serialize, Deserialize)]
#[serde(default)]
#[command(next_help_heading = "Optimization")]
pub struct OptimizationArgs {
    /// Passes over the training postings; fractions allowed [default: 3]
    #[arg(long, value_name = "EPOCHS")]
    pub num_train_epochs: Option<f64>,
    /// Steps, instead of epochs
    #[arg(long, value_name = "STEPS", conflicts_with = "num_train_epochs")]
    pub max_steps: Option<u64>,
    /// Peak learning rate [default: 5e-5]
    #[arg(long, value_name = "RATE")]
    pub learning_rate: Option<f64>,
    /// linear, cosine or constant, after the warm-up [default: linear]
    #[arg(long, value_name = "SHAPE", value_parser = named::<ScheduleKind>)]
    pub lr_scheduler_type: Option<ScheduleKind>,
    /// Steps in which the learning rate rises from zero [default: 0]
    #[arg(long, value_name = "STEPS")]
    pub warmup_steps: Option<u64>,
    /// The same as a share of all steps
    #[arg(long, value_name = "SHARE", conflicts_with = "warmup_steps")]
    pub warmup_ratio: Option<f64>,
    /// Batches a step; the loss is divided once, by the targets of all of them [default: 1]
    #[arg(long, value_name = "BATCHES")]
    pub gradient_accumulation_steps: Option<usize>,
    /// Decoupled weight decay; biases and LayerNorms are exempt [default: 0]
    #[arg(long)]
    pub weight_decay: Option<f64>,
    /// AdamW's decay of the first moment [default: 0.9]
    #[arg(long, value_name = "BETA")]
    pub adam_beta1: Option<f64>,
    /// AdamW's decay of the second moment [default: 0.999]
    #[arg(long, value_name = "BETA")]
    pub adam_beta2: Option<f64>,
    /// Added to the root of AdamW's second moment [default: 1e-8]
    #[arg(long, value_name = "EPSILON")]
    pub adam_epsilon: Option<f64>,
    /// Global norm the gradients are clipped to, 0 = none [default: 1]
    #[arg(long, value_name = "NORM")]
    pub max_grad_norm: Option<f64>,
    /// Skip the update of a step whose loss is more than so many standard deviations above the mean of the steps before it;
    /// counted and shown like one that is not finite [default: none]
    #[arg(long, value_name = "DEVIATIONS")]
    pub max_loss_z_score: Option<f64>,
    /// The same of the gradients' norm
    #[arg(long, value_name = "DEVIATIONS")]
    pub max_grad_norm_z_score: Option<f64>,
    /// Steps that a z-score is of; before there are so many, none is skipped [default: 100]
    #[arg(long, value_name = "STEPS")]
    pub z_score_window: Option<usize>,
    /// To find mistakes: make every step on the batches of the first, whose loss must go to nearly 0; nothing is evaluated
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "true|false")]
    pub overfit_one_batch: Option<bool>,
    /// From the file alone: on the command line it is an option of every command.
    #[arg(skip)]
    pub seed: Option<i64>,
}

/// When to evaluate, save, log and stop.
#[derive(Debug, Clone, Default, clap::Args, Serialize, Deserialize)]
#[serde(default)]
#[command(next_help_heading = "Evaluation and checkpoints")]
pub struct PolicyArgs {
    /// no, steps or epoch; each evaluation is saved [default: epoch]
    #[arg(long, value_name = "WHEN", value_parser = named::<Strategy>)]
    pub eval_strategy: Option<Strategy>,
    /// Evaluate every so many steps
    #[arg(long, value_name = "STEPS")]
    pub eval_steps: Option<u64>,
    /// Save every so many steps, too
    #[arg(long, value_name = "STEPS")]
    pub save_steps: Option<u64>,
    /// Checkpoints kept; the newest and the best always are [default: all]
    #[arg(long, value_name = "CHECKPOINTS")]
    pub save_total_limit: Option<usize>,
    /// loss, accuracy, f1, macro_f1, roc_auc or average_precision [default: loss]
    #[arg(long, value_name = "METRIC", value_parser = named::<Metric>)]
    pub metric_for_best_model: Option<Metric>,
    /// Stop after so many evaluations without a new best [default: never]
    #[arg(long, value_name = "EVALUATIONS")]
    pub patience: Option<u32>,
    /// A line in metrics.jsonl every so many steps [default: 10]
    #[arg(long, value_name = "STEPS")]
    pub logging_steps: Option<u64>,
    /// tensorboard (the same figures in OUT/tensorboard, for `tensorboard --logdir`) or none [default: tensorboard]
    #[arg(long, value_name = "WHERE", value_parser = named::<ReportTo>)]
    pub report_to: Option<ReportTo>,
}

/// `--eval-strategy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Strategy {
    /// Never.
    No,
    /// Every `--eval-steps`.
    Steps,
    /// At the end of each epoch.
    Epoch,
}

/// `--packing`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PackingName {
    /// Attention never crosses a posting.
    Documents,
    /// All text concatenated and cut.
    Chunks,
}

/// How tokens are hidden and packed for masked-language modelling.
#[derive(Debug, Clone, Default, clap::Args, Serialize, Deserialize)]
#[serde(default)]
#[command(next_help_heading = "Masked-language modelling")]
pub struct MaskingArgs {
    /// Share of ordinary tokens to predict: of these 80 % become [MASK], 10 % another token [default: 0.15]
    #[arg(long, value_name = "SHARE")]
    pub mlm_probability: Option<f64>,
    /// Hide whole words
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "true|false")]
    pub whole_word: Option<bool>,
    /// documents (attention never crosses a posting; long ones go in consecutive pieces) or chunks (all text
    /// concatenated and cut) [default: documents]
    #[arg(long, value_name = "PACKING", value_parser = named::<PackingName>)]
    pub packing: Option<PackingName>,
    /// With --packing chunks: tokens of a chunk [default: 256]
    #[arg(long, value_name = "TOKENS")]
    pub chunk_length: Option<usize>,
}

/// `--long`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LongName {
    /// The beginning.
    Truncate,
    /// The first 128 tokens and the end.
    HeadTail,
    /// Overlapping windows, averaged in prediction.
    Windows,
}

/// What a classifier looks at.
#[derive(Debug, Clone, Default, clap::Args, Serialize, Deserialize)]
#[serde(default)]
#[command(next_help_heading = "Classification")]
pub struct ClassArgs {
    /// Column of the label; postings without one are passed over [default: label]
    #[arg(long, value_name = "COLUMN")]
    pub label_column: Option<String>,
    /// Names of the classes, by id [default: those that occur, sorted]
    #[arg(long, value_delimiter = ',', value_parser = trimmed, value_name = "LABELS")]
    #[serde(deserialize_with = "list")]
    pub labels: Option<Vec<String>>,
    /// The class that F1, ROC AUC and average precision are about [default: the second]
    #[arg(long, value_name = "LABEL")]
    pub positive_label: Option<String>,
    /// What becomes of postings longer than --max-length: truncate, head-tail or windows [default: truncate]
    #[arg(long, value_name = "HOW", value_parser = named::<LongName>)]
    pub long: Option<LongName>,
    /// With --long windows: tokens from the start of one window to the start of the next [default: half a window]
    #[arg(long, value_name = "TOKENS")]
    pub window_stride: Option<usize>,
}

/// Arguments of `train mlm`.
#[derive(Debug, Clone, Default, clap::Args, Serialize, Deserialize)]
#[serde(default)]
pub struct MlmArgs {
    /// A config.json: train from scratch instead of from --model
    #[arg(long, value_name = "FILE", conflicts_with = "model")]
    pub config: Option<PathBuf>,
    /// With --config and posting files: the tokenizer, a directory or a hub id
    #[arg(long, value_name = "MODEL")]
    pub tokenizer: Option<String>,
    #[command(flatten)]
    #[serde(flatten)]
    #[allow(missing_docs)]
    pub data: DataArgs,
    #[command(flatten)]
    #[serde(flatten)]
    #[allow(missing_docs)]
    pub masking: MaskingArgs,
    #[command(flatten)]
    #[serde(flatten)]
    #[allow(missing_docs)]
    pub optimization: OptimizationArgs,
    #[command(flatten)]
    #[serde(flatten)]
    #[allow(missing_docs)]
    pub policy: PolicyArgs,
}

/// Arguments of `train classifier`.
#[derive(Debug, Clone, Default, clap::Args, Serialize, Deserialize)]
#[serde(default)]
pub struct ClassifierArgs {
    /// What a row of each class weighs in the loss: equal, auto (or balanced: all classes the same in sum), or numbers in the
    /// order of the labels [default: equal]
    #[arg(long, value_name = "WEIGHTS")]
    pub class_weights: Option<String>,
    /// Share of each training target that is spread evenly over all classes, times the row's weight; evaluations take labels
    /// as they are [default: 0]
    #[arg(long, value_name = "SHARE")]
    pub label_smoothing_factor: Option<f64>,
    #[command(flatten)]
    #[serde(flatten)]
    #[allow(missing_docs)]
    pub data: DataArgs,
    #[command(flatten)]
    #[serde(flatten)]
    #[allow(missing_docs)]
    pub class: ClassArgs,
    #[command(flatten)]
    #[serde(flatten)]
    #[allow(missing_docs)]
    pub optimization: OptimizationArgs,
    #[command(flatten)]
    #[serde(flatten)]
    #[allow(missing_docs)]
    pub policy: PolicyArgs,
}
