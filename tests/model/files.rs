//! Model directories that transformers saves in its various ways, broken ones, and our own.

use std::path::Path;

use handbert::backend::cpu::Cpu;
use handbert::model::hub::{self, Loaded, Wanted};
use handbert::model::{DistilBert, Error, Head, ParamTable};
use safetensors::tensor::Dtype;
use serde_json::{Value, json};

use crate::model_dir::{ModelDir, Raw, Tensors, fixture, read_raw, write_raw};

const WORD: &str = "distilbert.embeddings.word_embeddings.weight";
const LIN1: &str = "distilbert.transformer.layer.0.ffn.lin1.weight";

fn classes(labels: &[&str]) -> Wanted {
    Wanted::Classifier { labels: labels.iter().map(|&l| l.to_owned()).collect() }
}

fn load(name: &str, wanted: &Wanted) -> Loaded {
    hub::load(&fixture(name), wanted, 7).unwrap()
}

fn values<'a>(loaded: &'a Loaded, name: &str) -> &'a [f32] {
    let table = ParamTable::new(&loaded.config, loaded.head);
    let spec = table.specs.iter().find(|spec| spec.hf_name == name).unwrap();
    &loaded.values[spec.span.range()]
}

#[test]
fn every_tensor_of_every_float_type_is_read_exactly() {
    let wanted = [("mlm", Wanted::AsSaved, Dtype::BF16), ("classifier", Wanted::AsSaved, Dtype::F32)];
    for (name, wanted, dtype) in wanted.into_iter().chain([("bare", Wanted::Mlm, Dtype::F16)]) {
        let loaded = load(name, &wanted);
        for (stored, raw) in read_raw(&fixture(name).join("model.safetensors")) {
            assert_eq!(raw.dtype, dtype);
            let prefix = if name == "bare" { "distilbert." } else { "" };
            let ours = values(&loaded, &format!("{prefix}{stored}"));
            let theirs: Vec<f32> = match dtype {
                Dtype::F32 => raw.bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect(),
                Dtype::BF16 => raw.bytes.as_chunks().0.iter().map(|&[a, b]| f32::from_le_bytes([0, 0, a, b])).collect(),
                // Sign, exponent and fraction by the definition of binary16.
                _ => raw.bytes.as_chunks().0.iter().map(|&b| half_by_definition(u16::from_le_bytes(b))).collect(),
            };
            assert_eq!(ours, theirs, "{name}: {stored}");
        }
    }
}

fn half_by_definition(bits: u16) -> f32 {
    let (exponent, fraction) = (i32::from(bits >> 10 & 31), f32::from(bits & 1023) / 1024.0);
    let magnitude = match exponent {
        0 => fraction * 2f32.powi(-14),
        _ => (1.0 + fraction) * 2f32.powi(exponent - 15),
    };
    if bits >> 15 == 1 { -magnitude } else { magnitude }
}

#[test]
fn a_model_is_made_of_all_values_gaps_included() {
    let Loaded { config, head, values, .. } = load("mlm", &Wanted::AsSaved);
    let table = ParamTable::new(&config, head);
    assert!(table.parameters() < table.flat_len && values.len() == table.flat_len);
    let made = |values: &[f32]| DistilBert::new(&Cpu::new(), config.clone(), head, values).map(|_| ());
    assert!(made(&values).is_ok());
    for len in [0, table.parameters(), table.flat_len - 1] {
        let error = made(&values[..len]).expect_err("too few").to_string();
        assert_eq!(error, format!("a model: weights is [{len}], expected [{}]", table.flat_len));
    }
    assert!(made(&[&values[..], &[0.0]].concat()).is_err());
}

#[test]
fn the_prefix_makes_no_difference() {
    let bare = ModelDir::with_tensors("mlm", |tensors| {
        *tensors = std::mem::take(tensors)
            .into_iter()
            .map(|(name, raw)| (name.strip_prefix("distilbert.").unwrap_or(&name).to_owned(), raw))
            .collect();
    });
    assert_eq!(bare.load(&Wanted::AsSaved).unwrap().values, load("mlm", &Wanted::AsSaved).values);
}

