//! The classifier's ops: relu_dropout with its backward, and class_cross_entropy.

use super::drop_prob;
use crate::backend::{Backend, Capacity, Dropout, LossGrads, Result, Rows, Span};
use crate::check::batches::{LENGTHS, TestBatch};
use crate::check::harness::{OpCase, Outputs, Suite, Values};
use crate::check::params::Params;
use crate::check::random::Random;
use crate::check::reference::cross_entropy::smoothed_cross_entropy;
use crate::check::reference::rows::{relu_dropout, relu_dropout_backward};
use crate::check::reference::{Scalar, add_rows, cast, keep, stored, widen};
use crate::check::room::Room;

struct Relu {
    batch: TestBatch,
    width: usize,
    drop: Dropout,
    params: Params,
    bias: Span,
    x: Vec<f32>,
    d: Vec<f32>,
}

fn relu(lengths: &[usize], width: usize, drop: Dropout) -> Relu {
    let mut random = Random::new(width as u32);
    let batch = TestBatch::new(lengths, 1000, &mut random);
    let mut params = Params::default();
    let bias = random.normals(width, 1.0);
    let bias = params.add(bias, &mut random);
    let mut x = random.normals(batch.sequences() * width, 1.0);
    // The kink itself passes no gradient.
    x.iter_mut().step_by(9).for_each(|x| *x = 0.0);
    let d = random.normals(x.len(), 1.0);
    Relu { batch, width, drop, params, bias, x, d }
}

impl OpCase for Relu {
    fn op(&self) -> &'static str {
        "relu_dropout"
    }

    fn shape(&self) -> String {
        format!("[B={}, C={}], {}", self.batch.sequences(), self.width, drop_prob(&self.drop))
    }

    fn counts(&self) -> Capacity {
        self.batch.counts()
    }

    fn inputs(&mut self) -> Vec<&mut [f32]> {
        vec![&mut self.x, &mut self.d]
    }

    fn reference<T: Scalar>(&self) -> Values {
        let keep = keep::<T>(&self.drop, self.batch.step, self.batch.sequences(), self.width);
        let x = cast(&self.x);
        let d = stored(relu_dropout_backward(&x, &keep, &cast(&self.d)));
        let mut d_bias = self.params.grad(self.bias);
        add_rows(&d, &mut d_bias);
        vec![("y", widen(&stored(relu_dropout(&x, &keep)))), ("d", widen(&d)), ("d_bias", widen(&d_bias))]
    }

    fn run<B: Backend>(&self, room: &mut Room<'_, B>) -> Result<Outputs> {
        let (be, rows) = (room.be, Rows::Sequences);
        let batch = room.upload(&self.batch)?;
        let mut grads = room.grads(&self.params)?;
        let (x, mut y) = (room.mat(rows, self.width, &self.x)?, room.empty(rows, self.width)?);
        be.relu_dropout(&x, &batch, &self.drop, &mut y)?;
        let mut d = room.mat(rows, self.width, &self.d)?;
        be.relu_dropout_backward(&x, &batch, &self.drop, self.bias, &mut grads, &mut d)?;
        let mut outputs = Outputs::from(vec![("y", room.read(&y)?), ("d", room.read(&d)?)]);
        self.params.read_grads(be, &grads, &[("d_bias", self.bias)], &mut outputs)?;
        room.give_batch(batch);
        Ok(outputs)
    }
}

/// What the batch says of its labels.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Labels {
    /// All labelled, weights absent.
    Plain,
    /// Some -1, weights given.
    Weighted,
    /// All -1.
    NoneGiven,
}

struct Loss {
    batch: TestBatch,
    classes: usize,
    params: Params,
    bias: Span,
    smoothing: f32,
    logits: Vec<f32>,
}

fn loss(lengths: &[usize], classes: usize, labels: Labels, scale: f32) -> Loss {
    let mut random = Random::new(classes as u32);
    let mut batch = TestBatch::new(lengths, 1000, &mut random);
    batch.limits.classes = classes;
    let lowest = if labels == Labels::Weighted { -1 } else { 0 };
    let draw = |random: &mut Random| random.below((classes as i32 - lowest) as u32) as i32 + lowest;
    batch.labels = lengths.iter().map(|_| if labels == Labels::NoneGiven { -1 } else { draw(&mut random) }).collect();
    if labels == Labels::Weighted {
        batch.label_weights = random.normals(lengths.len(), 1.0).into_iter().map(f32::abs).collect();
    }
    let mut params = Params::default();
    let bias = random.normals(classes, 1.0);
    let bias = params.add(bias, &mut random);
    let logits = random.normals(lengths.len() * classes, scale);
    Loss { batch, classes, params, bias, smoothing: 0.0, logits }
}

