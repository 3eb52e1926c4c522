//! linear and linear_backward.

use crate::backend::cuda::memory::NARROW;
use crate::backend::{Backend, Capacity, Into, Linear, Result, Rows};
use crate::check::harness::{OpCase, Outputs, Suite, Values};
use crate::check::params::Params;
use crate::check::random::Random;
use crate::check::reference::linear::{linear, linear_backward};
use crate::check::reference::{Scalar, cast, stored, widen};
use crate::check::room::Room;

/// Where d_x goes.
#[derive(Debug, Clone, Copy)]
pub enum Want {
    Nowhere,
    Write,
    Add,
}

/// One layer, forward and backward.
pub struct Case {
    pub rows: Rows,
    /// R
    pub live: usize,
    pub params: Params,
    pub layer: Linear,
    /// [R, in]
    pub x: Vec<f32>,
    /// [R, out]
    pub d_y: Vec<f32>,
    pub want: Want,
    /// What d_x holds before, where it is added to. [R, in]
    pub d_x: Vec<f32>,
}

/// On random inputs; the layer has `inputs` columns in and `outputs` out.
pub fn case(live: usize, inputs: usize, outputs: usize, rows: Rows, want: Want) -> Case {
    let mut random = Random::new((inputs + outputs) as u32);
    let mut params = Params::default();
    let layer = params.linear(inputs, outputs, &mut random);
    Case {
        rows,
        live,
        params,
        layer,
        x: random.normals(live * inputs, 1.0),
        d_y: random.normals(live * outputs, 1.0),
        want,
        d_x: random.normals(live * inputs, 1.0),
    }
}

/// A matrix of so many columns as a backend keeps it: bf16 backends have f32 for a few classes' logits.
pub fn kept<T: Scalar>(values: Vec<T>, cols: usize) -> Vec<T> {
    if cols < NARROW { values } else { stored(values) }
}

/// Counts of a case with no batch: as many rows of any kind.
pub fn rows_only(live: usize) -> Capacity {
    Capacity { tokens: live, sequences: live, masked: live }
}

impl OpCase for Case {
    fn op(&self) -> &'static str {
        "linear"
    }

    fn shape(&self) -> String {
        let Linear { inputs, outputs, .. } = self.layer;
        format!("[{:?}={}, in={inputs}] to [out={outputs}], d_x {:?}", self.rows, self.live, self.want)
    }

    fn counts(&self) -> Capacity {
        rows_only(self.live)
    }

    fn inputs(&mut self) -> Vec<&mut [f32]> {
        let logits = self.layer.outputs < NARROW;
        let d_y = (!logits).then_some(&mut self.d_y[..]);
        let others = [&mut self.params.values[..], &mut self.x, &mut self.d_x];
        others.into_iter().chain(d_y).collect()
    }

    fn reference<T: Scalar>(&self) -> Values {
        let (p, layer, x) = (&self.params, &self.layer, cast::<T>(&self.x));
        let weight = p.get(layer.weight);
        let y = kept(linear(&x, &weight, &p.get(layer.bias)), layer.outputs);
        let mut d_weight = p.grad(layer.weight);
        let d_x = linear_backward(&cast(&self.d_y), &x, &weight, layer.inputs, &mut d_weight);
        let added = stored(cast::<T>(&self.d_x).into_iter().zip(&d_x).map(|(before, &d)| before + d).collect());
        let d_x = stored(d_x);
        let mut outputs = vec![("y", widen(&y))];
        match self.want {
            Want::Nowhere => {}
            Want::Write => outputs.push(("d_x", widen(&d_x))),
            Want::Add => outputs.push(("d_x", widen(&added))),
        }
        outputs.push(("d_weight", widen(&d_weight)));
        outputs
    }

    fn run<B: Backend>(&self, room: &mut Room<'_, B>) -> Result<Outputs> {
        let (be, layer) = (room.be, &self.layer);
        let (w, mut grads) = (room.weights(&self.params)?, room.grads(&self.params)?);
        let (x, mut y) = (room.mat(self.rows, layer.inputs, &self.x)?, room.empty(self.rows, layer.outputs)?);
        be.linear(&x, &w, layer, &mut y)?;
        let mut outputs = Outputs::from(vec![("y", room.read(&y)?)]);
        let d_y = room.mat(self.rows, layer.outputs, &self.d_y)?;
        let mut d_x = match self.want {
            Want::Add => room.mat(self.rows, layer.inputs, &self.d_x)?,
            Want::Nowhere | Want::Write => room.empty(self.rows, layer.inputs)?,
        };
        let into = match self.want {
            Want::Nowhere => Into::Nowhere,
            Want::Write => Into::Write(&mut d_x),
            Want::Add => Into::Add(&mut d_x),
        };
        be.linear_backward(&d_y, &x, &w, layer, &mut grads, into)?;
        if !matches!(self.want, Want::Nowhere) {
            outputs.push("d_x", room.read(&d_x)?);
        }
        self.params.read_grads(be, &grads, &[("d_weight", layer.weight)], &mut outputs)?;
        Ok(outputs)
    }
}

/// All cases.
pub fn suite<B: Backend + Sync>(suite: &mut Suite<'_, B>) {
    for live in [0, 1, 3, 113] {
        for want in [Want::Nowhere, Want::Write, Want::Add] {
            suite.check(case(live, 128, 384, Rows::Tokens, want));
        }
    }
    suite.check(case(511, 64, 192, Rows::Tokens, Want::Add));
    suite.check(case(512, 384, 128, Rows::Tokens, Want::Write));
    suite.check(case(113, 768, 768, Rows::Tokens, Want::Add));
    // Few classes: outputs that fill no vector.
    suite.check(case(7, 64, 2, Rows::Sequences, Want::Write));
    suite.check(case(77, 128, 5, Rows::Sequences, Want::Write));
    suite.check(case(77, 128, 128, Rows::Masked, Want::Write));
    suite.check_after(case(300, 128, 384, Rows::Tokens, Want::Write), case(5, 128, 384, Rows::Tokens, Want::Write));
}
