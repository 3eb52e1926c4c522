//! kernels/gelu.cu: the erf GELU and its backward pass, apart from any product.

use super::super::device::{Arg, Device, LiveRows, Region};
use super::super::kernel::{Family, Kernel, Limits};
use super::super::memory::{Flat, Mat};
use super::super::{CudaBackend, Scratch};
use super::rows::{add_partials, kernel_width};
use crate::backend::shape::dim;
use crate::backend::{Result, Span};

/// The kernels.
pub static FAMILY: Family = Family {
    name: "gelu",
    source: include_str!("../../../../kernels/gelu.cu"),
    only: None,
    constants: &[("WIDTH", &[768, 384, 3072])],
    kernels: &[
        Kernel {
            name: "gelu_backward",
            computes: "d = d ∘ gelu'(pre);  partial sums for d_bias",
            threads: THREADS as u32,
            shared_bytes: SHARED_BYTES as u32,
            limits: Limits::registers(64),
        },
        Kernel {
            name: "gelu_forward",
            computes: "y = gelu(pre)",
            threads: THREADS as u32,
            shared_bytes: 0,
            limits: Limits::registers(40),
        },
    ],
};

const THREADS: usize = 256;

/// Eight column sums of each thread.
const SHARED_BYTES: usize = THREADS * 8 * size_of::<f32>();

/// `BLOCK_ROWS` of gelu.cu: rows of a block, and to a row of partial sums.
const BLOCK_ROWS: usize = 64;

/// Columns of a block: 256, 128 or 64, as the width has them.
fn block_columns(cols: usize) -> usize {
    [256, 128].into_iter().find(|&block| cols.is_multiple_of(block)).unwrap_or(64)
}

/// [`crate::backend::Backend::gelu_backward`]
pub fn gelu_backward<D: Device>(be: &CudaBackend<D>, pre: &Mat, bias: Span, grads: &mut Flat, d: &mut Mat) -> Result<()>
where
    D::Buffer: 'static,
{
    const OP: &str = "gelu_backward";
    let cols = dim("F", pre.cols());
    d.expect(OP, "d", dim("R", pre.rows()), cols)?;
    let d_bias = grads.span(OP, "bias", bias, cols)?;
    let width = kernel_width(OP, "pre", pre)?;
    let blocks = pre.capacity().div_ceil(BLOCK_ROWS);
    let partials = be.scratch(Scratch::Partials, blocks * cols.size * size_of::<f32>())?;
    let args = [Arg::Read(pre.region()), Arg::Update(d.region()), Arg::Write(partials), be.rows_of(pre)];
    let grid = [cols.size / block_columns(cols.size), blocks, 1];
    be.launch(&FAMILY, &[width], OP, grid, SHARED_BYTES, &args)?;
    add_partials(be, partials, d_bias, cols.size, be.live(pre.kind(), pre.capacity()), BLOCK_ROWS)
}

/// y = gelu(pre).  pre, y [R, cols] bf16
pub(super) fn forward_of<D: Device>(
    be: &CudaBackend<D>, pre: Region, y: Region, cols: usize, rows: LiveRows,
) -> Result<()>
where
    D::Buffer: 'static,
{
    let blocks = (rows.capacity as usize * cols).div_ceil(8 * THREADS);
    let args = [Arg::Read(pre), Arg::Write(y), Arg::Rows(rows)];
    be.launch(&FAMILY, &[cols as u32], "gelu_forward", [blocks, 1, 1], 0, &args)
}
