//! Each command in its turn, as a user goes through them.

use std::path::Path;

use serde_json::Value;

use super::support::{ROWS, arg, command, handbert, rows, scratch, tiny};

fn has_keys(json: &Value, keys: &[&str]) {
    for key in keys {
        assert!(json.get(key).is_some_and(|v| !v.is_null()), "no {key} in {json}");
    }
}

#[test]
fn help_and_version_and_nothing() {
    assert!(handbert(["--help"]).exits(0).out.contains("quickstart"));
    assert!(handbert(["--version"]).exits(0).out.contains(env!("CARGO_PKG_VERSION")));
    handbert::<&str>([]).exits(2).says(&["Usage"]);
    handbert(["predict"]).exits(2).says(&["--model"]);
    handbert(["no-such-command"]).exits(2).says(&["no-such-command"]);
}

#[test]
fn synth_is_the_same_every_time_and_in_every_format() {
    let dir = scratch("synth");
    let (a, b) = (dir.join("a.jsonl"), dir.join("b.csv.gz"));
    handbert(["synth", "--rows", "50", "--out", arg(&a)]).exits(0);
    let stdout = handbert(["synth", "--rows", "50", "--out", "-"]).exits(0).out;
    assert_eq!(stdout, std::fs::read_to_string(&a).unwrap());
    let other = handbert(["synth", "--rows", "50", "--out", "-", "--seed", "7"]).exits(0).out;
    assert_ne!(stdout, other);
    handbert(["synth", "--rows", "50", "--out", arg(&b)]).exits(0);
    let (set_a, set_b) = (dir.join("set-a"), dir.join("set-b"));
    for (file, set) in [(&a, &set_a), (&b, &set_b)] {
        handbert(["tokenize", arg(file), "--out", arg(set), "--tokenizer", arg(&tiny().tokens)]).exits(0);
    }
    let tokens = |set: &Path| std::fs::read(set.join("tokens-00000.bin")).unwrap();
    assert_eq!(tokens(&set_a), tokens(&set_b));
}

#[test]
fn eval_gives_its_figures() {
    let t = tiny();
    let common = ["--data", arg(&t.tokens), "--validation-split-percentage", "20", "--json"];
    let mlm = handbert(["eval", "mlm", "--model", arg(&t.mlm)].into_iter().chain(common)).exits(0).json();
    has_keys(&mlm, &["loss", "perplexity", "masked_tokens", "accuracy"]);
    let (loss, perplexity) = (mlm["loss"].as_f64().unwrap(), mlm["perplexity"].as_f64().unwrap());
    assert!((loss.exp() / perplexity - 1.0).abs() < 1e-6, "{mlm}");
    assert!(perplexity > 1.0 && perplexity < 1e4, "{mlm}");
    // A checkpoint knows the split of its run as the run itself does.
    let tokens_of = |model: &Path| {
        let eval = ["eval", "mlm", "--model", arg(model), "--data", arg(&t.tokens), "--json"];
        handbert(eval).exits(0).json()["masked_tokens"].clone()
    };
    for model in [t.mlm.clone(), t.mlm.join("checkpoint-6")] {
        assert_eq!(tokens_of(&model), mlm["masked_tokens"], "{}", model.display());
    }
    let classifier = handbert(["eval", "classifier", "--model", arg(&t.classifier)].into_iter().chain(common));
    let json = classifier.exits(0).json();
    has_keys(&json, &["rows", "accuracy", "f1", "macro_f1", "roc_auc", "average_precision", "threshold"]);
    assert!(json["rows"].as_u64().unwrap() > 10, "{json}");
}

#[test]
fn training_leaves_a_model_metrics_settings_and_a_report() {
    let t = tiny();
    for dir in [&t.mlm, &t.classifier] {
        for file in ["config.json", "model.safetensors", "tokenizer.json", "vocab.txt", "metrics.jsonl", "run.toml"] {
            assert!(dir.join(file).is_file(), "{file} in {}", dir.display());
        }
        let report = std::fs::read_to_string(dir.join("report.html")).unwrap();
        assert!(report.contains("<svg") && !report.contains("<script"));
        let metrics = rows(&dir.join("metrics.jsonl"));
        assert!(metrics.iter().any(|r| r.get("eval").is_some()) && metrics.iter().any(|r| r.get("loss").is_some()));
    }
}

#[test]
fn train_prints_its_figures() {
    let t = tiny();
    let dir = scratch("train-json");
    let out = dir.join("run");
    let args = ["train", "mlm", "--model", arg(&t.mlm), "--data", arg(&t.tokens), "--out", arg(&out), "--json"];
    let run = handbert(args.into_iter().chain(["--max-steps", "2", "--batch-tokens", "256", "--max-length", "128"]));
    let json = run.exits(0).json();
    has_keys(&json, &["steps", "tokens", "seconds", "tokens_per_second", "loss"]);
    assert_eq!(json["steps"], 2);
    assert!(json["best"]["value"].is_number(), "{json}");
}

