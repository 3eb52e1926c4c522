//! What the ops are called on when they are measured: a model's buffers, a random batch, matrices of random values.

use super::ops::Load;
use super::shapes::{self, Lengths};
use crate::backend::{
    AdamW, Arena, Backend, BatchLimits, Capacity, Dropout, Planner, Result, Rows, UpdateLimits, UpdateSpan,
};
use crate::model::params::{BlockParams, ClassHeadParams, HeadParams, Init, MlmHeadParams};
use crate::model::{Config, Head, Mode, ParamTable};
use crate::philox::{Purpose, key, philox4x32, unit_f32};
use crate::train::task::MicroBatch;

/// Which set of a model's sizes a matrix's columns are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cols {
    /// C
    Width,
    /// 3C
    Qkv,
    /// F
    Inner,
    /// K
    Classes,
    /// Mean and reciprocal standard deviation.
    Moments,
    /// H
    Heads,
}

/// A matrix that a call works on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Operand {
    /// Which rows.
    pub rows: Rows,
    /// How many columns.
    pub cols: Cols,
    /// What it is to the call.
    pub role: Role,
}

/// What a matrix is to a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Read; or, as a gradient may be, added to, which leaves it a matrix of ordinary numbers.
    Input,
    /// Written.
    Output,
    /// Multiplied by something in place, so that it fades or grows from call to call.
    InPlace,
}

/// A model's buffers and a batch.
pub struct Operands<'a, B: Backend> {
    /// What computes.
    pub be: &'a B,
    /// The model's.
    pub config: Config,
    /// Where its parameters lie.
    pub table: ParamTable,
    /// Random, as untrained ones are.
    pub w: B::Weights,
    /// Random.
    pub grads: B::Flat,
    /// First and second.
    pub moments: [B::Flat; 2],
    /// Of all parameters.
    pub spans: Vec<UpdateSpan>,
    /// What updates go by.
    pub hyper: B::Hyper,
    /// Sums of the loss; the gradients' norm.
    pub tally: B::Tally,
    /// The batch.
    pub batch: B::Batch,
    /// As the model drops hidden states.
    pub drop: Dropout,
    /// As it drops attention probabilities.
    pub attention_drop: Dropout,
    /// As it drops before the classifier.
    pub class_drop: Dropout,
    /// Calls made so far; blocks take turns, so that their weights are not always the same.
    pub number: usize,
    batches: [MicroBatch; 2],
    limits: BatchLimits,
    values: Values,
}

impl<'a, B: Backend> Operands<'a, B> {
    /// For a model with this head, on batches of `tokens` tokens; in inference nothing is dropped.
    ///
    /// # Errors
    ///
    /// Those of the backend: no memory for the buffers, or a device that fails.
    pub fn new(be: &'a B, config: &Config, head: Head, tokens: usize, mode: Mode) -> Result<Self> {
        let table = ParamTable::new(config, head);
        let classes = match head {
            Head::Mlm => 0,
            Head::Classifier { classes } => classes,
        };
        let batches = [Lengths::Mixed, Lengths::Equal].map(|lengths| {
            shapes::batch(&lengths.of(tokens, config.max_position_embeddings), config.vocab_size, classes, 1)
        });
        let values = Values::new();
        let weights = weights(config, &table, &values);
        let drop = |probability, site| match mode {
            Mode::Training => Dropout::new(probability, site, 7),
            Mode::Inference => Dropout::NONE,
        };
        let flat = || be.flat(table.flat_len);
        let mut grads = flat()?;
        be.write_flat(&mut grads, &weights)?;
        let mut operands = Operands {
            be,
            w: be.weights(&weights)?,
            grads,
            moments: [flat()?, flat()?],
            spans: table.update_spans(),
            hyper: be.hyper()?,
            tally: be.tally()?,
            batch: be.batch(capacity(&batches))?,
            drop: drop(config.dropout, 3),
            attention_drop: drop(config.attention_dropout, 2),
            class_drop: drop(config.seq_classif_dropout, 1),
            number: 0,
            limits: BatchLimits { vocab: config.vocab_size, positions: config.max_position_embeddings, classes },
            config: config.clone(),
            table,
            batches,
            values,
        };
        be.set_hyper(&mut operands.hyper, &ADAMW)?;
        operands.upload(Lengths::Mixed)?;
        Ok(operands)
    }

    /// The block whose turn it is.
    pub fn block(&self) -> &BlockParams {
        &self.table.blocks[self.number % self.table.blocks.len()]
    }

