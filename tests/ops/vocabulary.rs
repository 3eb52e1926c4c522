//! vocab_cross_entropy.

use handbert::backend::{Backend, Capacity, LossGrads, Result, Rows, VocabProjection};

use crate::batches::{LENGTHS, Masks, TestBatch};
use crate::harness::{OpCase, Outputs, Room, Tested, check, check_after};
use crate::params::Params;
use crate::random::Random;
use crate::reference::cross_entropy::cross_entropy;
use crate::reference::linear::{linear, linear_backward};
use crate::reference::{Scalar, add_rows, cast, stored, widen};

struct Case {
    batch: TestBatch,
    params: Params,
    layer: VocabProjection,
    x: Vec<f32>,
}

/// `scale` of the logits: 1 as of a fresh model, 30 as of one that is very sure.
fn case(lengths: &[usize], width: usize, vocab: usize, masks: Masks, scale: f32) -> Case {
    let mut random = Random::new((width + vocab) as u32);
    let mut batch = TestBatch::new(lengths, vocab, &mut random).masked(masks, &mut random);
    let mut params = Params::default();
    let weight = random.normals(vocab * width, 1.0 / (width as f32).sqrt());
    let bias = random.normals(vocab, 0.3);
    let layer =
        VocabProjection { weight: params.add(weight, &mut random), bias: params.add(bias, &mut random), vocab, width };
    let x = random.normals(batch.masked_rows.len() * width, scale);
    aim_at_the_best(&mut batch, &params, &layer, &x);
    Case { batch, params, layer, x }
}

/// Every second target becomes the most probable token: random ones would hardly ever be hit.
fn aim_at_the_best(batch: &mut TestBatch, params: &Params, layer: &VocabProjection, x: &[f32]) {
    let logits = linear::<f32>(x, &params.get(layer.weight), &params.get(layer.bias));
    for (target, row) in batch.targets.iter_mut().zip(logits.chunks(layer.vocab)).step_by(2) {
        *target = (1..layer.vocab).fold(0, |best, i| if row[i] > row[best] { i } else { best }) as u32;
    }
}

/// Largest magnitude of a logit: a log-probability is a logit minus the log-sum-exp, which cancel where it is near 0.
pub fn largest_logit(params: &Params, layer: &VocabProjection, x: &[f32]) -> f64 {
    let logits = linear::<f64>(&cast(x), &params.get(layer.weight), &params.get(layer.bias));
    logits.iter().fold(0.0, |a, x| a.max(x.abs()))
}

impl OpCase for Case {
    fn describe(&self) -> String {
        let VocabProjection { vocab, width, .. } = self.layer;
        format!("vocab_cross_entropy [M={}, C={width}], V={vocab}", self.batch.masked_rows.len())
    }

    fn counts(&self) -> Capacity {
        self.batch.counts()
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

    fn reference<T: Scalar>(&self) -> Outputs {
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
        assert_eq!((both.targets, both.correct), (2 * alone.targets, 2 * alone.correct));
        assert_eq!(both.weight, 2.0 * alone.weight);
        assert!((both.loss - 2.0 * alone.loss).abs() <= f64::from(f32::EPSILON) * both.loss, "{both:?}, {alone:?}");
        assert_eq!(be.take_tally(&mut tally)?, Default::default());
        let mut outputs = vec![
            ("loss", vec![alone.loss]),
            ("weight", vec![alone.weight]),
            ("targets", vec![alone.targets as f64]),
            ("correct", vec![alone.correct as f64]),
            ("d_x", room.read(&d_x)?),
        ];
        self.params.read_grads(be, &grads, &[("d_weight", layer.weight), ("d_bias", layer.bias)], &mut outputs)?;
        room.give_batch(batch);
        Ok(outputs)
    }
}

pub fn suite<B: Tested>(be: &B) {
    for lengths in LENGTHS {
        check(be, case(lengths, 64, 1000, Masks::Some, 1.0));
    }
    for masks in [Masks::None, Masks::Some, Masks::All] {
        check(be, case(&[60, 53], 128, 1000, masks, 1.0));
    }
    // More rows than one chunk of logits is likely to hold.
    check(be, case(&[512, 301], 64, 1000, Masks::All, 1.0));
    check(be, case(&[11], 128, 30_522, Masks::All, 1.0));
    check(be, case(&[40], 128, 1000, Masks::All, 30.0));
    let big = case(&[200, 17, 1, 128], 64, 1000, Masks::All, 1.0);
    check_after(be, big, case(&[3, 8], 64, 1000, Masks::Some, 1.0));
}
