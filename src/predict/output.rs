//! The last stage: rows in input order, as JSONL, CSV or TSV, compressed by extension.

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use flate2::write::GzEncoder;
use serde_json::{Map, Value};

use super::{Error, Result};
use crate::data::source::{Compression, Format, is_stream};
pub use crate::data::token_set::Existing;
use crate::disk;

/// What written rows look like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Form {
    /// One JSON object a line
    Jsonl,
    /// Comma-separated, with a header row
    Csv,
    /// Tab-separated, with a header row
    Tsv,
}

/// Where rows are written, and how.
#[derive(Debug, Clone, PartialEq)]
pub struct Destination {
    path: PathBuf,
    /// The temporary name; none for standard output, pipes and devices.
    partial: Option<PathBuf>,
    form: Form,
    compression: Compression,
}

impl Destination {
    /// `-` is standard output (JSONL unless `form` says otherwise); else the extension says the form
    /// (.jsonl, .csv, .tsv) and the compression (.gz, .zst after it).
    ///
    /// # Errors
    /// The extension is not known, the file exists, or its directory does not.
    pub fn new(path: &Path, form: Option<Form>, existing: Existing) -> Result<Self> {
        if path.as_os_str() == "-" {
            let form = form.unwrap_or(Form::Jsonl);
            return Ok(Destination { path: path.to_owned(), partial: None, form, compression: Compression::None });
        }
        let error = |why: String| Error::Output { path: path.to_owned(), why };
        if path.is_dir() {
            return Err(error("is a directory; name a file in it".into()));
        }
        let compression = Compression::of_name(path);
        let by_name = match Format::of_name(path) {
            Some(Format::Jsonl) => Some(Form::Jsonl),
            Some(Format::Csv) => Some(Form::Csv),
            Some(Format::Tsv) => Some(Form::Tsv),
            Some(Format::Txt | Format::Parquet) | None => None,
        };
        let is_special = is_stream(path);
        let form = match form.or(by_name) {
            Some(form) => form,
            None if is_special => Form::Jsonl,
            None => {
                return Err(error(
                    "the extension says no format; use .jsonl, .csv or .tsv (also .gz or .zst), or --out-format".into(),
                ));
            }
        };
        if is_special {
            return Ok(Destination { path: path.to_owned(), partial: None, form, compression });
        }
        if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty() && !parent.is_dir()) {
            let why = "there is no such directory; make it first".into();
            return Err(Error::Output { path: parent.to_owned(), why });
        }
        let mut partial = path.as_os_str().to_owned();
        partial.push(".partial");
        let partial = PathBuf::from(partial);
        for (file, what) in [(path, "exists"), (&partial, "is left from a run that did not finish")] {
            if existing == Existing::Refuse && file.exists() {
                let why = format!("{what}; choose another --out, or give --overwrite");
                return Err(Error::Output { path: file.to_owned(), why });
            }
        }
        Ok(Destination { path: path.to_owned(), partial: Some(partial), form, compression })
    }

    /// The file's name, or `-`.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether rows need a fixed list of columns.
    pub fn has_header(&self) -> bool {
        self.form != Form::Jsonl
    }

    /// Opens it for rows with these columns; JSONL takes any.
    pub(super) fn create(&self, columns: &[String]) -> Result<RowWriter> {
        let sink = self.sink().map_err(|source| Error::Write { path: self.path.clone(), source })?;
        let rows = match self.form {
            Form::Jsonl => Rows::Jsonl(sink),
            Form::Csv => Rows::delimited(sink, b',', columns),
            Form::Tsv => Rows::delimited(sink, b'\t', columns),
        };
        let mut writer = RowWriter { destination: self.clone(), columns: columns.to_vec(), rows, written: 0 };
        writer.header().map_err(|source| writer.error(source))?;
        Ok(writer)
    }

    fn sink(&self) -> io::Result<Box<dyn Finish>> {
        let file: Box<dyn Write + Send> = match &self.partial {
            Some(partial) => Box::new(File::create(partial)?),
            None if self.path.as_os_str() == "-" => Box::new(io::stdout()),
            None => Box::new(OpenOptions::new().write(true).open(&self.path)?),
        };
        let file = BufWriter::with_capacity(1 << 16, file);
        Ok(match self.compression {
            Compression::None => Box::new(file),
            Compression::Gzip => Box::new(GzEncoder::new(file, flate2::Compression::default())),
            Compression::Zstd => Box::new(zstd::Encoder::new(file, 0)?),
        })
    }
}

/// A stream that has an end to write.
trait Finish: Write + Send {
    fn finish(self: Box<Self>) -> io::Result<()>;
}

type Buffered = BufWriter<Box<dyn Write + Send>>;

impl Finish for Buffered {
    fn finish(mut self: Box<Self>) -> io::Result<()> {
        self.flush()
    }
}

impl Finish for GzEncoder<Buffered> {
    fn finish(self: Box<Self>) -> io::Result<()> {
        GzEncoder::finish(*self)?.flush()
    }
}

