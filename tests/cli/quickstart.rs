//! The quickstart, small: what it leaves, what it prints, and that its commands do the same by hand.

use std::path::Path;

use super::support::{arg, handbert, rows, scratch};

const SMALL: [&str; 4] = ["--rows", "100", "--steps", "4"];

fn quickstart(dir: &Path, more: &[&str]) -> super::support::Run {
    handbert(["quickstart", "--out", arg(dir)].iter().chain(&SMALL).chain(more))
}

/// A command line as a shell splits it, for what the quickstart prints.
fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    for (i, part) in line.split('"').enumerate() {
        match i % 2 {
            0 => words.extend(part.split_whitespace().map(str::to_owned)),
            _ => words.push(part.to_owned()),
        }
    }
    words
}

#[test]
fn leaves_everything_and_its_commands_do_the_same_by_hand() {
    let place = scratch("quickstart");
    let dir = place.join("q");
    let json = quickstart(&dir, &["--json"]).exits(0).json();
    for key in
        ["perplexity_before", "perplexity_after", "perplexity_unigram", "roc_auc", "seconds", "tokens_per_second"]
    {
        assert!(json[key].as_f64().is_some_and(|v| v > 0.0), "{key} in {json}");
    }
    assert!(json["device"].as_str().is_some_and(|d| !d.is_empty()));
    for name in ["postings.jsonl", "predictions.jsonl"] {
        assert!(rows(&dir.join(name)).len() >= 100, "{name}");
    }
    let report = std::fs::read_to_string(dir.join("report.html")).unwrap();
    assert!(report.matches("<svg").count() >= 8 && !report.contains("<script"), "pictures, and nothing fetched");

    // The same again, one command at a time, in another directory.
    let by_hand = scratch("quickstart-by-hand");
    std::fs::copy(dir.join("mlm-config.json"), by_hand.join("mlm-config.json")).unwrap();
    std::fs::copy(dir.join("new-postings.jsonl"), by_hand.join("new-postings.jsonl")).unwrap();
    let commands = json["commands"].as_object().unwrap();
    assert_eq!(commands.len(), 6);
    for line in commands.values() {
        let line = line.as_str().unwrap().replace(arg(&dir), arg(&by_hand));
        let words = words(&line);
        assert_eq!(words[0], "handbert");
        handbert(&words[1..]).exits(0);
    }
    for file in ["postings.jsonl", "mlm/model.safetensors", "classifier/model.safetensors", "predictions.jsonl"] {
        let same = std::fs::read(dir.join(file)).unwrap() == std::fs::read(by_hand.join(file)).unwrap();
        assert!(same, "{file} differs from the one made by hand");
    }
    for run in ["mlm", "classifier"] {
        let settings = |dir: &Path| std::fs::read_to_string(dir.join(run).join("run.toml")).unwrap();
        assert_eq!(settings(&dir).replace(arg(&dir), arg(&by_hand)), settings(&by_hand), "{run}/run.toml");
    }

    // A second one needs another place, or leave to start over.
    quickstart(&dir, &[]).exits(2).says(&["--overwrite"]);
    let told = quickstart(&dir, &["--overwrite"]).exits(0).out;
    for part in ["perplexity", "unigram", "ROC AUC", "$ handbert train mlm", "report.html"] {
        assert!(told.contains(part), "{part:?} in {told}");
    }
}

#[test]
fn too_few_rows_or_steps_are_refused() {
    let dir = scratch("quickstart-small");
    handbert(["quickstart", "--out", arg(&dir.join("a")), "--rows", "5"]).exits(2).says(&["--rows"]);
    handbert(["quickstart", "--out", arg(&dir.join("b")), "--steps", "0"]).exits(2).says(&["--steps"]);
}
