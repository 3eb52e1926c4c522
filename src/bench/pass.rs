//! Whole training steps and forward passes, as `train` and `predict` make them.

use std::time::Instant;

use super::measure::median;
use super::ops::Load;
use super::shapes::{self, Lengths};
use crate::backend::{Backend, Capacity};
use crate::data::pack::{Cursor, Shuffle};
use crate::data::split::Subset;
use crate::data::token_set::TokenSet;
use crate::model::{Config, DistilBert, Head, ParamTable};
use crate::predict::classify::Classifier;
use crate::train::loader::{Group, Loader};
use crate::train::optimizer::AdamSettings;
use crate::train::step::{StepOutcome, Trainer};
use crate::train::task::{MicroBatch, Objective};
use crate::train::{self, Batching, Replay, Task};

/// Random batches that take turns, so that none finds its rows of the tables in a cache.
const BATCHES: u64 = 4;

/// What is measured.
#[derive(Debug, Clone, Copy)]
pub struct Plan<'a> {
    /// The model.
    pub config: &'a Config,
    /// They take turns.
    pub batches: &'a [MicroBatch],
    /// Steps, or batches, that are not timed.
    pub warm_up: usize,
    /// Those that are.
    pub timed: usize,
    /// Of weights and dropout.
    pub seed: u64,
}

/// Batches of `tokens` random tokens in sequences of these lengths.
pub fn random_batches(config: &Config, lengths: Lengths, tokens: usize, seed: u64) -> Vec<MicroBatch> {
    let lengths = lengths.of(tokens, config.max_position_embeddings);
    (0..BATCHES).map(|n| shapes::batch(&lengths, config.vocab_size, 0, seed.wrapping_add(n))).collect()
}

/// The first batches that `train mlm` would make of a token set.
///
/// # Errors
///
/// Those of reading the token set and its tokenizer, and of a plan that does not fit it.
pub fn real_batches(set: &TokenSet, batching: &Batching, count: usize, seed: u64) -> train::Result<Vec<MicroBatch>> {
    let (task, tokenizer) = (Task::MLM, set.tokenizer()?);
    let packing = batching.pack_plan(&task, Subset::Train, Shuffle::Shuffled { seed });
    let objective = Objective::new(&task, seed, &tokenizer, set, 0, batching)?;
    let mut loader = Loader::new(set, &packing, tokenizer.special(), Cursor::start(0), objective, 1)?;
    (0..count).map(|_| Ok(loader.next_group()?.micro.remove(0))).collect()
}

impl Plan<'_> {
    fn batch(&self, number: usize) -> usize {
        number % self.batches.len()
    }

    /// Room for any of the batches.
    fn capacity(&self) -> Capacity {
        let most = |count: fn(&MicroBatch) -> usize| self.batches.iter().map(count).max().unwrap_or(0);
        Capacity {
            tokens: most(|micro| micro.batch.packed.tokens()),
            sequences: most(|micro| micro.batch.packed.sequences()),
            masked: most(|micro| micro.batch.targets.len()),
        }
    }

    /// The weights that steps start from.
    pub fn initial_weights(&self, head: Head) -> Vec<f32> {
        ParamTable::new(self.config, head).initial_weights(self.config, self.seed)
    }

    fn model<B: Backend>(&self, be: &B, head: Head) -> crate::model::Result<DistilBert<B>> {
        DistilBert::new(be, self.config.clone(), head, &self.initial_weights(head))
    }
}

/// What one step, or batch, took.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pace {
    /// Since the one before.
    pub seconds: f64,
    /// What its cost depends on.
    pub load: Load,
}

/// What steps, or batches, took, warm-up left out.
#[derive(Debug, Clone, PartialEq)]
pub struct Paces(pub Vec<Pace>);

impl Paces {
    /// Seconds of all of them.
    pub fn total(&self) -> f64 {
        self.0.iter().map(|pace| pace.seconds).sum()
    }

    /// Seconds of one, over all of them.
    pub fn mean(&self) -> f64 {
        self.total() / self.0.len() as f64
    }

    /// Seconds of the one in the middle.
    pub fn median(&self) -> f64 {
        median(&mut self.0.iter().map(|pace| pace.seconds).collect::<Vec<_>>())
    }

    /// Over all of the time.
    pub fn tokens_per_second(&self) -> f64 {
        self.0.iter().map(|pace| pace.load.tokens as f64).sum::<f64>() / self.total()
    }

    /// Over all of the time.
    pub fn sequences_per_second(&self) -> f64 {
        self.0.iter().map(|pace| pace.load.sequences()).sum::<f64>() / self.total()
    }
}

/// What training steps took, and that they learned.
#[derive(Debug, Clone, PartialEq)]
pub struct Steps {
    /// Their time.
    pub paces: Paces,
    /// Nats a target, step by step, warm-up included.
    pub losses: Vec<f64>,
}

