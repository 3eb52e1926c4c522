//! The oracle as a backend: the plain lines of `handbert::check::reference` under the model's own forward and backward pass.
//! In f64 it says what a whole step should give, in [`Mixed`] how far off an honest bf16 computation is.

use handbert::backend::{
    AdamW, Arena, Backend, BatchLimits, BatchView, Capacity, Dropout, Embedding, Into, Linear, LossGrads, Memory, Norm,
    Pick, Planner, Precision, Result, Rows, Span, Tally, UpdateSpan, VocabProjection,
};

use handbert::check::reference::attention::{Attention, Place};
use handbert::check::reference::cross_entropy::{self, cross_entropy, smoothed_cross_entropy};
use handbert::check::reference::embedding::{look_up, look_up_backward};
use handbert::check::reference::gelu::{gelu, gelu_backward};
use handbert::check::reference::layernorm::{layernorm, layernorm_backward, residual_sum};
use handbert::check::reference::linear::{linear, linear_backward};
use handbert::check::reference::optimizer::{self, State};
use handbert::check::reference::rows::{gather, picked, relu_dropout, relu_dropout_backward, scatter};
use handbert::check::reference::{Scalar, add_rows, cast, hadamard, keep, stored};

/// Computes with these numbers.
#[derive(Debug, Default)]
pub struct Reference<T>(std::marker::PhantomData<T>);

/// A batch with its owner.
#[derive(Debug, Default)]
pub struct Batch {
    ids: Vec<u32>,
    position_ids: Vec<u32>,
    cu_seqlens: Vec<u32>,
    masked_rows: Vec<u32>,
    targets: Vec<u32>,
    labels: Vec<i32>,
    label_weights: Vec<f32>,
    loss_scale: f32,
    step: u32,
}

impl Batch {
    fn view(&self) -> BatchView<'_> {
        BatchView {
            ids: &self.ids,
            position_ids: &self.position_ids,
            cu_seqlens: &self.cu_seqlens,
            masked_rows: &self.masked_rows,
            targets: &self.targets,
            labels: &self.labels,
            label_weights: &self.label_weights,
            loss_scale: self.loss_scale,
            step: self.step,
        }
    }
}

/// Matrices of any number of rows.
#[derive(Debug)]
pub struct AnyRows<T>(std::marker::PhantomData<T>);

impl<T> Arena for AnyRows<T> {
    type Mat = Mat<T>;
    type Stats = Mat<T>;
    fn mat(&mut self, _: Rows, cols: usize) -> Mat<T> {
        Mat { values: Vec::new(), cols }
    }
    fn stats(&mut self, rows: Rows, cols: usize) -> Mat<T> {
        self.mat(rows, cols)
    }
}

/// Row-major.
#[derive(Debug)]
pub struct Mat<T> {
    values: Vec<T>,
    cols: usize,
}

fn back<T: Scalar>(values: &[T]) -> Vec<f32> {
    values.iter().map(|x| x.to_f64() as f32).collect()
}

impl<T: Scalar> Memory for Reference<T> {
    type Mat = Mat<T>;
    type Stats = Mat<T>;
    type Weights = Vec<T>;
    type Flat = Vec<T>;
    type Batch = Batch;
    type Tally = Tally;
    type Receipt = Tally;
    type Hyper = Option<AdamW>;
    type Recording = std::convert::Infallible;
    type Arena = AnyRows<T>;

