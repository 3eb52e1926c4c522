//! The stages put together, and the stage that computes.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::Instant;

use super::classify::{Classifier, Decision};
use super::columns::{Added, Scores};
use super::input::{BLOCK_ROWS, Fit, Inputs, ReadCounts};
use super::output::{Destination, RowWriter};
use super::queue::{Queue, Scored, Tokenized};
use super::tokens::{Cutter, TokenCounts, tokenize};
use super::{Error, Result};
use crate::backend::Backend;
use crate::data::PackedBatch;
use crate::data::pack::Long;
use crate::data::tokenizer::Tokenizer;
use crate::model::DistilBert;

/// Blocks in flight between two stages: enough that none waits for another, few enough to need little memory.
const IN_FLIGHT: usize = 2;
/// A batch has room for one sequence in this many tokens.
const TOKENS_PER_SEQUENCE: usize = 8;

/// How files are labelled.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// What becomes of texts that are too long.
    pub long: Long,
    /// L: longest sequence, special tokens included.
    pub max_length: usize,
    /// N: most tokens in a batch; at least L.
    pub batch_tokens: usize,
    /// Which scores are written.
    pub scores: Scores,
    /// Put before the names of added columns.
    pub prefix: Option<String>,
    /// Which label a row gets.
    pub decision: Decision,
}

/// What to label, with what, where to.
pub struct Job<'a> {
    /// The files.
    pub inputs: Inputs,
    /// Where rows are written.
    pub destination: Destination,
    /// The model's.
    pub tokenizer: &'a Tokenizer,
    /// Names of the classes. [K]
    pub labels: &'a [String],
    /// How.
    pub options: &'a Options,
    /// Set from outside to stop early.
    pub stop: &'a AtomicBool,
    /// Called after each batch.
    pub progress: &'a dyn Fn(Progress),
}

/// How far a job is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Rows labelled.
    pub rows: u64,
    /// Tokens computed, special ones included.
    pub tokens: u64,
}

/// What was done.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Summary {
    /// Rows labelled and written.
    pub rows: u64,
    /// Rows passed over.
    pub bad_rows: u64,
    /// The first of them, with file and line.
    pub first_bad: Vec<String>,
    /// Rows without text; they are labelled all the same.
    pub empty: u64,
    /// Rows of which only a part was looked at.
    pub truncated: u64,
    /// Rows that were cut into windows.
    pub windowed: u64,
    /// Windows they were cut into.
    pub windows: u64,
    /// Tokens computed, special ones included.
    pub tokens: u64,
    /// From the first row read to the last row written.
    pub seconds: f64,
    /// Tokens / seconds.
    pub tokens_per_second: f64,
    /// Rows / seconds.
    pub rows_per_second: f64,
}

/// Labels the files of a job.
///
/// # Errors
/// An input or the output fails, options do not fit the model, or there are rows and all of them are bad. Rows written
/// before that are kept, see [`Error::Unfinished`].
pub fn run<B: Backend>(be: &B, model: &DistilBert<B>, job: Job<'_>) -> Result<Summary> {
    let Job { inputs, destination, tokenizer, labels, options, stop, progress } = job;
    let sequences = (options.batch_tokens / TOKENS_PER_SEQUENCE).max(1);
    let classifier = Classifier::new(be, model, options.batch_tokens, sequences)?;
    check(options, classifier.classes(), labels, tokenizer, model)?;
    let cutter = Cutter::new(options.long, options.max_length, tokenizer.special())?;
    let columns = inputs.columns();
    let added = Added::new(&columns, labels, options.scores, options.prefix.as_deref(), options.decision)?;
    let header: Vec<String> = columns.iter().chain(added.names()).cloned().collect();
    let writer = destination.create(&header)?;
    let fit = Fit { added: &added, header: destination.has_header().then_some(&columns) };

    let began = Instant::now();
    let (blocks_in, blocks) = sync_channel(IN_FLIGHT);
    // Blocks enough for a full batch of the shortest texts: so many are tokenized while another batch is computed.
    let (tokenized_in, tokenized) = sync_channel(IN_FLIGHT.max(sequences.div_ceil(BLOCK_ROWS)));
    let (scored_in, scored) = sync_channel(IN_FLIGHT);
    let computing = Computing {
        queue: Queue::new(options.batch_tokens, sequences, classifier.classes()),
        classifier,
        done: Progress { rows: 0, tokens: 0 },
        stop,
        progress,
    };
    let (read, counted, computed, (writer, written)) = thread::scope(|scope| {
        let reader = scope.spawn(move || inputs.read(&fit, &blocks_in, stop));
        let tokens = scope.spawn(|| tokenize(tokenizer, &cutter, blocks, tokenized_in));
        let writer = scope.spawn(|| write(writer, &added, scored));
        let computed = computing.run(tokenized, scored_in);
        (joined(reader), joined(tokens), computed, joined(writer))
    });
    finish(writer, written, Stages { read, counted, computed }, began)
}

