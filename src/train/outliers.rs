//! Steps unlike those before them, by z-score, as llm.c finds them. What a step may have at most is worked out of the
//! steps before it and given to the device together with its update, which then is made or withheld: the step itself is
//! told from the others, and nobody waits for it.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use crate::backend::UpdateLimits;

use super::{Error, Result};

/// Steps that are compared with, where nothing else is asked for.
pub const DEFAULT_WINDOW: usize = 100;

/// What counts as an outlier. Only what is too large does.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Outliers {
    /// Standard deviations that a step's loss may be above the mean of the window; none: all may pass.
    pub max_loss: Option<f64>,
    /// The same of the gradients' norm.
    pub max_grad_norm: Option<f64>,
    /// Steps that are compared with. Before there are so many, nothing is an outlier.
    pub window: usize,
}

impl Outliers {
    /// None.
    pub const IGNORED: Outliers = Outliers { max_loss: None, max_grad_norm: None, window: DEFAULT_WINDOW };

    /// Whether anything is looked for.
    pub fn are_wanted(&self) -> bool {
        self.max_loss.is_some() || self.max_grad_norm.is_some()
    }

    /// Checks the numbers; errors name flags.
    pub fn check(&self) -> Result<()> {
        let scores = [("--max-loss-z-score", self.max_loss), ("--max-grad-norm-z-score", self.max_grad_norm)];
        let positive = |score: f64| score > 0.0 && score.is_finite();
        if let Some((flag, _)) = scores.iter().find(|(_, score)| score.is_some_and(|score| !positive(score))) {
            return Err(Error::Plan(format!("{flag} is not above 0")));
        }
        if self.window < 2 {
            return Err(Error::Plan(format!("--z-score-window {}: a spread takes two steps at least", self.window)));
        }
        Ok(())
    }

    /// What the next step may have at most.
    pub fn limits(&self, recent: &Recent) -> UpdateLimits {
        let limit = |score: Option<f64>, of: &VecDeque<Exact>, none: f32| match score {
            Some(score) if of.len() >= self.window => above(of, score).unwrap_or(none),
            _ => none,
        };
        UpdateLimits {
            loss: limit(self.max_loss, &recent.losses, UpdateLimits::NONE.loss),
            grad_norm: limit(self.max_grad_norm, &recent.grad_norms, UpdateLimits::NONE.grad_norm),
        }
    }

    /// Takes note of a step. Outliers are noted too: what stays at a new level is none for long.
    pub fn note(&self, recent: &mut Recent, loss: f64, grad_norm: f64) {
        if !self.are_wanted() || !loss.is_finite() || !grad_norm.is_finite() {
            return;
        }
        for (of, value) in [(&mut recent.losses, loss), (&mut recent.grad_norms, grad_norm)] {
            of.push_back(Exact(value));
            while of.len() > self.window {
                of.pop_front();
            }
        }
    }
}

/// mean + score × standard deviation; `None` where there is no spread.
fn above(values: &VecDeque<Exact>, score: f64) -> Option<f32> {
    let count = values.len() as f64;
    let mean = values.iter().map(|x| x.0).sum::<f64>() / count;
    let deviation = (values.iter().map(|x| (x.0 - mean) * (x.0 - mean)).sum::<f64>() / count).sqrt();
    (deviation > 0.0).then_some(((mean + score * deviation) as f32).min(f32::MAX))
}

/// The steps of the window, oldest first; part of a checkpoint.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Recent {
    losses: VecDeque<Exact>,
    grad_norms: VecDeque<Exact>,
}

/// A number that JSON keeps to the bit.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
struct Exact(#[serde(with = "super::exact")] f64);

#[cfg(test)]
mod tests {
    use super::*;

    const BOTH: Outliers = Outliers { max_loss: Some(3.0), max_grad_norm: Some(2.0), window: 4 };

    fn noted(outliers: Outliers, steps: &[(f64, f64)]) -> Recent {
        let mut recent = Recent::default();
        steps.iter().for_each(|&(loss, norm)| outliers.note(&mut recent, loss, norm));
        recent
    }

    #[test]
    fn limits_are_so_many_deviations_above_the_mean_of_a_full_window() {
        let steps = [(9.0, 9.0), (1.0, 2.0), (3.0, 2.0), (1.0, 4.0), (3.0, 4.0)];
        assert_eq!(BOTH.limits(&noted(BOTH, &steps[..3])), UpdateLimits::NONE);
        // The first has left the window: losses 2 ± 1, norms 3 ± 1.
        assert_eq!(BOTH.limits(&noted(BOTH, &steps)), UpdateLimits { loss: 5.0, grad_norm: 5.0 });
        let loss = Outliers { max_grad_norm: None, ..BOTH };
        assert_eq!(loss.limits(&noted(loss, &steps)), UpdateLimits { loss: 5.0, ..UpdateLimits::NONE });
    }

    #[test]
    fn what_cannot_be_judged_by_is_no_limit() {
        assert_eq!(BOTH.limits(&noted(BOTH, &[(2.0, 2.0); 9])), UpdateLimits::NONE, "no spread");
        let mut recent = noted(BOTH, &[(f64::NAN, 1.0), (1.0, f64::INFINITY)]);
        assert_eq!(recent, Recent::default(), "no numbers");
        Outliers::IGNORED.note(&mut recent, 1.0, 1.0);
        assert_eq!(recent, Recent::default(), "not asked for");
    }

    #[test]
    fn a_checkpoint_keeps_the_window_to_the_bit() {
        let recent = noted(BOTH, &[(0.1 + 0.2, 1.0 / 3.0), (1e-300, 5e-324)]);
        let text = serde_json::json!(recent).to_string();
        assert_eq!(serde_json::from_str::<Recent>(&text).expect("read back"), recent);
    }

    #[test]
    fn numbers_that_make_no_sense_name_their_flags() {
        let error = |outliers: Outliers| outliers.check().expect_err("refused").to_string();
        assert!(error(Outliers { max_loss: Some(0.0), ..BOTH }).contains("--max-loss-z-score"));
        assert!(error(Outliers { max_grad_norm: Some(f64::NAN), ..BOTH }).contains("--max-grad-norm-z-score"));
        assert!(error(Outliers { window: 1, ..BOTH }).contains("--z-score-window 1"));
        BOTH.check().expect("fine");
    }
}
