//! How an op is computed. The model is written once over [`Backend`]; `cpu` implements it in f32,
//! `cuda` in bf16 with f32 sums.
//!
//! Rules that every implementation keeps:
//!
//! * Matrices are row-major. A [`Memory::Mat`] is allocated for a fixed number of rows, of one of
//!   three kinds ([`Rows`]); how many of them are live is a property of the batch at hand. An op
//!   reads and writes live rows only, and gives its outputs the live rows of its inputs; but a product of a
//!   library that sums over all rows may first set those of its inputs that are not live to zero. Matrices
//!   of one kind that are in use together have the same number of live rows.
//! * Gradients of parameters accumulate (`+=`); gradients of activations are written, or added
//!   where the signature says [`Into::Add`].
//! * A bias gradient is the column sum of the gradient of a linear layer's output. The op that
//!   *produces* that gradient sums it while the values are at hand; `linear_backward` does not.
//!   That is why backward ops other than it take a `bias` to accumulate into.
//! * Every reduction has a fixed order: the same inputs give the same bits, on any number of threads.
//! * `keep(site, row, col)` in the formulas is 0 or 1 / (1 - drop_prob), see [`dropout::Dropout`].
//!   The row is the matrix's own, the step the uploaded batch's.

pub mod batch;
pub mod cpu;
pub mod cuda;
pub mod dropout;
mod error;
pub mod layers;
pub mod shape;

pub use dropout::Dropout;
pub use error::{Error, Result};
pub use layers::{Embedding, Linear, Norm, Span, UpdateSpan, VocabProjection};

/// What activations, and the weights that products read, are kept in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// Four bytes.
    F32,
    /// Two bytes; sums, statistics, gradients and master weights are f32.
    Bf16,
}

/// Which count says how many rows of a matrix are live.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Rows {
    /// N, packed tokens.
    Tokens,
    /// B, sequences.
    Sequences,
    /// M, masked positions.
    Masked,
}

/// The most a batch can hold; fixed per run, so that every shape is static.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Capacity {
    /// N, packed tokens.
    pub tokens: usize,
    /// B, sequences.
    pub sequences: usize,
    /// M, masked positions.
    pub masked: usize,
}

impl Capacity {
    /// Capacity of a kind of row.
    pub fn of(&self, rows: Rows) -> usize {
        match rows {
            Rows::Tokens => self.tokens,
            Rows::Sequences => self.sequences,
            Rows::Masked => self.masked,
        }
    }
}

/// One batch as the host holds it: a flat row of N tokens, sequence after sequence.
#[derive(Debug, Clone, Copy, Default)]
pub struct BatchView<'a> {
    /// Token ids. [N]
    pub ids: &'a [u32],
    /// Position of each token within its sequence. [N]
    pub position_ids: &'a [u32],
    /// Prefix sums of the sequence lengths, starting at 0. [B+1]
    pub cu_seqlens: &'a [u32],
    /// Packed rows whose token is to be predicted, ascending. [M]
    pub masked_rows: &'a [u32],
    /// The token to predict at each of them. [M]
    pub targets: &'a [u32],
    /// Class of each sequence, -1 for none. [B], or empty
    pub labels: &'a [i32],
    /// Weight of each sequence in the classifier's loss. [B], or empty for 1
    pub label_weights: &'a [f32],
    /// Multiplies every gradient of the loss: 1 / targets (or total label weight) of the whole
    /// effective batch, accumulation included.
    pub loss_scale: f32,
    /// Number of this forward pass in the run, for dropout; repeats nowhere within a run.
    pub step: u32,
}

/// Running sums that the loss ops and `grad_norm` write; read back once per step.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Tally {
    /// Sum over targets of weight × cross-entropy, in nats.
    pub loss: f64,
    /// Sum of target weights: the number of targets where there are no weights.
    pub weight: f64,
    /// Targets seen.
    pub targets: u64,
    /// Targets whose most probable class was right.
    pub correct: u64,
    /// Global L2 norm of the gradients, as of the last `grad_norm`.
    pub grad_norm: f64,
}

/// AdamW with decoupled decay, as in PyTorch's `torch.optim.AdamW`, after clipping by global norm.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamW {
    /// Learning rate of this step.
    pub learning_rate: f32,
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// Added to the root of the second moment.
    pub epsilon: f32,
    /// Decoupled weight decay, of the spans that decay.
    pub weight_decay: f32,
    /// Gradients are scaled by min(1, max_norm / (norm + 1e-6)); 0 = no clipping.
    pub max_norm: f32,
    /// Number of this update, from 1, for bias correction.
    pub step: u32,
    /// What is withheld.
    pub limits: UpdateLimits,
}

