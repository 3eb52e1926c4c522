//! Inputs and outputs that cannot be used: exit code 2, and nothing already written is lost.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::skip::skipped;
use super::support::{Run, arg, command, copy_dir, flip_a_bit, handbert, rows, scratch, tiny};

fn predict(input: &Path, out: &Path, more: &[&str]) -> Run {
    let args = ["predict", arg(input), "--model", arg(&tiny().classifier), "--out", arg(out)];
    handbert(args.iter().chain(more))
}

/// A .gz of the tiny run's postings, many times over, cut in its middle.
fn truncated_gz(dir: &Path) -> PathBuf {
    let text = std::fs::read(&tiny().postings).unwrap();
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    for _ in 0..8 {
        gz.write_all(&text).unwrap();
    }
    let bytes = gz.finish().unwrap();
    let path = dir.join("cut.jsonl.gz");
    std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    path
}

#[test]
fn a_missing_file_and_a_missing_column() {
    let dir = scratch("missing");
    let out = dir.join("out.jsonl");
    predict(&dir.join("no.csv"), &out, &[]).exits(2).says(&["no.csv"]);
    let run = predict(&tiny().postings, &out, &["--text-columns", "nope"]);
    run.exits(2).says(&["postings.jsonl", "nope", "company"]);
    let set = dir.join("set");
    let tokenize = ["tokenize", arg(&tiny().postings), "--train-vocab", "600", "--out", arg(&set)];
    handbert(tokenize.into_iter().chain(["--label-column", "nope"])).exits(2).says(&["postings.jsonl", "nope"]);
    assert!(!set.exists() && !out.exists());
    predict(&dir, &out, &[]).exits(2);
    let odd = dir.join("in.docx");
    std::fs::write(&odd, "x").unwrap();
    predict(&odd, &out, &[]).exits(2).says(&["in.docx", ".csv"]);
}

#[test]
fn a_truncated_gz_keeps_what_was_labelled() {
    let dir = scratch("gz");
    let (input, out) = (truncated_gz(&dir), dir.join("out.jsonl"));
    let partial = dir.join("out.jsonl.partial");
    predict(&input, &out, &["--batch-tokens", "1024"]).exits(2).says(&["cut.jsonl.gz", "out.jsonl.partial"]);
    assert!(!out.exists());
    let kept = rows(&partial);
    assert!(kept.len() > 240 && kept.iter().all(|r| r["score"].is_number()), "{} rows", kept.len());
    // The next run does not write over it unasked.
    predict(&input, &out, &[]).exits(2).says(&["out.jsonl.partial", "--overwrite"]);
    assert_eq!(rows(&partial).len(), kept.len());
    let set = dir.join("set");
    let tokenize = ["tokenize", arg(&input), "--tokenizer", arg(&tiny().tokens), "--out", arg(&set)];
    handbert(tokenize).exits(2).says(&["cut.jsonl.gz"]);
    assert!(!set.exists());
}

#[test]
fn a_wrong_vocabulary_for_a_token_set() {
    let t = tiny();
    let dir = scratch("vocabulary");
    let (other, set) = (dir.join("other"), dir.join("set"));
    let tokenize = ["tokenize", arg(&t.postings), "--out"];
    handbert(tokenize.into_iter().chain([arg(&other), "--train-vocab", "400"])).exits(0);
    handbert(tokenize.into_iter().chain([arg(&set), "--tokenizer", arg(&other), "--limit", "30"])).exits(0);
    let data = ["--data", arg(&set)];
    for task in [vec!["eval", "mlm", "--model", arg(&t.mlm)], vec!["train", "mlm", "--model", arg(&t.mlm)]] {
        let mut args = task.clone();
        let out = dir.join("run");
        if task[0] == "train" {
            args.extend(["--out", arg(&out)]);
        }
        handbert(args.into_iter().chain(data)).exits(2).says(&["vocabulary"]);
    }
    // Tokens swapped for another vocabulary's under the same meta.json.
    let mixed = dir.join("mixed");
    copy_dir(&t.tokens, &mixed);
    std::fs::copy(other.join("tokenizer.json"), mixed.join("tokenizer.json")).unwrap();
    handbert(["eval", "mlm", "--model", arg(&t.mlm), "--data", arg(&mixed)]).exits(2).says(&["tokenizer"]);
}

#[test]
fn a_flipped_byte_in_a_token_set() {
    let dir = scratch("flipped-set");
    for name in ["tokens-00000.bin", "offsets-00000.bin", "labels-00000.bin", "groups-00000.bin"] {
        let set = dir.join(name);
        copy_dir(&tiny().tokens, &set);
        flip_a_bit(&set.join(name));
        handbert(["inspect", arg(&set), "--verify"]).exits(2).says(&[name]);
    }
    let set = dir.join("cut");
    copy_dir(&tiny().tokens, &set);
    let tokens = set.join("tokens-00000.bin");
    let bytes = std::fs::read(&tokens).unwrap();
    std::fs::write(&tokens, &bytes[..bytes.len() - 2]).unwrap();
    let run = handbert(["eval", "mlm", "--model", arg(&tiny().mlm), "--data", arg(&set)]);
    run.exits(2).says(&["tokens-00000.bin"]);
}

