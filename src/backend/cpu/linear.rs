//! Linear layers: y = x Wᵀ + b, with or without a GELU after it, and their backward passes.
//!   x [R, in]   W [out, in]   b [out]   y [R, out]
//! Products as in matmul: tasks are blocks of rows of the result; bias, GELU, GELU backward and the
//! sums for the bias gradient are done on each tile as it is completed.

use pulp::Simd;
use rayon::prelude::*;

use super::columns::add_partials;
use super::gelu::{backward_part, gelu};
use super::matmul::{Finish, Output, Plain, Product, Start, View, block_rows};
use super::memory::{Buffer, Flat, Mat};
use super::scratch::Scratch;
use super::simd;
use crate::backend::shape::dim;
use crate::backend::{Into, Linear, Result, Span};

/// [`crate::backend::Backend::linear`]
pub fn linear(scratch: &mut Scratch, x: &Mat, w: &Flat, layer: &Linear, y: &mut Mat) -> Result<()> {
    const OP: &str = "linear";
    let (weight, bias) = forward_operands(OP, x, w, layer)?;
    y.prepare(OP, "y", dim("R", x.rows()), dim("out", layer.outputs))?;
    let mut out = Biased { y: y.live_mut(), bias };
    forward_product(scratch, x, weight, layer, &mut out)
}

/// [`crate::backend::Backend::linear_gelu`]
pub fn linear_gelu(scratch: &mut Scratch, x: &Mat, w: &Flat, layer: &Linear, pre: &mut Mat, y: &mut Mat) -> Result<()> {
    const OP: &str = "linear_gelu";
    let (weight, bias) = forward_operands(OP, x, w, layer)?;
    pre.prepare(OP, "pre", dim("R", x.rows()), dim("out", layer.outputs))?;
    y.prepare(OP, "y", dim("R", x.rows()), dim("out", layer.outputs))?;
    let mut out = BiasedGelu { pre: pre.live_mut(), y: y.live_mut(), bias };
    forward_product(scratch, x, weight, layer, &mut out)
}

fn forward_operands<'a>(op: &'static str, x: &Mat, w: &'a Flat, layer: &Linear) -> Result<(&'a [f32], &'a [f32])> {
    x.expect(op, "x", dim("R", x.rows()), dim("in", layer.inputs))?;
    let weight = w.span(op, "weight", layer.weight, dim("out·in", layer.outputs * layer.inputs))?;
    Ok((weight, w.span(op, "bias", layer.bias, dim("out", layer.outputs))?))
}

fn forward_product(
    scratch: &mut Scratch, x: &Mat, weight: &[f32], layer: &Linear, out: &mut impl Output,
) -> Result<()> {
    let (inputs, outputs) = (layer.inputs, layer.outputs);
    let (a, b) = (View::rows(x.live(), inputs), View::transposed(weight, inputs));
    let product = Product { rows: x.rows(), cols: outputs, depth: inputs, a, b, start: Start::Zero };
    product.run(&mut scratch.panels, out)
}

/// [`crate::backend::Backend::linear_backward`]
pub fn linear_backward(
    scratch: &mut Scratch, d_y: &Mat, x: &Mat, w: &Flat, layer: &Linear, grads: &mut Flat, d_x: Into<'_, Mat>,
) -> Result<()> {
    const OP: &str = "linear_backward";
    weight_gradient(OP, &mut scratch.panels, d_y, x, layer, grads)?;
    let rows = dim("R", x.rows());
    let (d_x, start) = match d_x {
        Into::Nowhere => return Ok(()),
        Into::Write(d_x) => {
            d_x.prepare(OP, "d_x", rows, dim("in", layer.inputs))?;
            (d_x, Start::Zero)
        }
        Into::Add(d_x) => {
            d_x.expect(OP, "d_x", rows, dim("in", layer.inputs))?;
            (d_x, Start::Add)
        }
    };
    let mut out = Plain { c: d_x.live_mut(), cols: layer.inputs };
    input_gradient(OP, &mut scratch.panels, d_y, w, layer, start, &mut out)
}

/// [`crate::backend::Backend::linear_backward_gelu`]
#[allow(clippy::too_many_arguments)]
pub fn linear_backward_gelu(
    scratch: &mut Scratch, d_y: &Mat, x: &Mat, pre: &Mat, w: &Flat, layer: &Linear, bias: Span, grads: &mut Flat,
    d_pre: &mut Mat,
) -> Result<()> {
    const OP: &str = "linear_backward_gelu";
    weight_gradient(OP, &mut scratch.panels, d_y, x, layer, grads)?;
    let (rows, cols) = (x.rows(), layer.inputs);
    pre.expect(OP, "pre", dim("R", rows), dim("in", cols))?;
    d_pre.prepare(OP, "d_pre", dim("R", rows), dim("in", cols))?;
    let d_bias = grads.span_mut(OP, "bias", bias, dim("in", cols))?;
    let sums = scratch.partials.scratch(rows.div_ceil(block_rows(rows)) * cols)?;
    sums.fill(0.0);
    let mut out = ThroughGelu { d_pre: d_pre.live_mut(), pre: pre.live(), sums, cols };
    input_gradient(OP, &mut scratch.panels, d_y, w, layer, Start::Zero, &mut out)?;
    add_partials(sums, d_bias);
    Ok(())
}

