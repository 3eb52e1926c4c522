//! The gradients of q, k and v, from the scores computed once more.

use std::ops::Range;

use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use super::super::batch::Batch;
use super::super::columns::{CHUNK, add_partials};
use super::super::matmul::{Cut, PANEL_VECTORS, Panels, PlainColumns, PlainRows, Start, Target, View, multiply, pack};
use super::super::memory::{Flat, Mat};
use super::super::scratch::Scratch;
use super::super::simd::{self, dispatch, exp, sums, update};
use super::{Heads, QUERIES, Task, with_work};
use crate::backend::shape::dim;
use crate::backend::{Dropout, Result, Span};

/// [`crate::backend::Backend::attention_backward`]
#[allow(clippy::too_many_arguments)]
pub fn attention_backward(
    scratch: &mut Scratch, qkv: &Mat, batch: &Batch, heads: usize, drop: &Dropout, lse: &Mat, ctx: &Mat, d_ctx: &Mat,
    bias: Span, grads: &mut Flat, d_qkv: &mut Mat,
) -> Result<()> {
    const OP: &str = "attention_backward";
    let h = Heads::new(OP, qkv, batch, heads, drop)?;
    lse.expect(OP, "lse", h.rows(), dim("H", heads))?;
    ctx.expect(OP, "ctx", h.rows(), dim("C", h.width))?;
    d_ctx.expect(OP, "d_ctx", h.rows(), dim("C", h.width))?;
    d_qkv.prepare(OP, "d_qkv", h.rows(), dim("3C", 3 * h.width))?;
    let d_bias = grads.span_mut(OP, "bias", bias, dim("3C", 3 * h.width))?;
    // A region holds a head's rows of d_q, then of d_k, then of d_v.
    let per_row = 3 * h.size;
    let regions = scratch.blocks.scratch(batch.tokens() * heads * per_row)?;
    let (lse, ctx, d_ctx) = (lse.live(), ctx.live(), d_ctx.live());
    let tasks = h.tasks(per_row, regions).into_par_iter().with_max_len(1);
    tasks.for_each(|task| dispatch(Backward { h, lse, ctx, d_ctx, task }));
    let cols = 3 * h.width.max(1);
    let partials = scratch.partials.scratch(batch.tokens().div_ceil(CHUNK) * cols)?;
    let chunks = d_qkv.live_mut().par_chunks_mut(CHUNK * cols).zip(partials.par_chunks_mut(cols));
    let regions = &*regions;
    chunks.enumerate().for_each(|(i, (d_qkv, sums))| {
        dispatch(SideBySide { h, regions, first_row: i * CHUNK, d_qkv, sums });
    });
    add_partials(partials, d_bias);
    Ok(())
}

/// Puts a chunk of rows of the regions side by side and sums its columns.
struct SideBySide<'a> {
    h: Heads<'a>,
    regions: &'a [f32],
    first_row: usize,
    d_qkv: &'a mut [f32],
    sums: &'a mut [f32],
}

impl WithSimd for SideBySide<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let (size, width) = (self.h.size, self.h.width);
        self.sums.fill(0.0);
        for (row, d_qkv) in (self.first_row..).zip(self.d_qkv.chunks_exact_mut(3 * width)) {
            for (part, d_part) in d_qkv.chunks_exact_mut(width).enumerate() {
                for (head, d_head) in d_part.chunks_exact_mut(size).enumerate() {
                    let (start, at) = self.h.region_of(row, head, 3 * size);
                    d_head.copy_from_slice(&self.regions[start + (part * at.len + at.row) * size..][..size]);
                }
            }
            simd::add(simd, self.sums, d_qkv);
        }
    }
}

struct Backward<'a, 'r> {
    h: Heads<'a>,
    lse: &'a [f32],
    ctx: &'a [f32],
    d_ctx: &'a [f32],
    task: Task<'r>,
}

