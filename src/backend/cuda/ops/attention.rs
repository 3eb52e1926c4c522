//! kernels/attention_forward.cu and attention_backward.cu: attention within each sequence, head by head.

use super::super::batch::{Batch, Head, TILE};
use super::super::device::{Arg, Device, LiveRows};
use super::super::kernel::{Family, Kernel, Limits};
use super::super::memory::{Flat, Mat};
use super::super::{CudaBackend, Scratch};
use super::rows::{add_partials, kernel_width};
use crate::backend::shape::{Dim, dim};
use crate::backend::{Dropout, Error, Result, Rows, Span};

/// Head sizes that the kernels are written for.
const HEAD_SIZES: [u32; 3] = [64, 32, 128];

/// The head size that takes the most shared memory.
const LARGEST: usize = 128;

/// `THREADS` of attention.cuh.
const THREADS: u32 = 128;

/// The forward kernel.
pub static FAMILY: Family = Family {
    name: "attention_forward",
    source: include_str!("../../../../kernels/attention_forward.cu"),
    only: None,
    constants: &[("HEAD_SIZE", &HEAD_SIZES)],
    kernels: &[Kernel {
        name: "attention_forward",
        computes: "ctx = keep ∘ softmax(q kᵀ / √D) v;  lse",
        threads: THREADS,
        shared_bytes: forward_bytes(LARGEST) as u32,
        limits: Limits::registers(168),
    }],
};

/// The backward kernels.
pub static BACKWARD: Family = Family {
    name: "attention_backward",
    source: include_str!("../../../../kernels/attention_backward.cu"),
    only: None,
    constants: &[("HEAD_SIZE", &HEAD_SIZES)],
    kernels: &[
        Kernel {
            name: "attention_backward_q",
            computes: "d_q;  rowsum(d_ctx ∘ ctx) for attention_backward_kv;  partial sums for d_bias",
            threads: THREADS,
            shared_bytes: backward_q_bytes(LARGEST) as u32,
            limits: Limits::registers(255),
        },
        Kernel {
            name: "attention_backward_kv",
            computes: "d_k, d_v;  partial sums for d_bias",
            threads: THREADS,
            shared_bytes: backward_kv_bytes(LARGEST) as u32,
            limits: Limits::registers(255),
        },
    ],
};

/// `OWN` of attention.cuh: rows of a block.
const fn own_rows(head_size: usize) -> usize {
    if head_size <= 64 { 2 * TILE } else { TILE }
}

/// Bytes of so many rows of a head in bf16.
const fn row_bytes(rows: usize, head_size: usize) -> usize {
    rows * head_size * size_of::<u16>()
}

/// Two stages of two tiles; the block's own rows pass through the second.
const fn forward_bytes(head_size: usize) -> usize {
    2 * row_bytes(2 * TILE, head_size)
}

/// A stage, then room for the block's rows of q and d_ctx, over which the second stage lies.
const fn backward_q_bytes(head_size: usize) -> usize {
    row_bytes(2 * TILE, head_size) + row_bytes(2 * own_rows(head_size), head_size)
}

/// Two stages, the block's rows of v, and two stages of a tile's terms.
const fn backward_kv_bytes(head_size: usize) -> usize {
    2 * row_bytes(2 * TILE, head_size) + row_bytes(own_rows(head_size), head_size) + 2 * TERMS_BYTES
}

/// What attention_backward_q leaves of each tile and head: lse and rowsum(d_ctx ∘ ctx) of its queries.
const TERMS_BYTES: usize = 2 * TILE * size_of::<f32>();

/// Shapes, checked.
struct Heads {
    /// N
    tokens: Dim,
    /// C
    width: Dim,
    /// H
    heads: Dim,
    /// D
    size: u32,
}

impl Heads {
    fn new(op: &'static str, qkv: &Mat, batch: &Batch, heads: usize) -> Result<Heads> {
        let (tokens, width) = (dim("N", batch.count(Rows::Tokens)), dim("C", qkv.cols() / 3));
        qkv.expect(op, "qkv", tokens, dim("3C", 3 * width.size))?;
        let size = HEAD_SIZES.into_iter().find(|&size| heads > 0 && size as usize * heads == width.size);
        let size = size.ok_or_else(|| Error::Shape {
            op,
            what: "number of heads",
            got: heads.to_string(),
            expected: format!("C={} divided by a head size of 32, 64 or 128", width.size),
        })?;
        Ok(Heads { tokens, width, heads: dim("H", heads), size })
    }

    /// Blocks for each head of each tile there may be.
    fn grid(&self, batch: &Batch) -> [usize; 3] {
        [batch.tile_capacity() * self.heads.size, 1, 1]
    }

