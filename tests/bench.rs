//! `handbert bench` at sizes that take a second: what it prints, that its figures follow from each other, and that every call
//! can be made on the simulated GPU, recorded as on a real one.

#[path = "support/binary.rs"]
mod binary;
mod support {
    pub mod training;
}
#[path = "support/sim_device.rs"]
mod sim_device;
#[path = "support/simulator.rs"]
mod simulator;
#[path = "support/skip.rs"]
mod skip;

use std::path::PathBuf;
use std::process::Command;

use binary::Run;
use handbert::bench::ceilings::Measured;
use handbert::bench::kernels::Wanted;
use handbert::bench::measure::Effort;
use handbert::bench::pass::{self, Plan};
use handbert::bench::shapes::{Lengths, base_config};
use handbert::model::Config;
use serde_json::{Value, json};

/// A config.json of two layers.
struct Case {
    _dir: tempfile::TempDir,
    file: PathBuf,
}

impl Case {
    fn new(changes: Value) -> Case {
        let dir = tempfile::tempdir().unwrap();
        let mut fields = json!({
            "model_type": "distilbert", "activation": "gelu", "vocab_size": 600, "max_position_embeddings": 128,
            "n_layers": 2, "n_heads": 2, "dim": 64, "hidden_dim": 128, "dropout": 0.1, "attention_dropout": 0.1,
        });
        for (field, value) in changes.as_object().unwrap() {
            fields[field] = value.clone();
        }
        let file = dir.path().join("config.json");
        std::fs::write(&file, fields.to_string()).unwrap();
        Case { _dir: dir, file }
    }

    fn run(&self, args: &[&str]) -> Run {
        let mut command = Command::new(env!("CARGO_BIN_EXE_handbert"));
        command.env_remove("RUST_LOG").env_remove("HANDBERT_DEVICE").arg("bench").args(args);
        command.args(["--quick", "--threads", "2", "--batch-tokens", "200", "--config"]).arg(&self.file);
        Run::of(&mut command)
    }

    fn cpu(&self, args: &[&str]) -> Run {
        self.run(&[args, &["--device", "cpu"]].concat())
    }

    fn json(&self, args: &[&str]) -> Value {
        self.cpu(&[args, &["--json"]].concat()).exits(0).json()
    }

