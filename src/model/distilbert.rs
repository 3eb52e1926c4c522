//! The parts put together: a model with one head, and what one pass over a batch needs.

use super::class_head::{self, ClassHeadActs};
use super::config::Config;
use super::encoder::{Encoder, EncoderActs, EncoderDropout, EncoderScratch};
use super::mlm_head::{self, MlmHeadActs};
use super::params::{HeadParams, ParamTable};
use super::shapes::Mode;
use super::{Error, Result};
use crate::backend::shape::check_same_len;
use crate::backend::{self, Arena, Backend, BatchLimits, BatchView, Capacity, Dropout, Planner};

/// Which head a model has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Head {
    /// Masked-language modelling.
    Mlm,
    /// Classification.
    Classifier {
        /// K
        classes: usize,
    },
}

impl Head {
    /// The class of `transformers` that has this head.
    pub fn architecture(&self) -> &'static str {
        match self {
            Head::Mlm => "DistilBertForMaskedLM",
            Head::Classifier { .. } => "DistilBertForSequenceClassification",
        }
    }
}

/// What a head's forward pass saves.
#[derive(Debug)]
pub enum HeadActs<M, S> {
    /// Masked-language modelling.
    Mlm(MlmHeadActs<M, S>),
    /// Classification.
    Classifier(ClassHeadActs<M>),
}

/// All activation memory of a pass: one arena, planned from (config, head, capacity) before the first step.
#[derive(Debug)]
pub struct Activations<M, S> {
    /// The encoder's.
    pub encoder: EncoderActs<M, S>,
    /// The head's.
    pub head: HeadActs<M, S>,
    /// Gradients; only in training.
    pub scratch: Option<EncoderScratch<M>>,
}

impl<M, S> Activations<M, S> {
    /// Takes everything a pass needs from the arena; with a [`Planner`], writes down what it would take.
    pub fn new(arena: &mut impl Arena<Mat = M, Stats = S>, config: &Config, head: Head, mode: Mode) -> Self {
        Activations {
            encoder: EncoderActs::new(arena, config, mode),
            head: match head {
                Head::Mlm => HeadActs::Mlm(MlmHeadActs::new(arena, config.dim)),
                Head::Classifier { classes } => HeadActs::Classifier(ClassHeadActs::new(arena, config.dim, classes)),
            },
            scratch: (mode == Mode::Training).then(|| EncoderScratch::new(arena, config)),
        }
    }
}

/// What a pass needs besides the weights. Made once, used for every batch.
pub struct Workspace<B: Backend> {
    acts: Activations<B::Mat, B::Stats>,
    drop: EncoderDropout,
    head_drop: Dropout,
    batch: B::Batch,
    limits: BatchLimits,
    /// ε: how much of a label's target is spread over all classes while training; 0 unless it is set.
    pub label_smoothing: f32,
    /// Sums of the loss since they were last taken.
    pub tally: B::Tally,
}

/// A DistilBERT with one head.
pub struct DistilBert<B: Backend> {
    /// As in config.json.
    pub config: Config,
    /// Which head it has.
    pub head: Head,
    /// Every tensor and where it lies.
    pub table: ParamTable,
    /// The tensors.
    pub weights: B::Weights,
}

impl<B: Backend> DistilBert<B> {
    /// A model with these weights: [`ParamTable::flat_len`] of them, in table order, gaps included.
    ///
    /// # Errors
    ///
    /// [`Error::Backend`], for any other number of weights or where there is no memory for them.
    pub fn new(be: &B, config: Config, head: Head, values: &[f32]) -> Result<Self> {
        let table = ParamTable::new(&config, head);
        check_same_len("a model", "weights", values.len(), table.flat_len)?;
        let weights = be.weights(values)?;
        Ok(DistilBert { config, head, table, weights })
    }

    /// What the activations of this model take.
    pub fn plan(config: &Config, head: Head, capacity: Capacity, mode: Mode) -> Planner {
        let mut planner = Planner::new(capacity);
        Activations::new(&mut planner, config, head, mode);
        planner
    }

    /// Room for passes over batches up to `capacity`; `seed` is that of dropout.
    ///
    /// # Errors
    ///
    /// [`Error::Backend`]: no memory for the activations.
    pub fn workspace(&self, be: &B, capacity: Capacity, mode: Mode, seed: u64) -> Result<Workspace<B>> {
        let mut arena = be.arena(&Self::plan(&self.config, self.head, capacity, mode))?;
        let classes = match self.head {
            Head::Mlm => 0,
            Head::Classifier { classes } => classes,
        };
        Ok(Workspace {
            acts: Activations::new(&mut arena, &self.config, self.head, mode),
            drop: EncoderDropout::new(&self.config, mode, seed),
            head_drop: class_head::dropout(&self.config, mode, seed),
            batch: be.batch(capacity)?,
            limits: BatchLimits {
                vocab: self.config.vocab_size,
                positions: self.config.max_position_embeddings,
                classes,
            },
            label_smoothing: 0.0,
            tally: be.tally()?,
        })
    }