    /// The head's, of a model for masked-language modelling.
    ///
    /// # Panics
    ///
    /// If it is for classification.
    pub fn mlm_head(&self) -> MlmHeadParams {
        match self.table.head {
            HeadParams::Mlm(head) => head,
            HeadParams::Classifier(_) => unreachable!("calls are made on models that have their head"),
        }
    }

    /// The head's, of a model for classification.
    ///
    /// # Panics
    ///
    /// If it is for masked-language modelling.
    pub fn class_head(&self) -> ClassHeadParams {
        match self.table.head {
            HeadParams::Classifier(head) => head,
            HeadParams::Mlm(_) => unreachable!("calls are made on models that have their head"),
        }
    }

    /// Makes a batch the one that ops work on.
    ///
    /// # Errors
    ///
    /// Those of the backend.
    pub fn upload(&mut self, lengths: Lengths) -> Result<()> {
        let micro = &self.batches[lengths as usize];
        let targets = micro.batch.targets.len().max(1);
        self.be.upload(&micro.view(1.0 / targets as f32, 1), &self.limits, &mut self.batch)
    }

    /// What the costs of ops on a batch depend on.
    pub fn load(&self, lengths: Lengths) -> Load {
        shapes::load(&self.batches[lengths as usize])
    }

    /// Gradients as they were at first, and the tally with their norm.
    ///
    /// # Errors
    ///
    /// Those of the backend.
    pub fn reset(&mut self) -> Result<()> {
        let weights = weights(&self.config, &self.table, &self.values);
        self.be.write_flat(&mut self.grads, &weights)?;
        self.be.take_tally(&mut self.tally)?;
        self.be.grad_norm(&self.grads, &mut self.tally)
    }

    fn cols(&self, cols: Cols) -> usize {
        match cols {
            Cols::Width => self.config.dim,
            Cols::Qkv => 3 * self.config.dim,
            Cols::Inner => self.config.hidden_dim,
            Cols::Classes => self.limits.classes,
            Cols::Moments => 2,
            Cols::Heads => self.config.n_heads,
        }
    }

    /// So many sets of matrices for a call, filled for a batch of these lengths; the batch has to be uploaded after that.
    ///
    /// # Errors
    ///
    /// Those of the backend: no memory for so many, or a device that fails.
    pub fn sets(
        &self, mats: &'static [Operand], stats: &[Operand], count: usize, lengths: Lengths,
    ) -> Result<Vec<Set<B>>> {
        let capacity = self.batch_capacity(lengths);
        let mut plan = Planner::new(capacity);
        for _ in 0..count {
            plan.mats.extend(mats.iter().map(|m| (m.rows, self.cols(m.cols))));
            plan.stats.extend(stats.iter().map(|s| (s.rows, self.cols(s.cols))));
        }
        let mut arena = self.be.arena(&plan)?;
        let mut sets: Vec<Set<B>> = (0..count)
            .map(|_| Set {
                roles: mats,
                mats: mats.iter().map(|m| arena.mat(m.rows, self.cols(m.cols))).collect(),
                stats: stats.iter().map(|s| arena.stats(s.rows, self.cols(s.cols))).collect(),
            })
            .collect();
        for (number, set) in sets.iter_mut().enumerate() {
            self.fill(set, number, capacity, |role| role != Role::Output)?;
        }
        Ok(sets)
    }

    /// What a batch takes, no more.
    fn batch_capacity(&self, lengths: Lengths) -> Capacity {
        let micro = &self.batches[lengths as usize];
        capacity(std::slice::from_ref(micro))
    }

    /// Writes matrices that have such a role, each with values of its own.
    fn fill(&self, set: &mut Set<B>, number: usize, capacity: Capacity, wanted: impl Fn(Role) -> bool) -> Result<()> {
        for (place, (mat, operand)) in set.mats.iter_mut().zip(set.roles).enumerate() {
            if wanted(operand.role) {
                let rows = capacity.of(operand.rows);
                let values = self.values.take(rows * self.cols(operand.cols), 8 * number + place);
                self.be.write_mat(mat, rows, &values)?;
            }
        }
        Ok(())
    }

