//! The tied projection onto the vocabulary: cross-entropy with its gradients, and the most probable tokens.
//!   logits = x Wᵀ + b;  loss = Σ (lse - logit of the target);
//!   G = (softmax - onehot) × loss_scale;  d_W += Gᵀ x;  d_b += Σ_rows G;  d_x = G W
//!   x, d_x [M, C]   W [V, C]   b [V]
//!
//! Plan: chunks of rows of x, one after another; their logits are kept transposed, as [V, rows]. So
//! blocks of the vocabulary are the tasks: W, by far the largest operand, is read where it lies and
//! never copied, and each block owns its rows of d_W and d_b.
//!   1  each block: logits; then, still in the cache, per column its maximum, e^(logit - maximum) in
//!      the logits' place, their sum, and the logit of a target that is among its rows
//!   2  per column, over the blocks in order: lse, loss, hit; and what turns a block's exponentials into
//!      loss_scale × softmax
//!   3  each block: G in place, d_b;  4  d_W += G x;  5  d_x = Gᵀ W

use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use super::batch::Batch;
use super::classifier::argmax;
use super::matmul::{Finish, Output, Plain, Product, Start, View, block_rows};
use super::memory::{Buffer, Flat, Mat};
use super::scratch::Scratch;
use super::simd::{self, dispatch, exp, sums, update};
use crate::backend::shape::dim;
use crate::backend::{LossGrads, Result, Tally, VocabProjection};

/// Most rows of x whose logits are held at once: 512 × 30,522 are 62 MB.
const ROWS_AT_ONCE: usize = 512;

/// Rows of x in a chunk: all chunks about equal.
fn chunk_rows(rows: usize) -> usize {
    rows.div_ceil(rows.div_ceil(ROWS_AT_ONCE).max(1)).max(1)
}

/// W and b.
#[derive(Debug, Clone, Copy)]
struct Projection<'a> {
    weight: &'a [f32],
    bias: &'a [f32],
    vocab: usize,
    width: usize,
}

impl<'a> Projection<'a> {
    fn new(op: &'static str, x: &Mat, w: &'a Flat, layer: &VocabProjection) -> Result<Self> {
        let (vocab, width) = (layer.vocab, layer.width);
        x.expect(op, "x", dim("M", x.rows()), dim("C", width))?;
        let weight = w.span(op, "weight", layer.weight, dim("V·C", vocab * width))?;
        Ok(Projection { weight, bias: w.span(op, "bias", layer.bias, dim("V", vocab))?, vocab, width })
    }

    /// logits [V, rows] = W xᵀ + b
    fn logits(&self, panels: &mut Buffer, x: &[f32], out: &mut impl Output) -> Result<()> {
        let (a, b) = (View::rows(self.weight, self.width), View::transposed(x, self.width));
        let cols = x.len() / self.width;
        Product { rows: self.vocab, cols, depth: self.width, a, b, start: Start::Zero }.run(panels, out)
    }
}

/// [`crate::backend::Backend::vocab_cross_entropy`]
pub fn vocab_cross_entropy(
    scratch: &mut Scratch, x: &Mat, batch: &Batch, w: &Flat, layer: &VocabProjection, tally: &mut Tally,
    back: Option<LossGrads<'_, Mat, Flat>>,
) -> Result<()> {
    const OP: &str = "vocab_cross_entropy";
    let p = Projection::new(OP, x, w, layer)?;
    x.expect(OP, "x", dim("M", batch.targets.len()), dim("C", p.width))?;
    batch.check_targets(OP, p.vocab)?;
    let mut back = match back {
        None => None,
        Some(LossGrads { d_x, grads }) => {
            d_x.prepare(OP, "d_x", dim("M", x.rows()), dim("C", p.width))?;
            grads.span(OP, "weight gradient", layer.weight, dim("V·C", p.vocab * p.width))?;
            grads.span(OP, "bias gradient", layer.bias, dim("V", p.vocab))?;
            Some((d_x, grads))
        }
    };
    let rows = chunk_rows(x.rows());
    for (i, x) in x.live().chunks(rows * p.width).enumerate() {
        let targets = &batch.targets[i * rows..][..x.len() / p.width];
        let mut chunk = Chunk::new(scratch, p, x, targets)?;
        chunk.exponentials()?;
        chunk.loss(batch.loss_scale, tally);
        if let Some((d_x, grads)) = &mut back {
            let d_x = &mut d_x.live_mut()[i * rows * p.width..][..x.len()];
            chunk.gradients(batch.loss_scale, layer, grads, d_x)?;
        }
    }
    Ok(())
}

