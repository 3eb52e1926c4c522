//! c (+)= a · b in f32, with what follows the product done while c is still in the cache.
//!
//! Plan: the depth is cut into slices of at most [`DEPTH`]; for each slice b is packed into panels,
//! once, by all threads; then each block of rows of c is a task of its own that runs over all
//! panels. Blocks depend on the shape alone and every value of c is one chain of multiply-adds in
//! the order of the depth, so the bits do not depend on the number of threads.
//!
//! Written by hand rather than taken from the `gemm` crate, whose speed it has (95 % of what the
//! multipliers can do, on two AVX-512 cores at this model's shapes): what follows a product (bias,
//! GELU, its backward, column sums) costs no pass over memory, attention shares the kernel without
//! its overhead at small sizes, and there is no `unsafe` in it.

mod kernel;
pub mod pack;

use std::cell::Cell;
use std::ops::Range;

use pulp::{Simd, WithSimd};
use rayon::prelude::*;

pub use kernel::{PANEL_VECTORS, PackedRows, Panels, PlainColumns, PlainRows, Target, multiply, multiply_then};
pub use pack::Cut;

use super::memory::Buffer;
use super::simd::{Vectors, dispatch};
use crate::backend::Result;

/// Longest slice of the depth: panels of it stay in the L2 cache.
const DEPTH: usize = 768;

/// What c starts from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// c = a b
    Zero,
    /// c += a b
    Add,
}

/// Which index of a matrix is contiguous.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Element (i, j) lies at i × stride + j.
    RowMajor,
    /// Element (i, j) lies at j × stride + i.
    ColMajor,
}

/// An operand.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    /// The values.
    pub data: &'a [f32],
    /// Distance between rows, or between columns.
    pub stride: usize,
    /// Which of the two.
    pub order: Order,
}

impl<'a> View<'a> {
    /// A row-major matrix whose rows are `stride` apart.
    pub fn rows(data: &'a [f32], stride: usize) -> Self {
        View { data, stride, order: Order::RowMajor }
    }

    /// What is left of a row-major matrix from row `row` on.
    pub fn from_row(&self, row: usize) -> Self {
        debug_assert_eq!(self.order, Order::RowMajor);
        View { data: &self.data[row * self.stride..], ..*self }
    }

    /// The transpose of a row-major matrix whose rows are `stride` apart.
    pub fn transposed(data: &'a [f32], stride: usize) -> Self {
        View { data, stride, order: Order::ColMajor }
    }
}

/// What is done with a block of rows of c when its sums are complete.
pub trait Finish: Send {
    /// `c` is the part of `row` (of the block) from column `col` on that was just completed.
    fn part<S: Simd>(&mut self, simd: S, row: usize, col: usize, c: &mut [f32]);
    /// All rows of the block are complete.
    fn block<S: Simd>(&mut self, _simd: S, _c: &mut [f32]) {}
}

/// Where a product goes.
pub trait Output {
    /// What is done with a block.
    type Finish<'a>: Finish
    where
        Self: 'a;
    /// c and what else is written, in blocks of `rows` rows.
    fn blocks(&mut self, rows: usize) -> impl IndexedParallelIterator<Item = (&mut [f32], Self::Finish<'_>)>;
}

/// Rows of c in a task: enough to use panels often, few enough to share out evenly.
pub fn block_rows(rows: usize) -> usize {
    match rows {
        1536.. => 96,
        384.. => 48,
        _ => 24,
    }
}

/// c [rows, cols] (+)= a [rows, depth] · b [depth, cols]
#[derive(Debug, Clone, Copy)]
pub struct Product<'a> {
    /// Of a and c.
    pub rows: usize,
    /// Of b and c.
    pub cols: usize,
    /// Of the sum.
    pub depth: usize,
    /// [rows, depth]
    pub a: View<'a>,
    /// [depth, cols]
    pub b: View<'a>,
    /// What c starts from.
    pub start: Start,
}

