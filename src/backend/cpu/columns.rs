//! Sums over rows, for the gradients of biases and LayerNorms.
//!
//! Each fixed-size chunk of rows sums into a row of its own ("partials"), side by side; the partials
//! are then added up in order. Neither depends on the number of threads.

use pulp::{Simd, WithSimd};

use super::simd::{self, dispatch};

/// Rows in a chunk of a row-parallel op: enough to amortise its partial sums, few enough to share out.
pub const CHUNK: usize = 64;

/// sums += Σ over the rows of `partials`, first to last. `partials` is used up.
pub fn add_partials(partials: &mut [f32], sums: &mut [f32]) {
    dispatch(AddPartials { partials, sums });
}

struct AddPartials<'a> {
    partials: &'a mut [f32],
    sums: &'a mut [f32],
}

impl WithSimd for AddPartials<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        if self.partials.is_empty() || self.sums.is_empty() {
            return;
        }
        let (total, rest) = self.partials.split_at_mut(self.sums.len());
        for row in rest.chunks_exact(self.sums.len()) {
            simd::add(simd, total, row);
        }
        // Added at once: `sums` may hold the gradients of earlier batches, far larger than one partial.
        simd::add(simd, self.sums, total);
    }
}