/// The largest loss and gradient norm that an update is made of.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct UpdateLimits {
    /// Of the loss: nats per unit of target weight.
    pub loss: f32,
    /// Of the gradients' L2 norm.
    pub grad_norm: f32,
}

impl UpdateLimits {
    /// Only what is not finite is withheld.
    pub const NONE: UpdateLimits = UpdateLimits { loss: f32::MAX, grad_norm: f32::MAX };

    /// Whether an update is made of a step with this tally. What a device decides by, in the same precision.
    pub fn allow(&self, tally: &Tally) -> bool {
        // Not a number is not below anything.
        tally.grad_norm as f32 <= self.grad_norm && tally.loss <= f64::from(self.loss) * tally.weight
    }
}

/// Where `linear_backward` puts d_x.
#[derive(Debug)]
pub enum Into<'a, M> {
    /// d_x is not wanted.
    Nowhere,
    /// d_x = …
    Write(&'a mut M),
    /// d_x += …
    Add(&'a mut M),
}

/// The loss's backward half, absent in evaluation.
#[derive(Debug)]
pub struct LossGrads<'a, M, F> {
    /// Gradient with respect to the loss op's input.
    pub d_x: &'a mut M,
    /// Where parameter gradients accumulate.
    pub grads: &'a mut F,
}

/// Which rows of the packed batch a head looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pick {
    /// The masked rows. [M]
    Masked,
    /// The first row of each sequence, its [CLS]. [B]
    First,
}

/// Hands out matrices from one planned region; see [`Memory::arena`].
pub trait Arena {
    /// Activations, in the backend's compute type.
    type Mat;
    /// Per-row statistics, always f32.
    type Stats;
    /// A matrix of `rows` × `cols`.
    fn mat(&mut self, rows: Rows, cols: usize) -> Self::Mat;
    /// Statistics of `rows` × `cols`.
    fn stats(&mut self, rows: Rows, cols: usize) -> Self::Stats;
}

/// Writes down what an allocation would take, without making it.
#[derive(Debug, Clone)]
pub struct Planner {
    /// The capacities allocated for.
    pub capacity: Capacity,
    /// Rows and columns of each matrix of activations.
    pub mats: Vec<(Rows, usize)>,
    /// Rows and columns of each matrix of f32 statistics.
    pub stats: Vec<(Rows, usize)>,
}

impl Planner {
    /// A plan with nothing in it.
    pub fn new(capacity: Capacity) -> Self {
        Planner { capacity, mats: Vec::new(), stats: Vec::new() }
    }
}

impl Arena for Planner {
    type Mat = ();
    type Stats = ();
    fn mat(&mut self, rows: Rows, cols: usize) {
        self.mats.push((rows, cols));
    }
    fn stats(&mut self, rows: Rows, cols: usize) {
        self.stats.push((rows, cols));
    }
}

/// What a backend keeps and how the host reaches it.
///
/// # Errors
///
/// [`Error::OutOfMemory`] or [`Error::GpuMemory`] of what allocates, [`Error::Gpu`] or [`Error::Launch`] of a device that
/// fails. What else a method refuses stands with it.
pub trait Memory {
    /// Activations, [rows, cols], in the compute type.
    type Mat;
    /// Per-row f32 statistics, [rows, cols].
    type Stats;
    /// All parameters: the f32 master copy, and the compute copy where that differs.
    type Weights;
    /// A flat f32 buffer as long as the parameters: gradients, moments.
    type Flat;
    /// An uploaded batch.
    type Batch;
    /// Running sums of the loss, on the device.
    type Tally;
    /// What a tally held, on its way to the host.
    type Receipt;
    /// What the next update goes by.
    type Hyper;
    /// A sequence of ops that can be computed again.
    type Recording;
    /// Where activations come from.
    type Arena: Arena<Mat = Self::Mat, Stats = Self::Stats>;

