//! config.json as the versions of transformers write it, and what is refused.

use std::path::Path;

use handbert::model::{Config, Error};
use serde_json::{Map, Value, json};

/// distilbert-base-uncased, as the hub has it (transformers 4).
fn base() -> Value {
    json!({
        "activation": "gelu", "architectures": ["DistilBertForMaskedLM"], "attention_dropout": 0.1, "dim": 768,
        "dropout": 0.1, "hidden_dim": 3072, "initializer_range": 0.02, "max_position_embeddings": 512,
        "model_type": "distilbert", "n_heads": 12, "n_layers": 6, "pad_token_id": 0, "qa_dropout": 0.1,
        "seq_classif_dropout": 0.2, "sinusoidal_pos_embds": false, "tie_weights_": true,
        "transformers_version": "4.10.0.dev0", "vocab_size": 30522
    })
}

fn with(changes: Value) -> Value {
    let mut fields = base();
    for (name, value) in changes.as_object().unwrap() {
        fields[name] = value.clone();
    }
    fields
}

fn without(field: &str) -> Value {
    let mut fields = base();
    fields.as_object_mut().unwrap().remove(field);
    fields
}

fn parse(fields: &Value) -> Result<Config, Error> {
    let fields: &Map<String, Value> = fields.as_object().unwrap();
    Config::from_json(fields, Path::new("m/config.json"))
}

/// The error names file and field, and says `why`.
fn refused(fields: &Value, field: &str, why: &str) {
    let text = parse(fields).expect_err(field).to_string();
    assert!(text.starts_with(&format!("m/config.json: field {field:?}: ")) && text.contains(why), "{text}");
}

#[test]
fn the_base_model_is_what_it_is() {
    let config = parse(&base()).unwrap();
    assert_eq!((config.dim, config.n_layers, config.n_heads, config.head_size()), (768, 6, 12, 64));
    assert_eq!((config.vocab_size, config.max_position_embeddings, config.hidden_dim), (30522, 512, 3072));
    assert_eq!((config.dropout, config.attention_dropout, config.seq_classif_dropout), (0.1, 0.1, 0.2));
    assert!(config.labels.is_empty() && config.pad_token_id == 0 && !config.sinusoidal_pos_embds);
}

#[test]
fn what_old_and_new_versions_add_is_passed_over() {
    // Version 2 wrote everything, generation and pruning included.
    let two = json!({
        "bos_token_id": null, "do_sample": false, "eos_token_ids": null, "finetuning_task": null,
        "is_decoder": false, "is_encoder_decoder": false, "length_penalty": 1.0, "max_length": 20, "num_beams": 1,
        "num_labels": 2, "num_return_sequences": 1, "output_attentions": false, "output_hidden_states": false,
        "output_past": true, "pruned_heads": {}, "repetition_penalty": 1.0, "temperature": 1.0, "top_k": 50,
        "top_p": 1.0, "torchscript": false, "use_bfloat16": false
    });
    assert_eq!(parse(&with(two)).unwrap().labels, ["LABEL_0", "LABEL_1"]);

    let four = json!({
        "_name_or_path": "distilbert-base-uncased", "torch_dtype": "float32", "transformers_version": "4.44.2",
        "finetuning_task": "sst-2", "problem_type": "single_label_classification",
        "id2label": {"0": "NEGATIVE", "1": "POSITIVE"}, "label2id": {"NEGATIVE": 0, "POSITIVE": 1}
    });
    assert_eq!(parse(&with(four)).unwrap().labels, ["NEGATIVE", "POSITIVE"]);

    let five = json!({
        "bos_token_id": null, "eos_token_id": null, "dtype": "float32", "tie_word_embeddings": true,
        "transformers_version": "5.23.0", "id2label": null, "label2id": null, "problem_type": null
    });
    assert_eq!(parse(&with(five)).unwrap(), parse(&base()).unwrap());
}

#[test]
fn what_would_change_the_maths_is_refused() {
    refused(&with(json!({"activation": "relu"})), "activation", "only \"gelu\", the erf form");
    refused(&with(json!({"activation": "gelu_new"})), "activation", "only \"gelu\"");
    refused(&with(json!({"model_type": "bert"})), "model_type", "only \"distilbert\"");
    refused(&with(json!({"layer_norm_eps": 1e-6})), "layer_norm_eps", "is not a field of a DistilBERT");
    refused(&with(json!({"pruned_heads": {"0": [1]}})), "pruned_heads", "is set");
    refused(&with(json!({"is_decoder": true})), "is_decoder", "is set");
    refused(&with(json!({"quantization_config": {"bits": 4}})), "quantization_config", "is set");
    refused(&with(json!({"tie_word_embeddings": false})), "tie_word_embeddings", "tied");
    refused(&with(json!({"problem_type": "multi_label_classification"})), "problem_type", "single_label");
    refused(&with(json!({"pad_token_id": null})), "pad_token_id", "not a token id");
}

