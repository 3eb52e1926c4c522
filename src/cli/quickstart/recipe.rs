//! Every number of the quickstart, and the commands that do the same by hand.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

use crate::cli::corpus::absolute;
use crate::cli::figures::shell_word;
use crate::cli::train::args::LABEL_COLUMN;
use crate::data::synth::{IN_PERSON, REMOTE};
use crate::model::Config;
use crate::train::optimizer::AdamSettings;
use crate::train::plan::{Batching, Length, TrainPlan};
use crate::train::policy::{Every, Policy};
use crate::train::schedule::{Schedule, ScheduleKind, Warmup};
use crate::train::task::Task;

pub(super) const POSTINGS: &str = "postings.jsonl";
pub(super) const CONFIG: &str = "mlm-config.json";
pub(super) const TOKENS: &str = "tokens";
pub(super) const MLM: &str = "mlm";
pub(super) const CLASSIFIER: &str = "classifier";
pub(super) const NEW_POSTINGS: &str = "new-postings.jsonl";
pub(super) const PREDICTIONS: &str = "predictions.jsonl";

/// Postings invented.
pub(super) const ROWS: u64 = 6000;
/// Steps of the language model's training.
pub(super) const STEPS: u64 = 2000;
/// Percentage of the postings that both models are measured on and neither is trained on.
const HELD_OUT: f64 = 10.0;
const MLM_LEARNING_RATE: f64 = 2e-3;
const CLASSIFIER_LEARNING_RATE: f64 = 3e-4;
const CLASSIFIER_EPOCHS: f64 = 1.0;
const WARMUP: f64 = 0.06;
/// Short memory of squared gradients: the runs are short too.
const BETA2: f64 = 0.98;
/// Points of each curve of the language model's training.
const LOGGED: u64 = 120;
/// Evaluations of the language model after the one before the first step.
const EVALUATIONS: u64 = 4;
/// The texts to fill in.
pub(super) const FILL: &str = "We are looking for a [MASK] to join our team.";

/// How large the models and what they see are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// V: tokens that are learned, at most.
    pub vocab: usize,
    /// Blocks.
    pub layers: usize,
    /// H
    pub heads: usize,
    /// C
    pub width: usize,
    /// F
    pub feed_forward: usize,
    /// L: longest sequence, [CLS] and [SEP] included.
    pub max_length: usize,
    /// N: tokens in a batch at most.
    pub batch_tokens: usize,
    /// Postings labelled at the end: invented too, and seen by no model before.
    pub new_rows: u64,
}

impl Size {
    /// A DistilBERT that two cores train in a minute.
    pub const USUAL: Size = Size {
        vocab: 4000,
        layers: 2,
        heads: 4,
        width: 128,
        feed_forward: 512,
        max_length: 384,
        batch_tokens: 1024,
        new_rows: 300,
    };
}

/// A quickstart that can be carried out.
#[derive(Debug, Clone)]
pub struct Recipe {
    /// [`Size::USUAL`] unless it is set.
    pub size: Size,
    pub(super) dir: PathBuf,
    pub(super) rows: u64,
    pub(super) steps: u64,
    pub(super) seed: u64,
}

