//! The gradient of every parameter against PyTorch's autograd, without dropout and with it.
//!
//! PyTorch computed in f64, so all of the error is ours. A bf16 backend may have twice the error of the naive computation in
//! the same precision: the oracle's plain lines, under the same forward and backward pass. That error is a draw of chance:
//! one computation may by luck be nearly right in a loss or in a small tensor. So it is drawn for several [`INSTANCES`], in
//! which weights are moved by a unit in the last place of bf16 at most, so that all roundings fall anew and nothing else
//! changes, and the largest counts. What is right for moved weights the same lines say in f64, which this file holds
//! against PyTorch.

#[path = "../support/hf_case.rs"]
mod hf_case;
#[path = "../support/reference_backend.rs"]
mod reference_backend;
#[path = "../support/sim_device.rs"]
mod sim_device;
#[path = "../support/simulator.rs"]
mod simulator;
#[path = "../support/skip.rs"]
mod skip;

use handbert::backend::Backend;
use handbert::backend::cpu::Cpu;
use handbert::backend::cuda::CudaBackend;
use handbert::check::reference::{Mixed, rounded};
use handbert::model::{DistilBert, ParamSpec};
use handbert::philox::philox4x32;
use hf_case::{Case, KEY_BIAS, LIMIT, Packed, Pass, largest, loss_and_grads, sampled, training, without_dropout};
use reference_backend::Reference;
use sim_device::SimDevice;

/// Where the naive computation's error is drawn: at the weights as they are, 0, and at moved ones. Left out is 1: there a
/// ReLU of the classifier falls to the other side of zero, an error of a tenth that would hide all others.
const INSTANCES: [u32; 8] = [0, 2, 3, 4, 5, 6, 7, 8];

/// A backend and what it may be off.
trait Tested: Backend {
    /// Whether it stores activations in bf16.
    const MIXED: bool;
}

impl Tested for Cpu {
    const MIXED: bool = false;
}

impl Tested for Reference<f64> {
    const MIXED: bool = false;
}

impl Tested for CudaBackend<SimDevice> {
    const MIXED: bool = true;
}

/// What is to be computed.
#[derive(Clone, Copy)]
struct Computation<'a> {
    case: &'a Case,
    batch: &'a Packed,
    /// Seed of dropout and number of the pass; none without dropout.
    dropout: Option<(u64, u32)>,
}

impl Computation<'_> {
    /// Loss and gradients, from a model of the case's weights.
    fn pass<B: Backend>(&self, be: &B) -> Pass {
        self.pass_with(be, |_, weight| weight)
    }

    /// The same, each weight replaced by what is made of its place and value.
    fn pass_with<B: Backend>(&self, be: &B, moved: impl Fn(u32, f32) -> f32) -> Pass {
        let mut model = self.case.model(be);
        let weights = be.read_weights(&model.weights).unwrap();
        let weights: Vec<f32> = (0..).zip(weights).map(|(place, weight)| moved(place, weight)).collect();
        model.weights = be.weights(&weights).unwrap();
        if self.dropout.is_none() {
            model = DistilBert { config: without_dropout(&model.config), ..model };
        }
        let (seed, step) = self.dropout.unwrap_or_default();
        let mut ws = training(be, &model, seed);
        loss_and_grads(be, &model, &mut ws, &self.batch.view(&model.head, step))
    }

    /// What the naive computation in the backend's precision gives, again and again, beside what is right; none where
    /// errors are f32's.
    fn naive<B: Tested>(&self) -> Vec<Naive> {
        let at = |instance: u32| {
            // By up to 2⁻⁸ of itself, a unit in the last place of bf16. What bf16 holds exactly it still does.
            let moved = |place: u32, weight: f32| {
                let word = philox4x32([place, 0, 0, 0], [instance, 0])[0];
                let by = if instance == 0 { 0.0 } else { (word as f32 / u32::MAX as f32 - 0.5) / 128.0 };
                let moved = weight * (1.0 + by);
                if rounded(weight) == weight { rounded(moved) } else { moved }
            };
            Naive {
                exact: self.pass_with(&Reference::<f64>::default(), moved),
                naive: self.pass_with(&Reference::<Mixed>::default(), moved),
            }
        };
        if B::MIXED { INSTANCES.map(at).into() } else { Vec::new() }
    }
}

/// An instance of the naive computation, and what is right for it.
struct Naive {
    exact: Pass,
    naive: Pass,
}

fn mean_loss(pass: &Pass) -> f64 {
    pass.tally.loss / pass.tally.weight
}

/// Twice the largest error.
fn allowed(instances: &[Naive], error: impl Fn(&Naive) -> f64) -> f64 {
    2.0 * instances.iter().map(error).fold(0.0, f64::max)
}

const QUERY_BIAS: &str = "attention.q_lin.bias";

/// A tensor, and what its error is relative to.
struct Exact {
    values: Vec<f32>,
    scale: f64,
}

/// What is right for a tensor, where `of` gives the tensor of a name.
fn exact(spec: &ParamSpec, of: impl Fn(&str) -> Vec<f32>) -> Exact {
    let values = of(&spec.hf_name);
    if spec.hf_name.ends_with(KEY_BIAS) {
        let scale = largest(&of(&spec.hf_name.replace(KEY_BIAS, QUERY_BIAS)));
        assert!(largest(&values) < 1e-9 * scale, "{} is not zero in f64", spec.hf_name);
        return Exact { values: vec![0.0; values.len()], scale };
    }
    let scale = largest(&values);
    assert!(scale > 0.0, "{} has no gradient to compare", spec.hf_name);
    Exact { values, scale }
}