    /// One line for people: device, threads, compute type.
    fn describe(&self) -> String;
    /// Bytes that may still be allocated; `None` where nobody can say, as of a host's memory.
    fn free_bytes(&self) -> Result<Option<usize>> {
        Ok(None)
    }
    /// Of activations.
    fn precision(&self) -> Precision;
    /// Reserves what `plan` wrote down.
    fn arena(&self, plan: &Planner) -> Result<Self::Arena>;
    /// Room for batches up to `capacity`.
    fn batch(&self, capacity: Capacity) -> Result<Self::Batch>;
    /// Puts a batch where the ops can see it, after checking it against `limits` and its capacity.
    ///
    /// # Errors
    ///
    /// [`Error::Capacity`], or [`Error::Batch`] for any other rule that it breaks.
    fn upload(&self, view: &BatchView<'_>, limits: &BatchLimits, batch: &mut Self::Batch) -> Result<()>;
    /// Weights with these values, in table order: as many as [`flat_len`](crate::model::ParamTable::flat_len) says, the gaps
    /// between tensors included. Ops refuse spans that end beyond them.
    fn weights(&self, values: &[f32]) -> Result<Self::Weights>;
    /// The master copy.
    fn read_weights(&self, weights: &Self::Weights) -> Result<Vec<f32>>;
    /// A flat buffer of `len` zeros.
    fn flat(&self, len: usize) -> Result<Self::Flat>;
    /// The buffer's values.
    fn read_flat(&self, flat: &Self::Flat) -> Result<Vec<f32>>;
    /// Overwrites the buffer.
    ///
    /// # Errors
    ///
    /// [`Error::Shape`] for values of another length.
    fn write_flat(&self, flat: &mut Self::Flat, values: &[f32]) -> Result<()>;
    /// Sets the buffer to zero.
    fn zero(&self, flat: &mut Self::Flat) -> Result<()>;
    /// Overwrites a buffer with another of the same length, where they are.
    ///
    /// # Errors
    ///
    /// [`Error::Shape`] for another length.
    fn copy(&self, from: &Self::Flat, to: &mut Self::Flat) -> Result<()>;
    /// Live rows of a matrix as f32, row-major.
    fn read_mat(&self, mat: &Self::Mat) -> Result<Vec<f32>>;
    /// Makes the first `rows` rows live and sets them to `values`, row-major. Rows beyond keep what they held.
    ///
    /// # Errors
    ///
    /// [`Error::Shape`] for rows above the matrix's capacity, or a length other than rows × columns.
    fn write_mat(&self, mat: &mut Self::Mat, rows: usize, values: &[f32]) -> Result<()>;
    /// Live rows of statistics, row-major.
    fn read_stats(&self, stats: &Self::Stats) -> Result<Vec<f32>>;
    /// [`Memory::write_mat`] for statistics.
    ///
    /// # Errors
    ///
    /// Those of [`Memory::write_mat`].
    fn write_stats(&self, stats: &mut Self::Stats, rows: usize, values: &[f32]) -> Result<()>;
    /// A tally of zeros.
    fn tally(&self) -> Result<Self::Tally>;
    /// Sends the sums so far to the host, without waiting for them; they start again from zero.
    fn post_tally(&self, tally: &mut Self::Tally) -> Result<Self::Receipt>;
    /// Whether collecting would not wait.
    fn is_ready(&self, receipt: &Self::Receipt) -> Result<bool>;
    /// Waits for sums that were posted.
    fn collect(&self, receipt: Self::Receipt) -> Result<Tally>;
    /// The sums so far; they start again from zero.
    fn take_tally(&self, tally: &mut Self::Tally) -> Result<Tally> {
        let receipt = self.post_tally(tally)?;
        self.collect(receipt)
    }
    /// Room for hyperparameters.
    fn hyper(&self) -> Result<Self::Hyper>;
    /// Sets what updates go by from here on.
    fn set_hyper(&self, hyper: &mut Self::Hyper, values: &AdamW) -> Result<()>;
    /// Records the ops that `run` calls, which are not computed while it does; later ones will work on the batch and the
    /// hyperparameters that are set by then. `None`, and `run` not called, where this backend does not record. Every op
    /// must have been computed once before, on the same arguments.
    fn record(&self, run: &mut dyn FnMut() -> Result<()>) -> Result<Option<Self::Recording>>;
    /// Computes what was recorded.
    fn replay(&self, recording: &Self::Recording) -> Result<()>;
}

/// What the model allows in a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchLimits {
    /// V: ids and targets are below it.
    pub vocab: usize,
    /// Longest sequence; position ids are below it.
    pub positions: usize,
    /// K: labels are below it; 0 for a model without classes.
    pub classes: usize,
}

