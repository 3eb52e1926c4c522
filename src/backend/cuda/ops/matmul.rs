//! kernels/matmul.cu: linear layers, and the products of the loss over the vocabulary.
//!
//! How large the tiles are and into how many parts a product is split follows from shapes and capacities alone: the
//! parts set the order of sums, so the same run has the same bits on every GPU.

use super::super::CudaBackend;
use super::super::Scratch;
use super::super::device::{Arg, Device, LiveRows, Region};
use super::super::kernel::{Family, Kernel, Limits};
use super::super::memory::{Flat, Mat, NARROW, Weights};
use super::{classifier, rows};
use crate::backend::shape::{Dim, dim};
use crate::backend::{Error, Into, Linear, Result, Span, VocabProjection};

/// The kernels.
pub static FAMILY: Family = Family {
    name: "matmul",
    source: include_str!("../../../../kernels/matmul.cu"),
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

/// Distance from row to row of a matrix with a column for each output.
pub fn lead(outputs: usize) -> usize {
    outputs.next_multiple_of(64)
}

// ---- Launches ----------------------------------------------------------------------------------------------------------

/// A layer's sizes as kernels see them, and the rows at hand.
#[derive(Debug, Clone, Copy)]
struct Product {
    inputs: usize,
    outputs: usize,
    rows: LiveRows,
}

impl Product {
    fn capacity(&self) -> usize {
        self.rows.capacity as usize
    }

    /// The last arguments of every product.
    fn sizes(&self) -> [Arg; 4] {
        let [inputs, outputs, lead] = [self.inputs, self.outputs, lead(self.outputs)].map(|size| Arg::U32(size as u32));
        [inputs, outputs, lead, Arg::Rows(self.rows)]
    }

    /// Launches a kernel that has a block for each tile of [capacity, cols].
    fn launch<D: Device>(
        &self, be: &CudaBackend<D>, tile: Tile, cols: usize, kernel: &str, operands: &[Arg],
    ) -> Result<()>
    where
        D::Buffer: 'static,
    {
        let args = [operands, &self.sizes()].concat();
        be.launch(&FAMILY, &[], kernel, [tile.blocks(self.capacity(), cols), 1, 1], SHARED_BYTES, &args)
    }

    /// d_W += d_yᵀ x
    fn weight_gradient<D: Device>(&self, be: &CudaBackend<D>, d_y: Region, x: Region, d_weight: Region) -> Result<()>
    where
        D::Buffer: 'static,
    {
        let [inputs, outputs, lead, rows] = self.sizes();
        let tiles = Tile::Large.blocks(self.outputs, self.inputs);
        let splits = if self.capacity() > 0 { parts(tiles, self.capacity()) } else { return Ok(()) };
        if splits == 1 {
            let args = [Arg::Read(d_y), Arg::Read(x), Arg::Update(d_weight), inputs, outputs, lead, rows];
            return be.launch(&FAMILY, &[], "matmul_tn_accumulate", [tiles, 1, 1], SHARED_BYTES, &args);
        }
        let size = self.outputs * self.inputs;
        let scratch = be.scratch(Scratch::Splits, splits * size * size_of::<f32>())?;
        let count = Arg::U32(splits as u32);
        let args = [Arg::Read(d_y), Arg::Read(x), Arg::Write(scratch), inputs, outputs, lead, count, rows];
        be.launch(&FAMILY, &[], "matmul_tn_split", [tiles, splits, 1], SHARED_BYTES, &args)?;
        let args = [Arg::Read(scratch), Arg::Update(d_weight), inputs, outputs, count, rows];
        be.launch(&FAMILY, &[], "add_splits", [size.div_ceil(4 * SUM_THREADS), 1, 1], 0, &args)
    }
}

/// Products come in tiles of 64 columns at least.
fn expect_tiles(op: &'static str, layer: &Linear) -> Result<()> {
    let fits = |size: usize| size > 0 && size.is_multiple_of(64);
    if fits(layer.inputs) && fits(layer.outputs) {
        return Ok(());
    }
    let got = format!("[out={}, in={}]", layer.outputs, layer.inputs);
    Err(Error::Shape { op, what: "weight", got, expected: "multiples of 64".into() })
}

/// All live rows of `x`, of which a launch may also write as many of `y`.
fn shared_rows<D: Device>(be: &CudaBackend<D>, x: &Mat, y: &Mat) -> LiveRows
where
    D::Buffer: 'static,
{
    be.live(x.kind(), x.capacity().min(y.capacity()))
}

fn product_of(layer: &Linear, rows: LiveRows) -> Product {
    Product { inputs: layer.inputs, outputs: layer.outputs, rows }
}

// ---- Forward -----------------------------------------------------------------------------------------------------------

/// x, W and b of a layer.
fn forward_operands(op: &'static str, x: &Mat, w: &Weights, layer: &Linear) -> Result<[Arg; 3]> {
    x.expect(op, "x", dim("R", x.rows()), dim("in", layer.inputs))?;
    let weight = w.matrix(op, "weight", layer.weight, dim("out·in", layer.outputs * layer.inputs))?;
    let bias = w.vector(op, "bias", layer.bias, dim("out", layer.outputs))?;
    expect_tiles(op, layer)?;
    Ok([Arg::Read(x.region()), Arg::Read(weight), Arg::Read(bias)])
}

/// [`crate::backend::Backend::linear`]
pub fn linear<D: Device>(be: &CudaBackend<D>, x: &Mat, w: &Weights, layer: &Linear, y: &mut Mat) -> Result<()>
where
    D::Buffer: 'static,
{
    const OP: &str = "linear";
    if layer.outputs < NARROW {
        return classifier::narrow_linear(be, x, w, layer, y);
    }
    let [x_arg, weight, bias] = forward_operands(OP, x, w, layer)?;
    y.prepare(OP, "y", dim("R", x.rows()), dim("out", layer.outputs))?;
    let product = product_of(layer, shared_rows(be, x, y));
    let tile = Tile::of(product.capacity(), layer.outputs);
    let kernel = tile.kernel("matmul_nt_bias", "matmul_nt_bias_small");
    product.launch(be, tile, layer.outputs, kernel, &[x_arg, weight, bias, Arg::Write(y.region())])
}

/// [`crate::backend::Backend::linear_gelu`]
pub fn linear_gelu<D: Device>(
    be: &CudaBackend<D>, x: &Mat, w: &Weights, layer: &Linear, pre: &mut Mat, y: &mut Mat,
) -> Result<()>
where
    D::Buffer: 'static,
{
    const OP: &str = "linear_gelu";
    let [x_arg, weight, bias] = forward_operands(OP, x, w, layer)?;
    let (rows, outputs) = (dim("R", x.rows()), dim("out", layer.outputs));
    pre.prepare(OP, "pre", rows, outputs)?;
    y.prepare(OP, "y", rows, outputs)?;
    let rows = be.live(x.kind(), x.capacity().min(pre.capacity()).min(y.capacity()));
    let product = product_of(layer, rows);
    let tile = Tile::of(product.capacity(), layer.outputs);
    let kernel = tile.kernel("matmul_nt_bias_gelu", "matmul_nt_bias_gelu_small");
    let operands = [x_arg, weight, bias, Arg::Write(pre.region()), Arg::Write(y.region())];
    product.launch(be, tile, layer.outputs, kernel, &operands)
}

// ---- Backward ----------------------------------------------------------------------------------------------------------

/// d_y and W of a layer, and its gradient, after all that `weight_gradient` needs has been checked.
fn backward_operands(
    op: &'static str, d_y: &Mat, x: &Mat, w: &Weights, layer: &Linear, grads: &Flat,
) -> Result<[Region; 3]> {
    let (rows, product) = (dim("R", x.rows()), dim("out·in", layer.outputs * layer.inputs));
    x.expect(op, "x", rows, dim("in", layer.inputs))?;
    d_y.expect(op, "d_y", rows, dim("out", layer.outputs))?;
    let d_weight = grads.span(op, "weight gradient", layer.weight, product)?;
    let weight = w.matrix(op, "weight", layer.weight, product)?;
    expect_tiles(op, layer)?;
    Ok([d_y.region(), weight, d_weight])
}

/// [`crate::backend::Backend::linear_backward`]
pub fn linear_backward<D: Device>(
    be: &CudaBackend<D>, d_y: &Mat, x: &Mat, w: &Weights, layer: &Linear, grads: &mut Flat, d_x: Into<'_, Mat>,
) -> Result<()>
where
    D::Buffer: 'static,
{
    const OP: &str = "linear_backward";
    if layer.outputs < NARROW {
        return classifier::narrow_linear_backward(be, d_y, x, w, layer, grads, d_x);
    }
    let [d_y_at, weight, d_weight] = backward_operands(OP, d_y, x, w, layer, grads)?;
    let (rows, inputs) = (dim("R", x.rows()), dim("in", layer.inputs));
    product_of(layer, shared_rows(be, x, d_y)).weight_gradient(be, d_y_at, x.region(), d_weight)?;
    let (large, small, d_x, to) = match d_x {
        Into::Nowhere => return Ok(()),
        Into::Write(d_x) => {
            d_x.prepare(OP, "d_x", rows, inputs)?;
            ("matmul_nn", "matmul_nn_small", &*d_x, Arg::Write(d_x.region()))
        }
        Into::Add(d_x) => {
            d_x.expect(OP, "d_x", rows, inputs)?;
            ("matmul_nn_add", "matmul_nn_add_small", &*d_x, Arg::Update(d_x.region()))
        }
    };
    let product = product_of(layer, shared_rows(be, d_y, d_x));
    let tile = Tile::of(product.capacity(), layer.inputs);
    let operands = [Arg::Read(d_y_at), Arg::Read(weight), to];
    product.launch(be, tile, layer.inputs, tile.kernel(large, small), &operands)
}

/// [`crate::backend::Backend::linear_backward_gelu`]
#[allow(clippy::too_many_arguments)]
pub fn linear_backward_gelu<D: Device>(
    be: &CudaBackend<D>, d_y: &Mat, x: &Mat, pre: &Mat, w: &Weights, layer: &Linear, bias: Span, grads: &mut Flat,
    d_pre: &mut Mat,
) -> Result<()>
where
    D::Buffer: 'static,
{
    const OP: &str = "linear_backward_gelu";
    let [d_y_at, weight, d_weight] = backward_operands(OP, d_y, x, w, layer, grads)?;
    let (rows, inputs) = (dim("R", x.rows()), dim("in", layer.inputs));
    pre.expect(OP, "pre", rows, inputs)?;
    let d_bias = grads.span(OP, "bias", bias, inputs)?;
    d_pre.prepare(OP, "d_pre", rows, inputs)?;
    product_of(layer, shared_rows(be, x, d_y)).weight_gradient(be, d_y_at, x.region(), d_weight)?;

    let product = product_of(layer, be.live(d_y.kind(), d_y.capacity().min(pre.capacity()).min(d_pre.capacity())));
    let tile = Tile::of(product.capacity(), inputs.size);
    let row_tiles = product.capacity().div_ceil(tile.side());
    let partials = be.scratch(Scratch::Partials, row_tiles * inputs.size * size_of::<f32>())?;
    let to = [Arg::Write(d_pre.region()), Arg::Write(partials)];
    let operands = [Arg::Read(d_y_at), Arg::Read(weight), Arg::Read(pre.region()), to[0], to[1]];
    let kernel = tile.kernel("matmul_nn_gelu_backward", "matmul_nn_gelu_backward_small");
    product.launch(be, tile, inputs.size, kernel, &operands)?;
    add_partials(be, partials, d_bias, inputs.size, product.rows, tile.side())
}

/// into += the sums of all row tiles
fn add_partials<D: Device>(
    be: &CudaBackend<D>, partials: Region, into: Region, cols: usize, rows: LiveRows, rows_per_partial: usize,
) -> Result<()>
where
    D::Buffer: 'static,
{
    let [cols_arg, per_partial] = [cols, rows_per_partial].map(|size| Arg::U32(size as u32));
    let args = [Arg::Read(partials), Arg::Update(into), cols_arg, Arg::Rows(rows), per_partial];
    be.launch(&rows::FAMILY, &[], "add_partials", [cols.div_ceil(32), 1, 1], 1024 * size_of::<f32>(), &args)
}

// ---- The vocabulary, a chunk of rows at a time -------------------------------------------------------------------------

fn vocabulary(layer: &VocabProjection, rows: LiveRows) -> Product {
    Product { inputs: layer.width, outputs: layer.vocab, rows }
}

fn vocabulary_size(layer: &VocabProjection) -> Dim {
    dim("V·C", layer.vocab * layer.width)
}

const VOCAB: &str = "vocab_cross_entropy";

/// logits = x Wᵀ + b, for the rows of a chunk; [rows, `lead(V)`], columns from V on are set to zero.
/// `x` begins at the chunk's first row, `logits` at its own first.
pub fn vocab_logits<D: Device>(
    be: &CudaBackend<D>, x: Region, w: &Weights, layer: &VocabProjection, rows: LiveRows, logits: Region,
) -> Result<()>
where
    D::Buffer: 'static,
{
    let weight = w.matrix(VOCAB, "weight", layer.weight, vocabulary_size(layer))?;
    let bias = w.vector(VOCAB, "bias", layer.bias, dim("V", layer.vocab))?;
    let product = vocabulary(layer, rows);
    let cols = lead(layer.vocab);
    let tile = Tile::of(product.capacity(), cols);
    let operands = [Arg::Read(x), Arg::Read(weight), Arg::Read(bias), Arg::Write(logits)];
    product.launch(be, tile, cols, tile.kernel("matmul_nt_bias", "matmul_nt_bias_small"), &operands)
}

/// d_x = d_logits W, for the rows of a chunk. `d_x` begins at the chunk's first row; columns of `d_logits` from V on are
/// zero. A chunk is few tiles and the vocabulary deep, so it is split.
pub fn vocab_d_x<D: Device>(
    be: &CudaBackend<D>, d_logits: Region, w: &Weights, layer: &VocabProjection, rows: LiveRows, d_x: Region,
) -> Result<()>
where
    D::Buffer: 'static,
{
    let weight = w.matrix(VOCAB, "weight", layer.weight, vocabulary_size(layer))?;
    let product = vocabulary(layer, rows);
    let tiles = Tile::Large.blocks(product.capacity(), layer.width);
    let splits = parts(tiles, layer.vocab);
    let [inputs, outputs, lead, live] = product.sizes();
    if splits == 1 {
        let operands = [Arg::Read(d_logits), Arg::Read(weight), Arg::Write(d_x)];
        return product.launch(be, Tile::Small, layer.width, "matmul_nn_small", &operands);
    }
    let size = product.capacity() * layer.width;
    let scratch = be.scratch(Scratch::Splits, splits * size * size_of::<f32>())?;
    let count = Arg::U32(splits as u32);
    let args = [Arg::Read(d_logits), Arg::Read(weight), Arg::Write(scratch), inputs, outputs, lead, count, live];
    be.launch(&FAMILY, &[], "matmul_nn_split", [tiles, splits, 1], SHARED_BYTES, &args)?;
    let d_x = d_x.part(0, d_x.bytes().min(size * 2));
    let args = [Arg::Read(scratch), Arg::Write(d_x), inputs, outputs, count, live];
    be.launch(&FAMILY, &[], "sum_splits", [size.div_ceil(8 * SUM_THREADS), 1, 1], 0, &args)
}

/// d_W += d_logitsᵀ x, over the rows of a chunk.
pub fn vocab_d_weight<D: Device>(
    be: &CudaBackend<D>, d_logits: Region, x: Region, layer: &VocabProjection, rows: LiveRows, grads: &mut Flat,
) -> Result<()>
where
    D::Buffer: 'static,
{
    let d_weight = grads.span(VOCAB, "weight gradient", layer.weight, vocabulary_size(layer))?;
    vocabulary(layer, rows).weight_gradient(be, d_logits, x, d_weight)
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
        assert_eq!(lead(30_522), 30_528);
    }
}
