#![allow(dead_code)] // each test uses its part

//! The fixtures that make_hf_fixtures.py made: a model directory, batches, and what PyTorch makes of them.

use std::path::{Path, PathBuf};

use handbert::backend::{Backend, BatchView, Capacity, Tally};
use handbert::model::distilbert::Workspace;
use handbert::model::hub::tensors::TensorFile;
use handbert::model::hub::{self, Wanted};
use handbert::model::{Config, DistilBert, Head, Mode, ParamSpec};
use handbert::train::optimizer::AdamSettings;

/// Largest relative error that one pass may have against PyTorch; about four times what is measured.
///
/// Relative error of a tensor: max |ours - theirs| / max |theirs|. PyTorch computed in f64, so all of it is ours.
pub const LIMIT: f64 = 1e-5;

/// The same of a parameter after ten updates: AdamW divides gradients by their own size, and so makes as much of the rounding
/// error of a small one as of a large one. Without weight decay a parameter would be 5.5e-5 off.
pub const LIMIT_AFTER_TRAINING: f64 = 2e-5;

/// The same of a key bias, whose gradient is nothing but rounding error.
pub const LIMIT_OF_KEY_BIASES: f64 = 1e-4;

/// Adding a constant to all keys changes no attention probability: the gradient of a key bias is zero, and what is
/// computed for it is the rounding error of a sum of terms as large as the query bias's gradient.
pub const KEY_BIAS: &str = "attention.k_lin.bias";

/// max |ours - theirs| / max |theirs|.
pub fn relative_error(ours: &[f32], theirs: &[f32]) -> f64 {
    assert_eq!(ours.len(), theirs.len());
    assert!(ours.iter().all(|x| x.is_finite()), "not a number");
    let difference = ours.iter().zip(theirs).map(|(a, b)| (f64::from(*a) - f64::from(*b)).abs()).fold(0.0, f64::max);
    difference / largest(theirs)
}

/// max |x|.
pub fn largest(values: &[f32]) -> f64 {
    values.iter().map(|x| f64::from(x.abs())).fold(0.0, f64::max)
}

/// One of the folders under tests/fixtures/hf.
pub struct Case {
    /// The model directory.
    pub dir: PathBuf,
    json: serde_json::Value,
    expected: TensorFile,
}

/// One of its batches, packed.
pub struct Packed {
    pub ids: Vec<u32>,
    pub position_ids: Vec<u32>,
    pub cu_seqlens: Vec<u32>,
    pub masked_rows: Vec<u32>,
    pub targets: Vec<u32>,
    pub labels: Vec<i32>,
}

impl Packed {
    /// Lays sequences end to end; `masked` and `targets` are lists for each of them.
    fn new(json: &serde_json::Value) -> Packed {
        let lists = |field: &str| -> Vec<Vec<u32>> { serde_json::from_value(json[field].clone()).unwrap() };
        let mut packed = Packed {
            ids: Vec::new(),
            position_ids: Vec::new(),
            cu_seqlens: vec![0],
            masked_rows: Vec::new(),
            targets: lists("targets").concat(),
            labels: serde_json::from_value(json["labels"].clone()).unwrap(),
        };
        for (sequence, masked) in lists("ids").into_iter().zip(lists("masked")) {
            let start = packed.ids.len() as u32;
            packed.masked_rows.extend(masked.iter().map(|row| start + row));
            packed.position_ids.extend(0..sequence.len() as u32);
            packed.ids.extend(sequence);
            packed.cu_seqlens.push(packed.ids.len() as u32);
        }
        packed
    }

    /// As the backend sees it: with what the head at hand needs.
    pub fn view(&self, head: &Head, step: u32) -> BatchView<'_> {
        let plain = BatchView {
            ids: &self.ids,
            position_ids: &self.position_ids,
            cu_seqlens: &self.cu_seqlens,
            step,
            ..BatchView::default()
        };
        match head {
            Head::Mlm => BatchView {
                masked_rows: &self.masked_rows,
                targets: &self.targets,
                loss_scale: 1.0 / self.targets.len() as f32,
                ..plain
            },
            Head::Classifier { .. } => {
                BatchView { labels: &self.labels, loss_scale: 1.0 / self.labels.len() as f32, ..plain }
            }
        }
    }
}

