//! `--batch-tokens`: a number, or as many tokens as fit what computes.

use std::fmt;
use std::str::FromStr;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::figures::grouped;
use crate::backend::{self, Capacity};
use crate::bench::Memory;
use crate::model::{Config, Head, Mode};
use crate::train::{Batching, Task};

/// Batches that are made to fit are multiples of this many tokens.
pub const UNIT: usize = 1024;
/// And have at most this many, which keep any card busy.
pub const MOST: usize = 65_536;
/// No batch is larger, whatever is asked for: beyond what any card holds, and small enough that no product of sizes overflows.
pub const LARGEST: usize = 1 << 24;
/// Of the memory that is free, what they may take. The driver and the kernels need some hundred megabytes.
const USABLE: f64 = 0.9;

/// Tokens in a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "Written")]
pub enum BatchTokens {
    /// As many as fit.
    Auto,
    /// So many.
    Tokens(usize),
}

/// As in a TOML file.
#[derive(Serialize, Deserialize)]
#[serde(untagged, expecting = "expected a number of tokens, or auto")]
enum Written {
    Tokens(usize),
    Word(String),
}

impl TryFrom<Written> for BatchTokens {
    type Error = String;

    fn try_from(written: Written) -> Result<Self, String> {
        match written {
            Written::Tokens(tokens) => BatchTokens::number(tokens),
            Written::Word(word) => word.parse(),
        }
    }
}

impl From<BatchTokens> for Written {
    fn from(tokens: BatchTokens) -> Written {
        match tokens {
            BatchTokens::Tokens(tokens) => Written::Tokens(tokens),
            BatchTokens::Auto => Written::Word(tokens.to_string()),
        }
    }
}

impl FromStr for BatchTokens {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        match s.parse() {
            _ if s == "auto" => Ok(BatchTokens::Auto),
            Ok(tokens) => BatchTokens::number(tokens),
            Err(_) => Err("expected a number of tokens, or auto".to_owned()),
        }
    }
}

impl fmt::Display for BatchTokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BatchTokens::Auto => f.write_str("auto"),
            BatchTokens::Tokens(tokens) => tokens.fmt(f),
        }
    }
}

impl BatchTokens {
    fn number(tokens: usize) -> Result<Self, String> {
        match tokens {
            1..=LARGEST => Ok(BatchTokens::Tokens(tokens)),
            _ => Err(format!("{tokens} is not from 1 to {LARGEST}, nor auto")),
        }
    }

    /// The number; of `auto`, what fits the free memory of what computes, before anything of the model is on it, or
    /// `otherwise` where it does not tell.
    pub fn settled<B: backend::Memory>(self, be: &B, needs: &Needs<'_>, otherwise: usize) -> Result<usize> {
        let free = match self {
            BatchTokens::Tokens(tokens) => return Ok(tokens),
            BatchTokens::Auto => be.free_bytes()?,
        };
        let Some(free) = free else { return Ok(otherwise) };
        let tokens = needs.fitting(free as u64, &be.describe())?;
        tracing::info!("--batch-tokens auto: {tokens}");
        Ok(tokens)
    }
}

/// What batches are for: all that decides what a batch of any size needs.
#[derive(Debug, Clone, Copy)]
pub struct Needs<'a> {
    /// Of the model.
    pub config: &'a Config,
    /// Its head.
    pub head: Head,
    /// What it is trained or evaluated for.
    pub task: &'a Task,
    /// Whether it is trained.
    pub mode: Mode,
}

