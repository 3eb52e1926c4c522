//! Outputs, losses and training against PyTorch, and models that go to transformers and back.

#[path = "../support/hf_case.rs"]
mod hf_case;
#[path = "../support/instruction_sets.rs"]
mod instruction_sets;
mod round_trip;
#[path = "../support/skip.rs"]
mod skip;

use handbert::backend::cpu::Cpu;
use handbert::backend::{Backend, BatchLimits};
use handbert::model::distilbert::Activations;
use handbert::model::encoder::{Encoder, EncoderDropout};
use handbert::model::hub::{self, Wanted};
use handbert::model::{DistilBert, Head, Mode, ParamSpec};
use handbert::train::optimizer::Optimizer;
use hf_case::{
    CAPACITY, Case, KEY_BIAS, LIMIT, LIMIT_AFTER_TRAINING, LIMIT_OF_KEY_BIASES, relative_error, sampled, training,
    without_dropout,
};

/// Log-probabilities of the whole vocabulary at the masked rows: what the logits are, up to a constant for each row.
fn log_probs<B: Backend>(be: &B, model: &DistilBert<B>, case: &Case) -> Vec<f32> {
    let mut ws = model.workspace(be, CAPACITY, Mode::Inference, 0).unwrap();
    model.upload(be, &case.batch(0).view(&model.head, 0), &mut ws).unwrap();
    let vocab = model.config.vocab_size;
    let best_first = model.top_k(be, &mut ws, vocab).unwrap();
    let mut by_id = vec![f32::NAN; best_first.len() * vocab];
    for (row, best) in by_id.chunks_mut(vocab).zip(best_first) {
        assert!(best.windows(2).all(|pair| pair[0].1 >= pair[1].1), "not best first");
        for (id, probability) in best {
            row[id as usize] = probability.ln();
        }
    }
    by_id
}

fn logits<B: Backend>(be: &B, model: &DistilBert<B>, case: &Case) -> Vec<f32> {
    let mut ws = model.workspace(be, CAPACITY, Mode::Inference, 0).unwrap();
    model.upload(be, &case.batch(0).view(&model.head, 0), &mut ws).unwrap();
    model.logits(be, &mut ws).unwrap()
}

/// The model's output on the first batch, under the name it has in expected.safetensors.
fn output<B: Backend>(be: &B, model: &DistilBert<B>, case: &Case) -> (&'static str, Vec<f32>) {
    match model.head {
        Head::Mlm => ("log_probs", log_probs(be, model, case)),
        Head::Classifier { .. } => ("logits", logits(be, model, case)),
    }
}

fn output_and_loss<B: Backend>(be: &B, name: &str) {
    let case = Case::open(name);
    let model = case.model(be);
    let (what, ours) = output(be, &model, &case);
    let error = relative_error(&ours, &case.expected(what));
    assert!(error < LIMIT, "{what}: relative error {error:.1e}");

    let mut ws = model.workspace(be, CAPACITY, Mode::Inference, 0).unwrap();
    model.upload(be, &case.batch(0).view(&model.head, 0), &mut ws).unwrap();
    model.loss(be, &mut ws).unwrap();
    let tally = be.take_tally(&mut ws.tally).unwrap();
    let loss_error = (tally.loss / tally.weight / case.number("loss") - 1.0).abs();
    println!("{name}: relative error of {what} {error:.1e}, of the loss {loss_error:.1e}");
    assert!(loss_error < LIMIT, "loss {}, PyTorch's {}", tally.loss / tally.weight, case.number("loss"));
}

/// A bare encoder, loaded with a fresh head, gives the hidden states of DistilBertModel.
fn hidden_states<B: Backend>(be: &B) {
    let case = Case::open("bare");
    let loaded = hub::load(&case.dir, &Wanted::Mlm, 7).unwrap();
    assert_eq!(loaded.fresh.len(), 5);
    let model = DistilBert::new(be, loaded.config, loaded.head, &loaded.values).unwrap();
    let mut batch = be.batch(CAPACITY).unwrap();
    let plan = DistilBert::<B>::plan(&model.config, model.head, CAPACITY, Mode::Inference);
    let mut arena = be.arena(&plan).unwrap();
    let mut acts = Activations::new(&mut arena, &model.config, model.head, Mode::Inference);
    let limits =
        BatchLimits { vocab: model.config.vocab_size, positions: model.config.max_position_embeddings, classes: 0 };
    be.upload(&case.batch(0).view(&model.head, 0), &limits, &mut batch).unwrap();
    let drop = EncoderDropout::new(&model.config, Mode::Inference, 0);
    let encoder = Encoder { table: &model.table, heads: model.config.n_heads, drop: &drop };
    encoder.forward(be, &model.weights, &batch, &mut acts.encoder).unwrap();
    let hidden = be.read_mat(acts.encoder.last_hidden(model.config.n_layers)).unwrap();
    let error = relative_error(&hidden, &case.expected("hidden"));
    println!("bare: relative error of the hidden states {error:.1e}");
    assert!(error < LIMIT, "relative error {error:.1e}");
}