#[test]
fn a_missing_field_is_named() {
    for field in
        ["activation", "attention_dropout", "dim", "dropout", "hidden_dim", "n_heads", "n_layers", "vocab_size"]
    {
        refused(&without(field), field, "is missing");
    }
    // These have one value in every DistilBERT that leaves them out.
    for field in ["seq_classif_dropout", "initializer_range", "pad_token_id", "sinusoidal_pos_embds"] {
        assert_eq!(parse(&without(field)).unwrap(), parse(&base()).unwrap());
    }
}

#[test]
fn values_out_of_range_are_refused() {
    refused(&with(json!({"dim": 760, "n_heads": 10})), "dim", "not a multiple of 64");
    refused(&with(json!({"hidden_dim": 3000})), "hidden_dim", "not a multiple of 64");
    refused(&with(json!({"n_heads": 7})), "n_heads", "heads of size 32, 64 or 128");
    refused(&with(json!({"n_layers": 0})), "n_layers", "is 0");
    refused(&with(json!({"n_layers": 1_000_000})), "n_layers", "is 1000000");
    refused(&with(json!({"vocab_size": -3})), "vocab_size", "not a whole number");
    refused(&with(json!({"vocab_size": u64::MAX})), "vocab_size", "not a number from 1");
    refused(&with(json!({"dim": "768"})), "dim", "not a whole number");
    refused(&with(json!({"dropout": 1.0})), "dropout", "not a probability below 1");
    refused(&with(json!({"attention_dropout": -0.1})), "attention_dropout", "not a probability");
    refused(&with(json!({"initializer_range": -0.02})), "initializer_range", "negative");
    refused(&with(json!({"pad_token_id": 30522})), "pad_token_id", "not in a vocabulary of 30522");
    refused(&with(json!({"pad_token_id": 1u64 << 32})), "pad_token_id", "not a token id");
    refused(&with(json!({"sinusoidal_pos_embds": 1})), "sinusoidal_pos_embds", "neither true nor false");
}

#[test]
fn labels_must_agree_with_each_other() {
    let labels = |id2label: Value, label2id: Value| with(json!({"id2label": id2label, "label2id": label2id}));
    refused(&labels(json!({"0": "a", "2": "b"}), Value::Null), "id2label", "names no class 1 of 2");
    refused(&labels(json!({"0": "a", "1": "a"}), Value::Null), "id2label", "\"a\" twice");
    refused(&labels(json!(["a", "b"]), Value::Null), "id2label", "is not an object");
    refused(&labels(json!({"0": "a", "1": "b"}), json!({"a": 1, "b": 0})), "label2id", "\"a\" the id 0");
    refused(&with(json!({"label2id": {"a": 0}})), "label2id", "without id2label");
    let three = json!({"id2label": {"0": "a", "1": "b"}, "num_labels": 3});
    refused(&with(three), "num_labels", "names 2 classes");
    // Eleven classes: as strings "10" sorts before "2".
    let many: Map<_, _> = (0..11).map(|i| (i.to_string(), json!(format!("l{i}")))).collect();
    assert_eq!(parse(&labels(Value::Object(many), Value::Null)).unwrap().labels[10], "l10");
}

#[test]
fn what_is_written_reads_back_the_same() {
    let config =
        Config { labels: vec!["in \"person\"".into(), "télé".into()], dropout: 0.15, ..parse(&base()).unwrap() };
    let written = config.to_json("DistilBertForSequenceClassification");
    assert_eq!(parse(&written).unwrap(), config);
    assert_eq!(written["dropout"], json!(0.15));
}

#[test]
fn the_tokenizer_must_fit_the_vocabulary() {
    let config = parse(&base()).unwrap();
    let dir = Path::new("m");
    assert!(config.check_vocabulary(30522, dir).is_ok());
    assert!(config.check_vocabulary(30500, dir).is_ok(), "a table rounded up");
    for tokens in [30523, 28996, 119_547] {
        let text = config.check_vocabulary(tokens, dir).unwrap_err().to_string();
        assert!(text.contains("is 30522, but the tokenizer has") && text.contains(&tokens.to_string()), "{text}");
    }
}
