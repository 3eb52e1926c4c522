//! `handbert plan`: what it prints for people and for programs, and what it refuses.

#[path = "support/binary.rs"]
mod binary;

use std::path::{Path, PathBuf};
use std::process::Command;

use binary::Run;
use serde_json::{Value, json};

fn plan(args: &[&str]) -> Run {
    let mut command = Command::new(env!("CARGO_BIN_EXE_handbert"));
    command.env("HF_HUB_OFFLINE", "1").env_remove("RUST_LOG").arg("plan").args(args);
    Run::of(&mut command)
}

/// A config.json of base size, changed.
fn config(dir: &Path, changes: &Value) -> PathBuf {
    let mut fields = json!({
        "model_type": "distilbert", "activation": "gelu", "vocab_size": 30522, "max_position_embeddings": 512,
        "n_layers": 6, "n_heads": 12, "dim": 768, "hidden_dim": 3072, "dropout": 0.1, "attention_dropout": 0.1,
    });
    for (field, value) in changes.as_object().unwrap() {
        fields[field] = value.clone();
    }
    let file = dir.join("config.json");
    std::fs::write(&file, fields.to_string()).unwrap();
    file
}

struct Case {
    _dir: tempfile::TempDir,
    file: PathBuf,
}

impl Case {
    fn new(changes: Value) -> Case {
        let dir = tempfile::tempdir().unwrap();
        Case { file: config(dir.path(), &changes), _dir: dir }
    }

    fn run(&self, args: &[&str]) -> Run {
        plan(&[&["--config", self.file.to_str().unwrap()], args].concat())
    }

    fn json(&self, args: &[&str]) -> Value {
        self.run(&[args, &["--json"]].concat()).exits(0).json()
    }

