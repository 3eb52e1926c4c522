//! kernels/classifier.cu: the classifier head's own ops, and products with few outputs.

use super::super::CudaBackend;
use super::super::batch::{Batch, Head};
use super::super::device::{Arg, Device, LiveRows, Region};
use super::super::kernel::{Family, Kernel, Limits};
use super::super::memory::{Element, Flat, Mat, NARROW, Tally, Weights};
use crate::backend::shape::{Dim, dim};
use crate::backend::{Dropout, Error, Into, Linear, LossGrads, Result, Rows, Span};

/// The kernels.
pub static FAMILY: Family = Family {
    name: "classifier",
    source: include_str!("../../../../kernels/classifier.cu"),
    only: None,
    constants: &[],
    kernels: &[
        Kernel {
            name: "relu_dropout",
            computes: "y = keep ∘ relu(x)",
            threads: 256,
            shared_bytes: 0,
            limits: Limits::registers(40),
        },
        Kernel {
            name: "relu_dropout_backward",
            computes: "d = keep ∘ [x > 0] ∘ d;  d_bias += Σ_rows d",
            threads: 256,
            shared_bytes: STRIP_BYTES as u32,
            limits: Limits::registers(80),
        },
        Kernel {
            name: "narrow_linear",
            computes: "y = x Wᵀ + b, in f32",
            threads: 256,
            shared_bytes: 0,
            limits: Limits::registers(96),
        },
        Kernel {
            name: "narrow_linear_d_x",
            computes: "d_x = d_y W",
            threads: 256,
            shared_bytes: 0,
            limits: Limits::registers(48),
        },
        Kernel {
            name: "narrow_linear_d_x_add",
            computes: "d_x += d_y W",
            threads: 256,
            shared_bytes: 0,
            limits: Limits::registers(48),
        },
        Kernel {
            name: "narrow_linear_d_weight",
            computes: "d_W += d_yᵀ x",
            threads: 256,
            shared_bytes: (SIDE * STRIP_BYTES) as u32,
            limits: Limits::registers(80),
        },
        Kernel {
            name: "class_cross_entropy",
            computes: "loss, hits;  d_logits = (softmax - q) weight loss_scale;  d_bias += Σ_rows d_logits",
            threads: 256,
            shared_bytes: TALLY_BYTES as u32,
            limits: Limits::registers(64),
        },
    ],
};

/// Columns of a strip, `STRIP_COLUMNS` of common.cuh.
const STRIP: usize = 64;

/// What a block needs to add up a strip's sums: one row for each of its eight warps.
const STRIP_BYTES: usize = 8 * STRIP * size_of::<f32>();

/// `SIDE` of classifier.cu: rows, and outputs, that a warp of `narrow_linear` takes.
const SIDE: usize = 4;

/// Four sums of 256 threads.
const TALLY_BYTES: usize = 4 * 256 * size_of::<f64>();

/// Blocks for one thread per eight columns of each row.
fn elementwise(rows: usize, cols: usize) -> [usize; 3] {
    [(rows * cols / 8).div_ceil(256), 1, 1]
}

/// A matrix of 16-byte vectors and whole strips.
fn expect_wide(op: &'static str, what: &'static str, mat: &Mat) -> Result<()> {
    if mat.element() == Element::Bf16 && mat.cols().is_multiple_of(STRIP) {
        return Ok(());
    }
    let got = format!("[{}, {}]", mat.rows(), mat.cols());
    Err(Error::Shape { op, what, got, expected: format!("columns in multiples of {STRIP}") })
}

/// A matrix of f32, which is what few columns are kept in.
fn expect_narrow(op: &'static str, what: &'static str, mat: &Mat) -> Result<()> {
    if mat.element() == Element::F32 && mat.cols() > 0 {
        return Ok(());
    }
    let got = format!("[{}, {}]", mat.rows(), mat.cols());
    Err(Error::Shape { op, what, got, expected: format!("1 to {} columns", NARROW - 1) })
}

