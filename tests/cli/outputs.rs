//! What predict writes: formats, thresholds, windows, names of columns.

use std::io::Read;
use std::path::Path;

use serde_json::Value;

use super::support::{Run, arg, handbert, handbert_reading, rows, scratch, tiny};

fn predict(input: &Path, out: &Path, more: &[&str]) -> Run {
    let args = ["predict", arg(input), "--model", arg(&tiny().classifier), "--out", arg(out)];
    handbert(args.iter().chain(more))
}

fn write(dir: &Path, name: &str, text: &str) -> std::path::PathBuf {
    let path = dir.join(name);
    std::fs::write(&path, text).unwrap();
    path
}

/// A value as CSV holds it.
fn as_text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

#[test]
fn every_format_holds_the_same() {
    let dir = scratch("formats");
    let input = write(
        &dir,
        "in.jsonl",
        "{\"id\":1,\"text\":\"a \\\"quoted\\\" line\\nand another\",\"n\":null}\n{\"id\":2,\"text\":\"tab\\there, comma\",\"n\":[1,2]}\n",
    );
    let jsonl = dir.join("out.jsonl");
    predict(&input, &jsonl, &[]).exits(0);
    let expected = rows(&jsonl);
    for name in ["out.csv", "out.tsv", "out.csv.gz", "out.jsonl.zst", "out.tsv.zst"] {
        let out = dir.join(name);
        predict(&input, &out, &[]).exits(0);
        // Back to JSONL by labelling it again: what was added is among the columns now.
        let back = dir.join(format!("{name}.back.jsonl"));
        predict(&out, &back, &[]).exits(0);
        let read = rows(&back);
        assert_eq!(read.len(), expected.len(), "{name}");
        for (row, read) in expected.iter().zip(&read) {
            for (column, value) in row.as_object().unwrap() {
                assert_eq!(as_text(&read[column]), as_text(value), "{column} in {name}");
            }
        }
    }
    let mut text = String::new();
    let gz = std::fs::File::open(dir.join("out.csv.gz")).unwrap();
    flate2::read::MultiGzDecoder::new(gz).read_to_string(&mut text).unwrap();
    assert!(text.starts_with("id,text,n,label,score\n"), "{text}");
}

#[test]
fn a_threshold_moves_labels_and_scores_stay_those_of_the_label() {
    let dir = scratch("threshold");
    let labels = |name: &str, threshold: &str| {
        let out = dir.join(name);
        predict(&tiny().postings, &out, &["--threshold", threshold, "--all-scores"]).exits(0);
        rows(&out)
    };
    let remote = |row: &Value| row["score_remote"].as_f64().unwrap();
    let lowest = labels("low.jsonl", "0");
    assert!(lowest.iter().all(|r| r["predicted_label"] == "remote"));
    let mut scores: Vec<f64> = lowest.iter().map(remote).collect();
    scores.sort_by(f64::total_cmp);
    let median = scores[scores.len() / 2] as f32;
    let middle = labels("middle.jsonl", &median.to_string());
    for row in &middle {
        assert_eq!(row["predicted_label"] == "remote", remote(row) as f32 >= median, "{row}");
        assert_eq!(row["score"], row[format!("score_{}", row["predicted_label"].as_str().unwrap()).as_str()]);
    }
    for label in ["remote", "in_person"] {
        let count = middle.iter().filter(|row| row["predicted_label"] == label).count();
        assert!(count > 0, "no {label} at {median}, the median of the scores");
    }
    predict(&tiny().postings, &dir.join("x.jsonl"), &["--threshold", "1.5"]).exits(2).says(&["--threshold"]);
}

