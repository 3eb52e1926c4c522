//! DistilBERT-base at N = 4096: every op of a training step, with made-up values, for ops.rs and step.rs.

use handbert::backend::cpu::Cpu;
use handbert::backend::{
    AdamW, Arena, Backend, BatchLimits, BatchView, Capacity, Dropout, Into, LossGrads, Memory, Pick, Planner, Result,
    Rows, Tally, UpdateSpan,
};
use handbert::model::params::HeadParams;
use handbert::model::{Config, Head, ParamTable};
use handbert::philox::{Purpose, below, key, philox4x32, unit_f32};

type Mat = <Cpu as Memory>::Mat;
type Flat = <Cpu as Memory>::Flat;

/// Lengths of the sequences, as a packed batch of real postings has them: 4096 tokens in all.
pub const LENGTHS: [usize; 14] = [512, 180, 300, 411, 97, 350, 260, 512, 233, 310, 140, 401, 290, 100];

const N: usize = 4096;
const C: usize = 768;
const F: usize = 3072;
const V: usize = 30_522;
const LAYERS: usize = 6;

/// The configuration of distilbert-base-uncased.
pub fn config() -> Config {
    Config {
        vocab_size: V,
        max_position_embeddings: 512,
        sinusoidal_pos_embds: false,
        n_layers: LAYERS,
        n_heads: 12,
        dim: C,
        hidden_dim: F,
        dropout: 0.1,
        attention_dropout: 0.1,
        seq_classif_dropout: 0.2,
        initializer_range: 0.02,
        pad_token_id: 0,
        labels: Vec::new(),
    }
}

/// The arrays of a batch of random tokens, 15 % of them masked.
pub struct Arrays {
    ids: Vec<u32>,
    position_ids: Vec<u32>,
    cu_seqlens: Vec<u32>,
    masked_rows: Vec<u32>,
    targets: Vec<u32>,
}

impl Arrays {
    /// Sequences of these lengths.
    pub fn new(lengths: &[usize]) -> Self {
        let key = key(1, Purpose::Synth);
        let tokens: usize = lengths.iter().sum();
        let ids: Vec<u32> = (0..tokens as u32).map(|i| below(philox4x32([i, 0, 0, 0], key)[0], V as u32)).collect();
        let masked_rows: Vec<u32> = (0..tokens as u32).filter(|i| i % 20 < 3).collect();
        let mut cu_seqlens = vec![0];
        for &length in lengths {
            cu_seqlens.push(cu_seqlens[cu_seqlens.len() - 1] + length as u32);
        }
        Arrays {
            position_ids: lengths.iter().flat_map(|&l| 0..l as u32).collect(),
            cu_seqlens,
            targets: masked_rows.iter().map(|&row| ids[row as usize]).collect(),
            masked_rows,
            ids,
        }
    }

    /// What is uploaded for a step.
    pub fn view(&self, step: u32) -> BatchView<'_> {
        BatchView {
            ids: &self.ids,
            position_ids: &self.position_ids,
            cu_seqlens: &self.cu_seqlens,
            masked_rows: &self.masked_rows,
            targets: &self.targets,
            loss_scale: 1.0 / self.targets.len() as f32,
            step,
            ..BatchView::default()
        }
    }

    /// Room for this batch.
    pub fn capacity(&self) -> Capacity {
        let (tokens, masked) = (self.ids.len(), self.targets.len());
        Capacity { tokens, sequences: self.cu_seqlens.len() - 1, masked }
    }
}

/// Operands for every op.
pub struct Base {
    be: Cpu,
    table: ParamTable,
    batch: <Cpu as Memory>::Batch,
    w: Flat,
    grads: Flat,
    moments: [Flat; 2],
    spans: Vec<UpdateSpan>,
    tally: Tally,
    drop: Dropout,
    /// [N, C]
    x: Mat,
    y: Mat,
    z: Mat,
    sum: Mat,
    stats: Mat,
    lse: Mat,
    /// [N, F]
    wide: Mat,
    wide2: Mat,
    wide3: Mat,
    /// [N, 3C]
    qkv: Mat,
    d_qkv: Mat,
    /// [M, C]
    picked: Mat,
    picked2: Mat,
}

