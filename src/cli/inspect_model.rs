//! `handbert inspect` of a model directory or a checkpoint.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::figures;
use crate::data::tokenizer::Tokenizer;
use crate::model::hub::tensors::TensorFile;
use crate::model::hub::{self, Wanted, Weights};
use crate::model::{Config, Error, Head, ParamTable};
use crate::train::checkpoint::Checkpoint;

/// What a checkpoint keeps beside the model: moments, and where the run stood.
const STATE: &str = "handbert_state.safetensors";
const RUN: &str = "run.json";

/// The fields of the configuration that people are shown.
const SHOWN: [&str; 9] = [
    "n_layers",
    "dim",
    "n_heads",
    "hidden_dim",
    "vocab_size",
    "max_position_embeddings",
    "dropout",
    "attention_dropout",
    "seq_classif_dropout",
];

/// Files of which one makes a tokenizer.
const TOKENIZERS: [&str; 2] = ["tokenizer.json", "vocab.txt"];

/// What is in a model directory or a checkpoint, for programs and for people. Weights with a checksum are checked in
/// any case; with `verify`, every tensor is read, the tokenizer is held against the model, and every file of a
/// checkpoint against the checksums that `run.json` keeps, its own among them.
pub(super) fn describe_model(dir: &Path, verify: bool) -> Result<(Value, String)> {
    let config = Config::read(&dir.join(hub::CONFIG))?;
    let weights = Weights::open(dir)?;
    let loaded = match hub::load(dir, &Wanted::AsSaved, 0) {
        // A bare encoder is a model too; its own tensors are those of any head's.
        Err(Error::Head { .. }) => hub::load(dir, &Wanted::Mlm, 0)?,
        other => other?,
    };
    let table = ParamTable::new(&loaded.config, loaded.head);
    let stored: Vec<_> = table.specs.iter().filter(|spec| !loaded.fresh.contains(&spec.hf_name)).collect();
    let bytes: usize = weights.files().iter().map(TensorFile::size).sum();
    let checksummed = weights.files().iter().all(TensorFile::is_checksummed);
    let tokenizer = describe_tokenizer(dir, &config, verify)?;
    let checkpoint = describe_checkpoint(dir, &table, verify)?;

    let mut json = json!({
        "kind": if checkpoint.is_null() { "model" } else { "checkpoint" },
        "head": match (loaded.fresh.is_empty(), loaded.head) {
            (false, _) => "none",
            (true, Head::Mlm) => "mlm",
            (true, Head::Classifier { .. }) => "classifier",
        },
        "labels": loaded.config.labels,
        "parameters": stored.iter().map(|spec| spec.span.len).sum::<usize>(),
        "tensors": stored.len(),
        "dtype": dtypes(&weights),
        "files": weights.files().len(),
        "bytes": bytes,
        "checksum": checksummed,
        "tokenizer": tokenizer,
        "config": loaded.config.to_json(loaded.head.architecture()),
    });
    if !checkpoint.is_null() {
        json["checkpoint"] = checkpoint;
    }
    if verify {
        json["verified"] = json!(true);
    }
    let text = as_text(dir, &json);
    Ok((json, text))
}

/// Element types of the weights, each once.
fn dtypes(weights: &Weights) -> String {
    let types: BTreeSet<String> = weights.iter().filter_map(|(_, file, name)| file.dtype(name)).collect();
    Vec::from_iter(types).join(", ")
}

/// Null where there is none.
fn describe_tokenizer(dir: &Path, config: &Config, verify: bool) -> Result<Value> {
    let Some(file) = TOKENIZERS.iter().find(|name| dir.join(name).exists()) else { return Ok(Value::Null) };
    if !verify {
        return Ok(json!({ "file": file }));
    }
    let tokenizer = Tokenizer::load(dir)?;
    config.check_vocabulary(tokenizer.vocab_size(), dir)?;
    Ok(json!({ "file": file, "tokens": tokenizer.vocab_size(), "fingerprint": tokenizer.fingerprint() }))
}

/// Null where the directory is no checkpoint.
fn describe_checkpoint(dir: &Path, table: &ParamTable, verify: bool) -> Result<Value> {
    let run = dir.join(RUN);
    if !run.exists() {
        return Ok(Value::Null);
    }
    let text = std::fs::read_to_string(&run).with_context(|| run.display().to_string())?;
    let run: Value = serde_json::from_str(&text).with_context(|| format!("{}: not valid JSON", run.display()))?;
    if verify {
        Checkpoint::open(dir)?.moments(table)?;
    }
    Ok(json!({ "step": run.get("step"), "moments": dir.join(STATE).exists() }))
}