/// [`crate::backend::Backend::relu_dropout`]
pub fn relu_dropout<D: Device>(be: &CudaBackend<D>, x: &Mat, batch: &Batch, drop: &Dropout, y: &mut Mat) -> Result<()>
where
    D::Buffer: 'static,
{
    const OP: &str = "relu_dropout";
    batch.check_current(OP, be.serial())?;
    let (rows, cols) = (sequences(batch), dim("C", x.cols()));
    x.expect(OP, "x", rows, cols)?;
    y.prepare(OP, "y", rows, cols)?;
    expect_wide(OP, "x", x)?;
    let args =
        [Arg::Read(x.region()), Arg::U32(cols.size as u32), be.rows_of(x), be.dropout(drop), Arg::Write(y.region())];
    be.launch(&FAMILY, &[], OP, elementwise(x.capacity().min(y.capacity()), cols.size), 0, &args)
}

fn sequences(batch: &Batch) -> Dim {
    dim("B", batch.count(Rows::Sequences))
}

/// [`crate::backend::Backend::relu_dropout_backward`]
pub fn relu_dropout_backward<D: Device>(
    be: &CudaBackend<D>, x: &Mat, batch: &Batch, drop: &Dropout, bias: Span, grads: &mut Flat, d: &mut Mat,
) -> Result<()>
where
    D::Buffer: 'static,
{
    const OP: &str = "relu_dropout_backward";
    batch.check_current(OP, be.serial())?;
    let (rows, cols) = (sequences(batch), dim("C", x.cols()));
    x.expect(OP, "x", rows, cols)?;
    d.expect(OP, "d", rows, cols)?;
    expect_wide(OP, "x", x)?;
    let d_bias = grads.span(OP, "bias", bias, cols)?;
    let args = [
        Arg::Read(x.region()),
        Arg::U32(cols.size as u32),
        be.rows_of(x),
        be.dropout(drop),
        Arg::Update(d.region()),
        Arg::Update(d_bias),
    ];
    be.launch(&FAMILY, &[], OP, [cols.size / STRIP, 1, 1], STRIP_BYTES, &args)
}

/// [`crate::backend::Backend::linear`] of a layer with fewer than 64 outputs; y is f32.
pub fn narrow_linear<D: Device>(be: &CudaBackend<D>, x: &Mat, w: &Weights, layer: &Linear, y: &mut Mat) -> Result<()>
where
    D::Buffer: 'static,
{
    const OP: &str = "linear";
    let (rows, inputs, outputs) = (dim("R", x.rows()), layer.inputs, layer.outputs);
    x.expect(OP, "x", rows, dim("in", inputs))?;
    expect_wide(OP, "x", x)?;
    let weight = w.matrix(OP, "weight", layer.weight, dim("out·in", outputs * inputs))?;
    let bias = w.vector(OP, "bias", layer.bias, dim("out", outputs))?;
    y.prepare(OP, "y", rows, dim("out", outputs))?;
    expect_narrow(OP, "y", y)?;
    let rows = be.live(x.kind(), x.capacity().min(y.capacity()));
    let product = Product { x: x.region(), weight, bias, inputs, outputs, rows };
    product.launch(be, y.region())
}

/// y = x Wᵀ + b in f32, some rows of it.
pub(super) struct Product {
    /// From the first of these rows on. [rows, in] bf16
    pub x: Region,
    /// W [out, in] bf16
    pub weight: Region,
    /// b [out] f32
    pub bias: Region,
    /// Columns of x; a multiple of 64.
    pub inputs: usize,
    /// Columns of y: any number.
    pub outputs: usize,
    /// Which of x's matrix.
    pub rows: LiveRows,
}

impl Product {
    /// y [rows, out] f32, from the first of these rows on.
    pub fn launch<D: Device>(&self, be: &CudaBackend<D>, y: Region) -> Result<()>
    where
        D::Buffer: 'static,
    {
        let warps = (self.rows.capacity as usize).div_ceil(SIDE) * self.outputs.div_ceil(SIDE);
        let args = [
            Arg::Read(self.x),
            Arg::Read(self.weight),
            Arg::Read(self.bias),
            Arg::U32(self.inputs as u32),
            Arg::U32(self.outputs as u32),
            Arg::Rows(self.rows),
            Arg::Write(y),
        ];
        be.launch(&FAMILY, &[], "narrow_linear", [warps.div_ceil(8), 1, 1], 0, &args)
    }
}

