//! kernels/matmul.cu: products on every GPU, by mma.sync.
//!
//! How large the tiles are and into how many parts a product is split follows from shapes and capacities alone: the
//! parts set the order of sums, so the same run has the same bits on every GPU.

use super::super::device::{Arg, Device, Region};
use super::super::kernel::{Family, Kernel, Limits};
use super::super::{CudaBackend, Scratch};
use super::product::{Onto, Product, Task};
use super::rows::add_partials;
use crate::backend::Result;

/// The kernels.
pub static FAMILY: Family = Family {
    name: "matmul",
    source: include_str!("../../../../kernels/matmul.cu"),
    only: None,
    constants: &[],
    kernels: &[
        large("matmul_nt_bias", "y = x Wᵀ + b"),
        small("matmul_nt_bias_small", "y = x Wᵀ + b, of few tiles"),
        large("matmul_nt_bias_gelu", "pre = x Wᵀ + b;  y = gelu(pre)"),
        small("matmul_nt_bias_gelu_small", "pre = x Wᵀ + b;  y = gelu(pre), of few tiles"),
        large("matmul_nn", "d_x = d_y W"),
        small("matmul_nn_small", "d_x = d_y W, of few tiles"),
        large("matmul_nn_add", "d_x += d_y W"),
        small("matmul_nn_add_small", "d_x += d_y W, of few tiles"),
        large("matmul_nn_gelu_backward", "d_pre = (d_y W) ∘ gelu'(pre);  partials = Σ_rows d_pre"),
        small("matmul_nn_gelu_backward_small", "d_pre = (d_y W) ∘ gelu'(pre);  partials = Σ_rows d_pre, of few tiles"),
        large("matmul_nn_split", "parts = d_y W, a part of the outputs each"),
        sum("sum_splits", "d_x = Σ parts"),
        large("matmul_tn_accumulate", "d_W += d_yᵀ x"),
        large("matmul_tn_split", "parts = d_yᵀ x, a part of the rows each"),
        sum("add_splits", "d_W += Σ parts"),
    ],
};

/// `STAGES` of operands, for either shape of tile.
const SHARED_BYTES: usize = 3 * 2 * 128 * 32 * 2;

/// `SUM_THREADS`
const SUM_THREADS: usize = 256;

const fn tiled(name: &'static str, computes: &'static str, registers: u32) -> Kernel {
    let limits = Limits::registers(registers);
    Kernel { name, computes, threads: 128, shared_bytes: SHARED_BYTES as u32, limits }
}

/// Two blocks to an SM.
const fn large(name: &'static str, computes: &'static str) -> Kernel {
    tiled(name, computes, 255)
}

/// Four.
const fn small(name: &'static str, computes: &'static str) -> Kernel {
    tiled(name, computes, 128)
}

const fn sum(name: &'static str, computes: &'static str) -> Kernel {
    Kernel { name, computes, threads: SUM_THREADS as u32, shared_bytes: 0, limits: Limits::registers(48) }
}

// ---- Tiles and parts ---------------------------------------------------------------------------------------------------

/// A block's part of a result, `Large` and `Small` of the kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tile {
    Large,
    Small,
}

/// Large tiles that run at once on the GPU this was laid out for, two on each of 132 SMs. Others get the same tiles.
const SLOTS: usize = 264;

impl Tile {
    /// Small ones where large ones would leave most of a GPU idle.
    fn of(rows: usize, cols: usize) -> Tile {
        if Tile::Large.blocks(rows, cols) < SLOTS / 2 { Tile::Small } else { Tile::Large }
    }

    /// Rows, and columns.
    fn side(self) -> usize {
        match self {
            Tile::Large => 128,
            Tile::Small => 64,
        }
    }

    fn blocks(self, rows: usize, cols: usize) -> usize {
        rows.div_ceil(self.side()) * cols.div_ceil(self.side())
    }

    /// Which of a kernel's two forms.
    fn kernel(self, large: &'static str, small: &'static str) -> &'static str {
        match self {
            Tile::Large => large,
            Tile::Small => small,
        }
    }
}

