//! Rows picked out of a packed batch, and the classifier's activation.

use crate::backend::{BatchView, Pick};

use super::Scalar;

/// The packed rows of a pick; `None` for an empty sequence, which has no first row.
pub fn picked(batch: &BatchView<'_>, pick: Pick) -> Vec<Option<usize>> {
    match pick {
        Pick::Masked => batch.masked_rows.iter().map(|&row| Some(row as usize)).collect(),
        Pick::First => {
            batch.cu_seqlens.windows(2).map(|ends| (ends[0] < ends[1]).then_some(ends[0] as usize)).collect()
        }
    }
}

/// y[i] = x[rows[i]], or 0 where there is no such row
pub fn gather<T: Scalar>(x: &[T], rows: &[Option<usize>], width: usize) -> Vec<T> {
    let row = |row: &Option<usize>| row.map_or(vec![T::default(); width], |row| x[row * width..][..width].to_vec());
    rows.iter().flat_map(row).collect()
}

/// d_x = 0, then d_x[rows[i]] = d_y[i] where there is such a row.  d_x [tokens, C]
pub fn scatter<T: Scalar>(d_y: &[T], rows: &[Option<usize>], tokens: usize, width: usize) -> Vec<T> {
    let mut d_x = vec![T::default(); tokens * width];
    for (row, d_y) in rows.iter().zip(d_y.chunks(width)) {
        if let Some(row) = row {
            d_x[row * width..][..width].copy_from_slice(d_y);
        }
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