impl Product<'_> {
    /// Computes it and hands its blocks to `out`. `panels` is scratch memory.
    ///
    /// # Errors
    ///
    /// If there is no memory for packed panels.
    pub fn run(&self, panels: &mut Buffer, out: &mut impl Output) -> Result<()> {
        let Product { rows, cols, depth, .. } = *self;
        if rows == 0 || cols == 0 {
            return Ok(());
        }
        let width = PANEL_VECTORS * Vectors::detect().lanes;
        let slices = depth.div_ceil(DEPTH).max(1);
        let slice = depth.div_ceil(slices);
        let packed = panels.scratch(cols.div_ceil(width) * width * slice)?;
        let height = block_rows(rows);
        for n in 0..slices {
            let depth = (n * slice).min(depth)..((n + 1) * slice).min(depth);
            let packed = &mut packed[..cols.div_ceil(width) * width * depth.len()];
            self.pack(&depth, width, packed);
            let rhs = Panels { data: packed, depth: depth.len(), cols };
            let start = if n == 0 { self.start } else { Start::Add };
            let last = n + 1 == slices;
            out.blocks(height).enumerate().for_each(|(i, (c, finish))| {
                let rows = i * height..rows.min((i + 1) * height);
                dispatch(Block {
                    a: self.a,
                    rows,
                    depth: depth.clone(),
                    rhs,
                    c,
                    start,
                    finish: last.then_some(finish),
                });
            });
        }
        Ok(())
    }

    /// Packs a slice of b's depth.
    fn pack(&self, depth: &Range<usize>, width: usize, packed: &mut [f32]) {
        /// Panels packed by one task: together they read a row's 1 KB at a time.
        const PANELS: usize = 8;
        let chunks = packed.par_chunks_mut(PANELS * width * depth.len().max(1));
        chunks.enumerate().for_each(|(i, panels)| {
            let cols = i * PANELS * width..self.cols.min((i + 1) * PANELS * width);
            dispatch(
                #[inline(always)]
                || pack::panels(self.b, Cut { depth: depth.clone(), cols, width }, panels),
            );
        });
    }
}

thread_local! {
    /// Packed rows of the block at hand.
    static TILES: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

struct Block<'a, F> {
    a: View<'a>,
    rows: Range<usize>,
    depth: Range<usize>,
    rhs: Panels<'a>,
    c: &'a mut [f32],
    start: Start,
    finish: Option<F>,
}

impl<F: Finish> WithSimd for Block<'_, F> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        // 16 registers hold a tile of 6 rows by 2 vectors, 32 one of 12.
        if S::REGISTER_COUNT >= 32 { self.run::<S, 12>(simd) } else { self.run::<S, 6>(simd) }
    }
}

impl<F: Finish> Block<'_, F> {
    #[inline(always)]
    fn run<S: Simd, const R: usize>(mut self, simd: S) {
        let (rows, depth, stride) = (self.rows.len(), self.depth.len(), self.rhs.cols);
        let mut finish = self.finish.take();
        let target = Target { c: &mut *self.c, stride, rows, start: self.start };
        match self.a.order {
            Order::RowMajor => {
                let data = &self.a.data[self.rows.start * self.a.stride + self.depth.start..];
                let lhs = PlainRows { data, stride: self.a.stride, rows, depth };
                multiply_then::<S, R>(
                    simd,
                    &lhs,
                    self.rhs,
                    target,
                    #[inline(always)]
                    |row, col, c| part(simd, &mut finish, row, col, c),
                );
            }
            Order::ColMajor => {
                let mut tiles = TILES.take();
                tiles.resize(tiles.len().max(rows.div_ceil(R) * R * depth), 0.0);
                pack::tiles::<R>(self.a, self.rows, self.depth, &mut tiles);
                let lhs = PackedRows { data: &tiles, depth };
                multiply_then::<S, R>(
                    simd,
                    &lhs,
                    self.rhs,
                    target,
                    #[inline(always)]
                    |row, col, c| part(simd, &mut finish, row, col, c),
                );
                TILES.set(tiles);
            }
        }
        if let Some(f) = &mut finish {
            f.block(simd, self.c);
        }
    }
}

#[inline(always)]
fn part<S: Simd>(simd: S, finish: &mut Option<impl Finish>, row: usize, col: usize, c: &mut [f32]) {
    if let Some(finish) = finish {
        finish.part(simd, row, col, c);
    }
}

/// c and nothing else.
#[derive(Debug)]
pub struct Plain<'a> {
    /// [rows, cols]
    pub c: &'a mut [f32],
    /// Columns of c.
    pub cols: usize,
}

/// Nothing follows.
#[derive(Debug)]
pub struct Nothing;

impl Finish for Nothing {
    #[inline(always)]
    fn part<S: Simd>(&mut self, _: S, _: usize, _: usize, _: &mut [f32]) {}
}

impl Output for Plain<'_> {
    type Finish<'a>
        = Nothing
    where
        Self: 'a;
    fn blocks(&mut self, rows: usize) -> impl IndexedParallelIterator<Item = (&mut [f32], Nothing)> {
        self.c.par_chunks_mut(rows * self.cols).map(|c| (c, Nothing))
    }
}