/// Steps of masked-language modelling from random weights, the one after the other as a run makes them: a step is settled
/// at once where it is done by then, as on a CPU, else when the passes of the next one are under way, so one more is made
/// than is timed. The first is computed op by op, the
/// second is the first that a backend that records replays. The optimizer has its defaults, the learning rate stays at its
/// peak.
///
/// # Errors
///
/// Those of a training step, and of making its model.
pub fn train<B: Backend>(be: &B, plan: &Plan<'_>) -> train::Result<Steps> {
    let groups: Vec<Group> = plan.batches.iter().cloned().map(shapes::group).collect();
    let model = plan.model(be, Head::Mlm)?;
    let adam = AdamSettings::default();
    let mut trainer = Trainer::new(be, model, adam, plan.capacity(), plan.seed, Replay::WhenItCan)?;
    let mut steps = Timeline::new();
    for number in 0..=plan.warm_up + plan.timed {
        if trainer.is_done(be)? {
            steps.settled(trainer.settle(be)?);
        }
        trainer.begin(be, &groups[plan.batch(number)])?;
        steps.settled(trainer.settle(be)?);
        trainer.complete(be, 1.0)?;
    }
    steps.settled(trainer.settle(be)?);
    let loads: Vec<Load> = plan.batches.iter().map(shapes::load).collect();
    // Nothing comes between the last step's update and its settling.
    let timed = steps.seconds.iter().enumerate().skip(plan.warm_up).take(plan.timed);
    let paces = timed.map(|(number, &seconds)| Pace { seconds, load: loads[plan.batch(number)] }).collect();
    Ok(Steps { paces: Paces(paces), losses: steps.losses })
}

/// When each step was known to be done.
struct Timeline {
    last: Instant,
    seconds: Vec<f64>,
    losses: Vec<f64>,
}

impl Timeline {
    fn new() -> Timeline {
        Timeline { last: Instant::now(), seconds: Vec::new(), losses: Vec::new() }
    }

    fn settled(&mut self, outcome: Option<StepOutcome>) {
        let Some(outcome) = outcome else { return };
        let now = Instant::now();
        self.losses.push(outcome.mean_loss());
        self.seconds.push(now.duration_since(self.last).as_secs_f64());
        self.last = now;
    }
}

/// Batches through a classifier of two classes, from ids on the host to probabilities on the host, one after the other.
///
/// # Errors
///
/// Those of a pass, and of making its model.
pub fn predict<B: Backend>(be: &B, plan: &Plan<'_>) -> crate::predict::Result<Paces> {
    let model = plan.model(be, Head::Classifier { classes: 2 })?;
    let Capacity { tokens, sequences, .. } = plan.capacity();
    let mut classifier = Classifier::new(be, &model, tokens, sequences)?;
    // Nothing is masked in classification.
    let loads: Vec<Load> = plan.batches.iter().map(|micro| Load { masked: 0, ..shapes::load(micro) }).collect();
    let mut paces = Vec::with_capacity(plan.warm_up + plan.timed);
    for number in 0..plan.warm_up + plan.timed {
        let batch = plan.batch(number);
        let start = Instant::now();
        classifier.probabilities(&plan.batches[batch].batch.packed)?;
        paces.push(Pace { seconds: start.elapsed().as_secs_f64(), load: loads[batch] });
    }
    Ok(Paces(paces.split_off(plan.warm_up)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cpu::Cpu;

    fn tiny() -> Config {
        Config {
            vocab_size: 100,
            max_position_embeddings: 64,
            n_layers: 2,
            n_heads: 2,
            dim: 64,
            hidden_dim: 128,
            ..shapes::base_config()
        }
    }

    #[test]
    fn paces_by_hand() {
        let pace = |seconds, tokens| Pace { seconds, load: Load::uniform(tokens, 25.0, 15) };
        let paces = Paces(vec![pace(0.25, 100), pace(1.25, 50), pace(0.5, 150)]);
        assert_eq!((paces.total(), paces.median()), (2.0, 0.5));
        assert_eq!((paces.tokens_per_second(), paces.sequences_per_second()), (150.0, 6.0));
    }

    #[test]
    fn steps_are_timed_and_learn() {
        let config = tiny();
        let batches = random_batches(&config, Lengths::Mixed, 256, 1);
        let plan = Plan { config: &config, batches: &batches, warm_up: 2, timed: 30, seed: 1 };
        let steps = train(&Cpu::new(), &plan).unwrap();
        assert_eq!((steps.paces.0.len(), steps.losses.len()), (30, 33));
        assert!(steps.paces.0.iter().all(|pace| pace.seconds > 0.0));
        assert_eq!(steps.paces.0[0].load, shapes::load(&batches[2]));
        assert!((steps.losses[0] - 100f64.ln()).abs() < 0.1, "{}", steps.losses[0]);
        assert!(steps.losses[32] < steps.losses[0]);
    }

    #[test]
    fn a_step_takes_the_time_of_its_own_batch() {
        let config = tiny();
        let batch = |tokens| random_batches(&config, Lengths::Equal, tokens, 1).remove(0);
        let batches = [batch(4096), batch(64)];
        let plan = Plan { config: &config, batches: &batches, warm_up: 2, timed: 12, seed: 1 };
        let paces = train(&Cpu::new(), &plan).unwrap().paces.0;
        let of = |tokens| Paces(paces.iter().filter(|pace| pace.load.tokens == tokens).copied().collect()).median();
        assert!(of(4096) > 3.0 * of(64), "{} s, {} s", of(4096), of(64));
    }

    #[test]
    fn batches_are_timed() {
        let config = tiny();
        let batches = random_batches(&config, Lengths::Equal, 256, 1);
        let plan = Plan { config: &config, batches: &batches, warm_up: 1, timed: 3, seed: 1 };
        let paces = predict(&Cpu::new(), &plan).unwrap();
        let load = paces.0[0].load;
        assert_eq!((paces.0.len(), load.sequences(), load.masked), (3, 4.0, 0));
    }
}
