//! The CPU backend: f32, rayon, matmul and row loops written once over vectors of any length.
//!
//! In reading order: [`memory`] and [`batch`] (what ops work on), [`simd`] (vector arithmetic),
//! [`matmul`], then the ops, forward and backward side by side: embedding, linear, gelu, attention,
//! layernorm, rows, vocab, classifier, optimizer. Each file's header gives its formulas, shapes and plan.
//!
//! All of it is safe Rust. Tasks are cut by shape alone and every reduction has a fixed order, so
//! the same inputs give the same bits on any number of threads of one kind of machine.

mod attention;
pub mod batch;
mod classifier;
mod columns;
mod embedding;
mod gelu;
mod layernorm;
mod linear;
pub mod matmul;
pub mod memory;
mod optimizer;
mod rows;
mod scratch;
pub mod simd;
mod vocab;

use std::convert::Infallible;

use rayon::prelude::*;

use self::batch::Batch;
use self::memory::{CpuArena, Flat, Mat};
use super::shape::{check_same_len, dim};
use super::{
    AdamW, Backend, BatchLimits, BatchView, Capacity, Dropout, Embedding, Error, Into, Linear, LossGrads, Memory, Norm,
    Pick, Planner, Precision, Result, Span, Tally, UpdateSpan, VocabProjection,
};

/// Computes on the thread pool that is rayon's current one when an op is called.
#[derive(Debug, Default)]
pub struct Cpu {
    scratch: scratch::Pool,
}

impl Cpu {
    /// A backend without working memory as yet.
    pub fn new() -> Self {
        Cpu::default()
    }
}

/// Values in a task that only copies or clears.
const COPY_CHUNK: usize = 1 << 18;

fn copy(from: &[f32], to: &mut [f32]) {
    to.par_chunks_mut(COPY_CHUNK).zip(from.par_chunks(COPY_CHUNK)).for_each(|(to, from)| to.copy_from_slice(from));
}

impl Memory for Cpu {
    type Mat = Mat;
    type Stats = Mat;
    type Weights = Flat;
    type Flat = Flat;
    type Batch = Batch;
    type Tally = Tally;
    type Receipt = Tally;
    type Hyper = Option<AdamW>;
    type Recording = Infallible;
    type Arena = CpuArena;

    fn describe(&self) -> String {
        let threads = rayon::current_num_threads();
        let plural = if threads == 1 { "" } else { "s" };
        format!("cpu, {threads} thread{plural}, {}, f32", simd::Vectors::detect().name())
    }

    fn precision(&self) -> Precision {
        Precision::F32
    }

    fn arena(&self, plan: &Planner) -> Result<CpuArena> {
        CpuArena::new(plan)
    }

    fn batch(&self, capacity: Capacity) -> Result<Batch> {
        Ok(Batch::new(capacity))
    }

    fn upload(&self, view: &BatchView<'_>, limits: &BatchLimits, batch: &mut Batch) -> Result<()> {
        batch.upload(view, limits)
    }

    fn weights(&self, values: &[f32]) -> Result<Flat> {
        let mut weights = Flat::zeros(values.len())?;
        copy(values, weights.values_mut());
        Ok(weights)
    }

    fn read_weights(&self, weights: &Flat) -> Result<Vec<f32>> {
        Ok(weights.values().to_vec())
    }

    fn flat(&self, len: usize) -> Result<Flat> {
        Flat::zeros(len)
    }

    fn read_flat(&self, flat: &Flat) -> Result<Vec<f32>> {
        Ok(flat.values().to_vec())
    }

    fn write_flat(&self, flat: &mut Flat, values: &[f32]) -> Result<()> {
        check_same_len("write_flat", "values", values.len(), flat.values().len())?;
        copy(values, flat.values_mut());
        Ok(())
    }

    fn zero(&self, flat: &mut Flat) -> Result<()> {
        flat.values_mut().par_chunks_mut(COPY_CHUNK).for_each(|values| values.fill(0.0));
        Ok(())
    }

