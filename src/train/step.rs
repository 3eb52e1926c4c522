//! One optimizer step: forward and backward of every batch of the group, then clip and update.
//!
//! A step is begun, the one before it settled, then it is completed: what comes of a step is known to the host only when
//! the next one's passes are under way, so a device never waits for the host. The first step is computed op by op; from
//! the second on, a backend that can records its passes and its update once and computes the recordings.

use crate::backend::{Backend, Capacity, Result as OpResult, UpdateLimits};
use crate::model::distilbert::Workspace;
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
    workspace: Workspace<B>,
    grads: B::Flat,
    computed: Computed<B>,
    posted: Option<B::Receipt>,
}

/// How a step's ops are computed.
enum Computed<B: Backend> {
    /// One by one, as nothing has been computed yet or recording is not wanted.
    OneByOne(Replay),
    /// As they were recorded.
    Recorded {
        /// Forward and backward of a batch.
        pass: B::Recording,
        /// Norm and update.
        update: B::Recording,
    },
}

/// Whether a backend that can record steps is to do so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Replay {
    /// From the second step on.
    WhenItCan,
    /// Every op of every step is launched by itself.
    Never,
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
    /// It did not.
    Skipped(Why),
}

/// Why a step left the weights as they were.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// Its loss or its gradients were no finite numbers.
    NotFinite,
    /// They were beyond the optimizer's limits.
    Outlier,
}

impl StepOutcome {
    /// Loss per target, in nats; 0 for a group without targets.
    pub fn mean_loss(&self) -> f64 {
        if self.weight == 0.0 { 0.0 } else { self.loss / self.weight }
    }
}

impl<B: Backend> Trainer<B> {
    /// Everything a step needs, planned for batches up to `capacity`; `seed` is that of dropout.
    pub fn new(
        be: &B, model: DistilBert<B>, adam: AdamSettings, capacity: Capacity, seed: u64, replay: Replay,
    ) -> Result<Self> {
        let workspace = model.workspace(be, capacity, Mode::Training, seed)?;
        let optimizer = Optimizer::new(be, &model.table, adam)?;
        let grads = be.flat(model.table.flat_len)?;
        let computed = Computed::OneByOne(replay);
        Ok(Trainer { model, optimizer, micro_batches: 0, workspace, grads, computed, posted: None })
    }

    /// Spreads this much of each label's target over all classes. Before the first step.
    pub fn smooth_labels(&mut self, label_smoothing: f32) {
        self.workspace.label_smoothing = label_smoothing;
    }

    /// Starts forward and backward of a group's batches.
    pub fn begin(&mut self, be: &B, group: &Group) -> Result<()> {
        // One division for the whole effective batch; a group without targets has no gradient.
        let loss_scale = if group.weight > 0.0 { (1.0 / group.weight) as f32 } else { 0.0 };
        be.zero(&mut self.grads)?;
        for micro in &group.micro {
            let view = micro.view(loss_scale, self.micro_batches as u32);
            self.model.upload(be, &view, &mut self.workspace)?;
            match &self.computed {
                Computed::OneByOne(_) => self.pass(be)?,
                Computed::Recorded { pass, .. } => be.replay(pass)?,
            }
            self.micro_batches += 1;
        }
        Ok(())
    }

    /// Whether settling would not wait.
    pub fn is_done(&self, be: &B) -> Result<bool> {
        self.posted.as_ref().map_or(Ok(true), |receipt| Ok(be.is_ready(receipt)?))
    }

    /// What came of the step completed last; `None` if that was told already. Waits for it.
    pub fn settle(&mut self, be: &B) -> Result<Option<StepOutcome>> {
        let Some(receipt) = self.posted.take() else { return Ok(None) };
        let sums = be.collect(receipt)?;
        let update = if self.optimizer.limits.allow(&sums) {
            self.optimizer.updates += 1;
            Update::Made
        } else if UpdateLimits::NONE.allow(&sums) {
            Update::Skipped(Why::Outlier)
        } else {
            Update::Skipped(Why::NotFinite)
        };
        Ok(Some(StepOutcome { loss: sums.loss, weight: sums.weight, grad_norm: sums.grad_norm, update }))
    }

    /// Clips and updates within the optimizer's limits, for the group that was begun; `factor` is the schedule's. The step
    /// before must be settled: whether it made an update decides on this one's bias correction.
    pub fn complete(&mut self, be: &B, factor: f64) -> Result<()> {
        self.optimizer.prepare(be, factor)?;
        match &self.computed {
            Computed::OneByOne(_) => self.update(be)?,
            Computed::Recorded { update, .. } => be.replay(update)?,
        }
        self.posted = Some(be.post_tally(&mut self.workspace.tally)?);
        if let Computed::OneByOne(Replay::WhenItCan) = self.computed {
            self.computed = self.recorded(be)?;
        }
        Ok(())
    }

    fn pass(&mut self, be: &B) -> OpResult<()> {
        self.model.loss_and_grads(be, &mut self.workspace, &mut self.grads)
    }

    fn update(&mut self, be: &B) -> OpResult<()> {
        be.grad_norm(&self.grads, &mut self.workspace.tally)?;
        self.optimizer.update(be, &mut self.model.weights, &self.grads, &self.workspace.tally)
    }

    fn recorded(&mut self, be: &B) -> Result<Computed<B>> {
        let Some(pass) = be.record(&mut || self.pass(be))? else { return Ok(Computed::OneByOne(Replay::Never)) };
        let Some(update) = be.record(&mut || self.update(be))? else { return Ok(Computed::OneByOne(Replay::Never)) };
        Ok(Computed::Recorded { pass, update })
    }
}
