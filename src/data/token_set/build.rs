//! Posting files → token set, streaming: one thread reads rows, all of them encode, one writes in order.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use rayon::prelude::*;

use super::super::record::{RecordSpec, Row};
use super::super::{Error, Result, Tokenizer};
use super::rows::FileRows;
use super::{About, Existing, TokenSetWriter};

/// Rows that travel together from thread to thread, at most, and the bytes that end a batch early.
const BATCH_ROWS: usize = 4096;
const BATCH_BYTES: usize = 4 << 20;

/// Batches waiting between two threads.
const WAITING: usize = 2;

/// More different labels than this are no labels.
const MOST_LABELS: usize = 1000;

/// Bad rows that are named.
const NAMED: usize = 5;

/// What to make a token set from, and how.
#[derive(Debug, Clone, Default)]
pub struct BuildOptions {
    /// Which columns hold what. Without text columns, those that [`RecordSpec::infer`] finds in the first file.
    pub spec: RecordSpec,
    /// Names of the classes by number; a row with another label is bad. `None`: those that occur, sorted.
    pub labels: Option<Vec<String>>,
    /// Stop after this many good rows.
    pub limit: Option<u64>,
    /// What to do with a token set that is already there.
    pub existing: Existing,
    /// Set from outside to end early: nothing is written then.
    pub stop: Option<Arc<AtomicBool>>,
}

/// What became of the rows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BuildReport {
    /// Rows in the set.
    pub rows: u64,
    /// Rows that were skipped because something is wrong with them.
    pub bad_rows: u64,
    /// What is wrong with the first of them, at most 5, each with file and line.
    pub first_bad: Vec<String>,
    /// Rows in the set whose text has no token.
    pub empty: u64,
    /// Tokens in the set; special tokens are not stored.
    pub tokens: u64,
    /// Bytes of text, in UTF-8.
    pub text_bytes: u64,
    /// Each class and the number of rows that have it, in the order of the classes' numbers.
    pub labels: Vec<(String, u64)>,
    /// Rows in the set without a label.
    pub unlabelled: u64,
    /// The text columns in use.
    pub text_columns: Vec<String>,
}

/// A row after the tokenizer.
struct Encoded {
    ids: Vec<u32>,
    label: Option<String>,
    group: u64,
    text_bytes: usize,
}

type Batch<T> = Vec<Result<T>>;

/// Reads `files` one after another and writes the token set `out`; `progress` is told the rows so far.
///
/// Bad rows are skipped, counted and named in the report. The set is the same for any number of threads.
///
/// # Errors
/// A file that cannot be read to its end, a missing column, a full disk: nothing of the new set is left then,
/// and what stood at `out` stands there still.
pub fn build(
    files: &[PathBuf], tokenizer: &Tokenizer, options: &BuildOptions, out: &Path, progress: &dyn Fn(u64),
) -> Result<BuildReport> {
    build_rows(FileRows::open(files, None, &options.spec)?, tokenizer, options, out, progress)
}

/// [`build`] of rows that are opened already; their spec is the one that counts.
///
/// # Errors
/// Those of [`build`].
pub fn build_rows(
    rows: FileRows, tokenizer: &Tokenizer, options: &BuildOptions, out: &Path, progress: &dyn Fn(u64),
) -> Result<BuildReport> {
    let given = options.labels.as_deref().unwrap_or_default();
    if let Some(twice) = given.iter().enumerate().find_map(|(i, name)| given[..i].contains(name).then_some(name)) {
        return Err(Error::Invalid(format!("label {twice:?} is named twice; name each class once")));
    }
    let spec = rows.spec().clone();
    let about = About {
        text_columns: spec.text_columns.clone(),
        label_column: spec.label_column.clone(),
        group_column: spec.group_column.clone(),
        label_names: options.labels.clone().unwrap_or_default(),
        existing: options.existing,
        ..About::default()
    };
    let encoder = Encoder { tokenizer, spec, labels: options.labels.as_deref() };
    let mut sink = Sink::new(TokenSetWriter::create(out, tokenizer, about)?, &encoder, options);
    std::thread::scope(|scope| {
        // Each thread owns its ends of the channels: when one of them returns, the others find theirs closed.
        let (send_rows, rows_to_encode) = sync_channel(WAITING);
        let (send_encoded, encoded) = sync_channel(WAITING);
        scope.spawn(move || read(rows, &send_rows));
        scope.spawn(|| encoder.run(rows_to_encode, send_encoded));
        sink.drain(encoded, progress)
    })?;
    if let (0, Some(first)) = (sink.report.rows, sink.report.first_bad.first()) {
        return Err(Error::Invalid(format!(
            "none of the {} rows could be read; the first: {first}",
            sink.report.bad_rows
        )));
    }
    sink.finish()
}

/// Sends the rows in batches, until the other side has had enough.
fn read(rows: FileRows, out: &SyncSender<Batch<Row>>) {
    let (mut batch, mut bytes) = (Vec::new(), 0);
    for row in rows {
        bytes += row.as_ref().map_or(0, Row::bytes);
        batch.push(row);
        if batch.len() >= BATCH_ROWS || bytes >= BATCH_BYTES {
            bytes = 0;
            if out.send(std::mem::take(&mut batch)).is_err() {
                return;
            }
        }
    }
    // Nobody waits for the rest when the writing has ended.
    let _ = out.send(batch);
}

