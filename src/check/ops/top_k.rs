//! top_k.

use super::linear::rows_only;
use super::vocabulary::largest_logit;
use crate::backend::{Backend, Capacity, Result, Rows, VocabProjection};
use crate::check::harness::{OpCase, Outputs, Suite, Values};
use crate::check::params::Params;
use crate::check::random::Random;
use crate::check::reference::cross_entropy::top_k;
use crate::check::reference::linear::linear;
use crate::check::reference::{Scalar, cast};
use crate::check::room::Room;

struct Case {
    live: usize,
    k: usize,
    params: Params,
    layer: VocabProjection,
    x: Vec<f32>,
}

fn case(live: usize, width: usize, vocab: usize, k: usize) -> Case {
    let mut random = Random::new((width + vocab) as u32);
    let mut params = Params::default();
    // Logits far enough apart that f32 puts them in the same order as f64.
    let weight = random.normals(vocab * width, 3.0 / (width as f32).sqrt());
    let bias = random.normals(vocab, 0.3);
    let layer =
        VocabProjection { weight: params.add(weight, &mut random), bias: params.add(bias, &mut random), vocab, width };
    let x = random.normals(live * width, 1.0);
    Case { live, k, params, layer, x }
}

/// Tokens and probabilities, row after row.
fn outputs<T: Scalar>(rows: &[Vec<(u32, T)>]) -> Values {
    let flat = || rows.iter().flatten();
    vec![
        ("rows", rows.iter().map(|row| row.len() as f64).collect()),
        ("tokens", flat().map(|&(token, _)| f64::from(token)).collect()),
        ("probabilities", flat().map(|&(_, p)| p.to_f64()).collect()),
    ]
}

impl OpCase for Case {
    fn op(&self) -> &'static str {
        "top_k"
    }

    fn shape(&self) -> String {
        format!("[M={}, C={}], V={}, k={}", self.live, self.layer.width, self.layer.vocab, self.k)
    }

    fn counts(&self) -> Capacity {
        rows_only(self.live)
    }

    fn vocab(&self) -> usize {
        self.layer.vocab
    }

    fn inputs(&mut self) -> Vec<&mut [f32]> {
        vec![&mut self.params.values, &mut self.x]
    }

    fn terms(&self, output: &str) -> f64 {
        match output {
            "probabilities" => largest_logit(&self.params, &self.layer, &self.x),
            _ => 0.0,
        }
    }

    fn reference<T: Scalar>(&self) -> Values {
        let (p, layer) = (&self.params, &self.layer);
        let logits = linear::<T>(&cast(&self.x), &p.get(layer.weight), &p.get(layer.bias));
        outputs(&top_k(&logits, layer.vocab, self.k))
    }

    fn run<B: Backend>(&self, room: &mut Room<'_, B>) -> Result<Outputs> {
        let x = room.mat(Rows::Masked, self.layer.width, &self.x)?;
        let w = room.weights(&self.params)?;
        Ok(outputs(&room.be.top_k(&x, &w, &self.layer, self.k)?).into())
    }
}

/// All cases.
pub fn suite<B: Backend + Sync>(suite: &mut Suite<'_, B>) {
    for live in [0, 1, 3, 113] {
        suite.check(case(live, 64, 1000, 5));
    }
    suite.check(case(4, 128, 30_522, 10));
    suite.check(case(3, 64, 7, 1));
    suite.check(case(3, 64, 7, 7));
}