impl Base {
    /// Random operands.
    pub fn new() -> Result<Self> {
        let be = Cpu::new();
        let config = config();
        let table = ParamTable::new(&config, Head::Mlm);
        let arrays = Arrays::new(&LENGTHS);
        let mut batch = be.batch(arrays.capacity())?;
        be.upload(&arrays.view(1), &BatchLimits { vocab: V, positions: 512, classes: 0 }, &mut batch)?;
        let mut arena = be.arena(&Planner::new(arrays.capacity()))?;
        let mut random = |rows: Rows, cols: usize| -> Result<Mat> {
            let mut mat = arena.mat(rows, cols);
            let count = arrays.capacity().of(rows);
            let key = key(cols as u64, Purpose::Init);
            let value = |i| unit_f32(philox4x32([i as u32, 0, 0, 0], key)[0]) - 0.5;
            be.write_mat(&mut mat, count, &(0..count * cols).map(value).collect::<Vec<_>>())?;
            Ok(mat)
        };
        let flat = || be.flat(table.flat_len);
        Ok(Base {
            w: be.weights(&table.initial_weights(&config, 1))?,
            grads: flat()?,
            moments: [flat()?, flat()?],
            spans: table.update_spans(),
            tally: Tally { grad_norm: 1.0, ..be.tally()? },
            drop: Dropout::new(0.1, 3, 7),
            x: random(Rows::Tokens, C)?,
            y: random(Rows::Tokens, C)?,
            z: random(Rows::Tokens, C)?,
            sum: random(Rows::Tokens, C)?,
            stats: random(Rows::Tokens, 2)?,
            lse: random(Rows::Tokens, 12)?,
            wide: random(Rows::Tokens, F)?,
            wide2: random(Rows::Tokens, F)?,
            wide3: random(Rows::Tokens, F)?,
            qkv: random(Rows::Tokens, 3 * C)?,
            d_qkv: random(Rows::Tokens, 3 * C)?,
            picked: random(Rows::Masked, C)?,
            picked2: random(Rows::Masked, C)?,
            batch,
            table,
            be,
        })
    }
}

/// An op as a step calls it.
pub struct Op {
    /// What it is called here.
    pub name: &'static str,
    /// How often a step calls it.
    pub per_step: usize,
    /// Multiplications and additions of its products.
    pub flops: f64,
    /// Bytes it cannot but read and write.
    pub bytes: f64,
    /// Calls it once.
    pub run: fn(&mut Base) -> Result<()>,
}

const fn product(rows: usize, outputs: usize, inputs: usize) -> f64 {
    2.0 * (rows * outputs * inputs) as f64
}

const fn matrices(count: usize) -> f64 {
    (count * N * C * 4) as f64
}

/// 2 · C · Σ L²: one product of attention, over all heads.
const fn attention_product() -> f64 {
    let (mut squares, mut i) = (0, 0);
    while i < LENGTHS.len() {
        squares += LENGTHS[i] * LENGTHS[i];
        i += 1;
    }
    2.0 * (C * squares) as f64
}

const PARAMETERS: f64 = 66_985_530.0;
const M: usize = N * 3 / 20 + 1;

