//! Shapes that do not fit an op are `Error::Shape`, never a panic.

use handbert::backend::{
    AdamW, Backend, Dropout, Embedding, Error, Into, Linear, LossGrads, Norm, Pick, Result, Rows, Span, UpdateLimits,
    UpdateSpan, VocabProjection,
};
use handbert::check::batches::{Masks, TestBatch};
use handbert::check::params::Params;
use handbert::check::random::Random;
use handbert::check::room::Room;

/// C
const WIDTH: usize = 64;
/// F
const FEED_FORWARD: usize = 128;
/// V
const VOCAB: usize = 40;
/// K
const CLASSES: usize = 3;
const NONE: Dropout = Dropout::NONE;

/// A batch and layers that fit each other.
struct Fixture<B: Backend> {
    batch: B::Batch,
    weights: B::Weights,
    grads: B::Flat,
    tally: B::Tally,
    linear: Linear,
    wide: Linear,
    norm: Norm,
    embedding: Embedding,
    projection: VocabProjection,
    qkv_bias: Span,
    class_bias: Span,
}

/// A span outside of everything.
const BEYOND: Span = Span { offset: usize::MAX - 3, len: WIDTH };

fn fixture<B: Backend>(room: &mut Room<'_, B>, batch: &TestBatch) -> Result<Fixture<B>> {
    let mut random = Random::new(9);
    let mut params = Params::default();
    let linear = params.linear(WIDTH, WIDTH, &mut random);
    let wide = params.linear(WIDTH, FEED_FORWARD, &mut random);
    let norm = params.norm(WIDTH, &mut random);
    let mut tensor = |len: usize| {
        let values = random.normals(len, 1.0);
        params.add(values, &mut random)
    };
    let word = tensor(VOCAB * WIDTH);
    let position = tensor(batch.limits.positions * WIDTH);
    let embedding = Embedding { word, position, norm, width: WIDTH, padding_idx: Some(0) };
    let projection = VocabProjection { weight: word, bias: tensor(VOCAB), vocab: VOCAB, width: WIDTH };
    let (qkv_bias, class_bias) = (tensor(3 * WIDTH), tensor(CLASSES));
    Ok(Fixture {
        batch: room.upload(batch)?,
        weights: room.weights(&params)?,
        grads: room.grads(&params)?,
        tally: room.be.tally()?,
        linear,
        wide,
        norm,
        embedding,
        projection,
        qkv_bias,
        class_bias,
    })
}

fn batch() -> TestBatch {
    let mut random = Random::new(8);
    let mut batch = TestBatch::new(&[4, 3], VOCAB, &mut random).masked(Masks::Some, &mut random);
    batch.limits.positions = 8;
    batch.limits.classes = CLASSES;
    batch.labels = vec![0, CLASSES as i32 - 1];
    batch.targets[0] = VOCAB as u32 - 1;
    batch
}

#[track_caller]
fn refuses<T>(what: &str, result: Result<T>) {
    match result {
        Err(Error::Shape { .. }) => {}
        Err(e) => panic!("{what}: another error than Shape: {e}"),
        Ok(_) => panic!("{what}: not refused"),
    }
}

pub fn suite<B: Backend>(be: &B) {
    let batch = batch();
    let mut counts = batch.counts();
    // Room for more rows than the batch has, so that too many live rows are possible.
    (counts.tokens, counts.sequences, counts.masked) = (12, 5, 6);
    let mut room = Room::new(be, counts, batch.counts());
    let mut f = fixture(&mut room, &batch).expect("a fixture");
    matrices(&mut room).expect("write_mat");
    linear_family(&room, &mut f).expect("matrices");
    attention_and_norms(&mut room, &mut f).expect("matrices");
    embeddings_and_rows(&mut room, &mut f).expect("matrices");
    losses(&room, &mut f).expect("matrices");
    optimizer(be, &mut f).expect("buffers");
}

/// A matrix of `live` rows of ones.
fn ones<B: Backend>(room: &Room<'_, B>, rows: Rows, live: usize, cols: usize) -> Result<B::Mat> {
    room.mat(rows, cols, &vec![1.0; live * cols])
}

