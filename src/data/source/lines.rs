//! The lines of an input, numbered, without their ends.

use super::super::{Error, Location, Result};
use super::input::{Input, MOST_ROW_BYTES};

/// A line of text and its number, or what is wrong with it.
pub(super) struct Line<'a> {
    /// Where it stands.
    pub number: u64,
    /// Its bytes, without LF or CRLF.
    pub bytes: &'a [u8],
}

/// Reads line after line into one buffer.
pub(super) struct Lines {
    input: Input,
    buffer: Vec<u8>,
    number: u64,
}

impl Lines {
    pub(super) fn new(mut input: Input) -> Lines {
        input.forget_head();
        Lines { input, buffer: Vec::new(), number: 0 }
    }

    /// The next line, `None` at the end. `rows` is how many rows were read, for the error of a stream cut short.
    pub(super) fn next(&mut self, rows: u64) -> Result<Option<Line<'_>>> {
        self.buffer.clear();
        // A line without its end, because the stream failed, is no row: it may be half of one.
        let count = self.input.read_line(&mut self.buffer).map_err(|error| self.input.failure(error, rows))?;
        if count == 0 {
            return Ok(None);
        }
        self.number += 1;
        if count > MOST_ROW_BYTES {
            return Err(self.input.endless(self.number, "is it text, one posting a line?"));
        }
        let bytes = self.buffer.strip_suffix(b"\n").unwrap_or(&self.buffer);
        let bytes = bytes.strip_suffix(b"\r").unwrap_or(bytes);
        Ok(Some(Line { number: self.number, bytes }))
    }

    pub(super) fn name(&self) -> &std::path::Path {
        self.input.name()
    }
}

impl<'a> Line<'a> {
    /// The line as text.
    pub(super) fn text(&self, file: &std::path::Path) -> Result<&'a str> {
        std::str::from_utf8(self.bytes).map_err(|error| Error::Row {
            at: Location { file: file.to_owned(), line: self.number },
            why: format!("byte {} of the line is not valid UTF-8; fix or delete the line", error.valid_up_to() + 1),
        })
    }
}
