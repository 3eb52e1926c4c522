//! kernels/rows.cu: rows picked and put back, rows that are not live cleared, partial sums added.

use half::bf16;

use super::super::batch::Batch;
use super::super::device::{Arg, Device, LiveRows, Region};
use super::super::kernel::{Family, Kernel, Limits};
use super::super::memory::Mat;
use super::super::{CudaBackend, Scratch};
use crate::backend::shape::{Dim, dim};
use crate::backend::{Error, Pick, Result, Rows};

/// The kernels.
pub static FAMILY: Family = Family {
    name: "rows",
    source: include_str!("../../../../kernels/rows.cu"),
    only: None,
    constants: &[],
    kernels: &[
        Kernel {
            name: "gather_rows",
            computes: "y[i] = x[picked[i]]",
            threads: 32 * WARPS as u32,
            shared_bytes: 0,
            limits: Limits::registers(40),
        },
        Kernel {
            name: "scatter_rows",
            computes: "d_x = 0, then d_x[picked[i]] = d_y[i]",
            threads: 32 * WARPS as u32,
            shared_bytes: SCATTER_BYTES as u32,
            limits: Limits::registers(40),
        },
        Kernel {
            name: "zero_dead_rows",
            computes: "matrix[r] = 0 behind the live rows",
            threads: 32 * WARPS as u32,
            shared_bytes: 0,
            limits: Limits::registers(40),
        },
        Kernel {
            name: "add_partials",
            computes: "into[c] += Σ_p partials[p][c]",
            threads: SUM_THREADS as u32,
            shared_bytes: SUM_BYTES as u32,
            limits: Limits::registers(64),
        },
        Kernel {
            name: "add_norm_partials",
            computes: "d_gamma, d_beta, d_bias += Σ_p partials[p][0], [1], [2]",
            threads: SUM_THREADS as u32,
            shared_bytes: SUM_BYTES as u32,
            limits: Limits::registers(64),
        },
    ],
};

/// Warps of a block that copies.
const WARPS: usize = 8;

/// `SCATTER_ROWS` of rows.cu: rows of a block.
const SCATTER_ROWS: usize = 32;

/// For each of them, the pick that it gets.
const SCATTER_BYTES: usize = SCATTER_ROWS * size_of::<u32>();

/// Blocks that clear rows: few, since there are few such rows, and enough for a matrix of which hardly any row is live.
const ZERO_BLOCKS: usize = 64;

/// `VEC` of rows.cu: values of a store.
const VEC: usize = 8;

/// Columns of a block that adds partials.
const SUM_COLUMNS: usize = 32;

/// Threads of such a block.
const SUM_THREADS: usize = 1024;

/// One sum of each of them.
const SUM_BYTES: usize = SUM_THREADS * size_of::<f32>();

/// The columns of a matrix that kernels read in whole vectors and warps: a multiple of 64.
pub(super) fn kernel_width(op: &'static str, what: &'static str, mat: &Mat) -> Result<u32> {
    let cols = mat.cols();
    if cols > 0 && cols.is_multiple_of(64) {
        return Ok(cols as u32);
    }
    let (got, expected) = (format!("[{}, {cols}]", mat.rows()), "columns in multiples of 64".to_owned());
    Err(Error::Shape { op, what, got, expected })
}

fn picked(batch: &Batch, pick: Pick) -> (Region, Dim) {
    let (rows, kind) = batch.picked(pick);
    (rows, dim(if pick == Pick::Masked { "M" } else { "B" }, batch.count(kind)))
}

/// [`crate::backend::Backend::gather_rows`]. An empty sequence has no first row: its row of y is 0.
pub fn gather_rows<D: Device>(be: &CudaBackend<D>, x: &Mat, batch: &Batch, pick: Pick, y: &mut Mat) -> Result<()>
where
    D::Buffer: 'static,
{
    const OP: &str = "gather_rows";
    batch.check_current(OP, be.serial())?;
    let (rows, count) = picked(batch, pick);
    let cols = dim("C", x.cols());
    x.expect(OP, "x", dim("N", batch.count(Rows::Tokens)), cols)?;
    y.prepare(OP, "y", count, cols)?;
    let width = kernel_width(OP, "x", x)?;
    let args = [
        Arg::Read(x.region()),
        Arg::Read(rows),
        Arg::Write(y.region()),
        Arg::U32(width),
        be.rows_of(y),
        Arg::Rows(be.live(Rows::Tokens, x.capacity())),
    ];
    be.launch(&FAMILY, &[], OP, [y.capacity().div_ceil(WARPS), 1, 1], 0, &args)
}

