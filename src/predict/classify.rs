//! From a packed batch to the probability of each class.

use super::{Error, Result};
use crate::backend::{Backend, BatchView, Capacity};
use crate::data::PackedBatch;
use crate::model::shapes::Mode;
use crate::model::{DistilBert, Head};

/// A classifier with room for one batch.
pub struct Classifier<'a, B: Backend> {
    be: &'a B,
    model: &'a DistilBert<B>,
    workspace: crate::model::distilbert::Workspace<B>,
    classes: usize,
}

impl<'a, B: Backend> Classifier<'a, B> {
    /// Room for batches of at most `tokens` tokens in at most `sequences` sequences.
    ///
    /// # Errors
    /// The model has no classifier head, or memory runs out.
    pub fn new(be: &'a B, model: &'a DistilBert<B>, tokens: usize, sequences: usize) -> Result<Self> {
        let Head::Classifier { classes } = model.head else {
            return Err(Error::Model(crate::model::Error::Head {
                wanted: "classifier",
                found: "masked-language-modelling",
                advice: "train one from it with `handbert train classifier --model …`",
            }));
        };
        // Nothing is masked in classification.
        let capacity = Capacity { tokens, sequences, masked: 0 };
        let workspace = model.workspace(be, capacity, Mode::Inference, 0)?;
        Ok(Classifier { be, model, workspace, classes })
    }

    /// K
    pub fn classes(&self) -> usize {
        self.classes
    }

    /// softmax(logits), row by row. [B, K]
    ///
    /// # Errors
    /// The batch exceeds the capacity, or holds an id that is not in the model's vocabulary.
    pub fn probabilities(&mut self, batch: &PackedBatch) -> Result<Vec<f32>> {
        let view = BatchView {
            ids: &batch.ids,
            position_ids: &batch.position_ids,
            cu_seqlens: &batch.cu_seqlens,
            ..BatchView::default()
        };
        self.model.upload(self.be, &view, &mut self.workspace)?;
        let mut scores = self.model.logits(self.be, &mut self.workspace)?;
        scores.chunks_mut(self.classes).for_each(softmax);
        Ok(scores)
    }
}

/// In place, in f64, so that probabilities near 0 and 1 keep their digits.
fn softmax(logits: &mut [f32]) {
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let power = |x: f32| f64::from(x - most).exp();
    let total: f64 = logits.iter().map(|&x| power(x)).sum();
    for x in logits {
        *x = (power(*x) / total) as f32;
    }
}

/// Which class a row gets, from its probabilities.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum Decision {
    /// The most probable one; the first of equals.
    #[default]
    MostProbable,
    /// Of two classes, this one where its probability is at least `at`, else the other.
    Threshold {
        /// The positive class.
        class: usize,
        /// Its least probability.
        at: f32,
    },
}

impl Decision {
    /// The class decided on.
    pub fn class(&self, probabilities: &[f32]) -> usize {
        match *self {
            Decision::Threshold { class, at } if probabilities.get(class).is_some_and(|&p| p >= at) => class,
            Decision::Threshold { class, .. } => 1 - class.min(1),
            Decision::MostProbable => {
                let best = |best: usize, i: usize| if probabilities[i] > probabilities[best] { i } else { best };
                (0..probabilities.len()).fold(0, best)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn softmax_of_hard_logits() {
        let mut logits = [1000.0, 1000.0, -1000.0];
        softmax(&mut logits);
        assert_eq!(logits, [0.5, 0.5, 0.0]);
        let mut logits = [0.0, -30.0];
        softmax(&mut logits);
        assert!((f64::from(logits[1]) - 9.3576e-14).abs() < 1e-17);
    }

    #[test]
    fn a_threshold_moves_the_decision() {
        let p = [0.7, 0.3];
        assert_eq!(Decision::MostProbable.class(&p), 0);
        assert_eq!(Decision::Threshold { class: 1, at: 0.3 }.class(&p), 1);
        assert_eq!(Decision::Threshold { class: 1, at: 0.31 }.class(&p), 0);
        assert_eq!(Decision::Threshold { class: 0, at: 0.71 }.class(&p), 1);
        assert_eq!(Decision::MostProbable.class(&[0.5, 0.5]), 0);
    }
}
