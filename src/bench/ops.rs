//! The ops of a pass, in the order in which model/ calls them: embeddings, blocks forward 1..7, head, and all of it back,
//! then the update. One `linear_backward` makes two ops, d_W and d_x; the loss over the vocabulary four.

use super::cost::{Cost, F32, INDEX};
use crate::backend::Precision;
use crate::model::{Config, Head, Mode, ParamTable};

/// Rows whose logits are held at once; `ROWS_AT_ONCE` of the CUDA backend's cross_entropy.rs. Each chunk of them reads the
/// vocabulary's weights again.
const VOCAB_ROWS: f64 = 512.0;

/// Logits have so many columns or a multiple.
const STRIP: usize = 64;

/// A batch as its cost depends on it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Load {
    /// N
    pub tokens: usize,
    /// Tokens of a sequence, [CLS] and [SEP] counted.
    pub mean_length: f64,
    /// Length of the sequence that a token is in, on average: the sum of the squares of all lengths over their sum.
    pub attended: f64,
    /// M
    pub masked: usize,
    /// Rows of the word table that occur, where they have been counted; else all that can.
    pub words: Option<usize>,
}

impl Load {
    /// Sequences of one length. Where lengths differ, attention costs more than this says.
    pub fn uniform(tokens: usize, mean_length: f64, masked: usize) -> Load {
        Load { tokens, mean_length, attended: mean_length, masked, words: None }
    }

    /// B
    pub fn sequences(&self) -> f64 {
        self.tokens as f64 / self.mean_length
    }
}

/// Where in the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// model/encoder.rs, step 1
    Embeddings,
    /// model/block.rs
    Block,
    /// model/mlm_head.rs
    MlmHead,
    /// model/class_head.rs
    ClassHead,
    /// train/step.rs
    Update,
}

/// Which way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Pass {
    /// From ids to the head's output.
    Forward,
    /// The loss, and from it to the gradients.
    Backward,
    /// From gradients to new weights.
    Update,
}

/// Ops of one kind are expected to reach the same share of a card's ceilings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A matrix product, with what follows it.
    Product,
    /// Attention, forward.
    AttentionForward,
    /// Attention, backward.
    AttentionBackward,
    /// A pass over rows.
    Rows,
    /// Look-ups in the embedding tables, and gradients of these.
    Lookup,
    /// A pass over the flat buffers.
    Optimizer,
}

/// What an op works on: rows of `inputs` columns become rows of `outputs`.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct Shape {
    /// R
    pub rows: u64,
    /// Columns that come in.
    pub inputs: u64,
    /// Columns that go out.
    pub outputs: u64,
}

/// One op of a pass.
#[derive(Debug, Clone, PartialEq)]
pub struct Op {
    /// Where it is.
    pub part: Part,
    /// Which way.
    pub pass: Pass,
    /// What it makes.
    pub name: &'static str,
    /// The method of `Backend` that it belongs to.
    pub call: &'static str,
    /// Of which kind it is.
    pub kind: Kind,
    /// What it works on.
    pub shape: Shape,
    /// How often it is run in the pass: once for each block.
    pub times: u64,
    /// What it costs each time.
    pub cost: Cost,
}

/// Every op of a training step, or of a forward pass: with the loss for masked-language modelling, up to the logits for a
/// classifier.
pub fn ops(config: &Config, head: Head, load: &Load, mode: Mode, precision: Precision) -> Vec<Op> {
    let sizes = Sizes::new(config, head, load);
    let mut list = List { ops: Vec::new(), precision, part: Part::Embeddings, pass: Pass::Forward, times: 1 };
    list.embeddings_forward(&sizes);
    list.block_forward(&sizes);
    match head {
        Head::Mlm => list.mlm_forward(&sizes),
        Head::Classifier { .. } => list.classifier_forward(&sizes),
    }
    match (mode, head) {
        (Mode::Inference, Head::Mlm) => list.vocabulary_loss(&sizes, 1.0),
        (Mode::Inference, Head::Classifier { .. }) => {}
        (Mode::Training, _) => {
            list.pass = Pass::Backward;
            match head {
                Head::Mlm => list.mlm_backward(&sizes),
                Head::Classifier { .. } => list.classifier_backward(&sizes),
            }
            list.block_backward(&sizes);
            list.embeddings_backward(&sizes);
            list.update(ParamTable::new(config, head).flat_len as f64);
        }
    }
    list.ops
}

