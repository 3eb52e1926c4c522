//! The masked-language-modelling head, at the masked positions only.

use super::params::MlmHeadParams;
use crate::backend::{Arena, Backend, Dropout, Into, LossGrads, Pick, Result, Rows};

/// What the head's forward pass saves.
#[derive(Debug)]
pub struct MlmHeadActs<M, S> {
    /// Hidden states at the masked positions. [M, C]
    pub picked: M,
    /// Transform, before the GELU. [M, C]
    pub pre: M,
    /// After it. [M, C]
    pub act: M,
    /// The LayerNorm's input, which equals `act`. [M, C]
    pub sum: M,
    /// Mean and reciprocal standard deviation of its rows. [M, 2]
    pub stats: S,
    /// What is projected onto the vocabulary. [M, C]
    pub features: M,
    /// Gradient on its way down. [M, C]
    pub d_features: M,
    /// Gradient of `picked`. [M, C]
    pub d_picked: M,
}

impl<M, S> MlmHeadActs<M, S> {
    /// Room for the head of a model of width C.
    pub fn new(arena: &mut impl Arena<Mat = M, Stats = S>, width: usize) -> Self {
        let rows = Rows::Masked;
        MlmHeadActs {
            picked: arena.mat(rows, width),
            pre: arena.mat(rows, width),
            act: arena.mat(rows, width),
            sum: arena.mat(rows, width),
            stats: arena.stats(rows, 2),
            features: arena.mat(rows, width),
            d_features: arena.mat(rows, width),
            d_picked: arena.mat(rows, width),
        }
    }
}

/// features = LN(gelu(hidden[masked] Wᵀ + b)).
///
/// # Errors
///
/// Those of the ops that it calls.
pub fn forward<B: Backend>(
    be: &B, w: &B::Weights, batch: &B::Batch, p: &MlmHeadParams, hidden: &B::Mat, a: &mut MlmHeadActs<B::Mat, B::Stats>,
) -> Result<()> {
    be.gather_rows(hidden, batch, Pick::Masked, &mut a.picked)?; // 1  picked = hidden[masked_rows]   [M, C]
    be.linear_gelu(&a.picked, w, &p.transform, &mut a.pre, &mut a.act)?; // 2  act = gelu(picked Wᵀ + b)    [M, C]
    be.add_layernorm(&a.act, None, batch, w, &p.norm, &Dropout::NONE, &mut a.sum, &mut a.stats, &mut a.features) // 3  features = LN(act)  [M, C]
}

/// Loss of the targets into the tally, without gradients.
///
/// # Errors
///
/// Those of the ops that it calls.
pub fn loss<B: Backend>(
    be: &B, w: &B::Weights, batch: &B::Batch, p: &MlmHeadParams, a: &MlmHeadActs<B::Mat, B::Stats>,
    tally: &mut B::Tally,
) -> Result<()> {
    be.vocab_cross_entropy(&a.features, batch, w, &p.projection, tally, None)
}

/// Loss into the tally, gradient of the encoder's output into `d_hidden` [N, C].
///
/// # Errors
///
/// Those of the ops that it calls.
#[allow(clippy::too_many_arguments)]
pub fn backward<B: Backend>(
    be: &B, w: &B::Weights, batch: &B::Batch, p: &MlmHeadParams, a: &mut MlmHeadActs<B::Mat, B::Stats>,
    grads: &mut B::Flat, tally: &mut B::Tally, d_hidden: &mut B::Mat,
) -> Result<()> {
    let back = LossGrads { d_x: &mut a.d_features, grads };
    be.vocab_cross_entropy(&a.features, batch, w, &p.projection, tally, Some(back))?; // 4
    be.add_layernorm_backward(
        &mut a.d_features,
        &a.sum,
        &a.stats,
        batch,
        w,
        &p.norm,
        &Dropout::NONE,
        None,
        grads,
        None,
    )?; // 3  d_features = d_act
    be.gelu_backward(&a.pre, p.transform.bias, grads, &mut a.d_features)?; // 2's GELU
    be.linear_backward(&a.d_features, &a.picked, w, &p.transform, grads, Into::Write(&mut a.d_picked))?; // 2
    be.scatter_rows(&a.d_picked, batch, Pick::Masked, d_hidden) // 1
}