/// Fewest rows, or outputs, that are worth a part of their own.
const SHORTEST_PART: usize = 256;

/// The most parts.
const MOST_PARTS: usize = 64;

/// Into how many parts to cut the depth of a product of so many large tiles. More parts fill the last round of blocks
/// better, but each writes its sums and has them read again.
///
/// Nanoseconds as expected on an H200: a row (or output) deep, a tile takes 25 when two share an SM; a part's 128 KB
/// there and back take 33 of the whole memory's time.
fn parts(tiles: usize, depth: usize) -> usize {
    let time = |parts: usize| {
        let rounds = (tiles * parts).div_ceil(SLOTS);
        rounds * depth.div_ceil(parts) * 25 + if parts > 1 { tiles * parts * 33 } else { 0 }
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
            let tile = Tile::of(product.capacity(), product.lead());
            let kernel = tile.kernel("matmul_nt_bias", "matmul_nt_bias_small");
            let operands = [Arg::Read(x), Arg::Read(weight), Arg::Read(bias.exact), Arg::Write(y)];
            launch(be, product, tile, product.lead(), kernel, &operands)
        }
        Task::BiasGelu { x, weight, bias, pre, y } => {
            let tile = Tile::of(product.capacity(), product.lead());
            let kernel = tile.kernel("matmul_nt_bias_gelu", "matmul_nt_bias_gelu_small");
            let operands = [Arg::Read(x), Arg::Read(weight), Arg::Read(bias.exact), Arg::Write(pre), Arg::Write(y)];
            launch(be, product, tile, product.lead(), kernel, &operands)
        }
        Task::Dx { d_y, weight, d_x } => {
            let tile = Tile::of(product.capacity(), product.inputs);
            let (large, small, to) = match d_x {
                Onto::Write(d_x) => ("matmul_nn", "matmul_nn_small", Arg::Write(d_x)),
                Onto::Add(d_x) => ("matmul_nn_add", "matmul_nn_add_small", Arg::Update(d_x)),
            };
            let operands = [Arg::Read(d_y), Arg::Read(weight), to];
            launch(be, product, tile, product.inputs, tile.kernel(large, small), &operands)
        }
        Task::DxOfMany { d_y, weight, d_x } => of_many_outputs(be, product, d_y, weight, d_x),
        Task::DxGelu { d_y, weight, pre, d_pre, d_bias } => {
            let (tile, cols) = (Tile::of(product.capacity(), product.inputs), product.inputs);
            let row_tiles = product.capacity().div_ceil(tile.side());
            let partials = be.scratch(Scratch::Partials, row_tiles * cols * size_of::<f32>())?;
            let to = [Arg::Write(d_pre), Arg::Write(partials)];
            let operands = [Arg::Read(d_y), Arg::Read(weight), Arg::Read(pre), to[0], to[1]];
            let kernel = tile.kernel("matmul_nn_gelu_backward", "matmul_nn_gelu_backward_small");
            launch(be, product, tile, cols, kernel, &operands)?;
            add_partials(be, partials, d_bias, cols, product.rows, tile.side())
        }
        Task::Dw { d_y, x, d_weight } => weight_gradient(be, product, d_y, x, d_weight),
    }
}

/// Launches a kernel that has a block for each tile of [capacity, cols].
fn launch<D: Device>(
    be: &CudaBackend<D>, product: &Product, tile: Tile, cols: usize, kernel: &str, operands: &[Arg],
) -> Result<()>
where
    D::Buffer: 'static,
{
    let args = [operands, &product.sizes()].concat();
    be.launch(&FAMILY, &[], kernel, [tile.blocks(product.capacity(), cols), 1, 1], SHARED_BYTES, &args)
}

