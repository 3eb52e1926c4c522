//! Word and position embeddings, their LayerNorm and dropout.
//!   forward:  y = keep ∘ LayerNorm(word[ids] + position[position_ids])
//!   backward: through dropout and LayerNorm as in layernorm.rs (the sum is added up again, not
//!             saved), then each row of a table gets the sum over the packed rows that showed it
//!   word [V, C]   position [P, C]   y [N, C]   stats [N, 2]
//!
//! Plan: chunks of rows are tasks; for the tables each table row is one task that adds its packed
//! rows in order (grouped at upload), so no two tasks write to one place.

use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use super::batch::Batch;
use super::columns::{CHUNK, add_partials};
use super::layernorm::{Parameters, normalise, normalise_backward};
use super::memory::{Flat, Mat};
use super::scratch::Scratch;
use super::simd::{self, dispatch, update};
use crate::backend::batch::Groups;
use crate::backend::shape::dim;
use crate::backend::{Dropout, Embedding, Error, Result};

/// The two tables, and what each packed row takes from them.
#[derive(Clone, Copy)]
struct Tables<'a> {
    word: &'a [f32],
    position: &'a [f32],
    batch: &'a Batch,
    width: usize,
}

impl<'a> Tables<'a> {
    fn new(op: &'static str, batch: &'a Batch, w: &'a Flat, layer: &Embedding) -> Result<Self> {
        let (word, position) = (dim("V·C", layer.word.len), dim("P·C", layer.position.len));
        let tables = Tables {
            word: w.span(op, "word embeddings", layer.word, word)?,
            position: w.span(op, "position embeddings", layer.position, position)?,
            batch,
            width: layer.width,
        };
        let holds = |table: &[f32], rows: &[u32]| {
            rows.iter().max().is_none_or(|&row| (row as usize + 1) * layer.width <= table.len())
        };
        if holds(tables.word, &batch.ids) && holds(tables.position, &batch.position_ids) {
            return Ok(tables);
        }
        Err(Error::Batch(format!(
            "{op}: an id or position lies outside the tables, which have {} and {} values of width {}",
            word.size, position.size, layer.width
        )))
    }

    /// x = word[id] + position[position_id] of a packed row.
    #[inline(always)]
    fn add_up<S: Simd>(&self, simd: S, row: usize, x: &mut [f32]) {
        let word = &self.word[self.batch.ids[row] as usize * self.width..][..self.width];
        let position = &self.position[self.batch.position_ids[row] as usize * self.width..][..self.width];
        update(
            simd,
            [x],
            [word, position],
            #[inline(always)]
            |_, [a, b]| [simd.add_f32s(a, b)],
        );
    }
}

/// [`crate::backend::Backend::embed`]
pub fn embed(batch: &Batch, w: &Flat, layer: &Embedding, drop: &Dropout, stats: &mut Mat, y: &mut Mat) -> Result<()> {
    const OP: &str = "embed";
    let (rows, cols) = (dim("N", batch.tokens()), dim("C", layer.width));
    let tables = Tables::new(OP, batch, w, layer)?;
    let p = Parameters::new(OP, w, &layer.norm, layer.width)?;
    stats.prepare(OP, "stats", rows, dim("2", 2))?;
    y.prepare(OP, "y", rows, cols)?;
    let outputs = y.live_mut().par_chunks_mut(CHUNK * layer.width.max(1));
    outputs.zip(stats.live_mut().par_chunks_mut(CHUNK * 2)).enumerate().for_each(|(i, (y, stats))| {
        dispatch(Forward { tables, p, drop, first_row: i * CHUNK, stats, y });
    });
    Ok(())
}

struct Forward<'a> {
    tables: Tables<'a>,
    p: Parameters<'a>,
    drop: &'a Dropout,
    first_row: usize,
    stats: &'a mut [f32],
    y: &'a mut [f32],
}

impl WithSimd for Forward<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let cols = self.tables.width;
        let mut row_buffer = vec![0.0; cols];
        for (i, (y, stats)) in self.y.chunks_exact_mut(cols).zip(self.stats.chunks_exact_mut(2)).enumerate() {
            let row = self.first_row + i;
            self.tables.add_up(simd, row, &mut row_buffer);
            normalise(simd, &row_buffer, &self.p, stats, y);
            if self.drop.is_active() {
                self.drop.keep_row(simd, self.tables.batch.step, row as u32, &mut row_buffer);
                update(
                    simd,
                    [y],
                    [&row_buffer],
                    #[inline(always)]
                    |[y], [keep]| [simd.mul_f32s(y, keep)],
                );
            }
        }
    }
}

