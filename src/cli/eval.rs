//! `handbert eval mlm|classifier`.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use anyhow::{Context, Result, bail};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::batch_tokens::{BatchTokens, Needs};
use super::corpus::{Columns, Corpus, Data, Earlier, Making, check_tokenizer};
use super::device::Computation;
use super::figures::table;
use super::settings::{list, named, over, run_settings};
use super::train::args::{ClassArgs, LABEL_COLUMN, MaskingArgs};
use super::train::plan::{default_tokens, long, masking_task, packing};
use super::{Common, Outcome, interrupt};
use crate::backend::Backend;
use crate::data::record::RecordSpec;
use crate::data::split::Subset;
use crate::data::tokenizer::Tokenizer;
use crate::model::hub::{self, Loaded, Wanted};
use crate::model::{Config, DistilBert, Mode};
use crate::train::plan::DEFAULT_MAX_LENGTH;
use crate::train::{self, Batching, ClassWeights, EvalPlan, EvalResult, Unigram, evaluate};

#[derive(Debug, clap::Subcommand)]
pub enum Task {
    /// Masked-language modelling: perplexity on hidden tokens
    Mlm(Box<MlmArgs>),
    /// Classification: accuracy, F1, ROC AUC, average precision
    Classifier(Box<ClassifierArgs>),
}

/// What to measure, and on what.
#[derive(Debug, Clone, clap::Args)]
pub struct TargetArgs {
    /// The model to measure: a directory or a hub id
    #[arg(long)]
    model: String,
    /// A token set, or posting files (.csv .tsv .jsonl .txt .parquet, also .gz or .zst, or -)
    #[arg(long, num_args = 1.., required = true, value_name = "SET|FILES")]
    data: Vec<String>,
    /// held (the side of the split that training has not seen), train or all
    #[arg(long, default_value = "held", value_parser = named::<Subset>)]
    subset: Subset,
    /// Only the first so many postings
    #[arg(long, value_name = "POSTINGS")]
    limit: Option<u64>,
    /// Tokens in a batch. auto: as many thousands as fit the GPU's free memory, at most 65536; on a CPU the default
    #[arg(long, value_name = "TOKENS|auto", default_value_t = BatchTokens::Tokens(train::plan::DEFAULT_BATCH_TOKENS))]
    batch_tokens: BatchTokens,
}

/// What is as in training where a run wrote the model and nothing else is asked for.
#[derive(Debug, Clone, Default, clap::Args, Serialize, Deserialize)]
#[serde(default)]
pub struct DataArgs {
    /// Columns whose texts are joined, in this order [default: as in training, else text, body, description …]
    #[arg(long, value_delimiter = ',', value_name = "COLUMNS")]
    #[serde(deserialize_with = "list")]
    text_columns: Option<Vec<String>>,
    /// Column whose values stay together on one side of the split [default: as in training]
    #[arg(long, value_name = "COLUMN")]
    group_column: Option<String>,
    /// Percentage of groups held out [default: as in training, else 5]
    #[arg(long, value_name = "PERCENT")]
    validation_split_percentage: Option<f64>,
    /// Longest sequence, [CLS] and [SEP] included [default: as in training, else 512]
    #[arg(long, value_name = "TOKENS")]
    max_length: Option<usize>,
}

/// Arguments of `eval mlm`.
#[derive(Debug, Clone, clap::Args)]
pub struct MlmArgs {
    #[command(flatten)]
    target: TargetArgs,
    #[command(flatten)]
    how: MlmHow,
}

/// Arguments of `eval classifier`.
#[derive(Debug, Clone, clap::Args)]
pub struct ClassifierArgs {
    #[command(flatten)]
    target: TargetArgs,
    #[command(flatten)]
    how: ClassifierHow,
}

#[derive(Debug, Clone, Default, clap::Args, Serialize, Deserialize)]
#[serde(default)]
struct MlmHow {
    #[command(flatten)]
    #[serde(flatten)]
    data: DataArgs,
    #[command(flatten)]
    #[serde(flatten)]
    masking: MaskingArgs,
}

#[derive(Debug, Clone, Default, clap::Args, Serialize, Deserialize)]
#[serde(default)]
struct ClassifierHow {
    #[command(flatten)]
    #[serde(flatten)]
    data: DataArgs,
    #[command(flatten)]
    #[serde(flatten)]
    class: ClassArgs,
}

pub fn run(task: &Task, common: &Common) -> Result<Outcome> {
    match task {
        Task::Mlm(args) => mlm(args, common),
        Task::Classifier(args) => classifier(args, common),
    }
}

fn mlm(args: &MlmArgs, common: &Common) -> Result<Outcome> {
    // Before anything is computed: it sets the number of threads.
    let backend = common.backend()?;
    let dir = hub::resolve(&args.target.model)?;
    let how = asked(&dir, &args.how)?;
    let task = masking_task(&how.masking)?;
    let model = load(&dir, &task)?;
    let mut batching = how.data.batching(&args.target, &model.config);
    batching.packing = packing(&how.masking, &model.config)?;

    let place = Temporary::new();
    let spec = how.data.spec(None);
    let making = Making { spec, labels: None, limit: args.target.limit, place: &place.0, earlier: Earlier::Replace };
    let corpus = open(&args.target, &dir, &making, [args.how.data.columns(None), how.data.columns(None)], common)?;
    let unigram = Unigram::count(&corpus.set, batching.split(), args.target.limit, model.config.vocab_size)?;
    let plan = EvalPlan { task, batching, subset: args.target.subset, seed: common.seed };
    let batch_tokens = args.target.batch_tokens;
    backend.run(Measurement { model, corpus, plan, batch_tokens, unigram: Some(unigram), common })
}

