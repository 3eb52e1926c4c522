//! What a model remembers of its training: the split, the columns, how long postings were cut.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::support::{Run, arg, handbert, rows, scratch, tiny};

/// A token set of the tiny postings, whose rows stay together by company; a model trained on it.
fn trained_by_company(dir: &Path) -> (PathBuf, PathBuf) {
    let (set, run) = (dir.join("set"), dir.join("run"));
    tokenize(&set, &["--group-column", "company"]).exits(0);
    let train = ["train", "mlm", "--config", arg(&tiny().config), "--data", arg(&set), "--out", arg(&run)];
    let short = ["--max-steps", "1", "--batch-tokens", "512", "--max-length", "128"];
    handbert(train.into_iter().chain(short).chain(["--validation-split-percentage", "20"])).exits(0);
    (set, run)
}

fn tokenize(set: &Path, more: &[&str]) -> Run {
    let t = tiny();
    let tokenize = ["tokenize", arg(&t.postings), "--out", arg(set), "--tokenizer", arg(&t.tokens)];
    handbert(tokenize.iter().chain(&["--text-columns", "title,text", "--label-column", "label"]).chain(more))
}

fn eval(model: &Path, data: &Path, more: &[&str]) -> Run {
    handbert(["eval", "mlm", "--model", arg(model), "--data", arg(data), "--json"].iter().chain(more))
}

/// The figures that say which postings were measured on, and how.
fn measured(run: Run) -> [Value; 3] {
    let json = run.exits(0).json();
    ["loss", "masked_tokens", "accuracy"].map(|key| {
        assert!(!json[key].is_null(), "no {key} in {json}");
        json[key].clone()
    })
}

#[test]
fn files_are_split_as_the_token_set_was_that_a_model_was_trained_on() {
    let dir = scratch("split-of-files");
    let (set, run) = trained_by_company(&dir);
    let held = measured(eval(&run, &set, &[]));
    assert_eq!(measured(eval(&run, &tiny().postings, &[])), held);
    assert_ne!(measured(eval(&run, &set, &["--subset", "train"])), held);
}

#[test]
fn a_token_set_that_is_split_otherwise_holds_out_what_was_trained_on() {
    let dir = scratch("split-otherwise");
    let (_, run) = trained_by_company(&dir);
    let other = dir.join("by-text");
    tokenize(&other, &[]).exits(0);
    eval(&run, &other, &[]).exits(2).says(&["by-text", "--group-column company", "--subset all"]);
    eval(&run, &other, &["--subset", "all"]).exits(0);
    // Of a model that was not trained here nothing is known.
    let bare = dir.join("bare");
    super::support::copy_dir(&run, &bare);
    std::fs::remove_file(bare.join("run.toml")).expect("there it was");
    eval(&bare, &other, &[]).exits(0);
}

#[test]
fn a_checkpoint_labels_as_its_run_does() {
    let t = tiny();
    let dir = scratch("checkpoint-labels");
    let run = dir.join("run");
    let train = ["train", "classifier", "--model", arg(&t.mlm), "--data", arg(&t.postings), "--out", arg(&run)];
    let how = ["--text-columns", "title,company,text", "--long", "windows", "--max-length", "64", "--max-steps", "2"];
    // Not the label that counts as positive where nothing is said.
    handbert(train.into_iter().chain(how).chain(["--positive-label", "in_person", "--save-steps", "2"])).exits(0);
    let checkpoint = run.join("checkpoint-2");
    let labels = |model: &Path, name: &str| {
        let out = dir.join(name);
        let predict = ["predict", arg(&t.postings), "--model", arg(model), "--out", arg(&out), "--threshold", "0.4"];
        let json = handbert(predict.iter().chain(&["--json"])).exits(0).json();
        assert!(json["windowed"].as_u64() > Some(0), "{json}");
        rows(&out)
    };
    assert!(labels(&run, "run.jsonl") == labels(&checkpoint, "checkpoint.jsonl"), "the rows differ");
}
