//! Rows picked out of a packed batch, and the classifier's activation.

use crate::backend::{BatchView, Pick};

use super::Scalar;

/// The packed rows of a pick.
pub fn picked(batch: &BatchView<'_>, pick: Pick) -> Vec<usize> {
    let rows = match pick {
        Pick::Masked => batch.masked_rows,
        Pick::First => &batch.cu_seqlens[..batch.cu_seqlens.len() - 1],
    };
    rows.iter().map(|&row| row as usize).collect()
}

/// y[i] = x[rows[i]]
pub fn gather<T: Scalar>(x: &[T], rows: &[usize], width: usize) -> Vec<T> {
    rows.iter().flat_map(|&row| x[row * width..][..width].to_vec()).collect()
}

/// d_x = 0, then d_x[rows[i]] = d_y[i].  d_x [tokens, C]
pub fn scatter<T: Scalar>(d_y: &[T], rows: &[usize], tokens: usize, width: usize) -> Vec<T> {
    let mut d_x = vec![T::default(); tokens * width];
    for (&row, d_y) in rows.iter().zip(d_y.chunks(width)) {
        d_x[row * width..][..width].copy_from_slice(d_y);
    }
    d_x
}

/// keep ∘ relu(x)
pub fn relu_dropout<T: Scalar>(x: &[T], keep: &[T]) -> Vec<T> {
    x.iter().zip(keep).map(|(&x, &k)| if x > T::default() { k * x } else { T::default() }).collect()
}

/// keep ∘ [x > 0] ∘ d
pub fn relu_dropout_backward<T: Scalar>(x: &[T], keep: &[T], d: &[T]) -> Vec<T> {
    (0..x.len()).map(|i| if x[i] > T::default() { keep[i] * d[i] } else { T::default() }).collect()
}
