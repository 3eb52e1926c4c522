//! `handbert predict FILES… --model MODEL --out FILE`.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, Result, bail};

use super::batch_tokens::{BatchTokens, Needs};
use super::device::Computation;
use super::interrupt::stop_flag;
use super::settings::run_settings;
use super::train::plan::default_tokens;
use super::{Common, Outcome};
use crate::backend::Backend;
use crate::data::pack::Long;
use crate::data::source::Format;
use crate::data::tokenizer::Tokenizer;
use crate::model::hub::{self, Loaded};
use crate::model::{Config, DistilBert, Head, Mode};
use crate::predict::classify::Decision;
use crate::predict::output::Existing;
use crate::predict::{self, Destination, Form, Inputs, Job, Options, Progress, Scores, Summary, TextColumns};
use crate::train::Task;
use crate::train::policy::Metric;
use crate::train::records::{EvalRecord, Record};
use crate::train::run_dir;

/// Longest sequence where neither the command line nor the model's run says otherwise.
const MAX_LENGTH: usize = 512;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Posting files: .csv, .tsv, .jsonl, .txt or .parquet, also .gz or .zst, or - for standard input
    #[arg(required = true, value_name = "FILES")]
    files: Vec<PathBuf>,
    /// A classifier: a directory or a hub id
    #[arg(long)]
    model: String,
    /// Where labelled rows go: .jsonl, .csv or .tsv, also .gz or .zst, or - for standard output
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Columns that make the text, joined by a space [default: those the model was trained on, else text, body or description]
    #[arg(long, value_delimiter = ',', value_name = "COLUMNS")]
    text_columns: Vec<String>,
    /// What becomes of postings longer than --max-length [default: as in training, else truncate]
    #[arg(long)]
    long: Option<LongArg>,
    /// With --long windows: tokens from the start of one window to the start of the next [default: half a window]
    #[arg(long, value_name = "TOKENS")]
    window_stride: Option<usize>,
    /// Longest sequence in tokens, [CLS] and [SEP] included [default: as in training, else 512]
    #[arg(long, value_name = "TOKENS")]
    max_length: Option<usize>,
    /// Add a column score_<label> for every label
    #[arg(long)]
    all_scores: bool,
    /// Of two labels, give the positive one from this probability on; "best" = the threshold of best F1 on the
    /// postings held out in training [default: the more probable label]
    #[arg(long, value_name = "PROBABILITY|best")]
    threshold: Option<ThresholdArg>,
    /// Put this before the names of the added columns
    #[arg(long)]
    prefix: Option<String>,
    /// Most tokens computed at once. auto: on a GPU, as many thousands as fit its free memory, at most 65536; on a CPU 4096
    #[arg(long, value_name = "TOKENS|auto", default_value_t = BatchTokens::Auto)]
    batch_tokens: BatchTokens,
    /// Format of the input, where its name does not say
    #[arg(long)]
    format: Option<Format>,
    /// Format of the output, where its name does not say; of standard output, jsonl
    #[arg(long)]
    out_format: Option<Form>,
    /// Replace the output file if it exists
    #[arg(long)]
    overwrite: bool,
}

/// What becomes of postings that are too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
enum LongArg {
    /// Look at the beginning
    Truncate,
    /// Look at the first 128 tokens and at the end
    HeadTail,
    /// Look at overlapping windows and average their probabilities
    Windows,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum ThresholdArg {
    Best,
    At(f32),
}

impl FromStr for ThresholdArg {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        match s.parse::<f32>() {
            _ if s == "best" => Ok(ThresholdArg::Best),
            Ok(at) if (0.0..=1.0).contains(&at) => Ok(ThresholdArg::At(at)),
            _ => Err("expected a probability from 0 to 1, or best".to_owned()),
        }
    }
}

/// What `handbert train classifier` noted of the run that wrote the model.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(default)]
struct Trained {
    text_columns: Vec<String>,
    long: Option<LongArg>,
    window_stride: Option<usize>,
    max_length: Option<usize>,
    positive_label: Option<String>,
    metric_for_best_model: Metric,
}

pub fn run(args: &Args, common: &Common) -> Result<Outcome> {
    let existing = if args.overwrite { Existing::Replace } else { Existing::Refuse };
    let destination = Destination::new(&args.out, args.out_format, existing)?;
    let dir = hub::resolve(&args.model)?;
    let run = run_settings(&dir)?;
    let trained: Trained = run.settings.try_into().with_context(|| run.file.display().to_string())?;
    let text_columns = match args.text_columns.as_slice() {
        [] => TextColumns::Suggested(&trained.text_columns),
        named => TextColumns::Named(named),
    };
    let inputs = Inputs::open(&args.files, args.format, text_columns)?;
    let backend = common.backend()?;
    let loaded = hub::load(&dir, &hub::Wanted::AsSaved, common.seed)?;
    if !matches!(loaded.head, Head::Classifier { .. }) {
        let model = &args.model;
        bail!("{model}: has no classifier head; train one from it with `handbert train classifier --model {model}`");
    }
    let tokenizer = Tokenizer::load(&dir)?;
    let options = options(args, &trained, &dir, &loaded.config)?;
    let (used, wish) = (inputs.text_columns(), trained.text_columns.as_slice());
    if args.text_columns.is_empty() && !wish.is_empty() && used != wish {
        let (used, wish) = (used.join(" + "), wish.join(" + "));
        tracing::warn!(
            "text from {used}: the input lacks some of {wish}, which the model was trained on; see --text-columns"
        );
    } else {
        tracing::info!("text from {}", used.join(" + "));
    }

    let batch_tokens = args.batch_tokens;
    backend.run(Labelling { inputs, destination, model: loaded, tokenizer, options, batch_tokens, common })
}

