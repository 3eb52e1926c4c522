//! The innermost product: a tile of R rows by one panel of two vectors, held in registers over the
//! whole depth. With 32 registers of 16 lanes that is 12 × 32 values of c, fed by two loads and 12
//! broadcasts per 24 multiply-adds, so it runs at the speed of the multipliers.

use pulp::Simd;

use super::Start;

/// Vectors in a panel.
pub const PANEL_VECTORS: usize = 2;

/// The left operand, R rows at a time.
pub trait Lhs<const R: usize> {
    /// Rows t·R .. (t + 1)·R. Rows beyond the last may be anything.
    fn tile(&self, t: usize) -> impl Tile<R>;
}

/// R rows of the left operand. An index rather than an iterator: what an adapter's `next` does not
/// get inlined for is lost here.
pub trait Tile<const R: usize> {
    /// The R values of one step of the depth.
    fn step(&self, p: usize) -> [f32; R];
}

/// Tiles laid out as [tile][depth][R].
#[derive(Debug, Clone, Copy)]
pub struct PackedRows<'a> {
    /// The tiles.
    pub data: &'a [f32],
    /// Length of the sum.
    pub depth: usize,
}

impl<const R: usize> Lhs<R> for PackedRows<'_> {
    #[inline(always)]
    fn tile(&self, t: usize) -> impl Tile<R> {
        self.data[t * R * self.depth..][..R * self.depth].as_chunks::<R>().0
    }
}

impl<const R: usize> Tile<R> for &[[f32; R]] {
    #[inline(always)]
    fn step(&self, p: usize) -> [f32; R] {
        self[p]
    }
}

/// Rows read where they are.
#[derive(Debug, Clone, Copy)]
pub struct PlainRows<'a> {
    /// Row i begins at i × stride.
    pub data: &'a [f32],
    /// Distance between rows.
    pub stride: usize,
    /// Rows.
    pub rows: usize,
    /// Length of the sum.
    pub depth: usize,
}

impl<const R: usize> Lhs<R> for PlainRows<'_> {
    #[inline(always)]
    fn tile(&self, t: usize) -> impl Tile<R> {
        let mut rows: [&[f32]; R] = [&[]; R];
        for (i, row) in rows.iter_mut().enumerate() {
            // Beyond the last row the last one stands in.
            *row = &self.data[(t * R + i).min(self.rows - 1) * self.stride..][..self.depth];
        }
        rows
    }
}

impl<const R: usize> Tile<R> for [&[f32]; R] {
    #[inline(always)]
    fn step(&self, p: usize) -> [f32; R] {
        let mut values = [0.0; R];
        for (value, row) in values.iter_mut().zip(self) {
            *value = row[p];
        }
        values
    }
}

/// Rows that are columns of a row-major matrix, read where they are.
#[derive(Debug, Clone, Copy)]
pub struct PlainColumns<'a> {
    /// Element (row, step of the depth) lies at step × stride + row; the stride holds whole tiles.
    pub data: &'a [f32],
    /// Distance between steps.
    pub stride: usize,
}

impl<const R: usize> Lhs<R> for PlainColumns<'_> {
    #[inline(always)]
    fn tile(&self, t: usize) -> impl Tile<R> {
        PlainColumns { data: &self.data[t * R..], stride: self.stride }
    }
}

impl<const R: usize> Tile<R> for PlainColumns<'_> {
    #[inline(always)]
    fn step(&self, p: usize) -> [f32; R] {
        let mut values = [0.0; R];
        values.copy_from_slice(&self.data[p * self.stride..][..R]);
        values
    }
}

/// The right operand, packed: panels of 2 vectors of columns, each as [depth][columns].
#[derive(Debug, Clone, Copy)]
pub struct Panels<'a> {
    /// The panels, one after another.
    pub data: &'a [f32],
    /// Length of the sum.
    pub depth: usize,
    /// Columns; the last panel is filled up with zeros.
    pub cols: usize,
}

