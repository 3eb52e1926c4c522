//! Reading files: every format, compression, and what goes wrong with them.

use std::io::{Cursor, Read, Write};
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::write::GzEncoder;
use handbert::data::source::{Format, RowReader, Source};
use handbert::data::{Error, Row};
use proptest::prelude::*;

/// A directory that goes away with the test.
struct Files(tempfile::TempDir);

impl Files {
    fn new() -> Files {
        Files(tempfile::tempdir().unwrap())
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }
}

fn gz(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zst(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 1).unwrap()
}

fn stream(bytes: impl AsRef<[u8]>, format: Option<Format>) -> handbert::data::Result<RowReader> {
    Source::read_as(Path::new("-"), Cursor::new(bytes.as_ref().to_vec()), format)
}

fn text(row: &Row, column: &str) -> String {
    row.fields[column].as_str().unwrap().to_owned()
}

/// (line, value of the column) of every row.
fn column(reader: RowReader, column: &str) -> Vec<(u64, String)> {
    reader.map(|row| row.unwrap()).map(|row| (row.at.line, text(&row, column))).collect()
}

fn rows(expected: &[(u64, &str)]) -> Vec<(u64, String)> {
    expected.iter().map(|&(line, text)| (line, text.to_owned())).collect()
}

fn message(result: handbert::data::Result<RowReader>) -> String {
    let error = result.unwrap_err();
    assert!(!error.is_row());
    error.to_string()
}

#[test]
fn csv_has_quoted_separators_quotes_and_newlines_and_right_line_numbers() {
    for end in ["\n", "\r\n"] {
        let csv = "id,text\n1,plain\n\n2,\"two\nlines, and a \"\"quote\"\"\"\n3,\n\n\n4,last".replace('\n', end);
        let mut reader = stream(&csv, Some(Format::Csv)).unwrap();
        assert_eq!(reader.columns().unwrap(), ["id", "text"]);
        let two = format!("two{end}lines, and a \"quote\"");
        let expected = rows(&[(2, "plain"), (4, &two), (6, ""), (9, "last")]);
        assert_eq!(column(reader, "text"), expected, "line end {end:?}");
    }
}

#[test]
fn tsv_is_separated_by_tabs_alone() {
    let reader = stream("id\ttext\n1\ta, b\n2\t\"c\td\ne\"\n3\tf\n", Some(Format::Tsv)).unwrap();
    assert_eq!(column(reader, "text"), rows(&[(2, "a, b"), (3, "c\td\ne"), (5, "f")]));
}

#[test]
fn csv_rows_of_the_wrong_length_or_encoding_are_bad_and_the_rest_is_read() {
    let bytes = b"id,text\n1,a\n2,b,extra\n3\n4,caf\xE9\n5,\"open\nstill\"\n6,z\n";
    let mut lines = Vec::new();
    let mut errors = Vec::new();
    for row in stream(bytes, Some(Format::Csv)).unwrap() {
        match row {
            Ok(row) => lines.push(row.at.line),
            Err(error) => {
                assert!(error.is_row());
                errors.push(error.to_string());
            }
        }
    }
    assert_eq!(lines, [2, 6, 8]);
    let advice = "as in the first row; quote fields that hold separators or newlines";
    assert_eq!(errors[0], format!("-:3: 3 fields, expected 2 {advice}"));
    assert_eq!(errors[1], format!("-:4: 1 field, expected 2 {advice}"));
    assert_eq!(errors[2], "-:5: byte 4 of column \"text\" is not valid UTF-8; fix or delete the row");
    assert_eq!(errors.len(), 3);
}