#[test]
fn a_stored_projection_must_be_the_word_embeddings() {
    let tied = |change: fn(&mut Raw)| {
        ModelDir::with_tensors("mlm", |tensors| {
            let mut word = tensors[WORD].clone();
            change(&mut word);
            tensors.insert("vocab_projector.weight".into(), word);
        })
    };
    let same = tied(|_| {}).load(&Wanted::AsSaved).unwrap();
    assert_eq!(same.values, load("mlm", &Wanted::AsSaved).values);
    assert!(same.unused.is_empty());
    let other = tied(|word| word.bytes[40] ^= 1);
    other.refused(&Wanted::AsSaved, &["model.safetensors: tensor vocab_projector.weight", "differs from the word"]);
    assert!(other.load(&classes(&["a", "b"])).is_ok(), "a classifier has no projection");
}

#[test]
fn shards_are_put_together() {
    let model = ModelDir::copy("mlm");
    let (first, second): (Tensors, Tensors) =
        read_raw(&model.weights()).into_iter().enumerate().fold(Default::default(), |mut halves, (i, (name, raw))| {
            if i % 2 == 0 { &mut halves.0 } else { &mut halves.1 }.insert(name, raw);
            halves
        });
    let shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
    let entry = |shard: &str, half: &Tensors| half.keys().map(|n| (n.clone(), json!(shard))).collect::<Vec<_>>();
    let map: serde_json::Map<String, Value> =
        entry(shards[0], &first).into_iter().chain(entry(shards[1], &second)).collect();
    std::fs::remove_file(model.weights()).unwrap();
    write_raw(&model.path().join(shards[0]), first);
    write_raw(&model.path().join(shards[1]), second.clone());
    let index = model.path().join("model.safetensors.index.json");
    let write_index = |map: &serde_json::Map<String, Value>| {
        std::fs::write(&index, json!({"metadata": {"total_size": 0}, "weight_map": map}).to_string()).unwrap();
    };
    write_index(&map);
    assert_eq!(model.load(&Wanted::AsSaved).unwrap().values, load("mlm", &Wanted::AsSaved).values);

    let mut without = second;
    let lost = without.pop_first().unwrap().0;
    write_raw(&model.path().join(shards[1]), without);
    model.refused(&Wanted::AsSaved, &["index.json", &lost, shards[1], "missing"]);
    std::fs::remove_file(model.path().join(shards[1])).unwrap();
    model.refused(&Wanted::AsSaved, &[shards[1], "No such file"]);
    let mut outside = map;
    outside.insert(WORD.into(), json!("../../secret"));
    write_index(&outside);
    model.refused(&Wanted::AsSaved, &["index.json", "is no file name"]);
    std::fs::write(&index, "[]").unwrap();
    model.refused(&Wanted::AsSaved, &["index.json", "weight_map"]);
}

#[test]
fn tensors_that_do_not_fit_are_named() {
    let renamed = |name: &str| name.replace("layer.0", "layer.2");
    type Change = fn(&mut Tensors);
    let cases: [(Change, &[&str]); 8] = [
        (|t| drop(t.remove(LIN1)), &[LIN1, "is missing"]),
        (|t| drop(t.remove("vocab_layer_norm.bias")), &["vocab_layer_norm.bias", "is missing"]),
        (|t| t.get_mut(LIN1).unwrap().shape = vec![64, 128], &[LIN1, "is [64, 128]", "asks for [128, 64]"]),
        (|t| drop(t.insert("pooler.weight".into(), t[LIN1].clone())), &["tensor pooler.weight", "is not part"]),
        (|t| drop(t.insert("vocab_projector.extra".into(), t[LIN1].clone())), &["vocab_projector.extra", "not part"]),
        (|t| t.get_mut(LIN1).unwrap().dtype = Dtype::I16, &[LIN1, "has type I16"]),
        (|t| t.get_mut(LIN1).unwrap().bytes[..2].copy_from_slice(&[0xC0, 0x7F]), &[LIN1, "NaN at element 0"]),
        (|t| drop(t.insert(LIN1.replacen("distilbert.", "", 1), t[LIN1].clone())), &["layer.0.ffn.lin1", "twice"]),
    ];
    for (change, says) in cases {
        let mut says = says.to_vec();
        says.push("model.safetensors");
        ModelDir::with_tensors("mlm", change).refused(&Wanted::AsSaved, &says);
    }
    let deeper = ModelDir::with_tensors("mlm", |t| {
        let layer: Tensors =
            t.iter().filter(|(n, _)| n.contains("layer.0")).map(|(n, r)| (renamed(n), r.clone())).collect();
        t.extend(layer);
    });
    deeper.refused(&Wanted::AsSaved, &["distilbert.transformer.layer.2.", "model of 2 layers"]);
    ModelDir::with_config("mlm", "n_layers", json!(3))
        .refused(&Wanted::AsSaved, &["distilbert.transformer.layer.2.", "is missing"]);
    ModelDir::with_config("mlm", "vocab_size", json!(121)).refused(&Wanted::AsSaved, &[WORD, "[120, 64]", "[121, 64]"]);
    // A size that could never be allocated is found out before memory is taken.
    ModelDir::with_config("mlm", "vocab_size", json!(1 << 24)).refused(&Wanted::AsSaved, &[WORD, "[120, 64]"]);
}

