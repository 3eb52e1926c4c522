//! Where values lie: page-aligned anonymous memory, matrices with a live row count, flat buffers.

use std::ops::{Deref, DerefMut};

use memmap2::MmapMut;

use crate::backend::shape::{Dim, check_span, misfit};
use crate::backend::{Arena, Capacity, Error, Planner, Result, Rows, Span};

/// Buffers at least this long are worth asking the kernel for huge pages.
const HUGE_PAGE_BYTES: usize = 2 << 20;

/// A run of f32 values, zero at first, that starts at a page boundary.
///
/// Pages of their own keep vector loads within cache lines, and huge ones make the strided reads of
/// matmul packing affordable (a column of a [4096, 3072] matrix touches 4096 small pages).
#[derive(Debug, Default)]
pub struct Buffer {
    map: Option<MmapMut>,
    len: usize,
}

impl Buffer {
    /// `len` zeros; `what` is for the error message.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfMemory`]
    pub fn zeros(len: usize, what: &'static str) -> Result<Buffer> {
        let bytes = len.saturating_mul(size_of::<f32>());
        if bytes == 0 {
            return Ok(Buffer::default());
        }
        let map = MmapMut::map_anon(bytes).map_err(|_| Error::OutOfMemory { what, needed: bytes })?;
        #[cfg(target_os = "linux")]
        if bytes >= HUGE_PAGE_BYTES {
            // A kernel without huge pages refuses; the buffer is as good without.
            let _ = map.advise(memmap2::Advice::HugePage);
        }
        Ok(Buffer { map: Some(map), len })
    }

    /// The first `len` values of scratch memory, which grows to hold them. What they are is left over from earlier.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfMemory`]
    pub fn scratch(&mut self, len: usize) -> Result<&mut [f32]> {
        if self.len < len {
            // Dropped first, so that old and new need not fit together.
            *self = Buffer::default();
            *self = Buffer::zeros(len, "scratch memory")?;
        }
        Ok(&mut self[..len])
    }
}

impl Deref for Buffer {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        match &self.map {
            Some(map) => &bytemuck::cast_slice(map)[..self.len],
            None => &[],
        }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        match &mut self.map {
            Some(map) => &mut bytemuck::cast_slice_mut(map)[..self.len],
            None => &mut [],
        }
    }
}

/// A row-major matrix of fixed capacity, of which the first rows are live. Statistics are one too.
#[derive(Debug)]
pub struct Mat {
    buffer: Buffer,
    capacity: usize,
    rows: usize,
    cols: usize,
}

impl Mat {
    fn zeros(capacity: usize, cols: usize) -> Result<Mat> {
        Ok(Mat { buffer: Buffer::zeros(capacity.saturating_mul(cols), "activations")?, capacity, rows: 0, cols })
    }

    /// Live rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The live rows, row-major.
    pub fn live(&self) -> &[f32] {
        &self.buffer[..self.rows * self.cols]
    }

    /// The live rows, row-major.
    pub fn live_mut(&mut self) -> &mut [f32] {
        &mut self.buffer[..self.rows * self.cols]
    }

    /// Checks that an input has the shape wanted, each dimension under its name.
    ///
    /// # Errors
    ///
    /// [`Error::Shape`]
    pub fn expect(&self, op: &'static str, what: &'static str, rows: Dim, cols: Dim) -> Result<()> {
        if (self.rows, self.cols) == (rows.size, cols.size) {
            Ok(())
        } else {
            Err(misfit(op, what, [self.rows, self.cols], [rows, cols]))
        }
    }

    /// Gives an output its live rows, after checking that it can hold them.
    ///
    /// # Errors
    ///
    /// [`Error::Shape`]
    pub fn prepare(&mut self, op: &'static str, what: &'static str, rows: Dim, cols: Dim) -> Result<()> {
        if rows.size > self.capacity || self.cols != cols.size {
            self.rows = self.capacity;
            return Err(misfit(op, what, [self.rows, self.cols], [rows, cols]));
        }
        self.rows = rows.size;
        Ok(())
    }
}

/// A flat buffer as long as the parameters: weights, gradients or moments.
#[derive(Debug)]
pub struct Flat {
    values: Buffer,
}

impl Flat {
    /// `len` zeros.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfMemory`]
    pub fn zeros(len: usize) -> Result<Flat> {
        Ok(Flat { values: Buffer::zeros(len, "parameters")? })
    }

    /// All of it.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// All of it.
    pub fn values_mut(&mut self) -> &mut [f32] {
        &mut self.values
    }

    /// The elements of a span, which must hold `len` of them.
    ///
    /// # Errors
    ///
    /// [`Error::Shape`]
    pub fn span(&self, op: &'static str, what: &'static str, span: Span, len: Dim) -> Result<&[f32]> {
        check_span(op, what, span, len, self.values.len())?;
        Ok(&self.values[span.range()])
    }

    /// The elements of a span, which must hold `len` of them.
    ///
    /// # Errors
    ///
    /// [`Error::Shape`]
    pub fn span_mut(&mut self, op: &'static str, what: &'static str, span: Span, len: Dim) -> Result<&mut [f32]> {
        check_span(op, what, span, len, self.values.len())?;
        Ok(&mut self.values[span.range()])
    }
}

/// Hands out matrices for the capacities planned.
#[derive(Debug)]
pub struct CpuArena {
    capacity: Capacity,
}

impl CpuArena {
    /// Checks that what was planned can be had, all at once.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfMemory`]
    pub fn new(plan: &Planner) -> Result<CpuArena> {
        // Beyond what a number holds is beyond any memory.
        let size = |&(rows, cols): &(Rows, usize)| plan.capacity.of(rows).saturating_mul(cols);
        let elements = plan.mats.iter().chain(&plan.stats).map(size).fold(0, usize::saturating_add);
        Buffer::zeros(elements, "activations")?;
        Ok(CpuArena { capacity: plan.capacity })
    }
}

impl Arena for CpuArena {
    type Mat = Mat;
    type Stats = Mat;

    /// Should memory have run out since the plan was made, the matrix holds no rows, and the first op to write it says so.
    fn mat(&mut self, rows: Rows, cols: usize) -> Mat {
        Mat::zeros(self.capacity.of(rows), cols).unwrap_or(Mat {
            buffer: Buffer::default(),
            capacity: 0,
            rows: 0,
            cols,
        })
    }

    fn stats(&mut self, rows: Rows, cols: usize) -> Mat {
        self.mat(rows, cols)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_that_no_number_holds_are_out_of_memory() {
        for tokens in [1 << 40, 1 << 60, 1 << 63, usize::MAX] {
            let mut plan = Planner::new(Capacity { tokens, sequences: tokens, masked: 0 });
            plan.mat(Rows::Tokens, 768);
            plan.mat(Rows::Sequences, 1 << 20);
            plan.stats(Rows::Tokens, 2);
            assert!(matches!(CpuArena::new(&plan), Err(Error::OutOfMemory { .. })), "{tokens} tokens");
            assert!(matches!(Mat::zeros(tokens, 1 << 20), Err(Error::OutOfMemory { .. })), "{tokens} tokens");
        }
    }
}
