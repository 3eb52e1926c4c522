//! Text files: one posting a line.

use serde_json::{Map, Value};

use super::super::{Location, Result, Row};
use super::Rows;
use super::input::Input;
use super::lines::Lines;

/// The one column of a text file.
const COLUMN: &str = "text";

/// Rows of a text file. A blank line is an empty posting, so that row n stays line n.
pub(super) struct TextRows {
    lines: Lines,
    rows: u64,
}

impl TextRows {
    pub(super) fn new(input: Input) -> TextRows {
        TextRows { lines: Lines::new(input), rows: 0 }
    }

    fn read(&mut self) -> Result<Option<Row>> {
        let file = self.lines.name().to_owned();
        let Some(line) = self.lines.next(self.rows)? else { return Ok(None) };
        let text = line.text(&file)?;
        let fields = Map::from_iter([(COLUMN.to_owned(), Value::String(text.to_owned()))]);
        self.rows += 1;
        Ok(Some(Row { fields, at: Location { file, line: line.number } }))
    }
}

impl Rows for TextRows {
    fn columns(&mut self) -> Vec<String> {
        vec![COLUMN.to_owned()]
    }

    fn next(&mut self) -> Option<Result<Row>> {
        self.read().transpose()
    }
}
