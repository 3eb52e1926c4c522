//! kernels/embedding.cu: word and position embeddings, their LayerNorm and dropout, and the gradients of the tables.

use super::super::batch::{Batch, Head, PIECE, Sorted};
use super::super::device::{Arg, Device, Region};
use super::super::kernel::{Family, Kernel, Limits};
use super::super::memory::{Flat, Mat, Weights};
use super::super::{CudaBackend, Scratch};
use super::layernorm::{BACKWARD_BYTES, BackwardBlock, FORWARD_WARPS, norm_width};
use super::rows::{NormGrads, NormPartials, add_norm_partials};
use crate::backend::shape::dim;
use crate::backend::{Dropout, Embedding, Error, Result, Rows, Span};

/// The kernels.
pub static FAMILY: Family = Family {
    name: "embedding",
    source: include_str!("../../../../kernels/embedding.cu"),
    only: None,
    constants: &[("WIDTH", &[768, 384])],
    kernels: &[
        Kernel {
            name: "embed",
            computes: "y = keep ∘ LayerNorm(word[ids] + position[position_ids])",
            threads: 32 * FORWARD_WARPS as u32,
            shared_bytes: 0,
            limits: Limits::registers(72),
        },
        Kernel {
            name: "embed_backward",
            computes: "d = d_x, for the sums into the tables;  partial sums for d_gamma, d_beta",
            threads: 128,
            shared_bytes: BACKWARD_BYTES as u32,
            limits: Limits::registers(168),
        },
        Kernel {
            name: "sum_pieces",
            computes: "d_table[target] += Σ of up to 32 rows of d, or slots[slot] = it",
            threads: 32 * PIECE_WARPS as u32,
            shared_bytes: 0,
            limits: Limits::registers(96),
        },
        Kernel {
            name: "add_slots",
            computes: "d_table[target] += Σ slots",
            threads: 32 * SUM_WARPS as u32,
            shared_bytes: slots_bytes(128) as u32,
            limits: Limits::registers(48),
        },
    ],
};

/// Sums that the backward pass leaves: for d_gamma and d_beta.
const KINDS: usize = 2;

/// `PIECE_WARPS` of embedding.cu: pieces of a block.
const PIECE_WARPS: usize = 4;

/// `SUM_WARPS` of embedding.cu.
const SUM_WARPS: usize = 8;

/// "There is no such key."
const NONE: u32 = u32::MAX;

/// Columns of a block of `add_slots`.
const fn slot_columns(width: usize) -> usize {
    if width.is_multiple_of(128) { 128 } else { 64 }
}

/// A sum of each of its warps.
const fn slots_bytes(width: usize) -> usize {
    SUM_WARPS * slot_columns(width) * size_of::<f32>()
}

/// The tables in bf16.
struct Tables {
    word: Region,
    position: Region,
}

impl Tables {
    fn new(op: &'static str, batch: &Batch, w: &Weights, layer: &Embedding) -> Result<Tables> {
        let table = |what, letters, span: Span| {
            if layer.width > 0 && span.len.is_multiple_of(layer.width) {
                return w.matrix(op, what, span, dim(letters, span.len));
            }
            let (got, expected) = (format!("[{}]", span.len), format!("[{letters}], rows of C={}", layer.width));
            Err(Error::Shape { op, what, got, expected })
        };
        let tables = Tables {
            word: table("word embeddings", "V·C", layer.word)?,
            position: table("position embeddings", "P·C", layer.position)?,
        };
        batch.check_tables(op, layer.word.len / layer.width, layer.position.len / layer.width)?;
        Ok(tables)
    }
}

/// [`crate::backend::Backend::embed`]
pub fn embed<D: Device>(
    be: &CudaBackend<D>, batch: &Batch, w: &Weights, layer: &Embedding, drop: &Dropout, stats: &mut Mat, y: &mut Mat,
) -> Result<()>
where
    D::Buffer: 'static,
{
    const OP: &str = "embed";
    batch.check_current(OP, be.serial())?;
    let (rows, cols) = (dim("N", batch.count(Rows::Tokens)), dim("C", layer.width));
    let tables = Tables::new(OP, batch, w, layer)?;
    let (gamma, beta) = (w.vector(OP, "gamma", layer.norm.gamma, cols)?, w.vector(OP, "beta", layer.norm.beta, cols)?);
    stats.prepare(OP, "stats", rows, dim("2", 2))?;
    y.prepare(OP, "y", rows, cols)?;
    let width = norm_width(OP, "y", y)?;
    let args = [
        Arg::Read(batch.ids),
        Arg::Read(batch.position_ids),
        Arg::Read(tables.word),
        Arg::Read(tables.position),
        Arg::Read(gamma),
        Arg::Read(beta),
        Arg::Write(stats.region()),
        Arg::Write(y.region()),
        be.rows_of(y),
        be.dropout(drop),
        Arg::F32(layer.norm.epsilon),
    ];
    be.launch(&FAMILY, &[width], OP, [y.capacity().div_ceil(FORWARD_WARPS), 1, 1], 0, &args)
}