/// Where a block's product goes.
#[derive(Debug)]
pub struct Target<'a> {
    /// [rows, columns of the right operand]
    pub c: &'a mut [f32],
    /// Distance between rows.
    pub stride: usize,
    /// Rows.
    pub rows: usize,
    /// What c starts from.
    pub start: Start,
}

/// c (+)= lhs · rhs for one block of rows, on one thread.
#[inline(always)]
pub fn multiply<S: Simd, const R: usize>(simd: S, lhs: &impl Lhs<R>, rhs: Panels<'_>, target: Target<'_>) {
    multiply_then::<S, R>(
        simd,
        lhs,
        rhs,
        target,
        #[inline(always)]
        |_, _, _| (),
    );
}

/// [`multiply`], and what follows.
/// `finish(row, col, c_part)` sees each row of each finished tile while it is in the cache.
#[inline(always)]
pub fn multiply_then<S: Simd, const R: usize>(
    simd: S, lhs: &impl Lhs<R>, rhs: Panels<'_>, target: Target<'_>, mut finish: impl FnMut(usize, usize, &mut [f32]),
) {
    let Target { c, stride, rows, start } = target;
    let width = PANEL_VECTORS * S::F32_LANES;
    let panels = rhs.cols.div_ceil(width);
    for first in (0..panels).step_by(PANELS_AT_ONCE) {
        for t in 0..rows.div_ceil(R) {
            let (top, height) = (t * R, R.min(rows - t * R));
            let lhs = lhs.tile(t);
            for j in first..panels.min(first + PANELS_AT_ONCE) {
                let (left, cols) = (j * width, width.min(rhs.cols - j * width));
                let panel = S::as_simd_f32s(&rhs.data[j * width * rhs.depth..][..width * rhs.depth]).0;
                let panel = panel.as_chunks::<PANEL_VECTORS>().0;
                let mut sums = [[simd.splat_f32s(0.0); PANEL_VECTORS]; R];
                if start == Start::Add {
                    for (i, sum) in sums.iter_mut().enumerate().take(height) {
                        *sum = load(simd, &c[(top + i) * stride + left..][..cols]);
                    }
                }
                tile(simd, &lhs, panel, &mut sums);
                for (i, sum) in sums.iter().enumerate().take(height) {
                    let part = &mut c[(top + i) * stride + left..][..cols];
                    store(simd, *sum, part);
                    finish(top + i, left, part);
                }
            }
        }
    }
}

/// Panels that every tile of a block passes over before the next ones are taken up: as many as stay
/// in the L2 cache (4 × 32 columns × a depth of 768 = 393 KB).
const PANELS_AT_ONCE: usize = 4;

#[inline(always)]
fn tile<S: Simd, const R: usize>(
    simd: S, lhs: &impl Tile<R>, panel: &[[S::f32s; PANEL_VECTORS]], sums: &mut [[S::f32s; PANEL_VECTORS]; R],
) {
    // A copy, so that the sums live in registers.
    let mut s = *sums;
    for (p, [b0, b1]) in panel.iter().enumerate() {
        let a = lhs.step(p);
        for i in 0..R {
            let a = simd.splat_f32s(a[i]);
            s[i] = [simd.mul_add_e_f32s(a, *b0, s[i][0]), simd.mul_add_e_f32s(a, *b1, s[i][1])];
        }
    }
    *sums = s;
}

#[inline(always)]
fn load<S: Simd>(simd: S, part: &[f32]) -> [S::f32s; PANEL_VECTORS] {
    let (full, tail) = S::as_simd_f32s(part);
    match full {
        [a, b] => [*a, *b],
        [a] => [*a, simd.partial_load_f32s(tail)],
        _ => [simd.partial_load_f32s(tail), simd.splat_f32s(0.0)],
    }
}

#[inline(always)]
fn store<S: Simd>(simd: S, sum: [S::f32s; PANEL_VECTORS], part: &mut [f32]) {
    let (full, tail) = S::as_mut_simd_f32s(part);
    match full {
        [a, b] => [*a, *b] = sum,
        [a] => {
            *a = sum[0];
            simd.partial_store_f32s(tail, sum[1]);
        }
        _ => simd.partial_store_f32s(tail, sum[0]),
    }
}
