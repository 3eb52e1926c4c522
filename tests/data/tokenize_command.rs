//! `handbert tokenize` and `handbert inspect`, as a shell sees them.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

const PROGRAM: &str = env!("CARGO_BIN_EXE_handbert");

fn fixture() -> String {
    format!("{}/tests/fixtures/tokenizer/uncased", env!("CARGO_MANIFEST_DIR"))
}

/// The program, whatever the surroundings ask of its log.
fn program() -> Command {
    let mut command = Command::new(PROGRAM);
    command.env_remove("RUST_LOG");
    command
}

fn run(dir: &Path, args: &[&str]) -> Output {
    program().args(args).current_dir(dir).output().unwrap()
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:?}"))
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

fn entries(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

const CSV: &str = "text,label,company\nremote nurse,remote,A\n\"work, onsite\",in_person,B\n,remote,A\nteach,maybe,C\n";

fn with_postings() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("postings.csv"), CSV).unwrap();
    dir
}

#[test]
fn every_figure_is_in_the_json_and_the_set_can_be_inspected() {
    let dir = with_postings();
    let fixture = fixture();
    let args = [
        "tokenize",
        "postings.csv",
        "--out",
        "set",
        "--tokenizer",
        &fixture,
        "--label-column",
        "label",
        "--group-column",
        "company",
    ];
    let text = run(dir.path(), &args);
    assert_eq!(code(&text), 0, "{text:?}");
    let shown = String::from_utf8(text.stdout).unwrap();
    assert!(shown.contains("set: 4 postings") && shown.contains("in_person 1, maybe 1, remote 2, none 0"), "{shown}");

    let again = run(dir.path(), &[&args[..], &["--json", "--overwrite", "--labels", "remote,in_person"]].concat());
    assert_eq!(code(&again), 1, "{again:?}");
    assert!(stderr(&again).contains("postings.csv:5: label \"maybe\" is not one of [remote, in_person]"), "{again:?}");
    let figures = json(&again);
    assert_eq!((&figures["rows"], &figures["bad_rows"], &figures["empty"]), (&3.into(), &1.into(), &1.into()));
    assert_eq!(figures["labels"], serde_json::json!({"remote": 2, "in_person": 1}));
    assert_eq!(figures["out"], "set");
    for field in ["tokens", "tokens_per_row", "seconds", "tokens_per_second", "text_bytes"] {
        assert!(figures[field].as_f64().unwrap() > 0.0, "{field}");
    }

    let inspected = json(&run(dir.path(), &["inspect", "set", "--verify", "--json"]));
    assert_eq!((&inspected["kind"], &inspected["verified"]), (&"token set".into(), &true.into()));
    assert_eq!(inspected["tokens"], figures["tokens"]);
    assert_eq!(inspected["first"], "remote nurse");
    assert_eq!(inspected["group_column"], "company");
}

#[test]
fn a_vocabulary_is_learnt_and_can_be_used_again() {
    let dir = with_postings();
    let postings: String =
        (0..300).map(|i| format!("{{\"text\": \"remote work for nurse number {}\"}}\n", i % 40)).collect();
    fs::write(dir.path().join("many.jsonl"), postings).unwrap();
    let first = run(dir.path(), &["tokenize", "many.jsonl", "--out", "a", "--train-vocab", "120", "--json"]);
    assert_eq!(json(&first)["rows"], 300, "{first:?}");
    // The token set is itself a directory with the files of a tokenizer.
    let second =
        run(dir.path(), &["tokenize", "many.jsonl", "--out", "b", "--tokenizer", "a", "--json", "--threads", "1"]);
    assert_eq!(code(&second), 0, "{second:?}");
    for name in entries(&dir.path().join("a")) {
        let read = |set: &str| fs::read(dir.path().join(set).join(&name)).unwrap();
        assert_eq!(read("a"), read("b"), "{name}");
    }
}

