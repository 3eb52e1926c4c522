//! LayerNorm after a residual and dropout.
//!   forward:  sum = residual + keep ∘ branch;  y = (sum - mean) rstd γ + β, row by row
//!   backward: with x̂ = (sum - mean) rstd and g = d_y ∘ γ,
//!             d_sum = rstd (g - mean(g) - x̂ mean(g ∘ x̂));  d_γ = Σ d_y ∘ x̂;  d_β = Σ d_y
//!   branch, residual, sum, y [R, C]   stats [R, 2] (mean, rstd)   γ, β [C]
//! The variance is the mean of (x - mean)², in a second pass over a row that is still in the cache.
//!
//! Plan: chunks of rows are tasks; each sums its share of d_γ, d_β and d_bias into a row of partials.

use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use super::batch::Batch;
use super::columns::{CHUNK, add_partials};
use super::memory::{Flat, Mat};
use super::scratch::Scratch;
use super::simd::{self, dispatch, sums, update};
use crate::backend::shape::dim;
use crate::backend::{Dropout, Norm, Result, Span};

/// The LayerNorm's parameters at hand.
#[derive(Debug, Clone, Copy)]
pub struct Parameters<'a> {
    /// [C]
    pub gamma: &'a [f32],
    /// [C]
    pub beta: &'a [f32],
    /// Added to the variance.
    pub epsilon: f32,
}

impl<'a> Parameters<'a> {
    /// Those of a layer of width `cols`.
    pub fn new(op: &'static str, w: &'a Flat, norm: &Norm, cols: usize) -> Result<Self> {
        Ok(Parameters {
            gamma: w.span(op, "gamma", norm.gamma, dim("C", cols))?,
            beta: w.span(op, "beta", norm.beta, dim("C", cols))?,
            epsilon: norm.epsilon,
        })
    }
}

/// x̂
#[inline(always)]
fn normed<S: Simd>(simd: S, x: S::f32s, mean: S::f32s, rstd: S::f32s) -> S::f32s {
    simd.mul_f32s(simd.sub_f32s(x, mean), rstd)
}

/// One row: y = LayerNorm(x); stats = [mean, rstd].
#[inline(always)]
pub fn normalise<S: Simd>(simd: S, x: &[f32], p: &Parameters<'_>, stats: &mut [f32], y: &mut [f32]) {
    let width = x.len() as f32;
    let [total] = sums(
        simd,
        [x],
        #[inline(always)]
        |[x]| [x],
    );
    let mean = simd.splat_f32s(total / width);
    let [squares] = sums(
        simd,
        [x],
        #[inline(always)]
        |[x]| {
            let d = simd.sub_f32s(x, mean);
            [simd.mul_f32s(d, d)]
        },
    );
    let rstd = 1.0 / (squares / width + p.epsilon).sqrt();
    stats.copy_from_slice(&[total / width, rstd]);
    let rstd = simd.splat_f32s(rstd);
    update(
        simd,
        [y],
        [x, p.gamma, p.beta],
        #[inline(always)]
        |_, [x, gamma, beta]| {
            let normed = simd.mul_f32s(simd.sub_f32s(x, mean), rstd);
            [simd.mul_add_e_f32s(normed, gamma, beta)]
        },
    );
}