/// The letters of model/shapes.rs, as numbers to calculate with.
struct Sizes {
    layers: u64,
    n: f64,
    /// Length of the sequence that a token is in, on average.
    s: f64,
    b: f64,
    m: f64,
    c: f64,
    h: f64,
    f: f64,
    v: f64,
    /// Rows of the word table that occur.
    words: f64,
    p: f64,
    k: f64,
}

impl Sizes {
    fn new(config: &Config, head: Head, load: &Load) -> Sizes {
        let classes = match head {
            Head::Mlm => 0,
            Head::Classifier { classes } => classes,
        };
        Sizes {
            layers: config.n_layers as u64,
            n: load.tokens as f64,
            s: load.attended,
            b: load.sequences(),
            m: load.masked as f64,
            c: config.dim as f64,
            h: config.n_heads as f64,
            f: config.hidden_dim as f64,
            v: config.vocab_size as f64,
            words: load.words.unwrap_or(config.vocab_size.min(load.tokens)) as f64,
            p: config.max_position_embeddings as f64,
            k: classes as f64,
        }
    }

    /// The rows of both tables that occur, read once, and the ids that choose them.
    fn table_bytes(&self, precision: Precision) -> f64 {
        precision.bytes() * self.c * (self.words + self.p.min(self.n)) + 2.0 * INDEX * self.n
    }

    /// All logits. [M, V, padded]
    fn logits_bytes(&self, precision: Precision) -> f64 {
        precision.bytes() * self.m * (self.v as usize).next_multiple_of(STRIP) as f64
    }

    /// How often the vocabulary's weights are gone through.
    fn chunks(&self) -> f64 {
        (self.m / VOCAB_ROWS).ceil()
    }
}

struct List {
    ops: Vec<Op>,
    precision: Precision,
    part: Part,
    pass: Pass,
    times: u64,
}

impl List {
    fn enter(&mut self, part: Part, times: u64) {
        (self.part, self.times) = (part, times);
    }

    fn add(&mut self, name: &'static str, call: &'static str, kind: Kind, shape: [f64; 3], cost: Cost) {
        let [rows, inputs, outputs] = shape.map(|size| size.ceil() as u64);
        let (part, pass, times) = (self.part, self.pass, self.times);
        self.ops.push(Op { part, pass, name, call, kind, shape: Shape { rows, inputs, outputs }, times, cost });
    }

    fn product(&mut self, name: &'static str, call: &'static str, shape: [f64; 3], more_bytes: f64) {
        let [rows, inputs, outputs] = shape;
        let cost = self.precision.product(rows, inputs, outputs).and(more_bytes);
        self.add(name, call, Kind::Product, shape, cost);
    }

    fn weight_gradient(&mut self, name: &'static str, call: &'static str, shape: [f64; 3]) {
        let [rows, inputs, outputs] = shape;
        self.add(name, call, Kind::Product, shape, self.precision.weight_gradient(rows, inputs, outputs));
    }

    fn rows(&mut self, name: &'static str, call: &'static str, [rows, cols]: [f64; 2], cost: Cost) {
        self.add(name, call, Kind::Rows, [rows, cols, cols], cost);
    }

    // ---- Embeddings ----

    fn embeddings_forward(&mut self, z: &Sizes) {
        let e = self.precision;
        self.enter(Part::Embeddings, 1);
        let cost = e.layernorm(1.0, z.n, z.c).and(z.table_bytes(e));
        self.add("embed", "embed", Kind::Lookup, [z.n, z.c, z.c], cost);
    }

