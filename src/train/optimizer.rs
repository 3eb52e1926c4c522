//! AdamW's settings and moments.

use crate::backend::{self, AdamW, Backend, UpdateLimits, UpdateSpan};
use crate::model::ParamTable;

use super::Result;

/// Settings of AdamW that stay the same over a run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamSettings {
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Decoupled weight decay; biases and LayerNorms are exempt.
    pub weight_decay: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// Global norm the gradients are clipped to; 0 = no clipping.
    pub max_grad_norm: f64,
}

/// The defaults of Hugging Face's `TrainingArguments`.
impl Default for AdamSettings {
    fn default() -> Self {
        AdamSettings {
            learning_rate: 5e-5,
            weight_decay: 0.0,
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            max_grad_norm: 1.0,
        }
    }
}

/// AdamW with its moments.
pub struct Optimizer<B: Backend> {
    settings: AdamSettings,
    spans: Vec<UpdateSpan>,
    hyper: B::Hyper,
    /// First moments, laid out as the parameters.
    pub m: B::Flat,
    /// Second moments.
    pub v: B::Flat,
    /// Beyond which the next update is withheld.
    pub limits: UpdateLimits,
    /// Updates made: what the bias correction counts. Skipped steps are not among them.
    pub updates: u32,
}

impl<B: Backend> Optimizer<B> {
    /// Moments of zero.
    pub fn new(be: &B, table: &ParamTable, settings: AdamSettings) -> Result<Self> {
        Ok(Optimizer {
            settings,
            spans: table.update_spans(),
            hyper: be.hyper()?,
            m: be.flat(table.flat_len)?,
            v: be.flat(table.flat_len)?,
            limits: UpdateLimits::NONE,
            updates: 0,
        })
    }

    /// Sets what the next update goes by; `factor` is the schedule's.
    pub fn prepare(&mut self, be: &B, factor: f64) -> Result<()> {
        let s = &self.settings;
        let hyper = AdamW {
            learning_rate: (s.learning_rate * factor) as f32,
            beta1: s.beta1 as f32,
            beta2: s.beta2 as f32,
            epsilon: s.epsilon as f32,
            weight_decay: s.weight_decay as f32,
            max_norm: s.max_grad_norm as f32,
            step: self.updates.saturating_add(1),
            limits: self.limits,
        };
        Ok(be.set_hyper(&mut self.hyper, &hyper)?)
    }

    /// Clips by the norm in `tally` and updates the weights. A tally beyond the limits changes nothing; only who sees it
    /// knows, and does the counting.
    pub fn update(
        &mut self, be: &B, weights: &mut B::Weights, grads: &B::Flat, tally: &B::Tally,
    ) -> backend::Result<()> {
        be.adamw(weights, grads, &mut self.m, &mut self.v, &self.spans, &self.hyper, tally)
    }
}