    fn refused(&self, args: &[&str], says: &[&str]) {
        let run = self.run(args).exits(2).says(says);
        assert!(run.out.is_empty(), "{args:?}: {}", run.out);
    }
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

fn close(value: &Value, wanted: f64) {
    assert!((number(value) / wanted - 1.0).abs() < 1e-9, "{value} is not {wanted}");
}

/// What is said of the device.
fn check_machine(bench: &Value) {
    assert_eq!((&bench["precision"], &bench["measured"]), (&json!("f32"), &json!(true)));
    assert!(bench["device"].as_str().unwrap().starts_with("cpu, 2 threads"));
    let (copy, product) = (&bench["ceilings"]["copy"], &bench["ceilings"]["product"]);
    close(&copy["bytes_per_second"], number(&copy["bytes"]) / number(&copy["timing"]["seconds_best"]));
    close(&product["flops_per_second"], number(&product["flops"]) / number(&product["timing"]["seconds_best"]));
    assert!(!copy["formula"].as_str().unwrap().is_empty() && !product["formula"].as_str().unwrap().is_empty());
    // A CPU's datasheet is not known, and nothing is expected of it.
    assert_eq!((&bench["ceilings"]["datasheet"], &bench["floors_by"]), (&Value::Null, &json!("measured")));
}

/// What is said of each op.
fn check_ops(bench: &Value) -> &Vec<Value> {
    let ops = bench["ops"].as_array().unwrap();
    for op in ops {
        assert!(op["error"].is_null(), "{op}");
        let seconds = number(&op["seconds"]);
        assert!(seconds > 0.0 && number(&op["seconds_best"]) <= seconds && seconds <= number(&op["seconds_worst"]));
        assert!(number(&op["runs"]) >= 3.0 && number(&op["calls"]) >= 1.0 && number(&op["sets"]) >= 1.0);
        close(&op["bytes_per_second"], number(&op["bytes"]) / seconds);
        if number(&op["flops"]) > 0.0 {
            close(&op["flops_per_second"], number(&op["flops"]) / seconds);
        } else {
            assert!(op["flops_per_second"].is_null() && op["bound"] == "bandwidth", "{op}");
        }
        close(&op["share_of_measured"], number(&op["floor_seconds"]) / seconds);
        assert!(op["expected_seconds"].is_null(), "{op}");
        for text in ["name", "call", "part", "pass", "lengths", "formula"] {
            assert!(op[text].as_str().is_some_and(|text| !text.is_empty()), "{op} lacks {text}");
        }
    }
    ops
}

#[test]
fn kernels_measures_every_op() {
    let bench = Case::new(json!({})).json(&["kernels"]);
    check_machine(&bench);
    assert_eq!((&bench["quick"], &bench["batch"]["tokens"]), (&json!(true), &json!(200)));
    let ops = check_ops(&bench);
    let named =
        |name: &str, lengths: &str| ops.iter().filter(|op| op["name"] == name && op["lengths"] == lengths).count();
    for name in ["embed", "linear qkv", "attention_backward", "vocab_cross_entropy", "adamw", "relu_dropout_backward"] {
        assert_eq!(named(name, "mixed"), 1, "{name}");
    }
    assert_eq!((named("attention", "equal"), named("linear qkv", "equal")), (1, 0));
    let op = |name: &str| ops.iter().find(|op| op["name"] == name).unwrap();
    assert_eq!(op("linear qkv")["flops"], json!(2.0 * 200.0 * 64.0 * 192.0));
    assert_eq!((&op("linear qkv")["times"], &op("class_cross_entropy")["times"]), (&json!(2), &json!(0)));
    assert_eq!(op("linear_backward qkv")["makes"], json!(["qkv d_W", "qkv d_x"]));
    // Of f32: branch, residual, sum and y, mean and reciprocal standard deviation.
    assert_eq!(op("add_layernorm output_norm")["bytes"], json!(4.0 * 4.0 * 200.0 * 64.0 + 8.0 * 200.0));
}

#[test]
fn people_see_units_formulas_and_ceilings() {
    let run = Case::new(json!({})).cpu(&["kernels", "--only", "linear qkv,gelu_backward"]);
    assert_eq!(run.code, Some(0), "{}", run.err);
    for part in
        ["FLOP/s", "B/s", "2 · 128 · 128 · 128 FLOP", "2 N·C·3C FLOP", "3 e·M·C bytes", "no datasheet", "A quick run"]
    {
        assert!(run.out.contains(part), "{part}: {}", run.out);
    }
    assert!(!run.out.contains("adamw"), "{}", run.out);
    assert!(run.err.contains("gelu_backward: "), "each op as it is measured: {}", run.err);
}

#[test]
fn train_measures_steps_and_their_ops() {
    let bench = Case::new(json!({})).json(&["train", "--steps", "4"]);
    check_machine(&bench);
    let seconds: Vec<f64> = bench["seconds"].as_array().unwrap().iter().map(number).collect();
    assert_eq!((seconds.len(), &bench["steps"], &bench["warm_up"]), (4, &json!(4), &json!(1)));
    let total: f64 = seconds.iter().sum();
    close(&bench["seconds_per_step"], total / 4.0);
    close(&bench["tokens_per_second"], 4.0 * 200.0 / total);
    close(&bench["flops_per_second"], number(&bench["flops_per_step"]) / total * 4.0);
    close(&bench["mfu"], number(&bench["flops_per_second"]) / number(&bench["mfu_of"]["flops_per_second"]));
    let losses = bench["losses"].as_array().unwrap();
    assert!(losses.len() == 6 && (number(&losses[0]) - 600f64.ln()).abs() < 0.2, "{losses:?}");
    let ops = check_ops(&bench);
    let sum = |field: &str| ops.iter().map(|op| number(&op["times"]) * number(&op[field])).sum::<f64>();
    close(&bench["ops_seconds"], sum("seconds"));
    assert!(ops.iter().all(|op| number(&op["times"]) >= 1.0));
    // Batches differ: the steps' targets are not exactly those of the ops.
    assert!((sum("flops") / number(&bench["flops_per_step"]) - 1.0).abs() < 0.2);
}

#[test]
fn train_saves_what_it_works_on_and_takes_a_token_set() {
    let case = Case::new(json!({ "vocab_size": 700 }));
    let dir = tempfile::tempdir().unwrap();
    let corpus = support::training::corpus(60, 3);
    let (set, save) = (corpus.set.dir().to_str().unwrap(), dir.path().to_str().unwrap());
    let bench = case.json(&["train", "--steps", "2", "--no-ops", "--data", set, "--batches", "5", "--save", save]);
    assert_eq!(bench["data"], json!(set));
    let config = Config::read(&dir.path().join("config.json")).unwrap();
    assert_eq!((config.vocab_size, config.n_layers), (700, 2));
    assert!(dir.path().join("model.safetensors").is_file());
    case.refused(&["train", "--steps", "2", "--no-ops", "--save", save], &["config.json is there already"]);
    let bytes = std::fs::read(dir.path().join("batches.safetensors")).unwrap();
    let saved = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let read = |name: &str| -> Vec<i32> {
        let tensor = saved.tensor(name).unwrap();
        assert_eq!(tensor.dtype(), safetensors::Dtype::I32);
        tensor.data().chunks_exact(4).map(|bytes| i32::from_le_bytes(bytes.try_into().unwrap())).collect()
    };
    assert_eq!(saved.names().iter().filter(|name| name.starts_with("ids.")).count(), 5);
    // One step warms up; the first that is timed works on the second batch.
    let (ids, ends) = (read("ids.1"), read("cu_seqlens.1"));
    assert_eq!(bench["batch"]["tokens"], json!(ids.len()));
    assert_eq!((ends[0], ends[ends.len() - 1] as usize), (0, ids.len()));
    let (rows, targets) = (read("masked_rows.1"), read("targets.1"));
    assert_eq!((rows.len(), &bench["batch"]["masked"]), (targets.len(), &json!(targets.len())));
    // Masks are of the token set's own tokenizer.
    let mask = corpus.tokenizer.special().mask as i32;
    assert!(rows.iter().any(|&row| ids[row as usize] == mask));
    case.refused(&["train", "--device", "cpu", "--data", "no such set"], &["no such set"]);
    case.refused(&["train", "--device", "cpu", "--batches", "5"], &["--data"]);
}

#[test]
fn predict_measures_forward_passes() {
    let case = Case::new(json!({}));
    let bench = case.json(&["predict", "--steps", "3", "--lengths", "equal"]);
    check_machine(&bench);
    // As many whole sequences of 128 as fit.
    assert_eq!((&bench["batch"]["tokens"], &bench["batch"]["sequences"]), (&json!(128), &json!(1.0)));
    close(&bench["rows_per_second"], number(&bench["tokens_per_second"]) / 128.0);
    assert!(check_ops(&bench).iter().all(|op| op["pass"] == "forward"));
    let without = case.json(&["predict", "--no-ops"]);
    assert!(without["ops"].is_null() && without["losses"].is_null());
    assert!(number(&without["rows_per_second"]) > 0.0);
}

#[test]
fn what_cannot_be_measured_is_refused() {
    let case = Case::new(json!({}));
    case.refused(&["kernels", "--device", "cpu", "--only", "convolution"], &["convolution", "linear_backward qkv"]);
    case.refused(&["train", "--device", "cpu", "--steps", "0"], &["--steps"]);
    case.refused(&["train", "--device", "tpu"], &["expected auto, cpu, cuda or cuda:N"]);
    Case::new(json!({ "vocab_size": 5 })).refused(&["predict", "--device", "cpu"], &["vocabulary of 5"]);
    Case::new(json!({ "activation": "relu" })).refused(&["train", "--device", "cpu"], &["activation"]);
    let run = case.run(&["kernels", "--device", "cuda", "--only", "zero"]);
    if run.code == Some(0) {
        return skip::skipped("this machine has a GPU");
    }
    run.exits(2).says(&["--device cpu"]);
}

// ---- The simulated GPU -------------------------------------------------------------------------------------------------

/// One run of one set of operands.
const LEAST: Effort = Effort { runs: 1, run_seconds: 0.0, cold_bytes: 0.0, copy_values: 512, product: [64; 3] };

fn smallest() -> Config {
    Config {
        vocab_size: 100,
        max_position_embeddings: 32,
        n_layers: 2,
        n_heads: 1,
        dim: 64,
        hidden_dim: 128,
        ..base_config()
    }
}

#[test]
fn every_call_can_be_recorded_on_a_simulated_gpu() {
    let Some(be) = sim_device::backend() else { return };
    let measured = Measured::new(&be, &LEAST).unwrap();
    assert!(measured.ceilings().bandwidth > 0.0);
    let config = smallest();
    let wanted = Wanted { config: &config, tokens: 40, effort: &LEAST, only: &[] };
    let measured = wanted.everything(&be, &mut |_| {}).unwrap();
    assert!(measured.len() > 35);
    for m in &measured {
        let timing = m.outcome.as_ref().unwrap_or_else(|error| panic!("{}: {error}", m.name));
        assert_eq!((timing.runs, timing.sets), (1, 1), "{}", m.name);
    }
}

#[test]
fn sets_take_turns_on_a_simulated_gpu() {
    let Some(be) = sim_device::backend() else { return };
    let (config, only) = (smallest(), ["gelu_backward".to_owned(), "add_layernorm_backward mlm".to_owned()]);
    let effort = Effort { cold_bytes: 10_000.0, runs: 2, ..LEAST };
    let wanted = Wanted { config: &config, tokens: 40, effort: &effort, only: &only };
    let measured = wanted.everything(&be, &mut |_| {}).unwrap();
    assert_eq!(measured.len(), 2);
    for m in &measured {
        let timing = m.outcome.as_ref().unwrap_or_else(|error| panic!("{}: {error}", m.name));
        assert_eq!(timing.sets as f64, (10_000.0 / m.cost().bytes).ceil(), "{}", m.name);
        assert!(timing.sets > 1 && timing.calls == timing.sets && timing.runs == 2);
    }
}

#[test]
fn passes_are_measured_on_a_simulated_gpu() {
    let Some(be) = sim_device::backend() else { return };
    let config = smallest();
    let batches = pass::random_batches(&config, Lengths::Mixed, 40, 1);
    let plan = Plan { config: &config, batches: &batches, warm_up: 2, timed: 3, seed: 1 };
    let steps = pass::train(&be, &plan).unwrap();
    assert!((steps.losses[0] - 100f64.ln()).abs() < 0.2 && steps.losses.len() == 6, "{:?}", steps.losses);
    let paces = pass::predict(&be, &plan).unwrap();
    assert_eq!((paces.0.len(), paces.0[0].load.tokens), (3, 40));
}