fn matrices<B: Backend>(room: &mut Room<'_, B>) -> Result<()> {
    let be = room.be;
    let mut mat = room.empty(Rows::Tokens, 4)?;
    refuses("write_mat beyond the capacity", be.write_mat(&mut mat, 13, &[0.0; 52]));
    refuses("write_mat of too few values", be.write_mat(&mut mat, 2, &[0.0; 7]));
    refuses("write_mat of too many values", be.write_mat(&mut mat, 2, &[0.0; 9]));
    let mut flat = be.flat(10)?;
    refuses("write_flat of another length", be.write_flat(&mut flat, &[0.0; 9]));
    refuses("copy of another length", be.copy(&be.flat(9)?, &mut flat));
    Ok(())
}

fn linear_family<B: Backend>(room: &Room<'_, B>, f: &mut Fixture<B>) -> Result<()> {
    let (be, rows) = (room.be, Rows::Tokens);
    let mat = |live, cols| ones(room, rows, live, cols);
    let (x, narrow) = (mat(7, WIDTH)?, mat(7, WIDTH / 2)?);
    let (mut y, mut y_wide, mut pre) = (mat(7, WIDTH)?, mat(7, FEED_FORWARD)?, mat(7, FEED_FORWARD)?);
    let bad_weight = Linear { weight: Span { len: WIDTH, ..f.linear.weight }, ..f.linear };
    let bad_bias = Linear { bias: BEYOND, ..f.linear };
    let w = &f.weights;
    refuses("linear: x of another width", be.linear(&narrow, w, &f.linear, &mut y));
    refuses("linear: y of another width", be.linear(&x, w, &f.wide, &mut y));
    refuses("linear: W too short", be.linear(&x, w, &bad_weight, &mut y));
    refuses("linear: b beyond the buffer", be.linear(&x, w, &bad_bias, &mut y));
    let mut few = ones(room, Rows::Sequences, 2, WIDTH)?;
    refuses("linear: y without room for x's rows", be.linear(&x, w, &f.linear, &mut few));
    refuses("linear_gelu: pre of another width", be.linear_gelu(&x, w, &f.wide, &mut y, &mut y_wide));
    refuses("linear_gelu: y of another width", be.linear_gelu(&x, w, &f.wide, &mut pre, &mut y));
    refuses("linear_gelu: x of another width", be.linear_gelu(&narrow, w, &f.wide, &mut pre, &mut y_wide));
    let short = mat(6, WIDTH)?;
    let g = &mut f.grads;
    refuses("linear_backward: rows differ", be.linear_backward(&short, &x, w, &f.linear, g, Into::Nowhere));
    refuses("linear_backward: d_y's width", be.linear_backward(&x, &x, w, &f.wide, g, Into::Nowhere));
    refuses("linear_backward: x's width", be.linear_backward(&x, &narrow, w, &f.linear, g, Into::Nowhere));
    refuses("linear_backward: W too short", be.linear_backward(&x, &x, w, &bad_weight, g, Into::Nowhere));
    let mut wrong = mat(7, WIDTH / 2)?;
    refuses("linear_backward: d_x written", be.linear_backward(&x, &x, w, &f.linear, g, Into::Write(&mut wrong)));
    let mut wrong = mat(6, WIDTH)?;
    refuses("linear_backward: rows added to", be.linear_backward(&x, &x, w, &f.linear, g, Into::Add(&mut wrong)));
    let mut small = be.flat(5)?;
    refuses("linear_backward: grads", be.linear_backward(&x, &x, w, &f.linear, &mut small, Into::Nowhere));
    let back = |d_y: &B::Mat, pre: &B::Mat, bias, g: &mut B::Flat, d_pre: &mut B::Mat| {
        be.linear_backward_gelu(d_y, &x, pre, w, &f.linear, bias, g, d_pre)
    };
    let bias = f.linear.bias;
    refuses("linear_backward_gelu: pre's rows", back(&x, &short, bias, g, &mut y));
    refuses("linear_backward_gelu: pre's width", back(&x, &y_wide, bias, g, &mut y));
    refuses("linear_backward_gelu: d_pre's width", back(&x, &x, bias, g, &mut y_wide));
    refuses("linear_backward_gelu: bias", back(&x, &x, f.wide.bias, g, &mut y));
    refuses("gelu_backward: widths differ", be.gelu_backward(&y_wide, bias, g, &mut y));
    refuses("gelu_backward: rows differ", be.gelu_backward(&short, bias, g, &mut y));
    refuses("gelu_backward: bias", be.gelu_backward(&x, BEYOND, g, &mut y));
    Ok(())
}