    /// Checks a batch and makes it the workspace's.
    ///
    /// # Errors
    ///
    /// [`Error::Backend`], for a batch that breaks a rule or is larger than the workspace.
    pub fn upload(&self, be: &B, view: &BatchView<'_>, ws: &mut Workspace<B>) -> Result<()> {
        Ok(be.upload(view, &ws.limits, &mut ws.batch)?)
    }

    /// Loss of the batch into the tally, without gradients.
    ///
    /// # Errors
    ///
    /// Those of the ops that it calls.
    pub fn loss(&self, be: &B, ws: &mut Workspace<B>) -> backend::Result<()> {
        self.forward(be, ws)?;
        let w = &self.weights;
        match (&self.table.head, &ws.acts.head) {
            (HeadParams::Mlm(p), HeadActs::Mlm(a)) => mlm_head::loss(be, w, &ws.batch, p, a, &mut ws.tally)?,
            (HeadParams::Classifier(p), HeadActs::Classifier(a)) => {
                class_head::loss(be, &ws.batch, p, a, &mut ws.tally)?
            }
            _ => unreachable!("the workspace was made by this model"),
        }
        Ok(())
    }

    /// Loss of the batch into the tally, gradients added to `grads`. The workspace is one for training.
    ///
    /// # Errors
    ///
    /// Those of the ops that it calls.
    ///
    /// # Panics
    ///
    /// On a workspace for inference.
    pub fn loss_and_grads(&self, be: &B, ws: &mut Workspace<B>, grads: &mut B::Flat) -> backend::Result<()> {
        self.forward(be, ws)?;
        let encoder = self.encoder(&ws.drop);
        let Activations { encoder: acts, head, scratch } = &mut ws.acts;
        let s = scratch.as_mut().expect("a workspace for training");
        let w = &self.weights;
        match (&self.table.head, head) {
            (HeadParams::Mlm(p), HeadActs::Mlm(a)) => {
                mlm_head::backward(be, w, &ws.batch, p, a, grads, &mut ws.tally, &mut s.d_hidden)?;
            }
            (HeadParams::Classifier(p), HeadActs::Classifier(a)) => {
                let (drop, smoothing) = (&ws.head_drop, ws.label_smoothing);
                class_head::backward(be, w, &ws.batch, p, drop, smoothing, a, grads, &mut ws.tally, &mut s.d_hidden)?;
            }
            _ => unreachable!("the workspace was made by this model"),
        }
        encoder.backward(be, w, &ws.batch, acts, s, grads)
    }

    /// The classifier's logits, row by row. [B, K]
    ///
    /// # Errors
    ///
    /// [`Error::Head`] of a model without classes; [`Error::Backend`] of an op that fails.
    pub fn logits(&self, be: &B, ws: &mut Workspace<B>) -> Result<Vec<f32>> {
        self.forward(be, ws)?;
        match &ws.acts.head {
            HeadActs::Classifier(a) => Ok(be.read_mat(&a.logits)?),
            HeadActs::Mlm(_) => Err(Error::Head {
                wanted: "classifier",
                found: "masked-language-modelling",
                advice: "train one with `handbert train classifier`",
            }),
        }
    }

    /// The most probable tokens at each masked row, with probabilities, best first. [M][k]
    ///
    /// # Errors
    ///
    /// [`Error::Head`] of a model without that head; [`Error::Backend`] of an op that fails.
    pub fn top_k(&self, be: &B, ws: &mut Workspace<B>, k: usize) -> Result<Vec<Vec<(u32, f32)>>> {
        self.forward(be, ws)?;
        match (&self.table.head, &ws.acts.head) {
            (HeadParams::Mlm(p), HeadActs::Mlm(a)) => Ok(be.top_k(&a.features, &self.weights, &p.projection, k)?),
            _ => Err(Error::Head {
                wanted: "masked-language-modelling",
                found: "classifier",
                advice: "name the model that `handbert train mlm` wrote",
            }),
        }
    }

    fn encoder<'a>(&'a self, drop: &'a EncoderDropout) -> Encoder<'a> {
        Encoder { table: &self.table, heads: self.config.n_heads, drop }
    }

    fn forward(&self, be: &B, ws: &mut Workspace<B>) -> backend::Result<()> {
        let w = &self.weights;
        self.encoder(&ws.drop).forward(be, w, &ws.batch, &mut ws.acts.encoder)?;
        let hidden = ws.acts.encoder.last_hidden(self.config.n_layers);
        match (&self.table.head, &mut ws.acts.head) {
            (HeadParams::Mlm(p), HeadActs::Mlm(a)) => mlm_head::forward(be, w, &ws.batch, p, hidden, a)?,
            (HeadParams::Classifier(p), HeadActs::Classifier(a)) => {
                class_head::forward(be, w, &ws.batch, p, &ws.head_drop, hidden, a)?;
            }
            _ => unreachable!("the workspace was made by this model"),
        }
        Ok(())
    }
}
