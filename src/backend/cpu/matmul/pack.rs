//! Copies of operands in the order the kernel reads them.

use std::ops::Range;

use super::{Order, View};

/// Which part of a right operand is packed, and into panels of what width.
#[derive(Debug, Clone)]
pub struct Cut {
    /// Rows.
    pub depth: Range<usize>,
    /// Columns; what the panels hold beyond them is zero.
    pub cols: Range<usize>,
    /// Columns of a panel.
    pub width: usize,
}

/// Packs as [panel][depth][width]. `panels` holds whole panels, enough for the columns.
#[inline(always)]
pub fn panels(b: View<'_>, cut: Cut, panels: &mut [f32]) {
    match b.order {
        Order::RowMajor => panels_from_rows(b, cut, panels),
        Order::ColMajor => panels_from_columns(b, cut, panels),
    }
}

/// Row by row, so that a long row is read in one go.
#[inline(always)]
fn panels_from_rows(b: View<'_>, Cut { depth, cols, width }: Cut, panels: &mut [f32]) {
    let stride = depth.len() * width;
    for (p, row) in depth.enumerate() {
        let row = &b.data[row * b.stride..][cols.clone()];
        for (panel, part) in panels.chunks_exact_mut(stride).zip(row.chunks(width)) {
            let to = &mut panel[p * width..][..width];
            to[..part.len()].copy_from_slice(part);
            to[part.len()..].fill(0.0);
        }
    }
}

/// Transposes: each column of `b` is contiguous.
#[inline(always)]
fn panels_from_columns(b: View<'_>, Cut { depth, cols, width }: Cut, panels: &mut [f32]) {
    for (j, panel) in panels.chunks_exact_mut(depth.len() * width).enumerate() {
        for i in 0..width {
            let col = cols.start + j * width + i;
            if col < cols.end {
                let column = &b.data[col * b.stride..][depth.clone()];
                for (to, &x) in panel.chunks_exact_mut(width).zip(column) {
                    to[i] = x;
                }
            } else {
                panel.chunks_exact_mut(width).for_each(|to| to[i] = 0.0);
            }
        }
    }
}

/// Packs rows `rows` of a column-major `a`, columns `depth`, as tiles of R rows: [tile][depth][R].
/// Rows beyond the last are zero.
#[inline(always)]
pub fn tiles<const R: usize>(a: View<'_>, rows: Range<usize>, depth: Range<usize>, tiles: &mut [f32]) {
    let stride = depth.len() * R;
    for (p, col) in depth.enumerate() {
        let column = &a.data[col * a.stride..][rows.clone()];
        let (full, tail) = column.as_chunks::<R>();
        for (tile, part) in tiles.chunks_exact_mut(stride).zip(full) {
            tile[p * R..][..R].copy_from_slice(part);
        }
        if !tail.is_empty() {
            let to = &mut tiles[full.len() * stride + p * R..][..R];
            to[..tail.len()].copy_from_slice(tail);
            to[tail.len()..].fill(0.0);
        }
    }
}