fn attention_and_norms<B: Backend>(room: &mut Room<'_, B>, f: &mut Fixture<B>) -> Result<()> {
    let (be, rows) = (room.be, Rows::Tokens);
    let (mut lse, mut lse_of_three) = (room.stats(rows, 2)?, room.stats(rows, 3)?);
    let mut stats = room.stats(rows, 2)?;
    let mat = |live, cols| ones(room, rows, live, cols);
    let (qkv, qkv_short, x, short) = (mat(7, 3 * WIDTH)?, mat(6, 3 * WIDTH)?, mat(7, WIDTH)?, mat(6, WIDTH)?);
    let (mut ctx, mut d_qkv, mut narrow) = (mat(7, WIDTH)?, mat(7, 3 * WIDTH)?, mat(7, WIDTH / 2)?);
    refuses("attention: N is not the batch's", be.attention(&qkv_short, &f.batch, 2, &NONE, &mut lse, &mut ctx));
    refuses("attention: qkv not of 3C", be.attention(&x, &f.batch, 2, &NONE, &mut lse, &mut ctx));
    refuses("attention: ctx's width", be.attention(&qkv, &f.batch, 2, &NONE, &mut lse, &mut narrow));
    refuses(
        "attention: heads that do not divide C",
        be.attention(&qkv, &f.batch, 3, &NONE, &mut lse_of_three, &mut ctx),
    );
    refuses("attention: no heads", be.attention(&qkv, &f.batch, 0, &NONE, &mut lse, &mut ctx));
    refuses("attention: lse of other heads", be.attention(&qkv, &f.batch, 2, &NONE, &mut lse_of_three, &mut ctx));
    be.attention(&qkv, &f.batch, 2, &NONE, &mut lse, &mut ctx)?;
    let g = &mut f.grads;
    let mut back = |qkv: &B::Mat, d_ctx: &B::Mat, bias, d_qkv: &mut B::Mat| {
        be.attention_backward(qkv, &f.batch, 2, &NONE, &lse, &ctx, d_ctx, bias, g, d_qkv)
    };
    refuses("attention_backward: N", back(&qkv_short, &x, f.qkv_bias, &mut d_qkv));
    refuses("attention_backward: d_ctx's rows", back(&qkv, &short, f.qkv_bias, &mut d_qkv));
    refuses("attention_backward: d_qkv's width", back(&qkv, &x, f.qkv_bias, &mut narrow));
    refuses("attention_backward: bias", back(&qkv, &x, f.linear.bias, &mut d_qkv));

    let (w, batch) = (&f.weights, &f.batch);
    let bad_norm = Norm { gamma: Span { len: WIDTH / 2, ..f.norm.gamma }, ..f.norm };
    let (mut sum, mut y) = (mat(7, WIDTH)?, mat(7, WIDTH)?);
    let mut add = |x: &B::Mat, residual: &B::Mat, norm: &Norm, sum: &mut B::Mat| {
        be.add_layernorm(x, Some(residual), batch, w, norm, &NONE, sum, &mut stats, &mut y)
    };
    refuses("add_layernorm: residual's rows", add(&x, &short, &f.norm, &mut sum));
    refuses("add_layernorm: residual's width", add(&x, &narrow, &f.norm, &mut sum));
    refuses("add_layernorm: sum's width", add(&x, &x, &f.norm, &mut narrow));
    refuses("add_layernorm: gamma's length", add(&x, &x, &bad_norm, &mut sum));
    add(&x, &x, &f.norm, &mut sum)?;
    let (mut d, mut d_short, mut d_branch) = (mat(7, WIDTH)?, mat(6, WIDTH)?, mat(7, WIDTH)?);
    let g = &mut f.grads;
    let mut back = |d: &mut B::Mat, norm: &Norm, bias, d_branch: &mut B::Mat| {
        be.add_layernorm_backward(d, &sum, &stats, batch, w, norm, &NONE, bias, g, Some(d_branch))
    };
    refuses("add_layernorm_backward: d's rows", back(&mut d_short, &f.norm, None, &mut d_branch));
    refuses("add_layernorm_backward: d's width", back(&mut narrow, &f.norm, None, &mut d_branch));
    refuses("add_layernorm_backward: d_branch's width", back(&mut d, &f.norm, None, &mut d_qkv));
    refuses("add_layernorm_backward: gamma's length", back(&mut d, &bad_norm, None, &mut d_branch));
    refuses("add_layernorm_backward: bias", back(&mut d, &f.norm, Some(f.qkv_bias), &mut d_branch));
    Ok(())
}

