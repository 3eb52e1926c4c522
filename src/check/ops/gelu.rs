//! linear_gelu, linear_backward_gelu and gelu_backward.

use super::linear::rows_only;
use crate::backend::{Backend, Capacity, Linear, Result, Rows};
use crate::check::harness::{OpCase, Outputs, Suite, Values};
use crate::check::params::Params;
use crate::check::random::Random;
use crate::check::reference::gelu::{gelu, gelu_backward};
use crate::check::reference::linear::{linear, linear_backward};
use crate::check::reference::{Scalar, add_rows, cast, stored, widen};
use crate::check::room::Room;

/// Two linear layers with a GELU between them, as in a block's feed-forward.
pub struct Case {
    pub rows: Rows,
    /// R
    pub live: usize,
    pub params: Params,
    /// C to F.
    pub first: Linear,
    /// F to C.
    pub second: Linear,
    /// [live, C]
    pub x: Vec<f32>,
    /// Gradient of the second layer's output. [live, C]
    pub d_y: Vec<f32>,
    /// Gradient of the GELU's output, for `gelu_backward`. [live, F]
    pub d_act: Vec<f32>,
}

/// `scale` 1 keeps to the GELU's bend, 10 reaches its flat ends.
pub fn case(live: usize, width: usize, feed_forward: usize, rows: Rows, scale: f32) -> Case {
    let (case, mut random) = drawn(live, width, feed_forward, rows, scale);
    Case { d_act: random.normals(live * feed_forward, 1.0), ..case }
}

/// The same without `gelu_backward`.
pub fn without_d_act(live: usize, width: usize, feed_forward: usize, rows: Rows, scale: f32) -> Case {
    drawn(live, width, feed_forward, rows, scale).0
}

/// All but d_act, and what else there is to draw from.
fn drawn(live: usize, width: usize, feed_forward: usize, rows: Rows, scale: f32) -> (Case, Random) {
    let mut random = Random::new((width + feed_forward) as u32);
    let mut params = Params::default();
    let case = Case {
        rows,
        live,
        first: params.linear(width, feed_forward, &mut random),
        second: params.linear(feed_forward, width, &mut random),
        params,
        x: random.normals(live * width, scale),
        d_y: random.normals(live * width, 1.0),
        d_act: Vec::new(),
    };
    (case, random)
}

/// Where bf16 tells the erf form from the tanh form: between -3.5 and -3 both y and slope are so small beside what the forms
/// differ by, up to 4.7e-4, that tanh's y is off by 12 times what is allowed, its slope by 6. (Near ±2, where the slopes
/// differ most, 8.7e-4, they are larger, and it would be 1.5 times.) The first layer's weights are 0, so that `pre` is its
/// bias; d_act is 1, and so is what the second layer gives.
fn tail(live: usize, width: usize, feed_forward: usize) -> Case {
    let mut case = case(live, width, feed_forward, Rows::Tokens, 1.0);
    let values = &mut case.params.values;
    values[case.first.weight.range()].fill(0.0);
    // All that bf16 has there, both ends included.
    let biases = values[case.first.bias.range()].iter_mut();
    biases.enumerate().for_each(|(i, bias)| *bias = -3.0 - (i % 33) as f32 / 64.0);
    values[case.second.weight.range()].fill(0.0);
    values[case.second.weight.range()][..feed_forward].fill(1.0);
    case.d_y.iter_mut().enumerate().for_each(|(i, d)| *d = if i % width == 0 { 1.0 } else { 0.0 });
    case.d_act.fill(1.0);
    case
}

impl OpCase for Case {
    fn op(&self) -> &'static str {
        "linear_gelu"
    }

    fn shape(&self) -> String {
        let Linear { inputs, outputs, .. } = self.first;
        format!("[{:?}={}, C={inputs}] to [F={outputs}]", self.rows, self.live)
    }

    fn counts(&self) -> Capacity {
        rows_only(self.live)
    }

    fn inputs(&mut self) -> Vec<&mut [f32]> {
        vec![&mut self.params.values, &mut self.x, &mut self.d_y, &mut self.d_act]
    }

    fn reference<T: Scalar>(&self) -> Values {
        let p = &self.params;
        let pre = stored(linear(&cast::<T>(&self.x), &p.get(self.first.weight), &p.get(self.first.bias)));
        let act: Vec<T> = stored(pre.iter().map(|&x| gelu(x)).collect());
        let (mut d_weight, mut d_bias) = (p.grad(self.second.weight), p.grad(self.first.bias));
        let (d_y, inputs) = (cast(&self.d_y), self.second.inputs);
        let d_act = linear_backward(&d_y, &act, &p.get(self.second.weight), inputs, &mut d_weight);
        let d_pre = stored(gelu_backward(&pre, &d_act));
        add_rows(&d_pre, &mut d_bias);
        let mut d_bias_alone = p.grad(self.first.bias);
        let d_alone = stored(gelu_backward(&pre, &cast(&self.d_act)));
        add_rows(&d_alone, &mut d_bias_alone);
        vec![
            ("pre", widen(&pre)),
            ("y", widen(&act)),
            ("d_pre", widen(&d_pre)),
            ("d_weight", widen(&d_weight)),
            ("d_bias", widen(&d_bias)),
            ("d", widen(&d_alone)),
            ("gelu_backward's d_bias", widen(&d_bias_alone)),
        ]
    }

    fn run<B: Backend>(&self, room: &mut Room<'_, B>) -> Result<Outputs> {
        let (be, first, second) = (room.be, &self.first, &self.second);
        let (w, mut grads) = (room.weights(&self.params)?, room.grads(&self.params)?);
        let x = room.mat(self.rows, first.inputs, &self.x)?;
        let (mut pre, mut act) = (room.empty(self.rows, first.outputs)?, room.empty(self.rows, first.outputs)?);
        be.linear_gelu(&x, &w, first, &mut pre, &mut act)?;
        let (d_y, mut d_pre) = (room.mat(self.rows, second.outputs, &self.d_y)?, room.empty(self.rows, second.inputs)?);
        be.linear_backward_gelu(&d_y, &act, &pre, &w, second, first.bias, &mut grads, &mut d_pre)?;
        let matrices = vec![("pre", room.read(&pre)?), ("y", room.read(&act)?), ("d_pre", room.read(&d_pre)?)];
        let mut outputs = Outputs::from(matrices);
        let spans = [("d_weight", second.weight), ("d_bias", first.bias)];
        self.params.read_grads(be, &grads, &spans, &mut outputs)?;
        let (mut grads, mut d) = (room.grads(&self.params)?, room.mat(self.rows, first.outputs, &self.d_act)?);
        be.gelu_backward(&pre, first.bias, &mut grads, &mut d)?;
        outputs.push("d", room.read(&d)?);
        self.params.read_grads(be, &grads, &[("gelu_backward's d_bias", first.bias)], &mut outputs)?;
        Ok(outputs)
    }
}

/// All cases.
pub fn suite<B: Backend + Sync>(suite: &mut Suite<'_, B>) {
    for live in [0, 1, 3, 113] {
        suite.check(case(live, 64, 256, Rows::Tokens, 1.0));
    }
    suite.check(case(511, 64, 128, Rows::Tokens, 1.0));
    suite.check(case(512, 128, 384, Rows::Tokens, 1.0));
    suite.check(case(50, 64, 256, Rows::Tokens, 10.0));
    suite.check(case(77, 128, 128, Rows::Masked, 1.0));
    suite.check(tail(40, 128, 256));
    suite.check_after(case(300, 64, 256, Rows::Tokens, 1.0), case(5, 64, 256, Rows::Tokens, 1.0));
}
