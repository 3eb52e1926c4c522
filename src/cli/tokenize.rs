//! `handbert tokenize FILES… --out SET`.

use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::builder::RangedU64ValueParser;
use serde_json::{Map, Value, json};

use super::inspect_model::grouped;
use super::settings::trimmed;
use super::{Common, Outcome, interrupt};
use crate::data::source::{Format, is_stream};
use crate::data::token_set::{BuildOptions, BuildReport, Existing, FileRows, TokenSetWriter, build_rows};
use crate::data::{Error, RecordSpec, Tokenizer};
use crate::model::config::LARGEST_TABLE;
use crate::model::hub;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Posting files: .csv, .tsv, .jsonl, .txt or .parquet, also .gz or .zst, or - for standard input
    #[arg(required = true, value_name = "FILES")]
    files: Vec<PathBuf>,
    /// The token set to write, a directory
    #[arg(long, value_name = "SET")]
    out: PathBuf,
    /// Use the tokenizer of this model: a directory or a hub id
    #[arg(long, value_name = "MODEL", required_unless_present = "train_vocab", conflicts_with = "train_vocab")]
    tokenizer: Option<String>,
    /// Learn a WordPiece vocabulary of so many tokens from the files first, which are read twice then
    #[arg(long, value_name = "SIZE", value_parser = RangedU64ValueParser::<usize>::new().range(..=LARGEST_TABLE as u64))]
    train_vocab: Option<usize>,
    /// Columns whose texts are joined, in this order [default: text, body, description or title and description]
    #[arg(long, value_delimiter = ',', value_name = "COLUMNS")]
    text_columns: Vec<String>,
    /// Column of the label; a row without one serves masked-language modelling only
    #[arg(long, value_name = "COLUMN")]
    label_column: Option<String>,
    /// Names of the classes, in the order of their numbers; rows with another label are bad [default: those that
    /// occur, sorted]
    #[arg(long, value_delimiter = ',', value_parser = trimmed, value_name = "NAMES", requires = "label_column")]
    labels: Option<Vec<String>>,
    /// Column whose values stay together on one side of every split [default: each text is its own group]
    #[arg(long, value_name = "COLUMN")]
    group_column: Option<String>,
    /// Only the first so many postings
    #[arg(long, value_name = "POSTINGS")]
    limit: Option<u64>,
    /// Format of the files, where their names do not say
    #[arg(long)]
    format: Option<Format>,
    /// Replace the token set in SET, once the new one is complete
    #[arg(long)]
    overwrite: bool,
}

pub fn run(args: &Args, common: &Common) -> Result<Outcome> {
    common.start_threads()?;
    let options = args.options()?;
    // Before the hours that a large corpus takes.
    TokenSetWriter::check_target(&args.out, options.existing)?;
    let started = Instant::now();
    let tokenizer = args.tokenizer(&options, common)?;
    let reading = Instant::now();
    let bar = common.progress(0, "{spinner} {pos} rows  {per_sec}  {elapsed}")?;
    let rows = FileRows::open(&args.files, args.format, &options.spec)?;
    let report = build_rows(rows, &tokenizer, &options, &args.out, &|rows| bar.set_position(rows))?;
    bar.finish_and_clear();
    report.first_bad.iter().for_each(|bad| tracing::warn!("{bad}"));
    let times = Times { all: started.elapsed().as_secs_f64(), reading: reading.elapsed().as_secs_f64() };
    let json = as_json(&report, &tokenizer, &times, &args.out);
    common.print(&json, &as_text(&json))?;
    Ok(if report.bad_rows > 0 { Outcome::SomeRowsBad } else { Outcome::Done })
}

impl Args {
    fn options(&self) -> Result<BuildOptions> {
        Ok(BuildOptions {
            spec: RecordSpec {
                text_columns: self.text_columns.clone(),
                label_column: self.label_column.clone(),
                group_column: self.group_column.clone(),
            },
            labels: self.labels.clone(),
            limit: self.limit,
            existing: if self.overwrite { Existing::Replace } else { Existing::Refuse },
            stop: Some(interrupt::stop_flag()?),
        })
    }

