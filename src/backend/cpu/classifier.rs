//! The classifier head's own ops, on [B, C] and [B, K]: a few dozen rows, so one thread does them.
//!   relu_dropout:         y = keep ∘ relu(x)
//!   its backward:         d = keep ∘ [x > 0] ∘ d;  d_bias += Σ_rows d
//!   class_cross_entropy:  q = (1-ε) onehot + ε/K;  loss += weight × (lse - Σ q logits);
//!                         d_logits = (softmax - q) × weight × loss_scale;  d_bias += Σ_rows d_logits

use pulp::{Simd, WithSimd};

use super::batch::Batch;
use super::memory::{Flat, Mat};
use super::simd::{self, dispatch, update};
use crate::backend::shape::{Dim, dim};
use crate::backend::{Dropout, LossGrads, Result, Span, Tally};

/// [`crate::backend::Backend::relu_dropout`]
pub fn relu_dropout(x: &Mat, batch: &Batch, drop: &Dropout, y: &mut Mat) -> Result<()> {
    const OP: &str = "relu_dropout";
    x.expect(OP, "x", rows(batch), dim("C", x.cols()))?;
    y.prepare(OP, "y", rows(batch), dim("C", x.cols()))?;
    dispatch(Relu { x: x.live(), cols: x.cols(), drop, step: batch.step, y: y.live_mut() });
    Ok(())
}

fn rows(batch: &Batch) -> Dim {
    dim("B", batch.sequences())
}

struct Relu<'a> {
    x: &'a [f32],
    cols: usize,
    drop: &'a Dropout,
    step: u32,
    y: &'a mut [f32],
}

impl WithSimd for Relu<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let (cols, zero) = (self.cols.max(1), simd.splat_f32s(0.0));
        for (row, (y, x)) in self.y.chunks_exact_mut(cols).zip(self.x.chunks_exact(cols)).enumerate() {
            self.drop.keep_row(simd, self.step, row as u32, y);
            update(
                simd,
                [y],
                [x],
                #[inline(always)]
                |[keep], [x]| {
                    // A negative x is 0; a NaN is not, and comes through.
                    let x = simd.select_f32s(simd.less_than_f32s(x, zero), zero, x);
                    [simd.mul_f32s(keep, x)]
                },
            );
        }
    }
}

/// [`crate::backend::Backend::relu_dropout_backward`]
pub fn relu_dropout_backward(
    x: &Mat, batch: &Batch, drop: &Dropout, bias: Span, grads: &mut Flat, d: &mut Mat,
) -> Result<()> {
    const OP: &str = "relu_dropout_backward";
    let cols = dim("C", x.cols());
    x.expect(OP, "x", rows(batch), cols)?;
    d.expect(OP, "d", rows(batch), cols)?;
    let d_bias = grads.span_mut(OP, "bias", bias, cols)?;
    dispatch(ReluBackward { x: x.live(), drop, step: batch.step, d_bias, d: d.live_mut() });
    Ok(())
}

struct ReluBackward<'a> {
    x: &'a [f32],
    drop: &'a Dropout,
    step: u32,
    d_bias: &'a mut [f32],
    d: &'a mut [f32],
}

impl WithSimd for ReluBackward<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let (cols, zero) = (self.d_bias.len().max(1), simd.splat_f32s(0.0));
        let mut keep = vec![0.0; cols];
        for (row, (d, x)) in self.d.chunks_exact_mut(cols).zip(self.x.chunks_exact(cols)).enumerate() {
            self.drop.keep_row(simd, self.step, row as u32, &mut keep);
            update(
                simd,
                [d],
                [&keep, x],
                #[inline(always)]
                |[d], [keep, x]| {
                    let d = simd.mul_f32s(d, keep);
                    [simd.select_f32s(simd.greater_than_f32s(x, zero), d, zero)]
                },
            );
            simd::add(simd, self.d_bias, d);
        }
    }
}

/// [`crate::backend::Backend::class_cross_entropy`]
pub fn class_cross_entropy(
    logits: &Mat, batch: &Batch, bias: Span, smoothing: f32, tally: &mut Tally, back: Option<LossGrads<'_, Mat, Flat>>,
) -> Result<()> {
    const OP: &str = "class_cross_entropy";
    let classes = dim("K", logits.cols());
    logits.expect(OP, "logits", rows(batch), classes)?;
    batch.check_labels(OP, classes.size)?;
    let mut none = [];
    let (d_logits, d_bias): (&mut [f32], &mut [f32]) = match back {
        None => (&mut none, &mut []),
        Some(LossGrads { d_x, grads }) => {
            d_x.prepare(OP, "d_x", rows(batch), classes)?;
            (d_x.live_mut(), grads.span_mut(OP, "bias", bias, classes)?)
        }
    };
    // What q has of the label beyond its share, and the share of every class.
    let (own, share) = (1.0 - f64::from(smoothing), f64::from(smoothing) / classes.size as f64);
    let mut d_rows = d_logits.chunks_exact_mut(classes.size.max(1));
    for (row, logits) in logits.live().chunks_exact(classes.size.max(1)).enumerate() {
        let (label, weight) = (batch.labels[row], f64::from(batch.label_weights[row]));
        let d_row = d_rows.next();
        // -1: no label. No other label lies outside the logits.
        let Some(&logit) = usize::try_from(label).ok().and_then(|label| logits.get(label)) else {
            d_row.into_iter().for_each(|d| d.fill(0.0));
            continue;
        };
        // A handful of classes: in f64, at no cost.
        let (best, highest) = argmax(logits.iter().copied());
        let lse =
            f64::from(highest) + logits.iter().map(|&x| (f64::from(x) - f64::from(highest)).exp()).sum::<f64>().ln();
        let shared = share * logits.iter().map(|&x| f64::from(x)).sum::<f64>();
        tally.loss += weight * (lse - own * f64::from(logit) - shared);
        tally.weight += weight;
        tally.targets += 1;
        tally.correct += u64::from(best == label as usize);
        let factor = weight * f64::from(batch.loss_scale);
        for (k, d) in d_row.into_iter().flatten().enumerate() {
            let target = if k == label as usize { own + share } else { share };
            *d = (((f64::from(logits[k]) - lse).exp() - target) * factor) as f32;
            d_bias[k] += *d;
        }
    }
    Ok(())
}

/// The largest value and the first place it stands at; a NaN is passed over.
pub fn argmax(values: impl Iterator<Item = f32>) -> (usize, f32) {
    values.enumerate().fold((0, f32::NEG_INFINITY), |best, x| if x.1 > best.1 { x } else { best })
}
