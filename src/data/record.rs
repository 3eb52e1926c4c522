//! From a row of a file to the text, label and group that the rest of the program works with.

use super::{Error, Location, Result};

/// One row of an input file, with its columns in file order.
#[derive(Debug, Clone)]
pub struct Row {
    /// Column name → value. CSV values are strings; JSONL keeps its types; text files have one column, `text`.
    pub fields: serde_json::Map<String, serde_json::Value>,
    /// Where the row stands.
    pub at: Location,
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
