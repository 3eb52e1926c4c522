//! Attention within each sequence of the packed batch, head by head.
//!   forward:  S = q kᵀ / √D;  P = softmax(S);  ctx = (keep ∘ P) v;  lse = log Σ e^S
//!   backward: P = e^(S - lse);  d_v = (keep ∘ P)ᵀ d_ctx;  d_P = keep ∘ (d_ctx vᵀ);
//!             d_S = P ∘ (d_P - rowsum(d_ctx ∘ ctx));  d_q = d_S k / √D;  d_k = d_Sᵀ q / √D
//!   qkv [N, 3C] (q, k, v; head h at columns hD..)   lse [N, H]   ctx [N, C]
//!
//! Plan: each (sequence, head) is a task. It packs the operands that every query meets once, then
//! takes blocks of queries, so that their scores stay in the L2 cache. The tasks write to memory laid out
//! by sequence and head, where each has a region of its own; a pass over rows then puts the regions side by
//! side (and, in the backward pass, sums the bias gradient), so that no two tasks share a row.

mod backward;
mod forward;

pub use backward::attention_backward;
pub use forward::attention;

use std::cell::Cell;

use super::batch::Batch;
use super::matmul::View;
use super::memory::Mat;
use crate::backend::shape::{Dim, dim};
use crate::backend::{Dropout, Error, Result};

/// Queries in a block: their scores and the packed keys stay in the L2 cache together.
const QUERIES: usize = 48;

/// Shapes and what all tasks share.
#[derive(Debug, Clone, Copy)]
struct Heads<'a> {
    batch: &'a Batch,
    drop: &'a Dropout,
    qkv: &'a [f32],
    /// C
    width: usize,
    /// H
    heads: usize,
    /// D
    size: usize,
}

impl<'a> Heads<'a> {
    fn new(op: &'static str, qkv: &'a Mat, batch: &'a Batch, heads: usize, drop: &'a Dropout) -> Result<Self> {
        let width = qkv.cols() / 3;
        qkv.expect(op, "qkv", dim("N", batch.tokens()), dim("3C", 3 * width))?;
        if heads == 0 || !width.is_multiple_of(heads) {
            let (got, expected) = (format!("{heads}"), format!("a divisor of C={width}"));
            return Err(Error::Shape { op, what: "number of heads", got, expected });
        }
        Ok(Heads { batch, drop, qkv: qkv.live(), width, heads, size: width / heads })
    }

    fn rows(&self) -> Dim {
        dim("N", self.batch.tokens())
    }

    /// 1 / √D
    fn scale(&self) -> f32 {
        1.0 / (self.size as f32).sqrt()
    }

    /// One task for each head of each sequence that has rows, the longest first so that none is left
    /// over at the end; `regions` holds `per_row` values for each row and head.
    fn tasks<'r>(&self, per_row: usize, mut regions: &'r mut [f32]) -> Vec<Task<'r>> {
        let mut tasks = Vec::with_capacity(self.batch.sequences() * self.heads);
        for sequence in 0..self.batch.sequences() {
            let rows = self.batch.rows_of(sequence);
            for head in 0..self.heads {
                let (region, rest) = regions.split_at_mut(rows.len() * per_row);
                regions = rest;
                if !rows.is_empty() {
                    tasks.push(Task { first_row: rows.start, len: rows.len(), head, region });
                }
            }
        }
        tasks.sort_by_key(|t| std::cmp::Reverse(t.len));
        tasks
    }

    /// Where the region of a packed row's sequence and of a head begins, and the row's place in it.
    #[inline(always)]
    fn region_of(&self, row: usize, head: usize, per_row: usize) -> (usize, Region) {
        let rows = self.batch.rows_of(self.batch.sequence_of[row] as usize);
        let start = (rows.start * self.heads + rows.len() * head) * per_row;
        (start, Region { len: rows.len(), row: row - rows.start })
    }
}

/// A row's place within its sequence.
#[derive(Debug, Clone, Copy)]
struct Region {
    /// Rows of the sequence.
    len: usize,
    /// Which of them.
    row: usize,
}

/// One head of one sequence.
#[derive(Debug)]
struct Task<'r> {
    first_row: usize,
    /// Rows of the sequence.
    len: usize,
    head: usize,
    /// Where its results go.
    region: &'r mut [f32],
}

impl Task<'_> {
    /// A head's columns of the sequence's rows: `part` 0 = q, 1 = k, 2 = v; row-major.
    #[inline(always)]
    fn qkv<'a>(&self, heads: &Heads<'a>, part: usize) -> View<'a> {
        let stride = 3 * heads.width;
        View::rows(&heads.qkv[self.first_row * stride + part * heads.width + self.head * heads.size..], stride)
    }

    /// A head's columns of the sequence's rows of a matrix [N, C].
    #[inline(always)]
    fn columns<'a>(&self, heads: &Heads<'_>, mat: &'a [f32]) -> View<'a> {
        View::rows(&mat[self.first_row * heads.width + self.head * heads.size..], heads.width)
    }
}

thread_local! {
    /// Packed operands and scores of the task at hand.
    static WORK: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

/// Runs `f` with this thread's working memory cut into parts of these lengths.
#[inline(always)]
fn with_work<const N: usize>(lengths: [usize; N], f: impl FnOnce([&mut [f32]; N])) {
    let mut work = WORK.take();
    let total = lengths.iter().sum();
    if work.len() < total {
        work.resize(total, 0.0);
    }
    let mut rest = work.as_mut_slice();
    f(lengths.map(|len| {
        let (part, tail) = std::mem::take(&mut rest).split_at_mut(len);
        rest = tail;
        part
    }));
    WORK.set(work);
}
