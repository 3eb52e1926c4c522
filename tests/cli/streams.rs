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

#[test]
fn nobody_need_listen_to_what_a_command_says() {
    let t = tiny();
    let dir = scratch("closed-stderr");
    let run = dir.join("run");
    let train = ["train", "mlm", "--model", arg(&t.mlm), "--data", arg(&t.tokens), "--out", arg(&run)];
    let short = ["--max-steps", "3", "--logging-steps", "1", "--batch-tokens", "512", "--max-length", "128"];
    for (args, code) in [
        (train.into_iter().chain(short).collect::<Vec<_>>(), 0),
        (vec!["predict", arg(&t.postings), "--model", arg(&t.classifier), "--out", "-"], 0),
        (vec!["predict", "missing.txt", "--model", arg(&t.classifier), "--out", "-"], 2),
    ] {
        let mut child = command().args(&args).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stderr.take());
        assert_eq!(child.wait().unwrap().code(), Some(code), "{args:?}");
    }
    assert!(run.join("model.safetensors").exists());
}

#[test]
fn the_first_row_of_a_stream_need_not_have_every_column() {
    let dir = scratch("first-row");
    let set = dir.join("set");
    let tokenize = |input: &str, more: &[&str]| {
        let args = ["tokenize", "-", "--tokenizer", arg(&tiny().tokens), "--out", arg(&set), "--overwrite"];
        handbert_reading(input.as_bytes(), args.iter().chain(more).chain(&["--json"]))
    };
    let rows = "{\"text\":\"one\"}\n{\"text\":\"two\",\"label\":\"remote\",\"firm\":\"x\"}\n";
    let json = tokenize(rows, &["--label-column", "label", "--group-column", "firm"]).exits(0).json();
    assert_eq!((&json["rows"], &json["unlabelled"]), (&2.into(), &1.into()), "{json}");
    tokenize(rows, &["--text-columns", "texts"]).exits(2).says(&["none of the 2 rows", "-:1", "texts"]);
}