impl Loss {
    fn smoothed(self, smoothing: f32) -> Loss {
        Loss { smoothing, ..self }
    }
}

impl OpCase for Loss {
    fn op(&self) -> &'static str {
        "class_cross_entropy"
    }

    fn shape(&self) -> String {
        let Loss { batch, classes, smoothing, .. } = self;
        format!("[B={}, K={classes}], smoothing={smoothing}, labels={:?}", batch.sequences(), batch.labels)
    }

    fn counts(&self) -> Capacity {
        self.batch.counts()
    }

    fn terms(&self, output: &str) -> f64 {
        // A log-probability is a logit minus the log-sum-exp, which cancel where it is near 0.
        let largest = self.logits.iter().fold(0.0f32, |a, x| a.max(x.abs()));
        if output == "loss" { f64::from(largest) } else { 0.0 }
    }

    fn reference<T: Scalar>(&self) -> Values {
        let batch = &self.batch;
        let ones = vec![1.0; batch.sequences()];
        let weights = if batch.label_weights.is_empty() { &ones } else { &batch.label_weights };
        let scale = T::of(f64::from(batch.loss_scale));
        let (logits, weights, smoothing) = (cast(&self.logits), cast(weights), T::of(f64::from(self.smoothing)));
        let ce = smoothed_cross_entropy::<T>(&logits, &batch.labels, &weights, scale, smoothing);
        let mut d_bias = self.params.grad(self.bias);
        add_rows(&ce.d_logits, &mut d_bias);
        vec![
            ("loss", vec![ce.loss.to_f64()]),
            ("weight", vec![ce.weight.to_f64()]),
            ("targets", vec![ce.targets as f64]),
            ("correct", vec![ce.correct as f64]),
            ("d_logits", widen(&ce.d_logits)),
            ("d_bias", widen(&d_bias)),
        ]
    }

    fn run<B: Backend>(&self, room: &mut Room<'_, B>) -> Result<Outputs> {
        let (be, rows) = (room.be, Rows::Sequences);
        let batch = room.upload(&self.batch)?;
        let (mut grads, mut tally) = (room.grads(&self.params)?, be.tally()?);
        let (logits, mut d_logits) = (room.mat(rows, self.classes, &self.logits)?, room.empty(rows, self.classes)?);
        be.class_cross_entropy(&logits, &batch, self.bias, self.smoothing, &mut tally, None)?;
        let alone = be.take_tally(&mut tally)?;
        let back = LossGrads { d_x: &mut d_logits, grads: &mut grads };
        be.class_cross_entropy(&logits, &batch, self.bias, self.smoothing, &mut tally, Some(back))?;
        let both = be.take_tally(&mut tally)?;
        let mut outputs = Outputs::from(vec![
            ("loss", vec![alone.loss]),
            ("weight", vec![alone.weight]),
            ("targets", vec![alone.targets as f64]),
            ("correct", vec![alone.correct as f64]),
            ("d_logits", room.read(&d_logits)?),
        ]);
        outputs.promise(both == alone, || format!("the tally is {both:?} with gradients, {alone:?} without"));
        self.params.read_grads(be, &grads, &[("d_bias", self.bias)], &mut outputs)?;
        room.give_batch(batch);
        Ok(outputs)
    }
}

/// All cases.
pub fn suite<B: Backend + Sync>(suite: &mut Suite<'_, B>) {
    let drop = Dropout::new(0.2, 1, 7);
    for lengths in LENGTHS {
        suite.check(relu(lengths, 128, drop));
        suite.check(relu(lengths, 64, Dropout::NONE));
        suite.check(loss(lengths, 2, Labels::Plain, 1.0));
        suite.check(loss(lengths, 5, Labels::Weighted, 1.0));
        suite.check(loss(lengths, 3, Labels::Weighted, 1.0).smoothed(0.1));
    }
    suite.check(relu(&[1; 113], 384, drop));
    suite.check(relu(&[2; 57], 768, drop));
    suite.check(loss(&[1; 113], 3, Labels::Weighted, 1.0));
    suite.check(loss(&[4; 31], 2, Labels::NoneGiven, 1.0));
    // Logits of hundreds overflow an exponential that is not shifted.
    suite.check(loss(&[4; 31], 17, Labels::Plain, 200.0));
    suite.check(loss(&[4; 31], 17, Labels::Plain, 200.0).smoothed(0.3));
    suite.check(loss(&[1; 113], 2, Labels::Plain, 1.0).smoothed(1.0));
    suite.check_after(relu(&[1; 40], 64, drop), relu(&[3, 2], 64, drop));
    suite.check_after(loss(&[1; 40], 2, Labels::Weighted, 1.0), loss(&[3, 2], 2, Labels::Plain, 1.0));
}