/// Rows → ids, on rayon's threads.
struct Encoder<'a> {
    tokenizer: &'a Tokenizer,
    spec: RecordSpec,
    /// The only labels that are good.
    labels: Option<&'a [String]>,
}

impl Encoder<'_> {
    fn run(&self, rows: Receiver<Batch<Row>>, out: SyncSender<Batch<Encoded>>) {
        for batch in rows {
            let encoded = batch.into_par_iter().map(|row| row.and_then(|row| self.encode(&row))).collect();
            if out.send(encoded).is_err() {
                return;
            }
        }
    }

    fn encode(&self, row: &Row) -> Result<Encoded> {
        let record = self.spec.record(row)?;
        if let (Some(label), Some(names)) = (&record.label, self.labels)
            && !names.contains(label)
        {
            let names = names.join(", ");
            let why = format!("label {label:?} is not one of [{names}]; add it with --labels or fix the row");
            return Err(Error::Row { at: row.at.clone(), why });
        }
        let ids = self.tokenizer.encode(&record.text)?;
        Ok(Encoded { ids, label: record.label, group: record.group, text_bytes: record.text.len() })
    }
}

/// Writes in order, counts, and numbers the labels.
struct Sink<'a> {
    writer: TokenSetWriter,
    options: &'a BuildOptions,
    report: BuildReport,
    /// Number of each label, in order of first appearance where they were not given.
    numbers: HashMap<String, i32>,
    /// Rows of each number.
    counts: Vec<u64>,
}

impl<'a> Sink<'a> {
    fn new(writer: TokenSetWriter, encoder: &Encoder, options: &'a BuildOptions) -> Self {
        let given = options.labels.as_deref().unwrap_or_default();
        let numbers: HashMap<String, i32> = given.iter().cloned().zip(0..).collect();
        let report = BuildReport { text_columns: encoder.spec.text_columns.clone(), ..BuildReport::default() };
        Sink { writer, options, report, counts: vec![0; given.len()], numbers }
    }

    fn drain(&mut self, batches: Receiver<Batch<Encoded>>, progress: &dyn Fn(u64)) -> Result<()> {
        for batch in batches {
            for row in batch {
                if self.options.limit.is_some_and(|limit| self.report.rows >= limit) {
                    return Ok(());
                }
                match row {
                    Ok(row) => self.write(&row)?,
                    Err(error) if error.is_row() => {
                        self.report.bad_rows += 1;
                        if self.report.first_bad.len() < NAMED {
                            self.report.first_bad.push(error.to_string());
                        }
                    }
                    Err(fatal) => return Err(self.after(fatal)),
                }
            }
            progress(self.report.rows);
            if self.options.stop.as_ref().is_some_and(|stop| stop.load(Ordering::Relaxed)) {
                return Err(Error::Invalid(format!(
                    "interrupted after {} rows; nothing was written",
                    self.report.rows
                )));
            }
        }
        Ok(())
    }

    fn write(&mut self, row: &Encoded) -> Result<()> {
        let label = match &row.label {
            Some(label) => self.number(label)?,
            None => {
                self.report.unlabelled += 1;
                -1
            }
        };
        self.writer.push(&row.ids, label, row.group)?;
        self.report.rows += 1;
        self.report.empty += u64::from(row.ids.is_empty());
        self.report.tokens += row.ids.len() as u64;
        self.report.text_bytes += row.text_bytes as u64;
        Ok(())
    }

    fn number(&mut self, label: &str) -> Result<i32> {
        let next = self.counts.len();
        let number = match self.numbers.get(label) {
            Some(&number) => number,
            None if next < MOST_LABELS => {
                self.numbers.insert(label.to_owned(), next as i32);
                self.counts.push(0);
                next as i32
            }
            None => {
                let column = self.options.spec.label_column.as_deref().unwrap_or_default();
                return Err(Error::Invalid(format!(
                    "column {column:?} has more than {MOST_LABELS} different values, too many for labels; \
                     name another with --label-column, or the labels with --labels"
                )));
            }
        };
        if let Some(count) = self.counts.get_mut(number as usize) {
            *count += 1;
        }
        Ok(number)
    }

    /// A fatal error, and how far the reading came.
    fn after(&self, error: Error) -> Error {
        let read = self.report.rows + self.report.bad_rows;
        let note = format!("(after {read} rows; nothing was written)");
        match error {
            Error::File { path, why } => Error::File { path, why: format!("{why} {note}") },
            Error::Io { path, source } => {
                Error::Io { path, source: std::io::Error::new(source.kind(), format!("{source} {note}")) }
            }
            other => other,
        }
    }

    /// Puts the set in its place, with the labels in their final order: as given, else sorted.
    fn finish(mut self) -> Result<BuildReport> {
        let mut names = self.options.labels.clone().unwrap_or_default();
        let mut renumbered: Vec<i32> = (0..).take(names.len()).collect();
        if self.options.labels.is_none() {
            let sorted: BTreeMap<&String, i32> = self.numbers.iter().map(|(name, &number)| (name, number)).collect();
            renumbered = vec![-1; sorted.len()];
            for (&number, last) in sorted.values().zip(0..) {
                renumbered[number as usize] = last;
            }
            names = sorted.into_keys().cloned().collect();
        }
        let counts =
            names.iter().map(|name| self.numbers.get(name).and_then(|&n| self.counts.get(n as usize)).copied());
        self.report.labels = names.iter().cloned().zip(counts.map(Option::unwrap_or_default)).collect();
        self.writer.finish_with_labels(names, &renumbered)?;
        Ok(self.report)
    }
}
