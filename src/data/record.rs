//! From a row of a file to the text, label and group that the rest of the program works with.

use std::borrow::Cow;
use std::path::Path;

use serde_json::Value;

use super::{Error, Location, Result};

/// One row of an input file, with its columns in file order.
#[derive(Debug, Clone)]
pub struct Row {
    /// Column name → value. CSV values are strings; JSONL keeps its types; text files have one column, `text`.
    pub fields: serde_json::Map<String, serde_json::Value>,
    /// Where the row stands.
    pub at: Location,
}

impl Row {
    /// About how much memory its values take, in bytes.
    pub fn bytes(&self) -> usize {
        fn of(value: &Value) -> usize {
            let held = match value {
                Value::String(text) => text.len(),
                Value::Array(values) => values.iter().map(of).sum(),
                Value::Object(fields) => fields.iter().map(|(name, value)| name.len() + of(value)).sum(),
                Value::Null | Value::Bool(_) | Value::Number(_) => 0,
            };
            size_of::<Value>() + held
        }
        self.fields.values().map(of).sum()
    }
}

/// Which columns hold what.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct RecordSpec {
    /// Columns joined, in this order, by one space to make the text. At least one.
    pub text_columns: Vec<String>,
    /// Column of the label; an empty or null value means the row has none.
    pub label_column: Option<String>,
    /// Column that joins rows which must stay on one side of a split.
    pub group_column: Option<String>,
}

/// The text of a posting and what is known of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// The text columns, joined.
    pub text: String,
    /// The label, `None` where the row has none.
    pub label: Option<String>,
    /// Hash that decides the split: of the group's value, or of the text where there is no group.
    pub group: u64,
}

/// Hash that decides which side of a split a row falls on: xxh3 of the group's value, or of the text.
pub fn group_hash(value: &str) -> u64 {
    xxhash_rust::xxh3::xxh3_64(value.as_bytes())
}

impl RecordSpec {
    /// The text columns to use where none were named: `text`, else `body`, else `title` and `description`, else
    /// `description`, in any letter case, as the file spells them.
    ///
    /// # Errors
    /// None of them is among `columns`.
    pub fn infer(columns: &[String], file: &Path) -> Result<Vec<String>> {
        let named = |name: &str| {
            let exact = columns.iter().find(|column| column.as_str() == name);
            exact.or_else(|| columns.iter().find(|column| column.trim().eq_ignore_ascii_case(name))).cloned()
        };
        if let Some(column) = named("text").or_else(|| named("body")) {
            return Ok(vec![column]);
        }
        if let Some(description) = named("description") {
            return Ok(named("title").into_iter().chain([description]).collect());
        }
        let why = format!(
            "no column named text, body or description; say which hold the text with --text-columns ({})",
            listed(columns)
        );
        Err(Error::File { path: file.to_owned(), why })
    }

    /// Checks the columns of a file against the spec. A file without columns passes: an empty JSONL, which has no rows, or
    /// one whose first rows are bad, which is told row by row.
    ///
    /// # Errors
    /// A column is missing, or no text column was named.
    pub fn check(&self, columns: &[String], file: &Path) -> Result<()> {
        if self.text_columns.is_empty() {
            return Err(Error::Invalid("no text columns were named; give them with --text-columns".to_owned()));
        }
        if columns.is_empty() {
            return Ok(());
        }
        let wanted = (self.text_columns.iter().map(|column| (column, "--text-columns")))
            .chain(self.label_column.iter().map(|column| (column, "--label-column")))
            .chain(self.group_column.iter().map(|column| (column, "--group-column")));
        for (column, flag) in wanted {
            if !columns.contains(column) {
                let why = format!("no column {column:?}, which {flag} names ({})", listed(columns));
                return Err(Error::File { path: file.to_owned(), why });
            }
        }
        Ok(())
    }