    fn copy(&self, from: &Flat, to: &mut Flat) -> Result<()> {
        check_same_len("copy", "from", from.values().len(), to.values().len())?;
        copy(from.values(), to.values_mut());
        Ok(())
    }

    fn read_mat(&self, mat: &Mat) -> Result<Vec<f32>> {
        Ok(mat.live().to_vec())
    }

    fn write_mat(&self, mat: &mut Mat, rows: usize, values: &[f32]) -> Result<()> {
        const OP: &str = "write_mat";
        let (rows, cols) = (dim("rows", rows), dim("cols", mat.cols()));
        if values.len() != rows.size * cols.size {
            let (got, expected) = (format!("[{}]", values.len()), format!("[{}·{}]", rows.size, cols.size));
            return Err(Error::Shape { op: OP, what: "values", got, expected });
        }
        mat.prepare(OP, "mat", rows, cols)?;
        mat.live_mut().copy_from_slice(values);
        Ok(())
    }

    fn read_stats(&self, stats: &Mat) -> Result<Vec<f32>> {
        self.read_mat(stats)
    }

    fn write_stats(&self, stats: &mut Mat, rows: usize, values: &[f32]) -> Result<()> {
        self.write_mat(stats, rows, values)
    }

    fn tally(&self) -> Result<Tally> {
        Ok(Tally::default())
    }

    fn post_tally(&self, tally: &mut Tally) -> Result<Tally> {
        Ok(std::mem::take(tally))
    }

    fn is_ready(&self, _: &Tally) -> Result<bool> {
        Ok(true)
    }

    fn collect(&self, receipt: Tally) -> Result<Tally> {
        Ok(receipt)
    }

    fn hyper(&self) -> Result<Option<AdamW>> {
        Ok(None)
    }

    fn set_hyper(&self, hyper: &mut Option<AdamW>, values: &AdamW) -> Result<()> {
        *hyper = Some(*values);
        Ok(())
    }

    fn record(&self, _: &mut dyn FnMut() -> Result<()>) -> Result<Option<Infallible>> {
        Ok(None)
    }

    fn replay(&self, recording: &Infallible) -> Result<()> {
        match *recording {}
    }
}

impl Backend for Cpu {
    fn embed(
        &self, batch: &Batch, w: &Flat, layer: &Embedding, drop: &Dropout, stats: &mut Mat, y: &mut Mat,
    ) -> Result<()> {
        embedding::embed(batch, w, layer, drop, stats, y)
    }

    fn embed_backward(
        &self, batch: &Batch, w: &Flat, layer: &Embedding, drop: &Dropout, stats: &Mat, d_y: &mut Mat, grads: &mut Flat,
    ) -> Result<()> {
        embedding::embed_backward(&mut self.scratch.take(), batch, w, layer, drop, stats, d_y, grads)
    }

    fn linear(&self, x: &Mat, w: &Flat, layer: &Linear, y: &mut Mat) -> Result<()> {
        linear::linear(&mut self.scratch.take(), x, w, layer, y)
    }

    fn linear_backward(
        &self, d_y: &Mat, x: &Mat, w: &Flat, layer: &Linear, grads: &mut Flat, d_x: Into<'_, Mat>,
    ) -> Result<()> {
        linear::linear_backward(&mut self.scratch.take(), d_y, x, w, layer, grads, d_x)
    }

    fn linear_gelu(&self, x: &Mat, w: &Flat, layer: &Linear, pre: &mut Mat, y: &mut Mat) -> Result<()> {
        linear::linear_gelu(&mut self.scratch.take(), x, w, layer, pre, y)
    }

    fn linear_backward_gelu(
        &self, d_y: &Mat, x: &Mat, pre: &Mat, w: &Flat, layer: &Linear, bias: Span, grads: &mut Flat, d_pre: &mut Mat,
    ) -> Result<()> {
        linear::linear_backward_gelu(&mut self.scratch.take(), d_y, x, pre, w, layer, bias, grads, d_pre)
    }

    fn gelu_backward(&self, pre: &Mat, bias: Span, grads: &mut Flat, d: &mut Mat) -> Result<()> {
        gelu::gelu_backward(&mut self.scratch.take(), pre, bias, grads, d)
    }

