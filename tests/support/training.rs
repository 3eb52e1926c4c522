//! A tiny corpus, a tiny model and a plan that goes with them.

#![allow(dead_code)] // Each test file uses its part.

use std::path::{Path, PathBuf};

use handbert::backend::cpu::Cpu;
use handbert::data::token_set::{About, TokenSet, TokenSetWriter};
use handbert::data::tokenizer::Tokenizer;
use handbert::model::{Config, Head, ParamTable, hub};
use handbert::train::step::Why;
use handbert::train::{Event, Observer, Start, Task, TrainPlan};

/// Names of the classes.
pub const LABELS: [&str; 2] = ["in_person", "remote"];

const WORDS: [&str; 40] = [
    "engineer",
    "team",
    "office",
    "home",
    "remote",
    "travel",
    "benefits",
    "salary",
    "python",
    "nurse",
    "driver",
    "weekly",
    "senior",
    "junior",
    "manager",
    "support",
    "customer",
    "health",
    "school",
    "retail",
    "night",
    "shift",
    "contract",
    "full",
    "part",
    "time",
    "city",
    "london",
    "berlin",
    "apply",
    "experience",
    "years",
    "skills",
    "data",
    "warehouse",
    "kitchen",
    "sales",
    "growth",
    "startup",
    "clinic",
];

/// A corpus on the disk, and its tokenizer.
pub struct Corpus {
    pub dir: tempfile::TempDir,
    pub set: TokenSet,
    pub tokenizer: Tokenizer,
}

/// Texts of 3 to 60 words with a label that the words "remote" and "home" together give away.
pub fn texts(number: usize, seed: u64) -> Vec<(String, i32)> {
    let mut state = seed.wrapping_mul(2).wrapping_add(1);
    let mut next = move |n: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % n
    };
    (0..number)
        .map(|_| {
            let mut words: Vec<&str> = (0..3 + next(57)).map(|_| WORDS[5 + next(WORDS.len() - 5)]).collect();
            let label = next(2) as i32;
            if label == 1 {
                words.splice(1..1, ["remote", "home"]);
            } else {
                words.insert(1, ["office", "remote", "home"][next(3)]);
            }
            (words.join(" "), label)
        })
        .collect()
}

/// Texts of two words each, in turn: what is hidden can be read off its surroundings.
pub fn refrains(number: usize) -> Vec<(String, i32)> {
    let word = |i: usize| WORDS[i % WORDS.len()];
    (0..number).map(|i| ([word(i), word(3 * i + 1)].repeat(10).join(" "), -1)).collect()
}

/// A token set of `texts`, each its own group.
pub fn corpus(number: usize, seed: u64) -> Corpus {
    corpus_of(&texts(number, seed))
}

/// A token set of these texts, each its own group.
pub fn corpus_of(texts: &[(String, i32)]) -> Corpus {
    let dir = tempfile::tempdir().expect("a directory");
    let tokenizer = tokenizer();
    let labels = LABELS.map(str::to_owned).to_vec();
    let about = About { text_columns: vec!["text".into()], label_names: labels, ..About::default() };
    let mut writer = TokenSetWriter::create(&dir.path().join("set"), &tokenizer, about).expect("created");
    for (i, (text, label)) in texts.iter().enumerate() {
        writer.push(&tokenizer.encode(text).expect("encoded"), *label, i as u64).expect("pushed");
    }
    let set = writer.finish().expect("finished");
    Corpus { dir, set, tokenizer }
}

/// A vocabulary with each of the words whole.
pub fn tokenizer() -> Tokenizer {
    let text = WORDS.join(" ");
    let tokenizer = Tokenizer::train(std::iter::repeat_n(text, 5).map(Ok), 400).expect("trained");
    assert!(WORDS.iter().all(|word| tokenizer.encode(word).expect("encoded").len() == 1));
    tokenizer
}

/// Two blocks, 64 wide, one head, with dropout as in the full-size model.
pub fn config(vocab_size: usize) -> Config {
    let fields = serde_json::json!({
        "activation": "gelu", "attention_dropout": 0.1, "dim": 64, "dropout": 0.1, "hidden_dim": 128,
        "initializer_range": 0.02, "max_position_embeddings": 64, "model_type": "distilbert", "n_heads": 1,
        "n_layers": 2, "pad_token_id": 0, "seq_classif_dropout": 0.2, "sinusoidal_pos_embds": false,
        "vocab_size": vocab_size
    });
    Config::from_json(fields.as_object().expect("an object"), Path::new("tiny")).expect("valid")
}

/// The same without dropout.
pub fn without_dropout(config: Config) -> Config {
    Config { dropout: 0.0, attention_dropout: 0.0, seq_classif_dropout: 0.0, ..config }
}

/// Fresh weights for a task.
pub fn start(config: Config, task: &Task) -> Start {
    start_from(config, task, 7)
}

/// The same of another seed.
pub fn start_from(config: Config, task: &Task, seed: u64) -> Start {
    let (config, head) = match task {
        Task::Mlm { .. } => (config, Head::Mlm),
        Task::Classifier { .. } => {
            (Config { labels: LABELS.map(str::to_owned).to_vec(), ..config }, Head::Classifier { classes: 2 })
        }
    };
    let values = ParamTable::new(&config, head).initial_weights(&config, seed);
    Start::fresh(hub::Loaded { config, head, values, fresh: Vec::new(), unused: Vec::new() })
}

/// Small batches, no evaluation, a fifth held out.
pub fn plan(task: Task, out: PathBuf) -> TrainPlan {
    let mut plan = TrainPlan::new(task, out);
    plan.batching.batch_tokens = 256;
    plan.batching.max_length = 48;
    plan.batching.validation_split_percentage = 20.0;
    plan.adam.learning_rate = 1e-3;
    plan.logging_steps = 1;
    plan.policy.evaluate = handbert::train::Every::Never;
    plan
}

pub fn cpu() -> Cpu {
    Cpu::new()
}

/// Asks for a stop after a number of steps of this sitting, and notes what happens.
#[derive(Default)]
pub struct Watcher {
    pub stop_after: Option<u64>,
    pub stop_in_evaluation: bool,
    pub steps: u64,
    pub skipped: u64,
    pub outliers: u64,
    pub saved: Vec<PathBuf>,
    pub evaluating: bool,
}

impl Watcher {
    pub fn stopping_after(steps: u64) -> Self {
        Watcher { stop_after: Some(steps), ..Watcher::default() }
    }
}

impl Observer for Watcher {
    fn on(&mut self, event: Event<'_>) {
        match event {
            Event::Step(_) => self.steps += 1,
            Event::Evaluating { .. } if self.stop_in_evaluation => self.stop_after = Some(0),
            Event::Skipped { why, .. } => {
                self.skipped += 1;
                self.outliers += u64::from(why == Why::Outlier);
            }
            Event::Saved(path) => self.saved.push(path.to_path_buf()),
            _ => {}
        }
    }

    fn wants_stop(&self) -> bool {
        self.stop_after.is_some_and(|steps| self.steps >= steps)
    }
}

/// Every byte of the weights in a model directory.
pub fn weights(dir: &Path) -> Vec<u8> {
    std::fs::read(dir.join("model.safetensors")).expect("a model")
}

/// A copy of a run directory.
pub fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("made");
    for entry in std::fs::read_dir(from).expect("listed") {
        let path = entry.expect("an entry").path();
        let target = to.join(path.file_name().expect("a name"));
        if path.is_dir() {
            copy(&path, &target);
        } else {
            std::fs::copy(&path, &target).expect("copied");
        }
    }
}