/// One row's backward: d comes in as d_y and goes out as d_x; d_gamma and d_beta accumulate.
#[inline(always)]
pub fn normalise_backward<S: Simd>(
    simd: S, x: &[f32], gamma: &[f32], stats: &[f32], d_gamma: &mut [f32], d_beta: &mut [f32], d: &mut [f32],
) {
    let width = x.len() as f32;
    let (mean, rstd) = (simd.splat_f32s(stats[0]), simd.splat_f32s(stats[1]));
    update(
        simd,
        [d_gamma, d_beta],
        [d, x],
        #[inline(always)]
        |[d_gamma, d_beta], [d, x]| {
            [simd.mul_add_e_f32s(d, normed(simd, x, mean, rstd), d_gamma), simd.add_f32s(d_beta, d)]
        },
    );
    let totals = sums(
        simd,
        [d, gamma, x],
        #[inline(always)]
        |[d, gamma, x]| {
            let g = simd.mul_f32s(d, gamma);
            [g, simd.mul_f32s(g, normed(simd, x, mean, rstd))]
        },
    );
    let (mean_g, mean_gx) = (simd.splat_f32s(-totals[0] / width), simd.splat_f32s(-totals[1] / width));
    update(
        simd,
        [d],
        [gamma, x],
        #[inline(always)]
        |[d], [gamma, x]| {
            let g = simd.mul_add_e_f32s(d, gamma, mean_g);
            [simd.mul_f32s(rstd, simd.mul_add_e_f32s(normed(simd, x, mean, rstd), mean_gx, g))]
        },
    );
}

/// [`crate::backend::Backend::add_layernorm`]
#[allow(clippy::too_many_arguments)]
pub fn add_layernorm(
    branch: &Mat, residual: Option<&Mat>, batch: &Batch, w: &Flat, norm: &Norm, drop: &Dropout, sum: &mut Mat,
    stats: &mut Mat, y: &mut Mat,
) -> Result<()> {
    const OP: &str = "add_layernorm";
    let (rows, cols) = (dim("R", branch.rows()), dim("C", branch.cols()));
    if let Some(residual) = residual {
        residual.expect(OP, "residual", rows, cols)?;
    }
    let p = Parameters::new(OP, w, norm, cols.size)?;
    sum.prepare(OP, "sum", rows, cols)?;
    stats.prepare(OP, "stats", rows, dim("2", 2))?;
    y.prepare(OP, "y", rows, cols)?;
    let chunk = CHUNK * cols.size.max(1);
    let outputs = sum.live_mut().par_chunks_mut(chunk).zip(y.live_mut().par_chunks_mut(chunk));
    let outputs = outputs.zip(stats.live_mut().par_chunks_mut(CHUNK * 2));
    outputs.zip(branch.live().par_chunks(chunk)).enumerate().for_each(|(i, (((sum, y), stats), branch))| {
        let residual = residual.map(|r| &r.live()[i * chunk..][..sum.len()]);
        dispatch(Forward { p, drop, step: batch.step, first_row: i * CHUNK, branch, residual, sum, stats, y });
    });
    Ok(())
}

struct Forward<'a> {
    p: Parameters<'a>,
    drop: &'a Dropout,
    step: u32,
    first_row: usize,
    branch: &'a [f32],
    residual: Option<&'a [f32]>,
    sum: &'a mut [f32],
    stats: &'a mut [f32],
    y: &'a mut [f32],
}

impl WithSimd for Forward<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let cols = self.p.gamma.len();
        let outputs = self.sum.chunks_exact_mut(cols).zip(self.y.chunks_exact_mut(cols));
        let outputs = outputs.zip(self.stats.chunks_exact_mut(2));
        for (i, (((sum, y), stats), branch)) in outputs.zip(self.branch.chunks_exact(cols)).enumerate() {
            if self.drop.is_active() {
                self.drop.keep_row(simd, self.step, (self.first_row + i) as u32, sum);
                update(
                    simd,
                    [sum],
                    [branch],
                    #[inline(always)]
                    |[keep], [x]| [simd.mul_f32s(keep, x)],
                );
            } else {
                sum.copy_from_slice(branch);
            }
            if let Some(residual) = self.residual {
                simd::add(simd, sum, &residual[i * cols..][..cols]);
            }
            normalise(simd, sum, &self.p, stats, y);
        }
    }
}

