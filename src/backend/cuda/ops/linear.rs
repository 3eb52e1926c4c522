//! Linear layers, and the products of the loss over the vocabulary: operands checked, then computed in whatever way was chosen.

use super::super::CudaBackend;
use super::super::device::{Device, LiveRows, Region};
use super::super::memory::{Flat, Mat, NARROW, Weights};
use super::classifier;
use super::product::{self, Bias, Onto, Product, Task};
use crate::backend::shape::{Dim, dim};
use crate::backend::{Error, Into, Linear, Result, Span, VocabProjection};

/// Products come in tiles of 64 columns at least.
fn expect_tiles(op: &'static str, layer: &Linear) -> Result<()> {
    let fits = |size: usize| size > 0 && size.is_multiple_of(64);
    if fits(layer.inputs) && fits(layer.outputs) {
        return Ok(());
    }
    let got = format!("[out={}, in={}]", layer.outputs, layer.inputs);
    Err(Error::Shape { op, what: "weight", got, expected: "multiples of 64".into() })
}

/// A layer on as many rows as all of some matrices can hold.
fn product_of<D: Device>(be: &CudaBackend<D>, layer: &Linear, mats: &[&Mat]) -> Product
where
    D::Buffer: 'static,
{
    let capacity = mats.iter().map(|mat| mat.capacity()).min().unwrap_or(0);
    let rows = be.live(mats[0].kind(), capacity);
    Product { inputs: layer.inputs, outputs: layer.outputs, rows }
}

// ---- Forward -----------------------------------------------------------------------------------------------------------

/// W and b of a layer, after x has been checked.
fn forward_operands(op: &'static str, x: &Mat, w: &Weights, layer: &Linear) -> Result<(Region, Bias)> {
    x.expect(op, "x", dim("R", x.rows()), dim("in", layer.inputs))?;
    let weight = w.matrix(op, "weight", layer.weight, dim("out·in", layer.outputs * layer.inputs))?;
    let bias = bias(op, w, layer.bias, dim("out", layer.outputs))?;
    expect_tiles(op, layer)?;
    Ok((weight, bias))
}

fn bias(op: &'static str, w: &Weights, span: Span, len: Dim) -> Result<Bias> {
    Ok(Bias { exact: w.vector(op, "bias", span, len)?, rounded: w.matrix(op, "bias", span, len)? })
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
    let (weight, bias) = forward_operands(OP, x, w, layer)?;
    y.prepare(OP, "y", dim("R", x.rows()), dim("out", layer.outputs))?;
    let task = Task::Bias { x: x.region(), weight, bias, y: y.region() };
    product::run(be, &product_of(be, layer, &[x, y]), &task)
}

/// [`crate::backend::Backend::linear_gelu`]
pub fn linear_gelu<D: Device>(
    be: &CudaBackend<D>, x: &Mat, w: &Weights, layer: &Linear, pre: &mut Mat, y: &mut Mat,
) -> Result<()>
where
    D::Buffer: 'static,
{
    const OP: &str = "linear_gelu";
    let (weight, bias) = forward_operands(OP, x, w, layer)?;
    let (rows, outputs) = (dim("R", x.rows()), dim("out", layer.outputs));
    pre.prepare(OP, "pre", rows, outputs)?;
    y.prepare(OP, "y", rows, outputs)?;
    let task = Task::BiasGelu { x: x.region(), weight, bias, pre: pre.region(), y: y.region() };
    product::run(be, &product_of(be, layer, &[x, pre, y]), &task)
}

// ---- Backward ----------------------------------------------------------------------------------------------------------

/// W of a layer, and its gradient, after all that [`Task::Dw`] needs has been checked.
fn backward_operands(
    op: &'static str, d_y: &Mat, x: &Mat, w: &Weights, layer: &Linear, grads: &Flat,
) -> Result<(Region, Region)> {
    let (rows, size) = (dim("R", x.rows()), dim("out·in", layer.outputs * layer.inputs));
    x.expect(op, "x", rows, dim("in", layer.inputs))?;
    d_y.expect(op, "d_y", rows, dim("out", layer.outputs))?;
    let d_weight = grads.span(op, "weight gradient", layer.weight, size)?;
    let weight = w.matrix(op, "weight", layer.weight, size)?;
    expect_tiles(op, layer)?;
    Ok((weight, d_weight))
}