    fn describe(&self) -> String {
        "reference".into()
    }
    fn precision(&self) -> Precision {
        Precision::F32
    }
    fn arena(&self, _: &Planner) -> Result<AnyRows<T>> {
        Ok(AnyRows(std::marker::PhantomData))
    }
    fn batch(&self, _: Capacity) -> Result<Batch> {
        Ok(Batch::default())
    }
    fn upload(&self, view: &BatchView<'_>, _: &BatchLimits, batch: &mut Batch) -> Result<()> {
        let sequences = view.cu_seqlens.len() - 1;
        *batch = Batch {
            ids: view.ids.to_vec(),
            position_ids: view.position_ids.to_vec(),
            cu_seqlens: view.cu_seqlens.to_vec(),
            masked_rows: view.masked_rows.to_vec(),
            targets: view.targets.to_vec(),
            labels: if view.labels.is_empty() { vec![-1; sequences] } else { view.labels.to_vec() },
            label_weights: if view.label_weights.is_empty() {
                vec![1.0; sequences]
            } else {
                view.label_weights.to_vec()
            },
            loss_scale: view.loss_scale,
            step: view.step,
        };
        Ok(())
    }
    fn weights(&self, values: &[f32]) -> Result<Vec<T>> {
        Ok(cast(values))
    }
    fn read_weights(&self, weights: &Vec<T>) -> Result<Vec<f32>> {
        Ok(back(weights))
    }
    fn flat(&self, len: usize) -> Result<Vec<T>> {
        Ok(vec![T::default(); len])
    }
    fn read_flat(&self, flat: &Vec<T>) -> Result<Vec<f32>> {
        Ok(back(flat))
    }
    fn write_flat(&self, flat: &mut Vec<T>, values: &[f32]) -> Result<()> {
        *flat = cast(values);
        Ok(())
    }
    fn zero(&self, flat: &mut Vec<T>) -> Result<()> {
        flat.fill(T::default());
        Ok(())
    }
    fn copy(&self, from: &Vec<T>, to: &mut Vec<T>) -> Result<()> {
        to.clone_from(from);
        Ok(())
    }
    fn read_mat(&self, mat: &Mat<T>) -> Result<Vec<f32>> {
        Ok(back(&mat.values))
    }
    fn write_mat(&self, mat: &mut Mat<T>, _: usize, values: &[f32]) -> Result<()> {
        mat.values = stored(cast(values));
        Ok(())
    }
    fn read_stats(&self, stats: &Mat<T>) -> Result<Vec<f32>> {
        self.read_mat(stats)
    }
    fn write_stats(&self, stats: &mut Mat<T>, rows: usize, values: &[f32]) -> Result<()> {
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
    fn record(&self, _: &mut dyn FnMut() -> Result<()>) -> Result<Option<Self::Recording>> {
        Ok(None)
    }
    fn replay(&self, recording: &Self::Recording) -> Result<()> {
        match *recording {}
    }
}

/// A parameter read as a vector, or as a matrix in the compute type.
fn vector<T: Scalar>(w: &[T], span: Span) -> Vec<T> {
    w[span.range()].to_vec()
}

fn matrix<T: Scalar>(w: &[T], span: Span) -> Vec<T> {
    stored(vector(w, span))
}

/// Activations are stored; a few classes' logits are not rounded (see `NARROW`).
fn kept<T: Scalar>(values: Vec<T>, cols: usize) -> Vec<T> {
    if cols < handbert::backend::cuda::memory::NARROW { values } else { stored(values) }
}

/// The batch's multipliers for a matrix of `values.len() / cols` rows.
fn keep_of<T: Scalar>(drop: &Dropout, batch: &Batch, len: usize, cols: usize) -> Vec<T> {
    keep(drop, batch.step, len / cols, cols)
}

impl<T: Scalar> Reference<T> {
    fn attend<'a>(&self, batch: &'a Batch, heads: usize, width: usize, drop: &Dropout) -> Attention<'a> {
        let first = Place::default();
        Attention { cu_seqlens: &batch.cu_seqlens, heads, width, drop: *drop, step: batch.step, first }
    }

    fn logits(x: &Mat<T>, w: &[T], layer: &VocabProjection) -> Vec<T> {
        linear(&x.values, &matrix(w, layer.weight), &vector(w, layer.bias))
    }
}

