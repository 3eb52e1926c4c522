//! Writing invented postings, by the library and by the command.

use std::ops::ControlFlow;
use std::path::Path;
use std::process::{Command, Output};

use handbert::data::Row;
use handbert::data::source::{Compression, Format, Source};
use handbert::data::synth::file::{Job, write_file};
use handbert::data::synth::row;

fn synth(directory: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_handbert"));
    command.current_dir(directory).env_remove("RUST_LOG").arg("synth").args(arguments).output().unwrap()
}

fn read(path: &Path) -> Vec<Row> {
    Source::open(path).unwrap().map(|row| row.unwrap()).collect()
}

fn names(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn every_format_holds_the_same_rows() {
    let directory = tempfile::tempdir().unwrap();
    for name in ["p.jsonl", "p.csv", "p.tsv", "p.jsonl.gz", "p.csv.zst"] {
        // More than one block of rows, the last one not full.
        let output = synth(directory.path(), &["--rows", "2500", "--out", name, "--seed", "5", "--json"]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let path = directory.path().join(name);
        let said: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!((&said["rows"], &said["out"]), (&2500.into(), &name.into()));
        assert_eq!(said["bytes"], std::fs::metadata(&path).unwrap().len());
        let rows = read(&path);
        assert_eq!(rows.len(), 2500);
        for (index, found) in rows.iter().enumerate() {
            let expected = row(5, index as u64);
            let columns: Vec<&str> = found.fields.keys().map(String::as_str).collect();
            assert_eq!(columns, ["id", "title", "company", "location", "text", "label"]);
            assert_eq!(found.fields["text"], expected.text, "{name}, row {index}");
            assert_eq!(found.fields["label"], expected.label);
        }
    }
    assert_eq!(names(directory.path()).len(), 5, "a temporary file was left");
}

#[test]
fn the_number_of_threads_does_not_change_a_byte() {
    let directory = tempfile::tempdir().unwrap();
    for (name, threads) in [("one.csv.gz", "1"), ("three.csv.gz", "3")] {
        assert!(synth(directory.path(), &["--rows", "5000", "--out", name, "--threads", threads]).status.success());
    }
    let bytes = |name: &str| std::fs::read(directory.path().join(name)).unwrap();
    assert_eq!(bytes("one.csv.gz"), bytes("three.csv.gz"));
}

#[test]
fn standard_output_gets_the_rows_and_nothing_else() {
    let directory = tempfile::tempdir().unwrap();
    let output = synth(directory.path(), &["--rows", "3", "--out", "-"]);
    assert_eq!(String::from_utf8(output.stdout).unwrap().lines().count(), 3);
    let output = synth(directory.path(), &["--rows", "0", "--out", "-", "--format", "csv"]);
    assert_eq!(output.stdout, b"id,title,company,location,text,label\n");
}

#[test]
fn what_cannot_be_written_is_refused_before_the_work() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("there.csv"), "mine").unwrap();
    let refused = |arguments: &[&str], expected: &str| {
        let output = synth(directory.path(), &[&["--rows", "10"], arguments].concat());
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains(expected), "{said}");
    };
    refused(&["--out", "there.csv"], "replace it with --overwrite");
    refused(&["--out", "p.parquet"], "name the file .jsonl, .csv or .tsv");
    refused(&["--out", "p.json"], "say --format");
    refused(&["--out", "p.csv", "--format", "txt"], "jsonl, csv or tsv");
    refused(&["--out", "missing/p.csv"], "there is no such directory");
    refused(&["--out", "."], "is a directory");
    refused(&["--out", "-", "--json"], "both want standard output");
    #[cfg(unix)]
    refused(&["--out", "/dev/null", "--format", "csv"], "is a pipe or a device");
    assert_eq!(std::fs::read(directory.path().join("there.csv")).unwrap(), b"mine");
    assert!(synth(directory.path(), &["--rows", "10", "--out", "there.csv", "--overwrite"]).status.success());
    assert_eq!(read(&directory.path().join("there.csv")).len(), 10);
    assert_eq!(names(directory.path()), ["there.csv"]);
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_told_once() {
    let directory = tempfile::tempdir().unwrap();
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_handbert"));
    let output =
        command.current_dir(directory.path()).args(["synth", "--rows", "10", "--out", "-"]).stdout(full).output();
    let output = output.unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert_eq!(said.matches("No space left").count(), 1, "{said}");
}

#[test]
fn work_that_is_stopped_leaves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let job = Job { rows: u64::MAX, seed: 1, format: Format::Jsonl, compression: Compression::None };
    let path = directory.path().join("p.jsonl");
    let error = write_file(&path, &job, &mut |_| ControlFlow::Break(())).unwrap_err();
    assert!(error.to_string().contains("stopped after"), "{error}");
    assert!(names(directory.path()).is_empty());
}
