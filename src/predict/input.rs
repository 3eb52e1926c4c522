//! The first stage: files of any format, read in blocks of rows that can be labelled.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::SyncSender;

use super::columns::Added;
use super::{Error, Result};
use crate::data::source::{Format, RowReader, Source, is_stream};
use crate::data::{Error as DataError, RecordSpec, Row};

/// A block is handed on at this many rows, or
pub(super) const BLOCK_ROWS: usize = 512;
/// at this many bytes: whichever comes first.
const BLOCK_BYTES: usize = 1 << 20;
/// Bad rows that are named.
const NAMED: usize = 5;

/// Input files whose columns have been looked at.
#[derive(Debug)]
pub struct Inputs {
    files: Vec<PathBuf>,
    format: Option<Format>,
    /// The first file, opened: standard input and pipes cannot be opened twice.
    first: RowReader,
    /// Of each file that was looked at, in order.
    columns: Vec<(PathBuf, Vec<String>)>,
    text_columns: Vec<String>,
}

/// Which columns make the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TextColumns<'a> {
    /// These; a file without them is an error.
    Named(&'a [String]),
    /// These where the first file has them all, else as [`RecordSpec::infer`] finds them.
    Suggested(&'a [String]),
}

/// Rows with their texts, on the way to the tokenizer.
#[derive(Debug, Default)]
pub struct Block {
    /// As they were read.
    pub rows: Vec<Row>,
    /// The text of each.
    pub texts: Vec<String>,
}

/// What was read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReadCounts {
    /// Rows that could not be read or labelled.
    pub bad_rows: u64,
    /// The first of them, with file and line.
    pub first_bad: Vec<String>,
}

/// What a row must not have, so that it can be written.
#[derive(Debug)]
pub(super) struct Fit<'a> {
    /// The columns to be added.
    pub added: &'a Added,
    /// The columns of the output, where they are fixed by a header.
    pub header: Option<&'a [String]>,
}

impl Inputs {
    /// Opens every file once to look at its columns; not standard input and pipes that come later.
    ///
    /// # Errors
    /// A file cannot be opened or lacks a text column.
    pub fn open(files: &[PathBuf], format: Option<Format>, text_columns: TextColumns<'_>) -> Result<Inputs> {
        let Some((path, others)) = files.split_first() else {
            return Err(Error::Invalid("no input files; name some, or - for standard input".to_owned()));
        };
        let mut first = Source::open_as(path, format)?;
        let mut columns = vec![(path.clone(), first.columns()?)];
        // What can be read once only is looked at when its turn comes.
        for path in others.iter().filter(|path| !is_stream(path)) {
            columns.push((path.clone(), Source::open_as(path, format)?.columns()?));
        }
        let text_columns = match (text_columns, columns.iter().find(|(_, names)| !names.is_empty())) {
            (TextColumns::Named(named), _) => named.to_vec(),
            (TextColumns::Suggested(wish), Some((_, names)))
                if wish.iter().all(|w| names.contains(w)) && !wish.is_empty() =>
            {
                wish.to_vec()
            }
            (TextColumns::Suggested(_), Some((path, names))) => RecordSpec::infer(names, path)?,
            // No file has a row.
            (TextColumns::Suggested(_), None) => vec!["text".to_owned()],
        };
        let unknown = usize::from(first.may_have_more_columns());
        let inputs = Inputs { files: files.to_vec(), format, first, columns, text_columns };
        let spec = inputs.spec();
        for (path, names) in inputs.columns.iter().skip(unknown) {
            spec.check(names, path)?;
        }
        Ok(inputs)
    }

    /// Which columns make the text.
    pub fn text_columns(&self) -> &[String] {
        &self.text_columns
    }

    /// Columns of all files, in order of appearance.
    pub fn columns(&self) -> Vec<String> {
        let mut all: Vec<String> = Vec::new();
        for name in self.columns.iter().flat_map(|(_, names)| names) {
            if !all.contains(name) {
                all.push(name.clone());
            }
        }
        all
    }

    fn spec(&self) -> RecordSpec {
        RecordSpec { text_columns: self.text_columns.clone(), label_column: None, group_column: None }
    }

    /// Reads to the end, or until nobody listens or `stop` is set.
    pub(super) fn read(self, fit: &Fit<'_>, blocks: &SyncSender<Block>, stop: &AtomicBool) -> Result<ReadCounts> {
        let mut reading = Reading {
            spec: self.spec(),
            fit,
            blocks,
            block: Block::default(),
            bytes: 0,
            counts: ReadCounts::default(),
        };
        let mut first = Some(self.first);
        for path in &self.files {
            let reader = match first.take() {
                Some(reader) => Ok(reader),
                None => Source::open_as(path, self.format),
            };
            let ended = reader.map_err(Error::from).and_then(|reader| reading.file(reader, stop));
            match ended {
                Ok(Flow::On) => {}
                Ok(Flow::Stop) => return Ok(reading.counts),
                Err(error) => {
                    // What was read before the error is labelled all the same.
                    reading.hand_on();
                    return Err(error);
                }
            }
        }
        reading.hand_on();
        Ok(reading.counts)
    }
}

/// Whether reading goes on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Flow {
    On,
    /// Nobody listens any more: a later stage has failed, and says why; or the user has stopped the run.
    Stop,
}

struct Reading<'a> {
    spec: RecordSpec,
    fit: &'a Fit<'a>,
    blocks: &'a SyncSender<Block>,
    block: Block,
    bytes: usize,
    counts: ReadCounts,
}

impl Reading<'_> {
    fn file(&mut self, reader: RowReader, stop: &AtomicBool) -> Result<Flow> {
        for row in reader {
            if stop.load(Ordering::Relaxed) || self.row(row)? == Flow::Stop {
                return Ok(Flow::Stop);
            }
        }
        Ok(Flow::On)
    }

    fn row(&mut self, row: crate::data::Result<Row>) -> Result<Flow> {
        let usable = row.and_then(|row| {
            self.fit.check(&row)?;
            let text = self.spec.record(&row)?.text;
            Ok((row, text))
        });
        match usable {
            Ok((row, text)) => {
                self.bytes += row.bytes() + text.len();
                self.block.rows.push(row);
                self.block.texts.push(text);
                if self.block.rows.len() >= BLOCK_ROWS || self.bytes >= BLOCK_BYTES {
                    return Ok(self.hand_on());
                }
            }
            Err(error) if error.is_row() => {
                self.counts.bad_rows += 1;
                if self.counts.first_bad.len() < NAMED {
                    self.counts.first_bad.push(error.to_string());
                }
            }
            Err(error) => return Err(error.into()),
        }
        Ok(Flow::On)
    }

    fn hand_on(&mut self) -> Flow {
        self.bytes = 0;
        let block = std::mem::take(&mut self.block);
        if block.rows.is_empty() || self.blocks.send(block).is_ok() { Flow::On } else { Flow::Stop }
    }
}

impl Fit<'_> {
    /// JSONL rows may differ from those whose columns were looked at.
    fn check(&self, row: &Row) -> crate::data::Result<()> {
        let error = |why: String| Err(DataError::Row { at: row.at.clone(), why });
        if let Some(name) = self.added.clash(row) {
            return error(format!(
                "the row has a field {name:?}, where the prediction would go; choose another name with --prefix"
            ));
        }
        if let Some(header) = self.header
            && let Some(name) = row.fields.keys().find(|name| !header.contains(name))
        {
            return error(format!("field {name:?} is not in the output's header; write .jsonl instead"));
        }
        Ok(())
    }
}
