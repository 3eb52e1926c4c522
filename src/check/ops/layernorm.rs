//! add_layernorm and add_layernorm_backward.

use super::drop_prob;
use crate::backend::{Backend, Capacity, Dropout, Norm, Result, Rows, Span};
use crate::check::batches::{LENGTHS, Masks, TestBatch};
use crate::check::harness::{OpCase, Outputs, Suite, Values, mean_and_rstd};
use crate::check::params::Params;
use crate::check::random::Random;
use crate::check::reference::layernorm::{layernorm, layernorm_backward, residual_sum};
use crate::check::reference::{Scalar, add_rows, cast, hadamard, keep, stored, widen};
use crate::check::room::Room;

/// How the op is called; the model uses it in more than one way.
#[derive(Debug, Clone, Copy)]
struct Use {
    rows: Rows,
    residual: Residual,
    d_branch: DBranch,
    drop: Dropout,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Residual {
    Added,
    Absent,
}

/// Which gradients of the branch are wanted.
#[derive(Debug, Clone, Copy, PartialEq)]
enum DBranch {
    MatrixAndBias,
    BiasOnly,
    MatrixOnly,
    Neither,
}

impl DBranch {
    fn matrix(self) -> bool {
        matches!(self, DBranch::MatrixAndBias | DBranch::MatrixOnly)
    }

    fn bias(self) -> bool {
        matches!(self, DBranch::MatrixAndBias | DBranch::BiasOnly)
    }
}

struct Case {
    batch: TestBatch,
    live: usize,
    width: usize,
    how: Use,
    params: Params,
    norm: Norm,
    bias: Span,
    branch: Vec<f32>,
    residual: Vec<f32>,
    d_y: Vec<f32>,
}

fn case(lengths: &[usize], width: usize, how: Use) -> Case {
    let mut random = Random::new(width as u32);
    let batch = TestBatch::new(lengths, 1000, &mut random).masked(Masks::Some, &mut random);
    let live = batch.counts().of(how.rows);
    let mut params = Params::default();
    let norm = params.norm(width, &mut random);
    let bias = random.normals(width, 1.0);
    let bias = params.add(bias, &mut random);
    let mut values = || random.normals(live * width, 1.0);
    let (branch, residual, d_y) = (values(), values(), values());
    Case { batch, live, width, how, params, norm, bias, branch, residual, d_y }
}

impl Case {
    /// The rows far from zero, where a variance of E[x²] - mean² cancels.
    fn shifted(mut self, by: f32) -> Self {
        self.residual.iter_mut().for_each(|x| *x += by);
        self
    }

    /// Rows without variance: y = β.
    fn zero(mut self) -> Self {
        self.residual.fill(0.0);
        self.branch.fill(0.0);
        self
    }
}

impl OpCase for Case {
    fn op(&self) -> &'static str {
        "add_layernorm"
    }

    fn shape(&self) -> String {
        let Use { rows, residual, d_branch, drop } = &self.how;
        let (live, width, drop) = (self.live, self.width, drop_prob(drop));
        format!("[{rows:?}={live}, C={width}], {drop}, residual {residual:?}, d_branch {d_branch:?}")
    }

    fn counts(&self) -> Capacity {
        self.batch.counts()
    }

    fn inputs(&mut self) -> Vec<&mut [f32]> {
        vec![&mut self.params.values, &mut self.branch, &mut self.residual, &mut self.d_y]
    }

    fn reference<T: Scalar>(&self) -> Values {
        let p = &self.params;
        let keep = keep::<T>(&self.how.drop, self.batch.step, self.live, self.width);
        let residual = (self.how.residual == Residual::Added).then(|| cast::<T>(&self.residual));
        let sum = stored(residual_sum(&cast(&self.branch), residual.as_deref(), &keep));
        let gamma = p.get(self.norm.gamma);
        let (y, stats) = layernorm(&sum, &gamma, &p.get(self.norm.beta), T::of(f64::from(self.norm.epsilon)));
        let [mut d_gamma, mut d_beta, mut d_bias] =
            [self.norm.gamma, self.norm.beta, self.bias].map(|span| p.grad::<T>(span));
        let d_sum = layernorm_backward(&cast(&self.d_y), &sum, &stats, &gamma, &mut d_gamma, &mut d_beta);
        let (y, d_branch) = (stored(y), stored(hadamard(&keep, &d_sum)));
        let d_sum = stored(d_sum);
        add_rows(&d_branch, &mut d_bias);
        let mut outputs = vec![("sum", widen(&sum)), ("y", widen(&y)), ("d_sum", widen(&d_sum))];
        outputs.splice(1..1, mean_and_rstd(&widen(&stats)));
        if self.how.d_branch.matrix() {
            outputs.push(("d_branch", widen(&d_branch)));
        }
        outputs.extend([("d_gamma", widen(&d_gamma)), ("d_beta", widen(&d_beta))]);
        if self.how.d_branch.bias() {
            outputs.push(("d_bias", widen(&d_bias)));
        }
        outputs
    }