/// d_W += d_yᵀ x
fn weight_gradient(
    op: &'static str, panels: &mut Buffer, d_y: &Mat, x: &Mat, layer: &Linear, grads: &mut Flat,
) -> Result<()> {
    let (inputs, outputs) = (layer.inputs, layer.outputs);
    x.expect(op, "x", dim("R", x.rows()), dim("in", inputs))?;
    d_y.expect(op, "d_y", dim("R", x.rows()), dim("out", outputs))?;
    let d_weight = grads.span_mut(op, "weight gradient", layer.weight, dim("out·in", outputs * inputs))?;
    let (a, b) = (View::transposed(d_y.live(), outputs), View::rows(x.live(), inputs));
    let product = Product { rows: outputs, cols: inputs, depth: x.rows(), a, b, start: Start::Add };
    product.run(panels, &mut Plain { c: d_weight, cols: inputs })
}

/// d_x (+)= d_y W
fn input_gradient(
    op: &'static str, panels: &mut Buffer, d_y: &Mat, w: &Flat, layer: &Linear, start: Start, out: &mut impl Output,
) -> Result<()> {
    let (inputs, outputs) = (layer.inputs, layer.outputs);
    let weight = w.span(op, "weight", layer.weight, dim("out·in", outputs * inputs))?;
    let (a, b) = (View::rows(d_y.live(), outputs), View::rows(weight, inputs));
    Product { rows: d_y.rows(), cols: inputs, depth: outputs, a, b, start }.run(panels, out)
}

/// y = sums + b
struct Biased<'a> {
    y: &'a mut [f32],
    bias: &'a [f32],
}

struct AddBias<'a> {
    bias: &'a [f32],
}

impl Finish for AddBias<'_> {
    #[inline(always)]
    fn part<S: Simd>(&mut self, simd: S, _row: usize, col: usize, c: &mut [f32]) {
        let bias = &self.bias[col..][..c.len()];
        simd::add(simd, c, bias);
    }
}

impl Output for Biased<'_> {
    type Finish<'a>
        = AddBias<'a>
    where
        Self: 'a;
    fn blocks(&mut self, rows: usize) -> impl IndexedParallelIterator<Item = (&mut [f32], AddBias<'_>)> {
        let bias = self.bias;
        self.y.par_chunks_mut(rows * bias.len()).map(move |y| (y, AddBias { bias }))
    }
}

/// pre = sums + b; y = gelu(pre)
struct BiasedGelu<'a> {
    pre: &'a mut [f32],
    y: &'a mut [f32],
    bias: &'a [f32],
}

struct AddBiasThenGelu<'a> {
    y: &'a mut [f32],
    bias: &'a [f32],
}

impl Finish for AddBiasThenGelu<'_> {
    #[inline(always)]
    fn part<S: Simd>(&mut self, simd: S, row: usize, col: usize, c: &mut [f32]) {
        let bias = &self.bias[col..][..c.len()];
        let y = &mut self.y[row * self.bias.len() + col..][..c.len()];
        simd::update(
            simd,
            [c, y],
            [bias],
            #[inline(always)]
            |[sum, _], [bias]| {
                let pre = simd.add_f32s(sum, bias);
                [pre, gelu(simd, pre)]
            },
        );
    }
}

impl Output for BiasedGelu<'_> {
    type Finish<'a>
        = AddBiasThenGelu<'a>
    where
        Self: 'a;
    fn blocks(&mut self, rows: usize) -> impl IndexedParallelIterator<Item = (&mut [f32], AddBiasThenGelu<'_>)> {
        let (bias, chunk) = (self.bias, rows * self.bias.len());
        let ys = self.y.par_chunks_mut(chunk);
        self.pre.par_chunks_mut(chunk).zip(ys).map(move |(pre, y)| (pre, AddBiasThenGelu { y, bias }))
    }
}

/// d_pre = sums ∘ gelu'(pre), and its column sums block by block.
struct ThroughGelu<'a> {
    d_pre: &'a mut [f32],
    pre: &'a [f32],
    sums: &'a mut [f32],
    cols: usize,
}

struct GeluBackward<'a> {
    pre: &'a [f32],
    sums: &'a mut [f32],
}

impl Finish for GeluBackward<'_> {
    #[inline(always)]
    fn part<S: Simd>(&mut self, simd: S, row: usize, col: usize, c: &mut [f32]) {
        let pre = &self.pre[row * self.sums.len() + col..][..c.len()];
        backward_part(simd, c, &mut self.sums[col..], pre);
    }
}

impl Output for ThroughGelu<'_> {
    type Finish<'a>
        = GeluBackward<'a>
    where
        Self: 'a;
    fn blocks(&mut self, rows: usize) -> impl IndexedParallelIterator<Item = (&mut [f32], GeluBackward<'_>)> {
        let chunk = rows * self.cols;
        let extras = self.pre.par_chunks(chunk).zip(self.sums.par_chunks_mut(self.cols));
        let blocks = self.d_pre.par_chunks_mut(chunk).zip(extras);
        blocks.map(|(d_pre, (pre, sums))| (d_pre, GeluBackward { pre, sums }))
    }
}
