//! vocab_cross_entropy.

use crate::backend::{Backend, Capacity, LossGrads, Result, Rows, Tally, VocabProjection};
use crate::check::batches::{LENGTHS, Masks, TestBatch};
use crate::check::harness::{OpCase, Outputs, Suite, Values};
use crate::check::params::Params;
use crate::check::random::Random;
use crate::check::reference::cross_entropy::cross_entropy;
use crate::check::reference::linear::{linear, linear_backward};
use crate::check::reference::{Scalar, add_rows, cast, stored, widen};
use crate::check::room::Room;

/// On random hidden states.
pub struct Case {
    pub batch: TestBatch,
    pub params: Params,
    pub layer: VocabProjection,
    /// [M, C]
    pub x: Vec<f32>,
}

/// `scale` of the logits: 1 as of a fresh model, 30 as of one that is very sure.
fn case(lengths: &[usize], width: usize, vocab: usize, masks: Masks, scale: f32) -> Case {
    let mask = |batch: &mut TestBatch, random: &mut Random| *batch = batch.clone().masked(masks, random);
    let mut case = untargeted(lengths, width, vocab, mask);
    case.x.iter_mut().for_each(|x| *x *= scale);
    let all: Vec<usize> = (0..case.batch.masked_rows.len()).collect();
    aim_at_the_best(&mut case, &all, linear::<f32>);
    case
}

/// With the targets that `mask` gives the batch.
pub fn untargeted(
    lengths: &[usize], width: usize, vocab: usize, mask: impl FnOnce(&mut TestBatch, &mut Random),
) -> Case {
    let mut random = Random::new((width + vocab) as u32);
    let mut batch = TestBatch::new(lengths, vocab, &mut random);
    mask(&mut batch, &mut random);
    let mut params = Params::default();
    let weight = random.normals(vocab * width, 1.0 / (width as f32).sqrt());
    let bias = random.normals(vocab, 0.3);
    let layer =
        VocabProjection { weight: params.add(weight, &mut random), bias: params.add(bias, &mut random), vocab, width };
    let x = random.normals(batch.masked_rows.len() * width, 1.0);
    Case { batch, params, layer, x }
}

/// Every second target of these rows becomes the most probable token: random ones would hardly ever be hit.
pub fn aim_at_the_best(case: &mut Case, rows: &[usize], linear: impl Fn(&[f32], &[f32], &[f32]) -> Vec<f32>) {
    let layer = &case.layer;
    let x: Vec<f32> = rows.iter().flat_map(|&row| &case.x[row * layer.width..][..layer.width]).copied().collect();
    let logits = linear(&x, &case.params.get(layer.weight), &case.params.get(layer.bias));
    for (&at, row) in rows.iter().zip(logits.chunks(layer.vocab)).step_by(2) {
        case.batch.targets[at] = (1..layer.vocab).fold(0, |best, i| if row[i] > row[best] { i } else { best }) as u32;
    }
}

/// Largest magnitude of a logit: a log-probability is a logit minus the log-sum-exp, which cancel where it is near 0.
pub fn largest_logit(params: &Params, layer: &VocabProjection, x: &[f32]) -> f64 {
    let logits = linear::<f64>(&cast(x), &params.get(layer.weight), &params.get(layer.bias));
    logits.iter().fold(0.0, |a, x| a.max(x.abs()))
}