/// [`crate::backend::Backend::linear_backward`] of a layer with fewer than 64 outputs; d_y is f32.
pub fn narrow_linear_backward<D: Device>(
    be: &CudaBackend<D>, d_y: &Mat, x: &Mat, w: &Weights, layer: &Linear, grads: &mut Flat, d_x: Into<'_, Mat>,
) -> Result<()>
where
    D::Buffer: 'static,
{
    const OP: &str = "linear_backward";
    let (rows, inputs, outputs) = (dim("R", x.rows()), dim("in", layer.inputs), dim("out", layer.outputs));
    x.expect(OP, "x", rows, inputs)?;
    expect_wide(OP, "x", x)?;
    d_y.expect(OP, "d_y", rows, outputs)?;
    expect_narrow(OP, "d_y", d_y)?;
    let product = dim("out·in", outputs.size * inputs.size);
    let d_weight = grads.span(OP, "weight gradient", layer.weight, product)?;
    let sizes = [Arg::U32(inputs.size as u32), Arg::U32(outputs.size as u32), be.rows_of(x)];
    let [width, count, live] = sizes;
    let args = [Arg::Read(d_y.region()), Arg::Read(x.region()), width, count, live, Arg::Update(d_weight)];
    let grid = [inputs.size / STRIP, outputs.size.div_ceil(SIDE), 1];
    be.launch(&FAMILY, &[], "narrow_linear_d_weight", grid, SIDE * STRIP_BYTES, &args)?;

    let (kernel, capacity, to) = match d_x {
        Into::Nowhere => return Ok(()),
        Into::Write(d_x) => {
            d_x.prepare(OP, "d_x", rows, inputs)?;
            ("narrow_linear_d_x", d_x.capacity(), Arg::Write(d_x.region()))
        }
        Into::Add(d_x) => {
            d_x.expect(OP, "d_x", rows, inputs)?;
            ("narrow_linear_d_x_add", d_x.capacity(), Arg::Update(d_x.region()))
        }
    };
    let weight = w.matrix(OP, "weight", layer.weight, product)?;
    let args = [Arg::Read(d_y.region()), Arg::Read(weight), width, count, live, to];
    be.launch(&FAMILY, &[], kernel, elementwise(x.capacity().min(capacity), inputs.size), 0, &args)
}

/// [`crate::backend::Backend::class_cross_entropy`]
pub fn class_cross_entropy<D: Device>(
    be: &CudaBackend<D>, logits: &Mat, batch: &Batch, bias: Span, smoothing: f32, tally: &mut Tally,
    back: Option<LossGrads<'_, Mat, Flat>>,
) -> Result<()>
where
    D::Buffer: 'static,
{
    const OP: &str = "class_cross_entropy";
    batch.check_current(OP, be.serial())?;
    let (rows, classes) = (sequences(batch), dim("K", logits.cols()));
    logits.expect(OP, "logits", rows, classes)?;
    expect_narrow(OP, "logits", logits)?;
    batch.check_labels(OP, classes.size)?;
    let [d_logits, d_bias] = match back {
        None => [Arg::Null, Arg::Null],
        Some(LossGrads { d_x, grads }) => {
            d_x.prepare(OP, "d_x", rows, classes)?;
            [Arg::Write(d_x.region()), Arg::Update(grads.span(OP, "bias", bias, classes)?)]
        }
    };
    let args = [
        Arg::Read(logits.region()),
        Arg::U32(classes.size as u32),
        Arg::Read(batch.labels),
        Arg::Read(batch.label_weights),
        Arg::F32(smoothing),
        Arg::Read(be.head(Head::LossScale)),
        be.rows_of(logits),
        Arg::Update(tally.region()),
        d_logits,
        d_bias,
    ];
    be.launch(&FAMILY, &[], OP, [1, 1, 1], TALLY_BYTES, &args)
}