    fn embeddings_backward(&mut self, z: &Sizes) {
        let e = self.precision;
        self.enter(Part::Embeddings, 1);
        let cost = e.layernorm(2.0, z.n, z.c).and(z.table_bytes(e));
        self.add("embed d_x", "embed_backward", Kind::Lookup, [z.n, z.c, z.c], cost);
        // d read once, and each row of the table that occurs read and written.
        for (name, rows) in [("d_word", z.words), ("d_position", z.p.min(z.n))] {
            let cost = e.matrices(1.0, z.n, z.c).and(2.0 * F32 * z.c * rows + INDEX * z.n);
            self.add(name, "embed_backward", Kind::Lookup, [z.n, z.c, z.c], cost);
        }
    }

    // ---- A block, as numbered in model/block.rs ----

    fn block_forward(&mut self, z: &Sizes) {
        let e = self.precision;
        self.enter(Part::Block, z.layers);
        let &Sizes { n, s, c, h, f, .. } = z;
        self.product("qkv", "linear", [n, c, 3.0 * c], 0.0);
        self.add("attention", "attention", Kind::AttentionForward, [n, 3.0 * c, c], e.attention(n, s, c, h));
        self.product("out", "linear", [n, c, c], 0.0);
        self.rows("attention_norm", "add_layernorm", [n, c], e.layernorm(4.0, n, c)); // branch, residual, sum, y
        self.product("lin1, gelu", "linear_gelu", [n, c, f], e.bytes() * n * f); // y beside pre
        self.product("lin2", "linear", [n, f, c], 0.0);
        self.rows("output_norm", "add_layernorm", [n, c], e.layernorm(4.0, n, c));
    }

    fn block_backward(&mut self, z: &Sizes) {
        let e = self.precision;
        self.enter(Part::Block, z.layers);
        let &Sizes { n, s, c, h, f, .. } = z;
        self.rows("output_norm", "add_layernorm_backward", [n, c], e.layernorm(4.0, n, c)); // d, sum, d, d_branch
        self.weight_gradient("lin2 d_W", "linear_backward_gelu", [n, f, c]);
        self.product("lin2 d_x, gelu", "linear_backward_gelu", [n, c, f], e.bytes() * n * f); // reads pre
        self.weight_gradient("lin1 d_W", "linear_backward", [n, c, f]);
        self.product("lin1 d_x", "linear_backward", [n, f, c], e.bytes() * n * c); // adds to d
        self.rows("attention_norm", "add_layernorm_backward", [n, c], e.layernorm(3.0, n, c)); // d, sum, d
        self.weight_gradient("out d_W", "linear_backward", [n, c, c]);
        self.product("out d_x", "linear_backward", [n, c, c], 0.0);
        let cost = e.attention_backward(n, s, c, h);
        self.add("attention", "attention_backward", Kind::AttentionBackward, [n, c, 3.0 * c], cost);
        self.weight_gradient("qkv d_W", "linear_backward", [n, c, 3.0 * c]);
        self.product("qkv d_x", "linear_backward", [n, 3.0 * c, c], e.bytes() * n * c); // adds to d
    }

    // ---- The masked-language-modelling head ----

    fn mlm_forward(&mut self, z: &Sizes) {
        let e = self.precision;
        self.enter(Part::MlmHead, 1);
        let &Sizes { m, c, .. } = z;
        self.rows("gather", "gather_rows", [m, c], e.matrices(2.0, m, c).and(INDEX * m));
        self.product("transform, gelu", "linear_gelu", [m, c, c], e.bytes() * m * c);
        self.rows("norm", "add_layernorm", [m, c], e.layernorm(3.0, m, c)); // branch, sum, y
    }

    /// logits and loss; `loss_passes` times the logits go through the cache for the latter.
    fn vocabulary_loss(&mut self, z: &Sizes, loss_passes: f64) {
        let e = self.precision;
        const CALL: &str = "vocab_cross_entropy";
        let &Sizes { m, c, v, .. } = z;
        let weights = e.bytes() * v * c * z.chunks();
        let logits =
            Cost { flops: 2.0 * m * c * v, bytes: e.bytes() * m * c + weights, cached_bytes: z.logits_bytes(e) };
        self.add("logits", CALL, Kind::Product, [m, c, v], logits);
        let loss = Cost::bytes(m * (INDEX + 2.0 * F32)).and_cached(loss_passes * z.logits_bytes(e)); // targets, loss, hit
        self.add("loss", CALL, Kind::Rows, [m, v, v], loss);
    }