impl OpCase for Case {
    fn op(&self) -> &'static str {
        "vocab_cross_entropy"
    }

    fn shape(&self) -> String {
        let VocabProjection { vocab, width, .. } = self.layer;
        format!("[M={}, C={width}], V={vocab}", self.batch.masked_rows.len())
    }

    fn counts(&self) -> Capacity {
        self.batch.counts()
    }

    fn vocab(&self) -> usize {
        self.layer.vocab
    }

    fn inputs(&mut self) -> Vec<&mut [f32]> {
        vec![&mut self.params.values, &mut self.x]
    }

    fn terms(&self, output: &str) -> f64 {
        match output {
            "loss" => largest_logit(&self.params, &self.layer, &self.x),
            _ => 0.0,
        }
    }

    fn reference<T: Scalar>(&self) -> Values {
        let (p, layer, x) = (&self.params, &self.layer, cast::<T>(&self.x));
        let weight = p.get(layer.weight);
        let logits = stored(linear(&x, &weight, &p.get(layer.bias)));
        let labels: Vec<i32> = self.batch.targets.iter().map(|&t| t as i32).collect();
        let scale = T::of(f64::from(self.batch.loss_scale));
        let mut ce = cross_entropy(&logits, &labels, &vec![T::of(1.0); labels.len()], scale);
        ce.d_logits = stored(ce.d_logits);
        let (mut d_weight, mut d_bias) = (p.grad(layer.weight), p.grad(layer.bias));
        let d_x = stored(linear_backward(&ce.d_logits, &x, &weight, layer.width, &mut d_weight));
        add_rows(&ce.d_logits, &mut d_bias);
        vec![
            ("loss", vec![ce.loss.to_f64()]),
            ("weight", vec![ce.weight.to_f64()]),
            ("targets", vec![ce.targets as f64]),
            ("correct", vec![ce.correct as f64]),
            ("d_x", widen(&d_x)),
            ("d_weight", widen(&d_weight)),
            ("d_bias", widen(&d_bias)),
        ]
    }

    fn run<B: Backend>(&self, room: &mut Room<'_, B>) -> Result<Outputs> {
        let (be, layer) = (room.be, &self.layer);
        let batch = room.upload(&self.batch)?;
        let (w, mut grads, mut tally) = (room.weights(&self.params)?, room.grads(&self.params)?, be.tally()?);
        let x = room.mat(Rows::Masked, layer.width, &self.x)?;
        be.vocab_cross_entropy(&x, &batch, &w, layer, &mut tally, None)?;
        let alone = be.take_tally(&mut tally)?;
        let mut d_x = room.empty(Rows::Masked, layer.width)?;
        let back = LossGrads { d_x: &mut d_x, grads: &mut grads };
        be.vocab_cross_entropy(&x, &batch, &w, layer, &mut tally, Some(back))?;
        // Twice into one tally, with and without gradients: the sums add up.
        be.vocab_cross_entropy(&x, &batch, &w, layer, &mut tally, None)?;
        let both = be.take_tally(&mut tally)?;
        let after = be.take_tally(&mut tally)?;
        let mut outputs = Outputs::from(vec![
            ("loss", vec![alone.loss]),
            ("weight", vec![alone.weight]),
            ("targets", vec![alone.targets as f64]),
            ("correct", vec![alone.correct as f64]),
            ("d_x", room.read(&d_x)?),
        ]);
        let counts = |tally: &Tally| [tally.targets as f64, tally.correct as f64, tally.weight];
        let adds_up = (both.loss - 2.0 * alone.loss).abs() <= f64::from(f32::EPSILON) * both.loss
            && counts(&both) == counts(&alone).map(|count| 2.0 * count);
        outputs.promise(adds_up, || format!("the tally is {both:?} after two losses, {alone:?} after one"));
        outputs.promise(after == Tally::default(), || format!("the tally is {after:?} after it was taken"));
        self.params.read_grads(be, &grads, &[("d_weight", layer.weight), ("d_bias", layer.bias)], &mut outputs)?;
        room.give_batch(batch);
        Ok(outputs)
    }
}

/// All cases.
pub fn suite<B: Backend + Sync>(suite: &mut Suite<'_, B>) {
    for lengths in LENGTHS {
        suite.check(case(lengths, 64, 1000, Masks::Some, 1.0));
    }
    for masks in [Masks::None, Masks::Some, Masks::All] {
        suite.check(case(&[60, 53], 128, 1000, masks, 1.0));
    }
    // More rows than one chunk of logits is likely to hold.
    suite.check(case(&[512, 301], 64, 1000, Masks::All, 1.0));
    suite.check(case(&[11], 128, 30_522, Masks::All, 1.0));
    suite.check(case(&[40], 128, 1000, Masks::All, 30.0));
    let big = case(&[200, 17, 1, 128], 64, 1000, Masks::All, 1.0);
    suite.check_after(big, case(&[3, 8], 64, 1000, Masks::Some, 1.0));
}
