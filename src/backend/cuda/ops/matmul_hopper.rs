//! kernels/matmul_hopper.cu: products by wgmma, on devices that have it.
//!
//! As in [`super::matmul`], how a product is split follows from shapes and capacities alone. Grids follow from the device, and results do
//! not depend on them.

use super::super::compile::Arch;
use super::super::device::{Arg, Device, Region, TensorMap};
use super::super::kernel::{Family, Kernel, Limits};
use super::super::{CudaBackend, Scratch};
use super::matmul;
use super::product::{Onto, Product, Task};
use super::rows::add_partials;
use crate::backend::Result;

/// The kernels.
pub static FAMILY: Family = Family {
    name: "matmul_hopper",
    source: include_str!("../../../../kernels/matmul_hopper.cu"),
    only: Some(Arch::Sm90a),
    constants: &[],
    kernels: &[
        kernel("matmul_hopper_nt_bias", "y = x Wᵀ + b"),
        kernel("matmul_hopper_nt_bias_gelu", "pre = x Wᵀ + b;  y = gelu(pre)"),
        kernel("matmul_hopper_nn", "d_x = d_y W"),
        kernel("matmul_hopper_nn_add", "d_x += d_y W"),
        kernel("matmul_hopper_nn_gelu_backward", "d_pre = (d_y W) ∘ gelu'(pre);  partials = Σ_rows d_pre"),
        kernel("matmul_hopper_nn_split", "parts = d_y W, a part of the outputs each"),
        kernel("matmul_hopper_tn_accumulate", "d_W += d_yᵀ x"),
        kernel("matmul_hopper_tn_split", "parts = d_yᵀ x, a part of the rows each"),
    ],
};

/// Rows of a tile, and so of each row of partials.
const TILE_ROWS: usize = 128;

/// Columns of a tile.
const TILE_COLS: usize = 256;

/// `DEPTH`: of a stage, and columns of every box.
const DEPTH: usize = 64;

/// `Shared`: three stages, the tile as bf16, a row of column sums for each of eight warps, six barriers.
const SHARED_BYTES: usize =
    3 * (TILE_ROWS + TILE_COLS) * DEPTH * 2 + TILE_ROWS * TILE_COLS * 2 + 8 * TILE_COLS * 4 + 6 * 8;

/// 168 registers are what 384 threads can have to begin with; then the copying ones hand theirs on.
const fn kernel(name: &'static str, computes: &'static str) -> Kernel {
    Kernel { name, computes, threads: 384, shared_bytes: SHARED_BYTES as u32, limits: Limits::registers(168) }
}

// ---- Tiles and parts ---------------------------------------------------------------------------------------------------

/// Tiles of a result.
fn tiles(rows: usize, cols: usize) -> usize {
    rows.div_ceil(TILE_ROWS) * cols.div_ceil(TILE_COLS)
}

/// Tiles that run at once on the GPU this was laid out for, one on each of 132 SMs. Others get the same parts.
const SLOTS: usize = 132;

/// Fewest rows, or outputs, that are worth a part of their own.
const SHORTEST_PART: usize = 256;

/// The most parts.
const MOST_PARTS: usize = 64;

/// Into how many parts to cut the depth of a product of so many tiles, as in [`super::matmul`].
///
/// Nanoseconds as expected on an H200: a row (or output) deep, a tile takes 16; a part's 256 KB there and back take 66 of
/// the whole memory's time.
fn parts(tiles: usize, depth: usize) -> usize {
    let time = |parts: usize| {
        let rounds = (tiles * parts).div_ceil(SLOTS);
        rounds * depth.div_ceil(parts) * 16 + if parts > 1 { tiles * parts * 66 } else { 0 }
    };
    let most = (depth / SHORTEST_PART).clamp(1, MOST_PARTS);
    (1..=most).min_by_key(|&parts| time(parts)).unwrap_or(1)
}

// ---- Launches ----------------------------------------------------------------------------------------------------------

