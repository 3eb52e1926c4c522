//! What a run tells whoever watches it. The library prints nothing.

use std::path::Path;

use super::records::{EvalRecord, StepRecord};
use super::step::Why;

/// Watches a run.
pub trait Observer {
    /// Something happened.
    fn on(&mut self, event: Event<'_>);

    /// Whether to finish the step, save and end. Asked after each step and during evaluations.
    fn wants_stop(&self) -> bool {
        false
    }
}

/// What happens in a run, in the order of a run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Event<'a> {
    /// Everything is ready.
    Started(Started<'a>),
    /// A step was made.
    Step(StepDone),
    /// A step was skipped: it left the weights as they were.
    Skipped {
        /// Which.
        step: u64,
        /// Its loss per target.
        loss: f64,
        /// Its gradient norm.
        grad_norm: f64,
        /// For what reason.
        why: Why,
    },
    /// A step was logged.
    Logged(&'a StepRecord),
    /// An evaluation is under way.
    Evaluating {
        /// Batches done.
        done: u64,
        /// Batches in all.
        total: u64,
    },
    /// An evaluation is done.
    Evaluated(&'a EvalRecord),
    /// The model in the run directory was replaced.
    Promoted(&'a Path),
    /// A checkpoint was written.
    Saved(&'a Path),
    /// A checkpoint was deleted.
    Deleted(&'a Path),
}

/// What is known before the first step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Started<'a> {
    /// What computes.
    pub device: &'a str,
    /// Parameters of the model.
    pub parameters: usize,
    /// Steps made in earlier sittings.
    pub step: u64,
    /// Steps of the whole run.
    pub total_steps: u64,
    /// Of those, with the learning rate rising.
    pub warmup_steps: u64,
}

/// A step that was made.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepDone {
    /// Which, from 1.
    pub step: u64,
    /// Steps of the whole run.
    pub total_steps: u64,
    /// Loss per target, in nats.
    pub loss: f64,
    /// Tokens trained on since the run began.
    pub tokens: u64,
    /// Tokens a second over the steps of this sitting.
    pub tokens_per_second: f64,
}

/// Watches nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Observer for Silent {
    fn on(&mut self, _: Event<'_>) {}
}