#[test]
fn the_best_threshold_is_the_one_that_the_best_evaluation_found() {
    let dir = scratch("best-threshold");
    let metrics = rows(&tiny().classifier.join("metrics.jsonl"));
    // By average precision, as nothing else was asked for; what was there before step 1 is no candidate.
    let evals = metrics.iter().filter(|record| record.get("eval").is_some() && record["step"].as_u64() > Some(0));
    let quality = |record: &Value| record["eval"]["average_precision"].as_f64().unwrap();
    let best = evals.reduce(|best, next| if quality(next) > quality(best) { next } else { best }).unwrap();
    let best = best["eval"]["threshold"].as_f64().unwrap() as f32;
    let labelled = |threshold: &str| {
        let out = dir.join(format!("{threshold}.jsonl"));
        predict(&tiny().postings, &out, &["--threshold", threshold]).exits(0);
        std::fs::read_to_string(out).unwrap()
    };
    assert_eq!(labelled("best"), labelled(&best.to_string()));
}

#[test]
fn long_postings_are_cut_or_windowed_and_counted() {
    let dir = scratch("long");
    let long = "remote work from anywhere in the country with the team ".repeat(60);
    let input =
        write(&dir, "in.jsonl", &format!("{{\"text\":\"{long}\"}}\n{{\"text\":\"short\"}}\n{{\"text\":\"\"}}\n"));
    let of = |name: &str, long: &[&str]| {
        let run = predict(&input, &dir.join(name), &[long, &["--json"]].concat()).exits(0);
        (run.json(), rows(&dir.join(name)))
    };
    let (cut, truncated) = of("a.jsonl", &[]);
    assert_eq!((cut["truncated"].as_u64(), cut["empty"].as_u64(), cut["rows"].as_u64()), (Some(1), Some(1), Some(3)));
    let (_, head_tail) = of("b.jsonl", &["--long", "head-tail"]);
    let (windows, windowed) = of("c.jsonl", &["--long", "windows"]);
    assert_eq!((windows["truncated"].as_u64(), windows["windowed"].as_u64()), (Some(0), Some(1)));
    assert!(windows["windows"].as_u64().unwrap() > 3, "{windows}");
    let [few, many] = [&cut, &windows].map(|json| json["tokens"].as_u64().unwrap());
    assert!(many > few, "{many} and {few} tokens");
    // Short ones do not care.
    assert_eq!((&truncated[1], &truncated[2]), (&windowed[1], &windowed[2]));
    assert_eq!(truncated[1], head_tail[1]);
}

#[test]
fn names_that_are_taken() {
    let dir = scratch("names");
    let input = write(&dir, "in.csv", "text,label,score_remote\nhello,x,y\n");
    let out = dir.join("out.jsonl");
    predict(&input, &out, &["--all-scores"]).exits(0);
    let row = &rows(&out)[0];
    assert_eq!((&row["label"], &row["score_remote"]), (&Value::from("x"), &Value::from("y")));
    let names: Vec<&String> = row.as_object().unwrap().keys().collect();
    let expected =
        ["text", "label", "score_remote", "predicted_label", "score", "score_in_person", "predicted_score_remote"];
    assert_eq!(names, expected);
    predict(&input, &dir.join("p.jsonl"), &["--prefix", "m1_"]).exits(0);
    assert!(rows(&dir.join("p.jsonl"))[0]["m1_label"].is_string());
}

#[test]
fn numbers_come_out_as_they_went_in() {
    let dir = scratch("digits");
    let line = r#"{"text":"a","pay":130422796.08514273,"share":6.552885923981311e-12,"id":18446744073709551615}"#;
    let input = write(&dir, "in.jsonl", &format!("{line}\n"));
    let out = dir.join("out.jsonl");
    predict(&input, &out, &[]).exits(0);
    let text = std::fs::read_to_string(&out).unwrap();
    assert!(text.starts_with(line.trim_end_matches('}')), "{text}");
}

#[test]
fn an_output_in_no_directory_is_refused() {
    let dir = scratch("nowhere");
    let input = write(&dir, "in.txt", "one posting\n");
    predict(&input, &dir.join("missing/out.jsonl"), &[]).exits(2).says(&["missing: there is no such directory"]);
}

