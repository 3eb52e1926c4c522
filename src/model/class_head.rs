//! The classifier head: hidden[:, 0] → Linear → ReLU → dropout → Linear.

use super::config::Config;
use super::params::ClassHeadParams;
use super::shapes::Mode;
use crate::backend::{Arena, Backend, Dropout, Into, LossGrads, Pick, Result, Rows};

/// What the head's forward pass saves.
#[derive(Debug)]
pub struct ClassHeadActs<M> {
    /// Hidden state of each sequence's [CLS]. [B, C]
    pub first: M,
    /// First linear layer, before the ReLU. [B, C]
    pub pre: M,
    /// After ReLU and dropout. [B, C]
    pub act: M,
    /// [B, K]
    pub logits: M,
    /// [B, K]
    pub d_logits: M,
    /// [B, C]
    pub d_act: M,
    /// [B, C]
    pub d_first: M,
}

impl<M> ClassHeadActs<M> {
    /// Room for the head of a model of width C with K classes.
    pub fn new<S>(arena: &mut impl Arena<Mat = M, Stats = S>, width: usize, classes: usize) -> Self {
        let rows = Rows::Sequences;
        ClassHeadActs {
            first: arena.mat(rows, width),
            pre: arena.mat(rows, width),
            act: arena.mat(rows, width),
            logits: arena.mat(rows, classes),
            d_logits: arena.mat(rows, classes),
            d_act: arena.mat(rows, width),
            d_first: arena.mat(rows, width),
        }
    }
}

/// Dropout before the classifier; its site is 1.
pub fn dropout(config: &Config, mode: Mode, seed: u64) -> Dropout {
    match mode {
        Mode::Training => Dropout::new(config.seq_classif_dropout, 1, seed),
        Mode::Inference => Dropout::NONE,
    }
}

/// logits [B, K] from the encoder's output [N, C].
///
/// # Errors
///
/// Those of the ops that it calls.
pub fn forward<B: Backend>(
    be: &B, w: &B::Weights, batch: &B::Batch, p: &ClassHeadParams, drop: &Dropout, hidden: &B::Mat,
    a: &mut ClassHeadActs<B::Mat>,
) -> Result<()> {
    be.gather_rows(hidden, batch, Pick::First, &mut a.first)?; // 1  first = hidden[cu_seqlens[..B]]   [B, C]
    be.linear(&a.first, w, &p.pre_classifier, &mut a.pre)?; // 2  pre = first Wᵀ + b                  [B, C]
    be.relu_dropout(&a.pre, batch, drop, &mut a.act)?; // 3  act = dropout(relu(pre))            [B, C]
    be.linear(&a.act, w, &p.classifier, &mut a.logits) // 4  logits = act Wᵀ + b                 [B, K]
}

/// Loss of the labels into the tally, without gradients.
///
/// # Errors
///
/// Those of the ops that it calls.
pub fn loss<B: Backend>(
    be: &B, batch: &B::Batch, p: &ClassHeadParams, a: &ClassHeadActs<B::Mat>, tally: &mut B::Tally,
) -> Result<()> {
    be.class_cross_entropy(&a.logits, batch, p.classifier.bias, 0.0, tally, None)
}

/// Loss of the labels, smoothed, into the tally; gradient of the encoder's output into `d_hidden` [N, C].
///
/// # Errors
///
/// Those of the ops that it calls.
#[allow(clippy::too_many_arguments)]
pub fn backward<B: Backend>(
    be: &B, w: &B::Weights, batch: &B::Batch, p: &ClassHeadParams, drop: &Dropout, smoothing: f32,
    a: &mut ClassHeadActs<B::Mat>, grads: &mut B::Flat, tally: &mut B::Tally, d_hidden: &mut B::Mat,
) -> Result<()> {
    let back = LossGrads { d_x: &mut a.d_logits, grads };
    be.class_cross_entropy(&a.logits, batch, p.classifier.bias, smoothing, tally, Some(back))?; // 5
    be.linear_backward(&a.d_logits, &a.act, w, &p.classifier, grads, Into::Write(&mut a.d_act))?; // 4
    be.relu_dropout_backward(&a.pre, batch, drop, p.pre_classifier.bias, grads, &mut a.d_act)?; // 3
    be.linear_backward(&a.d_act, &a.first, w, &p.pre_classifier, grads, Into::Write(&mut a.d_first))?; // 2
    be.scatter_rows(&a.d_first, batch, Pick::First, d_hidden) // 1
}
