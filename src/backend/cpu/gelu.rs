//! The erf GELU: gelu(x) = x Φ(x), gelu'(x) = Φ(x) + x φ(x), with φ and Φ the density and the
//! distribution of the standard normal.
//!
//! Φ(-a) = φ(a) R(a) for a ≥ 0, where R, the Mills ratio, is so smooth that a quotient of two small
//! polynomials with positive coefficients gives R / √(2π) to 5.6e-9: nothing cancels, and the exponential that
//! Φ needs is the one that φ needs. Φ(a) = 1 - Φ(-a).
//! On a dense grid (tests below) gelu is within 1e-7 + 1.2e-7 |x|, its slope within 1.6e-7.
//!
//! Plan: within matmul's epilogue where a product comes before; else rows in chunks.

use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use super::columns::{CHUNK, add_partials};
use super::memory::{Flat, Mat};
use super::scratch::Scratch;
use super::simd::{self, dispatch, exp, horner};
use crate::backend::shape::dim;
use crate::backend::{Result, Span};

/// Φ(-a) e^{a²/2} = P(a) / Q(a) on 0..14, fitted for this file (rational minimax).
const P: [f32; 5] = [0.5, 0.437_250_8, 0.182_461_75, 0.040_372_53, 0.004_077_607_8];
const Q: [f32; 6] = [1.0, 1.672_386_5, 1.199_290_4, 0.467_428_9, 0.101_205_74, 0.010_220_918];
/// 1 / √(2π)
const DENSITY_AT_0: f32 = 0.398_942_3;
/// Beyond it Φ(-a) is 0 in f32.
const FARTHEST: f32 = 14.0;

/// |x|, but no more than [`FARTHEST`]; Φ(-|x|) and e^{-x²/2}
#[inline(always)]
fn tail<S: Simd>(simd: S, x: S::f32s) -> [S::f32s; 3] {
    let a = simd.abs_f32s(x);
    let far = simd.splat_f32s(FARTHEST);
    let near = simd.select_f32s(simd.greater_than_f32s(a, far), far, a);
    let e = exp(simd, simd.mul_f32s(simd.mul_f32s(near, simd.splat_f32s(-0.5)), near));
    let q = simd.div_f32s(simd.mul_f32s(e, horner(simd, P, near)), horner(simd, Q, near));
    [near, q, e]
}

/// x Φ(x)
#[inline(always)]
pub fn gelu<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    // x Φ(x) = max(x, 0) - |x| Φ(-|x|), on both sides of 0. A NaN comes through |x|; an infinity times Φ's 0 would be one.
    let [near, q, _] = tail(simd, x);
    let zero = simd.splat_f32s(0.0);
    let positive = simd.select_f32s(simd.greater_than_f32s(x, zero), x, zero);
    simd.mul_add_e_f32s(simd.neg_f32s(near), q, positive)
}

/// Φ(x) + x φ(x)
#[inline(always)]
pub fn gelu_slope<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    let [_, q, e] = tail(simd, x);
    let (zero, one) = (simd.splat_f32s(0.0), simd.splat_f32s(1.0));
    let phi = simd.select_f32s(simd.less_than_f32s(x, zero), q, simd.sub_f32s(one, q));
    // Where e is 0 an infinity must not meet it.
    let far = simd.greater_than_f32s(simd.abs_f32s(x), simd.splat_f32s(FARTHEST));
    let x = simd.select_f32s(far, zero, x);
    simd.mul_add_e_f32s(simd.mul_f32s(x, simd.splat_f32s(DENSITY_AT_0)), e, phi)
}

/// d = d ∘ gelu'(pre) and sums += d, for part of a row.
#[inline(always)]
pub fn backward_part<S: Simd>(simd: S, d: &mut [f32], sums: &mut [f32], pre: &[f32]) {
    simd::update(
        simd,
        [d, sums],
        [pre],
        #[inline(always)]
        |[d, sum], [pre]| {
            let d = simd.mul_f32s(d, gelu_slope(simd, pre));
            [d, simd.add_f32s(sum, d)]
        },
    );
}