/// [`crate::backend::Backend::scatter_rows`]. The gradient of an empty sequence's first row goes nowhere.
pub fn scatter_rows<D: Device>(be: &CudaBackend<D>, d_y: &Mat, batch: &Batch, pick: Pick, d_x: &mut Mat) -> Result<()>
where
    D::Buffer: 'static,
{
    const OP: &str = "scatter_rows";
    batch.check_current(OP, be.serial())?;
    let (rows, count) = picked(batch, pick);
    let cols = dim("C", d_y.cols());
    d_y.expect(OP, "d_y", count, cols)?;
    d_x.prepare(OP, "d_x", dim("N", batch.count(Rows::Tokens)), cols)?;
    let width = kernel_width(OP, "d_y", d_y)?;
    let args = [
        Arg::Read(d_y.region()),
        Arg::Read(rows),
        Arg::Write(d_x.region()),
        Arg::U32(width),
        be.rows_of(d_y),
        be.rows_of(d_x),
    ];
    be.launch(&FAMILY, &[], OP, [d_x.capacity().div_ceil(SCATTER_ROWS), 1, 1], SCATTER_BYTES, &args)
}

/// matrix[r] = 0 for each row r of [R, cols] bf16 behind the live ones, R = the capacity of `rows`: for products that sum over
/// all rows, live or not. `matrix` begins with the first of `rows`.
///
/// # Errors
///
/// If the columns are no multiple of 8.
pub fn zero_dead_rows<D: Device>(be: &CudaBackend<D>, matrix: Region, cols: usize, rows: LiveRows) -> Result<()>
where
    D::Buffer: 'static,
{
    const OP: &str = "zero_dead_rows";
    let capacity = rows.capacity as usize;
    if !cols.is_multiple_of(VEC) {
        let (got, expected) = (format!("[{capacity}, {cols}]"), format!("columns in multiples of {VEC}"));
        return Err(Error::Shape { op: OP, what: "matrix", got, expected });
    }
    let matrix = matrix.part(0, capacity * cols * size_of::<bf16>());
    let args = [Arg::Update(matrix), Arg::U32(cols as u32), Arg::Rows(rows)];
    be.launch(&FAMILY, &[], OP, [ZERO_BLOCKS, 1, 1], 0, &args)
}

/// into += the sum of `partials` [P, cols], P = the live ones of `rows` / `rows_per_partial`, rounded up.
pub(super) fn add_partials<D: Device>(
    be: &CudaBackend<D>, partials: Region, into: Region, cols: usize, rows: LiveRows, rows_per_partial: usize,
) -> Result<()>
where
    D::Buffer: 'static,
{
    let args = [
        Arg::Read(partials),
        Arg::Update(into),
        Arg::U32(cols as u32),
        Arg::Rows(rows),
        Arg::U32(rows_per_partial as u32),
    ];
    be.launch(&FAMILY, &[], "add_partials", [cols.div_ceil(SUM_COLUMNS), 1, 1], SUM_BYTES, &args)
}

/// Where the column sums that a LayerNorm's backward pass leaves belong.
#[derive(Debug, Clone, Copy)]
pub(super) struct NormGrads {
    /// [C]
    pub gamma: Region,
    /// [C]
    pub beta: Region,
    /// [C], if it is wanted.
    pub bias: Option<Region>,
}

/// What the blocks of a LayerNorm's backward kernel left. [P, kinds, cols] f32
#[derive(Debug, Clone, Copy)]
pub(super) struct NormPartials {
    /// Their memory.
    pub region: Region,
    /// Sums side by side: 2, or 3 with one for a bias.
    pub kinds: usize,
    /// C
    pub cols: usize,
    /// Rows that each block summed.
    pub rows_per_partial: usize,
}

impl NormPartials {
    /// Room for those of so many blocks.
    pub fn new<D: Device>(
        be: &CudaBackend<D>, blocks: usize, kinds: usize, cols: usize, rows_per_partial: usize,
    ) -> Result<NormPartials>
    where
        D::Buffer: 'static,
    {
        let region = be.scratch(Scratch::Partials, blocks * kinds * cols * size_of::<f32>())?;
        Ok(NormPartials { region, kinds, cols, rows_per_partial })
    }
}

/// grads += the sums of `partials`, kind by kind.
pub(super) fn add_norm_partials<D: Device>(
    be: &CudaBackend<D>, partials: &NormPartials, grads: &NormGrads, rows: LiveRows,
) -> Result<()>
where
    D::Buffer: 'static,
{
    let args = [
        Arg::Read(partials.region),
        Arg::Update(grads.gamma),
        Arg::Update(grads.beta),
        grads.bias.map_or(Arg::Null, Arg::Update),
        Arg::U32(partials.cols as u32),
        Arg::U32(partials.kinds as u32),
        Arg::Rows(rows),
        Arg::U32(partials.rows_per_partial as u32),
    ];
    let wanted = if grads.bias.is_some() { 3 } else { 2 };
    let grid = [partials.cols.div_ceil(SUM_COLUMNS), wanted, 1];
    be.launch(&FAMILY, &[], "add_norm_partials", grid, SUM_BYTES, &args)
}
