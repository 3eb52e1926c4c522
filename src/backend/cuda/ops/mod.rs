//! The launchers: one file for each file of kernels, forward and backward together. Each checks shapes by name, finds
//! the kernel for the sizes at hand and hands it its arguments.

pub mod adamw;
pub mod attention;
pub mod classifier;
pub mod cross_entropy;
pub mod embedding;
pub mod gelu;
pub mod layernorm;
mod library;
pub mod linear;
pub mod matmul;
pub mod matmul_hopper;
pub mod product;
pub mod rows;

use super::CudaBackend;
use super::batch::Batch;
use super::device::Device;
use super::memory::{Allocation, Flat, Mat, Tally, Weights};
use crate::backend::{
    Backend, Dropout, Embedding, Into, Linear, LossGrads, Norm, Pick, Result, Span, UpdateSpan, VocabProjection,
};

impl<D: Device> Backend for CudaBackend<D>
where
    D::Buffer: 'static,
{
    fn embed(
        &self, batch: &Batch, w: &Weights, layer: &Embedding, drop: &Dropout, stats: &mut Mat, y: &mut Mat,
    ) -> Result<()> {
        embedding::embed(self, batch, w, layer, drop, stats, y)
    }

    fn embed_backward(
        &self, batch: &Batch, w: &Weights, layer: &Embedding, drop: &Dropout, stats: &Mat, d_y: &mut Mat,
        grads: &mut Flat,
    ) -> Result<()> {
        embedding::embed_backward(self, batch, w, layer, drop, stats, d_y, grads)
    }

    fn linear(&self, x: &Mat, w: &Weights, layer: &Linear, y: &mut Mat) -> Result<()> {
        linear::linear(self, x, w, layer, y)
    }

    fn linear_backward(
        &self, d_y: &Mat, x: &Mat, w: &Weights, layer: &Linear, grads: &mut Flat, d_x: Into<'_, Mat>,
    ) -> Result<()> {
        linear::linear_backward(self, d_y, x, w, layer, grads, d_x)
    }

    fn linear_gelu(&self, x: &Mat, w: &Weights, layer: &Linear, pre: &mut Mat, y: &mut Mat) -> Result<()> {
        linear::linear_gelu(self, x, w, layer, pre, y)
    }

    fn linear_backward_gelu(
        &self, d_y: &Mat, x: &Mat, pre: &Mat, w: &Weights, layer: &Linear, bias: Span, grads: &mut Flat,
        d_pre: &mut Mat,
    ) -> Result<()> {
        linear::linear_backward_gelu(self, d_y, x, pre, w, layer, bias, grads, d_pre)
    }

    fn gelu_backward(&self, pre: &Mat, bias: Span, grads: &mut Flat, d: &mut Mat) -> Result<()> {
        gelu::gelu_backward(self, pre, bias, grads, d)
    }

    fn attention(
        &self, qkv: &Mat, batch: &Batch, heads: usize, drop: &Dropout, lse: &mut Mat, ctx: &mut Mat,
    ) -> Result<()> {
        attention::attention(self, qkv, batch, heads, drop, lse, ctx)
    }

    fn attention_backward(
        &self, qkv: &Mat, batch: &Batch, heads: usize, drop: &Dropout, lse: &Mat, ctx: &Mat, d_ctx: &Mat, bias: Span,
        grads: &mut Flat, d_qkv: &mut Mat,
    ) -> Result<()> {
        attention::attention_backward(self, qkv, batch, heads, drop, lse, ctx, d_ctx, bias, grads, d_qkv)
    }

    fn add_layernorm(
        &self, branch: &Mat, residual: Option<&Mat>, batch: &Batch, w: &Weights, norm: &Norm, drop: &Dropout,
        sum: &mut Mat, stats: &mut Mat, y: &mut Mat,
    ) -> Result<()> {
        layernorm::add_layernorm(self, branch, residual, batch, w, norm, drop, sum, stats, y)
    }

    fn add_layernorm_backward(
        &self, d: &mut Mat, sum: &Mat, stats: &Mat, batch: &Batch, w: &Weights, norm: &Norm, drop: &Dropout,
        bias: Option<Span>, grads: &mut Flat, d_branch: Option<&mut Mat>,
    ) -> Result<()> {
        layernorm::add_layernorm_backward(self, d, sum, stats, batch, w, norm, drop, bias, grads, d_branch)
    }

    fn gather_rows(&self, x: &Mat, batch: &Batch, pick: Pick, y: &mut Mat) -> Result<()> {
        rows::gather_rows(self, x, batch, pick, y)
    }

    fn scatter_rows(&self, d_y: &Mat, batch: &Batch, pick: Pick, d_x: &mut Mat) -> Result<()> {
        rows::scatter_rows(self, d_y, batch, pick, d_x)
    }

    fn vocab_cross_entropy(
        &self, x: &Mat, batch: &Batch, w: &Weights, layer: &VocabProjection, tally: &mut Tally,
        back: Option<LossGrads<'_, Mat, Flat>>,
    ) -> Result<()> {
        cross_entropy::vocab_cross_entropy(self, x, batch, w, layer, tally, back)
    }

    fn relu_dropout(&self, x: &Mat, batch: &Batch, drop: &Dropout, y: &mut Mat) -> Result<()> {
        classifier::relu_dropout(self, x, batch, drop, y)
    }

    fn relu_dropout_backward(
        &self, x: &Mat, batch: &Batch, drop: &Dropout, bias: Span, grads: &mut Flat, d: &mut Mat,
    ) -> Result<()> {
        classifier::relu_dropout_backward(self, x, batch, drop, bias, grads, d)
    }

    fn class_cross_entropy(
        &self, logits: &Mat, batch: &Batch, bias: Span, smoothing: f32, tally: &mut Tally,
        back: Option<LossGrads<'_, Mat, Flat>>,
    ) -> Result<()> {
        classifier::class_cross_entropy(self, logits, batch, bias, smoothing, tally, back)
    }

    fn grad_norm(&self, grads: &Flat, tally: &mut Tally) -> Result<()> {
        adamw::grad_norm(self, grads, tally)
    }

    fn adamw(
        &self, w: &mut Weights, grads: &Flat, m: &mut Flat, v: &mut Flat, spans: &[UpdateSpan], hyper: &Allocation,
        tally: &Tally,
    ) -> Result<()> {
        adamw::adamw(self, w, grads, m, v, spans, hyper, tally)
    }

    fn top_k(&self, x: &Mat, w: &Weights, layer: &VocabProjection, k: usize) -> Result<Vec<Vec<(u32, f32)>>> {
        cross_entropy::top_k(self, x, w, layer, k)
    }
}
