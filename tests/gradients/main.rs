//! The gradient of every parameter against PyTorch's autograd, without dropout and with it.
//!
//! PyTorch computed in f64, so all of the error is ours. A bf16 backend may have twice the error of the naive computation in
//! the same precision: the oracle's plain lines, under the same forward and backward pass.

#[path = "../support/hf_case.rs"]
mod hf_case;
#[path = "../support/reference_backend.rs"]
mod reference_backend;
#[path = "../support/sim_device.rs"]
mod sim_device;
#[path = "../support/simulator.rs"]
mod simulator;

use handbert::backend::Backend;
use handbert::backend::cpu::Cpu;
use handbert::backend::cuda::CudaBackend;
use handbert::check::reference::Mixed;
use handbert::model::{DistilBert, ParamSpec};
use hf_case::{Case, LIMIT, Packed, Pass, largest, loss_and_grads, relative_error, sampled, training, without_dropout};
use reference_backend::Reference;
use sim_device::SimDevice;

/// Half a unit in the last place of bf16, relative: what one rounding may add.
const BF16_ROUNDING: f64 = 1.0 / 512.0;

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

/// What the naive computation in the backend's precision gives; `None` where errors are f32's.
fn naive<B: Tested>(case: &Case, dropout: bool, batch: &Packed, seed: u64, step: u32) -> Option<Pass> {
    B::MIXED.then(|| pass(&Reference::<Mixed>::default(), case, dropout, batch, seed, step))
}

/// Loss and gradients of a batch, from a model of the case's weights.
fn pass<B: Backend>(be: &B, case: &Case, dropout: bool, batch: &Packed, seed: u64, step: u32) -> Pass {
    let mut model = case.model(be);
    if !dropout {
        model = DistilBert { config: without_dropout(&model.config), ..model };
    }
    let mut ws = training(be, &model, seed);
    loss_and_grads(be, &model, &mut ws, &batch.view(&model.head, step))
}

/// Adding a constant to all keys changes no attention probability: the gradient of a key bias is zero, and what is
/// computed for it is the rounding error of a sum of terms as large as the query bias's gradient.
const KEY_BIAS: &str = "attention.k_lin.bias";
const QUERY_BIAS: &str = "attention.q_lin.bias";

/// Relative error of a tensor's gradient against PyTorch's.
fn error_of(case: &Case, spec: &ParamSpec, flat: &[f32], prefix: &str, sample: usize) -> f64 {
    let ours = sampled(flat, spec, sample);
    let theirs = case.expected(&format!("{prefix}.{}", spec.hf_name));
    if spec.hf_name.ends_with(KEY_BIAS) {
        let scale = case.expected(&format!("{prefix}.{}", spec.hf_name.replace(KEY_BIAS, QUERY_BIAS)));
        assert!(largest(&theirs) < 1e-9 * largest(&scale), "{} is not zero in f64", spec.hf_name);
        largest(&ours) / largest(&scale)
    } else {
        assert!(largest(&theirs) > 0.0, "{} has no gradient to compare", spec.hf_name);
        relative_error(&ours, &theirs)
    }
}

/// The largest relative error over all tensors of the table, each printed where it is the largest so far.
fn compare(case: &Case, specs: &[ParamSpec], flat: &[f32], naive: Option<&Pass>, prefix: &str, sample: usize) -> f64 {
    let mut worst = 0.0;
    for spec in specs {
        let error = error_of(case, spec, flat, prefix, sample);
        let of_naive =
            naive.map_or(0.0, |pass| 2.0 * error_of(case, spec, &pass.grads, prefix, sample) + BF16_ROUNDING);
        let limit = LIMIT + of_naive;
        if error > worst {
            println!("  {error:.1e} of {limit:.1e}  {}", spec.hf_name);
            worst = error;
        }
        assert!(error < limit, "{}: relative error {error:.1e}, limit {limit:.0e}", spec.hf_name);
    }
    worst
}

fn gradients_without_dropout<B: Tested>(be: &B, name: &str) {
    let (case, batch) = (Case::open(name), Case::open(name).batch(0));
    let ours = pass(be, &case, false, &batch, 0, 0);
    let naive = naive::<B>(&case, false, &batch, 0, 0);
    let table = case.model(be).table;
    let worst = compare(&case, &table.specs, &ours.grads, naive.as_ref(), "grad", 1);
    println!("{name}: largest relative error of a gradient {worst:.1e}");
}

fn gradients_with_dropout<B: Tested>(be: &B, name: &str) {
    let (case, batch) = (Case::open(name), Case::open(name).batch(0));
    let (seed, step) = (case.integer("drop_seed"), case.integer("drop_step") as u32);
    let ours = pass(be, &case, true, &batch, seed, step);
    let naive = naive::<B>(&case, true, &batch, seed, step);
    let loss_error = |pass: &Pass| (pass.tally.loss / pass.tally.weight / case.number("dropped_loss") - 1.0).abs();
    let rounding = if B::MIXED { BF16_ROUNDING } else { 0.0 };
    let (error, limit) = (loss_error(&ours), LIMIT + 2.0 * naive.as_ref().map_or(0.0, loss_error) + rounding);
    assert!(error < limit, "loss {:?}, PyTorch's {}, limit {limit:.0e}", ours.tally, case.number("dropped_loss"));
    let table = case.model(be).table;
    let worst = compare(&case, &table.specs, &ours.grads, naive.as_ref(), "dropped", case.integer("sample") as usize);
    println!("{name}, dropout on: relative error of the loss {error:.1e}, largest of a gradient {worst:.1e}");
}

/// Two passes into one buffer give the sum: gradients accumulate.
fn gradients_accumulate<B: Tested>(be: &B, name: &str) {
    let case = Case::open(name);
    let model = case.model(be);
    let model = DistilBert { config: without_dropout(&model.config), ..model };
    let mut ws = training(be, &model, 0);
    let batch = case.batch(0);
    let mut grads = be.flat(model.table.flat_len).unwrap();
    for _ in 0..2 {
        model.upload(be, &batch.view(&model.head, 0), &mut ws).unwrap();
        model.loss_and_grads(be, &mut ws, &mut grads).unwrap();
    }
    let halved: Vec<f32> = be.read_flat(&grads).unwrap().iter().map(|g| g / 2.0).collect();
    let naive = naive::<B>(&case, false, &batch, 0, 0);
    compare(&case, &model.table.specs, &halved, naive.as_ref(), "grad", 1);
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
