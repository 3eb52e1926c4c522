//! kernels/layernorm.cu: dropout, residual and LayerNorm in one pass.

use super::super::CudaBackend;
use super::super::batch::Batch;
use super::super::device::{Arg, Block, Device};
use super::super::kernel::{Family, Kernel, Limits};
use super::super::memory::{Flat, Mat, Weights};
use super::rows::{NormGrads, NormPartials, add_norm_partials, kernel_width};
use crate::backend::shape::dim;
use crate::backend::{Dropout, Error, Norm, Result, Span};

/// The kernels.
pub static FAMILY: Family = Family {
    name: "layernorm",
    source: include_str!("../../../../kernels/layernorm.cu"),
    only: None,
    constants: &[("WIDTH", &[768, 384])],
    kernels: &[
        Kernel {
            name: "add_layernorm",
            computes: "sum = residual + keep ∘ branch;  y = LayerNorm(sum)",
            threads: 32 * FORWARD_WARPS as u32,
            shared_bytes: 0,
            limits: Limits::registers(72),
        },
        Kernel {
            name: "add_layernorm_backward",
            computes: "d = d_sum;  d_branch = keep ∘ d_sum;  partial sums for d_gamma, d_beta, d_bias",
            threads: 128,
            shared_bytes: BACKWARD_BYTES as u32,
            limits: Limits::registers(168),
        },
    ],
};

/// `FORWARD_WARPS` of layernorm.cu and embedding.cu: rows of a block.
pub(super) const FORWARD_WARPS: usize = 4;

/// The widest rows that the kernels of this file and of embedding.cu take: a warp's ring is 16 times as large.
const MOST_COLUMNS: usize = 3072;

/// Shared memory that no launch of a backward kernel goes beyond.
pub(super) const BACKWARD_BYTES: usize = 48 << 10;

/// `ROWS_A_WARP` of layernorm.cuh.
const ROWS_A_WARP: usize = 16;

/// A block of a backward kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BackwardBlock {
    /// Rows of it, and to a row of partial sums; `BACKWARD_ROWS` of layernorm.cuh.
    pub rows: usize,
    /// Its threads and shared memory.
    pub block: Block,
}

impl BackwardBlock {
    /// For rows of this width. The number of warps is `BACKWARD_WARPS` of layernorm.cuh.
    pub fn new(width: usize) -> BackwardBlock {
        let warps = match width {
            ..=896 => 4,
            897..=1728 => 2,
            _ => 1,
        };
        // γ, and for each warp a ring of six rows: three stages of two sources here, two of three in embedding.cu. The
        // warps' sums, at most three rows of f32 each, fit into the rings.
        let (gamma, ring) = (width * size_of::<f32>(), 6 * width * size_of::<u16>());
        let block = Block { threads: 32 * warps as u32, shared_bytes: gamma + warps * ring };
        BackwardBlock { rows: ROWS_A_WARP * warps, block }
    }
}

/// The width of rows that the kernels take: a multiple of 64, and not too wide for their shared memory.
pub(super) fn norm_width(op: &'static str, what: &'static str, mat: &Mat) -> Result<u32> {
    if mat.cols() <= MOST_COLUMNS {
        return kernel_width(op, what, mat);
    }
    let (got, expected) = (format!("[{}, {}]", mat.rows(), mat.cols()), format!("at most {MOST_COLUMNS} columns"));
    Err(Error::Shape { op, what, got, expected })
}

/// Sums that the backward pass leaves: for d_gamma, d_beta and d_bias.
const KINDS: usize = 3;