/// A chunk of rows of x with its logits.
struct Chunk<'a> {
    p: Projection<'a>,
    x: &'a [f32],
    targets: &'a [u32],
    panels: &'a mut Buffer,
    /// Logits, then exponentials, then gradients. [V, rows]
    logits: &'a mut [f32],
    /// Of each block of the vocabulary: see [`Stats`]. [blocks, STATS, rows]
    stats: &'a mut [f32],
    /// Vocabulary entries in a block.
    block: usize,
}

/// Slices of [`Stats`].
const STATS: usize = 5;

/// What is known of a block of the vocabulary, for each row of x. [rows]
struct Stats<'a> {
    /// The largest logit.
    highest: &'a mut [f32],
    /// The entry that has it: the bits of its number, since vectors are of one type.
    best: &'a mut [f32],
    /// Σ e^(logit - highest)
    total: &'a mut [f32],
    /// The target's logit, where the target is one of the block's.
    target: &'a mut [f32],
    /// What turns the block's exponentials into loss_scale × softmax.
    factor: &'a mut [f32],
}

impl<'a> Stats<'a> {
    /// Takes apart what was set aside for a block. [STATS, rows]
    #[inline(always)]
    fn of(block: &'a mut [f32]) -> Self {
        let rows = block.len() / STATS;
        let (highest, rest) = block.split_at_mut(rows);
        let (best, rest) = rest.split_at_mut(rows);
        let (total, rest) = rest.split_at_mut(rows);
        let (target, factor) = rest.split_at_mut(rows);
        Stats { highest, best, total, target, factor }
    }
}

impl<'a> Chunk<'a> {
    fn new(scratch: &'a mut Scratch, p: Projection<'a>, x: &'a [f32], targets: &'a [u32]) -> Result<Self> {
        let block = block_rows(p.vocab);
        let Scratch { panels, partials, blocks } = scratch;
        let stats = partials.scratch(p.vocab.div_ceil(block) * STATS * targets.len())?;
        let logits = blocks.scratch(p.vocab * targets.len())?;
        Ok(Chunk { p, x, targets, panels, logits, stats, block })
    }

    fn exponentials(&mut self) -> Result<()> {
        let Chunk { p, targets, .. } = *self;
        let mut out = Logits { logits: self.logits, stats: self.stats, bias: p.bias, targets };
        p.logits(self.panels, self.x, &mut out)
    }

    /// Adds to the tally; leaves each block's factors.
    fn loss(&mut self, loss_scale: f32, tally: &mut Tally) {
        let rows = self.targets.len();
        let mut blocks: Vec<Stats<'_>> = self.stats.chunks_exact_mut(STATS * rows).map(Stats::of).collect();
        for (j, &target) in self.targets.iter().enumerate() {
            let (at, highest) = argmax(blocks.iter().map(|block| block.highest[j]));
            let scale = |block: &Stats<'_>| (f64::from(block.highest[j]) - f64::from(highest)).exp();
            let total: f64 = blocks.iter().map(|block| f64::from(block.total[j]) * scale(block)).sum();
            let lse = f64::from(highest) + total.ln();
            tally.loss += lse - f64::from(blocks[target as usize / self.block].target[j]);
            tally.weight += 1.0;
            tally.targets += 1;
            tally.correct += u64::from(blocks[at].best[j].to_bits() == target);
            for block in &mut blocks {
                block.factor[j] = ((f64::from(block.highest[j]) - lse).exp() * f64::from(loss_scale)) as f32;
            }
        }
    }