/// [`crate::backend::Backend::gelu_backward`]
pub fn gelu_backward(scratch: &mut Scratch, pre: &Mat, bias: Span, grads: &mut Flat, d: &mut Mat) -> Result<()> {
    const OP: &str = "gelu_backward";
    let (rows, cols) = (pre.rows(), pre.cols());
    d.expect(OP, "d", dim("R", rows), dim("F", cols))?;
    let d_bias = grads.span_mut(OP, "bias", bias, dim("F", cols))?;
    let partials = scratch.partials.scratch(rows.div_ceil(CHUNK) * cols)?;
    let chunk = CHUNK * cols.max(1);
    let chunks = d.live_mut().par_chunks_mut(chunk).zip(pre.live().par_chunks(chunk));
    chunks.zip(partials.par_chunks_mut(cols.max(1))).for_each(|((d, pre), sums)| {
        sums.fill(0.0);
        dispatch(Backward { d, pre, sums });
    });
    add_partials(partials, d_bias);
    Ok(())
}

struct Backward<'a> {
    d: &'a mut [f32],
    pre: &'a [f32],
    sums: &'a mut [f32],
}

impl WithSimd for Backward<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let cols = self.sums.len();
        for (d, pre) in self.d.chunks_exact_mut(cols).zip(self.pre.chunks_exact(cols)) {
            backward_part(simd, d, self.sums, pre);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// y = gelu(x), slope = gelu'(x)
    struct Both<'a> {
        x: &'a [f32],
        y: &'a mut [f32],
        slope: &'a mut [f32],
    }

    impl WithSimd for Both<'_> {
        type Output = ();
        fn with_simd<S: Simd>(self, simd: S) {
            simd::update(
                simd,
                [self.y, self.slope],
                [self.x],
                #[inline(always)]
                |_, [x]| [gelu(simd, x), gelu_slope(simd, x)],
            );
        }
    }

    /// Φ(x) by its power series: φ(x) Σ x^(2n+1) / (1·3·5·…), and 1/2. Exact to f64 for |x| < 7.
    fn phi(x: f64) -> f64 {
        let (mut term, mut sum, mut n) = (x, x, 1.0);
        while term.abs() > 1e-18 * sum.abs() {
            n += 2.0;
            term *= x * x / n;
            sum += term;
        }
        0.5 + sum * density(x)
    }

    fn density(x: f64) -> f64 {
        (-x * x / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt()
    }

    #[test]
    fn gelu_and_its_slope_on_a_dense_grid() {
        let x: Vec<f32> = (0..600_001).map(|i| -6.0 + i as f32 * 2e-5).collect();
        let (mut y, mut slope) = (vec![0.0; x.len()], vec![0.0; x.len()]);
        dispatch(Both { x: &x, y: &mut y, slope: &mut slope });
        for ((&x, &y), &slope) in x.iter().zip(&y).zip(&slope) {
            let x = f64::from(x);
            assert!((f64::from(y) - x * phi(x)).abs() < 1e-7 + 1.2e-7 * x.abs(), "gelu({x}) = {y}");
            assert!((f64::from(slope) - phi(x) - x * density(x)).abs() < 1.6e-7, "gelu'({x}) = {slope}");
        }
    }

    #[test]
    fn far_out_it_is_the_identity_or_nothing() {
        let x = [f32::NEG_INFINITY, -1e30, -40.0, -14.5, 14.5, 40.0, 1e30, f32::INFINITY, 0.0, f32::NAN];
        let (mut y, mut slope) = ([9.0; 10], [9.0; 10]);
        dispatch(Both { x: &x, y: &mut y, slope: &mut slope });
        assert_eq!(y[..9], [0.0, 0.0, 0.0, 0.0, 14.5, 40.0, 1e30, f32::INFINITY, 0.0]);
        assert_eq!(slope[..9], [0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 0.5]);
        assert!(y[9].is_nan() && slope[9].is_nan());
    }
}
