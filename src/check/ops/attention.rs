//! attention and attention_backward.

use super::drop_prob;
use crate::backend::{Backend, Capacity, Dropout, Result, Rows, Span};
use crate::check::batches::{LENGTHS, TestBatch};
use crate::check::harness::{OpCase, Outputs, Suite, Values};
use crate::check::params::Params;
use crate::check::random::Random;
use crate::check::reference::attention::{Attention, Place};
use crate::check::reference::{Scalar, add_rows, cast, stored, widen};
use crate::check::room::Room;

/// On random q, k and v.
pub struct Case {
    pub batch: TestBatch,
    /// C
    pub width: usize,
    /// H
    pub heads: usize,
    pub drop: Dropout,
    pub params: Params,
    /// Of the QKV layer. [3C]
    pub bias: Span,
    /// [N, 3C]
    pub qkv: Vec<f32>,
    /// [N, C]
    pub d_ctx: Vec<f32>,
}

/// `scale` of q, k and v: 1 spreads the probabilities, 8 makes scores of hundreds.
pub fn case(lengths: &[usize], heads: usize, head_size: usize, drop: Dropout, scale: f32) -> Case {
    let mut random = Random::new((heads * head_size) as u32);
    let (batch, width) = (TestBatch::new(lengths, 1000, &mut random), heads * head_size);
    let mut params = Params::default();
    let bias = random.normals(3 * width, 1.0);
    let bias = params.add(bias, &mut random);
    let qkv = random.normals(batch.tokens() * 3 * width, scale);
    let d_ctx = random.normals(batch.tokens() * width, 1.0);
    Case { batch, width, heads, drop, params, bias, qkv, d_ctx }
}

impl Case {
    fn attention(&self) -> Attention<'_> {
        let (cu_seqlens, step) = (&self.batch.cu_seqlens[..], self.batch.step);
        Attention { cu_seqlens, heads: self.heads, width: self.width, drop: self.drop, step, first: Place::default() }
    }
}

impl OpCase for Case {
    fn op(&self) -> &'static str {
        "attention"
    }

    fn shape(&self) -> String {
        let (ends, head_size) = (&self.batch.cu_seqlens, self.width / self.heads);
        format!("cu_seqlens={ends:?}, H={}, D={head_size}, {}", self.heads, drop_prob(&self.drop))
    }

    fn counts(&self) -> Capacity {
        self.batch.counts()
    }

    fn inputs(&mut self) -> Vec<&mut [f32]> {
        vec![&mut self.qkv, &mut self.d_ctx]
    }

    fn terms(&self, output: &str) -> f64 {
        match output {
            "d_qkv" | "d_bias" => self.attention().largest_term(&widen(&self.qkv), &widen(&self.d_ctx)),
            _ => 0.0,
        }
    }

    fn reference<T: Scalar>(&self) -> Values {
        let (attention, qkv) = (self.attention(), cast::<T>(&self.qkv));
        let (ctx, lse) = attention.forward(&qkv);
        let d_qkv = stored(attention.backward(&qkv, &cast(&self.d_ctx)));
        let mut d_bias = self.params.grad(self.bias);
        add_rows(&d_qkv, &mut d_bias);
        vec![("ctx", widen(&ctx)), ("lse", widen(&lse)), ("d_qkv", widen(&d_qkv)), ("d_bias", widen(&d_bias))]
    }

    fn run<B: Backend>(&self, room: &mut Room<'_, B>) -> Result<Outputs> {
        let (be, rows, width, heads) = (room.be, Rows::Tokens, self.width, self.heads);
        let batch = room.upload(&self.batch)?;
        let mut grads = room.grads(&self.params)?;
        let (mut lse, mut ctx) = (room.stats(rows, heads)?, room.empty(rows, width)?);
        let qkv = room.mat(rows, 3 * width, &self.qkv)?;
        be.attention(&qkv, &batch, heads, &self.drop, &mut lse, &mut ctx)?;
        let (d_ctx, mut d_qkv) = (room.mat(rows, width, &self.d_ctx)?, room.empty(rows, 3 * width)?);
        be.attention_backward(&qkv, &batch, heads, &self.drop, &lse, &ctx, &d_ctx, self.bias, &mut grads, &mut d_qkv)?;
        let values = vec![("ctx", room.read(&ctx)?), ("lse", room.read_stats(&lse)?), ("d_qkv", room.read(&d_qkv)?)];
        let mut outputs = Outputs::from(values);
        self.params.read_grads(be, &grads, &[("d_bias", self.bias)], &mut outputs)?;
        room.give_batch(batch);
        Ok(outputs)
    }
}

/// All cases.
pub fn suite<B: Backend + Sync>(suite: &mut Suite<'_, B>) {
    let drop = Dropout::new(0.1, 2, 7);
    for lengths in LENGTHS {
        suite.check(case(lengths, 2, 64, drop, 1.0));
    }
    for (heads, head_size) in [(4, 32), (1, 128), (3, 128), (6, 64), (2, 32)] {
        suite.check(case(&[0, 50, 7, 33, 1, 22], heads, head_size, Dropout::NONE, 1.0));
        suite.check(case(&[113], heads, head_size, drop, 1.0));
    }
    suite.check(case(&[200, 17, 1, 128, 165], 2, 32, Dropout::NONE, 1.0));
    suite.check(case(&[30, 41], 12, 64, drop, 1.0));
    // Scores of hundreds: a softmax that does not subtract the largest overflows.
    suite.check(case(&[70, 20], 2, 64, drop, 8.0));
    // Two sequences of an odd number of tiles next to each other.
    suite.check(case(&[50, 40], 2, 64, drop, 1.0));
    // All scores far below zero: a key beyond the end, at zero, would take all.
    let mut negative = case(&[70, 3], 2, 64, Dropout::NONE, 8.0);
    let width = negative.width;
    for row in negative.qkv.chunks_mut(3 * width) {
        row[..width].iter_mut().for_each(|q| *q = q.abs());
        row[width..2 * width].iter_mut().for_each(|k| *k = -k.abs());
    }
    suite.check(negative);
    suite.check_after(case(&[200, 17, 1, 128], 2, 64, drop, 1.0), case(&[3, 8, 0], 2, 64, drop, 1.0));
}