#[test]
fn a_quote_that_is_never_closed_is_told() {
    let last = |csv: &str| stream(csv, Some(Format::Csv)).unwrap().last().unwrap();
    let error = last("id,text\n1,a\n2,\"b\n3,c\n4,d\n").unwrap_err();
    assert!(error.is_row());
    assert!(error.to_string().starts_with("-:3: a quote opened in this row is never closed"), "{error}");
    // Nor does a last line without its end hide it: rows 3 and 4 would be lost without a word.
    let error = last("id,text\n1,a\n2,\"b\n3,c\n4,d").unwrap_err();
    assert!(error.to_string().starts_with("-:3: a quote opened in this row is never closed"), "{error}");
    // Closed ones that end in a newline, with and without one after the quote.
    assert_eq!(text(&last("id,text\n1,\"a\n\"").unwrap(), "text"), "a\n");
    assert_eq!(text(&last("id,text\n1,\"a\n\"\n").unwrap(), "text"), "a\n");
    assert_eq!(text(&last("id,text\n1,\"a\n\"\n2,b").unwrap(), "text"), "b");
}

#[test]
fn csv_headers_must_exist_and_name_each_column_once() {
    assert!(message(stream("", Some(Format::Csv))).contains("first row must name the columns"));
    assert!(message(stream("\n\n", Some(Format::Csv))).contains("first row must name the columns"));
    let twice = message(stream("id,text,id\n1,a,2\n", Some(Format::Csv)));
    assert!(twice.contains("columns 1 and 3 are both named \"id\""), "{twice}");
    assert!(message(stream(b"id,caf\xE9\n1,a\n", Some(Format::Csv))).contains("column 2 is not valid UTF-8"));
    assert_eq!(stream("id,text\n", Some(Format::Csv)).unwrap().count(), 0);
}

#[test]
fn jsonl_keeps_types_skips_blank_lines_and_survives_broken_ones() {
    let bytes =
        b"{\"text\": \"a\", \"n\": 1.5}\n\n  \r\n{\"text\": \"b\"\n[1]\n{\"text\": \"\xFF\"}\n{\"n\": null}\r\n";
    let mut reader = stream(bytes, None).unwrap();
    assert_eq!(reader.format(), Format::Jsonl);
    assert_eq!(reader.columns().unwrap(), ["text", "n"]);
    let all: Vec<_> = reader.collect();
    assert_eq!(all.len(), 5);
    let first = all[0].as_ref().unwrap();
    assert_eq!((first.at.line, &first.fields["n"]), (1, &serde_json::json!(1.5)));
    let errors: Vec<String> = all[1..4].iter().map(|row| row.as_ref().unwrap_err().to_string()).collect();
    assert_eq!(errors[0], "-:4: not a JSON object (EOF while parsing an object, at column 12); fix or delete the line");
    assert!(errors[1].starts_with("-:5: not a JSON object"), "{}", errors[1]);
    assert_eq!(errors[2], "-:6: byte 11 of the line is not valid UTF-8; fix or delete the line");
    let last = all[4].as_ref().unwrap();
    assert_eq!((last.at.line, &last.fields["n"]), (7, &serde_json::Value::Null));
}

#[test]
fn jsonl_files_tell_the_columns_of_their_first_hundred_rows() {
    let files = Files::new();
    let mut jsonl = "{\"text\": \"a\"}\n".repeat(50) + "broken\n{\"label\": \"remote\", \"text\": \"b\"}\n";
    jsonl += &"{\"text\": \"c\"}\n".repeat(100);
    jsonl += "{\"late\": 1, \"text\": \"d\"}\n";
    let path = files.write("p.jsonl", &jsonl);
    let mut reader = Source::open(&path).unwrap();
    assert_eq!(reader.columns().unwrap(), ["text", "label"]);
    let (good, bad): (Vec<_>, Vec<_>) = reader.partition(|row| row.is_ok());
    assert_eq!((good.len(), bad.len()), (152, 1));
    let lines: Vec<u64> = good.into_iter().map(|row| row.unwrap().at.line).collect();
    assert!(lines.iter().copied().eq((1..=50).chain(52..=153)), "rows out of order: {lines:?}");
    assert!(Source::open(&files.write("empty.jsonl", "")).unwrap().columns().unwrap().is_empty());
}

#[test]
fn text_files_have_one_posting_a_line() {
    let mut reader = stream("First.\r\n\n\u{e9}t\u{e9}, last", Some(Format::Txt)).unwrap();
    assert_eq!(reader.columns().unwrap(), ["text"]);
    assert_eq!(column(reader, "text"), rows(&[(1, "First."), (2, ""), (3, "\u{e9}t\u{e9}, last")]));
    let all: Vec<_> = stream(b"a\n\xC3\x28\nb", Some(Format::Txt)).unwrap().collect();
    assert!(all[1].as_ref().unwrap_err().is_row());
    assert_eq!(text(all[2].as_ref().unwrap(), "text"), "b");
}

