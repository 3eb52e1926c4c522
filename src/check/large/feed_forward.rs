//! The feed-forward of a block on a large batch, and on matrices of more than 2³¹ bytes.

use super::Scale;
use super::product::{linear, product, weight_gradient};
use super::sample::{Block, cast_block, spread, thinned};
use crate::backend::{Backend, Capacity, Pick, Result, Rows};
use crate::check::batches::TestBatch;
use crate::check::harness::{OpCase, Outputs, Values};
use crate::check::ops::gelu::{Case, case, without_d_act};
use crate::check::random::Random;
use crate::check::reference::gelu::{gelu, gelu_backward};
use crate::check::reference::{Scalar, add_rows, cast, stored, widen};
use crate::check::room::Room;

/// [`Case`], by a sample of rows of each matrix, and of rows and columns of d_weight.
pub struct FeedForward {
    case: Case,
    rows: Vec<usize>,
    /// Where matrices are too large to be poisoned and read as a whole: the batch whose masked rows are the sample.
    gathered: Option<TestBatch>,
}

/// At C to F and back.
pub fn of_a_batch(scale: &Scale) -> FeedForward {
    let case = case(scale.tokens, scale.width, scale.feed_forward, Rows::Tokens, 1.0);
    FeedForward { case, rows: spread(scale.tokens), gathered: None }
}

/// Of so many rows that a matrix is larger than 2³¹ bytes, 64 to F and back.
pub fn beyond(scale: &Scale) -> FeedForward {
    let (mut random, rows) = (Random::new(3), spread(scale.beyond));
    let mut batch = TestBatch::new(&Scale::lengths(scale.beyond), 100, &mut random);
    batch.masked_rows = rows.iter().map(|&row| row as u32).collect();
    batch.targets = vec![0; rows.len()];
    // gelu_backward on its own would take one more matrix of that size.
    let case = without_d_act(scale.beyond, 64, scale.feed_forward, Rows::Tokens, 1.0);
    FeedForward { case, rows, gathered: Some(batch) }
}

impl FeedForward {
    fn block(&self, output: &str) -> Option<Block> {
        let (feed_forward, width) = (self.case.first.outputs, self.case.second.outputs);
        let columns = spread(feed_forward);
        Some(match output {
            "d_weight" => Block::crossing(feed_forward, &spread(width), &columns),
            "d_bias" | "gelu_backward's d_bias" => Block::columns(feed_forward, &columns),
            _ => Block::rows(feed_forward, &self.rows),
        })
    }

    /// Runs the ops and gathers the sample of what they wrote.
    fn run_gathered<B: Backend>(&self, room: &mut Room<'_, B>, batch: &TestBatch) -> Result<Outputs> {
        let (be, Case { params, first, second, x, d_y, .. }) = (room.be, &self.case);
        let batch = room.upload(batch)?;
        let (w, mut grads) = (room.weights(params)?, room.grads(params)?);
        let (x, d_y) = (room.mat(Rows::Tokens, first.inputs, x)?, room.mat(Rows::Tokens, second.outputs, d_y)?);
        let matrix = || room.untouched(Rows::Tokens, first.outputs);
        let (mut pre, mut act, mut d_pre) = (matrix()?, matrix()?, matrix()?);
        be.linear_gelu(&x, &w, first, &mut pre, &mut act)?;
        be.linear_backward_gelu(&d_y, &act, &pre, &w, second, first.bias, &mut grads, &mut d_pre)?;
        let mut outputs = Outputs::default();
        for (name, whole) in [("pre", &pre), ("y", &act), ("d_pre", &d_pre)] {
            let mut sample = room.empty(Rows::Masked, first.outputs)?;
            be.gather_rows(whole, &batch, Pick::Masked, &mut sample)?;
            outputs.push(name, room.read(&sample)?);
        }
        let mut gradients = Outputs::default();
        params.read_grads(be, &grads, &[("d_weight", second.weight), ("d_bias", first.bias)], &mut gradients)?;
        let gradients = thinned(gradients, |output| self.block(output));
        outputs.values.extend(gradients.values);
        outputs.digests.extend(gradients.digests);
        outputs.faults.extend(gradients.faults);
        room.give_batch(batch);
        Ok(outputs)
    }
}

/// gelu's backward pass of a sample of columns of all rows, and its column sums on top of `start`.
fn summed<T: Scalar>(pre: &[T], d: &[T], mut start: Vec<T>) -> Vec<f64> {
    add_rows(&stored(gelu_backward(pre, d)), &mut start);
    widen(&start)
}

impl OpCase for FeedForward {
    fn op(&self) -> &'static str {
        self.case.op()
    }

    fn shape(&self) -> String {
        self.case.shape()
    }

    fn counts(&self) -> Capacity {
        self.gathered.as_ref().map_or(self.case.counts(), TestBatch::counts)
    }

    fn inputs(&mut self) -> Vec<&mut [f32]> {
        self.case.inputs()
    }

    fn reference<T: Scalar>(&self) -> Values {
        let Case { params: p, first, second, x, d_y, d_act, .. } = &self.case;
        let (width, feed_forward) = (second.outputs, second.inputs);
        let (w1, b1, w2) = (p.get::<T>(first.weight), p.get::<T>(first.bias), p.get::<T>(second.weight));
        // Some rows, all columns.
        let rows = Block::rows(first.inputs, &self.rows);
        let pre = stored(linear(&cast_block(&rows, x), &w1, &b1));
        let act: Vec<T> = stored(pre.iter().map(|&x| gelu(x)).collect());
        let d_act_rows = product(&cast_block(&Block::rows(width, &self.rows), d_y), &w2, feed_forward);
        let d_pre = stored(gelu_backward(&pre, &d_act_rows));
        let mut outputs = vec![("pre", widen(&pre)), ("y", widen(&act)), ("d_pre", widen(&d_pre))];
        // Some columns, all rows: what the sums over rows take.
        let (from, to) = (spread(feed_forward), spread(width));
        let columns = Block::columns(feed_forward, &from);
        let w1 = Block::rows(first.inputs, &from).of(&w1);
        let pre_columns = stored(linear(&cast::<T>(x), &w1, &columns.of(&b1)));
        let act: Vec<T> = stored(pre_columns.iter().map(|&x| gelu(x)).collect());
        let start = Block::crossing(feed_forward, &to, &from).of(&p.grad::<T>(second.weight));
        let d_weight = weight_gradient(start, &cast_block(&Block::columns(width, &to), d_y), &act, from.len());
        let d_act_columns = product(&cast::<T>(d_y), &columns.of(&w2), from.len());
        let start = columns.of(&p.grad::<T>(first.bias));
        outputs.push(("d_weight", widen(&d_weight)));
        outputs.push(("d_bias", summed(&pre_columns, &d_act_columns, start.clone())));
        if !d_act.is_empty() {
            let d_act_rows = cast_block::<T>(&Block::rows(feed_forward, &self.rows), d_act);
            outputs.push(("d", widen(&stored(gelu_backward(&pre, &d_act_rows)))));
            outputs.push(("gelu_backward's d_bias", summed(&pre_columns, &cast_block(&columns, d_act), start)));
        }
        outputs
    }

    fn run<B: Backend>(&self, room: &mut Room<'_, B>) -> Result<Outputs> {
        match &self.gathered {
            Some(batch) => self.run_gathered(room, batch),
            None => Ok(thinned(self.case.run(room)?, |output| self.block(output))),
        }
    }
}