/// Ten steps of AdamW, clipped, under a linear schedule: every loss, every norm, and where the parameters end.
fn ten_steps<B: Backend>(be: &B, name: &str) {
    let case = Case::open(name);
    let mut model = case.model(be);
    model.config = without_dropout(&model.config);
    let mut ws = training(be, &model, 0);
    let mut grads = be.flat(model.table.flat_len).unwrap();
    let mut optimizer = Optimizer::new(be, &model.table, case.adam()).unwrap();
    let (losses, norms) = (case.numbers("losses"), case.numbers("norms"));
    let (mut off_losses, mut off_norms) = (Vec::new(), Vec::new());
    for step in 0..case.batches() {
        let batch = case.batch(step);
        be.zero(&mut grads).unwrap();
        model.upload(be, &batch.view(&model.head, step as u32), &mut ws).unwrap();
        model.loss_and_grads(be, &mut ws, &mut grads).unwrap();
        be.grad_norm(&grads, &mut ws.tally).unwrap();
        optimizer.prepare(be, case.factor(step)).unwrap();
        optimizer.update(be, &mut model.weights, &grads, &ws.tally).unwrap();
        optimizer.updates += 1;
        let tally = be.take_tally(&mut ws.tally).unwrap();
        off_losses.push((tally.loss / tally.weight / losses[step] - 1.0).abs());
        off_norms.push((tally.grad_norm / norms[step] - 1.0).abs());
    }
    // A NaN is the largest of them.
    let [worst_loss, worst_norm] =
        [off_losses, off_norms].map(|errors| errors.into_iter().max_by(f64::total_cmp).unwrap());
    assert!(worst_loss < LIMIT && worst_norm < LIMIT, "a loss is {worst_loss:.1e} off, a norm {worst_norm:.1e}");
    let ended = be.read_weights(&model.weights).unwrap();
    let sample = case.integer("sample") as usize;
    let (key_biases, others): (Vec<_>, Vec<_>) =
        model.table.specs.iter().partition(|spec| spec.hf_name.ends_with(KEY_BIAS));
    let worst = |specs: &[&ParamSpec]| {
        let error = |spec: &&ParamSpec| {
            let theirs = case.expected(&format!("after.{}", spec.hf_name));
            (relative_error(&sampled(&ended, spec, sample), &theirs), spec.hf_name.clone())
        };
        specs.iter().map(error).max_by(|a, b| a.0.total_cmp(&b.0)).unwrap()
    };
    let ((error, tensor), (of_key_biases, _)) = (worst(&others), worst(&key_biases));
    println!(
        "{name}, ten steps: largest relative error of a loss {worst_loss:.1e}, of a gradient norm {worst_norm:.1e}, \
         of a key bias {of_key_biases:.1e}, of another parameter {error:.1e} ({tensor})"
    );
    assert!(error < LIMIT_AFTER_TRAINING, "{tensor}: relative error {error:.1e}");
    assert!(of_key_biases < LIMIT_OF_KEY_BIASES, "a key bias: relative error {of_key_biases:.1e}");
}

macro_rules! suite {
    ($module:ident, $backend:expr) => {
        mod $module {
            use super::*;

            #[test]
            fn mlm_log_probabilities_and_loss() {
                output_and_loss(&$backend, "mlm");
            }

            #[test]
            fn classifier_logits_and_loss() {
                output_and_loss(&$backend, "classifier");
            }

            #[test]
            fn hidden_states_of_the_bare_model() {
                hidden_states(&$backend);
            }

            #[test]
            fn ten_steps_of_mlm() {
                ten_steps(&$backend, "mlm");
            }

            #[test]
            fn ten_steps_of_the_classifier() {
                ten_steps(&$backend, "classifier");
            }
        }
    };
}

suite!(cpu, Cpu::new());