impl<T: Scalar> Backend for Reference<T> {
    fn embed(
        &self, batch: &Batch, w: &Vec<T>, layer: &Embedding, drop: &Dropout, stats: &mut Mat<T>, y: &mut Mat<T>,
    ) -> Result<()> {
        let x = look_up(&batch.view(), &matrix(w, layer.word), &matrix(w, layer.position), layer.width);
        let (normed, of_rows) =
            layernorm(&x, &vector(w, layer.norm.gamma), &vector(w, layer.norm.beta), T::of(layer.norm.epsilon.into()));
        stats.values = of_rows;
        y.values = stored(hadamard(&normed, &keep_of(drop, batch, normed.len(), layer.width)));
        Ok(())
    }

    fn embed_backward(
        &self, batch: &Batch, w: &Vec<T>, layer: &Embedding, drop: &Dropout, stats: &Mat<T>, d_y: &mut Mat<T>,
        grads: &mut Vec<T>,
    ) -> Result<()> {
        let x = look_up(&batch.view(), &matrix(w, layer.word), &matrix(w, layer.position), layer.width);
        let d = hadamard(&d_y.values, &keep_of(drop, batch, d_y.values.len(), layer.width));
        let [mut d_gamma, mut d_beta, mut d_word, mut d_position] =
            [layer.norm.gamma, layer.norm.beta, layer.word, layer.position].map(|span| vector(grads, span));
        let gamma = vector(w, layer.norm.gamma);
        d_y.values = stored(layernorm_backward(&d, &x, &stats.values, &gamma, &mut d_gamma, &mut d_beta));
        look_up_backward(&batch.view(), &d_y.values, layer.padding_idx, layer.width, &mut d_word, &mut d_position);
        grads[layer.norm.gamma.range()].copy_from_slice(&d_gamma);
        grads[layer.norm.beta.range()].copy_from_slice(&d_beta);
        grads[layer.word.range()].copy_from_slice(&d_word);
        grads[layer.position.range()].copy_from_slice(&d_position);
        Ok(())
    }

    fn linear(&self, x: &Mat<T>, w: &Vec<T>, layer: &Linear, y: &mut Mat<T>) -> Result<()> {
        y.values = kept(linear(&x.values, &matrix(w, layer.weight), &vector(w, layer.bias)), layer.outputs);
        Ok(())
    }

    fn linear_backward(
        &self, d_y: &Mat<T>, x: &Mat<T>, w: &Vec<T>, layer: &Linear, grads: &mut Vec<T>, d_x: Into<'_, Mat<T>>,
    ) -> Result<()> {
        let d_weight = &mut grads[layer.weight.range()];
        let d = linear_backward(&d_y.values, &x.values, &matrix(w, layer.weight), layer.inputs, d_weight);
        match d_x {
            Into::Nowhere => {}
            Into::Write(d_x) => d_x.values = stored(d),
            Into::Add(d_x) => d_x.values = stored(d_x.values.iter().zip(d).map(|(&before, d)| before + d).collect()),
        }
        Ok(())
    }

    fn linear_gelu(&self, x: &Mat<T>, w: &Vec<T>, layer: &Linear, pre: &mut Mat<T>, y: &mut Mat<T>) -> Result<()> {
        self.linear(x, w, layer, pre)?;
        y.values = stored(pre.values.iter().map(|&x| gelu(x)).collect());
        Ok(())
    }

    fn linear_backward_gelu(
        &self, d_y: &Mat<T>, x: &Mat<T>, pre: &Mat<T>, w: &Vec<T>, layer: &Linear, bias: Span, grads: &mut Vec<T>,
        d_pre: &mut Mat<T>,
    ) -> Result<()> {
        let d_weight = &mut grads[layer.weight.range()];
        let d = linear_backward(&d_y.values, &x.values, &matrix(w, layer.weight), layer.inputs, d_weight);
        d_pre.values = stored(gelu_backward(&pre.values, &d));
        add_rows(&d_pre.values, &mut grads[bias.range()]);
        Ok(())
    }

    fn gelu_backward(&self, pre: &Mat<T>, bias: Span, grads: &mut Vec<T>, d: &mut Mat<T>) -> Result<()> {
        d.values = stored(gelu_backward(&pre.values, &d.values));
        add_rows(&d.values, &mut grads[bias.range()]);
        Ok(())
    }