/// The ops of DistilBERT, fused the way a good GPU implementation fuses them.
///
/// Letters: N packed tokens, B sequences, C width, H heads, D = C / H, F feed-forward width,
/// V vocabulary, M masked positions, K classes. R is any of N, B, M.
///
/// # Errors
///
/// [`Error::Shape`] for an argument, or a span, of another shape than stands with the op; [`Error::OutOfMemory`] or
/// [`Error::GpuMemory`] where working memory does not suffice; [`Error::Module`], [`Error::Launch`] or [`Error::Gpu`] of a
/// device that fails. What else an op refuses stands with it.
#[allow(clippy::too_many_arguments)]
pub trait Backend: Memory {
    /// y = keep ∘ LayerNorm(word[ids] + position[position_ids]).  y [N, C], stats [N, 2] (mean, rstd)
    fn embed(
        &self, batch: &Self::Batch, w: &Self::Weights, layer: &Embedding, drop: &Dropout, stats: &mut Self::Stats,
        y: &mut Self::Mat,
    ) -> Result<()>;

    /// Backward of [`Backend::embed`]: accumulates d_word, d_position, d_gamma, d_beta.
    /// `d_y` [N, C] is overwritten. Row `padding_idx` of d_word gets nothing, as in PyTorch.
    fn embed_backward(
        &self, batch: &Self::Batch, w: &Self::Weights, layer: &Embedding, drop: &Dropout, stats: &Self::Stats,
        d_y: &mut Self::Mat, grads: &mut Self::Flat,
    ) -> Result<()>;

    /// y = x Wᵀ + b.  x [R, in], W [out, in], y [R, out]
    fn linear(&self, x: &Self::Mat, w: &Self::Weights, layer: &Linear, y: &mut Self::Mat) -> Result<()>;

    /// d_W += d_yᵀ x;  d_x = d_y W.  The bias gradient belongs to the producer of d_y.
    fn linear_backward(
        &self, d_y: &Self::Mat, x: &Self::Mat, w: &Self::Weights, layer: &Linear, grads: &mut Self::Flat,
        d_x: Into<'_, Self::Mat>,
    ) -> Result<()>;

    /// pre = x Wᵀ + b;  y = gelu(pre), with gelu(x) = x Φ(x) (erf, never the tanh form).
    fn linear_gelu(
        &self, x: &Self::Mat, w: &Self::Weights, layer: &Linear, pre: &mut Self::Mat, y: &mut Self::Mat,
    ) -> Result<()>;

    /// `linear_backward` of a layer whose input was x = gelu(pre), carried on through the GELU:
    /// d_W += d_yᵀ x;  d_pre = (d_y W) ∘ gelu'(pre);  d_bias += Σ_rows d_pre, where `bias` is that of
    /// the linear layer that made `pre`.
    fn linear_backward_gelu(
        &self, d_y: &Self::Mat, x: &Self::Mat, pre: &Self::Mat, w: &Self::Weights, layer: &Linear, bias: Span,
        grads: &mut Self::Flat, d_pre: &mut Self::Mat,
    ) -> Result<()>;

    /// d = d ∘ gelu'(pre), in place;  d_bias += Σ_rows d.
    fn gelu_backward(&self, pre: &Self::Mat, bias: Span, grads: &mut Self::Flat, d: &mut Self::Mat) -> Result<()>;

    /// ctx = (keep ∘ softmax(q kᵀ / √D)) v, for each head of each sequence.
    /// qkv [N, 3C] (q, then k, then v; head h at columns hD..), lse [N, H] (log-sum-exp of the scaled
    /// scores, saved for the backward pass), ctx [N, C].
    fn attention(
        &self, qkv: &Self::Mat, batch: &Self::Batch, heads: usize, drop: &Dropout, lse: &mut Self::Stats,
        ctx: &mut Self::Mat,
    ) -> Result<()>;

    /// d_qkv [N, 3C] from d_ctx [N, C];  d_bias += Σ_rows d_qkv, `bias` [3C] being the QKV layer's.
    fn attention_backward(
        &self, qkv: &Self::Mat, batch: &Self::Batch, heads: usize, drop: &Dropout, lse: &Self::Stats, ctx: &Self::Mat,
        d_ctx: &Self::Mat, bias: Span, grads: &mut Self::Flat, d_qkv: &mut Self::Mat,
    ) -> Result<()>;

    /// sum = residual + keep ∘ branch;  y = LayerNorm(sum).  All [R, C]; stats [R, 2] (mean, rstd).
    /// Without a residual, sum = keep ∘ branch.
    fn add_layernorm(
        &self, branch: &Self::Mat, residual: Option<&Self::Mat>, batch: &Self::Batch, w: &Self::Weights, norm: &Norm,
        drop: &Dropout, sum: &mut Self::Mat, stats: &mut Self::Stats, y: &mut Self::Mat,
    ) -> Result<()>;