#[test]
fn standard_input_is_read_once() {
    let dir = with_postings();
    let piped = |args: &[&str]| {
        let mut child = program()
            .args(args)
            .current_dir(dir.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // A program that refuses does not read.
        let _ = child.stdin.take().unwrap().write_all(CSV.as_bytes());
        child.wait_with_output().unwrap()
    };
    let good = piped(&["tokenize", "-", "--out", "set", "--tokenizer", &fixture(), "--limit", "2", "--json"]);
    assert_eq!(json(&good)["rows"], 2, "{good:?}");
    let bad = piped(&["tokenize", "-", "--out", "other", "--train-vocab", "200"]);
    assert_eq!(code(&bad), 2);
    assert!(stderr(&bad).contains("standard input can be read only once"), "{bad:?}");
    assert_eq!(entries(dir.path()), ["postings.csv", "set"]);
}

#[test]
fn what_cannot_be_done_says_why_and_leaves_nothing() {
    let dir = with_postings();
    let fixture = fixture();
    let tokenize = |more: &[&str]| run(dir.path(), &[&["tokenize", "--tokenizer", &fixture][..], more].concat());
    assert_eq!(code(&tokenize(&["postings.csv", "--out", "set"])), 0);
    let cases: [(&[&str], &str); 7] = [
        (&["postings.csv", "--out", "set"], "a token set is here already; replace it with --overwrite"),
        (&["postings.csv", "--out", "."], "neither empty nor a token set"),
        (&["missing.csv", "--out", "new"], "missing.csv"),
        (&["postings.csv", "--out", "new", "--text-columns", "body"], "no column \"body\""),
        (&["postings.csv", "--out", "new", "--train-vocab", "100"], "cannot be used with"),
        (&["postings.csv", "--out", "new", "--labels", "a,b"], "--label-column"),
        (&["--out", "new"], "FILES"),
    ];
    for (args, wanted) in cases {
        let output = tokenize(args);
        assert_eq!(code(&output), 2, "{args:?}");
        assert!(stderr(&output).contains(wanted), "{args:?}: {}", stderr(&output));
        assert_eq!(entries(dir.path()), ["postings.csv", "set"], "{args:?}");
    }
    let neither = run(dir.path(), &["inspect", "."]);
    assert_eq!(code(&neither), 2);
    assert!(stderr(&neither).contains("neither a token set (it has no meta.json) nor a model"), "{neither:?}");
    let bytes = fs::read(dir.path().join("set/tokens-00000.bin")).unwrap();
    fs::write(dir.path().join("set/tokens-00000.bin"), bytes.iter().map(|b| b ^ 1).collect::<Vec<_>>()).unwrap();
    assert_eq!(code(&run(dir.path(), &["inspect", "set"])), 0, "the damage is in no length");
    let damaged = run(dir.path(), &["inspect", "set", "--verify"]);
    assert_eq!(code(&damaged), 2);
    let why = stderr(&damaged);
    assert!(why.contains("set/tokens-00000.bin: its checksum is") && why.contains("handbert tokenize"), "{why}");
}

/// A limit on the size of files stands in for a disk that is full: the write fails halfway.
#[test]
fn a_disk_that_is_full_is_named_and_the_earlier_set_survives() {
    let dir = with_postings();
    let tokenized = run(dir.path(), &["tokenize", "postings.csv", "--out", "set", "--tokenizer", &fixture()]);
    assert_eq!(code(&tokenized), 0);
    let before = fs::read(dir.path().join("set/meta.json")).unwrap();
    let many: String = (0..40_000).map(|i| format!("remote work for nurses number {i}\n")).collect();
    fs::write(dir.path().join("many.txt"), many).unwrap();
    let script = format!(
        "trap '' XFSZ; ulimit -f 300; exec {PROGRAM} tokenize many.txt --out set --overwrite --tokenizer {}",
        fixture()
    );
    let output =
        Command::new("sh").args(["-c", &script]).current_dir(dir.path()).env_remove("RUST_LOG").output().unwrap();
    assert_eq!(code(&output), 2, "{output:?}");
    let why = stderr(&output);
    assert!(why.contains(".set.partial-") && why.contains("-00000.bin") && why.contains("large"), "{why}");
    assert_eq!(entries(dir.path()), ["many.txt", "postings.csv", "set"]);
    assert_eq!(fs::read(dir.path().join("set/meta.json")).unwrap(), before);
    assert_eq!(code(&run(dir.path(), &["inspect", "set", "--verify"])), 0);
}