/// Computes a product.
pub(super) fn run<D: Device>(be: &CudaBackend<D>, product: &Product, task: &Task) -> Result<()>
where
    D::Buffer: 'static,
{
    match *task {
        Task::Bias { x, weight, bias, y } => {
            let operands = forward_operands(product, x, weight, bias.exact);
            launch(be, product, product.lead(), "matmul_hopper_nt_bias", &[&operands, &[Arg::Write(y)]])
        }
        Task::BiasGelu { x, weight, bias, pre, y } => {
            let operands = forward_operands(product, x, weight, bias.exact);
            let to = [Arg::Write(pre), Arg::Write(y)];
            launch(be, product, product.lead(), "matmul_hopper_nt_bias_gelu", &[&operands, &to])
        }
        Task::Dx { d_y, weight, d_x } => {
            let (kernel, to) = match d_x {
                Onto::Write(d_x) => ("matmul_hopper_nn", Arg::Write(d_x)),
                Onto::Add(d_x) => ("matmul_hopper_nn_add", Arg::Update(d_x)),
            };
            launch(be, product, product.inputs, kernel, &[&backward_operands(product, d_y, weight), &[to]])
        }
        Task::DxOfMany { d_y, weight, d_x } => of_many_outputs(be, product, d_y, weight, d_x),
        Task::DxGelu { d_y, weight, pre, d_pre, d_bias } => {
            let (row_tiles, cols) = (product.capacity().div_ceil(TILE_ROWS), product.inputs);
            let partials = be.scratch(Scratch::Partials, row_tiles * cols * size_of::<f32>())?;
            let rest = [Arg::Read(pre), Arg::Write(d_pre), Arg::Write(partials)];
            let operands = backward_operands(product, d_y, weight);
            launch(be, product, cols, "matmul_hopper_nn_gelu_backward", &[&operands, &rest])?;
            add_partials(be, partials, d_bias, cols, product.rows, TILE_ROWS)
        }
        Task::Dw { d_y, x, d_weight } => weight_gradient(be, product, d_y, x, d_weight),
    }
}

/// The part of `matrix` that is [rows, cols], in boxes of so many rows.
fn map(matrix: Region, [rows, cols]: [usize; 2], box_rows: usize) -> Arg {
    let matrix = matrix.part(0, rows * cols * 2);
    Arg::TensorMap(TensorMap { matrix, size: [rows as u32, cols as u32], of_box: [box_rows as u32, DEPTH as u32] })
}

/// Maps of x and W, and the plain pointers.
fn forward_operands(product: &Product, x: Region, weight: Region, bias: Region) -> [Arg; 4] {
    let x_map = map(x, [product.capacity(), product.inputs], TILE_ROWS);
    let weight_map = map(weight, [product.outputs, product.inputs], TILE_COLS);
    [x_map, weight_map, Arg::Read(x), Arg::Read(bias)]
}

/// Maps of d_y and W, and d_y's plain pointer.
fn backward_operands(product: &Product, d_y: Region, weight: Region) -> [Arg; 3] {
    let d_y_map = map(d_y, [product.capacity(), product.lead()], TILE_ROWS);
    [d_y_map, map(weight, [product.outputs, product.inputs], DEPTH), Arg::Read(d_y)]
}

/// Launches a kernel over the tiles of [capacity, cols].
fn launch<D: Device>(
    be: &CudaBackend<D>, product: &Product, cols: usize, kernel: &str, operands: &[&[Arg]],
) -> Result<()>
where
    D::Buffer: 'static,
{
    let args = [operands.concat().as_slice(), &product.sizes()].concat();
    launch_items(be, tiles(product.capacity(), cols), kernel, &args)
}

/// Launches a kernel that has so many items to do.
fn launch_items<D: Device>(be: &CudaBackend<D>, items: usize, kernel: &str, args: &[Arg]) -> Result<()>
where
    D::Buffer: 'static,
{
    let blocks = items.min(be.device().features().multiprocessors as usize);
    be.launch(&FAMILY, &[], kernel, [blocks, 1, 1], SHARED_BYTES, args)
}