#[test]
fn very_long_lines_are_read() {
    let long = "word ".repeat(1 << 20);
    for (bytes, format) in [
        (format!("text\n\"{long}\"\nb\n"), Format::Csv),
        (format!("{{\"text\": \"{long}\"}}\n{{\"text\": \"b\"}}\n"), Format::Jsonl),
        (format!("{long}\nb\n"), Format::Txt),
    ] {
        let texts = column(stream(gz(bytes.as_bytes()), Some(format)).unwrap(), "text");
        assert_eq!(texts.iter().map(|(_, text)| text.len()).collect::<Vec<_>>(), [long.len(), 1]);
    }
}

#[test]
fn a_row_without_an_end_is_told_before_it_takes_all_memory() {
    let endless = |start: &'static str, format| {
        let bytes = Cursor::new(start).chain(std::io::repeat(b'x').take(300 << 20));
        Source::read_as(Path::new("-"), bytes, Some(format)).unwrap().last().unwrap().unwrap_err().to_string()
    };
    let text = endless("one\ntwo", Format::Txt);
    assert!(text.starts_with("-: the row that begins on line 2 is longer than 256 MiB"), "{text}");
    let csv = endless("a,b\n1,2\n1,\"oops", Format::Csv);
    assert!(csv.starts_with("-: the row that begins on line 3 is longer than 256 MiB"), "{csv}");
    assert!(csv.contains("a quote"), "{csv}");
}

#[test]
fn a_byte_order_mark_is_no_part_of_the_first_column() {
    let expected = rows(&[(2, "a")]);
    assert_eq!(column(stream("\u{feff}text,id\na,1\n", Some(Format::Csv)).unwrap(), "text"), expected);
    assert_eq!(column(stream("\u{feff}{\"text\": \"a\"}\n", None).unwrap(), "text"), rows(&[(1, "a")]));
    assert_eq!(column(stream(gz("\u{feff}a\n".as_bytes()), Some(Format::Txt)).unwrap(), "text"), rows(&[(1, "a")]));
    assert!(message(stream(b"\xFF\xFEt\0e\0", Some(Format::Csv))).contains("UTF-16"));
}

#[test]
fn compression_is_told_by_the_bytes_and_not_by_the_name() {
    let files = Files::new();
    let plain = b"id,text\n1,a\n2,b\n".as_slice();
    let two_members = [gz(b"id,text\n1,a\n"), gz(b"2,b\n")].concat();
    let two_frames = [zst(b"id,text\n1,a\n"), zst(b"2,b\n")].concat();
    let cases = [
        ("p.csv", plain.to_vec()),
        ("p.csv.gz", gz(plain)),
        ("p.csv.zst", zst(plain)),
        ("misnamed.csv", gz(plain)),
        ("misnamed.csv.gz", zst(plain)),
        ("plain.csv.gz", plain.to_vec()),
        ("members.csv.gz", two_members),
        ("frames.csv.zst", two_frames),
    ];
    for (name, bytes) in cases {
        let reader = Source::open(&files.write(name, bytes)).unwrap();
        assert_eq!(reader.format(), Format::Csv);
        assert_eq!(column(reader, "text"), rows(&[(2, "a"), (3, "b")]), "{name}");
    }
}