/// [`crate::backend::Backend::add_layernorm_backward`]
#[allow(clippy::too_many_arguments)]
pub fn add_layernorm_backward(
    scratch: &mut Scratch, d: &mut Mat, sum: &Mat, stats: &Mat, batch: &Batch, w: &Flat, norm: &Norm, drop: &Dropout,
    bias: Option<Span>, grads: &mut Flat, mut d_branch: Option<&mut Mat>,
) -> Result<()> {
    const OP: &str = "add_layernorm_backward";
    let (rows, cols) = (dim("R", d.rows()), dim("C", d.cols()));
    sum.expect(OP, "sum", rows, cols)?;
    stats.expect(OP, "stats", rows, dim("2", 2))?;
    let gamma = Parameters::new(OP, w, norm, cols.size)?.gamma;
    if let Some(d_branch) = &mut d_branch {
        d_branch.prepare(OP, "d_branch", rows, cols)?;
    }
    let kinds = if bias.is_some() { 3 } else { 2 };
    let width = cols.size.max(1);
    let chunks = rows.size.div_ceil(CHUNK);
    let partials = scratch.partials.scratch(kinds * chunks * width)?;
    partials.fill(0.0);
    let (d_gammas, rest) = partials.split_at_mut(chunks * width);
    let (d_betas, d_biases) = rest.split_at_mut(chunks * width);
    let mut branches = d_branch.map(|m| m.live_mut().chunks_mut(CHUNK * width));
    let mut biases = d_biases.chunks_mut(width);
    let sums = d_gammas.chunks_mut(width).zip(d_betas.chunks_mut(width));
    let tasks =
        d.live_mut().chunks_mut(CHUNK * width).zip(sums).enumerate().map(|(i, (d, (d_gamma, d_beta)))| Backward {
            gamma,
            drop,
            step: batch.step,
            first_row: i * CHUNK,
            sum: &sum.live()[i * CHUNK * width..][..d.len()],
            stats: &stats.live()[i * CHUNK * 2..],
            d,
            d_gamma,
            d_beta,
            d_bias: biases.next(),
            d_branch: branches.as_mut().and_then(Iterator::next),
        });
    let tasks: Vec<_> = tasks.collect();
    tasks.into_par_iter().for_each(dispatch);
    add_partials(d_gammas, grads.span_mut(OP, "gamma", norm.gamma, cols)?);
    add_partials(d_betas, grads.span_mut(OP, "beta", norm.beta, cols)?);
    if let Some(bias) = bias {
        add_partials(d_biases, grads.span_mut(OP, "bias", bias, cols)?);
    }
    Ok(())
}

struct Backward<'a> {
    gamma: &'a [f32],
    drop: &'a Dropout,
    step: u32,
    first_row: usize,
    sum: &'a [f32],
    stats: &'a [f32],
    d: &'a mut [f32],
    d_gamma: &'a mut [f32],
    d_beta: &'a mut [f32],
    d_bias: Option<&'a mut [f32]>,
    d_branch: Option<&'a mut [f32]>,
}

impl WithSimd for Backward<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let cols = self.gamma.len();
        let mut keep = vec![1.0; cols];
        let rows = self.d.chunks_exact_mut(cols).zip(self.sum.chunks_exact(cols)).zip(self.stats.chunks_exact(2));
        for (i, ((d, sum), stats)) in rows.enumerate() {
            normalise_backward(simd, sum, self.gamma, stats, self.d_gamma, self.d_beta, d);
            if self.drop.is_active() {
                self.drop.keep_row(simd, self.step, (self.first_row + i) as u32, &mut keep);
            }
            if let Some(d_branch) = &mut self.d_branch {
                let d_branch = &mut d_branch[i * cols..][..cols];
                update(
                    simd,
                    [d_branch],
                    [d, &keep],
                    #[inline(always)]
                    |_, [d, keep]| [simd.mul_f32s(d, keep)],
                );
            }
            if let Some(d_bias) = &mut self.d_bias {
                update(
                    simd,
                    [d_bias],
                    [d, &keep],
                    #[inline(always)]
                    |[sum], [d, keep]| [simd.mul_add_e_f32s(d, keep, sum)],
                );
            }
        }
    }
}