impl Recipe {
    /// So many postings and steps of the language model's training, everything in `dir`.
    ///
    /// # Errors
    /// Too few of them.
    pub fn new(dir: &Path, rows: u64, steps: u64, seed: u64) -> Result<Self> {
        // Fewer leave none of one label on the held-out side.
        if rows < 100 {
            bail!("--rows {rows}: a tenth of the postings is held out to measure on; use at least 100");
        }
        if steps == 0 {
            bail!("--steps 0 trains nothing; use at least 1");
        }
        Ok(Recipe { size: Size::USUAL, dir: dir.to_owned(), rows, steps, seed })
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// What `quickstart.toml` holds.
    pub(super) fn settings(&self) -> String {
        format!("rows = {}\nsteps = {}\nseed = {}\n", self.rows, self.steps, self.seed as i64)
    }

    /// Classes by id, as `train classifier` sorts them.
    pub(super) fn labels(&self) -> Vec<String> {
        let mut labels = vec![REMOTE.to_owned(), IN_PERSON.to_owned()];
        labels.sort_unstable();
        labels
    }

    /// The language model's; the classifier has the same encoder.
    pub(super) fn config(&self, vocab_size: usize, pad_token_id: u32) -> Config {
        Config {
            vocab_size,
            max_position_embeddings: self.size.max_length,
            // Sines from the start: learning 384 positions one by one would take longer than all the rest.
            sinusoidal_pos_embds: true,
            n_layers: self.size.layers,
            n_heads: self.size.heads,
            dim: self.size.width,
            hidden_dim: self.size.feed_forward,
            // Less than one pass over the data: there is nothing to overfit.
            dropout: 0.0,
            attention_dropout: 0.0,
            seq_classif_dropout: 0.1,
            // 1 / sqrt(128), as 0.02 is about 1 / sqrt(768) halved: smaller, and attention stays uniform for thousands of steps.
            initializer_range: 0.08,
            pad_token_id,
            labels: Vec::new(),
        }
    }

    pub(super) fn batching(&self, task: &Task) -> Batching {
        let plan = TrainPlan::new(task.clone(), PathBuf::new());
        Batching {
            max_length: self.size.max_length,
            batch_tokens: self.size.batch_tokens,
            validation_split_percentage: HELD_OUT,
            ..plan.batching
        }
    }

    pub(super) fn mlm_plan(&self) -> TrainPlan {
        TrainPlan {
            length: Length::Steps(self.steps),
            policy: Policy { evaluate: Every::Steps(self.eval_steps()), save_total_limit: Some(1), ..self.policy() },
            provenance: self.provenance("config", CONFIG),
            ..self.plan(Task::MLM, MLM, MLM_LEARNING_RATE)
        }
    }

    pub(super) fn classifier_plan(&self) -> TrainPlan {
        let mut provenance = self.provenance("model", MLM);
        provenance.insert("labels".to_owned(), self.labels().into());
        provenance.insert("label_column".to_owned(), LABEL_COLUMN.into());
        TrainPlan {
            length: Length::Epochs(CLASSIFIER_EPOCHS),
            policy: Policy { save_total_limit: Some(1), ..self.policy() },
            provenance,
            ..self.plan(Task::CLASSIFIER, CLASSIFIER, CLASSIFIER_LEARNING_RATE)
        }
    }

    /// What `train` too would write into run.toml: `eval` and `predict` read the same columns as the training did.
    fn provenance(&self, origin: &str, name: &str) -> toml::Table {
        let place = |name: &str| absolute(&self.path(name));
        toml::Table::from_iter([
            (origin.to_owned(), place(name).into()),
            ("data".to_owned(), vec![place(TOKENS)].into()),
            ("text_columns".to_owned(), self.text_columns().into()),
        ])
    }

    fn policy(&self) -> Policy {
        TrainPlan::new(Task::MLM, PathBuf::new()).policy
    }

    fn plan(&self, task: Task, name: &str, learning_rate: f64) -> TrainPlan {
        TrainPlan {
            batching: self.batching(&task),
            adam: AdamSettings { learning_rate, beta2: BETA2, weight_decay: 0.01, ..AdamSettings::default() },
            schedule: Schedule { kind: ScheduleKind::Linear, warmup: Warmup::Ratio(WARMUP) },
            logging_steps: self.logging_steps(),
            seed: self.seed,
            ..TrainPlan::new(task, self.path(name))
        }
    }

    fn logging_steps(&self) -> u64 {
        (self.steps / LOGGED).max(1)
    }

    fn eval_steps(&self) -> u64 {
        self.steps.div_ceil(EVALUATIONS)
    }

    /// Each stage as commands, in order.
    pub(super) fn commands(&self) -> Commands {
        let path = |name: &str| shell_word(&self.path(name));
        let Size { vocab, max_length, batch_tokens, .. } = self.size;
        let seed = match self.seed {
            42 => String::new(),
            seed => format!(" --seed {seed}"),
        };
        let training = |rate: f64| {
            format!(
                "--learning-rate {rate} --adam-beta2 {BETA2} --weight-decay 0.01 --warmup-ratio {WARMUP} --max-length {max_length} \
                 --batch-tokens {batch_tokens} --validation-split-percentage {HELD_OUT} --save-total-limit 1 --logging-steps {}{seed}",
                self.logging_steps()
            )
        };
        Commands {
            synth: format!("handbert synth --rows {} --out {}{seed}", self.rows, path(POSTINGS)),
            tokenize: format!(
                "handbert tokenize {} --train-vocab {vocab} --text-columns title,text --label-column label --out {}",
                path(POSTINGS),
                path(TOKENS)
            ),
            mlm: format!(
                "handbert train mlm --config {} --data {} --out {} --max-steps {} --eval-strategy steps --eval-steps {} {}",
                path(CONFIG),
                path(TOKENS),
                path(MLM),
                self.steps,
                self.eval_steps(),
                training(MLM_LEARNING_RATE)
            ),
            classifier: format!(
                "handbert train classifier --model {} --data {} --out {} --num-train-epochs {CLASSIFIER_EPOCHS} {}",
                path(MLM),
                path(TOKENS),
                path(CLASSIFIER),
                training(CLASSIFIER_LEARNING_RATE)
            ),
            predict: format!(
                "handbert predict {} --model {} --text-columns title,text --out {}",
                path(NEW_POSTINGS),
                path(CLASSIFIER),
                path(PREDICTIONS)
            ),
            fill: format!("handbert fill-mask --model {} \"{FILL}\"", path(MLM)),
        }
    }

    /// The columns that make the text.
    pub(super) fn text_columns(&self) -> Vec<String> {
        vec!["title".to_owned(), "text".to_owned()]
    }
}

/// The commands that do the same by hand.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub(super) struct Commands {
    pub(super) synth: String,
    pub(super) tokenize: String,
    pub(super) mlm: String,
    pub(super) classifier: String,
    pub(super) predict: String,
    pub(super) fill: String,
}