    /// Writes anew what calls change in place. The batch stays the one at hand: its counts are those written.
    ///
    /// # Errors
    ///
    /// Those of the backend.
    pub fn refresh(&self, sets: &mut [Set<B>], lengths: Lengths) -> Result<()> {
        let capacity = self.batch_capacity(lengths);
        let mut numbered = sets.iter_mut().enumerate();
        numbered.try_for_each(|(number, set)| self.fill(set, number, capacity, |role| role == Role::InPlace))
    }
}

/// Room for any of these batches.
fn capacity(batches: &[MicroBatch]) -> Capacity {
    let most = |count: fn(&MicroBatch) -> usize| batches.iter().map(count).max().unwrap_or(0);
    Capacity {
        tokens: most(|micro| micro.batch.packed.tokens()),
        sequences: most(|micro| micro.batch.packed.sequences()),
        masked: most(|micro| micro.batch.targets.len()),
    }
}

/// Matrices that a call works on.
pub struct Set<B: Backend> {
    roles: &'static [Operand],
    mats: Vec<B::Mat>,
    stats: Vec<B::Stats>,
}

impl<B: Backend> Set<B> {
    /// All of them, as the call listed them.
    ///
    /// # Panics
    ///
    /// If it listed another number of them.
    pub fn all<const M: usize, const S: usize>(&mut self) -> (&mut [B::Mat; M], &mut [B::Stats; S]) {
        let mats = self.mats.as_mut_slice().try_into().expect("as many matrices as the call lists");
        (mats, self.stats.as_mut_slice().try_into().expect("as many statistics as the call lists"))
    }

    /// All of a call without statistics.
    pub fn mats<const M: usize>(&mut self) -> &mut [B::Mat; M] {
        self.all::<M, 0>().0
    }
}

/// Settings of the optimizer.
const ADAMW: AdamW = AdamW {
    learning_rate: 1e-5,
    beta1: 0.9,
    beta2: 0.999,
    epsilon: 1e-8,
    weight_decay: 0.01,
    max_norm: 1.0,
    step: 1,
    limits: UpdateLimits::NONE,
};

/// Random weights, spread as untrained ones are. The embeddings' gamma undoes what their LayerNorm's gradient is multiplied
/// by, else a gradient that goes through it again and again would soon be no number.
fn weights(config: &Config, table: &ParamTable, values: &Values) -> Vec<f32> {
    let mut weights = vec![0.0; table.flat_len];
    for (number, spec) in table.specs.iter().enumerate() {
        let part = &mut weights[spec.span.range()];
        match spec.init {
            Init::Ones => part.fill(1.0),
            Init::Zeros => {}
            Init::Normal | Init::NormalExceptRow(_) | Init::Sinusoidal => {
                part.copy_from_slice(&values.take(part.len(), number));
                part.iter_mut().for_each(|value| *value *= config.initializer_range);
            }
        }
    }
    weights[table.embedding.norm.gamma.range()].fill(std::f32::consts::SQRT_2 * config.initializer_range);
    weights
}

/// Random values of mean 0 and variance 1.
#[derive(Debug)]
pub struct Values(Vec<f32>);

/// Prime, so that no row of a matrix repeats another.
const PERIOD: usize = 1_000_003;

impl Values {
    /// Draws them.
    pub fn new() -> Values {
        let key = key(1, Purpose::Synth);
        // Four uniform numbers have variance 4 / 12.
        let value = |i| 3f32.sqrt() * (philox4x32([i, 0, 0, 1], key).map(unit_f32).iter().sum::<f32>() - 2.0);
        Values((0..PERIOD as u32).map(value).collect())
    }

    /// `len` of them; another `number` gives others.
    pub fn take(&self, len: usize, number: usize) -> Vec<f32> {
        let mut taken = Vec::with_capacity(len);
        let mut from = number.wrapping_mul(179_426_549) % PERIOD;
        while taken.len() < len {
            let part = &self.0[from..PERIOD.min(from + len - taken.len())];
            taken.extend_from_slice(part);
            from = 0;
        }
        taken
    }
}

impl Default for Values {
    fn default() -> Self {
        Values::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_random_and_spread_as_said() {
        let values = Values::new();
        let some = values.take(2 * PERIOD, 3);
        let mean = some.iter().map(|&x| f64::from(x)).sum::<f64>() / some.len() as f64;
        let variance = some.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / some.len() as f64;
        assert!(mean.abs() < 0.01 && (variance - 1.0).abs() < 0.01, "{mean}, {variance}");
        assert_ne!(values.take(10, 0), values.take(10, 1));
        assert_eq!(some[..10], some[PERIOD..PERIOD + 10]);
    }
}
