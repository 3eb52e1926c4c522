//! `handbert train mlm|classifier`: what was typed → plan → run.

pub mod args;
mod origin;
pub mod plan;
mod progress;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use self::args::{ClassifierArgs, DataArgs, LABEL_COLUMN, MlmArgs};
use self::origin::Origin;
use self::progress::Progress;
use super::batch_tokens::{BatchTokens, Needs};
use super::corpus::{Columns, Corpus, Data, Earlier, Making, absolute, check_tokenizer};
use super::device::Computation;
use super::figures::{grouped, one_line, shell_word};
use super::settings::overlay;
use super::{Common, Outcome};
use crate::backend::Backend;
use crate::data::pack::PackCounts;
use crate::data::record::RecordSpec;
use crate::model::Mode;
use crate::model::hub::Wanted;
use crate::train::report::{self, OtherRun};
use crate::train::run_dir::{self, SETTINGS, TOKENS};
use crate::train::{self, Ended, Feed, Replay, Start, Summary, TrainPlan};

#[derive(Debug, clap::Subcommand)]
pub enum Task {
    /// Masked-language modelling
    Mlm(Box<MlmArgs>),
    /// Classification
    Classifier(Box<ClassifierArgs>),
}

pub fn run(task: &Task, common: &Common) -> Result<Outcome> {
    match task {
        Task::Mlm(args) => mlm(args, common),
        Task::Classifier(args) => classifier(args, common),
    }
}

fn mlm(typed: &MlmArgs, common: &Common) -> Result<Outcome> {
    let mut args = overlay(typed, &settings_files(&typed.data)?)?;
    args.data.keep_command_line_of(&typed.data);
    let out = out_directory(&args.data)?;
    let data = Data::new(args.data.data.as_deref().unwrap_or_default())?;
    let origin = Origin::new(&args.data, &out, args.config.as_deref())?;
    let seed = seed(args.optimization.seed, common);
    let mut plan = plan::mlm(&args, &origin.config()?, seed)?;
    let other = args.data.compare.as_deref().map(|run| OtherRun::read(run, &plan.task)).transpose()?;

    // Before anything is computed: it sets the number of threads.
    let backend = common.backend()?;
    let tokenizer = origin.tokenizer(args.tokenizer.as_deref())?;
    let place = out.join(TOKENS);
    let corpus = data.open(tokenizer.as_ref(), &making(&args.data, &place), common)?;
    corpus.check_columns(columns(&typed.data, None))?;
    if let Some(tokenizer) = &tokenizer {
        check_tokenizer(&origin.name(), tokenizer, &corpus.set)?;
    }
    plan.provenance = provenance(&args.data, &data, &corpus, &out);
    if let Some(config) = &args.config {
        plan.provenance.insert("config".into(), absolute(config).into());
    }
    if let Some(tokenizer) = &args.tokenizer {
        plan.provenance.insert("tokenizer".into(), model_name(tokenizer).into());
    }
    let start = origin.start(&Wanted::Mlm, &corpus.set, seed)?;
    backend.run(Training { name: "mlm", batch_tokens: args.data.batch_tokens, plan, other, start, corpus, common })
}

fn classifier(typed: &ClassifierArgs, common: &Common) -> Result<Outcome> {
    let mut args = overlay(typed, &settings_files(&typed.data)?)?;
    args.data.keep_command_line_of(&typed.data);
    let out = out_directory(&args.data)?;
    let data = Data::new(args.data.data.as_deref().unwrap_or_default())?;
    let origin = Origin::new(&args.data, &out, None)?;
    let seed = seed(args.optimization.seed, common);
    let mut plan = plan::classifier(&args, &origin.config()?, seed)?;
    let other = args.data.compare.as_deref().map(|run| OtherRun::read(run, &plan.task)).transpose()?;

    let backend = common.backend()?;
    let tokenizer = origin.tokenizer(None)?;
    let place = out.join(TOKENS);
    let label_column = args.class.label_column.clone().unwrap_or_else(|| LABEL_COLUMN.into());
    let labels = match &args.class.labels {
        Some(labels) => Some(labels.clone()),
        None => origin.labels()?,
    };
    let mut making = making(&args.data, &place);
    making.spec.label_column = Some(label_column);
    making.labels = labels;
    let corpus = data.open(tokenizer.as_ref(), &making, common)?;
    corpus.check_columns(columns(&typed.data, typed.class.label_column.as_deref()))?;
    if let Some(tokenizer) = &tokenizer {
        check_tokenizer(&origin.name(), tokenizer, &corpus.set)?;
    }
    let labels = labels_of(&corpus, args.class.labels.as_deref())?;
    plan.task.positive_class(&labels)?;
    plan.provenance = provenance(&args.data, &data, &corpus, &out);
    plan.provenance.insert("labels".into(), labels.clone().into());
    if let Some(column) = &corpus.set.meta().label_column {
        plan.provenance.insert("label_column".into(), column.as_str().into());
    }
    let start = origin.start(&Wanted::Classifier { labels }, &corpus.set, seed)?;
    backend.run(Training {
        name: "classifier",
        batch_tokens: args.data.batch_tokens,
        plan,
        other,
        start,
        corpus,
        common,
    })
}

