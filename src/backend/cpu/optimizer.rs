//! Over the flat buffers: the gradients' norm and AdamW.
//!   norm = √Σ g², in f64
//!   g = clip × g;  m = β₁ m + (1 - β₁) g;  v = β₂ v + (1 - β₂) g²;
//!   w = w - lr (decay w + (m / (1 - β₁ᵗ)) / (√(v / (1 - β₂ᵗ)) + ε))
//!
//! Plan: fixed-size chunks are tasks; the chunks' sums of squares are added in order.

use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use super::memory::Flat;
use super::simd::{dispatch, update};
use crate::backend::shape::dim;
use crate::backend::{AdamW, Error, Result, Span, Tally, UpdateSpan};

/// Values in a task: 128 KB of each buffer.
const CHUNK: usize = 1 << 15;

/// [`crate::backend::Backend::grad_norm`]
pub fn grad_norm(grads: &Flat, tally: &mut Tally) {
    let squares: Vec<f64> = grads.values().par_chunks(CHUNK).map(|values| dispatch(Squares { values })).collect();
    tally.grad_norm = squares.iter().sum::<f64>().sqrt();
}

struct Squares<'a> {
    values: &'a [f32],
}

impl WithSimd for Squares<'_> {
    type Output = f64;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> f64 {
        const LANES: usize = 32;
        let (chunks, tail) = self.values.as_chunks::<LANES>();
        let mut sums = [0.0f64; LANES];
        for chunk in chunks {
            for (sum, &x) in sums.iter_mut().zip(chunk) {
                *sum += f64::from(x) * f64::from(x);
            }
        }
        for (sum, &x) in sums.iter_mut().zip(tail) {
            *sum += f64::from(x) * f64::from(x);
        }
        sums.iter().sum()
    }
}

/// [`crate::backend::Backend::adamw`]
pub fn adamw(
    w: &mut Flat, grads: &Flat, m: &mut Flat, v: &mut Flat, spans: &[UpdateSpan], hyper: Option<&AdamW>, tally: &Tally,
) -> Result<()> {
    const OP: &str = "adamw";
    let hyper = hyper.ok_or(Error::Unset { op: OP, what: "hyperparameters" })?;
    // Everything is checked before anything is changed.
    let len = dim("parameters", w.values().len());
    let state = [("gradients", grads), ("first moment", &*m), ("second moment", &*v)];
    for (what, flat) in state {
        flat.span(OP, what, Span { offset: 0, len: flat.values().len() }, len)?;
    }
    for UpdateSpan { span, .. } in spans {
        w.span(OP, "span", *span, dim("span", span.len))?;
    }
    if !hyper.limits.allow(tally) {
        return Ok(());
    }
    let factors = Factors::new(hyper, tally.grad_norm);
    for UpdateSpan { span, decay } in spans {
        let factors = if *decay { factors } else { Factors { decay: 0.0, ..factors } };
        let range = span.range();
        let state = m.values_mut()[range.clone()]
            .par_chunks_mut(CHUNK)
            .zip(v.values_mut()[range.clone()].par_chunks_mut(CHUNK));
        let chunks = w.values_mut()[range.clone()].par_chunks_mut(CHUNK).zip(grads.values()[range].par_chunks(CHUNK));
        chunks.zip(state).for_each(|((w, g), (m, v))| dispatch(Update { factors, w, g, m, v }));
    }
    Ok(())
}

/// Everything about a step that is the same for all values; worked out in f64.
#[derive(Debug, Clone, Copy)]
struct Factors {
    /// lr × decay. Not 1 - it, which would round the same way at every step.
    decay: f32,
    clip: f32,
    beta1: f32,
    beta2: f32,
    /// lr / (1 - β₁ᵗ)
    rate: f32,
    /// 1 / √(1 - β₂ᵗ)
    root: f32,
    epsilon: f32,
}

impl Factors {
    fn new(hyper: &AdamW, grad_norm: f64) -> Self {
        let (rate, step) = (f64::from(hyper.learning_rate), f64::from(hyper.step));
        let correction = |beta: f32| 1.0 - f64::from(beta).powf(step);
        let max_norm = f64::from(hyper.max_norm);
        let clip = if max_norm > 0.0 { (max_norm / (grad_norm + 1e-6)).min(1.0) } else { 1.0 };
        Factors {
            decay: (rate * f64::from(hyper.weight_decay)) as f32,
            clip: clip as f32,
            beta1: hyper.beta1,
            beta2: hyper.beta2,
            rate: (rate / correction(hyper.beta1)) as f32,
            root: correction(hyper.beta2).sqrt().recip() as f32,
            epsilon: hyper.epsilon,
        }
    }
}

struct Update<'a> {
    factors: Factors,
    w: &'a mut [f32],
    g: &'a [f32],
    m: &'a mut [f32],
    v: &'a mut [f32],
}

impl WithSimd for Update<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let f = self.factors;
        let (decay, clip, rate, root, epsilon) = (
            simd.splat_f32s(f.decay),
            simd.splat_f32s(f.clip),
            simd.splat_f32s(f.rate),
            simd.splat_f32s(f.root),
            simd.splat_f32s(f.epsilon),
        );
        let (one_minus_beta1, beta2, one_minus_beta2) =
            (simd.splat_f32s(1.0 - f.beta1), simd.splat_f32s(f.beta2), simd.splat_f32s(1.0 - f.beta2));
        update(
            simd,
            [self.w, self.m, self.v],
            [self.g],
            #[inline(always)]
            |[w, m, v], [g]| {
                let g = simd.mul_f32s(g, clip);
                // m + (1 - β₁)(g - m), as PyTorch does it: exact where g = m.
                let m = simd.mul_add_e_f32s(one_minus_beta1, simd.sub_f32s(g, m), m);
                let v = simd.mul_add_e_f32s(one_minus_beta2, simd.mul_f32s(g, g), simd.mul_f32s(beta2, v));
                let denominator = simd.mul_add_e_f32s(simd.sqrt_f32s(v), root, epsilon);
                let change = simd.mul_add_e_f32s(rate, simd.div_f32s(m, denominator), simd.mul_f32s(w, decay));
                [simd.sub_f32s(w, change), m, v]
            },
        );
    }
}
