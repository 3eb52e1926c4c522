//! Rows that cannot be used: passed over, counted, named by file and line; exit code 1.

use std::path::{Path, PathBuf};

use super::support::{Run, arg, handbert, rows, scratch, tiny};

fn write(dir: &Path, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
    let path = dir.join(name);
    std::fs::write(&path, bytes).unwrap();
    path
}

fn predict(input: &Path, out: &Path) -> Run {
    handbert(["predict", arg(input), "--model", arg(&tiny().classifier), "--out", arg(out), "--json"])
}

#[test]
fn an_unreadable_row() {
    let dir = scratch("unreadable");
    let input = write(&dir, "in.jsonl", "{\"text\":\"one\"}\n{\"text\": oops\n{\"text\":\"three\"}\n{\"other\":1}\n");
    let out = dir.join("out.jsonl");
    let run = predict(&input, &out).exits(1).says(&["in.jsonl:2", "in.jsonl:4"]);
    assert_eq!((run.json()["rows"].as_u64(), run.json()["bad_rows"].as_u64()), (Some(2), Some(2)));
    assert_eq!(rows(&out).iter().map(|r| r["text"].as_str().unwrap()).collect::<Vec<_>>(), ["one", "three"]);
    let set = dir.join("set");
    let tokenize = ["tokenize", arg(&input), "--tokenizer", arg(&tiny().tokens), "--out", arg(&set)];
    handbert(tokenize).exits(1).says(&["in.jsonl:2"]);
}

#[test]
fn a_row_of_the_wrong_length() {
    let dir = scratch("short-row");
    let input = write(&dir, "in.csv", "id,text\n1,one\n2\n3,three,3\n4,four\n");
    let run = predict(&input, &dir.join("out.csv")).exits(1).says(&["in.csv:3", "in.csv:4"]);
    assert_eq!(run.json()["rows"], 2);
}

#[test]
fn invalid_utf8() {
    let dir = scratch("utf8");
    for (name, text) in
        [("in.csv", &b"text\nfine\nbad \xff\xfe\nfine too\n"[..]), ("in.txt", b"fine\nbad \xff\nfine too\n")]
    {
        let input = write(&dir, name, text);
        let line = if name == "in.csv" { "in.csv:3" } else { "in.txt:2" };
        let run = predict(&input, &dir.join(format!("{name}.jsonl"))).exits(1).says(&[line, "UTF-8"]);
        assert_eq!((run.json()["rows"].as_u64(), run.json()["bad_rows"].as_u64()), (Some(2), Some(1)));
    }
}

#[test]
fn only_the_first_five_are_named() {
    let dir = scratch("many-bad");
    let text: String = (0..40).map(|i| if i % 2 == 0 { "{\"text\":\"x\"}\n" } else { "nonsense\n" }).collect();
    let run = predict(&write(&dir, "in.jsonl", text), &dir.join("out.jsonl")).exits(1);
    assert_eq!(run.json()["bad_rows"], 20);
    assert_eq!(run.err.matches("in.jsonl:").count(), 5, "{}", run.err);
}

#[test]
fn a_label_not_seen_in_training() {
    let dir = scratch("label");
    let input = write(&dir, "in.csv", "title,text,label\na,b,remote\na,c,maybe\nd,e,in_person\n");
    let args = ["eval", "classifier", "--model", arg(&tiny().classifier), "--data", arg(&input)];
    let run = handbert(args.into_iter().chain(["--subset", "all"]));
    run.exits(1).says(&["in.csv:3", "maybe", "in_person", "remote"]);
    let set = dir.join("set");
    let tokenize = ["tokenize", arg(&input), "--tokenizer", arg(&tiny().tokens), "--out", arg(&set)];
    let labels = ["--label-column", "label", "--labels", "in_person,remote"];
    handbert(tokenize.into_iter().chain(labels)).exits(1).says(&["in.csv:3", "maybe"]);
}

#[test]
fn a_row_that_already_has_the_predictions_name() {
    let dir = scratch("clash");
    let mut text = "{\"text\":\"x\"}\n".repeat(150);
    text += "{\"text\":\"y\",\"label\":\"kept\"}\n";
    let run = predict(&write(&dir, "in.jsonl", &text), &dir.join("out.jsonl")).exits(1);
    let run = run.says(&["in.jsonl:151", "\"label\"", "--prefix"]);
    assert_eq!(run.json()["rows"], 150);
}

#[test]
fn when_all_rows_are_bad_nothing_is_done() {
    let dir = scratch("all-bad");
    let input = write(&dir, "in.jsonl", "{\n\"text\": \"pretty-printed\"\n}\n");
    let (out, set) = (dir.join("out.jsonl"), dir.join("set"));
    let says = ["none of the 3 rows", "in.jsonl:1", "not a JSON object"];
    predict(&input, &out).exits(2).says(&says);
    handbert(["tokenize", arg(&input), "--tokenizer", arg(&tiny().tokens), "--out", arg(&set)]).exits(2).says(&says);
    assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 1, "nothing is left");
}

#[test]
fn a_file_without_a_good_row_does_not_hide_the_columns_of_the_next() {
    let dir = scratch("no-columns");
    let empty = write(&dir, "empty.jsonl", "");
    let good = write(&dir, "good.jsonl", "{\"description\":\"one\"}\n");
    let set = dir.join("set");
    let tokenize =
        ["tokenize", arg(&empty), arg(&good), "--tokenizer", arg(&tiny().tokens), "--out", arg(&set), "--json"];
    let json = handbert(tokenize).exits(0).json();
    assert_eq!((&json["rows"], &json["text_columns"]), (&1.into(), &serde_json::json!(["description"])), "{json}");
}
