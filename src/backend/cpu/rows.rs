//! Picking rows out of the packed batch and putting them back: the masked rows, or each sequence's first.
//!   x, d_x [N, C]   y, d_y [M, C] or [B, C]
//! Plan: rows are tasks; a picked row is copied whole.

use rayon::prelude::*;

use super::batch::Batch;
use super::memory::Mat;
use crate::backend::shape::{Dim, dim};
use crate::backend::{Pick, Result};

/// Rows that are too few to be worth a task of their own.
const ROWS_A_TASK: usize = 32;

fn picked(batch: &Batch, pick: Pick) -> Dim {
    dim(if pick == Pick::Masked { "M" } else { "B" }, batch.picked(pick).len())
}

/// [`crate::backend::Backend::gather_rows`]. An empty sequence has no first row: its row of y is 0.
pub fn gather_rows(x: &Mat, batch: &Batch, pick: Pick, y: &mut Mat) -> Result<()> {
    const OP: &str = "gather_rows";
    let cols = dim("C", x.cols());
    x.expect(OP, "x", dim("N", batch.tokens()), cols)?;
    y.prepare(OP, "y", picked(batch, pick), cols)?;
    let x = x.live();
    let rows = y.live_mut().par_chunks_mut(cols.size.max(1)).with_min_len(ROWS_A_TASK);
    rows.zip(source_rows(batch, pick)).for_each(|(y, row)| match row {
        Some(row) => y.copy_from_slice(&x[row * cols.size..][..cols.size]),
        None => y.fill(0.0),
    });
    Ok(())
}

/// [`crate::backend::Backend::scatter_rows`]. The gradient of an empty sequence's first row goes nowhere.
pub fn scatter_rows(d_y: &Mat, batch: &Batch, pick: Pick, d_x: &mut Mat) -> Result<()> {
    const OP: &str = "scatter_rows";
    let cols = dim("C", d_y.cols());
    d_y.expect(OP, "d_y", picked(batch, pick), cols)?;
    d_x.prepare(OP, "d_x", dim("N", batch.tokens()), cols)?;
    let d_x = d_x.live_mut();
    d_x.par_chunks_mut(ROWS_A_TASK * cols.size.max(1)).for_each(|rows| rows.fill(0.0));
    for (i, row) in batch.picked(pick).iter().enumerate().filter(|&(i, _)| !is_empty(batch, pick, i)) {
        d_x[*row as usize * cols.size..][..cols.size].copy_from_slice(&d_y.live()[i * cols.size..][..cols.size]);
    }
    Ok(())
}

fn source_rows(batch: &Batch, pick: Pick) -> impl IndexedParallelIterator<Item = Option<usize>> {
    let rows = batch.picked(pick);
    rows.par_iter().enumerate().map(move |(i, &row)| (!is_empty(batch, pick, i)).then_some(row as usize))
}

/// Whether the i-th pick is the first row of a sequence without rows.
fn is_empty(batch: &Batch, pick: Pick, i: usize) -> bool {
    pick == Pick::First && batch.rows_of(i).is_empty()
}