impl WithSimd for Backward<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        if S::REGISTER_COUNT >= 32 { self.run::<S, 12>(simd) } else { self.run::<S, 6>(simd) }
    }
}

/// What a task works with; keys and values filled up to whole panels.
struct Work<'w> {
    /// kᵀ and vᵀ, packed: depth D.
    kt_panels: &'w mut [f32],
    vt_panels: &'w mut [f32],
    /// k, packed: depth L.
    k_panels: &'w mut [f32],
    /// A block of q or d_ctx, packed: depth [`QUERIES`].
    block_panels: &'w mut [f32],
    /// Scores of a block, their rows `stride` apart. [QUERIES, L]
    p: &'w mut [f32],
    d_s: &'w mut [f32],
    stride: usize,
    /// Of one row of scores.
    keep: &'w mut [f32],
    /// Columns of a panel.
    width: usize,
}

/// A head's gradients. [L, D] each
struct Gradients<'r> {
    d_q: &'r mut [f32],
    d_k: &'r mut [f32],
    d_v: &'r mut [f32],
}

impl Backward<'_, '_> {
    #[inline(always)]
    fn run<S: Simd, const R: usize>(mut self, simd: S) {
        let (len, size) = (self.task.len, self.h.size);
        let width = PANEL_VECTORS * S::F32_LANES;
        let (keys, cols) = (len.next_multiple_of(width), size.next_multiple_of(width));
        // Whole panels are written, whole tiles read.
        let stride = keys.max(len.next_multiple_of(R));
        let (d_q, rest) = std::mem::take(&mut self.task.region).split_at_mut(len * size);
        let (d_k, d_v) = rest.split_at_mut(len * size);
        let mut d = Gradients { d_q, d_k, d_v };
        let scores = QUERIES * stride;
        with_work(
            [size * keys, size * keys, len * cols, QUERIES * cols, scores, scores, keys],
            #[inline(always)]
            |[kt_panels, vt_panels, k_panels, block_panels, p, d_s, keep]| {
                let mut work = Work { kt_panels, vt_panels, k_panels, block_panels, p, d_s, stride, keep, width };
                let [k, v] = [1, 2].map(|part| self.task.qkv(&self.h, part));
                let across = Cut { depth: 0..size, cols: 0..len, width };
                pack::panels(View::transposed(k.data, k.stride), across.clone(), work.kt_panels);
                pack::panels(View::transposed(v.data, v.stride), across, work.vt_panels);
                pack::panels(k, Cut { depth: 0..len, cols: 0..size, width }, work.k_panels);
                for top in (0..len).step_by(QUERIES) {
                    self.block::<S, R>(simd, top..len.min(top + QUERIES), &mut work, &mut d);
                }
            },
        );
    }

    /// A block of queries.
    #[inline(always)]
    fn block<S: Simd, const R: usize>(
        &self, simd: S, queries: Range<usize>, work: &mut Work<'_>, d: &mut Gradients<'_>,
    ) {
        let (len, size, rows) = (self.task.len, self.h.size, queries.len());
        let Work { stride, width, .. } = *work;
        let (keys, cols) = (len.next_multiple_of(width), size.next_multiple_of(width));
        let q = self.task.qkv(&self.h, 0).from_row(queries.start);
        let d_ctx = self.task.columns(&self.h, self.d_ctx).from_row(queries.start);
        // 1  p = q kᵀ, d_s = d_ctx vᵀ
        let products = [(q, &*work.kt_panels, &mut *work.p), (d_ctx, &*work.vt_panels, &mut *work.d_s)];
        for (lhs, panels, c) in products {
            let lhs = PlainRows { data: lhs.data, stride: lhs.stride, rows, depth: size };
            let target = Target { c, stride, rows, start: Start::Zero };
            multiply::<S, R>(simd, &lhs, Panels { data: panels, depth: size, cols: keys }, target);
        }
        // 2  p = keep ∘ P, d_s = gradient of the products q kᵀ
        for (i, query) in queries.clone().enumerate() {
            let row = i * stride..i * stride + keys;
            self.score_gradients(simd, query, &mut work.p[row.clone()], &mut work.d_s[row], work.keep);
        }
        // 3  d_v += pᵀ d_ctx, d_k += d_sᵀ q
        let start = if queries.start == 0 { Start::Zero } else { Start::Add };
        for (weights, values, c) in [(&*work.p, d_ctx, &mut *d.d_v), (&*work.d_s, q, &mut *d.d_k)] {
            let panels = &mut work.block_panels[..rows * cols];
            pack::panels(values, Cut { depth: 0..rows, cols: 0..size, width }, panels);
            let rhs = Panels { data: panels, depth: rows, cols: size };
            let target = Target { c, stride: size, rows: len, start };
            multiply::<S, R>(simd, &PlainColumns { data: weights, stride }, rhs, target);
        }
        // 4  d_q = d_s k
        let lhs = PlainRows { data: work.d_s, stride, rows, depth: len };
        let target = Target { c: &mut d.d_q[queries.start * size..], stride: size, rows, start: Start::Zero };
        multiply::<S, R>(simd, &lhs, Panels { data: work.k_panels, depth: len, cols: size }, target);
    }

