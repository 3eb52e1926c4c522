//! The parameter table: every tensor of the model, once. Allocation, safetensors, weight decay,
//! counting and tests iterate it; HF names appear here and nowhere else.

use super::config::Config;
use super::distilbert::Head;
use crate::backend::{Embedding, Linear, Norm, Span, UpdateSpan, VocabProjection};
use crate::philox::{Purpose, key, philox4x32};

/// LayerNorm's epsilon, everywhere in DistilBERT.
const LAYER_NORM_EPSILON: f32 = 1e-12;

/// Spans begin at multiples of this many elements, so that 16-byte loads stay aligned in bf16 too.
const SPAN_ALIGNMENT: usize = 64;

/// How a tensor starts when it is not loaded.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Init {
    /// N(0, `initializer_range`).
    Normal,
    /// N(0, `initializer_range`), but this row is zero.
    NormalExceptRow(usize),
    /// All zero.
    Zeros,
    /// All one.
    Ones,
}

/// One tensor of the model.
#[derive(Debug, Clone, PartialEq)]
pub struct ParamSpec {
    /// Its name in a safetensors file of the model with a head.
    pub hf_name: String,
    /// Its shape, outermost first.
    pub shape: Vec<usize>,
    /// How it starts.
    pub init: Init,
    /// Whether weight decay applies: not to biases, not to LayerNorms.
    pub decay: bool,
    /// Where it lies in the flat buffers.
    pub span: Span,
}

/// Handles of one transformer block.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BlockParams {
    /// q, k and v as one product. [3C, C]
    pub qkv: Linear,
    /// [C, C]
    pub out: Linear,
    /// After the attention's residual.
    pub attention_norm: Norm,
    /// [F, C]
    pub lin1: Linear,
    /// [C, F]
    pub lin2: Linear,
    /// After the feed-forward's residual.
    pub output_norm: Norm,
}

/// Handles of the masked-language-modelling head.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MlmHeadParams {
    /// [C, C]
    pub transform: Linear,
    /// After the GELU.
    pub norm: Norm,
    /// Tied to the word embeddings.
    pub projection: VocabProjection,
}

/// Handles of the classifier head.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ClassHeadParams {
    /// [C, C]
    pub pre_classifier: Linear,
    /// [K, C]
    pub classifier: Linear,
}

/// Handles of a head.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum HeadParams {
    /// Masked-language modelling.
    Mlm(MlmHeadParams),
    /// Classification.
    Classifier(ClassHeadParams),
}

/// All tensors of a model and where each lies.
#[derive(Debug, Clone, PartialEq)]
pub struct ParamTable {
    /// In the order of the flat buffers.
    pub specs: Vec<ParamSpec>,
    /// Handles of the embeddings.
    pub embedding: Embedding,
    /// Handles of each block.
    pub blocks: Vec<BlockParams>,
    /// Handles of the head.
    pub head: HeadParams,
    /// Elements of a flat buffer, alignment gaps included.
    pub flat_len: usize,
}

impl ParamTable {
    /// Lays out the tensors of a model with this head.
    pub fn new(config: &Config, head: Head) -> Self {
        let mut b = Builder::default();
        let (c, f) = (config.dim, config.hidden_dim);
        let padding_row = config.pad_token_id as usize;
        let embedding = Embedding {
            word: b.add(
                "distilbert.embeddings.word_embeddings.weight",
                &[config.vocab_size, c],
                Init::NormalExceptRow(padding_row),
            ),
            position: b.add(
                "distilbert.embeddings.position_embeddings.weight",
                &[config.max_position_embeddings, c],
                Init::Normal,
            ),
            norm: b.norm("distilbert.embeddings.LayerNorm", c),
            width: c,
            padding_idx: Some(config.pad_token_id),
        };
        let blocks = (0..config.n_layers)
            .map(|i| {
                let at = |name: &str| format!("distilbert.transformer.layer.{i}.{name}");
                BlockParams {
                    qkv: b.qkv(&at("attention"), c),
                    out: b.linear(&at("attention.out_lin"), c, c),
                    attention_norm: b.norm(&at("sa_layer_norm"), c),
                    lin1: b.linear(&at("ffn.lin1"), f, c),
                    lin2: b.linear(&at("ffn.lin2"), c, f),
                    output_norm: b.norm(&at("output_layer_norm"), c),
                }
            })
            .collect();
        let head = match head {
            Head::Mlm => HeadParams::Mlm(MlmHeadParams {
                transform: b.linear("vocab_transform", c, c),
                norm: b.norm("vocab_layer_norm", c),
                projection: VocabProjection {
                    weight: embedding.word,
                    bias: b.add("vocab_projector.bias", &[config.vocab_size], Init::Zeros),
                    vocab: config.vocab_size,
                    width: c,
                },
            }),
            Head::Classifier { classes } => HeadParams::Classifier(ClassHeadParams {
                pre_classifier: b.linear("pre_classifier", c, c),
                classifier: b.linear("classifier", classes, c),
            }),
        };
        ParamTable { specs: b.specs, embedding, blocks, head, flat_len: b.end }
    }

