//! config.json of a DistilBERT, read strictly: a field that would change the maths is an error, not
//! a default.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::{Error, Result};

/// Fields that say nothing about the maths of what is built here, and so are passed over.
const IGNORED: &[&str] = &[
    "_attn_implementation_autoset",
    "_name_or_path",
    "architectures",
    "dtype",
    "finetuning_task",
    "model_type",
    "output_past",
    "qa_dropout",
    "tie_weights_",
    "tie_word_embeddings",
    "torch_dtype",
    "transformers_version",
    "use_cache",
    "output_attentions",
    "output_hidden_states",
    "return_dict",
    "attn_implementation",
    "bos_token_id",
    "eos_token_id",
    "sep_token_id",
    "cls_token_id",
    "mask_token_id",
];

/// A DistilBERT's configuration, under the names of HF's config.json.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// V
    pub vocab_size: usize,
    /// P, rows of the position table.
    pub max_position_embeddings: usize,
    /// Whether the position table starts as sines (it is a parameter all the same).
    pub sinusoidal_pos_embds: bool,
    /// Number of blocks.
    pub n_layers: usize,
    /// H
    pub n_heads: usize,
    /// C
    pub dim: usize,
    /// F
    pub hidden_dim: usize,
    /// Probability of dropping after the embeddings and after each feed-forward.
    pub dropout: f32,
    /// Probability of dropping an attention probability.
    pub attention_dropout: f32,
    /// Probability of dropping before the classifier.
    pub seq_classif_dropout: f32,
    /// Standard deviation of fresh weights.
    pub initializer_range: f32,
    /// Id of [PAD]; its word embedding gets no gradient from the embedding path.
    pub pad_token_id: u32,
    /// Names of the classes, by id; empty where the file names none.
    pub labels: Vec<String>,
}

impl Config {
    /// Reads and checks a config.json.
    pub fn read(file: &Path) -> Result<Config> {
        let text = std::fs::read_to_string(file).map_err(|source| Error::Io { path: file.into(), source })?;
        let value: Value = serde_json::from_str(&text)
            .map_err(|e| Error::File { path: file.into(), why: format!("not valid JSON: {e}") })?;
        let Value::Object(fields) = value else {
            return Err(Error::File { path: file.into(), why: "holds no JSON object".into() });
        };
        Config::from_json(&fields, file)
    }

    /// Checks parsed fields; `file` is for error messages.
    pub fn from_json(fields: &Map<String, Value>, file: &Path) -> Result<Config> {
        let mut f = Fields { file, fields, seen: Vec::new() };
        f.expect("model_type", |v| v == "distilbert", "only \"distilbert\" is supported")?;
        f.expect("activation", |v| v == "gelu", "only \"gelu\", the erf form, is supported")?;
        if f.peek("problem_type").is_some_and(|v| !v.is_null() && v != "single_label_classification") {
            return Err(f.error("problem_type", "only single_label_classification is supported"));
        }
        let config = Config {
            vocab_size: f.integer("vocab_size")?,
            max_position_embeddings: f.integer("max_position_embeddings")?,
            sinusoidal_pos_embds: f.boolean("sinusoidal_pos_embds", false)?,
            n_layers: f.integer("n_layers")?,
            n_heads: f.integer("n_heads")?,
            dim: f.integer("dim")?,
            hidden_dim: f.integer("hidden_dim")?,
            dropout: f.fraction("dropout")?,
            attention_dropout: f.fraction("attention_dropout")?,
            seq_classif_dropout: f.fraction_or("seq_classif_dropout", 0.2)?,
            initializer_range: f.number("initializer_range", 0.02)?,
            pad_token_id: f.integer_or("pad_token_id", 0)? as u32,
            labels: f.labels()?,
        };
        f.no_others()?;
        config.check(file)?;
        Ok(config)
    }

    /// Head size D = C / H.
    pub fn head_size(&self) -> usize {
        self.dim / self.n_heads
    }

    /// The fields as HF writes them, for a model with this architecture name.
    pub fn to_json(&self, architecture: &str) -> Value {
        let mut fields = json!({
            "activation": "gelu",
            "architectures": [architecture],
            "attention_dropout": round_trip(self.attention_dropout),
            "dim": self.dim,
            "dropout": round_trip(self.dropout),
            "hidden_dim": self.hidden_dim,
            "initializer_range": round_trip(self.initializer_range),
            "max_position_embeddings": self.max_position_embeddings,
            "model_type": "distilbert",
            "n_heads": self.n_heads,
            "n_layers": self.n_layers,
            "pad_token_id": self.pad_token_id,
            "qa_dropout": 0.1,
            "seq_classif_dropout": round_trip(self.seq_classif_dropout),
            "sinusoidal_pos_embds": self.sinusoidal_pos_embds,
            "tie_weights_": true,
            "vocab_size": self.vocab_size,
        });
        if !self.labels.is_empty() {
            let by_id: Map<_, _> = self.labels.iter().enumerate().map(|(i, l)| (i.to_string(), json!(l))).collect();
            let by_label: Map<_, _> = self.labels.iter().enumerate().map(|(i, l)| (l.clone(), json!(i))).collect();
            fields["id2label"] = Value::Object(by_id);
            fields["label2id"] = Value::Object(by_label);
        }
        fields
    }

