//! Parquet, by the parquet crate's row interface.

use std::cell::Cell;
use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Once;

use parquet::basic::Compression;
use parquet::file::metadata::ColumnChunkMetaData;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::Field;
use parquet::record::reader::RowIter;
use serde_json::{Map, Number, Value};

use super::super::{Error, Location, Result, Row};
use super::Rows;

/// The longest part of the parquet crate's own words that an error repeats: it likes to print whole values.
const LONGEST_CAUSE: usize = 160;
/// Years 1 to 9999 in days and milliseconds from 1970; the crate panics on dates that chrono cannot hold.
const DAYS: std::ops::Range<i32> = -719_162..2_932_897;
const MILLIS: std::ops::Range<i64> = DAYS.start as i64 * 86_400_000..DAYS.end as i64 * 86_400_000;

/// Rows of a Parquet file; the row number stands for the line.
pub(super) struct ParquetRows {
    file: PathBuf,
    columns: Vec<String>,
    rows: RowIter<'static>,
    row: u64,
}

impl ParquetRows {
    /// Reads the file's metadata.
    ///
    /// # Errors
    /// Not a Parquet file, cut short, or compressed in a way that is not built in.
    pub(super) fn open(path: &Path, file: File) -> Result<ParquetRows> {
        let error = |why: String| Error::File { path: path.to_owned(), why };
        let open = || SerializedFileReader::new(file);
        let reader = guarded(open).map_err(|cause| {
            error(format!("not a Parquet file, or cut short ({cause}); fetch or write the file again"))
        })?;
        for column in reader.metadata().row_groups().iter().flat_map(|group| group.columns()) {
            readable(column).map_err(error)?;
        }
        let schema = reader.metadata().file_metadata().schema();
        let columns = schema.get_fields().iter().map(|field| field.name().to_owned()).collect();
        Ok(ParquetRows { file: path.to_owned(), columns, rows: reader.into_iter(), row: 0 })
    }

    fn read(&mut self) -> Result<Option<Row>> {
        let rows = &mut self.rows;
        // A row that fails leaves the crate's columns out of step with each other, so nothing after it can be trusted.
        let row = guarded(|| rows.next().transpose()).map_err(|cause| Error::File {
            path: self.file.clone(),
            why: format!(
                "row {} cannot be read ({cause}); the {} rows before it were read; write the file again",
                self.row + 1,
                self.row
            ),
        })?;
        let Some(row) = row else { return Ok(None) };
        self.row += 1;
        let at = Location { file: self.file.clone(), line: self.row };
        match row.get_column_iter().map(|(name, field)| Ok((name.clone(), value(field)?))).collect() {
            Ok(fields) => Ok(Some(Row { fields, at })),
            Err(why) => Err(Error::Row { at, why }),
        }
    }
}

impl Rows for ParquetRows {
    fn columns(&mut self) -> Vec<String> {
        self.columns.clone()
    }

    fn next(&mut self) -> Option<Result<Row>> {
        self.read().transpose()
    }
}

thread_local! {
    /// Whether this thread is in a call whose panics are told as errors.
    static GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// A panic that is caught is still printed, backtrace and all, unless the hook that prints it knows better.
fn keep_guarded_panics_quiet() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let print = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if !GUARDED.get() {
                print(panic);
            }
        }));
    });
}

/// Runs a call into the parquet crate, which asserts its way through damaged files; a panic is an error here.
fn guarded<T>(call: impl FnOnce() -> parquet::errors::Result<T>) -> std::result::Result<T, String> {
    keep_guarded_panics_quiet();
    GUARDED.set(true);
    let result = catch_unwind(AssertUnwindSafe(call));
    GUARDED.set(false);
    match result {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(shortened(&error.to_string())),
        Err(panic) => {
            let message = panic.downcast_ref::<String>().map(String::as_str);
            Err(shortened(message.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("damaged")))
        }
    }
}

