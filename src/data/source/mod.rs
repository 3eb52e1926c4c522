//! Opens an input file of any format and yields its rows, one at a time, in constant memory.
//!
//! [`Format`] says what the rows look like, by the file's name or its first bytes; `input`
//! delivers the bytes, decompressed; then one file per kind of row: `csv` (and TSV), `jsonl` and
//! `text` over `lines`, `parquet`.

mod csv;
mod format;
mod input;
mod jsonl;
mod lines;
mod parquet;
mod text;

use std::io::Read;
use std::path::{Path, PathBuf};

use super::{RecordSpec, Result, Row};
pub use format::{Compression, Format};
use input::Input;

/// One input file of any format.
#[derive(Debug)]
pub struct Source;

impl Source {
    /// Opens a .csv, .tsv, .jsonl, .txt or .parquet file, also .gz or .zst, or `-`, standard input.
    ///
    /// Compression is told by the first bytes, not by the name. The format is told by the name; that of standard
    /// input, of pipes and of other names that are no regular file by the first bytes.
    ///
    /// # Errors
    /// The file is missing, a directory, of no known extension, empty where a header row is needed, or is not
    /// what its name says.
    pub fn open(path: &Path) -> Result<RowReader> {
        Source::open_as(path, None)
    }

    /// [`Source::open`], with the format given rather than told by name or first bytes.
    ///
    /// # Errors
    /// Those of [`Source::open`].
    pub fn open_as(path: &Path, format: Option<Format>) -> Result<RowReader> {
        let named = format.or_else(|| Format::of_name(path));
        if path.as_os_str() == "-" {
            return Source::read_as(path, std::io::stdin(), format);
        }
        let file = input::open_file(path, named)?;
        if named == Some(Format::Parquet) {
            return Ok(RowReader::new(path, Format::Parquet, Box::new(parquet::ParquetRows::open(path, file)?)));
        }
        Source::read_as(path, file, named)
    }

    /// Rows of any stream, such as standard input; `name` stands in locations and errors.
    ///
    /// Every format but Parquet, which cannot be read from front to back. `None` tells the format by the first
    /// bytes: `{` is JSONL; a first line that reads as column names is a header of TSV or CSV; else text.
    ///
    /// # Errors
    /// As [`Source::open`].
    pub fn read_as(name: &Path, stream: impl Read + Send + 'static, format: Option<Format>) -> Result<RowReader> {
        let input = Input::new(name, Box::new(stream))?;
        let format = match format {
            Some(format) => format.agree(name, input.head())?,
            None => Format::sniff(name, input.head())?,
        };
        let rows: Box<dyn Rows> = match format {
            Format::Csv => Box::new(csv::CsvRows::new(input, b',')?),
            Format::Tsv => Box::new(csv::CsvRows::new(input, b'\t')?),
            Format::Jsonl => Box::new(jsonl::JsonlRows::new(input)),
            Format::Txt => Box::new(text::TextRows::new(input)),
            Format::Parquet => return Err(format::parquet_in_a_stream(name)),
        };
        Ok(RowReader::new(name, format, rows))
    }
}

/// Whether a name can be read once only, from front to back: standard input, a pipe, as `<(zcat a.csv.gz)` is one,
/// or a device.
pub fn is_stream(path: &Path) -> bool {
    let special = |file: std::fs::Metadata| !file.is_file() && !file.is_dir();
    path.as_os_str() == "-" || std::fs::metadata(path).is_ok_and(special)
}

/// What each format implements: rows in file order.
trait Rows: Send {
    /// Column names; see [`RowReader::columns`].
    fn columns(&mut self) -> Vec<String>;

    /// The next row, `None` at the end; an error that is not of one row ends the file.
    fn next(&mut self) -> Option<Result<Row>>;
}

/// The rows of one file, in order.
///
/// `Err(e)` with `e.is_row()` means that this row is bad and the next one can be asked for; after any other error
/// the iterator ends.
pub struct RowReader {
    name: PathBuf,
    format: Format,
    rows: Box<dyn Rows>,
    ended: bool,
}

impl RowReader {
    fn new(name: &Path, format: Format, rows: Box<dyn Rows>) -> RowReader {
        RowReader { name: name.to_owned(), format, rows, ended: false }
    }

    /// Column names in file order, without consuming a row: the header row (CSV, TSV), the schema (Parquet), `text`
    /// (text). JSONL has no list of columns, so those of the first 100 rows, of standard input those of the first,
    /// in order of appearance; empty where there is no row.
    ///
    /// # Errors
    /// None today: what is wrong with the first rows is told when they are read.
    pub fn columns(&mut self) -> Result<Vec<String>> {
        Ok(self.rows.columns())
    }

    /// Whether a row may have columns that [`RowReader::columns`] does not name although many do: of JSONL on standard
    /// input, only the first row's are known.
    pub fn may_have_more_columns(&self) -> bool {
        self.format == Format::Jsonl && self.name.as_os_str() == "-"
    }

    /// Checks the columns against a spec, as far as they are known: see [`RowReader::may_have_more_columns`].
    ///
    /// # Errors
    /// Those of [`RecordSpec::check`].
    pub fn check(&mut self, spec: &RecordSpec) -> Result<()> {
        let columns = if self.may_have_more_columns() { Vec::new() } else { self.columns()? };
        spec.check(&columns, &self.name)
    }

    /// The file, or `-`.
    pub fn name(&self) -> &Path {
        &self.name
    }

    /// The format that was named or found.
    pub fn format(&self) -> Format {
        self.format
    }
}

impl Iterator for RowReader {
    type Item = Result<Row>;

    fn next(&mut self) -> Option<Result<Row>> {
        if self.ended {
            return None;
        }
        let row = self.rows.next();
        self.ended = match &row {
            None => true,
            Some(Err(error)) => !error.is_row(),
            Some(Ok(_)) => false,
        };
        row
    }
}

impl std::fmt::Debug for RowReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RowReader").field("name", &self.name).field("format", &self.format).finish_non_exhaustive()
    }
}