/// A command, ready to run.
struct Training<'a> {
    name: &'a str,
    batch_tokens: Option<BatchTokens>,
    plan: TrainPlan,
    other: Option<OtherRun>,
    start: Start,
    corpus: Corpus,
    common: &'a Common,
}

impl Computation for Training<'_> {
    /// The run itself, and what is printed of it.
    fn on<B: Backend>(self, be: &B) -> Result<Outcome> {
        let Training { name, batch_tokens, mut plan, other, start, corpus, common } = self;
        if let Some(tokens) = batch_tokens {
            let (config, head, task) = (&start.config, start.head, &plan.task);
            let needs = Needs { config, head, task, mode: Mode::Training };
            plan.batching.batch_tokens = tokens.settled(be, &needs, plan.batching.batch_tokens)?;
        }
        if plan.feed == Feed::FirstStep {
            tracing::warn!(
                "--overfit-one-batch: every step is on the batches of the first and nothing is evaluated. The loss must go to \
                 nearly 0; the model is of no other use"
            );
        }
        let mut progress = Progress::new(common)?;
        let summary = train::run(be, start, &corpus.set, &plan, &mut progress)?;
        drop(progress);
        let device = be.describe();
        let page = report::write(&plan.out, &report::of_training(&plan, &summary, other.as_ref(), &device));
        print(name, &plan, &summary, device, common)?;
        // The run is done whether or not there is room for a page about it.
        page?;
        Ok(if corpus.bad_rows() == 0 { Outcome::Done } else { Outcome::SomeRowsBad })
    }
}

fn print(name: &str, plan: &TrainPlan, summary: &Summary, device: String, common: &Common) -> Result<()> {
    // The same device, else it would not be the same run to the last bit.
    let graph = if plan.replay == Replay::Never { " --no-graph" } else { "" };
    let resume = format!("handbert train {name} --out {} --resume{}{graph}", shell_word(&plan.out), common.computed);
    let mut json = serde_json::to_value(summary).context("summary")?;
    for eval in ["evaluation", "evaluation_before"] {
        // Points for pictures, not figures to read.
        json[eval].as_object_mut().map(|figures| figures.remove("curves"));
    }
    if let Some(best) = summary.best {
        // A number here; a checkpoint keeps it as text, for its last bit.
        json["best"]["value"] = best.value.into();
    }
    json["device"] = device.into();
    json["out"] = plan.out.display().to_string().into();
    if summary.ended == Ended::Stopped {
        json["resume"] = resume.clone().into();
    }
    common.print(&json, &text(summary, plan, &resume))
}

fn text(s: &Summary, plan: &TrainPlan, resume: &str) -> String {
    let mut text = format!(
        "{} steps, {:.2} epochs, {} tokens in {:.1} s ({:.0} tokens/s)\n",
        grouped(s.steps),
        s.epochs,
        grouped(s.tokens),
        s.seconds,
        s.tokens_per_second
    );
    if let Some(loss) = s.loss {
        text += &format!("training loss  {loss:.4}\n");
    }
    if let Some(eval) = &s.evaluation_before {
        text += &format!("held out, before  {}\n", one_line(eval));
    }
    if let Some(eval) = &s.evaluation {
        text += &format!("held out, last    {}\n", one_line(eval));
    }
    text += &packing(&s.packing);
    if s.skipped_steps > 0 {
        text += &format!(
            "{} steps were skipped, {} of them as outliers, the others as their loss or gradient was not finite\n",
            grouped(s.skipped_steps),
            grouped(s.outlier_steps)
        );
    }
    if plan.feed == Feed::FirstStep {
        text += "every step was on the same batches (--overfit-one-batch): this model is of no other use\n";
    }
    let best = s.best.map_or("the last".to_owned(), |best| format!("that of step {}, the best", best.step));
    text += &match s.ended {
        Ended::Finished => format!("model -> {} ({best})\n", plan.out.display()),
        Ended::OutOfPatience => format!("model -> {} ({best}; stopped early, it got no better)\n", plan.out.display()),
        Ended::Stopped => format!("stopped after step {}; go on with\n  {resume}\n", s.steps),
    };
    text
}