    /// Text, label and group of a row.
    ///
    /// Numbers and booleans become their plain text; a list of plain values becomes one text. The text columns that
    /// hold something are joined by one space; where none does, the text is empty, which is no error. Label and
    /// group are trimmed; without a group's value the text decides the split.
    ///
    /// # Errors
    /// `Error::Row` where the row has none of the text columns (null counts as having it), or where a value is
    /// nested, so that it has no plain text.
    pub fn record(&self, row: &Row) -> Result<Record> {
        let error = |why: String| Error::Row { at: row.at.clone(), why };
        let mut text = String::new();
        let mut present = false;
        for column in &self.text_columns {
            let Some(value) = row.fields.get(column) else { continue };
            present = true;
            let part = plain_text(value).ok_or_else(|| error(nested(column)))?;
            if !text.is_empty() && !part.is_empty() {
                text.push(' ');
            }
            // The whole text is most often one column's: no second copy then.
            if text.is_empty() { text = part.into_owned() } else { text.push_str(&part) }
        }
        if !present {
            let names: Vec<&str> = row.fields.keys().map(String::as_str).collect();
            let (wanted, found) = (self.text_columns.join(", "), names.join(", "));
            return Err(error(format!("no text column ({wanted}) in this row, which has: {found}")));
        }
        let optional = |column: &Option<String>| -> Result<Option<String>> {
            let Some(name) = column else { return Ok(None) };
            let Some(value) = row.fields.get(name) else { return Ok(None) };
            let scalar = scalar_text(value).ok_or_else(|| error(nested(name)))?;
            let trimmed = scalar.trim();
            Ok((!trimmed.is_empty()).then(|| trimmed.to_owned()))
        };
        let label = optional(&self.label_column)?;
        let group = group_hash(optional(&self.group_column)?.as_deref().unwrap_or(&text));
        Ok(Record { text, label, group })
    }
}

/// A plain value's text, `None` for a list or an object.
fn scalar_text(value: &Value) -> Option<Cow<'_, str>> {
    match value {
        Value::Null => Some(Cow::Borrowed("")),
        Value::Bool(true) => Some(Cow::Borrowed("true")),
        Value::Bool(false) => Some(Cow::Borrowed("false")),
        Value::Number(number) => Some(Cow::Owned(number.to_string())),
        Value::String(text) => Some(Cow::Borrowed(text)),
        Value::Array(_) | Value::Object(_) => None,
    }
}

/// As [`scalar_text`], and a list's plain values joined by one space: requirements often come as a list.
fn plain_text(value: &Value) -> Option<Cow<'_, str>> {
    let Value::Array(values) = value else { return scalar_text(value) };
    let parts: Option<Vec<Cow<'_, str>>> = values.iter().map(scalar_text).collect();
    let parts: Vec<Cow<'_, str>> = parts?.into_iter().filter(|part| !part.is_empty()).collect();
    Some(Cow::Owned(parts.join(" ")))
}

fn nested(column: &str) -> String {
    format!("column {column:?} holds nested data, not plain text; flatten it or name another column")
}