/// Whether a column can be decoded; or why not, so that it is told before the first row.
fn readable(column: &ColumnChunkMetaData) -> std::result::Result<(), String> {
    let (name, codec) = (column.column_path(), column.compression());
    // The crate panics on these.
    let start = column.dictionary_page_offset().unwrap_or(0).min(column.data_page_offset());
    if start < 0 || column.compressed_size() < 0 {
        return Err(format!("column {name} has a negative place or size, so the file is damaged; write it again"));
    }
    match codec {
        Compression::UNCOMPRESSED | Compression::SNAPPY | Compression::GZIP(_) | Compression::ZSTD(_) => Ok(()),
        _ => Err(format!("column {name} is compressed with {codec}; write the file with zstd, snappy or gzip")),
    }
}

fn shortened(cause: &str) -> String {
    match cause.char_indices().nth(LONGEST_CAUSE) {
        Some((end, _)) => format!("{}…", cause.get(..end).unwrap_or_default()),
        None => cause.to_owned(),
    }
}

/// A Parquet value as JSON; or why it is none.
fn value(field: &Field) -> std::result::Result<Value, String> {
    Ok(match field {
        Field::Null => Value::Null,
        Field::Bool(v) => Value::Bool(*v),
        Field::Byte(v) => (*v).into(),
        Field::Short(v) => (*v).into(),
        Field::Int(v) => (*v).into(),
        Field::Long(v) => (*v).into(),
        Field::UByte(v) => (*v).into(),
        Field::UShort(v) => (*v).into(),
        Field::UInt(v) => (*v).into(),
        Field::ULong(v) => (*v).into(),
        Field::Float16(v) => float(f64::from(v.to_f32())),
        // By way of its shortest decimal: 0.1f32 is 0.1, not 0.10000000149.
        Field::Float(v) => float(v.to_string().parse().unwrap_or(f64::from(*v))),
        Field::Double(v) => float(*v),
        Field::Str(text) => Value::String(text.clone()),
        // Old writers leave text columns unannotated.
        Field::Bytes(bytes) => match std::str::from_utf8(bytes.data()) {
            Ok(text) => Value::String(text.to_owned()),
            Err(_) => return Err("a binary value is not valid UTF-8 text; drop the column or the row".to_owned()),
        },
        Field::Date(days) if !DAYS.contains(days) => (*days).into(),
        Field::TimestampMillis(millis) if !MILLIS.contains(millis) => (*millis).into(),
        Field::TimestampMicros(micros) if !MILLIS.contains(&(micros / 1000)) => (*micros).into(),
        Field::TimeMillis(millis) if *millis < 0 => (*millis).into(),
        Field::TimeMicros(micros) if *micros < 0 => (*micros).into(),
        Field::Date(_)
        | Field::TimeMillis(_)
        | Field::TimeMicros(_)
        | Field::TimestampMillis(_)
        | Field::TimestampMicros(_)
        | Field::Decimal(_) => Value::String(field.to_string()),
        Field::Group(row) => {
            let members = row.get_column_iter().map(|(name, member)| Ok((name.clone(), value(member)?)));
            Value::Object(members.collect::<std::result::Result<Map<_, _>, String>>()?)
        }
        Field::ListInternal(list) => {
            Value::Array(list.elements().iter().map(value).collect::<std::result::Result<_, _>>()?)
        }
        Field::MapInternal(map) => {
            let pairs = map.entries().iter().map(|(key, member)| Ok((plain(&value(key)?), value(member)?)));
            Value::Object(pairs.collect::<std::result::Result<Map<_, _>, String>>()?)
        }
    })
}

/// JSON has no infinities and no NaN; they are absent values.
fn float(v: f64) -> Value {
    Number::from_f64(v).map_or(Value::Null, Value::Number)
}

fn plain(key: &Value) -> String {
    key.as_str().map_or_else(|| key.to_string(), str::to_owned)
}