/// [`crate::backend::Backend::embed_backward`]
#[allow(clippy::too_many_arguments)]
pub fn embed_backward<D: Device>(
    be: &CudaBackend<D>, batch: &Batch, w: &Weights, layer: &Embedding, drop: &Dropout, stats: &Mat, d_y: &mut Mat,
    grads: &mut Flat,
) -> Result<()>
where
    D::Buffer: 'static,
{
    const OP: &str = "embed_backward";
    batch.check_current(OP, be.serial())?;
    let (rows, cols) = (dim("N", batch.count(Rows::Tokens)), dim("C", layer.width));
    let tables = Tables::new(OP, batch, w, layer)?;
    let gamma = w.vector(OP, "gamma", layer.norm.gamma, cols)?;
    stats.expect(OP, "stats", rows, dim("2", 2))?;
    d_y.expect(OP, "d_y", rows, cols)?;
    let norm_grads = NormGrads {
        gamma: grads.span(OP, "gamma", layer.norm.gamma, cols)?,
        beta: grads.span(OP, "beta", layer.norm.beta, cols)?,
        bias: None,
    };
    let d_word = grads.span(OP, "word embeddings", layer.word, dim("V·C", layer.word.len))?;
    let d_position = grads.span(OP, "position embeddings", layer.position, dim("P·C", layer.position.len))?;
    let width = norm_width(OP, "d_y", d_y)?;
    let BackwardBlock { rows: block_rows, block } = BackwardBlock::new(cols.size);
    let blocks = d_y.capacity().div_ceil(block_rows);
    let partials = NormPartials::new(be, blocks, KINDS, cols.size, block_rows)?;
    let args = [
        Arg::Update(d_y.region()),
        Arg::Read(batch.ids),
        Arg::Read(batch.position_ids),
        Arg::Read(tables.word),
        Arg::Read(tables.position),
        Arg::Read(stats.region()),
        Arg::Read(gamma),
        Arg::Write(partials.region),
        be.rows_of(d_y),
        be.dropout(drop),
    ];
    be.launch_blocks(&FAMILY, &[width], OP, [blocks, 1, 1], block, &args)?;
    add_norm_partials(be, &partials, &norm_grads, be.live(d_y.kind(), d_y.capacity()))?;
    let (sorted, counts) = (&batch.by_id, [Head::IdPieces, Head::IdSums]);
    let skip = layer.padding_idx.unwrap_or(NONE);
    add_to_table(be, batch, d_y, &TableSums { sorted, counts, skip, d_table: d_word })?;
    let (sorted, counts) = (&batch.by_position, [Head::PositionPieces, Head::PositionSums]);
    add_to_table(be, batch, d_y, &TableSums { sorted, counts, skip: NONE, d_table: d_position })
}

/// Which rows belong to which row of a table.
struct TableSums<'a> {
    sorted: &'a Sorted,
    /// Pieces and sums.
    counts: [Head; 2],
    /// The row that gets nothing.
    skip: u32,
    d_table: Region,
}

/// d_table[key] += the sum of the rows of `d` that have this key.
fn add_to_table<D: Device>(be: &CudaBackend<D>, batch: &Batch, d: &Mat, table: &TableSums<'_>) -> Result<()>
where
    D::Buffer: 'static,
{
    let (width, cols) = (d.cols() as u32, d.cols());
    let slots = be.scratch(Scratch::Partials, batch.slot_capacity() * cols * size_of::<f32>())?;
    let [pieces, sums] = table.counts.map(|count| Arg::Read(be.head(count)));
    let args = [
        Arg::Read(d.region()),
        Arg::Read(table.sorted.order),
        Arg::Read(table.sorted.pieces),
        pieces,
        Arg::Write(slots),
        Arg::Update(table.d_table),
        Arg::U32(table.skip),
    ];
    let tokens = batch.capacity().tokens;
    be.launch(&FAMILY, &[width], "sum_pieces", [tokens.div_ceil(PIECE_WARPS), 1, 1], 0, &args)?;
    let args = [Arg::Read(slots), Arg::Read(table.sorted.sums), sums, Arg::Update(table.d_table), Arg::U32(table.skip)];
    let grid = [tokens / PIECE, cols / slot_columns(cols), 1];
    be.launch(&FAMILY, &[width], "add_slots", grid, slots_bytes(cols), &args)
}