/// Relative error of a tensor's gradient.
fn error_of(ours: &[f32], exact: &Exact) -> f64 {
    assert_eq!(ours.len(), exact.values.len());
    assert!(ours.iter().all(|x| x.is_finite()), "not a number");
    let off = |(a, b): (&f32, &f32)| (f64::from(*a) - f64::from(*b)).abs();
    ours.iter().zip(&exact.values).map(off).fold(0.0, f64::max) / exact.scale
}

/// What gradients are compared with: the case's tensors under this prefix, every `sample`-th element.
struct Expected<'a> {
    case: &'a Case,
    prefix: &'static str,
    sample: usize,
}

impl Expected<'_> {
    /// The largest relative error over all tensors of the table, each printed where it is the largest so far.
    fn compare(&self, specs: &[ParamSpec], flat: &[f32], naive: &[Naive]) -> f64 {
        let mut worst = 0.0;
        let of = |name: &str, flat: &[f32]| {
            let spec = specs.iter().find(|spec| spec.hf_name == name).expect("in the table");
            sampled(flat, spec, self.sample)
        };
        for spec in specs {
            let torch = exact(spec, |name| self.case.expected(&format!("{}.{name}", self.prefix)));
            let error = error_of(&of(&spec.hf_name, flat), &torch);
            let of_naive = allowed(naive, |instance| {
                let right = exact(spec, |name| of(name, &instance.exact.grads));
                error_of(&of(&spec.hf_name, &instance.naive.grads), &right)
            });
            let limit = LIMIT + of_naive;
            if error > worst {
                println!("  {error:.1e} of {limit:.1e}  {}", spec.hf_name);
                worst = error;
            }
            assert!(error < limit, "{}: relative error {error:.1e}, limit {limit:.1e}", spec.hf_name);
        }
        worst
    }
}

fn gradients_without_dropout<B: Tested>(be: &B, name: &str) {
    let (case, batch) = (&Case::open(name), &Case::open(name).batch(0));
    let computation = Computation { case, batch, dropout: None };
    let specs = case.model(be).table.specs;
    let expected = Expected { case, prefix: "grad", sample: 1 };
    let worst = expected.compare(&specs, &computation.pass(be).grads, &computation.naive::<B>());
    println!("{name}: largest relative error of a gradient {worst:.1e}");
}

fn gradients_with_dropout<B: Tested>(be: &B, name: &str) {
    let (case, batch) = (&Case::open(name), &Case::open(name).batch(0));
    let dropout = Some((case.integer("drop_seed"), case.integer("drop_step") as u32));
    let computation = Computation { case, batch, dropout };
    let (ours, naive) = (computation.pass(be), computation.naive::<B>());
    let loss_error = |pass: &Pass, exact: f64| (mean_loss(pass) / exact - 1.0).abs();
    let torch = case.number("dropped_loss");
    let error = loss_error(&ours, torch);
    let limit = LIMIT + allowed(&naive, |instance| loss_error(&instance.naive, mean_loss(&instance.exact)));
    assert!(error < limit, "loss {:?}, PyTorch's {torch}, limit {limit:.1e}", ours.tally);
    let specs = case.model(be).table.specs;
    let expected = Expected { case, prefix: "dropped", sample: case.integer("sample") as usize };
    let worst = expected.compare(&specs, &ours.grads, &naive);
    println!(
        "{name}, dropout on: relative error of the loss {error:.1e} of {limit:.1e}, largest of a gradient {worst:.1e}"
    );
}

/// Two passes into one buffer give the sum: gradients accumulate.
fn gradients_accumulate<B: Tested>(be: &B, name: &str) {
    let case = &Case::open(name);
    let model = case.model(be);
    let model = DistilBert { config: without_dropout(&model.config), ..model };
    let mut ws = training(be, &model, 0);
    let batch = &case.batch(0);
    let mut grads = be.flat(model.table.flat_len).unwrap();
    for _ in 0..2 {
        model.upload(be, &batch.view(&model.head, 0), &mut ws).unwrap();
        model.loss_and_grads(be, &mut ws, &mut grads).unwrap();
    }
    let halved: Vec<f32> = be.read_flat(&grads).unwrap().iter().map(|g| g / 2.0).collect();
    let naive = Computation { case, batch, dropout: None }.naive::<B>();
    Expected { case, prefix: "grad", sample: 1 }.compare(&model.table.specs, &halved, &naive);
}

macro_rules! suite {
    ($module:ident, $backend:expr) => {
        mod $module {
            use super::*;

            suite!(@tests $backend,
                mlm_gradients_are_those_of_autograd: gradients_without_dropout "mlm",
                classifier_gradients_are_those_of_autograd: gradients_without_dropout "classifier",
                mlm_gradients_are_those_of_autograd_under_the_same_dropout: gradients_with_dropout "mlm",
                classifier_gradients_are_those_of_autograd_under_the_same_dropout: gradients_with_dropout "classifier",
                mlm_gradients_of_two_passes_add_up: gradients_accumulate "mlm",
                classifier_gradients_of_two_passes_add_up: gradients_accumulate "classifier",
            );
        }
    };
    (@tests $backend:expr, $($name:ident: $test:ident $case:literal,)*) => {
        $(
            #[test]
            fn $name() {
                if let Some(backend) = $backend {
                    $test(&backend, $case);
                }
            }
        )*
    };
}

suite!(cpu, Some(Cpu::new()));
suite!(oracle, Some(Reference::<f64>::default()));
suite!(cuda, sim_device::backend());