/// How each stage but the last ended.
struct Stages {
    read: Result<ReadCounts>,
    counted: Result<TokenCounts>,
    computed: Result<Progress>,
}

/// Gives the output its name, or says what failed and where the rows are.
fn finish(writer: RowWriter, written: Result<()>, stages: Stages, began: Instant) -> Result<Summary> {
    let rows = writer.written();
    // The output's failure comes first: the other stages stop because of it.
    let outcome = written.and_then(|()| {
        let done = stages.computed?;
        Ok((done, stages.counted?, stages.read?))
    });
    let (done, counted, read) = match outcome {
        Ok(parts) => parts,
        Err(error) => return Err(writer.abandon(error)),
    };
    if let (0, Some(first)) = (rows, read.first_bad.first()) {
        let why = format!("none of the {} rows could be labelled; the first: {first}", read.bad_rows);
        return Err(writer.abandon(Error::Invalid(why)));
    }
    writer.finish()?;
    let seconds = began.elapsed().as_secs_f64();
    Ok(Summary {
        rows,
        bad_rows: read.bad_rows,
        first_bad: read.first_bad,
        empty: counted.empty,
        truncated: counted.truncated,
        windowed: counted.windowed,
        windows: counted.windows,
        tokens: done.tokens,
        seconds,
        tokens_per_second: done.tokens as f64 / seconds,
        rows_per_second: rows as f64 / seconds,
    })
}

/// A stage that panicked is a defect: it goes on panicking here.
fn joined<T>(stage: thread::ScopedJoinHandle<'_, T>) -> T {
    stage.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn check<B: Backend>(
    options: &Options, classes: usize, labels: &[String], tokenizer: &Tokenizer, model: &DistilBert<B>,
) -> Result<()> {
    let invalid = |why: String| Err(Error::Invalid(why));
    let positions = model.config.max_position_embeddings;
    if options.max_length > positions {
        return invalid(format!("--max-length {} is more than the model's {positions} positions", options.max_length));
    }
    if options.batch_tokens < options.max_length {
        return invalid(format!(
            "--batch-tokens {} is less than one sequence of --max-length {}; raise it",
            options.batch_tokens, options.max_length
        ));
    }
    if labels.len() != classes {
        return invalid(format!("the model has {classes} classes and config.json names {}", labels.len()));
    }
    if tokenizer.vocab_size() > model.config.vocab_size {
        return invalid(format!(
            "the tokenizer has {} tokens and the model {}; they do not belong together",
            tokenizer.vocab_size(),
            model.config.vocab_size
        ));
    }
    match options.decision {
        Decision::Threshold { at, .. } if classes != 2 => {
            invalid(format!("--threshold {at} needs a model of two classes; this one has {classes}"))
        }
        Decision::Threshold { at, .. } if !(0.0..=1.0).contains(&at) => {
            invalid(format!("--threshold {at} is no probability; use 0 to 1"))
        }
        _ => Ok(()),
    }
}

/// The third stage: batches through the model, on the thread that called.
struct Computing<'a, B: Backend> {
    queue: Queue,
    classifier: Classifier<'a, B>,
    done: Progress,
    stop: &'a AtomicBool,
    progress: &'a dyn Fn(Progress),
}

impl<B: Backend> Computing<'_, B> {
    fn run(mut self, tokenized: Receiver<Vec<Tokenized>>, out: SyncSender<Vec<Scored>>) -> Result<Progress> {
        let mut batch = PackedBatch::default();
        let mut ended = false;
        loop {
            while !ended && self.queue.wants_more() {
                match tokenized.recv() {
                    Ok(rows) => rows.into_iter().for_each(|row| self.queue.push(row)),
                    Err(_) => ended = true,
                }
            }
            if self.stop.load(Ordering::Relaxed) {
                return Err(Error::Interrupted);
            }
            if !self.queue.fill(&mut batch) {
                return Ok(self.done);
            }
            let probabilities = self.classifier.probabilities(&batch)?;
            let rows = self.queue.give(&probabilities);
            self.done.tokens += batch.tokens() as u64;
            self.done.rows += rows.len() as u64;
            // Where nobody listens, the writer has failed and says why.
            if out.send(rows).is_err() {
                return Ok(self.done);
            }
            (self.progress)(self.done);
        }
    }
}

/// Writes until no more comes in. The writer comes back in any case: it knows what was written.
fn write(mut writer: RowWriter, added: &Added, scored: Receiver<Vec<Scored>>) -> (RowWriter, Result<()>) {
    for rows in scored {
        for Scored { mut row, probabilities } in rows {
            added.put(&mut row.fields, &probabilities);
            if let Err(error) = writer.write(&row.fields) {
                return (writer, Err(error));
            }
        }
        if let Err(error) = writer.flush() {
            return (writer, Err(error));
        }
    }
    (writer, Ok(()))
}