    fn mlm_backward(&mut self, z: &Sizes) {
        let e = self.precision;
        const CALL: &str = "vocab_cross_entropy";
        self.enter(Part::MlmHead, 1);
        let &Sizes { n, m, c, v, .. } = z;
        self.vocabulary_loss(z, 3.0); // read, overwritten by their gradient, read for the bias
        let (flops, cached_bytes) = (2.0 * m * c * v, z.logits_bytes(e));
        let d_x = Cost { flops, bytes: e.bytes() * (m * c + v * c * z.chunks()), cached_bytes };
        self.add("logits d_x", CALL, Kind::Product, [m, v, c], d_x);
        let d_w = Cost { flops, bytes: e.bytes() * m * c + 2.0 * F32 * v * c * z.chunks(), cached_bytes };
        self.add("logits d_W", CALL, Kind::Product, [m, c, v], d_w);
        self.rows("norm", "add_layernorm_backward", [m, c], e.layernorm(3.0, m, c)); // d, sum, d
        self.rows("gelu", "gelu_backward", [m, c], e.matrices(3.0, m, c)); // d, pre, d
        self.weight_gradient("transform d_W", "linear_backward", [m, c, c]);
        self.product("transform d_x", "linear_backward", [m, c, c], 0.0);
        let cost = e.matrices(1.0, m, c).and(e.bytes() * n * c + INDEX * m);
        self.rows("scatter", "scatter_rows", [n, c], cost); // all rows written, most of them zero
    }

    // ---- The classifier head; logits and their gradient are f32 ----

    fn classifier_forward(&mut self, z: &Sizes) {
        let e = self.precision;
        self.enter(Part::ClassHead, 1);
        let &Sizes { b, c, k, .. } = z;
        self.rows("gather", "gather_rows", [b, c], e.matrices(2.0, b, c).and(INDEX * b));
        self.product("pre_classifier", "linear", [b, c, c], 0.0);
        self.rows("relu", "relu_dropout", [b, c], e.matrices(2.0, b, c));
        self.product("classifier", "linear", [b, c, k], (F32 - e.bytes()) * b * k);
    }

    fn classifier_backward(&mut self, z: &Sizes) {
        let e = self.precision;
        self.enter(Part::ClassHead, 1);
        let &Sizes { n, b, c, k, .. } = z;
        let loss = Cost::bytes(b * (2.0 * F32 * k + INDEX + F32)); // logits, d_logits, label, weight
        self.rows("loss", "class_cross_entropy", [b, k], loss);
        self.weight_gradient("classifier d_W", "linear_backward", [b, c, k]);
        self.product("classifier d_x", "linear_backward", [b, k, c], (F32 - e.bytes()) * b * k);
        self.rows("relu", "relu_dropout_backward", [b, c], e.matrices(3.0, b, c)); // d, pre, d
        self.weight_gradient("pre_classifier d_W", "linear_backward", [b, c, c]);
        self.product("pre_classifier d_x", "linear_backward", [b, c, c], 0.0);
        self.rows("scatter", "scatter_rows", [n, c], e.matrices(1.0, b, c).and(e.bytes() * n * c + INDEX * b));
    }

    // ---- The update ----

    /// Of buffers of `len` elements.
    fn update(&mut self, len: f64) {
        let e = self.precision;
        self.enter(Part::Update, 1);
        self.pass = Pass::Update;
        let mut flat = |name, bytes_each: f64| {
            self.add(name, name, Kind::Optimizer, [len, 1.0, 1.0], Cost::bytes(bytes_each * len));
        };
        flat("zero", F32);
        flat("grad_norm", F32);
        // Weight, gradient and two moments read, weight, moments and the bf16 copy written; a byte for 64 says what decays.
        let copy = if e == Precision::Bf16 { e.bytes() } else { 0.0 };
        flat("adamw", 7.0 * F32 + copy + 1.0 / 64.0);
    }
}
