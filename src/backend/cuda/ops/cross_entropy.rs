//! kernels/cross_entropy.cu: loss over the vocabulary, a chunk of rows at a time; the most probable tokens.

use super::super::batch::{Batch, Head};
use super::super::device::{Arg, Device, LiveRows, Region};
use super::super::kernel::{Family, Kernel, Limits};
use super::super::memory::{self, Element, Flat, Mat, Tally, Weights};
use super::super::{CudaBackend, Scratch};
use super::classifier::Product;
use super::linear::VocabChunk;
use crate::backend::shape::dim;
use crate::backend::{Error, LossGrads, Result, Rows, VocabProjection};

/// The kernels.
pub static FAMILY: Family = Family {
    name: "cross_entropy",
    source: include_str!("../../../../kernels/cross_entropy.cu"),
    only: None,
    constants: &[("VOCAB", &[30_522, 28_996, 119_547])],
    kernels: &[
        Kernel {
            name: "vocab_loss",
            computes: "loss = lse - logit of the target;  hit = the target's logit is the first largest",
            threads: 512,
            shared_bytes: ROW_BYTES as u32,
            limits: Limits::registers(64),
        },
        Kernel {
            name: "vocab_cross_entropy",
            computes: "the same, and logits = (softmax - onehot) loss_scale, in place",
            threads: 512,
            shared_bytes: ROW_BYTES as u32,
            limits: Limits::registers(64),
        },
        Kernel {
            name: "vocab_bias_gradient",
            computes: "d_bias += Σ_rows d_logits",
            threads: 256,
            shared_bytes: STRIP_BYTES as u32,
            limits: Limits::registers(64),
        },
        Kernel {
            name: "vocab_tally",
            computes: "tally += Σ loss, Σ hit",
            threads: 1024,
            shared_bytes: TALLY_BYTES as u32,
            limits: Limits::registers(64),
        },
        Kernel {
            name: "top_k",
            computes: "the k largest logits of each row, as probabilities",
            threads: 512,
            shared_bytes: TOP_BYTES as u32,
            limits: Limits::registers(64),
        },
    ],
};

/// Most rows whose logits are held at once: 512 × 30,528 in bf16 are 31 MB, which an H200 keeps in its L2 cache.
const ROWS_AT_ONCE: usize = 512;

/// Columns of a strip, `STRIP_COLUMNS` of common.cuh; rows of logits are padded to whole strips.
const STRIP: usize = 64;

/// Maximum, sum and tie of each of 16 warps.
const ROW_BYTES: usize = 3 * 16 * size_of::<f32>();

/// What a block needs to add up a strip's sums: one row for each of its eight warps.
const STRIP_BYTES: usize = 8 * STRIP * size_of::<f32>();

/// Two sums of 1,024 threads.
const TALLY_BYTES: usize = 2 * 1024 * size_of::<f64>();

/// A candidate and a sum of each of 16 warps.
const TOP_BYTES: usize = 16 * (8 + 4);

/// The projection's operands, checked.
struct Projection<'a> {
    layer: &'a VocabProjection,
    weight: Region,
    bias: Region,
}

impl<'a> Projection<'a> {
    fn new(op: &'static str, x: &Mat, w: &Weights, layer: &'a VocabProjection) -> Result<Self> {
        let (vocab, width) = (layer.vocab, layer.width);
        x.expect(op, "x", dim("M", x.rows()), dim("C", width))?;
        if x.element() != Element::Bf16 || !width.is_multiple_of(STRIP) {
            let got = format!("[{}, {width}]", x.rows());
            return Err(Error::Shape { op, what: "x", got, expected: format!("columns in multiples of {STRIP}") });
        }
        let weight = w.matrix(op, "weight", layer.weight, dim("V·C", vocab * width))?;
        Ok(Projection { layer, weight, bias: w.vector(op, "bias", layer.bias, dim("V", vocab))? })
    }

    /// What the family is compiled for.
    fn sizes(&self) -> [u32; 1] {
        [self.layer.vocab as u32]
    }
}

/// [`crate::backend::Backend::vocab_cross_entropy`]
#[allow(clippy::too_many_arguments)]
pub fn vocab_cross_entropy<D: Device>(
    be: &CudaBackend<D>, x: &Mat, batch: &Batch, w: &Weights, layer: &VocabProjection, tally: &mut Tally,
    back: Option<LossGrads<'_, Mat, Flat>>,
) -> Result<()>
where
    D::Buffer: 'static,
{
    const OP: &str = "vocab_cross_entropy";
    batch.check_current(OP, be.serial())?;
    let p = Projection::new(OP, x, w, layer)?;
    x.expect(OP, "x", dim("M", batch.count(Rows::Masked)), dim("C", layer.width))?;
    batch.check_targets(OP, layer.vocab)?;
    let mut back = match back {
        None => None,
        Some(LossGrads { d_x, grads }) => {
            d_x.prepare(OP, "d_x", dim("M", x.rows()), dim("C", layer.width))?;
            grads.span(OP, "weight gradient", layer.weight, dim("V·C", layer.vocab * layer.width))?;
            let d_bias = grads.span(OP, "bias gradient", layer.bias, dim("V", layer.vocab))?;
            Some((d_x, grads, d_bias))
        }
    };
    let room = back.as_ref().map_or(x.capacity(), |(d_x, ..)| d_x.capacity().min(x.capacity()));
    let stride = layer.vocab.next_multiple_of(STRIP);
    let logits = be.scratch(Scratch::Logits, room.min(ROWS_AT_ONCE) * stride * 2)?;
    let row_bytes = room * size_of::<f32>();
    let of_rows = be.scratch(Scratch::Rows, 2 * row_bytes)?;
    let (loss, hit) = (of_rows.part(0, row_bytes), of_rows.part(row_bytes, row_bytes));
    for first in (0..room).step_by(ROWS_AT_ONCE) {
        let rows = memory::rows(be.head(Head::Masked), first, ROWS_AT_ONCE.min(room - first));
        let products = VocabChunk { layer, rows, x: x.region_from(first), logits };
        products.logits(be, w)?;
        let chunk =
            Chunk { rows, logits, targets: part(batch.targets, rows), loss: part(loss, rows), hit: part(hit, rows) };
        match &mut back {
            None => chunk.loss(be, &p)?,
            Some((d_x, grads, d_bias)) => {
                chunk.gradient(be, &p, *d_bias)?;
                products.d_x(be, w, d_x.region_from(first))?;
                products.d_weight(be, grads)?;
            }
        }
    }
    let all = Arg::Rows(be.live(Rows::Masked, room));
    let args = [Arg::Read(loss), Arg::Read(hit), all, Arg::Update(tally.region())];
    be.launch(&FAMILY, &p.sizes(), "vocab_tally", [1, 1, 1], TALLY_BYTES, &args)
}