fn as_text(dir: &Path, json: &Value) -> String {
    let mut lines = Vec::new();
    let checkpoint = &json["checkpoint"];
    if !checkpoint.is_null() {
        let moments = if checkpoint["moments"] == true { "with" } else { "without" };
        lines.push(("checkpoint", format!("step {}, {moments} moments", plain(&checkpoint["step"]))));
    }
    lines.push(("head", plain(&json["head"])));
    let labels: Vec<_> = json["labels"].as_array().into_iter().flatten().map(plain).collect();
    if !labels.is_empty() {
        lines.push(("labels", labels.join(", ")));
    }
    lines.push(("parameters", format!("{} in {} tensors", grouped(&json["parameters"]), json["tensors"])));
    let checksum = match (json["checksum"] == true, json["verified"] == true) {
        (true, _) => "checksum right",
        (false, true) => "no checksum, as another program wrote them; every value is a number",
        (false, false) => "no checksum, as another program wrote them",
    };
    let files = if json["files"] == 1 { "1 file".to_owned() } else { format!("{} files", json["files"]) };
    let (dtype, bytes) = (plain(&json["dtype"]), grouped(&json["bytes"]));
    lines.push(("weights", format!("{dtype}, {bytes} bytes in {files}, {checksum}")));
    let tokenizer = &json["tokenizer"];
    let tokens = tokenizer.get("tokens").map_or(String::new(), |tokens| format!(", {tokens} tokens"));
    lines.push(("tokenizer", tokenizer.get("file").map_or("none".into(), |file| plain(file) + &tokens)));
    lines.extend(SHOWN.map(|field| (field, plain(&json["config"][field]))));

    let mut text = format!("{}\n", dir.display());
    for (what, value) in lines {
        let _ = writeln!(text, "  {what:<24} {value}");
    }
    text
}

/// Strings without their quotes.
fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// 66985530 as 66,985,530.
pub(super) fn grouped(number: &Value) -> String {
    number.as_u64().map_or_else(|| number.to_string(), figures::grouped)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fixture(name: &str) -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/hf").join(name)
    }

    #[test]
    fn models_are_described_by_head_size_and_type() {
        let (json, text) = describe_model(&fixture("classifier"), false).unwrap();
        assert_eq!((&json["kind"], &json["head"]), (&json!("model"), &json!("classifier")));
        assert_eq!(json["labels"], json!(["LABEL_0", "LABEL_1", "LABEL_2"]));
        assert_eq!((&json["dtype"], &json["tensors"]), (&json!("F32"), &json!(24)));
        assert_eq!((&json["tokenizer"], &json["checksum"]), (&Value::Null, &json!(false)));
        assert!(text.contains("labels                   LABEL_0, LABEL_1, LABEL_2\n"), "{text}");
        assert!(text.contains("47,811 in 24 tensors") && text.contains("dropout                  0.15\n"), "{text}");

        let (bare, text) = describe_model(&fixture("bare"), true).unwrap();
        assert_eq!((&bare["head"], &bare["tensors"], &bare["dtype"]), (&json!("none"), &json!(20), &json!("F16")));
        assert!(text.contains("no checksum, as another program wrote them; every value is a number"), "{text}");
    }

    #[test]
    fn a_checkpoint_tells_its_step_and_its_damage() {
        let loaded = hub::load(&fixture("mlm"), &Wanted::AsSaved, 0).unwrap();
        let table = ParamTable::new(&loaded.config, loaded.head);
        let dir = tempfile::tempdir().unwrap();
        hub::save(dir.path(), &loaded.config, loaded.head, &table, &loaded.values).unwrap();
        hub::save_flat(&dir.path().join(STATE), &table, &[("m", &loaded.values), ("v", &loaded.values)]).unwrap();
        std::fs::write(dir.path().join(RUN), r#"{"step": 120}"#).unwrap();
        let (json, text) = describe_model(dir.path(), false).unwrap();
        assert_eq!((&json["kind"], &json["checkpoint"]["step"]), (&json!("checkpoint"), &json!(120)));
        assert!(text.contains("step 120, with moments") && text.contains("checksum right"), "{text}");

        // Valid JSON that no run wrote: only the checksums tell.
        assert!(describe_model(dir.path(), true).unwrap_err().to_string().contains(RUN));
        std::fs::write(dir.path().join(RUN), "{").unwrap();
        assert!(describe_model(dir.path(), false).unwrap_err().to_string().contains("run.json: not valid JSON"));
    }

    #[test]
    fn a_tokenizer_that_does_not_fit_is_found_out() {
        let dir = tempfile::tempdir().unwrap();
        for file in ["config.json", "model.safetensors"] {
            std::fs::copy(fixture("mlm").join(file), dir.path().join(file)).unwrap();
        }
        let vocab: String = (0..400).map(|i| format!("word{i}\n")).collect();
        std::fs::write(dir.path().join("vocab.txt"), format!("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n{vocab}")).unwrap();
        assert_eq!(describe_model(dir.path(), false).unwrap().0["tokenizer"], json!({ "file": "vocab.txt" }));
        let error = describe_model(dir.path(), true).unwrap_err().to_string();
        assert!(error.contains("vocab_size") && error.contains("405 tokens"), "{error}");
    }

    #[test]
    fn digits_are_grouped_by_three() {
        let grouped: Vec<_> = [json!(0), json!(999), json!(1000), json!(66_985_530)].iter().map(grouped).collect();
        assert_eq!(grouped, ["0", "999", "1,000", "66,985,530"]);
    }
}
