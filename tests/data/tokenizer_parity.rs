//! The tokenizer against transformers, token for token. `fixtures/make_tokenizer_fixtures.py` made the
//! expected ids; with HANDBERT_PYTHON naming a Python that has transformers, what we save is also loaded there.

use std::path::{Path, PathBuf};
use std::process::Command;

use handbert::data::Tokenizer;
use proptest::prelude::*;
use serde_json::Value;

use crate::skip::skipped;

const VARIANTS: [&str; 2] = ["uncased", "cased"];

fn fixture(variant: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tokenizer").join(variant)
}

fn expected(variant: &str) -> Value {
    serde_json::from_slice(&std::fs::read(fixture(variant).join("expected.json")).unwrap()).unwrap()
}

fn ids_of(case: &Value) -> Vec<u32> {
    case["ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

/// A directory with some of the fixture's files.
fn partial(variant: &str, files: &[&str]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for file in files {
        std::fs::copy(fixture(variant).join(file), dir.path().join(file)).unwrap();
    }
    dir
}

fn assert_agrees(tokenizer: &Tokenizer, variant: &str) {
    let expected = expected(variant);
    let cases = expected["cases"].as_array().unwrap();
    assert!(cases.len() > 200);
    let texts: Vec<String> = cases.iter().map(|case| case["text"].as_str().unwrap().to_owned()).collect();
    let batch = tokenizer.encode_batch(&texts).unwrap();
    for ((case, text), ids) in cases.iter().zip(&texts).zip(&batch) {
        assert_eq!(ids, &ids_of(case), "{variant}: {text:?}");
        assert_eq!(&tokenizer.encode(text).unwrap(), ids, "{variant}: {text:?}");
        assert_eq!(tokenizer.decode(ids), case["decoded"].as_str().unwrap(), "{variant}: {text:?}");
    }
}

#[test]
fn hard_texts_get_the_ids_of_transformers() {
    for variant in VARIANTS {
        assert_agrees(&Tokenizer::load(&fixture(variant)).unwrap(), variant);
    }
}

#[test]
fn a_vocabulary_alone_is_enough() {
    for variant in VARIANTS {
        let whole = Tokenizer::load(&fixture(variant)).unwrap();
        let dir = partial(variant, &["vocab.txt", "tokenizer_config.json"]);
        let alone = Tokenizer::load(dir.path()).unwrap();
        assert_agrees(&alone, variant);
        assert_eq!(alone.fingerprint(), whole.fingerprint());
        assert_eq!(alone.special(), whole.special());
        assert_eq!(alone.vocab_size(), whole.vocab_size());
    }
    // Without a configuration, BERT's defaults: uncased.
    let dir = partial("uncased", &["vocab.txt"]);
    assert_agrees(&Tokenizer::load(dir.path()).unwrap(), "uncased");
}

#[test]
fn settings_of_the_configuration_win_as_in_transformers() {
    let settings = [
        // (tokenizer_config.json, whether the cased tokenizer.json stays cased)
        (r#"{"tokenizer_class": "DistilBertTokenizer", "do_lower_case": true}"#, false),
        (r#"{"tokenizer_class": "BertTokenizerFast"}"#, false),
        (r#"{"tokenizer_class": "BertTokenizerFast", "do_lower_case": false}"#, true),
        (r#"{"tokenizer_class": "PreTrainedTokenizerFast", "do_lower_case": true}"#, true),
        (r#"{"do_lower_case": true}"#, true),
    ];
    let cased = Tokenizer::load(&fixture("cased")).unwrap().encode("Remote").unwrap();
    for (config, stays_cased) in settings {
        let dir = partial("cased", &["tokenizer.json"]);
        std::fs::write(dir.path().join("tokenizer_config.json"), config).unwrap();
        let ids = Tokenizer::load(dir.path()).unwrap().encode("Remote").unwrap();
        assert_eq!(ids == cased, stays_cased, "{config}");
    }
    // Without a class, the model's kind decides it.
    let dir = partial("cased", &["tokenizer.json"]);
    std::fs::write(dir.path().join("config.json"), r#"{"model_type": "distilbert"}"#).unwrap();
    assert_ne!(Tokenizer::load(dir.path()).unwrap().encode("Remote").unwrap(), cased);
}

#[test]
fn a_very_long_text_is_cut_for_the_threads_without_changing_an_id() {
    for variant in VARIANTS {
        let tokenizer = Tokenizer::load(&fixture(variant)).unwrap();
        let long = &expected(variant)["long"];
        let text = long["unit"].as_str().unwrap().repeat(long["repeat"].as_u64().unwrap() as usize);
        let ids = tokenizer.encode(&text).unwrap();
        assert_eq!(ids.len() as u64, long["tokens"].as_u64().unwrap());
        let places = ids.iter().zip(1u32..);
        let checksum = places.fold(0u32, |sum, (&id, place)| sum.wrapping_add(id.wrapping_mul(place)));
        assert_eq!(u64::from(checksum), long["checksum"].as_u64().unwrap());
    }
}

#[test]
fn what_is_saved_loads_again_and_gives_the_same_ids() {
    for variant in VARIANTS {
        let tokenizer = Tokenizer::load(&fixture(variant)).unwrap();
        let dir = tempfile::tempdir().unwrap();
        tokenizer.save(dir.path()).unwrap();
        let again = Tokenizer::load(dir.path()).unwrap();
        assert_agrees(&again, variant);
        assert_eq!(again.fingerprint(), tokenizer.fingerprint());
        assert_ne!(again.fingerprint(), Tokenizer::load(&fixture(other(variant))).unwrap().fingerprint());
        std::fs::remove_file(dir.path().join("tokenizer.json")).unwrap();
        assert_agrees(&Tokenizer::load(dir.path()).unwrap(), variant);
    }
}

fn other(variant: &str) -> &'static str {
    if variant == "cased" { "uncased" } else { "cased" }
}

#[test]
fn roles_of_tokens() {
    let tokenizer = Tokenizer::load(&fixture("uncased")).unwrap();
    let special = tokenizer.special();
    assert_eq!([special.pad, special.unk, special.cls, special.sep, special.mask], [0, 100, 101, 102, 103]);
    for id in 0..tokenizer.vocab_size() as u32 {
        let token = tokenizer.token(id).unwrap();
        assert_eq!(tokenizer.id(token), Some(id));
        assert_eq!(tokenizer.is_continuation(id), token.starts_with("##"), "{token}");
        assert_eq!(tokenizer.is_special(id), [0, 100, 101, 102, 103].contains(&id), "{token}");
    }
    assert_eq!(tokenizer.token(tokenizer.vocab_size() as u32), None);
    assert!(!tokenizer.is_special(u32::MAX) && !tokenizer.is_continuation(u32::MAX));
}

#[test]
fn damaged_tokenizers_are_named() {
    let empty = tempfile::tempdir().unwrap();
    let cases: [(&str, &[u8], &[&str]); 7] = [
        ("other.txt", b"", &["no tokenizer.json and no vocab.txt"]),
        ("tokenizer.json", b"{", &["tokenizer.json: not a JSON object"]),
        ("tokenizer.json", b"{}", &["\"model.type\" is \"none\"", "WordPiece"]),
        ("tokenizer.json", br#"{"model": {"type": "BPE"}}"#, &["\"model.type\" is \"BPE\"", "WordPiece"]),
        ("tokenizer.json", br#"{"model": {"type": "WordPiece"}}"#, &["not a tokenizer"]),
        (
            "vocab.txt",
            b"[PAD]\n[UNK]\n[CLS]\n[SEP]\nremote\n",
            &["vocab.txt: mask_token \"[MASK]\" is not in the vocabulary"],
        ),
        ("vocab.txt", b"[PAD]\n\xff\xfe\n", &["vocab.txt: byte 6 is not UTF-8"]),
    ];
    for (name, bytes, wanted) in cases {
        let file = empty.path().join(name);
        std::fs::write(&file, bytes).unwrap();
        let error = Tokenizer::load(empty.path()).unwrap_err().to_string();
        assert!(wanted.iter().all(|w| error.contains(w)), "{error}");
        std::fs::remove_file(file).unwrap();
    }
}

/// The same tokenizer without the fast path: a normalised added token that no text holds switches it off.
fn slow(variant: &str) -> (tempfile::TempDir, Tokenizer) {
    let dir = partial(variant, &["tokenizer_config.json"]);
    let mut json: Value =
        serde_json::from_slice(&std::fs::read(fixture(variant).join("tokenizer.json")).unwrap()).unwrap();
    let added = json["added_tokens"].as_array_mut().unwrap();
    let mut token = added[0].clone();
    token["id"] = 5000.into();
    token["content"] = "qzqzxqzqzxqzqz".into();
    token["special"] = false.into();
    token["normalized"] = true.into();
    added.push(token);
    std::fs::write(dir.path().join("tokenizer.json"), json.to_string()).unwrap();
    let tokenizer = Tokenizer::load(dir.path()).unwrap();
    (dir, tokenizer)
}

#[test]
fn the_fast_path_gives_the_ids_of_the_crate() {
    for variant in VARIANTS {
        let fast = Tokenizer::load(&fixture(variant)).unwrap();
        let (_dir, slow) = slow(variant);
        let piece = prop_oneof![
            4 => "[ -~]{0,12}",
            2 => "[\\x00-\\x7f]{0,6}",
            2 => "(remote|Work|nurse|[A-Z][a-z]{0,3})(ing|s|er)?",
            1 => "\\PC{0,4}",
            1 => "\\[(MASK|SEP|CLS|UNK|PAD)?\\]?",
            1 => "[\\t\\n\\r \u{85}\u{a0}\u{2003}]{1,3}",
        ];
        let text = proptest::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat());
        let mut runner =
            proptest::test_runner::TestRunner::new(ProptestConfig { cases: 2000, ..ProptestConfig::default() });
        runner
            .run(&text, |text| {
                prop_assert_eq!(fast.encode(&text).unwrap(), slow.encode(&text).unwrap());
                Ok(())
            })
            .unwrap();
    }
}

#[test]
fn what_we_save_loads_in_transformers() {
    let Ok(python) = std::env::var("HANDBERT_PYTHON") else {
        return skipped("HANDBERT_PYTHON names no Python with transformers");
    };
    let texts = expected("uncased")["cases"].as_array().unwrap().iter().map(|c| c["text"].clone()).collect::<Value>();
    let words: Vec<String> =
        (0..400).map(|i| format!("Remote café work {} nurse{} 東京 {}", i % 7, i % 13, i % 5)).collect();
    let trained = Tokenizer::train(words.into_iter().map(Ok), 300).unwrap();
    let loaded = VARIANTS.map(|variant| Tokenizer::load(&fixture(variant)).unwrap());
    for tokenizer in loaded.iter().chain([&trained]) {
        let dir = tempfile::tempdir().unwrap();
        tokenizer.save(dir.path()).unwrap();
        std::fs::write(dir.path().join("texts.json"), texts.to_string()).unwrap();
        let script = "import json, sys; from transformers import AutoTokenizer; d = sys.argv[1]\n\
                      t = AutoTokenizer.from_pretrained(d)\n\
                      assert type(t).__name__.startswith(('Bert', 'DistilBert')), type(t)\n\
                      assert t.model_max_length == 512\n\
                      print(json.dumps([t(x)['input_ids'] for x in json.load(open(d + '/texts.json'))]))";
        let output = Command::new(&python).args(["-c", script]).arg(dir.path()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let theirs: Vec<Vec<u32>> = serde_json::from_slice(&output.stdout).unwrap();
        let special = tokenizer.special();
        for (text, theirs) in texts.as_array().unwrap().iter().zip(theirs) {
            let ours = tokenizer.encode(text.as_str().unwrap()).unwrap();
            assert_eq!([vec![special.cls], ours, vec![special.sep]].concat(), theirs, "{text}");
        }
    }
}