/// The values, of four bytes each, of a chunk's rows.
fn part(of_all: Region, rows: LiveRows) -> Region {
    of_all.part(rows.first as usize * 4, rows.capacity as usize * 4)
}

/// Some rows and their logits.
struct Chunk {
    rows: LiveRows,
    /// [512, V, padded to a multiple of 64] bf16
    logits: Region,
    /// u32
    targets: Region,
    /// f32
    loss: Region,
    /// u32
    hit: Region,
}

impl Chunk {
    fn loss<D: Device>(&self, be: &CudaBackend<D>, p: &Projection<'_>) -> Result<()>
    where
        D::Buffer: 'static,
    {
        let args = [
            Arg::Read(self.logits),
            Arg::Read(self.targets),
            Arg::Rows(self.rows),
            Arg::Write(self.loss),
            Arg::Write(self.hit),
        ];
        be.launch(&FAMILY, &p.sizes(), "vocab_loss", [self.rows.capacity as usize, 1, 1], ROW_BYTES, &args)
    }

    /// The logits become their gradient.
    fn gradient<D: Device>(&self, be: &CudaBackend<D>, p: &Projection<'_>, d_bias: Region) -> Result<()>
    where
        D::Buffer: 'static,
    {
        let args = [
            Arg::Update(self.logits),
            Arg::Read(self.targets),
            Arg::Read(be.head(Head::LossScale)),
            Arg::Rows(self.rows),
            Arg::Write(self.loss),
            Arg::Write(self.hit),
        ];
        be.launch(&FAMILY, &p.sizes(), "vocab_cross_entropy", [self.rows.capacity as usize, 1, 1], ROW_BYTES, &args)?;
        let args = [Arg::Read(self.logits), Arg::Rows(self.rows), Arg::Update(d_bias)];
        let strips = p.layer.vocab.div_ceil(STRIP);
        be.launch(&FAMILY, &p.sizes(), "vocab_bias_gradient", [strips, 1, 1], STRIP_BYTES, &args)
    }
}

/// [`crate::backend::Backend::top_k`]
pub fn top_k<D: Device>(
    be: &CudaBackend<D>, x: &Mat, w: &Weights, layer: &VocabProjection, k: usize,
) -> Result<Vec<Vec<(u32, f32)>>>
where
    D::Buffer: 'static,
{
    const OP: &str = "top_k";
    let p = Projection::new(OP, x, w, layer)?;
    let k = k.min(layer.vocab);
    let mut best = Vec::with_capacity(x.rows());
    // Logits in f32: half as many rows in as much memory. Nothing is captured here, so only live rows are gone through.
    let at_once = x.rows().min(ROWS_AT_ONCE / 2);
    let logits = be.scratch(Scratch::Logits, at_once * layer.vocab * size_of::<f32>())?;
    for first in (0..x.rows()).step_by(at_once.max(1)) {
        let live = at_once.min(x.rows() - first);
        if k == 0 {
            best.resize(first + live, Vec::new());
            continue;
        }
        let rows = memory::rows(be.head(Head::live(x.kind())), first, live);
        let (inputs, outputs) = (layer.width, layer.vocab);
        let product = Product { x: x.region_from(first), weight: p.weight, bias: p.bias, inputs, outputs, rows };
        product.launch(be, logits)?;
        let found = be.scratch(Scratch::Rows, 2 * live * k * 4)?;
        let (ids, probabilities) = (found.part(0, live * k * 4), found.part(live * k * 4, live * k * 4));
        let args = [Arg::Read(logits), Arg::U32(k as u32), Arg::Rows(rows), Arg::Write(ids), Arg::Write(probabilities)];
        be.launch(&FAMILY, &p.sizes(), OP, [live, 1, 1], TOP_BYTES, &args)?;
        let (ids, probabilities) = (be.download_values::<u32>(ids)?, be.download_values::<f32>(probabilities)?);
        let pairs: Vec<(u32, f32)> = ids.into_iter().zip(probabilities).collect();
        best.extend(pairs.chunks(k).map(<[(u32, f32)]>::to_vec));
    }
    Ok(best)
}