    fn attention(
        &self, qkv: &Mat<T>, batch: &Batch, heads: usize, drop: &Dropout, lse: &mut Mat<T>, ctx: &mut Mat<T>,
    ) -> Result<()> {
        (ctx.values, lse.values) = self.attend(batch, heads, ctx.cols, drop).forward(&qkv.values);
        Ok(())
    }

    fn attention_backward(
        &self, qkv: &Mat<T>, batch: &Batch, heads: usize, drop: &Dropout, _: &Mat<T>, ctx: &Mat<T>, d_ctx: &Mat<T>,
        bias: Span, grads: &mut Vec<T>, d_qkv: &mut Mat<T>,
    ) -> Result<()> {
        d_qkv.values = stored(self.attend(batch, heads, ctx.cols, drop).backward(&qkv.values, &d_ctx.values));
        add_rows(&d_qkv.values, &mut grads[bias.range()]);
        Ok(())
    }

    fn add_layernorm(
        &self, branch: &Mat<T>, residual: Option<&Mat<T>>, batch: &Batch, w: &Vec<T>, norm: &Norm, drop: &Dropout,
        sum: &mut Mat<T>, stats: &mut Mat<T>, y: &mut Mat<T>,
    ) -> Result<()> {
        let keep = keep_of(drop, batch, branch.values.len(), branch.cols);
        sum.values = stored(residual_sum(&branch.values, residual.map(|r| &r.values[..]), &keep));
        let (gamma, beta) = (vector(w, norm.gamma), vector(w, norm.beta));
        let (normed, of_rows) = layernorm(&sum.values, &gamma, &beta, T::of(norm.epsilon.into()));
        (y.values, stats.values) = (stored(normed), of_rows);
        Ok(())
    }

    fn add_layernorm_backward(
        &self, d: &mut Mat<T>, sum: &Mat<T>, stats: &Mat<T>, batch: &Batch, w: &Vec<T>, norm: &Norm, drop: &Dropout,
        bias: Option<Span>, grads: &mut Vec<T>, d_branch: Option<&mut Mat<T>>,
    ) -> Result<()> {
        let [mut d_gamma, mut d_beta] = [norm.gamma, norm.beta].map(|span| vector(grads, span));
        let gamma = vector(w, norm.gamma);
        let d_sum = layernorm_backward(&d.values, &sum.values, &stats.values, &gamma, &mut d_gamma, &mut d_beta);
        grads[norm.gamma.range()].copy_from_slice(&d_gamma);
        grads[norm.beta.range()].copy_from_slice(&d_beta);
        let of_branch = hadamard(&d_sum, &keep_of(drop, batch, d_sum.len(), d.cols));
        if let Some(bias) = bias {
            add_rows(&of_branch, &mut grads[bias.range()]);
        }
        if let Some(d_branch) = d_branch {
            d_branch.values = stored(of_branch);
        }
        d.values = stored(d_sum);
        Ok(())
    }

    fn gather_rows(&self, x: &Mat<T>, batch: &Batch, pick: Pick, y: &mut Mat<T>) -> Result<()> {
        y.values = gather(&x.values, &picked(&batch.view(), pick), x.cols);
        Ok(())
    }

    fn scatter_rows(&self, d_y: &Mat<T>, batch: &Batch, pick: Pick, d_x: &mut Mat<T>) -> Result<()> {
        d_x.values = scatter(&d_y.values, &picked(&batch.view(), pick), batch.ids.len(), d_y.cols);
        Ok(())
    }

