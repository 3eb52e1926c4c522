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
    /// Sines of the position in even columns, cosines in odd ones, from fast to slow, with the spread of [`Init::Normal`].
    Sinusoidal,
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
                if config.sinusoidal_pos_embds { Init::Sinusoidal } else { Init::Normal },
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
        Init::Sinusoidal => fill_sines(values, spec.shape[1], range),
        Init::Normal | Init::NormalExceptRow(_) => fill_normal(values, &spec.hf_name, range, seed),
    }
    if let Init::NormalExceptRow(row) = spec.init {
        let width = spec.shape[1];
        values[row * width..(row + 1) * width].fill(0.0);
    }
}

/// Vaswani et al., "Attention is all you need" (2017), section 3.5: columns 2k and 2k + 1 of row p hold the sine and
/// the cosine of p / 10,000^(2k / C). Scaled to the standard deviation `range` of the word embeddings they are added
/// to, so that neither drowns the other: the table trains with the rest. In `transformers` it has amplitude 1 and is fixed.
fn fill_sines(values: &mut [f32], width: usize, range: f32) {
    let amplitude = f64::from(range) * std::f64::consts::SQRT_2;
    for (position, row) in values.chunks_mut(width).enumerate() {
        for (column, value) in row.iter_mut().enumerate() {
            let exponent = (column / 2 * 2) as f64 / width as f64;
            let angle = position as f64 / 10_000f64.powf(exponent);
            *value = (amplitude * if column % 2 == 0 { angle.sin() } else { angle.cos() }) as f32;
        }
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
        let decay = !matches!(init, Init::Zeros | Init::Ones); // biases and LayerNorms start constant, and only they
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

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::path::Path;

    fn config(changes: &[(&str, serde_json::Value)]) -> Config {
        let mut fields = json!({
            "model_type": "distilbert", "activation": "gelu", "vocab_size": 30522, "max_position_embeddings": 512,
            "n_layers": 6, "n_heads": 12, "dim": 768, "hidden_dim": 3072, "dropout": 0.1, "attention_dropout": 0.1,
        });
        for (field, value) in changes {
            fields[*field] = value.clone();
        }
        let serde_json::Value::Object(fields) = fields else { unreachable!() };
        Config::from_json(&fields, Path::new("config.json")).unwrap()
    }

    fn tiny() -> Config {
        let small = [("vocab_size", 101), ("max_position_embeddings", 17), ("n_layers", 2), ("n_heads", 2)];
        let mut changes: Vec<_> = small.map(|(field, value)| (field, json!(value))).into();
        changes.extend([("dim", json!(64)), ("hidden_dim", json!(128)), ("pad_token_id", json!(3))]);
        config(&changes)
    }

    #[test]
    fn counts_are_those_of_distilbert_base() {
        let mlm = ParamTable::new(&config(&[]), Head::Mlm);
        assert_eq!((mlm.specs.len(), mlm.parameters()), (105, 66_985_530));
        let classifier = ParamTable::new(&config(&[]), Head::Classifier { classes: 2 });
        assert_eq!((classifier.specs.len(), classifier.parameters()), (104, 66_955_010));
    }

    #[test]
    fn spans_are_aligned_in_order_apart_and_as_long_as_their_shapes() {
        for head in [Head::Mlm, Head::Classifier { classes: 3 }] {
            let table = ParamTable::new(&tiny(), head);
            let mut end = 0;
            for spec in &table.specs {
                assert_eq!(spec.span.offset % SPAN_ALIGNMENT, 0, "{}", spec.hf_name);
                assert!(spec.span.offset >= end && spec.span.offset < end + SPAN_ALIGNMENT, "{}", spec.hf_name);
                assert_eq!(spec.span.len, spec.shape.iter().product::<usize>());
                end = spec.span.offset + spec.span.len;
            }
            assert_eq!(table.flat_len, end.next_multiple_of(SPAN_ALIGNMENT));
            let mut names: Vec<_> = table.specs.iter().map(|s| &s.hf_name).collect();
            names.sort_unstable();
            names.dedup();
            assert_eq!(names.len(), table.specs.len());
        }
    }

    #[test]
    fn every_layer_norm_has_distilberts_epsilon() {
        let table = ParamTable::new(&tiny(), Head::Mlm);
        let HeadParams::Mlm(head) = table.head else { unreachable!() };
        let blocks = table.blocks.iter().flat_map(|b| [b.attention_norm, b.output_norm]);
        for norm in blocks.chain([table.embedding.norm, head.norm]) {
            assert_eq!(norm.epsilon, 1e-12);
        }
    }

    #[test]
    fn decay_spares_biases_and_layer_norms_only() {
        for head in [Head::Mlm, Head::Classifier { classes: 3 }] {
            for sines in [false, true] {
                let table = ParamTable::new(&Config { sinusoidal_pos_embds: sines, ..tiny() }, head);
                for spec in &table.specs {
                    let norm = spec.hf_name.contains("LayerNorm") || spec.hf_name.contains("layer_norm");
                    let spared = norm || spec.hf_name.ends_with(".bias");
                    assert_eq!(spec.decay, !spared, "{}", spec.hf_name);
                }
            }
        }
    }

    #[test]
    fn fresh_weights_have_the_range_asked_for_and_an_empty_padding_row() {
        let config = tiny();
        let table = ParamTable::new(&config, Head::Mlm);
        let flat = table.initial_weights(&config, 7);
        let word = &flat[table.embedding.word.range()];
        assert!(word[3 * 64..4 * 64].iter().all(|&w| w == 0.0));
        let weight = &flat[table.blocks[1].lin1.weight.range()];
        let n = weight.len() as f64;
        let mean = weight.iter().map(|&w| f64::from(w)).sum::<f64>() / n;
        let deviation = (weight.iter().map(|&w| (f64::from(w) - mean).powi(2)).sum::<f64>() / n).sqrt();
        // Six standard errors of the mean and of the deviation of n normal draws.
        assert!(mean.abs() < 6.0 * 0.02 / n.sqrt(), "{mean}");
        assert!((deviation / 0.02 - 1.0).abs() < 6.0 / (2.0 * n).sqrt(), "{deviation}");
        assert!(flat[table.embedding.norm.gamma.range()].iter().all(|&g| g == 1.0));
        assert_ne!(flat[table.blocks[0].lin1.weight.range()], flat[table.blocks[1].lin1.weight.range()]);
    }

    #[test]
    fn the_head_does_not_change_a_fresh_encoder_but_the_seed_does() {
        let config = tiny();
        let (mlm, classifier) =
            (ParamTable::new(&config, Head::Mlm), ParamTable::new(&config, Head::Classifier { classes: 2 }));
        let end = mlm.blocks[1].output_norm.beta.range().end;
        let fresh = mlm.initial_weights(&config, 7);
        assert_eq!(fresh[..end], classifier.initial_weights(&config, 7)[..end]);
        assert_ne!(fresh[..end], mlm.initial_weights(&config, 8)[..end]);
    }

    #[test]
    fn sines_start_the_position_table_where_the_configuration_says_so() {
        let config = Config { sinusoidal_pos_embds: true, ..tiny() };
        let table = ParamTable::new(&config, Head::Mlm);
        let flat = table.initial_weights(&config, 7);
        let position = &flat[table.embedding.position.range()];
        let amplitude = f64::from(config.initializer_range) * std::f64::consts::SQRT_2;
        assert_eq!(position[..4], [0.0, amplitude as f32, 0.0, amplitude as f32]);
        assert_eq!(position[5 * 64], (amplitude * 5f64.sin()) as f32);
        assert_eq!(position[5 * 64 + 63], (amplitude * (5.0 / 10_000f64.powf(62.0 / 64.0)).cos()) as f32);
    }
}
