//! JSONL: one JSON object a line.

use std::collections::VecDeque;
use std::path::Path;

use serde_json::{Map, Value};

use super::super::{Error, Location, Result, Row};
use super::Rows;
use super::input::Input;
use super::lines::Lines;

/// How many rows tell the columns: enough that a value which the first row happens to lack is not missed.
const ROWS_FOR_COLUMNS: usize = 100;

/// Rows of a JSONL file. Blank lines are passed over.
pub(super) struct JsonlRows {
    lines: Lines,
    rows: u64,
    /// Read to tell the columns, not yet given out.
    ahead: VecDeque<Result<Row>>,
}

impl JsonlRows {
    pub(super) fn new(input: Input) -> JsonlRows {
        JsonlRows { lines: Lines::new(input), rows: 0, ahead: VecDeque::new() }
    }

    fn read(&mut self) -> Result<Option<Row>> {
        let file = self.lines.name().to_owned();
        loop {
            let Some(line) = self.lines.next(self.rows)? else { return Ok(None) };
            if line.bytes.trim_ascii().is_empty() {
                continue;
            }
            let text = line.text(&file)?;
            let fields = parse(text).map_err(|why| Error::Row { at: at(&file, line.number), why })?;
            self.rows += 1;
            return Ok(Some(Row { at: at(&file, line.number), fields }));
        }
    }
}

impl Rows for JsonlRows {
    fn columns(&mut self) -> Vec<String> {
        // A live pipe may hold back its second row until it has the answer to the first.
        let wanted = if self.lines.name().as_os_str() == "-" { 1 } else { ROWS_FOR_COLUMNS };
        while self.ahead.iter().filter(|row| row.is_ok()).count() < wanted {
            let Some(row) = self.read().transpose() else { break };
            let fatal = row.as_ref().is_err_and(|error| !error.is_row());
            self.ahead.push_back(row);
            // The queue is bounded even where no row is good.
            if fatal || self.ahead.len() >= 2 * ROWS_FOR_COLUMNS {
                break;
            }
        }
        let mut columns: Vec<String> = Vec::new();
        for name in self.ahead.iter().flatten().flat_map(|row| row.fields.keys()) {
            if !columns.contains(name) {
                columns.push(name.clone());
            }
        }
        columns
    }

    fn next(&mut self) -> Option<Result<Row>> {
        self.ahead.pop_front().or_else(|| self.read().transpose())
    }
}

fn at(file: &Path, line: u64) -> Location {
    Location { file: file.to_owned(), line }
}

/// The object of one line, or what is wrong with it.
fn parse(text: &str) -> std::result::Result<Map<String, Value>, String> {
    serde_json::from_str(text).map_err(|error| {
        // serde_json counts lines within the text it is given, which is one line.
        let message = error.to_string();
        let what = message.split(" at line ").next().unwrap_or(&message);
        format!("not a JSON object ({what}, at column {}); fix or delete the line", error.column())
    })
}
