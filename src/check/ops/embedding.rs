//! embed and embed_backward.

use super::drop_prob;
use crate::backend::{Backend, Capacity, Dropout, Embedding, Result, Rows};
use crate::check::batches::{LENGTHS, TestBatch};
use crate::check::harness::{OpCase, Outputs, Suite, Values, mean_and_rstd};
use crate::check::params::Params;
use crate::check::random::Random;
use crate::check::reference::embedding::{look_up, look_up_backward};
use crate::check::reference::layernorm::{layernorm, layernorm_backward};
use crate::check::reference::{Scalar, cast, hadamard, keep, stored, widen};
use crate::check::room::Room;

struct Case {
    batch: TestBatch,
    params: Params,
    layer: Embedding,
    drop: Dropout,
    d_y: Vec<f32>,
}

fn case(lengths: &[usize], width: usize, vocab: usize, drop: Dropout) -> Case {
    let mut random = Random::new(width as u32);
    let mut batch = TestBatch::new(lengths, vocab, &mut random);
    // Ids that repeat, and the padding id among them.
    batch.ids.iter_mut().step_by(4).for_each(|id| *id %= 3);
    let mut params = Params::default();
    let word = random.normals(vocab * width, 1.0);
    let position = random.normals(batch.limits.positions * width, 1.0);
    let layer = Embedding {
        word: params.add(word, &mut random),
        position: params.add(position, &mut random),
        norm: params.norm(width, &mut random),
        width,
        padding_idx: Some(0),
    };
    let d_y = random.normals(batch.tokens() * width, 1.0);
    Case { batch, params, layer, drop, d_y }
}

impl OpCase for Case {
    fn op(&self) -> &'static str {
        "embed"
    }

    fn shape(&self) -> String {
        let Case { batch, layer, drop, .. } = self;
        format!("[N={}, C={}], V={}, {}", batch.tokens(), layer.width, self.vocab(), drop_prob(drop))
    }

    fn counts(&self) -> Capacity {
        self.batch.counts()
    }

    fn vocab(&self) -> usize {
        self.batch.limits.vocab
    }

    fn inputs(&mut self) -> Vec<&mut [f32]> {
        vec![&mut self.params.values, &mut self.d_y]
    }

    fn reference<T: Scalar>(&self) -> Values {
        let (p, layer, batch) = (&self.params, &self.layer, self.batch.view());
        let keep = keep::<T>(&self.drop, batch.step, batch.ids.len(), layer.width);
        let x = look_up::<T>(&batch, &p.get(layer.word), &p.get(layer.position), layer.width);
        let gamma = p.get(layer.norm.gamma);
        let (y, stats) = layernorm(&x, &gamma, &p.get(layer.norm.beta), T::of(f64::from(layer.norm.epsilon)));
        let [mut d_word, mut d_position, mut d_gamma, mut d_beta] =
            [layer.word, layer.position, layer.norm.gamma, layer.norm.beta].map(|span| p.grad(span));
        let d_n = hadamard(&cast(&self.d_y), &keep);
        let d_x = stored(layernorm_backward(&d_n, &x, &stats, &gamma, &mut d_gamma, &mut d_beta));
        look_up_backward(&batch, &d_x, layer.padding_idx, layer.width, &mut d_word, &mut d_position);
        let mut outputs = vec![("y", widen(&stored(hadamard(&y, &keep))))];
        outputs.extend(mean_and_rstd(&widen(&stats)));
        outputs.extend([("d_word", widen(&d_word)), ("d_position", widen(&d_position))]);
        outputs.extend([("d_gamma", widen(&d_gamma)), ("d_beta", widen(&d_beta))]);
        outputs
    }

    fn run<B: Backend>(&self, room: &mut Room<'_, B>) -> Result<Outputs> {
        let (be, layer) = (room.be, &self.layer);
        let batch = room.upload(&self.batch)?;
        let (w, mut grads) = (room.weights(&self.params)?, room.grads(&self.params)?);
        let (mut stats, mut y) = (room.stats(Rows::Tokens, 2)?, room.empty(Rows::Tokens, layer.width)?);
        be.embed(&batch, &w, layer, &self.drop, &mut stats, &mut y)?;
        let mut outputs = Outputs::from(vec![("y", room.read(&y)?)]);
        outputs.values.extend(mean_and_rstd(&room.read_stats(&stats)?));
        let mut d_y = room.mat(Rows::Tokens, layer.width, &self.d_y)?;
        be.embed_backward(&batch, &w, layer, &self.drop, &stats, &mut d_y, &mut grads)?;
        let spans = [
            ("d_word", layer.word),
            ("d_position", layer.position),
            ("d_gamma", layer.norm.gamma),
            ("d_beta", layer.norm.beta),
        ];
        self.params.read_grads(be, &grads, &spans, &mut outputs)?;
        room.give_batch(batch);
        Ok(outputs)
    }
}

/// On a large batch.
pub fn large(lengths: &[usize], width: usize, vocab: usize) -> impl OpCase {
    case(lengths, width, vocab, Dropout::new(0.1, 0, 7))
}

/// All cases.
pub fn suite<B: Backend + Sync>(suite: &mut Suite<'_, B>) {
    for lengths in LENGTHS {
        suite.check(case(lengths, 128, 1000, Dropout::NONE));
        suite.check(case(lengths, 64, 1000, Dropout::new(0.1, 0, 7)));
    }
    suite.check(case(&[33, 60], 384, 30_522, Dropout::new(0.1, 0, 7)));
    // Rows so wide that a block has fewer warps.
    suite.check(case(&[21], 1024, 100, Dropout::new(0.1, 0, 7)));
    suite.check(case(&[18], 1792, 100, Dropout::NONE));
    let mut without_padding = case(&[40], 64, 1000, Dropout::NONE);
    without_padding.layer.padding_idx = None;
    suite.check(without_padding);
    let drop = Dropout::new(0.1, 0, 7);
    suite.check_after(case(&[200, 17, 1, 128], 128, 1000, drop), case(&[3, 8], 128, 1000, drop));
}