    /// Number of parameters, alignment gaps not counted.
    pub fn parameters(&self) -> usize {
        self.specs.iter().map(|s| s.span.len).sum()
    }

    /// The table as the optimizer sees it.
    pub fn update_spans(&self) -> Vec<UpdateSpan> {
        self.specs.iter().map(|s| UpdateSpan { span: s.span, decay: s.decay }).collect()
    }

    /// Fresh weights, a pure function of the seed and of each tensor's name.
    pub fn initial_weights(&self, config: &Config, seed: u64) -> Vec<f32> {
        let mut flat = vec![0.0; self.flat_len];
        for spec in &self.specs {
            initialise(&mut flat[spec.span.range()], spec, config.initializer_range, seed);
        }
        flat
    }
}

/// Fills one tensor. The draw depends on its name, so adding a head does not change the encoder.
pub fn initialise(values: &mut [f32], spec: &ParamSpec, range: f32, seed: u64) {
    match spec.init {
        Init::Zeros => values.fill(0.0),
        Init::Ones => values.fill(1.0),
        Init::Normal | Init::NormalExceptRow(_) => fill_normal(values, &spec.hf_name, range, seed),
    }
    if let Init::NormalExceptRow(row) = spec.init {
        let width = spec.shape[1];
        values[row * width..(row + 1) * width].fill(0.0);
    }
}

/// Box and Muller's transform: two uniform words make two normal numbers.
fn fill_normal(values: &mut [f32], name: &str, range: f32, seed: u64) {
    let tensor = xxhash_rust::xxh3::xxh3_64(name.as_bytes());
    let key = key(seed, Purpose::Init);
    for (i, four) in values.chunks_mut(4).enumerate() {
        let words = philox4x32([i as u32, (i >> 32) as u32, tensor as u32, (tensor >> 32) as u32], key);
        let unit = |w: u32| (f64::from(w) + 0.5) / 4_294_967_296.0;
        for (pair, w) in four.chunks_mut(2).zip(words.chunks(2)) {
            let radius = (-2.0 * unit(w[0]).ln()).sqrt() * f64::from(range);
            let angle = std::f64::consts::TAU * unit(w[1]);
            pair[0] = (radius * angle.cos()) as f32;
            if let Some(second) = pair.get_mut(1) {
                *second = (radius * angle.sin()) as f32;
            }
        }
    }
}

#[derive(Default)]
struct Builder {
    specs: Vec<ParamSpec>,
    end: usize,
}

impl Builder {
    fn add(&mut self, name: &str, shape: &[usize], init: Init) -> Span {
        let span = Span { offset: self.end, len: shape.iter().product() };
        self.end = (span.offset + span.len).next_multiple_of(SPAN_ALIGNMENT);
        let decay = matches!(init, Init::Normal | Init::NormalExceptRow(_));
        self.specs.push(ParamSpec { hf_name: name.to_owned(), shape: shape.to_vec(), init, decay, span });
        span
    }

    fn linear(&mut self, name: &str, outputs: usize, inputs: usize) -> Linear {
        Linear {
            weight: self.add(&format!("{name}.weight"), &[outputs, inputs], Init::Normal),
            bias: self.add(&format!("{name}.bias"), &[outputs], Init::Zeros),
            inputs,
            outputs,
        }
    }

    /// Three tensors each, side by side: C is a multiple of 64, so no gap parts them.
    fn qkv(&mut self, attention: &str, c: usize) -> Linear {
        let mut join = |suffix: &str, shape: &[usize], init| {
            let [q, k, v] =
                ["q_lin", "k_lin", "v_lin"].map(|n| self.add(&format!("{attention}.{n}.{suffix}"), shape, init));
            debug_assert!(q.offset + q.len == k.offset && k.offset + k.len == v.offset);
            Span { offset: q.offset, len: q.len + k.len + v.len }
        };
        Linear {
            weight: join("weight", &[c, c], Init::Normal),
            bias: join("bias", &[c], Init::Zeros),
            inputs: c,
            outputs: 3 * c,
        }
    }

    fn norm(&mut self, name: &str, c: usize) -> Norm {
        Norm {
            gamma: self.add(&format!("{name}.weight"), &[c], Init::Ones),
            beta: self.add(&format!("{name}.bias"), &[c], Init::Zeros),
            epsilon: LAYER_NORM_EPSILON,
        }
    }
}
