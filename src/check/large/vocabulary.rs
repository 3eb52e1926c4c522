//! The loss over the vocabulary, of as many masked rows as a large batch has.

use rayon::prelude::*;

use super::Scale;
use super::product::{linear, plus_bias, product, transposed, weight_gradient};
use super::sample::{Block, cast_block, spread, thinned};
use crate::backend::{Backend, Capacity, Result};
use crate::check::harness::{OpCase, Outputs, Values};
use crate::check::ops::vocabulary::{Case, aim_at_the_best, untargeted};
use crate::check::random::Random;
use crate::check::reference::cross_entropy::{CrossEntropy, cross_entropy};
use crate::check::reference::{Scalar, add_rows, cast, stored, widen};
use crate::check::room::Room;

/// [`Case`]: the loss as a whole, a sample of rows of d_x, and of rows and columns of d_weight.
pub struct Sampled {
    case: Case,
    rows: Vec<usize>,
}

/// With 15 % of the tokens masked.
pub fn of_a_batch(scale: &Scale, lengths: &[usize]) -> Sampled {
    let masked = (scale.tokens * 3).div_ceil(20);
    let rows = spread(masked);
    let at = (0..masked).map(|i| (i * scale.tokens / masked) as u32).collect();
    let mut case = untargeted(lengths, scale.width, scale.vocab, |batch, random: &mut Random| {
        batch.masked_rows = at;
        batch.targets = batch.masked_rows.iter().map(|_| random.below(scale.vocab as u32)).collect();
    });
    aim_at_the_best(&mut case, &rows, linear);
    Sampled { case, rows }
}

/// Rows whose logits are held at one time.
const CHUNK: usize = 64;

/// Of some rows: their losses, and what is kept of the gradients of their logits.
struct Chunk<T> {
    ce: Vec<CrossEntropy<T>>,
    /// Of the sampled tokens. [rows, sample]
    d_logits: Vec<T>,
    /// Of the sampled rows. [sample, C]
    d_x: Vec<T>,
}

impl Sampled {
    fn block(&self, output: &str) -> Option<Block> {
        let (width, vocab) = (self.case.layer.width, self.case.layer.vocab);
        Some(match output {
            "d_x" => Block::rows(width, &self.rows),
            "d_weight" => Block::crossing(width, &spread(vocab), &spread(width)),
            "d_bias" => Block::columns(vocab, &spread(vocab)),
            _ => return None,
        })
    }

    /// Chunk by chunk, so that the logits never exist as a whole.
    fn chunks<T: Scalar>(&self) -> Vec<Chunk<T>> {
        let Case { batch, params: p, layer, x } = &self.case;
        let (weight, bias) = (p.get::<T>(layer.weight), p.get::<T>(layer.bias));
        let (across, scale) = (transposed(&weight, layer.width), T::of(f64::from(batch.loss_scale)));
        let tokens = Block::columns(layer.vocab, &spread(layer.vocab));
        let chunk = |(number, x): (usize, &[f32])| {
            let logits = stored(plus_bias(&cast::<T>(x), &across, &bias));
            let targets = &batch.targets[number * CHUNK..];
            let one = |(row, &target): (&[T], &u32)| cross_entropy(row, &[target as i32], &[T::of(1.0)], scale);
            let ce: Vec<CrossEntropy<T>> = logits.par_chunks(layer.vocab).zip(targets).map(one).collect();
            let d_logits: Vec<T> = stored(ce.iter().flat_map(|ce| ce.d_logits.iter().copied()).collect());
            let here = self.rows.iter().filter(|&&row| row / CHUNK == number).map(|row| row % CHUNK);
            let sampled = Block::rows(layer.vocab, &here.collect::<Vec<_>>()).of(&d_logits);
            let bare = ce.into_iter().map(|ce| CrossEntropy { d_logits: Vec::new(), ..ce }).collect();
            Chunk { ce: bare, d_logits: tokens.of(&d_logits), d_x: product(&sampled, &weight, layer.width) }
        };
        x.chunks(CHUNK * layer.width).enumerate().map(chunk).collect()
    }
}

impl OpCase for Sampled {
    fn op(&self) -> &'static str {
        self.case.op()
    }

    fn shape(&self) -> String {
        self.case.shape()
    }

    fn counts(&self) -> Capacity {
        self.case.counts()
    }

    fn vocab(&self) -> usize {
        self.case.vocab()
    }

    fn inputs(&mut self) -> Vec<&mut [f32]> {
        self.case.inputs()
    }

    fn reference<T: Scalar>(&self) -> Values {
        let Case { params: p, layer, x, .. } = &self.case;
        let (tokens, columns) = (spread(layer.vocab), spread(layer.width));
        let (mut loss, mut weight, mut targets, mut correct) = (T::default(), T::default(), 0, 0);
        let (mut d_logits, mut d_x) = (Vec::new(), Vec::new());
        for chunk in self.chunks::<T>() {
            for ce in chunk.ce {
                loss += ce.loss;
                weight += ce.weight;
                targets += ce.targets;
                correct += ce.correct;
            }
            d_logits.extend(chunk.d_logits);
            d_x.extend(chunk.d_x);
        }
        let start = Block::crossing(layer.width, &tokens, &columns).of(&p.grad::<T>(layer.weight));
        let x = cast_block(&Block::columns(layer.width, &columns), x);
        let d_weight = weight_gradient(start, &d_logits, &x, columns.len());
        let mut d_bias = Block::columns(layer.vocab, &tokens).of(&p.grad(layer.bias));
        add_rows(&d_logits, &mut d_bias);
        vec![
            ("loss", vec![loss.to_f64()]),
            ("weight", vec![weight.to_f64()]),
            ("targets", vec![targets as f64]),
            ("correct", vec![correct as f64]),
            ("d_x", widen(&stored(d_x))),
            ("d_weight", widen(&d_weight)),
            ("d_bias", widen(&d_bias)),
        ]
    }

    fn run<B: Backend>(&self, room: &mut Room<'_, B>) -> Result<Outputs> {
        Ok(thinned(self.case.run(room)?, |output| self.block(output)))
    }
}
