//! Attention within each sequence of a packed batch.

use crate::backend::Dropout;

use super::{Scalar, dot, stored, sum};

/// What attention depends on beside its values.
#[derive(Debug, Clone, Copy)]
pub struct Attention<'a> {
    /// Prefix sums of the sequence lengths. [B+1]
    pub cu_seqlens: &'a [u32],
    /// H
    pub heads: usize,
    /// C
    pub width: usize,
    /// On the probabilities.
    pub drop: Dropout,
    /// Of the batch, for dropout.
    pub step: u32,
    /// Where the values begin.
    pub first: Place,
}

/// Of what a batch has, the first row and head that are given; for dropout, which goes by a value's place in the batch.
#[derive(Debug, Clone, Copy, Default)]
pub struct Place {
    /// Packed row.
    pub row: u32,
    /// Head.
    pub head: u32,
}

/// The softmax of one query's scores.
struct Softmax<T> {
    /// Over the keys of its sequence. [L]
    probabilities: Vec<T>,
    lse: T,
    /// Dropout's multipliers. [L]
    keep: Vec<T>,
}

impl Attention<'_> {
    fn head_size(&self) -> usize {
        self.width / self.heads
    }

    /// q, k or v (`part` 0, 1, 2) of a packed row and a head: where it begins in qkv.
    fn at(&self, part: usize, row: usize, head: usize) -> usize {
        row * 3 * self.width + part * self.width + head * self.head_size()
    }

    fn slice<'v, T>(&self, qkv: &'v [T], part: usize, row: usize, head: usize) -> &'v [T] {
        &qkv[self.at(part, row, head)..][..self.head_size()]
    }

    /// Calls `f(query's row, head, rows of its sequence)` for each query and head.
    fn for_each_query(&self, mut f: impl FnMut(usize, usize, std::ops::Range<usize>)) {
        for ends in self.cu_seqlens.windows(2) {
            let keys = ends[0] as usize..ends[1] as usize;
            for head in 0..self.heads {
                keys.clone().for_each(|query| f(query, head, keys.clone()));
            }
        }
    }

    fn softmax<T: Scalar>(&self, qkv: &[T], query: usize, head: usize, keys: std::ops::Range<usize>) -> Softmax<T> {
        let q = self.slice(qkv, 0, query, head);
        let root = T::of(self.head_size() as f64).sqrt();
        let scores: Vec<T> = keys.clone().map(|key| dot(q, self.slice(qkv, 1, key, head)) / root).collect();
        let max = scores.iter().copied().fold(scores[0], |a, b| if b > a { b } else { a });
        let lse = max + sum(scores.iter().map(|&s| (s - max).exp())).ln();
        let (in_batch, row) = (self.first.head + head as u32, self.first.row + query as u32);
        let keep = |j: usize| self.drop.keep8_head(self.step, in_batch, row, j as u32 / 8)[j % 8];
        Softmax {
            probabilities: scores.iter().map(|&s| (s - lse).exp()).collect(),
            lse,
            keep: (0..keys.len()).map(|j| T::of(f64::from(keep(j)))).collect(),
        }
    }

    /// (ctx [N, C], lse [N, H]), ctx = keep ∘ softmax(q kᵀ / √D) v
    pub fn forward<T: Scalar>(&self, qkv: &[T]) -> (Vec<T>, Vec<T>) {
        let rows = qkv.len() / (3 * self.width);
        let (mut ctx, mut lse) = (vec![T::default(); rows * self.width], vec![T::default(); rows * self.heads]);
        self.for_each_query(|query, head, keys| {
            let softmax = self.softmax(qkv, query, head, keys.clone());
            lse[query * self.heads + head] = softmax.lse;
            let out = &mut ctx[query * self.width + head * self.head_size()..][..self.head_size()];
            out.copy_from_slice(&self.mix(&softmax, qkv, head, keys));
        });
        (ctx, lse)
    }

    /// Σ_keys keep p v, for one query and head. [D]
    fn mix<T: Scalar>(&self, softmax: &Softmax<T>, qkv: &[T], head: usize, keys: std::ops::Range<usize>) -> Vec<T> {
        let mut out = vec![T::default(); self.head_size()];
        for (j, key) in keys.enumerate() {
            let p = (softmax.keep[j] * softmax.probabilities[j]).stored();
            out.iter_mut().zip(self.slice(qkv, 2, key, head)).for_each(|(out, &v)| *out += p * v);
        }
        stored(out)
    }

    /// d_qkv [N, 3C] from d_ctx [N, C]
    pub fn backward<T: Scalar>(&self, qkv: &[T], d_ctx: &[T]) -> Vec<T> {
        let mut d_qkv = vec![T::default(); qkv.len()];
        let root = T::of(self.head_size() as f64).sqrt();
        self.for_each_query(|query, head, keys| {
            let softmax = self.softmax(qkv, query, head, keys.clone());
            let d_out = &d_ctx[query * self.width + head * self.head_size()..][..self.head_size()];
            // Σ p d_p, by way of the output.
            let delta = dot(d_out, &self.mix(&softmax, qkv, head, keys.clone()));
            let Softmax { probabilities: p, keep, .. } = softmax;
            let d_p: Vec<T> =
                keys.clone().zip(&keep).map(|(key, &k)| k * dot(d_out, self.slice(qkv, 2, key, head))).collect();
            for (j, key) in keys.enumerate() {
                let d_score = (p[j] * (d_p[j] - delta) / root).stored();
                let dropped = (keep[j] * p[j]).stored();
                let [d_q, d_k, d_v] = [self.at(0, query, head), self.at(1, key, head), self.at(2, key, head)];
                for c in 0..self.head_size() {
                    d_qkv[d_q + c] += d_score * qkv[d_k + c];
                    d_qkv[d_k + c] += d_score * qkv[d_q + c];
                    d_qkv[d_v + c] += dropped * d_out[c];
                }
            }
        });
        d_qkv
    }

    /// The largest of the terms p d_p q / √D and p d_p k / √D, d_p = keep d_ctx · v being a sum of terms itself. From
    /// them and as large ones with the opposite sign come d_k and d_q: in a sequence of one token they cancel
    /// altogether, and what is left is the rounding of d_p.
    pub fn largest_term(&self, qkv: &[f64], d_ctx: &[f64]) -> f64 {
        let (mut largest, root) = (0.0f64, (self.head_size() as f64).sqrt());
        self.for_each_query(|query, head, keys| {
            let Softmax { probabilities: p, keep, .. } = self.softmax(qkv, query, head, keys.clone());
            let d_out = &d_ctx[query * self.width + head * self.head_size()..][..self.head_size()];
            for (j, key) in keys.enumerate() {
                let products = d_out.iter().zip(self.slice(qkv, 2, key, head)).map(|(d, v)| (d * v).abs());
                let d_p = p[j] * keep[j] * sum(products) / root;
                let both = self.slice(qkv, 0, query, head).iter().chain(self.slice(qkv, 1, key, head));
                largest = both.fold(largest, |a, x| a.max((d_p * x).abs()));
            }
        });
        largest
    }
}