#[test]
fn a_full_disk() {
    let full = Path::new("/dev/full");
    if !full.exists() {
        return skipped("no /dev/full here");
    }
    predict(&tiny().postings, full, &[]).exits(2).says(&["/dev/full", "No space left"]);
    let stdout = || std::fs::OpenOptions::new().write(true).open(full).unwrap();
    for args in [
        vec!["synth", "--rows", "5000", "--out", "-"],
        vec!["predict", arg(&tiny().postings), "--model", arg(&tiny().classifier), "--out", "-"],
        vec!["inspect", arg(&tiny().tokens)],
    ] {
        let output = command().args(&args).stdout(stdout()).output().unwrap();
        let err = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {err}");
        assert!(err.contains("No space left") && !err.contains("panicked"), "{args:?}: {err}");
    }
}

/// A file system of one megabyte; `None` where this user may not mount one.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(dir: PathBuf) -> Option<Self> {
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"]).arg(&dir).output();
        mounted.is_ok_and(|o| o.status.success()).then_some(SmallDisk(dir))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).output();
    }
}

#[test]
fn a_disk_that_fills_up_on_the_way() {
    let dir = scratch("small-disk");
    let disk = dir.join("disk");
    std::fs::create_dir(&disk).unwrap();
    let Some(disk) = SmallDisk::mount(disk) else {
        return skipped("no right to mount a small file system");
    };
    let t = tiny();
    let big = dir.join("big.jsonl");
    handbert(["synth", "--rows", "1500", "--out", arg(&big)]).exits(0);
    let out = disk.0.join("out.jsonl");
    predict(&big, &out, &[]).exits(2).says(&["out.jsonl", "No space left", "out.jsonl.partial"]);
    assert!(!out.exists());
    let partial = disk.0.join("out.jsonl.partial");
    assert!(std::fs::metadata(&partial).unwrap().len() > 500_000, "what fitted is kept");
    std::fs::remove_file(&partial).unwrap();

    // So few rows that the disk is asked only when all of them are labelled.
    let few = dir.join("few.txt");
    std::fs::write(&few, "one\ntwo\n").unwrap();
    let rest = disk.0.join("rest");
    std::fs::write(&rest, vec![0u8; 2 << 20]).expect_err("no room");
    predict(&few, &out, &[]).exits(2).says(&["No space left", "2 rows", "out.jsonl.partial"]);
    for file in [rest, partial] {
        std::fs::remove_file(file).unwrap();
    }

    let set = disk.0.join("set");
    let ballast = disk.0.join("ballast");
    std::fs::write(&ballast, vec![0u8; 900_000]).unwrap();
    handbert(["tokenize", arg(&big), "--tokenizer", arg(&t.tokens), "--out", arg(&set)])
        .exits(2)
        .says(&["No space left"]);
    assert!(!set.exists());
    let run = disk.0.join("run");
    let train = ["train", "mlm", "--model", arg(&t.mlm), "--data", arg(&t.tokens), "--out", arg(&run)];
    let short = ["--max-steps", "1", "--batch-tokens", "256", "--max-length", "128"];
    handbert(train.into_iter().chain(short)).exits(2).says(&["No space left"]);
    handbert(["synth", "--rows", "5000", "--out", arg(&disk.0.join("s.jsonl"))]).exits(2).says(&["No space left"]);
    assert!(!disk.0.join("s.jsonl").exists());
}

#[test]
fn an_output_directory_that_is_not_empty() {
    let t = tiny();
    let dir = scratch("not-empty");
    let precious = dir.join("precious.txt");
    std::fs::write(&precious, "mine").unwrap();
    let train = ["train", "mlm", "--model", arg(&t.mlm), "--data", arg(&t.tokens), "--out", arg(&dir)];
    handbert(train).exits(2).says(&["not empty"]);
    handbert(train.into_iter().chain(["--overwrite"])).exits(2).says(&["precious.txt"]);
    handbert(["tokenize", arg(&t.postings), "--tokenizer", arg(&t.tokens), "--out", arg(&dir)]).exits(2);
    handbert(["quickstart", "--out", arg(&dir)]).exits(2).says(&["not empty", "--out"]);
    handbert(["quickstart", "--out", arg(&dir), "--overwrite"]).exits(2).says(&["not empty"]);
    assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 1);
    assert_eq!(std::fs::read_to_string(&precious).unwrap(), "mine");
}