/// What happened to postings that are not simply one sequence each; nothing is dropped without a word.
fn packing(counts: &PackCounts) -> String {
    let notes = [
        (counts.cut, "postings were longer than --max-length and went in several pieces"),
        (counts.truncated, "postings were longer than --max-length and cut; see --long"),
        (counts.empty, "postings without text were passed over"),
        (counts.unlabelled, "postings without a label were passed over"),
        (counts.tail_tokens, "tokens made the last, shorter chunk"),
    ];
    notes.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{} {what}\n", grouped(*count))).collect()
}

/// With --resume, what the run was begun with; then --config-file.
fn settings_files(args: &DataArgs) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    if args.resume {
        let settings = out_directory(args)?.join(SETTINGS);
        if !settings.exists() {
            bail!("{}: is not there, so there is no run to resume; leave --resume out", settings.display());
        }
        check_same_files(args, &settings)?;
        files.push(settings);
    }
    files.extend(args.config_file.clone());
    Ok(files)
}

/// A run goes on with what was made of its files when it began, so naming other files now would change nothing.
fn check_same_files(args: &DataArgs, settings: &Path) -> Result<()> {
    let Some(names) = &args.data else { return Ok(()) };
    let Data::Files(_) = Data::new(names)? else { return Ok(()) };
    let text = std::fs::read_to_string(settings).with_context(|| settings.display().to_string())?;
    let then: toml::Table = toml::from_str(&text).with_context(|| settings.display().to_string())?;
    let now = toml::Value::from(Data::new(names)?.absolute());
    match then.get("data") {
        Some(then) if *then != now => {
            bail!("--data is {now}, the run was begun with {then}; leave --data out to go on, or name another --out")
        }
        _ => Ok(()),
    }
}

/// --out, free for what is wanted there.
fn out_directory(args: &DataArgs) -> Result<PathBuf> {
    let out = args.out.clone().context("--out is missing: where does the run go?")?;
    // Before the postings of another run are tokenized anew under it.
    run_dir::check_idle(&out)?;
    if !args.resume {
        run_dir::check_free(&out, args.occupied())?;
    }
    Ok(out)
}

/// The command line's, else the file's, else the default.
fn seed(file: Option<i64>, common: &Common) -> u64 {
    match file {
        Some(seed) if !common.seed_given => seed as u64,
        _ => common.seed,
    }
}

fn columns<'a>(typed: &'a DataArgs, label: Option<&'a str>) -> Columns<'a> {
    Columns { text: typed.text_columns.as_deref(), label, group: typed.group_column.as_deref() }
}

fn making<'a>(args: &DataArgs, place: &'a Path) -> Making<'a> {
    Making {
        spec: RecordSpec {
            text_columns: args.text_columns.clone().unwrap_or_default(),
            label_column: None,
            group_column: args.group_column.clone(),
        },
        labels: None,
        limit: args.limit,
        place,
        earlier: if args.resume { Earlier::Keep } else { Earlier::Replace },
    }
}

/// The classes of the data, which must be those asked for.
fn labels_of(corpus: &Corpus, asked: Option<&[String]>) -> Result<Vec<String>> {
    let set = corpus.set.dir().display();
    let labels = &corpus.set.meta().label_names;
    match asked {
        _ if labels.is_empty() => {
            bail!("{set}: has no labels; make it again with `handbert tokenize FILES… --out SET --label-column COLUMN`")
        }
        Some(asked) if asked != labels.as_slice() => {
            bail!("{set}: has the labels [{}], --labels says [{}]", labels.join(", "), asked.join(", "))
        }
        _ => Ok(labels.clone()),
    }
}

/// What `run.toml` says of model and data: enough to run again from any directory.
fn provenance(args: &DataArgs, data: &Data, corpus: &Corpus, out: &Path) -> toml::Table {
    let mut table = toml::Table::new();
    if let Some(model) = &args.model {
        table.insert("model".into(), model_name(model).into());
    }
    let mut names = data.absolute();
    if names.iter().any(|name| name == "-") {
        // Standard input is gone; what was made of it is not.
        names = vec![absolute(&out.join(TOKENS))];
    }
    table.insert("data".into(), names.into());
    // Of a token set too: `eval` of posting files makes the same split of them, and `predict` reads the same columns.
    let made = corpus.set.meta();
    if let Some(group) = &made.group_column {
        table.insert("group_column".into(), group.as_str().into());
    }
    table.insert("text_columns".into(), made.text_columns.clone().into());
    table
}

/// A directory by its whole path, a hub id as it is.
fn model_name(model: &str) -> String {
    if Path::new(model).exists() { absolute(Path::new(model)) } else { model.to_owned() }
}