    fn refused(&self, args: &[&str], says: &[&str]) {
        let run = self.run(args).exits(2).says(says);
        assert!(run.out.is_empty(), "{args:?}: {}", run.out);
    }
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

fn close(value: &Value, wanted: f64, by: f64) {
    assert!((number(value) - wanted).abs() <= by, "{value} is not {wanted} within {by}");
}

#[test]
fn a_base_step_on_an_h200_has_every_figure() {
    let base = Case::new(json!({}));
    let plan = base.json(&["--gpu", "h200", "--mean-length", "300", "--corpus-postings", "1000000"]);
    assert_eq!(
        (&plan["measured"], &plan["task"], &plan["parameters"]),
        (&json!(false), &json!("mlm"), &json!(66_985_530))
    );
    assert_eq!((&plan["batch"]["tokens"], &plan["batch"]["masked"]), (&json!(65_536), &json!(9_830)));
    assert_eq!(plan["gpu"]["memory_bytes"], json!(141_000_000_000u64));
    close(&plan["step"]["flops_per_token"], 295.8e6, 0.1e6);

    let ops = plan["ops"].as_array().unwrap();
    let sum = |field: &str| ops.iter().map(|op| number(&op["times"]) * number(&op[field])).sum::<f64>();
    close(&plan["step"]["floor"]["seconds"], sum("floor_seconds"), 1e-9);
    close(&plan["step"]["expected"]["seconds"], sum("expected_seconds"), 1e-9);
    assert_eq!(number(&plan["step"]["flops"]), sum("flops"));
    for op in ops {
        let larger = number(&op["seconds_by_flops"]).max(number(&op["seconds_by_bytes"]));
        assert_eq!(number(&op["floor_seconds"]), larger, "{op}");
    }
    for pace in ["floor", "expected"] {
        let (pace, step) = (&plan["step"][pace], &plan["step"]);
        close(&pace["tokens_per_second"], 65_536.0 / number(&pace["seconds"]), 1.0);
        close(&pace["mfu"], number(&step["flops"]) / number(&pace["seconds"]) / 989e12, 1e-9);
    }
    let memory = plan["memory_bytes"].as_object().unwrap();
    let kinds: f64 = memory.iter().filter(|(kind, _)| *kind != "total").map(|(_, bytes)| number(bytes)).sum();
    assert_eq!(number(&memory["total"]), kinds);
    for share in plan["expected_shares"].as_object().unwrap().values() {
        assert!(number(&share["share"]) < 1.0 && !share["source"].as_str().unwrap().is_empty());
    }

    let corpus = &plan["corpus"];
    assert_eq!((&corpus["tokens"], &corpus["dtype"]), (&json!(298_000_000), &json!("u16")));
    assert_eq!(corpus["token_set_bytes"], json!(2 * 298_000_000u64 + 16 * 1_000_000 + 8));
    assert_eq!((&corpus["epochs"], &corpus["steps"]), (&json!(3.0), &json!(13_733)));
    close(&corpus["floor_seconds"], 13_733.0 * number(&plan["step"]["floor"]["seconds"]), 1e-6);
}

#[test]
fn people_see_the_same_and_that_nothing_was_measured() {
    let base = Case::new(json!({}));
    let run = base.run(&["--gpu", "H200", "--corpus-tokens", "3400000", "--epochs", "1"]);
    assert_eq!(run.code, Some(0), "{}", run.err);
    for part in [
        "NVIDIA H200 SXM: 989 TFLOP/s in bf16, 4.80 TB/s, 141.0 GB",
        "66,985,530 parameters",
        "65,536 tokens in sequences of 300.0",
        "lin2 d_x, gelu",
        "at the floor",
        "as expected",
        "master weights",
        "a corpus of 11,410 postings, 3,400,000 tokens, read once",
        "Nothing here was measured.",
        "with sparsity",
    ] {
        assert!(run.out.contains(part), "no {part:?} in\n{}", run.out);
    }
}

#[test]
fn tasks_differ_in_head_passes_and_memory() {
    let base = Case::new(json!({}));
    let passes = |plan: &Value| {
        let mut passes: Vec<_> = plan["ops"].as_array().unwrap().iter().map(|op| op["pass"].clone()).collect();
        passes.dedup();
        passes
    };
    let classifier = base.json(&["--gpu", "a100", "--task", "classifier"]);
    assert_eq!(passes(&classifier), ["forward", "backward", "update"]);
    assert_eq!((&classifier["parameters"], &classifier["batch"]["masked"]), (&json!(66_955_010), &json!(0)));
    let predict = base.json(&["--gpu", "a100", "--task", "predict", "--corpus-tokens", "1000"]);
    assert_eq!(passes(&predict), ["forward"]);
    assert_eq!((&predict["memory_bytes"]["gradients"], &predict["corpus"]["epochs"]), (&json!(0), &json!(1.0)));
    assert!(number(&predict["memory_bytes"]["total"]) < number(&classifier["memory_bytes"]["total"]));

    let wide = Case::new(json!({ "vocab_size": 119_547, "id2label": { "0": "a", "1": "b", "2": "c" } }));
    let plan = wide.json(&["--gpu", "h100", "--task", "classifier", "--corpus-postings", "10", "--mean-length", "12"]);
    assert_eq!(
        (&plan["corpus"]["dtype"], &plan["corpus"]["token_set_bytes"]),
        (&json!("u32"), &json!(4 * 100 + 20 * 10 + 8))
    );
    assert_eq!(plan["config"]["id2label"]["2"], json!("c"));
}

#[test]
fn a_default_batch_fits_nine_tenths_of_the_card() {
    let large = Case::new(json!({ "n_layers": 24, "dim": 1024, "n_heads": 16, "hidden_dim": 4096 }));
    let plan = large.json(&["--gpu", "4090"]);
    let (tokens, total) = (number(&plan["batch"]["tokens"]), number(&plan["memory_bytes"]["total"]));
    assert!(tokens % 1024.0 == 0.0 && tokens < 65_536.0 && total <= 0.9 * 24e9, "{tokens} tokens, {total} bytes");
    let more = (tokens as u64 + 1024).to_string();
    let plan = large.json(&["--gpu", "4090", "--batch-tokens", &more]);
    assert!(number(&plan["memory_bytes"]["total"]) > 0.9 * 24e9);
}

#[test]
fn what_does_not_fit_is_refused_with_what_would() {
    let base = Case::new(json!({}));
    base.refused(
        &["--gpu", "4090", "--batch-tokens", "1000000"],
        &["a batch of 1,000,000 tokens takes", "activations", "has 24.0 GB", "--batch-tokens", "is the most that fits"],
    );
    let giant = Case::new(json!({ "n_layers": 1000, "dim": 32768, "n_heads": 256, "hidden_dim": 262_144 }));
    giant.refused(&["--gpu", "h200"], &["no batch fits; take a smaller model or a larger card"]);
    giant.refused(&["--gpu", "h200", "--batch-tokens", "16777216"], &["no batch fits"]);
}

#[test]
fn bad_input_is_said_and_never_a_panic() {
    let base = Case::new(json!({}));
    base.refused(&["--gpu", "h300"], &["h300", "expected one of h200, h100, a100, l40s, 4090"]);
    base.refused(&[], &["--gpu"]);
    base.refused(&["--gpu", "h200", "--model", "m"], &["cannot be used with"]);
    base.refused(&["--gpu", "h200", "--task", "sing"], &["mlm, classifier, predict"]);
    base.refused(&["--gpu", "h200", "--max-length", "1024"], &["--max-length 1024", "3 to 512"]);
    base.refused(&["--gpu", "h200", "--batch-tokens", "100"], &["--batch-tokens 100 has no room"]);
    for wrong in ["0", "-1", "18446744073709551616", "many"] {
        for flag in ["--batch-tokens", "--max-length", "--corpus-tokens", "--corpus-postings"] {
            base.refused(&["--gpu", "h200", &format!("{flag}={wrong}")], &[flag]);
        }
    }
    for wrong in ["2", "513", "NaN", "inf", "1e300", "-5"] {
        base.refused(&["--gpu", "h200", &format!("--mean-length={wrong}")], &["mean-length"]);
    }
    for wrong in ["0", "NaN", "-1", "1e9"] {
        let epochs = format!("--epochs={wrong}");
        base.refused(&["--gpu", "h200", "--corpus-tokens", "1000", &epochs], &["--epochs"]);
    }
    base.refused(&["--gpu", "h200", "--epochs", "2"], &["--epochs is for --corpus-tokens"]);
    base.refused(
        &["--gpu", "h200", "--task", "predict", "--corpus-tokens", "9", "--epochs", "2"],
        &["reads a corpus once"],
    );
    base.refused(&["--gpu", "h200", "--corpus-tokens", "9", "--corpus-postings", "9"], &["cannot be used with"]);

    let none = plan(&["--gpu", "h200"]);
    assert!(none.code == Some(2) && none.err.contains("--model"), "{}", none.err);
    let file = base.file.to_str().unwrap();
    let run = plan(&["--gpu", "h200", "--model", file]);
    assert!(run.code == Some(2) && run.err.contains("give it as --config"), "{}", run.err);
    let run = plan(&["--gpu", "h200", "--model", base.file.parent().unwrap().join("gone").to_str().unwrap()]);
    assert!(run.code == Some(2) && run.err.contains("no such directory"), "{}", run.err);
    let broken = Case::new(json!({ "activation": "gelu_new" }));
    broken.refused(&["--gpu", "h200"], &["activation", "gelu_new"]);
}

#[test]
fn a_directory_needs_no_weights() {
    let base = Case::new(json!({}));
    let dir = base.file.parent().unwrap().to_str().unwrap();
    let run = plan(&["--gpu", "l40s", "--model", dir, "--json"]);
    assert_eq!(run.code, Some(0), "{}", run.err);
    let from_config = base.run(&["--gpu", "l40s", "--json"]);
    assert_eq!(run.out, from_config.out);
}

#[test]
fn the_largest_numbers_come_to_an_answer() {
    let base = Case::new(json!({}));
    for corpus in [["--corpus-tokens", "1000000000000000"], ["--corpus-postings", "100000000000"]] {
        let plan = base.json(&[&["--gpu", "4090", "--epochs", "1000000"], &corpus[..]].concat());
        assert!(number(&plan["corpus"]["expected_seconds"]).is_finite());
        assert!(base.run(&[&["--gpu", "4090"], &corpus[..]].concat()).out.contains("days at the floor"));
    }
    let tiny = Case::new(json!({ "max_position_embeddings": 3 }));
    assert_eq!(tiny.json(&["--gpu", "h200"])["batch"]["mean_length"], json!(3.0));
}
