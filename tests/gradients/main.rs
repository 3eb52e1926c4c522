//! The gradient of every parameter against PyTorch's autograd, without dropout and with it.

#[path = "../support/hf_case.rs"]
mod hf_case;

use handbert::backend::Backend;
use handbert::backend::cpu::Cpu;
use handbert::model::{DistilBert, ParamSpec};
use hf_case::{Case, LIMIT, largest, loss_and_grads, relative_error, sampled, training, without_dropout};

/// Adding a constant to all keys changes no attention probability: the gradient of a key bias is zero, and what is
/// computed for it is the rounding error of a sum of terms as large as the query bias's gradient.
const KEY_BIAS: &str = "attention.k_lin.bias";
const QUERY_BIAS: &str = "attention.q_lin.bias";

/// The largest relative error over all tensors of the table, each printed where it is the largest so far.
fn compare(case: &Case, specs: &[ParamSpec], flat: &[f32], prefix: &str, sample: usize) -> f64 {
    let mut worst = 0.0;
    for spec in specs {
        let ours = sampled(flat, spec, sample);
        let theirs = case.expected(&format!("{prefix}.{}", spec.hf_name));
        let error = if spec.hf_name.ends_with(KEY_BIAS) {
            let scale = case.expected(&format!("{prefix}.{}", spec.hf_name.replace(KEY_BIAS, QUERY_BIAS)));
            assert!(largest(&theirs) < 1e-9 * largest(&scale), "{} is not zero in f64", spec.hf_name);
            largest(&ours) / largest(&scale)
        } else {
            assert!(largest(&theirs) > 0.0, "{} has no gradient to compare", spec.hf_name);
            relative_error(&ours, &theirs)
        };
        if error > worst {
            println!("  {error:.1e}  {}", spec.hf_name);
            worst = error;
        }
        assert!(error < LIMIT, "{}: relative error {error:.1e}, limit {LIMIT:.0e}", spec.hf_name);
    }
    worst
}

fn gradients_without_dropout<B: Backend>(be: &B, name: &str) {
    let case = Case::open(name);
    let model = case.model(be);
    let model = DistilBert { config: without_dropout(&model.config), ..model };
    let mut ws = training(be, &model, 0);
    let batch = case.batch(0);
    let pass = loss_and_grads(be, &model, &mut ws, &batch.view(&model.head, 0));
    let worst = compare(&case, &model.table.specs, &pass.grads, "grad", 1);
    println!("{name}: largest relative error of a gradient {worst:.1e}");
}

fn gradients_with_dropout<B: Backend>(be: &B, name: &str) {
    let case = Case::open(name);
    let model = case.model(be);
    let mut ws = training(be, &model, case.integer("drop_seed"));
    let batch = case.batch(0);
    let pass = loss_and_grads(be, &model, &mut ws, &batch.view(&model.head, case.integer("drop_step") as u32));
    let loss = pass.tally.loss / pass.tally.weight;
    let error = (loss / case.number("dropped_loss") - 1.0).abs();
    assert!(error < LIMIT, "loss {loss}, PyTorch's {}", case.number("dropped_loss"));
    let worst = compare(&case, &model.table.specs, &pass.grads, "dropped", case.integer("sample") as usize);
    println!("{name}, dropout on: relative error of the loss {error:.1e}, largest of a gradient {worst:.1e}");
}

/// Two passes into one buffer give the sum: gradients accumulate.
fn gradients_accumulate<B: Backend>(be: &B, name: &str) {
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
    compare(&case, &model.table.specs, &halved, "grad", 1);
}

macro_rules! suite {
    ($module:ident, $backend:expr) => {
        mod $module {
            use super::*;

            #[test]
            fn mlm_gradients_are_those_of_autograd() {
                gradients_without_dropout(&$backend, "mlm");
            }

            #[test]
            fn classifier_gradients_are_those_of_autograd() {
                gradients_without_dropout(&$backend, "classifier");
            }

            #[test]
            fn mlm_gradients_are_those_of_autograd_under_the_same_dropout() {
                gradients_with_dropout(&$backend, "mlm");
            }

            #[test]
            fn classifier_gradients_are_those_of_autograd_under_the_same_dropout() {
                gradients_with_dropout(&$backend, "classifier");
            }

            #[test]
            fn gradients_of_two_passes_add_up() {
                gradients_accumulate(&$backend, "mlm");
                gradients_accumulate(&$backend, "classifier");
            }
        }
    };
}

suite!(cpu, Cpu::new());