    /// Of one query: p comes in as q kᵀ and goes out as keep ∘ P; d_s comes in as d_ctx vᵀ and goes out
    /// as the gradient of q kᵀ. Columns beyond the last key hold nothing of use, before and after.
    #[inline(always)]
    fn score_gradients<S: Simd>(&self, simd: S, query: usize, p: &mut [f32], d_s: &mut [f32], keep: &mut [f32]) {
        let (h, row) = (&self.h, self.task.first_row + query);
        let at = row * h.width + self.task.head * h.size;
        let (ctx, d_ctx) = (&self.ctx[at..][..h.size], &self.d_ctx[at..][..h.size]);
        let [mean] = sums(
            simd,
            [ctx, d_ctx],
            #[inline(always)]
            |[y, d_y]| [simd.mul_f32s(y, d_y)],
        );
        let f = ScoreGradient {
            scale: simd.splat_f32s(h.scale()),
            lse: simd.splat_f32s(-self.lse[row * h.heads + self.task.head]),
            mean: simd.splat_f32s(mean),
        };
        if h.drop.is_active() {
            h.drop.keep_row_head(simd, h.batch.step, self.task.head as u32, row as u32, keep);
            update(
                simd,
                [p, d_s],
                [keep],
                #[inline(always)]
                |[product, d], [keep]| {
                    let p = f.probability(simd, product);
                    [simd.mul_f32s(p, keep), f.gradient(simd, p, simd.mul_f32s(d, keep))]
                },
            );
        } else {
            update(
                simd,
                [p, d_s],
                [],
                #[inline(always)]
                |[product, d], []| {
                    let p = f.probability(simd, product);
                    [p, f.gradient(simd, p, d)]
                },
            );
        }
    }
}

/// What the scores of one query have in common, as vectors.
#[derive(Clone, Copy)]
struct ScoreGradient<V> {
    /// 1 / √D
    scale: V,
    /// -lse
    lse: V,
    /// rowsum(d_ctx ∘ ctx)
    mean: V,
}

impl<V> ScoreGradient<V> {
    /// P, of a product q kᵀ.
    #[inline(always)]
    fn probability<S: Simd<f32s = V>>(&self, simd: S, product: V) -> V
    where
        V: Copy,
    {
        exp(simd, simd.mul_add_e_f32s(product, self.scale, self.lse))
    }

    /// Gradient of the product, from P and its gradient.
    #[inline(always)]
    fn gradient<S: Simd<f32s = V>>(&self, simd: S, p: V, d_p: V) -> V
    where
        V: Copy,
    {
        simd.mul_f32s(simd.mul_f32s(p, self.scale), simd.sub_f32s(d_p, self.mean))
    }
}