    fn attention(
        &self, qkv: &Mat, batch: &Batch, heads: usize, drop: &Dropout, lse: &mut Mat, ctx: &mut Mat,
    ) -> Result<()> {
        attention::attention(&mut self.scratch.take(), qkv, batch, heads, drop, lse, ctx)
    }

    fn attention_backward(
        &self, qkv: &Mat, batch: &Batch, heads: usize, drop: &Dropout, lse: &Mat, ctx: &Mat, d_ctx: &Mat, bias: Span,
        grads: &mut Flat, d_qkv: &mut Mat,
    ) -> Result<()> {
        let scratch = &mut self.scratch.take();
        attention::attention_backward(scratch, qkv, batch, heads, drop, lse, ctx, d_ctx, bias, grads, d_qkv)
    }

    fn add_layernorm(
        &self, branch: &Mat, residual: Option<&Mat>, batch: &Batch, w: &Flat, norm: &Norm, drop: &Dropout,
        sum: &mut Mat, stats: &mut Mat, y: &mut Mat,
    ) -> Result<()> {
        layernorm::add_layernorm(branch, residual, batch, w, norm, drop, sum, stats, y)
    }

    fn add_layernorm_backward(
        &self, d: &mut Mat, sum: &Mat, stats: &Mat, batch: &Batch, w: &Flat, norm: &Norm, drop: &Dropout,
        bias: Option<Span>, grads: &mut Flat, d_branch: Option<&mut Mat>,
    ) -> Result<()> {
        let scratch = &mut self.scratch.take();
        layernorm::add_layernorm_backward(scratch, d, sum, stats, batch, w, norm, drop, bias, grads, d_branch)
    }

    fn gather_rows(&self, x: &Mat, batch: &Batch, pick: Pick, y: &mut Mat) -> Result<()> {
        rows::gather_rows(x, batch, pick, y)
    }

    fn scatter_rows(&self, d_y: &Mat, batch: &Batch, pick: Pick, d_x: &mut Mat) -> Result<()> {
        rows::scatter_rows(d_y, batch, pick, d_x)
    }

    fn vocab_cross_entropy(
        &self, x: &Mat, batch: &Batch, w: &Flat, layer: &VocabProjection, tally: &mut Tally,
        back: Option<LossGrads<'_, Mat, Flat>>,
    ) -> Result<()> {
        vocab::vocab_cross_entropy(&mut self.scratch.take(), x, batch, w, layer, tally, back)
    }

    fn relu_dropout(&self, x: &Mat, batch: &Batch, drop: &Dropout, y: &mut Mat) -> Result<()> {
        classifier::relu_dropout(x, batch, drop, y)
    }

    fn relu_dropout_backward(
        &self, x: &Mat, batch: &Batch, drop: &Dropout, bias: Span, grads: &mut Flat, d: &mut Mat,
    ) -> Result<()> {
        classifier::relu_dropout_backward(x, batch, drop, bias, grads, d)
    }

    fn class_cross_entropy(
        &self, logits: &Mat, batch: &Batch, bias: Span, smoothing: f32, tally: &mut Tally,
        back: Option<LossGrads<'_, Mat, Flat>>,
    ) -> Result<()> {
        classifier::class_cross_entropy(logits, batch, bias, smoothing, tally, back)
    }

    fn grad_norm(&self, grads: &Flat, tally: &mut Tally) -> Result<()> {
        optimizer::grad_norm(grads, tally);
        Ok(())
    }

    fn adamw(
        &self, w: &mut Flat, grads: &Flat, m: &mut Flat, v: &mut Flat, spans: &[UpdateSpan], hyper: &Option<AdamW>,
        tally: &Tally,
    ) -> Result<()> {
        optimizer::adamw(w, grads, m, v, spans, hyper.as_ref(), tally)
    }

    fn top_k(&self, x: &Mat, w: &Flat, layer: &VocabProjection, k: usize) -> Result<Vec<Vec<(u32, f32)>>> {
        vocab::top_k(&mut self.scratch.take(), x, w, layer, k)
    }
}
