//! `handbert fill-mask`, the program itself, on a tiny model.

use std::process::{Command, Output};

use handbert::backend::cpu::Cpu;
use handbert::backend::{BatchView, Capacity};
use handbert::data::Tokenizer;
use handbert::model::hub::{self, Wanted};
use handbert::model::{DistilBert, Mode};
use serde_json::Value;

use crate::model_dir::ModelDir;

/// The fixture with a vocabulary of `tokens`: the special ones, then a, b, c …, word5, word6 …
fn model(fixture: &str, tokens: usize) -> ModelDir {
    let model = ModelDir::copy(fixture);
    let special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"].map(str::to_owned);
    let words = (special.len()..tokens).map(|i| format!("word{i}"));
    let vocab: String = special.into_iter().chain(words).map(|token| token + "\n").collect();
    std::fs::write(model.path().join("vocab.txt"), vocab).unwrap();
    model
}

fn fill_mask(model: &ModelDir, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_handbert"));
    command.env("HANDBERT_DEVICE", "cpu").env_remove("RUST_LOG");
    command.args(["fill-mask", "--model"]).arg(model.path()).args(arguments).output().unwrap()
}

fn json(model: &ModelDir, arguments: &[&str]) -> Value {
    let output = fill_mask(model, &[&["--json"], arguments].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// It ends with exit code 2, nothing on stdout, and says all of these.
fn refused(model: &ModelDir, arguments: &[&str], says: &[&str]) {
    let output = fill_mask(model, arguments);
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{error}");
    assert!(output.stdout.is_empty());
    for part in says {
        assert!(error.contains(part), "{error:?} does not say {part:?}");
    }
}

/// What the library says for ids with the mask at these rows: (token, probability), best first.
fn expected(model: &ModelDir, ids: &[u32], masked_rows: &[u32], k: usize) -> Vec<Vec<(String, f32)>> {
    let (be, tokenizer) = (Cpu::new(), Tokenizer::load(model.path()).unwrap());
    let loaded = hub::load(model.path(), &Wanted::AsSaved, 0).unwrap();
    let model = DistilBert::new(&be, loaded.config, loaded.head, &loaded.values).unwrap();
    let capacity = Capacity { tokens: ids.len(), sequences: 1, masked: masked_rows.len() };
    let mut ws = model.workspace(&be, capacity, Mode::Inference, 0).unwrap();
    let position_ids: Vec<u32> = (0..ids.len() as u32).collect();
    let targets = vec![0; masked_rows.len()];
    let cu_seqlens = &[0, ids.len() as u32];
    let view = BatchView {
        ids,
        position_ids: &position_ids,
        cu_seqlens,
        masked_rows,
        targets: &targets,
        ..Default::default()
    };
    model.upload(&be, &view, &mut ws).unwrap();
    let named = |(id, p): (u32, f32)| (tokenizer.token(id).unwrap().to_owned(), p);
    let lists = model.top_k(&be, &mut ws, k).unwrap();
    lists.into_iter().map(|best| best.into_iter().map(named).collect()).collect()
}

fn pairs(list: &Value) -> Vec<(String, f32)> {
    let pair = |item: &Value| (item["token"].as_str().unwrap().into(), item["score"].as_f64().unwrap() as f32);
    list.as_array().unwrap().iter().map(pair).collect()
}

#[test]
fn the_best_tokens_come_first_with_their_probabilities() {
    let model = model("mlm", 120);
    let five = pairs(&json(&model, &["word7 [MASK] word9"]));
    assert_eq!(five, expected(&model, &[2, 7, 4, 9, 3], &[2], 5)[0]);
    let all = pairs(&json(&model, &["word7 [MASK] word9", "--top-k", "1000"]));
    assert_eq!((all.len(), &all[..5]), (120, &five[..]));
    assert!((all.iter().map(|(_, p)| p).sum::<f32>() - 1.0).abs() < 1e-5);
}

#[test]
fn each_of_several_masks_gets_a_list() {
    let model = model("mlm", 120);
    let lists = json(&model, &["[MASK] word7 [MASK]", "--top-k", "2"]);
    let lists: Vec<_> = lists.as_array().unwrap().iter().map(pairs).collect();
    assert_eq!(lists, expected(&model, &[2, 4, 7, 4, 3], &[1, 3], 2));

    let text = String::from_utf8(fill_mask(&model, &["[MASK] word7 [MASK]", "--top-k", "2"]).stdout).unwrap();
    assert_eq!(text.lines().count(), 2 * 3 + 1, "{text}");
    assert!(text.starts_with("[MASK] 1 of 2\n") && text.contains(&format!("  {}\n", lists[1][0].0)), "{text}");
}

#[test]
fn what_cannot_be_filled_is_said() {
    let mlm = model("mlm", 120);
    refused(&mlm, &["word7 word9"], &["no [MASK]"]);
    let long = format!("[MASK]{}", " word8".repeat(62));
    refused(&mlm, &[&long], &["65 tokens", "takes 64", "shorten"]);
    assert_eq!(pairs(&json(&mlm, &[long.rsplit_once(' ').unwrap().0])).len(), 5, "as long as it takes");
    refused(&mlm, &["[MASK]", "--top-k", "0"], &["--top-k"]);
    refused(&model("classifier", 90), &["[MASK]"], &["is a classifier", "handbert train mlm"]);
    refused(&model("bare", 60), &["[MASK]"], &["no trained head", "handbert train mlm"]);
    refused(&model("mlm", 300), &["[MASK]"], &["vocab_size", "is 120", "300 tokens"]);
    refused(&ModelDir::copy("mlm"), &["[MASK]"], &["tokenizer.json", "vocab.txt"]);
}