#[test]
fn an_output_that_exists_is_not_replaced_unless_asked() {
    let dir = scratch("exists");
    let input = write(&dir, "in.txt", "one posting\n");
    let out = write(&dir, "out.jsonl", "precious");
    predict(&input, &out, &[]).exits(2).says(&["out.jsonl", "--overwrite"]);
    assert_eq!(std::fs::read_to_string(&out).unwrap(), "precious");
    predict(&input, &out, &["--overwrite"]).exits(0);
    assert_eq!(rows(&out).len(), 1);
    predict(&input, &dir.join("out.docx"), &[]).exits(2).says(&["out.docx", ".jsonl"]);
    predict(&input, &dir, &[]).exits(2).says(&["directory"]);
    predict(&input, &dir.join("no/such/dir/out.csv"), &[]).exits(2).says(&["no/such/dir"]);
}

#[test]
fn several_files_become_one_and_csv_wants_the_same_columns() {
    let dir = scratch("several");
    let a = write(&dir, "a.jsonl", "{\"text\":\"one\",\"id\":1}\n");
    let b = write(&dir, "b.csv", "id,text\n2,two\n3,three\n");
    let c = write(&dir, "c.txt", "four\n");
    let out = dir.join("out.csv");
    let model = arg(&tiny().classifier);
    handbert(["predict", arg(&a), arg(&b), arg(&c), "--model", model, "--out", arg(&out)]).exits(0);
    let text = std::fs::read_to_string(&out).unwrap();
    let firsts: Vec<&str> = text.lines().map(|l| l.split(',').take(2).last().unwrap()).collect();
    assert_eq!(firsts, ["id", "1", "2", "3", ""], "{text}");
}

#[test]
fn an_empty_input_gives_an_empty_output() {
    let dir = scratch("empty");
    for (name, text) in [("in.jsonl", ""), ("in.txt", ""), ("in.csv", "id,text\n")] {
        let out = dir.join(format!("{name}.out.csv"));
        let run = predict(&write(&dir, name, text), &out, &["--json"]).exits(0);
        assert_eq!(run.json()["rows"], 0);
        assert!(std::fs::read_to_string(&out).unwrap().lines().count() <= 1);
    }
    let run = handbert_reading(b"", ["predict", "-", "--model", arg(&tiny().classifier), "--out", "-"]);
    assert_eq!(run.exits(0).out, "");
}

#[test]
fn what_is_not_said_is_as_in_training() {
    let t = tiny();
    let (dir, model) = (scratch("as-in-training"), scratch("as-in-training-model"));
    let train = ["train", "classifier", "--model", arg(&t.mlm), "--data", arg(&t.postings), "--overwrite"];
    let data = ["--text-columns", "title,text", "--label-column", "label", "--positive-label", "in_person"];
    let how = ["--long", "windows", "--window-stride", "9", "--max-length", "24", "--batch-tokens", "512"];
    let steps = ["--max-steps", "3", "--eval-strategy", "no", "--out", arg(&model)];
    handbert(train.into_iter().chain(data).chain(how).chain(steps)).exits(0);
    let label = |name: &str, more: &[&str]| {
        let out = dir.join(name);
        let args = ["predict", arg(&t.postings), "--model", arg(&model), "--out", arg(&out), "--all-scores"];
        handbert(args.iter().chain(more)).exits(0);
        std::fs::read_to_string(out).unwrap()
    };
    let unsaid = label("unsaid.jsonl", &[]);
    let windows = ["--long", "windows", "--window-stride", "9"];
    let said = [&["--text-columns", "title,text", "--max-length", "24"], &windows[..]].concat();
    assert_eq!(label("said.jsonl", &said), unsaid);
    // Each of them matters.
    let others: [&[&str]; 4] =
        [&["--text-columns", "text"], &["--long", "truncate"], &["--window-stride", "10"], &["--max-length", "128"]];
    for (i, other) in others.into_iter().enumerate() {
        assert_ne!(label(&format!("{i}.jsonl"), other), unsaid, "{other:?}");
    }
    // In whose favour a threshold of 0 decides.
    label("positive.jsonl", &["--threshold", "0"]);
    assert!(rows(&dir.join("positive.jsonl")).iter().all(|row| row["predicted_label"] == "in_person"));
}