#[test]
fn a_stream_cut_short_gives_the_rows_before_the_cut_and_says_so() {
    let files = Files::new();
    // Digits that do not compress away, so that the cut falls into the rows.
    let lines: Vec<String> = (0..20_000u64).map(|i| format!("{i} {}", i.wrapping_mul(0x9E37_79B9_7F4A_7C15))).collect();
    let plain = lines.join("\n") + "\n";
    for (name, bytes) in [("p.txt.gz", gz(plain.as_bytes())), ("p.txt.zst", zst(plain.as_bytes()))] {
        let path = files.write(name, &bytes[..bytes.len() / 2]);
        let mut reader = Source::open(&path).unwrap();
        let mut texts = Vec::new();
        let error = loop {
            match reader.next().expect("the cut must be told") {
                Ok(row) => texts.push(text(&row, "text")),
                Err(error) => break error,
            }
        };
        assert!(reader.next().is_none(), "{name}: nothing follows a fatal error");
        assert!(matches!(error, Error::File { .. }));
        assert!(texts.len() > 2_000, "{name}: only {} rows before the cut", texts.len());
        assert_eq!(texts, lines[..texts.len()]);
        let kind = if name.ends_with("gz") { "gzip" } else { "zstd" };
        let expected = format!("the {kind} data is cut short after {} rows, which were read", texts.len());
        assert!(error.to_string().contains(&expected), "{error}");
    }
}

#[test]
fn every_cut_of_a_small_file_is_told() {
    let csv = b"id,text\n1,first\n2,second\n".as_slice();
    let jsonl = b"{\"text\": \"first\"}\n{\"text\": \"second\"}\n".as_slice();
    for (format, plain) in [(Format::Csv, csv), (Format::Jsonl, jsonl), (Format::Txt, jsonl)] {
        for bytes in [gz(plain), zst(plain)] {
            // Shorter ones are no compressed data at all; they are binary, or two or three odd characters.
            for cut in 4..bytes.len() {
                let told = match stream(&bytes[..cut], Some(format)) {
                    Err(error) => !error.is_row(),
                    Ok(reader) => reader.last().unwrap().is_err_and(|error| !error.is_row()),
                };
                assert!(told, "{format:?} cut at {cut} of {} bytes", bytes.len());
            }
        }
    }
    let files = Files::new();
    assert!(message(Source::open(&files.write("empty.csv.gz", ""))).contains("is empty"));
}

#[test]
fn damage_inside_compressed_data_is_told() {
    let lines: Vec<String> = (0..1000).map(|i| format!("posting {i} of a thousand")).collect();
    let plain = lines.join("\n") + "\n";
    // Both formats carry a checksum; zstd's is optional.
    let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
    encoder.include_checksum(true).unwrap();
    encoder.write_all(plain.as_bytes()).unwrap();
    for bytes in [gz(plain.as_bytes()), encoder.finish().unwrap()] {
        for at in 0..bytes.len() {
            let mut bytes = bytes.clone();
            bytes[at] ^= 0x10;
            // Whatever the damage does, it never panics; where it changes the text, it is told.
            let rows = stream(&bytes, Some(Format::Txt)).and_then(|reader| reader.collect::<Result<Vec<_>, _>>());
            if let Ok(rows) = rows {
                let texts: Vec<String> = rows.iter().map(|row| text(row, "text")).collect();
                assert!(texts == lines, "byte {at}");
            }
        }
    }
}

#[test]
fn standard_input_is_sniffed_compressed_or_not() {
    let cases = [
        ("{\"text\": \"a\"}\n", Format::Jsonl),
        ("id,text\n1,a\n", Format::Csv),
        ("id\ttext\n1\ta\n", Format::Tsv),
        ("text\na\n", Format::Csv),
    ];
    for (plain, format) in cases {
        for bytes in [plain.as_bytes().to_vec(), gz(plain.as_bytes()), zst(plain.as_bytes())] {
            let reader = stream(bytes, None).unwrap();
            assert_eq!(reader.format(), format);
            assert_eq!(column(reader, "text")[0].1, "a");
        }
    }
    let reader = stream("We hire, today. Come by!\nSecond\n", None).unwrap();
    assert_eq!(reader.format(), Format::Txt);
    assert_eq!(column(reader, "text").len(), 2);
    assert_eq!(column(stream("id,text\n1,a\n", Some(Format::Txt)).unwrap(), "text").len(), 2);
}

/// A pipe that gives a byte at a time and fails the test when it is read past its first row.
struct Live(Cursor<Vec<u8>>);

impl Read for Live {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        assert!(self.0.position() < self.0.get_ref().len() as u64, "read past what a live pipe holds");
        self.0.read(&mut into[..1])
    }
}