    fn check(&self, file: &Path) -> Result<()> {
        let wrong = |field: &str, why: String| Error::Config { file: file.into(), field: field.into(), why };
        let positive = [
            ("vocab_size", self.vocab_size),
            ("max_position_embeddings", self.max_position_embeddings),
            ("n_layers", self.n_layers),
            ("n_heads", self.n_heads),
            ("dim", self.dim),
            ("hidden_dim", self.hidden_dim),
        ];
        for (field, value) in positive {
            // 2^24 of anything is far beyond any DistilBERT, and keeps products of two below 2^48.
            if value == 0 || value > 1 << 24 {
                return Err(wrong(field, format!("{value} is out of range")));
            }
        }
        if !self.dim.is_multiple_of(64) {
            return Err(wrong("dim", format!("{} is not a multiple of 64", self.dim)));
        }
        if !self.hidden_dim.is_multiple_of(64) {
            return Err(wrong("hidden_dim", format!("{} is not a multiple of 64", self.hidden_dim)));
        }
        if !self.dim.is_multiple_of(self.n_heads) || ![32, 64, 128].contains(&self.head_size()) {
            return Err(wrong(
                "n_heads",
                format!("dim {} over {} heads does not give head size 32, 64 or 128", self.dim, self.n_heads),
            ));
        }
        if self.pad_token_id as usize >= self.vocab_size {
            return Err(wrong(
                "pad_token_id",
                format!("{} is not in a vocabulary of {}", self.pad_token_id, self.vocab_size),
            ));
        }
        Ok(())
    }
}

/// 0.1f32 as the f64 0.1, not as 0.10000000149.
fn round_trip(x: f32) -> f64 {
    x.to_string().parse().unwrap_or(f64::from(x))
}

struct Fields<'a> {
    file: &'a Path,
    fields: &'a Map<String, Value>,
    seen: Vec<&'static str>,
}

impl Fields<'_> {
    fn error(&self, field: &str, why: impl std::fmt::Display) -> Error {
        Error::Config { file: self.file.into(), field: field.into(), why: why.to_string() }
    }

    fn peek(&mut self, field: &'static str) -> Option<&Value> {
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

    fn expect(&mut self, field: &'static str, right: impl Fn(&Value) -> bool, why: &str) -> Result<()> {
        let value = self.required(field)?.clone();
        if right(&value) { Ok(()) } else { Err(self.error(field, format!("is {value}; {why}"))) }
    }

    fn integer(&mut self, field: &'static str) -> Result<usize> {
        let value = self.required(field)?.clone();
        value.as_u64().map(|v| v as usize).ok_or_else(|| self.error(field, format!("is {value}, not a whole number")))
    }

    fn integer_or(&mut self, field: &'static str, default: usize) -> Result<usize> {
        if self.peek(field).is_none_or(Value::is_null) { Ok(default) } else { self.integer(field) }
    }

    fn number(&mut self, field: &'static str, default: f32) -> Result<f32> {
        let Some(value) = self.peek(field).cloned() else { return Ok(default) };
        value
            .as_f64()
            .filter(|v| v.is_finite())
            .map(|v| v as f32)
            .ok_or_else(|| self.error(field, format!("is {value}, not a number")))
    }

    fn fraction(&mut self, field: &'static str) -> Result<f32> {
        self.required(field)?;
        self.fraction_or(field, 0.0)
    }

    fn fraction_or(&mut self, field: &'static str, default: f32) -> Result<f32> {
        let value = self.number(field, default)?;
        if (0.0..1.0).contains(&value) {
            Ok(value)
        } else {
            Err(self.error(field, format!("is {value}, not a probability below 1")))
        }
    }

    fn boolean(&mut self, field: &'static str, default: bool) -> Result<bool> {
        let Some(value) = self.peek(field).cloned() else { return Ok(default) };
        value.as_bool().ok_or_else(|| self.error(field, format!("is {value}, neither true nor false")))
    }

    /// id2label, with ids 0..K as string keys; label2id must be its inverse where it is given.
    fn labels(&mut self) -> Result<Vec<String>> {
        let Some(id2label) = self.peek("id2label").cloned() else {
            return match self.peek("label2id") {
                None => Ok(Vec::new()),
                Some(_) => Err(self.error("label2id", "is there without id2label")),
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
        if let Some(inverse) = self.peek("label2id").cloned() {
            for (i, label) in labels.iter().enumerate() {
                if inverse.get(label).and_then(Value::as_u64) != Some(i as u64) {
                    return Err(
                        self.error("label2id", format!("does not give {label:?} the id {i} that id2label gives it"))
                    );
                }
            }
        }
        Ok(labels)
    }

    fn no_others(&self) -> Result<()> {
        let known = |name: &str| self.seen.contains(&name) || IGNORED.contains(&name);
        match self.fields.keys().find(|name| !known(name)) {
            None => Ok(()),
            Some(name) => Err(self.error(
                name,
                "is not a field of a DistilBERT that HandBERT knows; remove it if it does not change the maths",
            )),
        }
    }
}