    /// Backward of [`Backend::add_layernorm`]. `d` comes in as d_y and goes out as d_sum, which is the
    /// residual's gradient; `d_branch` = keep ∘ d_sum. Accumulates d_gamma, d_beta, and
    /// d_bias += Σ_rows d_branch for the linear layer that made the branch (`None`: it has its own op).
    fn add_layernorm_backward(
        &self, d: &mut Self::Mat, sum: &Self::Mat, stats: &Self::Stats, batch: &Self::Batch, w: &Self::Weights,
        norm: &Norm, drop: &Dropout, bias: Option<Span>, grads: &mut Self::Flat, d_branch: Option<&mut Self::Mat>,
    ) -> Result<()>;

    /// y[i] = x[row i of the pick].  x [N, C], y [M, C] or [B, C]
    /// An empty sequence has no first row: under [`Pick::First`] its row of y is 0.
    fn gather_rows(&self, x: &Self::Mat, batch: &Self::Batch, pick: Pick, y: &mut Self::Mat) -> Result<()>;

    /// d_x = 0, then d_x[row i of the pick] = d_y[i]. The picked rows are distinct; what an empty sequence's d_y[i] holds
    /// goes nowhere.
    fn scatter_rows(&self, d_y: &Self::Mat, batch: &Self::Batch, pick: Pick, d_x: &mut Self::Mat) -> Result<()>;

    /// logits = x Wᵀ + b over the vocabulary, chunk of rows by chunk; adds the cross-entropy of
    /// `targets`, the target count and the top-1 hits to the tally. With `back`: d_logits =
    /// (softmax - onehot) × loss_scale, d_W += d_logitsᵀ x, d_bias += Σ_rows d_logits, d_x = d_logits W.
    /// x [M, C]; the logits [M, V] never exist as a whole.
    ///
    /// # Errors
    ///
    /// [`Error::Batch`] for a target from V on.
    fn vocab_cross_entropy(
        &self, x: &Self::Mat, batch: &Self::Batch, w: &Self::Weights, layer: &VocabProjection, tally: &mut Self::Tally,
        back: Option<LossGrads<'_, Self::Mat, Self::Flat>>,
    ) -> Result<()>;

    /// y = keep ∘ relu(x).  x, y [B, C]
    fn relu_dropout(&self, x: &Self::Mat, batch: &Self::Batch, drop: &Dropout, y: &mut Self::Mat) -> Result<()>;

    /// d = keep ∘ [x > 0] ∘ d, in place;  d_bias += Σ_rows d, for the layer that made x.
    fn relu_dropout_backward(
        &self, x: &Self::Mat, batch: &Self::Batch, drop: &Dropout, bias: Span, grads: &mut Self::Flat,
        d: &mut Self::Mat,
    ) -> Result<()>;

    /// Adds label_weight × cross-entropy of the labelled sequences to the tally (label -1 counts
    /// nothing), against q = (1-ε) onehot + ε/K with ε = `smoothing`, from 0 to 1 (Szegedy et al. 2016, section 7).
    /// With `back`: d_logits = (softmax - q) × label_weight × loss_scale, and
    /// d_bias += Σ_rows d_logits for the layer that made the logits.  logits [B, K]
    ///
    /// # Errors
    ///
    /// [`Error::Batch`] for a label from K on.
    fn class_cross_entropy(
        &self, logits: &Self::Mat, batch: &Self::Batch, bias: Span, smoothing: f32, tally: &mut Self::Tally,
        back: Option<LossGrads<'_, Self::Mat, Self::Flat>>,
    ) -> Result<()>;

    /// Puts the L2 norm of all gradients into the tally.
    fn grad_norm(&self, grads: &Self::Flat, tally: &mut Self::Tally) -> Result<()>;

    /// Clips by the tally's norm and updates every span:
    /// m = β₁m + (1-β₁)g; v = β₂v + (1-β₂)g²; w -= lr (decay·w + m̂ / (√v̂ + ε)).
    /// A tally beyond the limits, or not finite, leaves everything as it was; see [`UpdateLimits::allow`].
    ///
    /// # Errors
    ///
    /// [`Error::Unset`] before [`Memory::set_hyper`], where a backend can tell.
    fn adamw(
        &self, w: &mut Self::Weights, grads: &Self::Flat, m: &mut Self::Flat, v: &mut Self::Flat, spans: &[UpdateSpan],
        hyper: &Self::Hyper, tally: &Self::Tally,
    ) -> Result<()>;

    /// For each row of x [M, C], the `k` most probable tokens with their probabilities, best first.
    fn top_k(
        &self, x: &Self::Mat, w: &Self::Weights, layer: &VocabProjection, k: usize,
    ) -> Result<Vec<Vec<(u32, f32)>>>;
}
