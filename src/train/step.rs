//! One optimizer step: forward and backward of every batch of the group, then clip and update.

use crate::backend::{Backend, Capacity};
use crate::model::{DistilBert, Mode};

use super::Result;
use super::loader::Group;
use super::optimizer::{AdamSettings, Optimizer};

/// A model in training and what a step needs.
pub struct Trainer<B: Backend> {
    /// The model.
    pub model: DistilBert<B>,
    /// The moments.
    pub optimizer: Optimizer<B>,
    /// Batches gone forward so far: the step number of dropout.
    pub micro_batches: u64,
    workspace: crate::model::distilbert::Workspace<B>,
    grads: B::Flat,
}

/// What a step did.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepOutcome {
    /// Sum over targets of weight × cross-entropy, in nats.
    pub loss: f64,
    /// Sum of target weights.
    pub weight: f64,
    /// L2 norm of the gradients before clipping.
    pub grad_norm: f64,
    /// Whether the weights changed.
    pub update: Update,
}

/// Whether a step changed the weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Update {
    /// It did.
    Made,
    /// It did not: loss or gradients were no finite numbers.
    Skipped,
}

impl StepOutcome {
    /// Loss per target, in nats; 0 for a group without targets.
    pub fn mean_loss(&self) -> f64 {
        if self.weight == 0.0 { 0.0 } else { self.loss / self.weight }
    }
}

impl<B: Backend> Trainer<B> {
    /// Everything a step needs, planned for batches up to `capacity`; `seed` is that of dropout.
    pub fn new(be: &B, model: DistilBert<B>, adam: AdamSettings, capacity: Capacity, seed: u64) -> Result<Self> {
        let workspace = model.workspace(be, capacity, Mode::Training, seed)?;
        let optimizer = Optimizer::new(be, &model.table, adam)?;
        let grads = be.flat(model.table.flat_len)?;
        Ok(Trainer { model, optimizer, micro_batches: 0, workspace, grads })
    }

    /// Makes one step; `factor` is the schedule's.
    pub fn step(&mut self, be: &B, group: &Group, factor: f64) -> Result<StepOutcome> {
        // One division for the whole effective batch; a group without targets has no gradient.
        let loss_scale = if group.weight > 0.0 { (1.0 / group.weight) as f32 } else { 0.0 };
        be.zero(&mut self.grads)?;
        for micro in &group.micro {
            let view = micro.view(loss_scale, self.micro_batches as u32);
            self.model.upload(be, &view, &mut self.workspace)?;
            self.model.loss_and_grads(be, &mut self.workspace, &mut self.grads)?;
            self.micro_batches += 1;
        }
        let tally = &mut self.workspace.tally;
        be.grad_norm(&self.grads, tally)?;
        self.optimizer.update(be, &mut self.model.weights, &self.grads, tally, factor)?;
        // Read once, after the update: on a device, this is the only wait.
        let sums = be.take_tally(tally)?;
        let finite = sums.grad_norm.is_finite();
        if finite {
            self.optimizer.updates += 1;
        }
        let update = if finite && sums.loss.is_finite() { Update::Made } else { Update::Skipped };
        Ok(StepOutcome { loss: sums.loss, weight: sums.weight, grad_norm: sums.grad_norm, update })
    }
}
