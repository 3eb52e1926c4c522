//! Standard input and output: pipes, early ends, endless inputs.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::Stdio;

use super::support::{arg, command, handbert, handbert_reading, scratch, tiny};

fn postings() -> String {
    std::fs::read_to_string(&tiny().postings).unwrap()
}

#[test]
fn from_stdin_to_stdout_as_from_file_to_file() {
    let t = tiny();
    let dir = scratch("stdin");
    let out = dir.join("out.jsonl");
    handbert(["predict", arg(&t.postings), "--model", arg(&t.classifier), "--out", arg(&out)]).exits(0);
    let run = handbert_reading(postings().as_bytes(), ["predict", "-", "--model", arg(&t.classifier), "--out", "-"]);
    assert!(run.exits(0).out == std::fs::read_to_string(&out).unwrap(), "the rows differ");
    let csv = handbert_reading(
        b"text,id\n\"two\nlines\",7\n",
        ["predict", "-", "--model", arg(&t.classifier), "--out", "-", "--out-format", "csv"],
    );
    assert!(csv.exits(0).out.starts_with("text,id,label,score\n\"two\nlines\",7,"));
}

#[test]
fn the_summary_keeps_off_stdout_when_the_rows_are_there() {
    let model = arg(&tiny().classifier);
    let run = handbert_reading(b"a posting\n", ["predict", "-", "--model", model, "--out", "-", "--json"]).exits(0);
    assert_eq!(run.out.lines().count(), 1);
    assert!(run.out.contains("\"label\""), "{}", run.out);
    assert!(run.err.contains("\"tokens_per_second\""), "{}", run.err);
}

#[test]
fn rows_come_out_while_the_input_is_still_open() {
    let mut child = command()
        .args(["predict", "-", "--model", arg(&tiny().classifier), "--out", "-", "--batch-tokens", "512"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    // More than a block, so that the first one is on its way; then the input stays open.
    let text = postings();
    for _ in 0..5 {
        stdin.write_all(text.as_bytes()).unwrap();
    }
    stdin.flush().unwrap();
    let mut first = String::new();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    stdout.read_line(&mut first).unwrap();
    assert!(first.contains("predicted_label"), "{first}");
    drop(stdin);
    let rest = stdout.lines().count();
    assert_eq!(1 + rest, 5 * text.lines().count());
    assert!(child.wait().unwrap().success());
}

#[test]
fn a_pipe_under_a_files_name_is_read_once_too() {
    let t = tiny();
    // As in `predict a.jsonl <(zcat b.jsonl.gz)`: looking at its columns first would eat its first rows.
    let predict = ["predict", arg(&t.postings), "/dev/stdin", "--model", arg(&t.classifier), "--out", "-"];
    let run = handbert_reading(postings().as_bytes(), predict).exits(0);
    assert_eq!(run.out.lines().count(), 2 * postings().lines().count());
    let dir = scratch("pipe");
    let set = dir.join("set");
    let tokenize = ["tokenize", "/dev/stdin", "--train-vocab", "300", "--out", arg(&set)];
    handbert_reading(postings().as_bytes(), tokenize).exits(2).says(&["/dev/stdin", "read only once"]);
    assert!(!set.exists());
}

#[test]
fn a_reader_that_has_seen_enough_is_no_error() {
    for args in [
        vec!["synth", "--rows", "100000", "--out", "-"],
        vec!["predict", arg(&tiny().postings), "--model", arg(&tiny().classifier), "--out", "-"],
    ] {
        let mut child = command().args(&args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut stdout = child.stdout.take().unwrap();
        let mut first = [0; 16];
        stdout.read_exact(&mut first).unwrap();
        drop(stdout);
        let output = child.wait_with_output().unwrap();
        let err = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{args:?}: {err}");
        assert!(!err.contains("panicked") && !err.contains("roken pipe"), "{args:?}: {err}");
    }
}