#[test]
fn a_buffer_that_old_versions_saved_is_passed_over() {
    let model = ModelDir::with_tensors("mlm", |tensors| {
        let bytes = (0..64i64).flat_map(i64::to_le_bytes).collect();
        let ids = Raw { dtype: Dtype::I64, shape: vec![1, 64], bytes };
        tensors.insert("distilbert.embeddings.position_ids".into(), ids);
    });
    assert_eq!(model.load(&Wanted::AsSaved).unwrap().values, load("mlm", &Wanted::AsSaved).values);
}

#[test]
fn directories_without_readable_weights_say_what_is_missing() {
    let model = ModelDir::copy("classifier");
    let whole = std::fs::read(model.weights()).unwrap();
    for len in [0, 7, 100, whole.len() / 2, whole.len() - 1] {
        std::fs::write(model.weights(), &whole[..len]).unwrap();
        model.refused(&Wanted::AsSaved, &["model.safetensors", "no whole safetensors file", &len.to_string()]);
    }
    std::fs::write(model.weights(), "version https://git-lfs.github.com/spec/v1\noid sha256:0\n").unwrap();
    model.refused(&Wanted::AsSaved, &["Git LFS pointer", "git lfs pull"]);

    std::fs::remove_file(model.weights()).unwrap();
    model.refused(&Wanted::AsSaved, &["has no weights", "model.safetensors"]);
    std::fs::write(model.path().join("pytorch_model.bin"), "PK").unwrap();
    model.refused(&Wanted::AsSaved, &["pytorch_model.bin", "DistilBertForSequenceClassification.from_pretrained"]);

    std::fs::write(model.path().join("config.json"), "{\"dim\": ").unwrap();
    model.refused(&Wanted::AsSaved, &["config.json", "not valid JSON"]);
    std::fs::write(model.path().join("config.json"), [0xFF, 0xFE]).unwrap();
    model.refused(&Wanted::AsSaved, &["config.json", "UTF-8"]);
    std::fs::remove_file(model.path().join("config.json")).unwrap();
    model.refused(&Wanted::AsSaved, &["has no config.json"]);
    let nowhere = hub::load(Path::new("/no/such"), &Wanted::AsSaved, 0).unwrap_err().to_string();
    assert!(nowhere.contains("/no/such: is no directory"), "{nowhere}");
}