impl Needs<'_> {
    /// As `train`, `eval` and `predict` allocate.
    pub fn capacity(&self, tokens: usize) -> Capacity {
        let batching = Batching { batch_tokens: tokens, ..Batching::default() };
        Capacity { tokens, sequences: batching.max_sequences(), masked: self.task.masked_capacity(tokens) }
    }

    /// Bytes on a GPU.
    pub fn memory(&self, tokens: usize) -> Memory {
        Memory::of(self.config, self.head, self.capacity(tokens), self.mode)
    }

    /// Tokens of a batch that fits so many free bytes of a device.
    fn fitting(&self, free: u64, device: &str) -> Result<usize> {
        let megabytes = |bytes: u64| grouped(bytes / 1_000_000);
        self.most_tokens(free, MOST).with_context(|| {
            format!(
                "--batch-tokens auto: a batch of {UNIT} tokens takes {} MB, and {device} has {} MB free, of which a tenth \
                 is left to others; free some, take a smaller model, or use --device cpu",
                megabytes(self.memory(UNIT).total()),
                megabytes(free)
            )
        })
    }

    /// The largest batch of whole [`UNIT`]s, of at most `most` tokens, that leaves a tenth of `memory` bytes to others.
    pub fn most_tokens(&self, memory: u64, most: usize) -> Option<usize> {
        let usable = (memory as f64 * USABLE) as u64;
        // Memory grows with the batch: everything up to `fitting` fits, nothing from `too_many` on.
        let (mut fitting, mut too_many) = (0, most / UNIT + 1);
        while too_many - fitting > 1 {
            let middle = fitting.midpoint(too_many);
            if self.memory(middle * UNIT).total() <= usable { fitting = middle } else { too_many = middle }
        }
        (fitting > 0).then_some(fitting * UNIT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::path::Path;

    use crate::backend::cpu::Cpu;

    fn base() -> Config {
        let fields = serde_json::json!({
            "model_type": "distilbert", "activation": "gelu", "vocab_size": 30522, "max_position_embeddings": 512,
            "n_layers": 6, "n_heads": 12, "dim": 768, "hidden_dim": 3072, "dropout": 0.1, "attention_dropout": 0.1,
        });
        Config::from_json(fields.as_object().unwrap(), Path::new("config.json")).unwrap()
    }

    const CLASSIFIER: Head = Head::Classifier { classes: 2 };

    fn training(config: &Config) -> Needs<'_> {
        Needs { config, head: Head::Mlm, task: &Task::MLM, mode: Mode::Training }
    }

    fn labelling(config: &Config) -> Needs<'_> {
        Needs { config, head: CLASSIFIER, task: &Task::CLASSIFIER, mode: Mode::Inference }
    }

    #[test]
    fn a_number_or_auto() {
        assert_eq!(["auto", "4096"].map(str::parse), [Ok(BatchTokens::Auto), Ok(BatchTokens::Tokens(4096))]);
        for wrong in ["", "Auto", "-1", "1e3", "many"] {
            assert!(wrong.parse::<BatchTokens>().is_err_and(|why| why.contains("auto")), "{wrong}");
        }
        let (most, beyond) = (LARGEST.to_string(), (LARGEST + 1).to_string());
        assert_eq!(most.parse(), Ok(BatchTokens::Tokens(LARGEST)));
        for wrong in ["0", &beyond, "9223372036854775808", "18446744073709551616"] {
            assert!(wrong.parse::<BatchTokens>().is_err_and(|why| why.contains("auto")), "{wrong}");
        }
        let written = |value: BatchTokens| toml::Value::try_from(value).unwrap();
        assert_eq!(written(BatchTokens::Tokens(7)), toml::Value::Integer(7));
        assert_eq!(written(BatchTokens::Auto), toml::Value::from("auto"));
        let read = |value: toml::Value| value.try_into::<BatchTokens>();
        assert_eq!(read("auto".into()), Ok(BatchTokens::Auto));
        assert_eq!(read(4096.into()), Ok(BatchTokens::Tokens(4096)));
        for wrong in [0, i64::MAX] {
            assert!(read(toml::Value::Integer(wrong)).unwrap_err().to_string().contains("is not from 1 to 16777216"));
        }
        for wrong in [toml::Value::Integer(-1), "many".into(), 1.5.into(), true.into()] {
            assert!(read(wrong).unwrap_err().to_string().contains("expected a number of tokens, or auto"));
        }
    }

    #[test]
    fn memory_is_bytes_a_parameter_and_bytes_a_token() {
        let config = base();
        // 66,985,530 parameters of the masked-language model: master, gradient and two moments in f32, a copy in bf16. Each
        // tensor begins at a multiple of 64 values.
        let kept = |needs: &Needs<'_>| {
            let m = needs.memory(UNIT);
            (m.master_weights + m.compute_copy + m.gradients + m.first_moment + m.second_moment) as f64
        };
        assert!((kept(&training(&config)) / (18.0 * 66_985_530.0) - 1.0).abs() < 1e-3);
        // 66,955,010 of a classifier of two: master and copy.
        assert!((kept(&labelling(&config)) / (6.0 * 66_955_010.0) - 1.0).abs() < 1e-3);
        // Twice the tokens take twice the activations, statistics of every row included.
        let activations = |tokens| labelling(&config).memory(tokens).activations as f64;
        assert!((activations(2 * UNIT) / activations(UNIT) - 2.0).abs() < 1e-2);
        // Positions are masked in one of the two alone.
        assert!(training(&config).capacity(4096).masked > 614 && labelling(&config).capacity(4096).masked == 0);
    }

    #[test]
    fn what_fits_is_the_most_that_leaves_a_tenth_free() {
        let config = base();
        for needs in [training(&config), labelling(&config)] {
            for megabytes in [500u64, 2_000, 3_700, 8_000, 16_000, 24_000, 48_000, 80_000, 141_000] {
                let free = megabytes * 1_000_000;
                let fits = |tokens: &usize| needs.memory(*tokens).total() <= free / 10 * 9;
                let by_trying = (1..=64).map(|units| units * 1024).take_while(fits).last();
                assert_eq!(needs.most_tokens(free, MOST), by_trying, "{megabytes} MB");
            }
        }
        assert_eq!(training(&config).most_tokens(u64::MAX, MOST), Some(65_536));
        assert_eq!(labelling(&config).most_tokens(8_000_000_000, MOST), Some(65_536));
    }

    #[test]
    fn where_nothing_fits_it_is_said_what_is_missing() {
        let config = base();
        let error = training(&config).fitting(1_000_000_000, "a small GPU").unwrap_err().to_string();
        for part in ["--batch-tokens auto", "1024 tokens", "a small GPU has 1,000 MB free", "--device cpu"] {
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn a_number_stays_and_a_cpu_takes_the_default() {
        let (config, be) = (base(), Cpu::new());
        let settled = |tokens: BatchTokens| tokens.settled(&be, &training(&config), 4096).unwrap();
        assert_eq!([settled(BatchTokens::Auto), settled(BatchTokens::Tokens(5))], [4096, 5]);
    }
}