fn classifier(args: &ClassifierArgs, common: &Common) -> Result<Outcome> {
    let backend = common.backend()?;
    let dir = hub::resolve(&args.target.model)?;
    let how = asked(&dir, &args.how)?;
    let positive = how.class.positive_label.clone();
    let task = train::Task::Classifier { positive, class_weights: ClassWeights::Equal, label_smoothing: 0.0 };
    let model = load(&dir, &task)?;
    let known = &model.config.labels;
    let mut batching = how.data.batching(&args.target, &model.config);
    batching.long = long(&how.class, batching.max_length)?;

    let place = Temporary::new();
    let spec = how.data.spec(Some(how.class.label_column.clone().unwrap_or_else(|| LABEL_COLUMN.into())));
    // A row with a label that the classifier does not know is a bad one.
    let labels = Some(known.clone());
    let making = Making { spec, labels, limit: args.target.limit, place: &place.0, earlier: Earlier::Replace };
    let columns = [args.how.data.columns(args.how.class.label_column.as_deref()), how.data.columns(None)];
    let corpus = open(&args.target, &dir, &making, columns, common)?;
    let labels = &corpus.set.meta().label_names;
    if known != labels {
        bail!(
            "{}: has the labels [{}], the classifier knows [{}]; make it again with `handbert tokenize FILES… --labels {}`",
            corpus.set.dir().display(),
            labels.join(", "),
            known.join(", "),
            known.join(",")
        );
    }
    let plan = EvalPlan { task, batching, subset: args.target.subset, seed: common.seed };
    let batch_tokens = args.target.batch_tokens;
    backend.run(Measurement { model, corpus, plan, batch_tokens, unigram: None, common })
}

fn load(dir: &Path, task: &train::Task) -> Result<Loaded> {
    let loaded = hub::load(dir, &Wanted::AsSaved, 0)?;
    task.check_head(loaded.head).with_context(|| dir.display().to_string())?;
    Ok(loaded)
}

/// What to measure, on what, and against what.
struct Measurement<'a> {
    model: Loaded,
    corpus: Corpus,
    plan: EvalPlan,
    batch_tokens: BatchTokens,
    unigram: Option<Unigram>,
    common: &'a Common,
}

impl Computation for Measurement<'_> {
    /// Evaluates and prints.
    fn on<B: Backend>(self, be: &B) -> Result<Outcome> {
        let Measurement { model, corpus, mut plan, batch_tokens, unigram, common } = self;
        let needs = Needs { config: &model.config, head: model.head, task: &plan.task, mode: Mode::Inference };
        plan.batching.batch_tokens = batch_tokens.settled(be, &needs, plan.batching.batch_tokens)?;
        let model = DistilBert::new(be, model.config, model.head, &model.values)?;
        let stop = interrupt::stop_flag()?;
        let bar = common.progress(1, "{bar:30} {pos}/{len} batches  {elapsed} gone, {eta} left")?;
        let eval = evaluate(be, &model, &corpus.set, plan, unigram.as_ref(), &mut |done, total| {
            bar.set_length(total);
            bar.set_position(done);
            if stop.load(Ordering::Relaxed) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        bar.finish_and_clear();
        let mut eval = eval.context("interrupted")?;
        if let EvalResult::Classifier(eval) = &mut eval {
            // Points for pictures, not figures to read.
            eval.curves = None;
        }
        common.print(&serde_json::to_value(&eval).context("figures")?, &table(&eval))?;
        Ok(if corpus.bad_rows() == 0 { Outcome::Done } else { Outcome::SomeRowsBad })
    }
}

/// The token set, made of the columns typed and split as in training, or one made of the files with the model's tokenizer.
fn open(
    target: &TargetArgs, dir: &Path, making: &Making<'_>, [typed, trained]: [Columns<'_>; 2], common: &Common,
) -> Result<Corpus> {
    let tokenizer = Tokenizer::load(dir)?;
    let corpus = Data::new(&target.data)?.open(Some(&tokenizer), making, common)?;
    corpus.check_columns(typed)?;
    if target.subset != Subset::All {
        corpus.check_split(trained)?;
    }
    check_tokenizer(&target.model, &tokenizer, &corpus.set)?;
    Ok(corpus)
}

impl DataArgs {
    fn columns<'a>(&'a self, label: Option<&'a str>) -> Columns<'a> {
        Columns { text: self.text_columns.as_deref(), label, group: self.group_column.as_deref() }
    }

    fn spec(&self, label_column: Option<String>) -> RecordSpec {
        RecordSpec {
            text_columns: self.text_columns.clone().unwrap_or_default(),
            label_column,
            group_column: self.group_column.clone(),
        }
    }

    fn batching(&self, target: &TargetArgs, config: &Config) -> Batching {
        let default = Batching::default();
        Batching {
            max_length: self.max_length.unwrap_or(DEFAULT_MAX_LENGTH.min(config.max_position_embeddings)),
            batch_tokens: default_tokens(config),
            validation_split_percentage: self
                .validation_split_percentage
                .unwrap_or(default.validation_split_percentage),
            limit: target.limit,
            ..default
        }
    }
}

/// What was typed, over what the run that wrote the model said: above all its split, so that held out means held out.
fn asked<T: Serialize + DeserializeOwned>(dir: &Path, typed: &T) -> Result<T> {
    let run = run_settings(dir)?;
    over(&run.settings, typed).with_context(|| run.file.display().to_string())
}

/// Where the token set of posting files lies while it is measured on; deleted afterwards.
struct Temporary(PathBuf);

impl Temporary {
    fn new() -> Self {
        Temporary(std::env::temp_dir().join(format!("handbert-eval-{}", std::process::id())))
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // It is not there where a token set was given.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