#[test]
fn a_live_pipe_gives_its_first_row_before_it_has_a_second() {
    let live = |rows: &str| Live(Cursor::new(rows.as_bytes().to_vec()));
    let mut reader = Source::read_as(Path::new("-"), live("{\"text\": \"a\"}\n"), None).unwrap();
    assert_eq!(reader.columns().unwrap(), ["text"]);
    assert_eq!(text(&reader.next().unwrap().unwrap(), "text"), "a");
    let mut reader = Source::read_as(Path::new("-"), live("id,text\n1,a\n"), None).unwrap();
    assert_eq!(text(&reader.next().unwrap().unwrap(), "text"), "a");
}

#[test]
fn what_cannot_be_opened_is_told_with_what_can() {
    let files = Files::new();
    let missing = message(Source::open(&files.0.path().join("missing.csv")));
    assert!(missing.contains("no such file") && missing.contains(".jsonl"), "{missing}");
    let directory = message(Source::open(files.0.path()));
    assert!(directory.contains("is a directory") && directory.contains(".jsonl"), "{directory}");
    let unknown = message(Source::open(&files.write("p.json", "{}")));
    assert!(unknown.contains("extension") && unknown.contains(".jsonl"), "{unknown}");
    assert_eq!(Source::open_as(&files.write("q.json", "{\"text\": \"a\"}"), Some(Format::Jsonl)).unwrap().count(), 1);
    let zip = message(Source::open(&files.write("p.csv", b"PK\x03\x04rest")));
    assert!(zip.contains("zip archive"), "{zip}");
    let parquet = message(Source::open(&files.write("p.jsonl", b"PAR1rest")));
    assert!(parquet.contains("rename it to .parquet"), "{parquet}");
    let array = message(Source::open(&files.write("array.jsonl", "[\n{\"text\": \"a\"}]")));
    assert!(array.contains("jq"), "{array}");
    let jsonl = message(Source::open(&files.write("named.csv", "{\"text\": \"a\"}\n")));
    assert!(jsonl.contains(".jsonl"), "{jsonl}");
}

/// What a CSV or JSONL writer may be given: quotes, separators, newlines, BOMs, any characters.
fn cells() -> impl Strategy<Value = Vec<[String; 3]>> {
    let cell = prop_oneof!["\\PC{0,12}", "[,\"\\n\\r\\t {}\u{feff}a]{0,8}", Just(String::new())];
    prop::collection::vec([cell.clone(), cell.clone(), cell], 1..8)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn csv_gives_back_what_was_written(cells in cells()) {
        let mut writer = csv::WriterBuilder::new().from_writer(Vec::new());
        writer.write_record(["a", "b", "c"]).unwrap();
        for row in &cells {
            writer.write_record(row).unwrap();
        }
        let reader = stream(writer.into_inner().unwrap(), Some(Format::Csv)).unwrap();
        let read: Vec<[String; 3]> =
            reader.map(|row| row.unwrap()).map(|row| ["a", "b", "c"].map(|name| text(&row, name))).collect();
        prop_assert_eq!(read, cells);
    }

    #[test]
    fn jsonl_gives_back_what_was_written(cells in cells()) {
        let line = |row: &[String; 3]| serde_json::json!({"a": row[0], "b": row[1], "c": row[2]}).to_string() + "\n";
        let jsonl: String = cells.iter().map(line).collect();
        let reader = stream(jsonl, Some(Format::Jsonl)).unwrap();
        let read: Vec<[String; 3]> =
            reader.map(|row| row.unwrap()).map(|row| ["a", "b", "c"].map(|name| text(&row, name))).collect();
        prop_assert_eq!(read, cells);
    }

    #[test]
    fn no_bytes_make_a_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), text in "[a,\"\\n\\t{}:1]{0,60}") {
        for bytes in [bytes, text.into_bytes()] {
            for format in [None, Some(Format::Csv), Some(Format::Tsv), Some(Format::Jsonl), Some(Format::Txt)] {
                if let Ok(reader) = stream(&bytes, format) {
                    prop_assert!(reader.count() <= bytes.len());
                }
            }
        }
    }
}
