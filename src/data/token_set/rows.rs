//! The rows of several files as one stream.

use std::path::PathBuf;

use super::super::record::{RecordSpec, Row};
use super::super::source::{Format, RowReader, Source, is_stream};
use super::super::{Error, Result};

/// Rows of the files, one after another; each file's columns are checked when it is opened. After an error
/// that is not of one row, the stream ends.
#[derive(Debug)]
pub struct FileRows {
    spec: RecordSpec,
    format: Option<Format>,
    /// Files not opened yet, the next one last.
    files: Vec<PathBuf>,
    reader: Option<RowReader>,
    ended: bool,
}

impl FileRows {
    /// Opens the first file. A spec without text columns gets those that [`RecordSpec::infer`] finds in it.
    /// `format` is that of all files; `None` tells it by their names.
    ///
    /// # Errors
    /// No files; a first file that cannot be opened or lacks a column.
    pub fn open(files: &[PathBuf], format: Option<Format>, spec: &RecordSpec) -> Result<FileRows> {
        let files = files.iter().rev().cloned().collect();
        let mut rows = FileRows { spec: spec.clone(), format, files, reader: None, ended: false };
        let none = || Error::Invalid("no input files; name some, or - for standard input".into());
        let first = rows.files.pop().ok_or_else(none)?;
        let mut reader = Source::open_as(&first, format)?;
        if rows.spec.text_columns.is_empty() {
            rows.spec.text_columns = rows.infer(&mut reader)?;
        }
        reader.check(&rows.spec)?;
        rows.reader = Some(reader);
        Ok(rows)
    }

    /// Text columns of the first file that has any: an empty JSONL has none, nor has one whose first rows are bad.
    fn infer(&self, first: &mut RowReader) -> Result<Vec<String>> {
        let columns = first.columns()?;
        if !columns.is_empty() {
            return RecordSpec::infer(&columns, first.name());
        }
        // What can be read once only is not looked at before its turn comes.
        for path in self.files.iter().rev().filter(|path| !is_stream(path)) {
            let columns = Source::open_as(path, self.format)?.columns()?;
            if !columns.is_empty() {
                return RecordSpec::infer(&columns, path);
            }
        }
        Ok(vec!["text".to_owned()])
    }

    /// The columns in use.
    pub fn spec(&self) -> &RecordSpec {
        &self.spec
    }

    /// Texts of the first `limit` good rows; see [`texts`].
    pub fn texts(self, limit: Option<u64>) -> impl Iterator<Item = Result<String>> + Send {
        let spec = self.spec.clone();
        let texts = self.map(move |row| row.and_then(|row| spec.record(&row)).map(|record| record.text));
        let good = texts.filter(|text| !text.as_ref().is_err_and(Error::is_row));
        good.take(limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX)))
    }

    /// The next file, `None` after the last.
    fn open_next(&mut self) -> Option<Result<RowReader>> {
        let path = self.files.pop()?;
        Some(Source::open_as(&path, self.format).and_then(|mut reader| {
            reader.check(&self.spec)?;
            Ok(reader)
        }))
    }
}

impl Iterator for FileRows {
    type Item = Result<Row>;

    fn next(&mut self) -> Option<Result<Row>> {
        while !self.ended {
            match self.reader.as_mut().and_then(Iterator::next) {
                Some(row) => {
                    self.ended = row.as_ref().is_err_and(|error| !error.is_row());
                    return Some(row);
                }
                None => match self.open_next() {
                    Some(Ok(reader)) => self.reader = Some(reader),
                    Some(Err(error)) => {
                        self.ended = true;
                        return Some(Err(error));
                    }
                    None => self.ended = true,
                },
            }
        }
        None
    }
}

/// Texts of the first `limit` good rows of the files, for [`super::super::Tokenizer::train`]. Bad rows are
/// passed over: whoever then builds the token set counts and names them.
///
/// # Errors
/// Those of [`FileRows::open`].
pub fn texts(
    files: &[PathBuf], spec: &RecordSpec, limit: Option<u64>,
) -> Result<impl Iterator<Item = Result<String>> + Send + use<>> {
    Ok(FileRows::open(files, None, spec)?.texts(limit))
}
