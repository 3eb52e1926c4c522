//! Shapes as large as real ones: grids of many waves, sums over tens of thousands of rows, matrices of more than 2³¹ bytes.
//!
//! The ops run in full, on the cases of `ops`. What the reference works out of a product is a sample, some rows, or some rows
//! and columns: a sample of a product is the product of samples. The rest must be numbers, and the same bits in every run.

mod attention;
mod feed_forward;
mod linear;
mod product;
mod sample;
mod vocabulary;

use super::harness::Suite;
use super::ops::{embedding, layernorm, optimizer, rows};
use crate::backend::Backend;

/// How large.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scale {
    /// N of a batch of mixed lengths.
    pub tokens: usize,
    /// Rows that a product sums over.
    pub rows: usize,
    /// Rows of matrices [rows, F] of more than 2³¹ bytes.
    pub beyond: usize,
    /// C
    pub width: usize,
    /// H
    pub heads: usize,
    /// F
    pub feed_forward: usize,
    /// V
    pub vocab: usize,
}

impl Scale {
    /// As of distilbert-base. It takes some 7 GB of a device's memory.
    pub const BASE: Scale = Scale {
        tokens: 16_384,
        rows: 65_536,
        beyond: 352_256,
        width: 768,
        heads: 12,
        feed_forward: 3072,
        vocab: 30_522,
    };

    /// Sequences of mixed lengths, 512 the longest, of so many tokens together.
    fn lengths(tokens: usize) -> Vec<usize> {
        let mut left = tokens;
        let cut = [512, 37, 300, 128, 1, 511, 64, 231, 17, 402].into_iter().cycle().map_while(|length| {
            let length = length.min(left);
            left -= length;
            (length > 0).then_some(length)
        });
        cut.collect()
    }
}

/// All cases.
pub fn suite<B: Backend + Sync>(suite: &mut Suite<'_, B>) {
    let Some(scale) = suite.scale() else { return };
    let lengths = Scale::lengths(scale.tokens);
    suite.check(embedding::large(&lengths, scale.width, scale.vocab));
    suite.check(layernorm::large(&lengths, scale.width));
    rows::large(&lengths, scale.width).into_iter().for_each(|case| suite.check(case));
    suite.check(linear::summed_over_rows(&scale));
    suite.check(feed_forward::of_a_batch(&scale));
    suite.check(feed_forward::beyond(&scale));
    suite.check(attention::of_a_batch(&scale, &lengths));
    suite.check(vocabulary::of_a_batch(&scale, &lengths));
    suite.check(optimizer::large_norm(scale.tokens * 300));
    suite.check(optimizer::large_update(&[scale.vocab * scale.width, scale.width]));
}
