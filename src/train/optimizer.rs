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

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::backend::Memory;
    use crate::backend::cpu::Cpu;
    use crate::model::{Config, Head};

    const SETTINGS: AdamSettings = AdamSettings {
        learning_rate: 0.5,
        weight_decay: 0.125,
        beta1: 0.75,
        beta2: 0.875,
        epsilon: 0.25,
        max_grad_norm: 0.0,
    };

    const FACTOR: f64 = 0.5;

    struct Updated {
        table: ParamTable,
        weights: Vec<f32>,
        m: Vec<f32>,
        v: Vec<f32>,
    }

    /// One update of weights that are 1 by gradients that are `grad`.
    fn updated(settings: AdamSettings, grad: f32) -> Updated {
        let be = Cpu::new();
        let fields = serde_json::json!({
            "model_type": "distilbert", "activation": "gelu", "vocab_size": 7, "max_position_embeddings": 5, "n_layers": 1,
            "n_heads": 1, "dim": 64, "hidden_dim": 64, "dropout": 0.1, "attention_dropout": 0.1
        });
        let config = Config::from_json(fields.as_object().expect("an object"), Path::new("tiny")).expect("valid");
        let table = ParamTable::new(&config, Head::Mlm);
        let mut weights = be.weights(&vec![1.0; table.flat_len]).expect("weights");
        let (mut grads, mut tally) = (be.flat(table.flat_len).expect("gradients"), be.tally().expect("a tally"));
        let mut values = vec![0.0; table.flat_len];
        table.specs.iter().for_each(|spec| values[spec.span.range()].fill(grad));
        be.write_flat(&mut grads, &values).expect("written");
        be.grad_norm(&grads, &mut tally).expect("a norm");
        let mut optimizer = Optimizer::new(&be, &table, settings).expect("an optimizer");
        optimizer.prepare(&be, FACTOR).expect("prepared");
        optimizer.update(&be, &mut weights, &grads, &tally).expect("updated");
        let read = |flat| be.read_flat(flat).expect("read");
        let (m, v) = (read(&optimizer.m), read(&optimizer.v));
        Updated { weights: be.read_weights(&weights).expect("read"), table, m, v }
    }

    fn all_are(what: &str, values: &[f32], expected: f64) {
        let close = |x: &f32| (f64::from(*x) - expected).abs() <= 1e-6 * expected.abs();
        assert!(values.iter().all(close), "{what} is {}, expected {expected}", values[0]);
    }

    #[test]
    fn without_gradients_matrices_shrink_and_the_rest_stays() {
        let after = updated(SETTINGS, 0.0);
        for spec in &after.table.specs {
            let is_matrix = !spec.hf_name.ends_with(".bias") && !spec.hf_name.to_lowercase().contains("norm");
            let shrunk = if is_matrix { SETTINGS.learning_rate * FACTOR * SETTINGS.weight_decay } else { 0.0 };
            all_are(&spec.hf_name, &after.weights[spec.span.range()], 1.0 - shrunk);
        }
    }

    #[test]
    fn every_setting_reaches_the_update() {
        let g = 2.0;
        let parameters = |after: &Updated| after.table.parameters() as f64;
        let check = |settings: AdamSettings, clipped: f64, after: &Updated| {
            // The bias correction of the first update takes (1 - beta) away again.
            let step = settings.learning_rate * FACTOR * clipped / (clipped + settings.epsilon);
            for spec in &after.table.specs {
                let of = |flat: &[f32]| flat[spec.span.range()].to_vec();
                all_are("m", &of(&after.m), (1.0 - settings.beta1) * clipped);
                all_are("v", &of(&after.v), (1.0 - settings.beta2) * clipped * clipped);
                all_are(&spec.hf_name, &of(&after.weights), 1.0 - step);
            }
        };
        let free = AdamSettings { weight_decay: 0.0, ..SETTINGS };
        check(free, g, &updated(free, g as f32));
        let clipping = AdamSettings { max_grad_norm: 1.0, ..free };
        let after = updated(clipping, g as f32);
        check(clipping, 1.0 / parameters(&after).sqrt(), &after);
    }
}