fn embeddings_and_rows<B: Backend>(room: &mut Room<'_, B>, f: &mut Fixture<B>) -> Result<()> {
    let (be, batch, w) = (room.be, &f.batch, &f.weights);
    let mut stats = room.stats(Rows::Tokens, 2)?;
    let mat = |rows, live, cols| ones(room, rows, live, cols);
    let (mut y, mut narrow) = (mat(Rows::Tokens, 7, WIDTH)?, mat(Rows::Tokens, 7, WIDTH / 2)?);
    let bad = Embedding { word: Span { len: WIDTH + 1, ..f.embedding.word }, ..f.embedding };
    refuses("embed: y's width", be.embed(batch, w, &f.embedding, &NONE, &mut stats, &mut narrow));
    assert!(be.embed(batch, w, &bad, &NONE, &mut stats, &mut y).is_err(), "embed: a table that lacks the ids' rows");
    be.embed(batch, w, &f.embedding, &NONE, &mut stats, &mut y)?;
    let (mut short, g) = (mat(Rows::Tokens, 6, WIDTH)?, &mut f.grads);
    refuses("embed_backward: N", be.embed_backward(batch, w, &f.embedding, &NONE, &stats, &mut short, g));
    refuses("embed_backward: C", be.embed_backward(batch, w, &f.embedding, &NONE, &stats, &mut narrow, g));

    let x = mat(Rows::Tokens, 7, WIDTH)?;
    for (pick, rows, live) in [(Pick::Masked, Rows::Masked, 2), (Pick::First, Rows::Sequences, 2)] {
        let (mut picked, mut other, mut back) =
            (mat(rows, live, WIDTH)?, mat(rows, live, 3)?, mat(Rows::Tokens, 7, WIDTH)?);
        refuses("gather_rows: N", be.gather_rows(&short, batch, pick, &mut picked));
        refuses("gather_rows: widths differ", be.gather_rows(&x, batch, pick, &mut other));
        let more = mat(rows, live + 1, WIDTH)?;
        refuses("scatter_rows: rows not the pick's", be.scatter_rows(&more, batch, pick, &mut back));
        refuses("scatter_rows: widths differ", be.scatter_rows(&other, batch, pick, &mut back));
    }
    Ok(())
}