    fn tokenizer(&self, options: &BuildOptions, common: &Common) -> Result<Tokenizer> {
        if let Some(model) = &self.tokenizer {
            let dir = hub::resolve(model)?;
            return Tokenizer::load(&dir).with_context(|| format!("--tokenizer {model}"));
        }
        let size = self.train_vocab.context("neither --tokenizer nor --train-vocab")?;
        if let Some(stream) = self.files.iter().find(|file| is_stream(file)) {
            bail!(
                "{}: standard input can be read only once, as a pipe can, and --train-vocab needs a pass of its own: \
                 write it to a file first, or name a vocabulary with --tokenizer",
                stream.display()
            );
        }
        let bar = common.progress(0, "{spinner} learning the vocabulary  {pos} texts  {elapsed}")?;
        let texts = FileRows::open(&self.files, self.format, &options.spec)?.texts(self.limit);
        let texts = texts.map(|text| match &options.stop {
            Some(stop) if stop.load(Ordering::Relaxed) => {
                Err(Error::Invalid("interrupted while the vocabulary was learnt; nothing was written".to_owned()))
            }
            _ => text,
        });
        let tokenizer = Tokenizer::train(texts.inspect(|_| bar.inc(1)), size)?;
        bar.finish_and_clear();
        Ok(tokenizer)
    }
}

/// Seconds: of everything, and of the pass that writes the set.
struct Times {
    all: f64,
    reading: f64,
}

fn as_json(report: &BuildReport, tokenizer: &Tokenizer, times: &Times, out: &Path) -> Value {
    let labels: Map<String, Value> = report.labels.iter().map(|(name, rows)| (name.clone(), json!(rows))).collect();
    json!({
        "out": out,
        "rows": report.rows,
        "bad_rows": report.bad_rows,
        "first_bad": report.first_bad,
        "empty": report.empty,
        "tokens": report.tokens,
        "tokens_per_row": report.tokens as f64 / report.rows.max(1) as f64,
        "text_bytes": report.text_bytes,
        "text_columns": report.text_columns,
        "labels": labels,
        "unlabelled": report.unlabelled,
        "vocab_size": tokenizer.vocab_size(),
        "seconds": times.all,
        "tokens_per_second": report.tokens as f64 / times.reading.max(1e-9),
    })
}

fn as_text(json: &Value) -> String {
    let count = |field: &str| grouped(&json[field]);
    let number = |field: &str| json[field].as_f64().unwrap_or_default();
    let listed = |field: &str| {
        let names = json[field].as_array().into_iter().flatten().filter_map(Value::as_str);
        names.collect::<Vec<_>>().join(", ")
    };
    let mut text = format!(
        "{}: {} postings, {} tokens, {:.1} a posting; {:.2} s, {:.2} M tokens/s\n",
        json["out"].as_str().unwrap_or_default(),
        count("rows"),
        count("tokens"),
        number("tokens_per_row"),
        number("seconds"),
        number("tokens_per_second") / 1e6,
    );
    text += &format!("  text        {}\n  vocabulary  {} tokens\n", listed("text_columns"), count("vocab_size"));
    let labels = json["labels"].as_object().into_iter().flatten();
    let mut labels: Vec<String> = labels.map(|(name, rows)| format!("{name} {}", grouped(rows))).collect();
    if !labels.is_empty() {
        labels.push(format!("none {}", count("unlabelled")));
        text += &format!("  labels      {}\n", labels.join(", "));
    }
    for (field, what) in [("empty", "without a token"), ("bad_rows", "bad rows, passed over")] {
        if json[field] != 0 {
            text += &format!("  {:<11} {what}\n", count(field));
        }
    }
    text
}
