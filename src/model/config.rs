//! config.json of a DistilBERT, read strictly: a field that would change the maths is an error, not
//! a default.

mod fields;

use std::path::Path;

use serde_json::{Map, Value, json};

use super::{Error, Result};
use fields::Fields;

/// What a size may be at most; far beyond any DistilBERT, and small enough that no product of sizes overflows.
const LARGEST_WIDTH: usize = 1 << 15;
pub(crate) const LARGEST_TABLE: usize = 1 << 24;
const MOST_LAYERS: usize = 1000;

/// A DistilBERT's configuration, under the names of HF's config.json.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// V
    pub vocab_size: usize,
    /// P, rows of the position table.
    pub max_position_embeddings: usize,
    /// Whether the position table starts as sines. It is a parameter that trains all the same, where `transformers` keeps it
    /// fixed.
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
    ///
    /// # Errors
    ///
    /// [`Error::Io`]; [`Error::File`] for what is no JSON object; those of [`Config::from_json`].
    pub fn read(file: &Path) -> Result<Config> {
        let text = std::fs::read_to_string(file).map_err(Error::io(file))?;
        let value: Value = serde_json::from_str(&text)
            .map_err(|e| Error::File { path: file.into(), why: format!("not valid JSON: {e}") })?;
        let Value::Object(fields) = value else {
            return Err(Error::File { path: file.into(), why: "holds no JSON object".into() });
        };
        Config::from_json(&fields, file)
    }

    /// Checks parsed fields; `file` is for error messages.
    ///
    /// # Errors
    ///
    /// [`Error::Config`], for the first field that is missing, unknown or not supported.
    pub fn from_json(fields: &Map<String, Value>, file: &Path) -> Result<Config> {
        let mut f = Fields::new(file, fields);
        f.expect("model_type", |v| v == "distilbert", "only \"distilbert\" is supported")?;
        f.expect("activation", |v| v == "gelu", "only \"gelu\", the erf form, is supported")?;
        f.expect_off()?;
        if f.peek("tie_word_embeddings").is_some_and(|v| v == false) {
            return Err(f.error(
                "tie_word_embeddings",
                "is false; only a vocabulary projection tied to the word embeddings is supported",
            ));
        }
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
            pad_token_id: f.token_id("pad_token_id", 0)?,
            labels: f.labels()?,
        };
        f.no_others()?;
        config.check(file)?;
        Ok(config)
    }

    /// Checks that a tokenizer of `tokens` ids is this model's: as many, or so few less that the table was only
    /// rounded up to a multiple of at most 128. `dir` holds the tokenizer.
    ///
    /// # Errors
    ///
    /// [`Error::Config`]
    pub fn check_vocabulary(&self, tokens: usize, dir: &Path) -> Result<()> {
        if tokens <= self.vocab_size && self.vocab_size - tokens < 128 {
            return Ok(());
        }
        Err(Error::Config {
            file: dir.join("config.json"),
            field: "vocab_size".into(),
            why: format!(
                "is {}, but the tokenizer has {tokens} tokens; put the tokenizer files that the model was trained with into {}",
                self.vocab_size,
                dir.display()
            ),
        })
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
        let sizes = [
            ("vocab_size", self.vocab_size, LARGEST_TABLE),
            ("max_position_embeddings", self.max_position_embeddings, LARGEST_TABLE),
            ("n_layers", self.n_layers, MOST_LAYERS),
            ("n_heads", self.n_heads, LARGEST_WIDTH),
            ("dim", self.dim, LARGEST_WIDTH),
            ("hidden_dim", self.hidden_dim, 8 * LARGEST_WIDTH),
        ];
        for (field, value, largest) in sizes {
            if value == 0 || value > largest {
                return Err(wrong(field, format!("is {value}, not a number from 1 to {largest}")));
            }
        }
        if !self.dim.is_multiple_of(64) {
            return Err(wrong("dim", format!("is {}, not a multiple of 64", self.dim)));
        }
        if !self.hidden_dim.is_multiple_of(64) {
            return Err(wrong("hidden_dim", format!("is {}, not a multiple of 64", self.hidden_dim)));
        }
        if !self.dim.is_multiple_of(self.n_heads) || ![32, 64, 128].contains(&self.head_size()) {
            return Err(wrong(
                "n_heads",
                format!("is {}, which does not part dim {} into heads of size 32, 64 or 128", self.n_heads, self.dim),
            ));
        }
        if self.initializer_range < 0.0 {
            return Err(wrong("initializer_range", format!("is {}, which is negative", self.initializer_range)));
        }
        if self.pad_token_id as usize >= self.vocab_size {
            return Err(wrong(
                "pad_token_id",
                format!("is {}, which is not in a vocabulary of {}", self.pad_token_id, self.vocab_size),
            ));
        }
        let mut sorted: Vec<_> = self.labels.iter().collect();
        sorted.sort_unstable();
        if let Some(twice) = sorted.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(wrong("id2label", format!("names {:?} twice", twice[0])));
        }
        Ok(())
    }
}

/// 0.1f32 as the f64 0.1, not as 0.10000000149.
fn round_trip(x: f32) -> f64 {
    x.to_string().parse().unwrap_or(f64::from(x))
}