fn losses<B: Backend>(room: &Room<'_, B>, f: &mut Fixture<B>) -> Result<()> {
    let (be, batch, w, tally) = (room.be, &f.batch, &f.weights, &mut f.tally);
    let mat = |rows, live, cols| ones(room, rows, live, cols);
    let (x, short, narrow) =
        (mat(Rows::Masked, 2, WIDTH)?, mat(Rows::Masked, 1, WIDTH)?, mat(Rows::Masked, 2, WIDTH / 2)?);
    let layer = &f.projection;
    let bad = VocabProjection { bias: Span { len: VOCAB - 1, ..layer.bias }, ..*layer };
    refuses("vocab_cross_entropy: M", be.vocab_cross_entropy(&short, batch, w, layer, tally, None));
    refuses("vocab_cross_entropy: C", be.vocab_cross_entropy(&narrow, batch, w, layer, tally, None));
    refuses("vocab_cross_entropy: bias", be.vocab_cross_entropy(&x, batch, w, &bad, tally, None));
    let mut wrong = mat(Rows::Masked, 2, WIDTH / 2)?;
    let back = LossGrads { d_x: &mut wrong, grads: &mut f.grads };
    refuses("vocab_cross_entropy: d_x", be.vocab_cross_entropy(&x, batch, w, layer, tally, Some(back)));
    refuses("top_k: C", be.top_k(&narrow, w, layer, 2));
    refuses("top_k: bias", be.top_k(&x, w, &bad, 2));

    let (logits, fewer) = (mat(Rows::Sequences, 2, CLASSES)?, mat(Rows::Sequences, 1, CLASSES)?);
    refuses("class_cross_entropy: B", be.class_cross_entropy(&fewer, batch, f.class_bias, 0.0, tally, None));
    let mut wrong = mat(Rows::Sequences, 2, CLASSES + 1)?;
    let back = LossGrads { d_x: &mut wrong, grads: &mut f.grads };
    refuses("class_cross_entropy: d_x", be.class_cross_entropy(&logits, batch, f.class_bias, 0.0, tally, Some(back)));
    let mut d_logits = mat(Rows::Sequences, 2, CLASSES)?;
    let back = LossGrads { d_x: &mut d_logits, grads: &mut f.grads };
    refuses("class_cross_entropy: bias", be.class_cross_entropy(&logits, batch, f.qkv_bias, 0.0, tally, Some(back)));
    let two = mat(Rows::Sequences, 2, 2)?;
    // Upload was told of more classes and tokens than these layers have.
    let label_at_classes = be.class_cross_entropy(&two, batch, f.class_bias, 0.0, tally, None);
    assert!(label_at_classes.is_err(), "class_cross_entropy: a label at K");
    let weight = Span { len: (VOCAB - 1) * WIDTH, ..layer.weight };
    let fewer = VocabProjection { weight, bias: bad.bias, vocab: VOCAB - 1, ..*layer };
    let target_at_vocab = be.vocab_cross_entropy(&x, batch, w, &fewer, tally, None);
    assert!(target_at_vocab.is_err(), "vocab_cross_entropy: a target at V");

    let (x, mut y) = (mat(Rows::Sequences, 2, WIDTH)?, mat(Rows::Sequences, 2, WIDTH / 2)?);
    refuses("relu_dropout: widths differ", be.relu_dropout(&x, batch, &NONE, &mut y));
    let (bias, g) = (f.linear.bias, &mut f.grads);
    refuses("relu_dropout_backward: widths", be.relu_dropout_backward(&x, batch, &NONE, bias, g, &mut y));
    let mut d = mat(Rows::Sequences, 2, WIDTH)?;
    refuses("relu_dropout_backward: bias", be.relu_dropout_backward(&x, batch, &NONE, f.wide.bias, g, &mut d));
    Ok(())
}

fn optimizer<B: Backend>(be: &B, f: &mut Fixture<B>) -> Result<()> {
    let len = be.read_flat(&f.grads)?.len();
    let (mut m, mut v, mut short) = (be.flat(len)?, be.flat(len)?, be.flat(len - 1)?);
    let values = AdamW {
        learning_rate: 1e-3,
        beta1: 0.9,
        beta2: 0.999,
        epsilon: 1e-8,
        weight_decay: 0.0,
        max_norm: 1.0,
        step: 1,
        limits: UpdateLimits::NONE,
    };
    let mut hyper = be.hyper()?;
    be.set_hyper(&mut hyper, &values)?;
    be.zero(&mut f.grads)?;
    be.grad_norm(&f.grads, &mut f.tally)?;
    let good = [UpdateSpan { span: f.linear.weight, decay: true }];
    let bad = [UpdateSpan { span: BEYOND, decay: true }];
    let (w, g, tally) = (&mut f.weights, &f.grads, &f.tally);
    refuses("adamw: a span beyond the buffers", be.adamw(w, g, &mut m, &mut v, &bad, &hyper, tally));
    refuses("adamw: m of another length", be.adamw(w, g, &mut short, &mut v, &good, &hyper, tally));
    refuses("adamw: v of another length", be.adamw(w, g, &mut m, &mut short, &good, &hyper, tally));
    let g = be.flat(len - 1)?;
    refuses("adamw: grads of another length", be.adamw(w, &g, &mut m, &mut v, &good, &hyper, tally));
    Ok(())
}