    fn run<B: Backend>(&self, room: &mut Room<'_, B>) -> Result<Outputs> {
        let (be, width, Use { rows, drop, .. }) = (room.be, self.width, self.how);
        let batch = room.upload(&self.batch)?;
        let (w, mut grads) = (room.weights(&self.params)?, room.grads(&self.params)?);
        let branch = room.mat(rows, width, &self.branch)?;
        let residual = room.mat(rows, width, &self.residual)?;
        let residual = (self.how.residual == Residual::Added).then_some(&residual);
        let (mut sum, mut stats, mut y) = (room.empty(rows, width)?, room.stats(rows, 2)?, room.empty(rows, width)?);
        be.add_layernorm(&branch, residual, &batch, &w, &self.norm, &drop, &mut sum, &mut stats, &mut y)?;
        let mut outputs = Outputs::from(vec![("sum", room.read(&sum)?)]);
        outputs.values.extend(mean_and_rstd(&room.read_stats(&stats)?));
        outputs.push("y", room.read(&y)?);
        let (mut d, mut d_branch) = (room.mat(rows, width, &self.d_y)?, room.empty(rows, width)?);
        let wanted = self.how.d_branch;
        be.add_layernorm_backward(
            &mut d,
            &sum,
            &stats,
            &batch,
            &w,
            &self.norm,
            &drop,
            wanted.bias().then_some(self.bias),
            &mut grads,
            wanted.matrix().then_some(&mut d_branch),
        )?;
        outputs.push("d_sum", room.read(&d)?);
        if wanted.matrix() {
            outputs.push("d_branch", room.read(&d_branch)?);
        }
        let mut spans = vec![("d_gamma", self.norm.gamma), ("d_beta", self.norm.beta)];
        if wanted.bias() {
            spans.push(("d_bias", self.bias));
        }
        self.params.read_grads(be, &grads, &spans, &mut outputs)?;
        room.give_batch(batch);
        Ok(outputs)
    }
}

/// After lin2: a matrix and a bias gradient wanted.
fn dropping() -> Use {
    let drop = Dropout::new(0.1, 3, 7);
    Use { rows: Rows::Tokens, residual: Residual::Added, d_branch: DBranch::MatrixAndBias, drop }
}

/// On a large batch.
pub fn large(lengths: &[usize], width: usize) -> impl OpCase {
    case(lengths, width, dropping())
}

/// All cases.
pub fn suite<B: Backend + Sync>(suite: &mut Suite<'_, B>) {
    let dropping = dropping();
    // After the attention's projection: nothing dropped, so d_sum serves as d_branch.
    let attention = Use { d_branch: DBranch::BiasOnly, drop: Dropout::NONE, ..dropping };
    let mlm_head = Use { rows: Rows::Masked, residual: Residual::Absent, d_branch: DBranch::Neither, ..attention };
    for lengths in LENGTHS {
        suite.check(case(lengths, 128, dropping));
        suite.check(case(lengths, 64, attention));
        suite.check(case(lengths, 64, mlm_head));
    }
    suite.check(case(&[50, 63], 384, dropping));
    suite.check(case(&[50, 63], 768, dropping));
    suite.check(case(&[50, 63], 768, mlm_head));
    // Rows so wide that a block has fewer warps.
    suite.check(case(&[30, 9], 1024, dropping));
    suite.check(case(&[20], 1792, dropping));
    for d_branch in [DBranch::BiasOnly, DBranch::MatrixOnly, DBranch::Neither] {
        suite.check(case(&[20, 13], 128, Use { d_branch, ..dropping }));
    }
    suite.check(case(&[1; 9], 64, Use { rows: Rows::Sequences, drop: Dropout::NONE, ..dropping }));
    suite.check(case(&[20, 13], 128, Use { residual: Residual::Absent, ..dropping }));
    suite.check(case(&[20, 13], 128, dropping).shifted(1000.0));
    suite.check(case(&[3], 128, attention).zero());
    suite.check_after(case(&[200, 17, 1, 128], 128, dropping), case(&[3, 8], 128, dropping));
    suite.check_after(case(&[200, 17, 1, 128], 128, mlm_head), case(&[3, 8], 128, mlm_head));
}
