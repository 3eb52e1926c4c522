//! Reading Parquet files.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use handbert::data::source::{Format, Source};
use parquet::basic::{Compression, ZstdLevel};
use parquet::data_type::{BoolType, ByteArray, ByteArrayType, DoubleType, FloatType, Int32Type, Int64Type};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use serde_json::{Value, json};

const SCHEMA: &str = "message postings {
    required binary text (UTF8); optional binary label (UTF8); required int64 id; required double salary;
    required float share; required boolean open; required binary plain; required int32 day (DATE);
    required int64 at (TIMESTAMP_MILLIS);
}";

/// Writes three rows in each of `groups` row groups. `texts` are the values of column `text`.
fn write(path: &Path, compression: Compression, groups: usize, texts: [&[u8]; 3]) {
    let schema = Arc::new(parse_message_type(SCHEMA).unwrap());
    let properties = Arc::new(WriterProperties::builder().set_compression(compression).build());
    let mut writer = SerializedFileWriter::new(std::fs::File::create(path).unwrap(), schema, properties).unwrap();
    for _ in 0..groups {
        let mut group = writer.next_row_group().unwrap();
        macro_rules! column {
            ($kind:ty, $values:expr, $levels:expr) => {
                let mut column = group.next_column().unwrap().unwrap();
                column.typed::<$kind>().write_batch($values, $levels, None).unwrap();
                column.close().unwrap();
            };
        }
        column!(ByteArrayType, &texts.map(|text| ByteArray::from(text.to_vec())), None);
        column!(ByteArrayType, &[ByteArray::from("remote"), ByteArray::from("in_person")], Some(&[1, 0, 1]));
        column!(Int64Type, &[7, 8, i64::MAX], None);
        column!(DoubleType, &[0.5, f64::NAN, 1e9], None);
        column!(FloatType, &[0.1, 0.25, -2.0], None);
        column!(BoolType, &[true, false, true], None);
        column!(ByteArrayType, &["é", "b", "c"].map(ByteArray::from), None);
        // The second day is one that a calendar cannot hold.
        column!(Int32Type, &[18_262, i32::MAX, 0], None);
        column!(Int64Type, &[1_577_836_800_000, i64::MAX, 0], None);
        group.close().unwrap();
    }
    writer.close().unwrap();
}

fn file(directory: &tempfile::TempDir) -> PathBuf {
    directory.path().join("p.parquet")
}

const TEXTS: [&[u8]; 3] = [b"We hire.", b"", "l\u{ed}nea\nnueva".as_bytes()];

#[test]
fn rows_come_in_order_with_their_types_and_row_numbers() {
    let directory = tempfile::tempdir().unwrap();
    for compression in [Compression::UNCOMPRESSED, Compression::SNAPPY, Compression::ZSTD(ZstdLevel::default())] {
        write(&file(&directory), compression, 2, TEXTS);
        let mut reader = Source::open(&file(&directory)).unwrap();
        assert_eq!(reader.format(), Format::Parquet);
        let names = ["text", "label", "id", "salary", "share", "open", "plain", "day", "at"];
        assert_eq!(reader.columns().unwrap(), names);
        let rows: Vec<_> = reader.map(|row| row.unwrap()).collect();
        assert_eq!(rows.iter().map(|row| row.at.line).collect::<Vec<_>>(), [1, 2, 3, 4, 5, 6]);
        let first = json!({"text": "We hire.", "label": "remote", "id": 7, "salary": 0.5, "share": 0.1, "open": true,
            "plain": "é", "day": "2020-01-01", "at": "2020-01-01 00:00:00.000 +00:00"});
        assert_eq!(Value::Object(rows[3].fields.clone()), first);
        assert_eq!(rows[1].fields["label"], Value::Null);
        assert_eq!(rows[1].fields["salary"], Value::Null);
        assert_eq!(rows[1].fields["day"], json!(i32::MAX));
        assert_eq!(rows[5].fields["text"], json!("línea\nnueva"));
        assert_eq!(rows[5].fields["id"], json!(i64::MAX));
    }
}

#[test]
fn lists_and_structs_become_json() {
    let directory = tempfile::tempdir().unwrap();
    let message = "message m { required group where { required binary city (UTF8); } repeated int32 codes; }";
    let schema = Arc::new(parse_message_type(message).unwrap());
    let output = std::fs::File::create(file(&directory)).unwrap();
    let mut writer = SerializedFileWriter::new(output, schema, Arc::default()).unwrap();
    let mut group = writer.next_row_group().unwrap();
    let mut column = group.next_column().unwrap().unwrap();
    column.typed::<ByteArrayType>().write_batch(&[ByteArray::from("Lima")], None, None).unwrap();
    column.close().unwrap();
    let mut column = group.next_column().unwrap().unwrap();
    column.typed::<Int32Type>().write_batch(&[4, 5], Some(&[1, 1]), Some(&[0, 1])).unwrap();
    column.close().unwrap();
    group.close().unwrap();
    writer.close().unwrap();
    let row = Source::open(&file(&directory)).unwrap().next().unwrap().unwrap();
    assert_eq!(Value::Object(row.fields), json!({"where": {"city": "Lima"}, "codes": [4, 5]}));
}

#[test]
fn text_that_is_not_utf8_ends_the_file_with_an_error_that_names_the_row() {
    let directory = tempfile::tempdir().unwrap();
    write(&file(&directory), Compression::UNCOMPRESSED, 1, [b"a", b"\xFF\xFE", b"c"]);
    let mut reader = Source::open(&file(&directory)).unwrap();
    assert!(reader.next().unwrap().is_ok());
    let error = reader.next().unwrap().unwrap_err();
    assert!(!error.is_row());
    assert!(error.to_string().contains("row 2 cannot be read"), "{error}");
    assert!(reader.next().is_none());
}

#[test]
fn files_cut_short_or_damaged_are_errors_and_never_panics() {
    let directory = tempfile::tempdir().unwrap();
    write(&file(&directory), Compression::SNAPPY, 1, TEXTS);
    let whole = std::fs::read(file(&directory)).unwrap();
    for cut in [0, 3, 4, 11, whole.len() / 2, whole.len() - 1] {
        std::fs::write(file(&directory), &whole[..cut]).unwrap();
        let error = Source::open(&file(&directory)).unwrap_err();
        assert!(error.to_string().contains("not a Parquet file, or cut short"), "{error}");
    }
    for (at, mask) in (0..whole.len()).flat_map(|at| [0x41, 0xFF].map(|mask| (at, mask))) {
        let mut damaged = whole.clone();
        damaged[at] ^= mask;
        std::fs::write(file(&directory), &damaged).unwrap();
        if let Ok(reader) = Source::open(&file(&directory)) {
            assert!(reader.take(1000).count() < 1000, "byte {at} with mask {mask}: more rows than can be");
        }
    }
}