/// d_W += d_yᵀ x
fn weight_gradient<D: Device>(be: &CudaBackend<D>, d_y: &Mat, x: &Mat, layer: &Linear, d_weight: Region) -> Result<()>
where
    D::Buffer: 'static,
{
    let task = Task::Dw { d_y: d_y.region(), x: x.region(), d_weight };
    product::run(be, &product_of(be, layer, &[x, d_y]), &task)
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
    let (weight, d_weight) = backward_operands(OP, d_y, x, w, layer, grads)?;
    let (rows, inputs) = (dim("R", x.rows()), dim("in", layer.inputs));
    weight_gradient(be, d_y, x, layer, d_weight)?;
    let (mat, d_x) = match d_x {
        Into::Nowhere => return Ok(()),
        Into::Write(d_x) => {
            d_x.prepare(OP, "d_x", rows, inputs)?;
            (&*d_x, Onto::Write(d_x.region()))
        }
        Into::Add(d_x) => {
            d_x.expect(OP, "d_x", rows, inputs)?;
            (&*d_x, Onto::Add(d_x.region()))
        }
    };
    product::run(be, &product_of(be, layer, &[d_y, mat]), &Task::Dx { d_y: d_y.region(), weight, d_x })
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
    let (weight, d_weight) = backward_operands(OP, d_y, x, w, layer, grads)?;
    let (rows, inputs) = (dim("R", x.rows()), dim("in", layer.inputs));
    pre.expect(OP, "pre", rows, inputs)?;
    let d_bias = grads.span(OP, "bias", bias, inputs)?;
    d_pre.prepare(OP, "d_pre", rows, inputs)?;
    weight_gradient(be, d_y, x, layer, d_weight)?;
    let task = Task::DxGelu { d_y: d_y.region(), weight, pre: pre.region(), d_pre: d_pre.region(), d_bias };
    product::run(be, &product_of(be, layer, &[d_y, pre, d_pre]), &task)
}

// ---- The vocabulary, a chunk of rows at a time -------------------------------------------------------------------------

/// A chunk of rows and the layer over the vocabulary. `x` and `d_x` begin at the chunk's first row, `logits` [rows, V,
/// padded] at its own first.
#[derive(Debug, Clone, Copy)]
pub(super) struct VocabChunk<'a> {
    pub layer: &'a VocabProjection,
    pub rows: LiveRows,
    pub x: Region,
    pub logits: Region,
}

impl VocabChunk<'_> {
    const OP: &'static str = "vocab_cross_entropy";

    fn product(&self) -> Product {
        Product { inputs: self.layer.width, outputs: self.layer.vocab, rows: self.rows }
    }

    fn weight_size(&self) -> Dim {
        dim("V·C", self.layer.vocab * self.layer.width)
    }

    fn weight(&self, w: &Weights) -> Result<Region> {
        w.matrix(Self::OP, "weight", self.layer.weight, self.weight_size())
    }

    /// logits = x Wᵀ + b, and zeros in columns from V on.
    pub fn logits<D: Device>(&self, be: &CudaBackend<D>, w: &Weights) -> Result<()>
    where
        D::Buffer: 'static,
    {
        let weight = self.weight(w)?;
        let bias = bias(Self::OP, w, self.layer.bias, dim("V", self.layer.vocab))?;
        product::run(be, &self.product(), &Task::Bias { x: self.x, weight, bias, y: self.logits })
    }

    /// d_x = d_logits W, of logits that have become their gradient.
    pub fn d_x<D: Device>(&self, be: &CudaBackend<D>, w: &Weights, d_x: Region) -> Result<()>
    where
        D::Buffer: 'static,
    {
        let weight = self.weight(w)?;
        let d_x = d_x.part(0, d_x.bytes().min(self.rows.capacity as usize * self.layer.width * 2));
        product::run(be, &self.product(), &Task::DxOfMany { d_y: self.logits, weight, d_x })
    }

    /// d_W += d_logitsᵀ x
    pub fn d_weight<D: Device>(&self, be: &CudaBackend<D>, grads: &mut Flat) -> Result<()>
    where
        D::Buffer: 'static,
    {
        let d_weight = grads.span(Self::OP, "weight gradient", self.layer.weight, self.weight_size())?;
        product::run(be, &self.product(), &Task::Dw { d_y: self.logits, x: self.x, d_weight })
    }
}