    fn gradients(&mut self, loss_scale: f32, layer: &VocabProjection, grads: &mut Flat, d_x: &mut [f32]) -> Result<()> {
        let Chunk { p, x, targets, block, .. } = *self;
        let rows = targets.len();
        let d_bias = &mut grads.values_mut()[layer.bias.range()];
        let blocks = self.logits.par_chunks_mut(block * rows).zip(self.stats.par_chunks_mut(STATS * rows));
        blocks.zip(d_bias.par_chunks_mut(block)).enumerate().for_each(|(i, ((g, stats), d_bias))| {
            let factors = Stats::of(stats).factor;
            dispatch(Gradients { first: i * block, g, factors, targets, loss_scale, d_bias });
        });
        let d_weight = &mut grads.values_mut()[layer.weight.range()];
        let (a, b) = (View::rows(self.logits, rows), View::rows(x, p.width));
        let product = Product { rows: p.vocab, cols: p.width, depth: rows, a, b, start: Start::Add };
        product.run(self.panels, &mut Plain { c: d_weight, cols: p.width })?;
        let (a, b) = (View::transposed(self.logits, rows), View::rows(p.weight, p.width));
        let product = Product { rows, cols: p.width, depth: p.vocab, a, b, start: Start::Zero };
        product.run(self.panels, &mut Plain { c: d_x, cols: p.width })
    }
}

/// Step 1's result.
struct Logits<'a> {
    logits: &'a mut [f32],
    stats: &'a mut [f32],
    bias: &'a [f32],
    targets: &'a [u32],
}

impl Output for Logits<'_> {
    type Finish<'b>
        = Exponentials<'b>
    where
        Self: 'b;

    fn blocks(&mut self, rows: usize) -> impl IndexedParallelIterator<Item = (&mut [f32], Exponentials<'_>)> {
        let (bias, targets) = (self.bias, self.targets);
        let stats = self.stats.par_chunks_mut(STATS * targets.len());
        self.logits.par_chunks_mut(rows * targets.len()).zip(stats).enumerate().map(move |(i, (logits, stats))| {
            let first = i * rows;
            (logits, Exponentials { first, bias: &bias[first..], targets, stats: Stats::of(stats) })
        })
    }
}

struct Exponentials<'a> {
    /// First vocabulary entry of the block.
    first: usize,
    bias: &'a [f32],
    targets: &'a [u32],
    stats: Stats<'a>,
}

impl Finish for Exponentials<'_> {
    #[inline(always)]
    fn part<S: Simd>(&mut self, simd: S, row: usize, _col: usize, c: &mut [f32]) {
        simd::add_value(simd, c, self.bias[row]);
    }

    #[inline(always)]
    fn block<S: Simd>(&mut self, simd: S, c: &mut [f32]) {
        let rows = self.targets.len();
        let Stats { highest, best, total, target, .. } = &mut self.stats;
        highest.fill(f32::NEG_INFINITY);
        best.fill(f32::from_bits(self.first as u32));
        for (entry, c) in (self.first as u32..).zip(c.chunks_exact(rows)) {
            let entry = simd.transmute_f32s_u32s(simd.splat_u32s(entry));
            update(
                simd,
                [highest, best],
                [c],
                #[inline(always)]
                |[highest, best], [x]| {
                    let higher = simd.greater_than_f32s(x, highest);
                    [simd.select_f32s(higher, x, highest), simd.select_f32s(higher, entry, best)]
                },
            );
        }
        for (j, &id) in self.targets.iter().enumerate() {
            if let Some(&x) = (id as usize).checked_sub(self.first).and_then(|entry| c.get(entry * rows + j)) {
                target[j] = x;
            }
        }
        total.fill(0.0);
        for c in c.chunks_exact_mut(rows) {
            update(
                simd,
                [c, total],
                [highest],
                #[inline(always)]
                |[x, total], [highest]| {
                    let e = exp(simd, simd.sub_f32s(x, highest));
                    [e, simd.add_f32s(total, e)]
                },
            );
        }
    }
}

