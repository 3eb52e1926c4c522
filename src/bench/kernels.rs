//! Every op measured on its own, on operands like those it has in a step.

use super::calls::{self, Call};
use super::cost::Cost;
use super::gpu::Gpu;
use super::measure::{Effort, Subject, Timing, time};
use super::operands::{Operands, Role, Set};
use super::ops::{Op, Part, ops};
use super::roofline::{Ceilings, Time};
use super::shapes::Lengths;
use crate::backend::{Backend, Result};
use crate::model::{Config, Head, Mode};

/// The most calls on operands that they change in place, before these are written anew: they fade, or grow, but keep their
/// digits, and a CPU is not slowed by denormal numbers.
pub const MOST_IN_PLACE: usize = 64;

/// What a call took, beside what it has to do.
#[derive(Debug, Clone, PartialEq)]
pub struct Measurement {
    /// Of the call.
    pub name: &'static str,
    /// What its work is counted as.
    pub formula: &'static str,
    /// How long sequences were.
    pub lengths: Lengths,
    /// How often the pass makes it; 0 if it is measured beside the pass.
    pub times: u64,
    /// What it makes: one or several, each once.
    pub ops: Vec<Op>,
    /// Seconds a call; or why there are none.
    pub outcome: std::result::Result<Timing, String>,
}

impl Measurement {
    /// FLOPs and bytes of a call.
    pub fn cost(&self) -> Cost {
        self.ops.iter().fold(Cost::default(), |sum, op| Cost {
            flops: sum.flops + op.cost.flops,
            bytes: sum.bytes + op.cost.bytes,
            cached_bytes: sum.cached_bytes + op.cost.cached_bytes,
        })
    }

    /// The least seconds a call: its ops run one after another.
    pub fn floor(&self, ceilings: &Ceilings) -> f64 {
        self.ops.iter().map(|op| ceilings.floor(&op.cost)).sum()
    }

    /// What is expected of a card, in seconds a call.
    pub fn expected(&self, gpu: &Gpu) -> f64 {
        self.ops.iter().map(|op| Time::of(op, gpu).expected).sum()
    }

    /// Seconds a call, where it was measured.
    pub fn seconds(&self) -> Option<f64> {
        self.outcome.as_ref().ok().map(|timing| timing.median)
    }
}

/// What is to be measured.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// The model's sizes.
    pub config: &'a Config,
    /// N
    pub tokens: usize,
    /// How thoroughly.
    pub effort: &'a Effort,
    /// Calls with one of these in their name; all of them where there are none.
    pub only: &'a [String],
}

impl Wanted<'_> {
    fn names(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|part| name.contains(part.as_str()))
    }

    /// Every call of a pass.
    ///
    /// # Errors
    ///
    /// If there is no memory for the model's buffers. A call that fails is a [`Measurement`] without a time.
    pub fn pass<B: Backend>(
        &self, be: &B, head: Head, mode: Mode, done: &mut dyn FnMut(&Measurement),
    ) -> Result<Vec<Measurement>> {
        let mut operands = Operands::new(be, self.config, head, self.tokens, mode)?;
        let load = operands.load(Lengths::Mixed);
        let ops = ops(self.config, head, &load, mode, be.precision());
        Ok(self.measure(&mut operands, &ops, |call| call.lengths == Lengths::Mixed, done))
    }

    /// Every call of a step of masked-language modelling, then those beside it: the loss without gradients, the classifier's
    /// head, attention on sequences of one length.
    ///
    /// # Errors
    ///
    /// Those of [`Wanted::pass`].
    pub fn everything<B: Backend>(&self, be: &B, done: &mut dyn FnMut(&Measurement)) -> Result<Vec<Measurement>> {
        let of = |load: &_, head, mode| ops(self.config, head, load, mode, be.precision());
        let mixed = |call: &Call<B>| call.lengths == Lengths::Mixed;
        let beside = |ops: Vec<Op>, part| -> Vec<Op> {
            ops.into_iter().filter(|op| op.part == part).map(|op| Op { times: 0, ..op }).collect()
        };

        let (head, mode) = (Head::Mlm, Mode::Training);
        let mut operands = Operands::new(be, self.config, head, self.tokens, mode)?;
        let load = operands.load(Lengths::Mixed);
        let mut measured = self.measure(&mut operands, &of(&load, head, mode), mixed, done);
        let loss = beside(of(&load, head, Mode::Inference), Part::MlmHead);
        measured.extend(self.measure(&mut operands, &loss, |call| call.name.ends_with("loss only"), done));
        let equal = beside(of(&operands.load(Lengths::Equal), head, mode), Part::Block);
        measured.extend(self.measure(&mut operands, &equal, |call| call.lengths == Lengths::Equal, done));
        drop(operands);

        let head = Head::Classifier { classes: self.config.labels.len().max(2) };
        let mut operands = Operands::new(be, self.config, head, self.tokens, mode)?;
        let classes = beside(of(&operands.load(Lengths::Mixed), head, mode), Part::ClassHead);
        measured.extend(self.measure(&mut operands, &classes, mixed, done));
        Ok(measured)
    }

    /// Those calls that make some of these ops, are wanted and are asked for.
    fn measure<B: Backend>(
        &self, operands: &mut Operands<'_, B>, ops: &[Op], wanted: impl Fn(&Call<B>) -> bool,
        done: &mut dyn FnMut(&Measurement),
    ) -> Vec<Measurement> {
        let mut measured = Vec::new();
        for call in calls::all::<B>().iter().filter(|call| wanted(call) && self.names(call.name)) {
            let ops: Vec<Op> = call.ops(ops).into_iter().cloned().collect();
            let Some(times) = ops.first().map(|op| op.times) else { continue };
            let Call { name, formula, lengths, .. } = *call;
            let mut measurement =
                Measurement { name, formula, lengths, times, ops, outcome: Err("not measured".to_owned()) };
            let timing = self.time(operands, call, measurement.cost().bytes);
            measurement.outcome = timing.map_err(|error| error.to_string());
            done(&measurement);
            measured.push(measurement);
        }
        measured
    }

    fn time<B: Backend>(&self, operands: &mut Operands<'_, B>, call: &Call<B>, bytes: f64) -> Result<Timing> {
        let sets = call.ready(operands, call.cold_sets(self.effort, bytes))?;
        time(operands.be, self.effort, &mut Calls { operands, call, sets })
    }
}

/// A call with its operands.
struct Calls<'a, 'b, B: Backend> {
    operands: &'a mut Operands<'b, B>,
    call: &'a Call<B>,
    sets: Vec<Set<B>>,
}

impl<B: Backend> Subject<B> for Calls<'_, '_, B> {
    fn sets(&self) -> usize {
        self.sets.len()
    }

    fn most_calls(&self) -> usize {
        let in_place = self.call.mats.iter().any(|operand| operand.role == Role::InPlace);
        if in_place { MOST_IN_PLACE } else { usize::MAX }
    }

    fn call(&mut self, set: usize) -> Result<()> {
        (self.call.run)(self.operands, &mut self.sets[set])?;
        self.operands.number += 1;
        Ok(())
    }

    fn refresh(&mut self) -> Result<()> {
        self.operands.refresh(&mut self.sets, self.call.lengths)
    }
}
