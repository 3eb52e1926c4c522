//! CSV and TSV: a header row, fields that may be quoted and then hold separators, quotes and newlines.
//!
//! The parser is csv-core, the one beneath the csv crate. It is driven by hand because csv's own line numbers
//! are those of the end of the row before: wrong after blank lines and with CRLF.

use std::collections::HashMap;
use std::path::Path;

use csv_core::ReadRecordResult;
use serde_json::{Map, Value};

use super::super::{Error, Location, Result, Row};
use super::Rows;
use super::input::{Input, MOST_ROW_BYTES};

/// Rows of a CSV or TSV file.
pub(super) struct CsvRows {
    records: Records,
    header: Vec<String>,
    rows: u64,
}

impl CsvRows {
    /// Reads the header row.
    ///
    /// # Errors
    /// There is none, it is not UTF-8, or two columns have the same name.
    pub(super) fn new(input: Input, delimiter: u8) -> Result<CsvRows> {
        let mut records = Records::new(input, delimiter);
        let error = |name: &Path, why: String| Err(Error::File { path: name.to_owned(), why });
        let found = records.next(0)?;
        let name = records.input.name();
        if found.is_none() {
            return error(name, "is empty; the first row must name the columns".to_owned());
        }
        let mut header = Vec::new();
        for (i, field) in records.fields().enumerate() {
            match std::str::from_utf8(field) {
                Ok(column) => header.push(column.to_owned()),
                Err(_) => return error(name, format!("the name of column {} is not valid UTF-8", i + 1)),
            }
        }
        let mut seen = HashMap::new();
        for (i, column) in header.iter().enumerate() {
            if let Some(first) = seen.insert(column.as_str(), i) {
                let why = format!(
                    "columns {} and {} are both named {column:?}; give each column its own name in the first row",
                    first + 1,
                    i + 1
                );
                return error(name, why);
            }
        }
        Ok(CsvRows { records, header, rows: 0 })
    }

    fn read(&mut self) -> Result<Option<Row>> {
        let Some(line) = self.records.next(self.rows)? else { return Ok(None) };
        let at = Location { file: self.records.input.name().to_owned(), line };
        let (found, expected) = (self.records.fields().len(), self.header.len());
        if self.records.ends_in_an_open_quote() {
            let why = "a quote opened in this row is never closed, so all that follows is part of it; \
                       close the quote or double it";
            return Err(Error::Row { at, why: why.to_owned() });
        }
        if found != expected {
            let fields = if found == 1 { "field" } else { "fields" };
            let why = format!(
                "{found} {fields}, expected {expected} as in the first row; quote fields that hold separators or newlines"
            );
            return Err(Error::Row { at, why });
        }
        let mut row = Map::with_capacity(expected);
        for (column, field) in self.header.iter().zip(self.records.fields()) {
            match std::str::from_utf8(field) {
                Ok(text) => row.insert(column.clone(), Value::String(text.to_owned())),
                Err(error) => {
                    let byte = error.valid_up_to() + 1;
                    let why = format!("byte {byte} of column {column:?} is not valid UTF-8; fix or delete the row");
                    return Err(Error::Row { at, why });
                }
            };
        }
        self.rows += 1;
        Ok(Some(Row { fields: row, at }))
    }
}

impl Rows for CsvRows {
    fn columns(&mut self) -> Vec<String> {
        self.header.clone()
    }

    fn next(&mut self) -> Option<Result<Row>> {
        self.read().transpose()
    }
}

/// One record after the other, as bytes.
struct Records {
    input: Input,
    parser: csv_core::Reader,
    /// The fields of the record, end to end; longer than what is used.
    bytes: Vec<u8>,
    /// Where each field ends in `bytes`; longer than what is used.
    ends: Vec<usize>,
    fields: usize,
    /// Newlines between records, which the parser does not see.
    skipped: u64,
    /// The last byte of the record that is no line end.
    last: Option<u8>,
    /// Whether the record is longer than any row may be.
    cut: bool,
}

impl Records {
    fn new(mut input: Input, delimiter: u8) -> Records {
        input.forget_head();
        let parser = csv_core::ReaderBuilder::new().delimiter(delimiter).build();
        Records {
            input,
            parser,
            bytes: vec![0; 4096],
            ends: vec![0; 64],
            fields: 0,
            skipped: 0,
            last: None,
            cut: false,
        }
    }

    /// Reads the next record that is not a blank line; the line on which it begins, `None` at the end. `rows` is how many
    /// rows were read, for the error of a stream cut short.
    fn next(&mut self, rows: u64) -> Result<Option<u64>> {
        let line = self.read().map_err(|error| self.input.failure(error, rows))?;
        match line {
            Some(line) if self.cut => Err(self.input.endless(line, "is a quote in it never closed?")),
            line => Ok(line),
        }
    }

    fn read(&mut self) -> std::io::Result<Option<u64>> {
        loop {
            match self.input.fill()?.first() {
                None => return Ok(None),
                Some(b'\n') => self.skipped += 1,
                Some(b'\r') => {}
                Some(_) => break,
            }
            self.input.consume(1);
        }
        let line = self.parser.line() + self.skipped;
        let (mut used, mut fields) = (0, 0);
        // A last line without its end is given one: only a field whose quote is open takes it in.
        let mut missing_end = b"\n".as_slice();
        self.last = None;
        loop {
            let rest = self.input.fill()?;
            let at_the_end = rest.is_empty();
            let input = if at_the_end { missing_end } else { rest };
            let (bytes, ends) = (self.bytes.get_mut(used..), self.ends.get_mut(fields..));
            let (result, read, written, ended) =
                self.parser.read_record(input, bytes.unwrap_or_default(), ends.unwrap_or_default());
            let taken = input.get(..read).unwrap_or_default();
            self.last = taken.iter().rev().find(|b| !matches!(b, b'\n' | b'\r')).copied().or(self.last);
            if at_the_end {
                missing_end = missing_end.get(read..).unwrap_or_default();
            } else {
                self.input.consume(read);
            }
            used += written;
            fields += ended;
            match result {
                ReadRecordResult::InputEmpty => {}
                ReadRecordResult::OutputFull | ReadRecordResult::OutputEndsFull
                    if self.bytes.len().max(size_of_val(self.ends.as_slice())) >= MOST_ROW_BYTES =>
                {
                    self.cut = true;
                    return Ok(Some(line));
                }
                ReadRecordResult::OutputFull => self.bytes.resize(self.bytes.len() * 2, 0),
                ReadRecordResult::OutputEndsFull => self.ends.resize(self.ends.len() * 2, 0),
                ReadRecordResult::Record => {
                    self.fields = fields;
                    return Ok(Some(line));
                }
                ReadRecordResult::End => return Ok(None),
            }
        }
    }

    /// The fields of the record last read.
    fn fields(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        let mut start = 0;
        self.ends.iter().take(self.fields).map(move |&end| {
            let field = self.bytes.get(start..end).unwrap_or_default();
            start = end;
            field
        })
    }

    /// Whether the file ended inside quotes. Only then does the last field take in the file's last newline although
    /// no quote follows it.
    fn ends_in_an_open_quote(&mut self) -> bool {
        let newline_at_the_end = self.fields().last().is_some_and(|field| field.ends_with(b"\n"));
        newline_at_the_end && self.last != Some(b'"') && matches!(self.input.fill(), Ok([]))
    }
}