/// Step 3, for one block.
struct Gradients<'a> {
    first: usize,
    g: &'a mut [f32],
    factors: &'a [f32],
    targets: &'a [u32],
    loss_scale: f32,
    d_bias: &'a mut [f32],
}

impl WithSimd for Gradients<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let rows = self.targets.len();
        for g in self.g.chunks_exact_mut(rows) {
            update(
                simd,
                [g],
                [self.factors],
                #[inline(always)]
                |[e], [factor]| [simd.mul_f32s(e, factor)],
            );
        }
        for (j, &target) in self.targets.iter().enumerate() {
            let entry = (target as usize).checked_sub(self.first);
            if let Some(g) = entry.and_then(|entry| self.g.get_mut(entry * rows + j)) {
                *g -= self.loss_scale;
            }
        }
        for (g, d_bias) in self.g.chunks_exact(rows).zip(self.d_bias) {
            let [total] = sums(
                simd,
                [g],
                #[inline(always)]
                |[g]| [g],
            );
            *d_bias += total;
        }
    }
}

/// [`crate::backend::Backend::top_k`]
pub fn top_k(
    scratch: &mut Scratch, x: &Mat, w: &Flat, layer: &VocabProjection, k: usize,
) -> Result<Vec<Vec<(u32, f32)>>> {
    let p = Projection::new("top_k", x, w, layer)?;
    let mut best = Vec::with_capacity(x.rows());
    for x in x.live().chunks(chunk_rows(x.rows()) * p.width) {
        let rows = x.len() / p.width;
        let logits = scratch.blocks.scratch(p.vocab * rows)?;
        p.logits(&mut scratch.panels, x, &mut Biased { logits, bias: p.bias, rows })?;
        best.par_extend((0..rows).into_par_iter().map(|j| best_of_column(logits, j, rows, k)));
    }
    Ok(best)
}

/// Logits as they are.
struct Biased<'a> {
    logits: &'a mut [f32],
    bias: &'a [f32],
    rows: usize,
}

struct AddBias<'a> {
    bias: &'a [f32],
}

impl Output for Biased<'_> {
    type Finish<'b>
        = AddBias<'b>
    where
        Self: 'b;

    fn blocks(&mut self, rows: usize) -> impl IndexedParallelIterator<Item = (&mut [f32], AddBias<'_>)> {
        let blocks = self.logits.par_chunks_mut(rows * self.rows);
        blocks.zip(self.bias.par_chunks(rows)).map(|(c, bias)| (c, AddBias { bias }))
    }
}

impl Finish for AddBias<'_> {
    #[inline(always)]
    fn part<S: Simd>(&mut self, simd: S, row: usize, _col: usize, c: &mut [f32]) {
        simd::add_value(simd, c, self.bias[row]);
    }
}

/// The `k` largest of column j of `logits` [V, rows] as probabilities, best first, the lower id first among equals.
fn best_of_column(logits: &[f32], j: usize, rows: usize, k: usize) -> Vec<(u32, f32)> {
    let mut column: Vec<(u32, f32)> = (0..).zip(logits.iter().skip(j).step_by(rows).copied()).collect();
    let highest = column.iter().map(|c| c.1).fold(f32::NEG_INFINITY, f32::max);
    let total: f64 = column.iter().map(|c| f64::from(c.1 - highest).exp()).sum();
    let k = k.min(column.len());
    let best_first = |a: &(u32, f32), b: &(u32, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
    if k > 0 && k < column.len() {
        column.select_nth_unstable_by(k - 1, best_first);
    }
    column.truncate(k);
    column.sort_unstable_by(best_first);
    column.into_iter().map(|(id, x)| (id, (f64::from(x - highest).exp() / total) as f32)).collect()
}