/// d_x = d_y W, where few tiles are deep enough to be split.
fn of_many_outputs<D: Device>(
    be: &CudaBackend<D>, product: &Product, d_y: Region, weight: Region, d_x: Region,
) -> Result<()>
where
    D::Buffer: 'static,
{
    let (items, operands) = (tiles(product.capacity(), product.inputs), backward_operands(product, d_y, weight));
    let splits = parts(items, product.outputs);
    if splits == 1 {
        return launch(be, product, product.inputs, "matmul_hopper_nn", &[&operands, &[Arg::Write(d_x)]]);
    }
    let size = product.capacity() * product.inputs;
    let [inputs, outputs, lead, rows] = product.sizes();
    let scratch = be.scratch(Scratch::Splits, splits * size * size_of::<f32>())?;
    let count = Arg::U32(splits as u32);
    let args = [&operands[..], &[Arg::Write(scratch), inputs, outputs, lead, count, rows]].concat();
    launch_items(be, items * splits, "matmul_hopper_nn_split", &args)?;
    let args = [Arg::Read(scratch), Arg::Write(d_x), inputs, outputs, count, rows];
    add_parts(be, "sum_splits", size.div_ceil(8), &args)
}

/// d_W += d_yᵀ x
fn weight_gradient<D: Device>(
    be: &CudaBackend<D>, product: &Product, d_y: Region, x: Region, d_weight: Region,
) -> Result<()>
where
    D::Buffer: 'static,
{
    let [inputs, outputs, lead, rows] = product.sizes();
    let operands = [
        map(d_y, [product.capacity(), product.lead()], DEPTH),
        map(x, [product.capacity(), product.inputs], DEPTH),
        Arg::Read(d_y),
        Arg::Read(x),
    ];
    let items = tiles(product.outputs, product.inputs);
    let splits = parts(items, product.capacity());
    if splits == 1 {
        let args = [&operands[..], &[Arg::Update(d_weight), inputs, outputs, lead, rows]].concat();
        return launch_items(be, items, "matmul_hopper_tn_accumulate", &args);
    }
    let size = product.outputs * product.inputs;
    let scratch = be.scratch(Scratch::Splits, splits * size * size_of::<f32>())?;
    let count = Arg::U32(splits as u32);
    let args = [&operands[..], &[Arg::Write(scratch), inputs, outputs, lead, count, rows]].concat();
    launch_items(be, items * splits, "matmul_hopper_tn_split", &args)?;
    let args = [Arg::Read(scratch), Arg::Update(d_weight), inputs, outputs, count, rows];
    add_parts(be, "add_splits", size.div_ceil(4), &args)
}

/// Adds up what a split product left, with a kernel of matmul.cu that has so many threads' work.
fn add_parts<D: Device>(be: &CudaBackend<D>, kernel: &str, threads: usize, args: &[Arg]) -> Result<()>
where
    D::Buffer: 'static,
{
    let of_block = matmul::FAMILY.kernel(kernel).threads as usize;
    be.launch(&matmul::FAMILY, &[], kernel, [threads.div_ceil(of_block), 1, 1], 0, args)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_fill_the_gpu_without_drowning_it_in_sums() {
        // d_W at base size: [out, in] over 65,536 rows.
        for (outputs, inputs) in [(2304, 768), (768, 768), (3072, 768), (768, 3072)] {
            let tiles = tiles(outputs, inputs);
            let parts = parts(tiles, 65_536);
            let idle = (tiles * parts).next_multiple_of(SLOTS) - tiles * parts;
            assert!(idle * 10 < tiles * parts, "[{outputs}, {inputs}]: {parts} parts leave {idle} blocks idle");
            assert!(parts * outputs * inputs * 4 < 128 << 20, "[{outputs}, {inputs}]: {parts} parts");
        }
        // d_x at base size has tiles enough; that of a chunk of the vocabulary has not.
        assert_eq!(parts(tiles(65_536, 768), 3072), 1);
        assert!(parts(tiles(512, 768), 30_522) >= 8);
        assert_eq!(parts(tiles(30_522, 768), 512), 1);
    }

    #[test]
    fn short_depths_stay_whole() {
        for depth in [1, 255, 511] {
            assert_eq!(parts(1, depth), 1, "{depth}");
        }
        assert!(parts(1, 1 << 20) <= MOST_PARTS);
    }
}
