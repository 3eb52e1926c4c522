//! Reading the fields of a config.json one by one; what was not asked for and is not known to be harmless is an error.

use std::path::Path;

use serde_json::{Map, Value};

use crate::model::{Error, Result};

/// Fields that say nothing about the maths of an encoder, and so are passed over. transformers 2 and 3
/// wrote all of them, 4 those that differ from its defaults, 5 a few of its own.
const HARMLESS: &[&str] = &[
    // where the file came from, and how it was kept
    "_attn_implementation_autoset",
    "_commit_hash",
    "_name_or_path",
    "architectures",
    "dtype",
    "finetuning_task",
    "name_or_path",
    "task_specific_params",
    "tokenizer_class",
    "torch_dtype",
    "transformers.js_config",
    "transformers_version",
    // how a pass is run and what it returns
    "attn_implementation",
    "chunk_size_feed_forward",
    "gradient_checkpointing",
    "output_attentions",
    "output_hidden_states",
    "output_past",
    "output_scores",
    "return_dict",
    "return_dict_in_generate",
    "tie_last_hidden_states",
    "torchscript",
    "use_bfloat16",
    "use_cache",
    "xla_device",
    // heads and token ids that HandBERT has no use for; tie_weights_ is read by no version
    "bos_token_id",
    "cls_token_id",
    "eos_token_id",
    "eos_token_ids",
    "mask_token_id",
    "prefix",
    "qa_dropout",
    "sep_token_id",
    "tf_legacy_loss",
    "tie_weights_",
    // text generation, which an encoder does not do
    "bad_words_ids",
    "begin_suppress_tokens",
    "cross_attention_hidden_size",
    "decoder_start_token_id",
    "diversity_penalty",
    "do_sample",
    "early_stopping",
    "encoder_no_repeat_ngram_size",
    "exponential_decay_length_penalty",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "length_penalty",
    "max_length",
    "min_length",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "num_return_sequences",
    "remove_invalid_values",
    "repetition_penalty",
    "suppress_tokens",
    "temperature",
    "top_k",
    "top_p",
    "typical_p",
];

/// Fields that would change the model unless they are absent, null, false or empty.
const MUST_BE_OFF: &[&str] = &[
    "add_cross_attention",
    "is_decoder",
    "is_encoder_decoder",
    "per_layer_config",
    "pruned_heads",
    "quantization_config",
];

/// Classes a model may have when it names none of them.
const MOST_CLASSES: usize = 1 << 15;

/// The fields of one config.json, and which of them were asked for.
pub(super) struct Fields<'a> {
    file: &'a Path,
    fields: &'a Map<String, Value>,
    seen: Vec<&'static str>,
}

impl<'a> Fields<'a> {
    pub(super) fn new(file: &'a Path, fields: &'a Map<String, Value>) -> Self {
        Fields { file, fields, seen: Vec::new() }
    }

    pub(super) fn error(&self, field: &str, why: impl std::fmt::Display) -> Error {
        Error::Config { file: self.file.into(), field: field.into(), why: why.to_string() }
    }

    pub(super) fn peek(&mut self, field: &'static str) -> Option<&Value> {
        self.seen.push(field);
        self.fields.get(field)
    }

    fn required(&mut self, field: &'static str) -> Result<&Value> {
        self.seen.push(field);
        self.fields.get(field).ok_or_else(|| Error::Config {
            file: self.file.into(),
            field: field.into(),
            why: "is missing; save the model again with save_pretrained".into(),
        })
    }

    pub(super) fn expect(&mut self, field: &'static str, right: impl Fn(&Value) -> bool, why: &str) -> Result<()> {
        let value = self.required(field)?.clone();
        if right(&value) { Ok(()) } else { Err(self.error(field, format!("is {value}; {why}"))) }
    }

    pub(super) fn integer(&mut self, field: &'static str) -> Result<usize> {
        let value = self.required(field)?.clone();
        value.as_u64().map(|v| v as usize).ok_or_else(|| self.error(field, format!("is {value}, not a whole number")))
    }

    /// Null is no default here: without a padding row, its embedding would be trained.
    pub(super) fn token_id(&mut self, field: &'static str, default: u32) -> Result<u32> {
        let Some(value) = self.peek(field).cloned() else { return Ok(default) };
        let id = value.as_u64().and_then(|id| u32::try_from(id).ok());
        id.ok_or_else(|| self.error(field, format!("is {value}, not a token id; {default} is usual")))
    }