/// d_x = d_y W, where few tiles are deep enough to be split.
fn of_many_outputs<D: Device>(
    be: &CudaBackend<D>, product: &Product, d_y: Region, weight: Region, d_x: Region,
) -> Result<()>
where
    D::Buffer: 'static,
{
    let tiles = Tile::Large.blocks(product.capacity(), product.inputs);
    let splits = parts(tiles, product.outputs);
    if splits == 1 {
        let operands = [Arg::Read(d_y), Arg::Read(weight), Arg::Write(d_x)];
        return launch(be, product, Tile::Small, product.inputs, "matmul_nn_small", &operands);
    }
    let [inputs, outputs, lead, live] = product.sizes();
    let size = product.capacity() * product.inputs;
    let scratch = be.scratch(Scratch::Splits, splits * size * size_of::<f32>())?;
    let count = Arg::U32(splits as u32);
    let args = [Arg::Read(d_y), Arg::Read(weight), Arg::Write(scratch), inputs, outputs, lead, count, live];
    be.launch(&FAMILY, &[], "matmul_nn_split", [tiles, splits, 1], SHARED_BYTES, &args)?;
    let args = [Arg::Read(scratch), Arg::Write(d_x), inputs, outputs, count, live];
    be.launch(&FAMILY, &[], "sum_splits", [size.div_ceil(8 * SUM_THREADS), 1, 1], 0, &args)
}

/// d_W += d_yᵀ x
fn weight_gradient<D: Device>(
    be: &CudaBackend<D>, product: &Product, d_y: Region, x: Region, d_weight: Region,
) -> Result<()>
where
    D::Buffer: 'static,
{
    let [inputs, outputs, lead, rows] = product.sizes();
    let tiles = Tile::Large.blocks(product.outputs, product.inputs);
    let splits = parts(tiles, product.capacity());
    if splits == 1 {
        let args = [Arg::Read(d_y), Arg::Read(x), Arg::Update(d_weight), inputs, outputs, lead, rows];
        return be.launch(&FAMILY, &[], "matmul_tn_accumulate", [tiles, 1, 1], SHARED_BYTES, &args);
    }
    let size = product.outputs * product.inputs;
    let scratch = be.scratch(Scratch::Splits, splits * size * size_of::<f32>())?;
    let count = Arg::U32(splits as u32);
    let args = [Arg::Read(d_y), Arg::Read(x), Arg::Write(scratch), inputs, outputs, lead, count, rows];
    be.launch(&FAMILY, &[], "matmul_tn_split", [tiles, splits, 1], SHARED_BYTES, &args)?;
    let args = [Arg::Read(scratch), Arg::Update(d_weight), inputs, outputs, count, rows];
    be.launch(&FAMILY, &[], "add_splits", [size.div_ceil(4 * SUM_THREADS), 1, 1], 0, &args)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_fill_the_gpu_without_drowning_it_in_sums() {
        // d_W at base size: [out, in] over 65,536 rows.
        for (outputs, inputs) in [(2304, 768), (768, 768), (3072, 768), (768, 3072)] {
            let tiles = Tile::Large.blocks(outputs, inputs);
            let parts = parts(tiles, 65_536);
            let idle = (tiles * parts).next_multiple_of(SLOTS) - tiles * parts;
            assert!(idle * 10 < tiles * parts, "[{outputs}, {inputs}]: {parts} parts leave {idle} blocks idle");
            assert!(parts * outputs * inputs * 4 < 128 << 20, "[{outputs}, {inputs}]: {parts} parts");
        }
        // A chunk of the vocabulary: d_x of few tiles, d_W of many.
        assert!(parts(Tile::Large.blocks(512, 768), 30_522) >= 8);
        assert_eq!(parts(Tile::Large.blocks(30_522, 768), 512), 1);
    }

    #[test]
    fn short_depths_stay_whole() {
        for depth in [1, 255, 511] {
            assert_eq!(parts(1, depth), 1, "{depth}");
        }
        assert!(parts(1, 1 << 20) <= MOST_PARTS);
    }

    #[test]
    fn few_rows_get_small_tiles() {
        assert_eq!(Tile::of(32, 768), Tile::Small);
        assert_eq!(Tile::of(65_536, 768), Tile::Large);
    }
}
