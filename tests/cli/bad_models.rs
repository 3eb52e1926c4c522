//! Models that cannot be used: which file, which field or tensor, what to do; exit code 2.

use std::path::{Path, PathBuf};

use safetensors::SafeTensors;

use super::support::{Run, arg, config, copy_dir, flip_a_bit, handbert, scratch, tiny};

fn predict_with(model: &Path) -> Run {
    let out = model.with_extension("out.jsonl");
    let run = handbert(["predict", arg(&tiny().postings), "--model", arg(model), "--out", arg(&out)]);
    assert!(!out.exists());
    run
}

/// A copy, in a directory that must outlive it.
fn copy_of_the_classifier(dir: &Path) -> PathBuf {
    let model = dir.join("model");
    copy_dir(&tiny().classifier, &model);
    model
}

fn edit_config(model: &Path, edit: impl Fn(&mut serde_json::Value)) {
    let path = model.join("config.json");
    let mut config: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    edit(&mut config);
    std::fs::write(&path, config.to_string()).unwrap();
}

#[test]
fn a_language_model_cannot_label() {
    predict_with(&tiny().mlm).exits(2).says(&["classifier", "handbert train classifier"]);
    let args = ["fill-mask", "--model", arg(&tiny().classifier), "a [MASK]"];
    handbert(args).exits(2).says(&["classifier"]);
}

#[test]
fn no_such_model_and_no_weights() {
    let dir = scratch("no-model");
    let out = dir.join("o.jsonl");
    let args = ["predict", arg(&tiny().postings), "--out", arg(&out), "--model"];
    handbert(args.into_iter().chain(["./no-such-dir"])).exits(2).says(&["no-such-dir"]);
    handbert(args.into_iter().chain(["nobody/no-such-model"])).exits(2).says(&["nobody/no-such-model"]);
    let dir = scratch("no-weights");
    let model = copy_of_the_classifier(&dir);
    std::fs::remove_file(model.join("model.safetensors")).unwrap();
    predict_with(&model).exits(2).says(&["model.safetensors"]);
    std::fs::remove_file(model.join("config.json")).unwrap();
    predict_with(&model).exits(2).says(&["config.json"]);
}

#[test]
fn no_tokenizer() {
    let dir = scratch("no-tokenizer");
    let model = copy_of_the_classifier(&dir);
    for name in ["tokenizer.json", "vocab.txt"] {
        std::fs::remove_file(model.join(name)).unwrap();
    }
    predict_with(&model).exits(2).says(&["tokenizer.json"]);
}

#[test]
fn an_unknown_activation_and_other_fields() {
    let t = tiny();
    let dir = scratch("activation");
    let model = copy_of_the_classifier(&dir);
    edit_config(&model, |c| c["activation"] = "swish".into());
    predict_with(&model).exits(2).says(&["config.json", "activation", "swish"]);
    edit_config(&model, |c| {
        c["activation"] = "gelu".into();
        c["n_heads"] = 3.into();
    });
    predict_with(&model).exits(2).says(&["config.json", "n_heads"]);
    let file = dir.join("config.json");
    std::fs::write(&file, config(600, "relu")).unwrap();
    let out = file.with_file_name("run");
    let args = ["train", "mlm", "--config", arg(&file), "--data", arg(&t.tokens), "--out", arg(&out)];
    handbert(args).exits(2).says(&["activation", "relu"]);
    assert!(!out.exists());
}

#[test]
fn a_missing_layer() {
    let dir = scratch("layer");
    let model = copy_of_the_classifier(&dir);
    let path = model.join("model.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let kept: Vec<_> = tensors.iter().filter(|(name, _)| !name.contains("layer.1.ffn")).collect();
    let metadata = Some([("format".to_owned(), "pt".to_owned())].into());
    let damaged = safetensors::serialize(kept, metadata).unwrap();
    std::fs::write(&path, damaged).unwrap();
    predict_with(&model).exits(2).says(&["model.safetensors", "layer.1.ffn"]);
    let dir = scratch("more-layers");
    let model = copy_of_the_classifier(&dir);
    edit_config(&model, |c| c["n_layers"] = 3.into());
    predict_with(&model).exits(2).says(&["layer.2."]);
}

#[test]
fn damaged_weights() {
    let dir = scratch("weights");
    let model = copy_of_the_classifier(&dir);
    let path = model.join("model.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() - 4]).unwrap();
    predict_with(&model).exits(2).says(&["model.safetensors"]);
    std::fs::write(&path, b"not a safetensors file at all").unwrap();
    predict_with(&model).exits(2).says(&["model.safetensors"]);
}

#[test]
fn a_flipped_byte_in_a_checkpoint() {
    let dir = scratch("flipped-checkpoint");
    let run = dir.join("run");
    copy_dir(&tiny().mlm, &run);
    let checkpoint = std::fs::read_dir(&run)
        .unwrap()
        .map(|e| e.unwrap().path())
        .filter(|p| p.file_name().unwrap().to_string_lossy().starts_with("checkpoint-"))
        .max()
        .expect("training saved a checkpoint");
    for name in ["model.safetensors", "handbert_state.safetensors", "run.json"] {
        let file = checkpoint.join(name);
        let good = std::fs::read(&file).unwrap();
        flip_a_bit(&file);
        handbert(["train", "mlm", "--out", arg(&run), "--resume"]).exits(2).says(&[name]);
        handbert(["inspect", arg(&checkpoint), "--verify"]).exits(2).says(&[name]);
        std::fs::write(&file, good).unwrap();
    }
    // A digit that became another: still valid JSON of the right shape.
    let file = checkpoint.join("run.json");
    let text = std::fs::read_to_string(&file).unwrap();
    let step = text.find("\"step\": 6").expect("the step is there") + "\"step\": ".len();
    std::fs::write(&file, format!("{}7{}", &text[..step], &text[step + 1..])).unwrap();
    handbert(["inspect", arg(&checkpoint), "--verify"]).exits(2).says(&["run.json", "checksum"]);
    std::fs::write(&file, text).unwrap();
    handbert(["inspect", arg(&checkpoint), "--verify"]).exits(0);
}

#[test]
fn numbers_that_do_not_fit_the_model() {
    let t = tiny();
    let dir = scratch("numbers");
    let out = dir.join("out.jsonl");
    let predict = ["predict", arg(&t.postings), "--model", arg(&t.classifier), "--out", arg(&out)];
    for (flag, value, says) in [
        ("--max-length", "129", "128"),
        ("--max-length", "2", "--max-length"),
        ("--batch-tokens", "100", "--batch-tokens"),
        ("--window-stride", "40", "--long windows"),
        ("--threshold", "nan", "--threshold"),
        ("--device", "tpu", "cuda:N"),
        ("--threads", "100000000", "1024"),
    ] {
        handbert(predict.into_iter().chain([flag, value])).exits(2).says(&[says]);
    }
    let stride = ["--long", "windows", "--window-stride", "500"];
    handbert(predict.into_iter().chain(stride)).exits(2).says(&["--window-stride"]);
    assert!(!out.exists());
}