/// Room for any batch of any fixture.
pub const CAPACITY: Capacity = Capacity { tokens: 160, sequences: 8, masked: 80 };

impl Case {
    /// Opens `mlm`, `classifier` or `bare`.
    pub fn open(name: &str) -> Case {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/hf").join(name);
        let json = std::fs::read_to_string(dir.join("case.json")).unwrap();
        let json = serde_json::from_str(&json).unwrap();
        Case { expected: TensorFile::open(&dir.join("expected.safetensors")).unwrap(), json, dir }
    }

    /// Number of batches.
    pub fn batches(&self) -> usize {
        self.json["batches"].as_array().unwrap().len()
    }

    /// A batch.
    pub fn batch(&self, i: usize) -> Packed {
        Packed::new(&self.json["batches"][i])
    }

    /// A number of case.json.
    pub fn number(&self, field: &str) -> f64 {
        self.json[field].as_f64().unwrap()
    }

    /// A whole number of case.json.
    pub fn integer(&self, field: &str) -> u64 {
        self.json[field].as_u64().unwrap()
    }

    /// A list of numbers of case.json.
    pub fn numbers(&self, field: &str) -> Vec<f64> {
        serde_json::from_value(self.json[field].clone()).unwrap()
    }

    /// AdamW as PyTorch was told.
    pub fn adam(&self) -> AdamSettings {
        let of = |field: &str| self.json["hyper"][field].as_f64().unwrap();
        AdamSettings {
            learning_rate: of("learning_rate"),
            weight_decay: of("weight_decay"),
            beta1: of("beta1"),
            beta2: of("beta2"),
            epsilon: of("epsilon"),
            max_grad_norm: of("max_norm"),
        }
    }

    /// What its learning rate was multiplied by in update `step`, from 0.
    pub fn factor(&self, step: usize) -> f64 {
        self.numbers("rates")[step] / self.adam().learning_rate
    }

    /// A tensor of expected.safetensors.
    pub fn expected(&self, name: &str) -> Vec<f32> {
        let len = self.expected.shape(name).unwrap_or_else(|| panic!("no {name}")).iter().product();
        let mut values = vec![0.0; len];
        self.expected.read(name, &mut values).unwrap();
        values
    }

    /// The model with the head of its file.
    pub fn model<B: Backend>(&self, be: &B) -> DistilBert<B> {
        let loaded = hub::load(&self.dir, &Wanted::AsSaved, 0).unwrap();
        assert!(loaded.fresh.is_empty() && loaded.unused.is_empty());
        DistilBert::new(be, loaded.config, loaded.head, &loaded.values).unwrap()
    }
}

/// A copy of the configuration that drops nothing, for gradients that can be compared.
pub fn without_dropout(config: &Config) -> Config {
    Config { dropout: 0.0, attention_dropout: 0.0, seq_classif_dropout: 0.0, ..config.clone() }
}

/// What one pass gives.
pub struct Pass {
    pub tally: Tally,
    pub grads: Vec<f32>,
}

/// Loss and gradients of one batch.
pub fn loss_and_grads<B: Backend>(be: &B, model: &DistilBert<B>, ws: &mut Workspace<B>, view: &BatchView<'_>) -> Pass {
    let mut grads = be.flat(model.table.flat_len).unwrap();
    model.upload(be, view, ws).unwrap();
    model.loss_and_grads(be, ws, &mut grads).unwrap();
    Pass { tally: be.take_tally(&mut ws.tally).unwrap(), grads: be.read_flat(&grads).unwrap() }
}

/// A workspace for training.
pub fn training<B: Backend>(be: &B, model: &DistilBert<B>, seed: u64) -> Workspace<B> {
    model.workspace(be, CAPACITY, Mode::Training, seed).unwrap()
}

/// Every `sample`-th element of a tensor.
pub fn sampled(flat: &[f32], spec: &ParamSpec, sample: usize) -> Vec<f32> {
    flat[spec.span.range()].iter().step_by(sample).copied().collect()
}