impl Finish for zstd::Encoder<'static, Buffered> {
    fn finish(self: Box<Self>) -> io::Result<()> {
        zstd::Encoder::finish(*self)?.flush()
    }
}

enum Rows {
    Jsonl(Box<dyn Finish>),
    Delimited(Box<csv::Writer<Box<dyn Finish>>>),
}

impl Rows {
    fn delimited(sink: Box<dyn Finish>, delimiter: u8, columns: &[String]) -> Self {
        let mut builder = csv::WriterBuilder::new();
        // A lone empty field would be a blank line, which readers skip.
        if columns.len() == 1 {
            builder.quote_style(csv::QuoteStyle::Always);
        }
        Rows::Delimited(Box::new(builder.delimiter(delimiter).from_writer(sink)))
    }
}

/// Writes rows; see [`Destination::create`].
pub(super) struct RowWriter {
    destination: Destination,
    columns: Vec<String>,
    rows: Rows,
    written: u64,
}

impl RowWriter {
    /// Rows written so far.
    pub(super) fn written(&self) -> u64 {
        self.written
    }

    fn header(&mut self) -> io::Result<()> {
        match &mut self.rows {
            Rows::Jsonl(_) => Ok(()),
            Rows::Delimited(csv) => csv.write_record(&self.columns).map_err(io_error),
        }
    }

    /// Writes one row; a column that it lacks is left empty.
    pub(super) fn write(&mut self, fields: &Map<String, Value>) -> Result<()> {
        self.put(fields).map_err(|source| self.error(source))?;
        self.written += 1;
        Ok(())
    }

    fn put(&mut self, fields: &Map<String, Value>) -> io::Result<()> {
        match &mut self.rows {
            Rows::Jsonl(sink) => {
                serde_json::to_writer(&mut *sink, fields)?;
                sink.write_all(b"\n")
            }
            Rows::Delimited(csv) => {
                for column in &self.columns {
                    csv.write_field(&*cell(fields.get(column))).map_err(io_error)?;
                }
                csv.write_record(None::<&[u8]>).map_err(io_error)
            }
        }
    }

    /// Lets the reader of a pipe see what is written so far; files are left to fill their buffers.
    pub(super) fn flush(&mut self) -> Result<()> {
        if self.destination.partial.is_some() {
            return Ok(());
        }
        let flushed = match &mut self.rows {
            Rows::Jsonl(sink) => sink.flush(),
            Rows::Delimited(csv) => csv.flush(),
        };
        flushed.map_err(|source| self.error(source))
    }

    /// Ends the stream, waits until it is on the disk and gives the file its name.
    pub(super) fn finish(self) -> Result<()> {
        let (rows, Destination { path, partial, .. }) = (self.written, self.destination.clone());
        let ended = self.end().and_then(|()| match &partial {
            Some(partial) => disk::sync(partial).and_then(|()| disk::rename(partial, &path)),
            None => Ok(()),
        });
        ended.map_err(|source| kept(Error::Write { path, source }, partial, rows, Whole::No))
    }

    /// Ends the stream after a failure.
    pub(super) fn abandon(self, error: Error) -> Error {
        let (rows, partial) = (self.written, self.destination.partial.clone());
        let whole = if self.end().is_ok() { Whole::Yes } else { Whole::No };
        kept(error, partial, rows, whole)
    }

    fn end(self) -> io::Result<()> {
        match self.rows {
            Rows::Jsonl(sink) => sink.finish(),
            Rows::Delimited(csv) => {
                csv.into_inner().map_err(|e| io::Error::new(e.error().kind(), e.error().to_string()))?.finish()
            }
        }
    }

    fn error(&self, source: io::Error) -> Error {
        Error::Write { path: self.destination.path.clone(), source }
    }
}

/// Whether the last rows written are on the disk.
#[derive(Clone, Copy)]
enum Whole {
    Yes,
    No,
}

/// A failure, and where the rows are that were written before it: under the temporary name. Without any, nothing is left
/// behind.
fn kept(failure: Error, partial: Option<PathBuf>, rows: u64, whole: Whole) -> Error {
    let Some(partial) = partial else { return failure };
    if rows == 0 {
        let _ = std::fs::remove_file(&partial);
        return failure;
    }
    let what = match whole {
        Whole::Yes => format!("the {rows} rows labelled before that are"),
        Whole::No => format!("of the {rows} rows labelled before that, what fitted is"),
    };
    Error::Unfinished { failure: Box::new(failure), kept: format!("{what} kept in {}", partial.display()) }
}

fn io_error(error: csv::Error) -> io::Error {
    match error.into_kind() {
        csv::ErrorKind::Io(error) => error,
        other => io::Error::other(format!("{other:?}")),
    }
}

/// A value as text: strings as they are, null as nothing, lists and objects as JSON.
fn cell(value: Option<&Value>) -> std::borrow::Cow<'_, str> {
    match value {
        None | Some(Value::Null) => "".into(),
        Some(Value::String(text)) => text.into(),
        Some(other) => other.to_string().into(),
    }
}