    /// Fields that would change the model, one and all.
    pub(super) fn expect_off(&mut self) -> Result<()> {
        for field in MUST_BE_OFF {
            let off = match self.peek(field) {
                None | Some(Value::Null | Value::Bool(false)) => true,
                Some(Value::Object(map)) => map.is_empty(),
                Some(_) => false,
            };
            if !off {
                return Err(self.error(field, "is set; a model with it is not supported"));
            }
        }
        Ok(())
    }

    pub(super) fn number(&mut self, field: &'static str, default: f32) -> Result<f32> {
        let Some(value) = self.peek(field).cloned() else { return Ok(default) };
        value
            .as_f64()
            .map(|v| v as f32)
            .filter(|v| v.is_finite())
            .ok_or_else(|| self.error(field, format!("is {value}, not a number")))
    }

    pub(super) fn fraction(&mut self, field: &'static str) -> Result<f32> {
        self.required(field)?;
        self.fraction_or(field, 0.0)
    }

    pub(super) fn fraction_or(&mut self, field: &'static str, default: f32) -> Result<f32> {
        let value = self.number(field, default)?;
        if (0.0..1.0).contains(&value) {
            Ok(value)
        } else {
            Err(self.error(field, format!("is {value}, not a probability below 1")))
        }
    }

    pub(super) fn boolean(&mut self, field: &'static str, default: bool) -> Result<bool> {
        let Some(value) = self.peek(field).cloned() else { return Ok(default) };
        value.as_bool().ok_or_else(|| self.error(field, format!("is {value}, neither true nor false")))
    }

    fn present(&mut self, field: &'static str) -> Option<Value> {
        self.peek(field).filter(|v| !v.is_null()).cloned()
    }

    /// id2label, with ids 0..K as string keys; label2id must be its inverse and num_labels its length where they are given.
    pub(super) fn labels(&mut self) -> Result<Vec<String>> {
        let (inverse, count) = (self.present("label2id"), self.present("num_labels"));
        let Some(id2label) = self.present("id2label") else {
            return match (inverse, count) {
                (Some(_), _) => Err(self.error("label2id", "is there without id2label")),
                (None, Some(count)) => self.default_labels(&count),
                (None, None) => Ok(Vec::new()),
            };
        };
        let map = id2label.as_object().ok_or_else(|| self.error("id2label", "is not an object"))?;
        let labels: Vec<String> = (0..map.len())
            .map(|i| {
                let name = map.get(&i.to_string()).and_then(Value::as_str);
                name.map(str::to_owned)
                    .ok_or_else(|| self.error("id2label", format!("names no class {i} of {}", map.len())))
            })
            .collect::<Result<_>>()?;
        let wrong = |(i, label): &(usize, &String)| {
            inverse.as_ref().is_some_and(|map| map.get(label.as_str()).and_then(Value::as_u64) != Some(*i as u64))
        };
        if let Some((i, label)) = labels.iter().enumerate().find(wrong) {
            return Err(self.error("label2id", format!("does not give {label:?} the id {i} that id2label gives it")));
        }
        match count {
            Some(count) if count.as_u64() != Some(labels.len() as u64) => {
                Err(self.error("num_labels", format!("is {count}, but id2label names {} classes", labels.len())))
            }
            _ => Ok(labels),
        }
    }

    /// What transformers calls the classes of a model that names none.
    fn default_labels(&self, count: &Value) -> Result<Vec<String>> {
        let count = count.as_u64().filter(|&n| n < MOST_CLASSES as u64);
        let count = count.ok_or_else(|| self.error("num_labels", "is not a number of classes"))?;
        Ok((0..count).map(|i| format!("LABEL_{i}")).collect())
    }

    pub(super) fn no_others(&self) -> Result<()> {
        let known = |name: &str| self.seen.contains(&name) || HARMLESS.contains(&name);
        match self.fields.keys().find(|name| !known(name)) {
            None => Ok(()),
            Some(name) => Err(self.error(
                name,
                "is not a field of a DistilBERT that HandBERT knows; remove it if it does not change the maths",
            )),
        }
    }
}