#[test]
fn a_missing_head_is_fresh_where_one_is_wanted() {
    assert!(matches!(ModelDir::copy("bare").load(&Wanted::AsSaved), Err(Error::Head { .. })));

    let mlm = load("bare", &Wanted::Mlm);
    assert_eq!(mlm.head, Head::Mlm);
    assert_eq!(mlm.fresh.len(), 5, "{:?}", mlm.fresh);
    assert!(mlm.fresh.iter().all(|name| name.starts_with("vocab_")));
    assert_eq!(mlm.values, load("bare", &Wanted::Mlm).values, "the same seed");
    assert_ne!(mlm.values, hub::load(&fixture("bare"), &Wanted::Mlm, 8).unwrap().values, "another seed");

    let classifier = load("mlm", &classes(&["remote", "in_person"]));
    assert_eq!(classifier.head, Head::Classifier { classes: 2 });
    assert_eq!(classifier.config.labels, ["remote", "in_person"]);
    assert_eq!((classifier.fresh.len(), classifier.unused.len()), (4, 5));
    assert_eq!(values(&classifier, WORD), values(&load("mlm", &Wanted::AsSaved), WORD));

    let back = load("classifier", &Wanted::Mlm);
    assert_eq!((back.fresh.len(), back.unused.len(), back.config.labels.len()), (5, 4, 0));
    ModelDir::copy("mlm").refused(&classes(&["only"]), &["id2label", "at least two classes"]);
}

#[test]
fn of_two_heads_the_one_that_is_wanted_is_taken() {
    let both = ModelDir::with_tensors("mlm", |tensors| {
        let other = read_raw(&ModelDir::copy("classifier").weights());
        let of_classifier = |name: &str| name.starts_with("classifier.") || name.starts_with("pre_classifier.");
        tensors.extend(other.into_iter().filter(|(name, _)| of_classifier(name)));
    });
    let mlm = both.load(&Wanted::Mlm).unwrap();
    assert!(mlm.fresh.is_empty() && mlm.config.labels.is_empty(), "{:?}", mlm.fresh);
    assert_eq!((mlm.head, mlm.unused.len()), (Head::Mlm, 4));
    assert_eq!(mlm.values, load("mlm", &Wanted::AsSaved).values);

    let classifier = both.load(&Wanted::AsSaved).unwrap();
    assert!(classifier.fresh.is_empty());
    assert_eq!((classifier.head, classifier.unused.len()), (Head::Classifier { classes: 3 }, 5));
    let weight = "classifier.weight";
    assert_eq!(values(&classifier, weight), values(&load("classifier", &Wanted::AsSaved), weight));
}

#[test]
fn a_classifier_keeps_its_head_only_for_the_classes_it_knows() {
    let saved = load("classifier", &Wanted::AsSaved);
    assert_eq!(saved.config.labels, ["LABEL_0", "LABEL_1", "LABEL_2"]);
    let same = load("classifier", &classes(&["LABEL_0", "LABEL_1", "LABEL_2"]));
    assert!(same.fresh.is_empty() && same.values == saved.values);

    let turned = load("classifier", &classes(&["LABEL_2", "LABEL_0", "LABEL_1"]));
    assert!(turned.fresh.is_empty());
    let (old, new) = (values(&saved, "classifier.weight"), values(&turned, "classifier.weight"));
    assert_eq!((&new[..64], &new[64..128], &new[128..]), (&old[128..], &old[..64], &old[64..128]));
    let (old, new) = (values(&saved, "classifier.bias"), values(&turned, "classifier.bias"));
    assert_eq!(new, [old[2], old[0], old[1]]);

    for other in [&["LABEL_0", "LABEL_1"][..], &["a", "b", "c"], &["LABEL_0", "LABEL_1", "c"]] {
        let loaded = load("classifier", &classes(other));
        assert_eq!(loaded.fresh.len(), 4, "{other:?}");
        assert_eq!(loaded.config.labels, other);
    }
}

#[test]
fn a_classifier_that_names_no_classes_gets_transformers_names() {
    let unnamed = ModelDir::with_config("classifier", "id2label", Value::Null);
    let config = unnamed.path().join("config.json");
    let text = std::fs::read_to_string(&config).unwrap();
    let mut fields: Value = serde_json::from_str(&text).unwrap();
    fields["label2id"] = Value::Null;
    std::fs::write(&config, fields.to_string()).unwrap();
    assert_eq!(unnamed.load(&Wanted::AsSaved).unwrap().config.labels, ["LABEL_0", "LABEL_1", "LABEL_2"]);
    fields["id2label"] = json!({"0": "a", "1": "b"});
    std::fs::write(&config, fields.to_string()).unwrap();
    unnamed.refused(&Wanted::AsSaved, &["id2label", "names 2 classes", "has 3 rows"]);
}