/// Files to label, everything about them settled but the size of the batches.
struct Labelling<'a> {
    inputs: Inputs,
    destination: Destination,
    model: Loaded,
    tokenizer: Tokenizer,
    options: Options,
    batch_tokens: BatchTokens,
    common: &'a Common,
}

impl Computation for Labelling<'_> {
    fn on<B: Backend>(self, be: &B) -> Result<Outcome> {
        let Labelling { inputs, destination, model, tokenizer, mut options, batch_tokens, common } = self;
        let (config, head) = (&model.config, model.head);
        let needs = Needs { config, head, task: &Task::CLASSIFIER, mode: Mode::Inference };
        options.batch_tokens = batch_tokens.settled(be, &needs, options.batch_tokens)?;
        let Loaded { config, head, values, .. } = model;
        let model = DistilBert::new(be, config, head, &values)?;
        drop(values);

        let stop = stop_flag()?;
        let bar = common.progress(0, "{spinner} {pos} rows  {msg}  {elapsed}")?;
        let began = std::time::Instant::now();
        let progress = |done: Progress| {
            bar.set_position(done.rows);
            bar.set_message(format!("{:.0} tokens/s", done.tokens as f64 / began.elapsed().as_secs_f64()));
        };
        let job = Job {
            inputs,
            destination: destination.clone(),
            tokenizer: &tokenizer,
            labels: &model.config.labels,
            options: &options,
            stop: &stop,
            progress: &progress,
        };
        let summary = predict::run(be, &model, job);
        bar.finish_and_clear();
        let summary = summary?;
        report(&summary, destination.path(), common)?;
        Ok(if summary.bad_rows == 0 { Outcome::Done } else { Outcome::SomeRowsBad })
    }
}

fn options(args: &Args, trained: &Trained, dir: &Path, config: &Config) -> Result<Options> {
    let most = config.max_position_embeddings;
    let max_length = args.max_length.or(trained.max_length).unwrap_or(MAX_LENGTH.min(most));
    let long = args.long.or(trained.long).unwrap_or(LongArg::Truncate);
    if args.window_stride.is_some() && long != LongArg::Windows {
        bail!("--window-stride is for --long windows");
    }
    let long = match long {
        LongArg::Truncate => Long::Truncate,
        LongArg::HeadTail => Long::HeadTail,
        LongArg::Windows => {
            let half = max_length.saturating_sub(2).div_ceil(2);
            Long::Windows { stride: args.window_stride.or(trained.window_stride).unwrap_or(half) }
        }
    };
    Ok(Options {
        long,
        max_length,
        batch_tokens: default_tokens(config),
        scores: if args.all_scores { Scores::All } else { Scores::Best },
        prefix: args.prefix.clone(),
        decision: decision(args.threshold, trained, dir, &config.labels)?,
    })
}

fn decision(threshold: Option<ThresholdArg>, trained: &Trained, dir: &Path, labels: &[String]) -> Result<Decision> {
    let at = match threshold {
        None => return Ok(Decision::MostProbable),
        Some(ThresholdArg::At(at)) => at,
        Some(ThresholdArg::Best) => best_threshold(dir, trained.metric_for_best_model)?,
    };
    let named = trained.positive_label.as_ref().and_then(|name| labels.iter().position(|label| label == name));
    Ok(Decision::Threshold { class: named.unwrap_or(1), at })
}

/// The threshold of best F1 that the training's evaluation of this very model found.
fn best_threshold(dir: &Path, metric: Metric) -> Result<f32> {
    let records = run_dir::read_metrics(dir)?;
    let evals = records.iter().filter_map(|record| match record {
        // What was there before step 1 is no candidate.
        Record::Eval(EvalRecord { step: 1.., eval, .. }) => Some((metric.of(eval)?, eval.classifier()?.threshold?)),
        Record::Eval(_) | Record::Step(_) => None,
    });
    // The run keeps the model of its best evaluation, the first of equals.
    let best = evals.reduce(|best, next| if metric.is_better(next.0, best.0) { next } else { best });
    match best {
        Some((_, threshold)) => Ok(threshold as f32),
        None => bail!(
            "--threshold best: {} has no {} with an evaluation of a classifier; give a probability",
            dir.display(),
            run_dir::METRICS
        ),
    }
}

/// The summary goes to stderr where the rows go to stdout.
fn report(summary: &Summary, out: &Path, common: &Common) -> Result<()> {
    for bad in &summary.first_bad {
        tracing::warn!("{bad}");
    }
    let mut json = serde_json::to_value(summary).context("summary")?;
    json["out"] = out.display().to_string().into();
    let text = text(summary, out);
    if out.as_os_str() != "-" {
        return common.print(&json, &text);
    }
    common.tell(&json, &text);
    Ok(())
}

fn text(s: &Summary, out: &Path) -> String {
    let mut text = format!(
        "{} rows labelled in {:.1} s ({:.0} rows/s, {:.0} tokens/s) -> {}\n",
        s.rows,
        s.seconds,
        s.rows_per_second,
        s.tokens_per_second,
        out.display()
    );
    let notes = [
        (s.bad_rows, "rows were bad and passed over; the first are named above".to_owned()),
        (s.empty, "rows have no text; their label rests on nothing".to_owned()),
        (
            s.truncated,
            "postings were longer than --max-length and cut; --long windows looks at all of a posting".to_owned(),
        ),
        (s.windowed, format!("postings were longer than --max-length and read in {} windows", s.windows)),
    ];
    for (count, what) in notes.into_iter().filter(|(count, _)| *count > 0) {
        text += &format!("{count} {what}\n");
    }
    text
}