#[test]
fn predict_labels_every_row_in_order() {
    let t = tiny();
    let dir = scratch("predict");
    let out = dir.join("out.jsonl");
    let args = ["predict", arg(&t.postings), "--model", arg(&t.classifier), "--out", arg(&out), "--json"];
    let json = handbert(args.into_iter().chain(["--all-scores", "--text-columns", "title,text"])).exits(0).json();
    has_keys(
        &json,
        &["rows", "bad_rows", "truncated", "tokens", "seconds", "tokens_per_second", "rows_per_second", "out"],
    );
    assert_eq!((json["rows"].as_u64(), json["bad_rows"].as_u64()), (Some(ROWS as u64), Some(0)));
    let (input, output) = (rows(&t.postings), rows(&out));
    assert_eq!(output.len(), ROWS);
    for (before, after) in input.iter().zip(&output) {
        // The input has a column `label`: the prediction stands beside it.
        for (name, value) in before.as_object().unwrap() {
            assert_eq!(after[name], *value);
        }
        let label = after["predicted_label"].as_str().unwrap();
        let score = after["score"].as_f64().unwrap();
        assert_eq!(after[format!("score_{label}").as_str()].as_f64(), Some(score));
        let sum = after["score_remote"].as_f64().unwrap() + after["score_in_person"].as_f64().unwrap();
        assert!((sum - 1.0).abs() < 1e-6 && score >= 0.5, "{after}");
    }
    assert!(!out.with_extension("jsonl.partial").exists());
}

#[test]
fn inspect_describes_and_verifies() {
    let t = tiny();
    let of = |path: &Path| {
        assert!(!handbert(["inspect", arg(path)]).exits(0).out.is_empty());
        let json = handbert(["inspect", arg(path), "--verify", "--json"]).exits(0).json();
        assert_eq!(json["verified"], true, "{json}");
        json
    };
    let set = of(&t.tokens);
    assert_eq!((&set["samples"], &set["text_columns"]), (&ROWS.into(), &serde_json::json!(["title", "text"])));
    let counts = set["labels"].as_object().unwrap().values().map(|count| count.as_u64().unwrap());
    assert_eq!(counts.sum::<u64>(), ROWS as u64);
    let mlm = of(&t.mlm);
    assert_eq!((&mlm["kind"], &mlm["head"], &mlm["config"]["n_layers"]), (&"model".into(), &"mlm".into(), &2.into()));
    let classifier = of(&t.classifier);
    assert_eq!((&classifier["head"], classifier["labels"].as_array().unwrap().len()), (&"classifier".into(), 2));
    let checkpoint = of(&t.mlm.join("checkpoint-6"));
    assert_eq!(checkpoint["checkpoint"], serde_json::json!({ "step": 6, "moments": true }));
    assert_eq!(checkpoint["parameters"], mlm["parameters"]);
}

#[test]
fn fill_mask_gives_tokens_and_scores() {
    let t = tiny();
    let json = handbert(["fill-mask", "--model", arg(&t.mlm), "we are [MASK] a cook", "--top-k", "3", "--json"]);
    let json = json.exits(0).json();
    let tokens = json.as_array().unwrap();
    assert_eq!(tokens.len(), 3);
    let scores: Vec<f64> = tokens.iter().map(|t| t["score"].as_f64().unwrap()).collect();
    assert!(scores.is_sorted_by(|a, b| a >= b) && scores[0] < 1.0 && scores[2] > 0.0, "{json}");
    assert!(tokens.iter().all(|t| t["token"].as_str().is_some_and(|t| !t.is_empty())));
    handbert(["fill-mask", "--model", arg(&t.mlm), "no gap here"]).exits(2).says(&["[MASK]"]);
}

#[test]
fn an_interrupted_run_resumes_to_the_same_bits() {
    let t = tiny();
    let dir = scratch("resume");
    let (whole, parts) = (dir.join("whole"), dir.join("parts"));
    let args = |out: &Path| {
        let args = ["train", "mlm", "--config", arg(&t.config), "--data", arg(&t.tokens), "--out", arg(out)];
        let more = ["--batch-tokens", "256", "--max-length", "128", "--max-steps", "6", "--save-steps", "3"];
        args.into_iter().chain(more).chain(["--eval-strategy", "no"]).map(str::to_owned).collect::<Vec<_>>()
    };
    handbert(args(&whole)).exits(0);
    handbert(args(&parts)).exits(0);
    // As after a crash: only the middle checkpoint is left.
    std::fs::remove_dir_all(parts.join("checkpoint-6")).unwrap();
    std::fs::remove_file(parts.join("model.safetensors")).unwrap();
    handbert(["train", "mlm", "--out", arg(&parts), "--resume"]).exits(0);
    for file in ["model.safetensors", "checkpoint-6/model.safetensors", "checkpoint-6/handbert_state.safetensors"] {
        let [one, other] = [&whole, &parts].map(|run| std::fs::read(run.join(file)).unwrap());
        assert!(one == other, "{file}");
    }
}

#[test]
fn quiet_says_nothing_when_all_is_well() {
    let t = tiny();
    let dir = scratch("quiet");
    let out = dir.join("out.jsonl");
    let output = command()
        .args(["predict", arg(&t.postings), "--model", arg(&t.classifier), "--out", arg(&out), "--quiet"])
        .output()
        .unwrap();
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), b"".as_slice()));
}

#[test]
fn a_run_is_the_same_on_any_number_of_threads() {
    let t = tiny();
    let dir = scratch("threads");
    let starts = [("mlm", ["--config", arg(&t.config)]), ("classifier", ["--model", arg(&t.mlm)])];
    for (task, from) in starts {
        let of = |threads: &str| {
            let out = dir.join(format!("{task}-{threads}"));
            let train = ["train", task, "--data", arg(&t.tokens), "--out", arg(&out), "--threads", threads];
            let sizes = ["--batch-tokens", "512", "--max-length", "128", "--max-steps", "6", "--learning-rate", "1e-3"];
            handbert(train.into_iter().chain(from).chain(sizes)).exits(0);
            let files = ["model.safetensors", "handbert_state.safetensors"];
            files.map(|file| std::fs::read(out.join("checkpoint-6").join(file)).unwrap())
        };
        assert!(of("1") == of("3"), "{task}: threads make a difference");
    }
}
