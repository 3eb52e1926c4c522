//! softmax(q kᵀ / √D) v, dropping on the way.

use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use super::super::batch::Batch;
use super::super::columns::CHUNK;
use super::super::matmul::{Cut, PANEL_VECTORS, Panels, PlainRows, Start, Target, View, multiply, multiply_then, pack};
use super::super::memory::Mat;
use super::super::scratch::Scratch;
use super::super::simd::{self, dispatch, exp, update};
use super::{Heads, QUERIES, Task, with_work};
use crate::backend::shape::dim;
use crate::backend::{Dropout, Result};

/// [`crate::backend::Backend::attention`]
pub fn attention(
    scratch: &mut Scratch, qkv: &Mat, batch: &Batch, heads: usize, drop: &Dropout, lse: &mut Mat, ctx: &mut Mat,
) -> Result<()> {
    const OP: &str = "attention";
    let h = Heads::new(OP, qkv, batch, heads, drop)?;
    lse.prepare(OP, "lse", h.rows(), dim("H", heads))?;
    ctx.prepare(OP, "ctx", h.rows(), dim("C", h.width))?;
    // A region holds a head's rows of ctx, then its lse.
    let per_row = h.size + 1;
    let regions = scratch.blocks.scratch(batch.tokens() * heads * per_row)?;
    h.tasks(per_row, regions).into_par_iter().with_max_len(1).for_each(|task| dispatch(Forward { h, task }));
    let regions = &*regions;
    let chunks = ctx.live_mut().par_chunks_mut(CHUNK * h.width.max(1));
    chunks.zip(lse.live_mut().par_chunks_mut(CHUNK * heads)).enumerate().for_each(|(i, (ctx, lse))| {
        let rows = ctx.chunks_exact_mut(h.width).zip(lse.chunks_exact_mut(heads));
        for (row, (ctx, lse)) in (i * CHUNK..).zip(rows) {
            for (head, (part, lse)) in ctx.chunks_exact_mut(h.size).zip(lse).enumerate() {
                let (start, at) = h.region_of(row, head, per_row);
                part.copy_from_slice(&regions[start + at.row * h.size..][..h.size]);
                *lse = regions[start + at.len * h.size + at.row];
            }
        }
    });
    Ok(())
}

struct Forward<'a, 'r> {
    h: Heads<'a>,
    task: Task<'r>,
}

impl WithSimd for Forward<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        if S::REGISTER_COUNT >= 32 { self.run::<S, 12>(simd) } else { self.run::<S, 6>(simd) }
    }
}

impl Forward<'_, '_> {
    #[inline(always)]
    fn run<S: Simd, const R: usize>(self, simd: S) {
        let Forward { h, mut task } = self;
        let (len, size) = (task.len, h.size);
        let width = PANEL_VECTORS * S::F32_LANES;
        // Columns of the scores and of v, filled up to whole panels.
        let (keys, values) = (len.next_multiple_of(width), size.next_multiple_of(width));
        let (q, k, v) = (task.qkv(&h, 0), task.qkv(&h, 1), task.qkv(&h, 2));
        let (ctx, lse) = std::mem::take(&mut task.region).split_at_mut(len * size);
        with_work(
            [size * keys, len * values, QUERIES * keys, keys],
            #[inline(always)]
            |[k_panels, v_panels, scores, keep]| {
                pack::panels(View::transposed(k.data, k.stride), Cut { depth: 0..size, cols: 0..len, width }, k_panels);
                pack::panels(v, Cut { depth: 0..len, cols: 0..size, width }, v_panels);
                for top in (0..len).step_by(QUERIES) {
                    let rows = QUERIES.min(len - top);
                    let queries = PlainRows { data: &q.data[top * q.stride..], stride: q.stride, rows, depth: size };
                    let rhs = Panels { data: k_panels, depth: size, cols: keys };
                    let target = Target { c: &mut *scores, stride: keys, rows, start: Start::Zero };
                    multiply::<S, R>(simd, &queries, rhs, target);
                    let mut inverse = [0.0; QUERIES];
                    for (i, row) in scores.chunks_exact_mut(keys).take(rows).enumerate() {
                        let total;
                        (lse[top + i], total) = softmax_row(simd, row, len, h.scale());
                        inverse[i] = 1.0 / total;
                        if h.drop.is_active() {
                            let query = (task.first_row + top + i) as u32;
                            h.drop.keep_row_head(simd, h.batch.step, task.head as u32, query, keep);
                            update(
                                simd,
                                [row],
                                [keep],
                                #[inline(always)]
                                |[p], [keep]| [simd.mul_f32s(p, keep)],
                            );
                        }
                    }
                    let weights = PlainRows { data: scores, stride: keys, rows, depth: len };
                    let rhs = Panels { data: v_panels, depth: len, cols: size };
                    let ctx = &mut ctx[top * size..][..rows * size];
                    // Divided by the total here: D values a row rather than L.
                    let target = Target { c: ctx, stride: size, rows, start: Start::Zero };
                    multiply_then::<S, R>(
                        simd,
                        &weights,
                        rhs,
                        target,
                        #[inline(always)]
                        |i, _, part| simd::scale(simd, part, inverse[i]),
                    );
                }
            },
        );
    }
}

/// Turns a row of products q kᵀ into e^(scale × product - its maximum); returns (lse, the sum of the row).
/// Columns from `len` on become 0.
#[inline(always)]
fn softmax_row<S: Simd>(simd: S, row: &mut [f32], len: usize, scale: f32) -> (f32, f32) {
    row[len..].fill(f32::NEG_INFINITY);
    let highest = simd::max(simd, row) * scale;
    let (factor, shift) = (simd.splat_f32s(scale), simd.splat_f32s(-highest));
    let mut total = simd.splat_f32s(0.0);
    update(
        simd,
        [row],
        [],
        #[inline(always)]
        |[s], []| {
            let e = exp(simd, simd.mul_add_e_f32s(s, factor, shift));
            total = simd.add_f32s(total, e);
            [e]
        },
    );
    let total = simd.reduce_sum_f32s(total);
    (highest + total.ln(), total)
}
