//! Outputs, losses and training against PyTorch, and models that go to transformers and back.

#[path = "../support/hf_case.rs"]
mod hf_case;
mod round_trip;
#[path = "../support/skip.rs"]
mod skip;

use handbert::backend::cpu::Cpu;
use handbert::backend::{Backend, BatchLimits};
use handbert::model::distilbert::Activations;
use handbert::model::encoder::{Encoder, EncoderDropout};
use handbert::model::hub::{self, Wanted};
use handbert::model::{DistilBert, Head, Mode};
use hf_case::{CAPACITY, Case, LIMIT, LIMIT_AFTER_TRAINING, relative_error, sampled, training, without_dropout};

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
    let [mut m, mut v] = [(); 2].map(|()| be.flat(model.table.flat_len).unwrap());
    let (mut grads, mut hyper) = (be.flat(model.table.flat_len).unwrap(), be.hyper().unwrap());
    let (losses, norms) = (case.numbers("losses"), case.numbers("norms"));
    let (mut worst_loss, mut worst_norm) = (0.0f64, 0.0f64);
    for step in 0..case.batches() {
        let batch = case.batch(step);
        be.zero(&mut grads).unwrap();
        model.upload(be, &batch.view(&model.head, step as u32), &mut ws).unwrap();
        model.loss_and_grads(be, &mut ws, &mut grads).unwrap();
        be.grad_norm(&grads, &mut ws.tally).unwrap();
        be.set_hyper(&mut hyper, &case.adamw(step)).unwrap();
        let spans = model.table.update_spans();
        be.adamw(&mut model.weights, &grads, &mut m, &mut v, &spans, &hyper, &ws.tally).unwrap();
        let tally = be.take_tally(&mut ws.tally).unwrap();
        worst_loss = worst_loss.max((tally.loss / tally.weight / losses[step] - 1.0).abs());
        worst_norm = worst_norm.max((tally.grad_norm / norms[step] - 1.0).abs());
    }
    let ended = be.read_weights(&model.weights).unwrap();
    let sample = case.integer("sample") as usize;
    let errors = model.table.specs.iter().map(|spec| {
        let theirs = case.expected(&format!("after.{}", spec.hf_name));
        (relative_error(&sampled(&ended, spec, sample), &theirs), spec.hf_name.as_str())
    });
    let (worst, tensor) = errors.max_by(|a, b| a.0.total_cmp(&b.0)).unwrap();
    println!(
        "{name}, ten steps: largest relative error of a loss {worst_loss:.1e}, of a gradient norm {worst_norm:.1e}, \
         of a parameter {worst:.1e} ({tensor})"
    );
    assert!(worst_loss.max(worst_norm).max(worst) < LIMIT_AFTER_TRAINING);
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