    /// Where blocks take turns: for each head of twice as many tiles as a full batch of long sequences has. Those of a batch
    /// of very short ones wait; a block for each there may be would mostly find nothing to do, as a batch has room for many
    /// more sequences than it holds.
    fn grid_of_turns(&self, batch: &Batch) -> [usize; 3] {
        let tiles = batch.tile_capacity().min(2 * batch.capacity().tokens.div_ceil(TILE));
        [tiles * self.heads.size, 1, 1]
    }
}

/// [`crate::backend::Backend::attention`]
pub fn attention<D: Device>(
    be: &CudaBackend<D>, qkv: &Mat, batch: &Batch, heads: usize, drop: &Dropout, lse: &mut Mat, ctx: &mut Mat,
) -> Result<()>
where
    D::Buffer: 'static,
{
    const OP: &str = "attention";
    batch.check_current(OP, be.serial())?;
    let shape = Heads::new(OP, qkv, batch, heads)?;
    lse.prepare(OP, "lse", shape.tokens, shape.heads)?;
    ctx.prepare(OP, "ctx", shape.tokens, shape.width)?;
    kernel_width(OP, "ctx", ctx)?;
    let args = [
        Arg::Read(qkv.region()),
        Arg::Read(batch.tiles),
        Arg::Read(be.head(Head::Tiles)),
        Arg::U32(heads as u32),
        be.dropout(drop),
        Arg::Write(lse.region()),
        Arg::Write(ctx.region()),
    ];
    let shared_bytes = forward_bytes(shape.size as usize);
    be.launch(&FAMILY, &[shape.size], "attention_forward", shape.grid_of_turns(batch), shared_bytes, &args)
}

/// [`crate::backend::Backend::attention_backward`]
#[allow(clippy::too_many_arguments)]
pub fn attention_backward<D: Device>(
    be: &CudaBackend<D>, qkv: &Mat, batch: &Batch, heads: usize, drop: &Dropout, lse: &Mat, ctx: &Mat, d_ctx: &Mat,
    bias: Span, grads: &mut Flat, d_qkv: &mut Mat,
) -> Result<()>
where
    D::Buffer: 'static,
{
    const OP: &str = "attention_backward";
    batch.check_current(OP, be.serial())?;
    let shape = Heads::new(OP, qkv, batch, heads)?;
    let cols = dim("3C", 3 * shape.width.size);
    lse.expect(OP, "lse", shape.tokens, shape.heads)?;
    ctx.expect(OP, "ctx", shape.tokens, shape.width)?;
    d_ctx.expect(OP, "d_ctx", shape.tokens, shape.width)?;
    let d_bias = grads.span(OP, "bias", bias, cols)?;
    d_qkv.prepare(OP, "d_qkv", shape.tokens, cols)?;
    kernel_width(OP, "ctx", ctx)?;
    let (size, tiles) = (shape.size as usize, batch.tile_capacity());
    let terms = be.scratch(Scratch::Rows, tiles * heads * TERMS_BYTES)?;
    let partials = be.scratch(Scratch::Partials, tiles * cols.size * size_of::<f32>())?;
    let (lists, heads) = ([Arg::Read(batch.tiles), Arg::Read(be.head(Head::Tiles))], Arg::U32(heads as u32));

    let [qkv, ctx, d_ctx] = [qkv, ctx, d_ctx].map(|mat| Arg::Read(mat.region()));
    let args = [
        qkv,
        ctx,
        d_ctx,
        Arg::Read(lse.region()),
        lists[0],
        lists[1],
        heads,
        be.dropout(drop),
        Arg::Write(terms),
        Arg::Write(d_qkv.region()),
        Arg::Write(partials),
    ];
    be.launch(
        &BACKWARD,
        &[shape.size],
        "attention_backward_q",
        shape.grid_of_turns(batch),
        backward_q_bytes(size),
        &args,
    )?;
    // Each pass writes thirds of its own of d_qkv and of the partial sums.
    let args = [
        qkv,
        d_ctx,
        Arg::Read(terms),
        lists[0],
        lists[1],
        heads,
        be.dropout(drop),
        Arg::Update(d_qkv.region()),
        Arg::Update(partials),
    ];
    be.launch(&BACKWARD, &[shape.size], "attention_backward_kv", shape.grid(batch), backward_kv_bytes(size), &args)?;
    let rows = LiveRows { live: be.head(Head::Tiles), first: 0, capacity: tiles as u32 };
    add_partials(be, partials, d_bias, cols.size, rows, 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_head_size_takes_the_most_shared_memory() {
        for bytes in [forward_bytes, backward_q_bytes, backward_kv_bytes] {
            assert!(HEAD_SIZES.iter().all(|&size| bytes(size as usize) <= bytes(LARGEST)));
        }
        // What the smallest of the devices gives a block: sm_86, sm_89 and sm_120.
        assert!(backward_kv_bytes(LARGEST) <= 99 << 10);
    }
}