/// [`crate::backend::Backend::add_layernorm`]
#[allow(clippy::too_many_arguments)]
pub fn add_layernorm<D: Device>(
    be: &CudaBackend<D>, branch: &Mat, residual: Option<&Mat>, batch: &Batch, w: &Weights, norm: &Norm, drop: &Dropout,
    sum: &mut Mat, stats: &mut Mat, y: &mut Mat,
) -> Result<()>
where
    D::Buffer: 'static,
{
    const OP: &str = "add_layernorm";
    batch.check_current(OP, be.serial())?;
    let (rows, cols) = (dim("R", branch.rows()), dim("C", branch.cols()));
    if let Some(residual) = residual {
        residual.expect(OP, "residual", rows, cols)?;
    }
    let (gamma, beta) = (w.vector(OP, "gamma", norm.gamma, cols)?, w.vector(OP, "beta", norm.beta, cols)?);
    sum.prepare(OP, "sum", rows, cols)?;
    stats.prepare(OP, "stats", rows, dim("2", 2))?;
    y.prepare(OP, "y", rows, cols)?;
    let width = norm_width(OP, "branch", branch)?;
    let args = [
        Arg::Read(branch.region()),
        residual.map_or(Arg::Null, |residual| Arg::Read(residual.region())),
        Arg::Read(gamma),
        Arg::Read(beta),
        Arg::Write(sum.region()),
        Arg::Write(stats.region()),
        Arg::Write(y.region()),
        be.rows_of(branch),
        be.dropout(drop),
        Arg::F32(norm.epsilon),
    ];
    be.launch(&FAMILY, &[width], OP, [branch.capacity().div_ceil(FORWARD_WARPS), 1, 1], 0, &args)
}

/// [`crate::backend::Backend::add_layernorm_backward`]
#[allow(clippy::too_many_arguments)]
pub fn add_layernorm_backward<D: Device>(
    be: &CudaBackend<D>, d: &mut Mat, sum: &Mat, stats: &Mat, batch: &Batch, w: &Weights, norm: &Norm, drop: &Dropout,
    bias: Option<Span>, grads: &mut Flat, d_branch: Option<&mut Mat>,
) -> Result<()>
where
    D::Buffer: 'static,
{
    const OP: &str = "add_layernorm_backward";
    batch.check_current(OP, be.serial())?;
    let (rows, cols) = (dim("R", d.rows()), dim("C", d.cols()));
    sum.expect(OP, "sum", rows, cols)?;
    stats.expect(OP, "stats", rows, dim("2", 2))?;
    let gamma = w.vector(OP, "gamma", norm.gamma, cols)?;
    let norm_grads = NormGrads {
        gamma: grads.span(OP, "gamma", norm.gamma, cols)?,
        beta: grads.span(OP, "beta", norm.beta, cols)?,
        bias: bias.map(|bias| grads.span(OP, "bias", bias, cols)).transpose()?,
    };
    let d_branch = match d_branch {
        Some(d_branch) => {
            d_branch.prepare(OP, "d_branch", rows, cols)?;
            Arg::Write(d_branch.region())
        }
        None => Arg::Null,
    };
    let width = norm_width(OP, "d", d)?;
    let BackwardBlock { rows: block_rows, block } = BackwardBlock::new(cols.size);
    let blocks = d.capacity().div_ceil(block_rows);
    let partials = NormPartials::new(be, blocks, KINDS, cols.size, block_rows)?;
    let args = [
        Arg::Update(d.region()),
        Arg::Read(sum.region()),
        Arg::Read(stats.region()),
        Arg::Read(gamma),
        d_branch,
        Arg::Write(partials.region),
        be.rows_of(d),
        be.dropout(drop),
    ];
    be.launch_blocks(&FAMILY, &[width], OP, [blocks, 1, 1], block, &args)?;
    add_norm_partials(be, &partials, &norm_grads, be.live(d.kind(), d.capacity()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_width_takes_more_shared_memory_than_every_device_has() {
        let widths = (64..=MOST_COLUMNS).step_by(64);
        assert!(widths.clone().all(|width| BackwardBlock::new(width).block.shared_bytes <= BACKWARD_BYTES));
        let warps: Vec<usize> = widths.map(|width| BackwardBlock::new(width).rows / ROWS_A_WARP).collect();
        assert!(warps.is_sorted_by(|a, b| a >= b) && warps[768 / 64 - 1] == 4 && warps[1024 / 64 - 1] == 2);
    }
}