    fn vocab_cross_entropy(
        &self, x: &Mat<T>, batch: &Batch, w: &Vec<T>, layer: &VocabProjection, tally: &mut Tally,
        back: Option<LossGrads<'_, Mat<T>, Vec<T>>>,
    ) -> Result<()> {
        let logits = stored(Self::logits(x, w, layer));
        let labels: Vec<i32> = batch.targets.iter().map(|&target| target as i32).collect();
        let ones = vec![T::of(1.0); labels.len()];
        let ce = cross_entropy(&logits, &labels, &ones, T::of(batch.loss_scale.into()));
        add(tally, &ce);
        let Some(LossGrads { d_x, grads }) = back else { return Ok(()) };
        let d_logits = stored(ce.d_logits);
        let d_weight = &mut grads[layer.weight.range()];
        d_x.values = stored(linear_backward(&d_logits, &x.values, &matrix(w, layer.weight), layer.width, d_weight));
        add_rows(&d_logits, &mut grads[layer.bias.range()]);
        Ok(())
    }

    fn relu_dropout(&self, x: &Mat<T>, batch: &Batch, drop: &Dropout, y: &mut Mat<T>) -> Result<()> {
        y.values = stored(relu_dropout(&x.values, &keep_of(drop, batch, x.values.len(), x.cols)));
        Ok(())
    }

    fn relu_dropout_backward(
        &self, x: &Mat<T>, batch: &Batch, drop: &Dropout, bias: Span, grads: &mut Vec<T>, d: &mut Mat<T>,
    ) -> Result<()> {
        let keep = keep_of(drop, batch, x.values.len(), x.cols);
        d.values = stored(relu_dropout_backward(&x.values, &keep, &d.values));
        add_rows(&d.values, &mut grads[bias.range()]);
        Ok(())
    }

    fn class_cross_entropy(
        &self, logits: &Mat<T>, batch: &Batch, bias: Span, smoothing: f32, tally: &mut Tally,
        back: Option<LossGrads<'_, Mat<T>, Vec<T>>>,
    ) -> Result<()> {
        let (weights, scale) = (cast(&batch.label_weights), T::of(batch.loss_scale.into()));
        let ce = smoothed_cross_entropy(&logits.values, &batch.labels, &weights, scale, T::of(smoothing.into()));
        add(tally, &ce);
        if let Some(LossGrads { d_x, grads }) = back {
            add_rows(&ce.d_logits, &mut grads[bias.range()]);
            d_x.values = ce.d_logits;
        }
        Ok(())
    }

    fn grad_norm(&self, grads: &Vec<T>, tally: &mut Tally) -> Result<()> {
        tally.grad_norm = optimizer::grad_norm(grads).to_f64();
        Ok(())
    }

    fn adamw(
        &self, w: &mut Vec<T>, grads: &Vec<T>, m: &mut Vec<T>, v: &mut Vec<T>, spans: &[UpdateSpan],
        hyper: &Option<AdamW>, tally: &Tally,
    ) -> Result<()> {
        let hyper = hyper.as_ref().expect("set before");
        for UpdateSpan { span, decay } in spans {
            let mut state = State { w: vector(w, *span), m: vector(m, *span), v: vector(v, *span) };
            let decay = if *decay { hyper.weight_decay } else { 0.0 };
            optimizer::adamw(&mut state, &grads[span.range()], decay, T::of(tally.grad_norm), hyper);
            w[span.range()].copy_from_slice(&state.w);
            m[span.range()].copy_from_slice(&state.m);
            v[span.range()].copy_from_slice(&state.v);
        }
        Ok(())
    }

    fn top_k(&self, x: &Mat<T>, w: &Vec<T>, layer: &VocabProjection, k: usize) -> Result<Vec<Vec<(u32, f32)>>> {
        let best = cross_entropy::top_k(&Self::logits(x, w, layer), layer.vocab, k);
        Ok(best.into_iter().map(|row| row.into_iter().map(|(id, p)| (id, p.to_f64() as f32)).collect()).collect())
    }
}

fn add<T: Scalar>(tally: &mut Tally, ce: &cross_entropy::CrossEntropy<T>) {
    tally.loss += ce.loss.to_f64();
    tally.weight += ce.weight.to_f64();
    tally.targets += ce.targets;
    tally.correct += ce.correct;
}