/// [`crate::backend::Backend::embed_backward`]
#[allow(clippy::too_many_arguments)]
pub fn embed_backward(
    scratch: &mut Scratch, batch: &Batch, w: &Flat, layer: &Embedding, drop: &Dropout, stats: &Mat, d_y: &mut Mat,
    grads: &mut Flat,
) -> Result<()> {
    const OP: &str = "embed_backward";
    let (rows, cols) = (dim("N", batch.tokens()), dim("C", layer.width));
    let tables = Tables::new(OP, batch, w, layer)?;
    let gamma = Parameters::new(OP, w, &layer.norm, layer.width)?.gamma;
    stats.expect(OP, "stats", rows, dim("2", 2))?;
    d_y.expect(OP, "d_y", rows, cols)?;
    let width = cols.size.max(1);
    let chunks = rows.size.div_ceil(CHUNK);
    let partials = scratch.partials.scratch(2 * chunks * width)?;
    partials.fill(0.0);
    let (d_gammas, d_betas) = partials.split_at_mut(chunks * width);
    let sums = d_gammas.par_chunks_mut(width).zip(d_betas.par_chunks_mut(width));
    d_y.live_mut().par_chunks_mut(CHUNK * width).zip(sums).enumerate().for_each(|(i, (d, (d_gamma, d_beta)))| {
        let stats = &stats.live()[i * CHUNK * 2..];
        dispatch(Backward { tables, gamma, drop, first_row: i * CHUNK, stats, d, d_gamma, d_beta });
    });
    add_partials(d_gammas, grads.span_mut(OP, "gamma", layer.norm.gamma, cols)?);
    add_partials(d_betas, grads.span_mut(OP, "beta", layer.norm.beta, cols)?);
    let d_sum = d_y.live();
    let d_word = grads.span_mut(OP, "word embeddings", layer.word, dim("V·C", layer.word.len))?;
    add_rows(d_sum, width, &batch.by_id, layer.padding_idx, d_word);
    let d_position = grads.span_mut(OP, "position embeddings", layer.position, dim("P·C", layer.position.len))?;
    add_rows(d_sum, width, &batch.by_position, None, d_position);
    Ok(())
}

struct Backward<'a> {
    tables: Tables<'a>,
    gamma: &'a [f32],
    drop: &'a Dropout,
    first_row: usize,
    stats: &'a [f32],
    d: &'a mut [f32],
    d_gamma: &'a mut [f32],
    d_beta: &'a mut [f32],
}

impl WithSimd for Backward<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let cols = self.tables.width;
        let mut row_buffer = vec![0.0; cols];
        for (i, (d, stats)) in self.d.chunks_exact_mut(cols).zip(self.stats.chunks_exact(2)).enumerate() {
            let row = self.first_row + i;
            if self.drop.is_active() {
                self.drop.keep_row(simd, self.tables.batch.step, row as u32, &mut row_buffer);
                update(
                    simd,
                    [d],
                    [&row_buffer],
                    #[inline(always)]
                    |[d], [keep]| [simd.mul_f32s(d, keep)],
                );
            }
            self.tables.add_up(simd, row, &mut row_buffer);
            normalise_backward(simd, &row_buffer, self.gamma, stats, self.d_gamma, self.d_beta, d);
        }
    }
}

/// Adds each packed row of `d` to the table row it showed, except to row `skip`.
fn add_rows(d: &[f32], width: usize, groups: &Groups, skip: Option<u32>, d_table: &mut [f32]) {
    d_table.par_chunks_mut(width).enumerate().for_each(|(key, d_row)| {
        let rows = groups.of(key);
        if !rows.is_empty() && skip != Some(key as u32) {
            dispatch(AddRows { d, rows, d_row });
        }
    });
}

struct AddRows<'a> {
    d: &'a [f32],
    rows: &'a [u32],
    d_row: &'a mut [f32],
}

impl WithSimd for AddRows<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let width = self.d_row.len();
        for &row in self.rows {
            simd::add(simd, self.d_row, &self.d[row as usize * width..][..width]);
        }
    }
}