fn listed(columns: &[String]) -> String {
    let names: Vec<String> = columns.iter().map(|column| format!("{column:?}")).collect();
    match names.len() {
        0 => "the file has no columns".to_owned(),
        _ => format!("the columns are {}", names.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(json: &str) -> Row {
        Row { fields: serde_json::from_str(json).unwrap(), at: Location { file: "p.jsonl".into(), line: 7 } }
    }

    fn spec(text: &[&str]) -> RecordSpec {
        RecordSpec {
            text_columns: names(text),
            label_column: Some("label".to_owned()),
            group_column: Some("group".to_owned()),
        }
    }

    fn names(columns: &[&str]) -> Vec<String> {
        columns.iter().map(|&c| c.to_owned()).collect()
    }

    #[test]
    fn columns_are_joined_by_one_space_and_empty_ones_leave_none() {
        let spec = spec(&["title", "salary", "body"]);
        let record = |json| spec.record(&row(json)).unwrap();
        assert_eq!(record(r#"{"title": "Cook", "salary": 20.5, "body": "We hire."}"#).text, "Cook 20.5 We hire.");
        assert_eq!(record(r#"{"title": "Cook", "salary": null, "body": ["a", true, 3, ""]}"#).text, "Cook a true 3");
        assert_eq!(record(r#"{"title": "", "body": "We hire."}"#).text, "We hire.");
        assert_eq!(record(r#"{"body": ""}"#).text, "");
    }

    #[test]
    fn labels_are_trimmed_and_may_be_absent() {
        let label = |json| spec(&["t"]).record(&row(json)).unwrap().label;
        assert_eq!(label(r#"{"t": "x", "label": " remote\n"}"#).as_deref(), Some("remote"));
        assert_eq!(label(r#"{"t": "x", "label": 1}"#).as_deref(), Some("1"));
        assert_eq!(label(r#"{"t": "x", "label": false}"#).as_deref(), Some("false"));
        assert_eq!(label(r#"{"t": "x", "label": "  "}"#), None);
        assert_eq!(label(r#"{"t": "x", "label": null}"#), None);
        assert_eq!(label(r#"{"t": "x"}"#), None);
    }

    #[test]
    fn the_group_decides_the_split_and_the_text_where_there_is_none() {
        let group = |json| spec(&["t"]).record(&row(json)).unwrap().group;
        assert_eq!(group(r#"{"t": "x", "group": "acme"}"#), group_hash("acme"));
        assert_eq!(group(r#"{"t": "x", "group": 12}"#), group_hash("12"));
        assert_eq!(group(r#"{"t": "x", "group": ""}"#), group_hash("x"));
        assert_eq!(group(r#"{"t": "x"}"#), group_hash("x"));
        // xxh3_64 of the empty input, from the XXH3 specification: the splits of old token sets hang on it.
        assert_eq!(group_hash(""), 0x2D06_8005_38D3_94C2);
    }

    #[test]
    fn a_row_without_text_columns_or_with_nested_values_is_a_bad_row() {
        let error = |json| spec(&["t"]).record(&row(json)).unwrap_err();
        let missing = error(r#"{"id": 1, "label": "remote"}"#);
        assert!(missing.is_row());
        assert_eq!(missing.to_string(), "p.jsonl:7: no text column (t) in this row, which has: id, label");
        assert!(error(r#"{"t": {"en": "x"}}"#).is_row());
        assert!(error(r#"{"t": [["x"]]}"#).is_row());
        assert!(error(r#"{"t": "x", "label": ["remote"]}"#).is_row());
    }

    #[test]
    fn text_columns_are_inferred_in_order_of_preference() {
        let infer = |columns: &[&str]| RecordSpec::infer(&names(columns), Path::new("p.csv"));
        assert_eq!(infer(&["body", "text"]).unwrap(), ["text"]);
        assert_eq!(infer(&["title", "Body"]).unwrap(), ["Body"]);
        assert_eq!(infer(&["description", "title"]).unwrap(), ["title", "description"]);
        assert_eq!(infer(&["id", "Description"]).unwrap(), ["Description"]);
        let message = infer(&["id", "title"]).unwrap_err().to_string();
        assert!(message.contains("--text-columns") && message.contains(r#""id", "title""#), "{message}");
    }

    #[test]
    fn a_missing_column_is_named_with_those_that_exist() {
        let file = Path::new("p.csv");
        let spec = spec(&["text"]);
        assert!(spec.check(&names(&["group", "label", "text", "id"]), file).is_ok());
        assert!(spec.check(&[], file).is_ok());
        let message = spec.check(&names(&["text", "labels", "group"]), file).unwrap_err().to_string();
        let expected =
            r#"p.csv: no column "label", which --label-column names (the columns are "text", "labels", "group")"#;
        assert_eq!(message, expected);
        assert!(RecordSpec::default().check(&names(&["text"]), file).is_err());
    }
}