/// Every op of a training step that takes time.
pub const OPS: [Op; 20] = [
    Op {
        name: "embed",
        per_step: 1,
        flops: 0.0,
        bytes: matrices(3),
        run: |b| b.be.embed(&b.batch, &b.w, &b.table.embedding, &b.drop, &mut b.stats, &mut b.y),
    },
    Op {
        name: "embed_backward",
        per_step: 1,
        flops: 0.0,
        bytes: matrices(7),
        run: |b| b.be.embed_backward(&b.batch, &b.w, &b.table.embedding, &b.drop, &b.stats, &mut b.y, &mut b.grads),
    },
    Op {
        name: "linear qkv",
        per_step: LAYERS,
        flops: product(N, 3 * C, C),
        bytes: 0.0,
        run: |b| b.be.linear(&b.x, &b.w, &b.table.blocks[0].qkv, &mut b.qkv),
    },
    Op {
        name: "linear_backward qkv",
        per_step: LAYERS,
        flops: 2.0 * product(N, 3 * C, C),
        bytes: 0.0,
        run: |b| b.be.linear_backward(&b.d_qkv, &b.x, &b.w, &b.table.blocks[0].qkv, &mut b.grads, Into::Add(&mut b.y)),
    },
    Op {
        name: "attention",
        per_step: LAYERS,
        flops: 2.0 * attention_product(),
        bytes: 0.0,
        run: |b| b.be.attention(&b.qkv, &b.batch, 12, &b.drop, &mut b.lse, &mut b.z),
    },
    Op {
        name: "attention_backward",
        per_step: LAYERS,
        flops: 5.0 * attention_product(),
        bytes: 0.0,
        run: |b| {
            let bias = b.table.blocks[0].qkv.bias;
            let (lse, ctx, d_ctx) = (&b.lse, &b.z, &b.x);
            b.be.attention_backward(&b.qkv, &b.batch, 12, &b.drop, lse, ctx, d_ctx, bias, &mut b.grads, &mut b.d_qkv)
        },
    },
    Op {
        name: "linear out",
        per_step: LAYERS,
        flops: product(N, C, C),
        bytes: 0.0,
        run: |b| b.be.linear(&b.x, &b.w, &b.table.blocks[0].out, &mut b.y),
    },
    Op {
        name: "linear_backward out",
        per_step: LAYERS,
        flops: 2.0 * product(N, C, C),
        bytes: 0.0,
        run: |b| b.be.linear_backward(&b.z, &b.x, &b.w, &b.table.blocks[0].out, &mut b.grads, Into::Write(&mut b.y)),
    },
    Op {
        name: "linear_gelu lin1",
        per_step: LAYERS,
        flops: product(N, F, C),
        bytes: 0.0,
        run: |b| b.be.linear_gelu(&b.x, &b.w, &b.table.blocks[0].lin1, &mut b.wide, &mut b.wide2),
    },
    Op {
        name: "linear_backward lin1",
        per_step: LAYERS,
        flops: 2.0 * product(N, F, C),
        bytes: 0.0,
        run: |b| b.be.linear_backward(&b.wide3, &b.x, &b.w, &b.table.blocks[0].lin1, &mut b.grads, Into::Add(&mut b.y)),
    },
    Op {
        name: "linear lin2",
        per_step: LAYERS,
        flops: product(N, C, F),
        bytes: 0.0,
        run: |b| b.be.linear(&b.wide2, &b.w, &b.table.blocks[0].lin2, &mut b.y),
    },
    Op {
        name: "linear_backward_gelu lin2",
        per_step: LAYERS,
        flops: 2.0 * product(N, C, F),
        bytes: 0.0,
        run: |b| {
            let p = &b.table.blocks[0];
            b.be.linear_backward_gelu(&b.x, &b.wide2, &b.wide, &b.w, &p.lin2, p.lin1.bias, &mut b.grads, &mut b.wide3)
        },
    },
    Op {
        name: "add_layernorm",
        per_step: LAYERS,
        flops: 0.0,
        bytes: matrices(4),
        run: |b| {
            let norm = &b.table.blocks[0].attention_norm;
            let none = &Dropout::NONE;
            b.be.add_layernorm(&b.x, Some(&b.z), &b.batch, &b.w, norm, none, &mut b.sum, &mut b.stats, &mut b.y)
        },
    },
    Op {
        name: "add_layernorm dropout",
        per_step: LAYERS,
        flops: 0.0,
        bytes: matrices(4),
        run: |b| {
            let norm = &b.table.blocks[0].output_norm;
            b.be.add_layernorm(&b.x, Some(&b.z), &b.batch, &b.w, norm, &b.drop, &mut b.sum, &mut b.stats, &mut b.y)
        },
    },
    Op {
        name: "add_layernorm_backward",
        per_step: LAYERS,
        flops: 0.0,
        bytes: matrices(3),
        run: |b| {
            let p = &b.table.blocks[0];
            let (norm, bias, none) = (&p.attention_norm, Some(p.out.bias), &Dropout::NONE);
            b.be.add_layernorm_backward(
                &mut b.y,
                &b.sum,
                &b.stats,
                &b.batch,
                &b.w,
                norm,
                none,
                bias,
                &mut b.grads,
                None,
            )
        },
    },
    Op {
        name: "add_layernorm_backward dropout",
        per_step: LAYERS,
        flops: 0.0,
        bytes: matrices(4),
        run: |b| {
            let p = &b.table.blocks[0];
            let (norm, bias, branch) = (&p.output_norm, Some(p.lin2.bias), Some(&mut b.z));
            b.be.add_layernorm_backward(
                &mut b.y,
                &b.sum,
                &b.stats,
                &b.batch,
                &b.w,
                norm,
                &b.drop,
                bias,
                &mut b.grads,
                branch,
            )
        },
    },
    Op {
        name: "gather and scatter",
        per_step: 1,
        flops: 0.0,
        bytes: matrices(1),
        run: |b| {
            b.be.gather_rows(&b.x, &b.batch, Pick::Masked, &mut b.picked)?;
            b.be.scatter_rows(&b.picked, &b.batch, Pick::Masked, &mut b.y)
        },
    },
    Op {
        name: "vocab_cross_entropy",
        per_step: 1,
        flops: 3.0 * product(M, V, C),
        bytes: 0.0,
        run: |b| {
            let HeadParams::Mlm(p) = &b.table.head else { return Ok(()) };
            let back = Some(LossGrads { d_x: &mut b.picked2, grads: &mut b.grads });
            b.be.vocab_cross_entropy(&b.picked, &b.batch, &b.w, &p.projection, &mut b.tally, back)
        },
    },
    Op {
        name: "grad_norm and zero",
        per_step: 1,
        flops: 0.0,
        bytes: 8.0 * PARAMETERS,
        run: |b| {
            b.be.grad_norm(&b.grads, &mut b.tally)?;
            b.be.zero(&mut b.grads)
        },
    },
    Op {
        name: "adamw",
        per_step: 1,
        flops: 0.0,
        bytes: 28.0 * PARAMETERS,
        run: |b| {
            let [m, v] = &mut b.moments;
            b.be.adamw(&mut b.w, &b.grads, m, v, &b.spans, &ADAMW, &b.tally)
        },
    },
];

/// Settings of the optimizer.
pub const ADAMW: AdamW =
    AdamW { learning_rate: 1e-5, beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.01, max_norm: 1.0, step: 1 };
