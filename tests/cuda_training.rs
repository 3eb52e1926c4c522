//! Whole runs on the simulated GPU: they follow the CPU's, repeat bit for bit however they are computed, and whatever the
//! device does, nothing that was saved is lost.

mod support {
    pub mod training;
}
#[path = "support/faulty_device.rs"]
mod faulty_device;
#[path = "support/reference_backend.rs"]
mod reference_backend;
#[path = "support/sim_device.rs"]
mod sim_device;
#[path = "support/simulator.rs"]
mod simulator;

use std::path::Path;

use faulty_device::{Fault, FaultyDevice};
use handbert::backend::Backend;
use handbert::backend::cuda::CudaBackend;
use handbert::check::reference::Mixed;
use handbert::train::checkpoint::{Checkpoint, directory};
use handbert::train::run_dir::read_metrics;
use handbert::train::{Ended, Error, Every, Length, Record, Replay, Silent, Start, Summary, Task, TrainPlan, run};
use reference_backend::Reference;
use support::training::{Corpus, Watcher, config, corpus, cpu, plan, start, weights};

/// So many steps, the losses of all of them noted.
fn steps(task: &Task, out: &Path, number: u64) -> TrainPlan {
    let mut plan = plan(task.clone(), out.to_path_buf());
    plan.length = Length::Steps(number);
    plan
}

fn fresh(corpus: &Corpus, task: &Task) -> Start {
    start(config(corpus.tokenizer.vocab_size()), task)
}

/// The loss of each step.
fn losses(summary: &Summary) -> Vec<f64> {
    let loss = |record: &Record| if let Record::Step(step) = record { Some(step.loss) } else { None };
    summary.history.iter().filter_map(loss).collect()
}

fn losses_on<B: Backend>(be: &B, corpus: &Corpus, task: &Task) -> Vec<f64> {
    let out = tempfile::tempdir().expect("a directory");
    let summary = run(be, fresh(corpus, task), &corpus.set, &steps(task, out.path(), 30), &mut Silent).expect("a run");
    losses(&summary)
}

/// Half a unit in the last place of bf16, relative: what one rounding may add. The logits that a loss is made of are stored so.
const BF16_ROUNDING: f64 = 1.0 / 512.0;

/// Thirty steps, dropout and masks the same: the losses are off the CPU's by at most twice what those of the oracle's plain
/// lines are, computed in the same precision, and one rounding.
fn follows_the_cpu(task: &Task) {
    let Some(gpu) = sim_device::backend() else { return };
    let corpus = corpus(60, 5);
    let (ours, exact) = (losses_on(&gpu, &corpus, task), losses_on(&cpu(), &corpus, task));
    let naive = losses_on(&Reference::<Mixed>::default(), &corpus, task);
    assert_eq!((ours.len(), exact.len()), (30, 30));
    let worst = |losses: &[f64]| losses.iter().zip(&exact).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    let (error, of_naive) = (worst(&ours), worst(&naive));
    println!("{task:?}: from {:.3} to {:.3}, off by {error:.1e}, naive {of_naive:.1e}", exact[0], exact[29]);
    let allowed = 2.0 * of_naive + BF16_ROUNDING * exact[0];
    assert!(error <= allowed, "{error} is more than {allowed}");
    assert!(exact[29] < exact[0], "it learns");
}

#[test]
fn thirty_mlm_steps_follow_the_cpus() {
    follows_the_cpu(&Task::MLM);
}

#[test]
fn thirty_classifier_steps_follow_the_cpus() {
    follows_the_cpu(&Task::CLASSIFIER);
}

/// What a run leaves, bit for bit.
#[derive(PartialEq)]
struct Left {
    checkpoint: Vec<u8>,
    moments: Vec<u8>,
    losses: Vec<u64>,
}

fn left(out: &Path, step: u64) -> Left {
    let last = directory(out, step);
    Left {
        checkpoint: weights(&last),
        moments: std::fs::read(last.join("handbert_state.safetensors")).expect("moments"),
        losses: read_metrics(out)
            .expect("metrics")
            .iter()
            .map(|record| match record {
                Record::Step(step) => step.loss.to_bits(),
                Record::Eval(eval) => eval.eval.loss().to_bits(),
            })
            .collect(),
    }
}

/// Six steps of two batches each, an evaluation and a checkpoint after every other step.
fn six_steps(out: &Path) -> TrainPlan {
    let mut plan = steps(&Task::MLM, out, 6);
    plan.accumulation = 2;
    plan.policy.evaluate = Every::Steps(2);
    plan
}

#[test]
fn a_run_has_the_same_bits_however_it_is_computed() {
    let corpus = corpus(60, 6);
    let go = |seed: u64, replay: Replay| {
        let out = tempfile::tempdir().expect("a directory");
        let plan = TrainPlan { replay, ..six_steps(out.path()) };
        let be = sim_device::seeded(seed)?;
        run(&be, fresh(&corpus, &Task::MLM), &corpus.set, &plan, &mut Silent).expect("a run");
        Some(left(out.path(), 6))
    };
    let Some(recorded) = go(1, Replay::WhenItCan) else { return };
    assert!(Some(&recorded) == go(2, Replay::WhenItCan).as_ref(), "another order of blocks and threads");
    assert!(Some(&recorded) == go(3, Replay::Never).as_ref(), "launch by launch");
}

#[test]
fn a_resumed_run_has_the_same_bits() {
    let Some(be) = sim_device::backend() else { return };
    let corpus = corpus(60, 6);
    let [whole, parts] = [(); 2].map(|()| tempfile::tempdir().expect("a directory"));
    run(&be, fresh(&corpus, &Task::MLM), &corpus.set, &six_steps(whole.path()), &mut Silent).expect("a run");
    let mut from = fresh(&corpus, &Task::MLM);
    for stop in [1, 2] {
        let watcher = &mut Watcher::stopping_after(stop);
        let stopped = run(&be, from, &corpus.set, &six_steps(parts.path()), watcher).expect("a sitting");
        assert_eq!(stopped.ended, Ended::Stopped);
        from = Start::resume(parts.path()).expect("a checkpoint");
    }
    run(&be, from, &corpus.set, &six_steps(parts.path()), &mut Silent).expect("the rest");
    assert!(left(whole.path(), 6) == left(parts.path(), 6));
}

#[test]
fn what_was_begun_on_one_goes_on_on_the_other() {
    let Some(gpu) = sim_device::backend() else { return };
    let (corpus, cpu) = (corpus(60, 7), cpu());
    let losses_of = |first_on_gpu: bool| {
        let out = tempfile::tempdir().expect("a directory");
        let watcher = &mut Watcher::stopping_after(3);
        let (model, plan) = (fresh(&corpus, &Task::MLM), six_steps(out.path()));
        let stopped = if first_on_gpu {
            run(&gpu, model, &corpus.set, &plan, watcher)
        } else {
            run(&cpu, model, &corpus.set, &plan, watcher)
        };
        assert_eq!(stopped.expect("a sitting").ended, Ended::Stopped);
        let model = Start::resume(out.path()).expect("a checkpoint");
        let rest = if first_on_gpu {
            run(&cpu, model, &corpus.set, &plan, &mut Silent)
        } else {
            run(&gpu, model, &corpus.set, &plan, &mut Silent)
        };
        losses(&rest.expect("the rest"))
    };
    let (one, other) = (losses_of(true), losses_of(false));
    // The last group of the epoch happens to have no target, and so no loss.
    assert_eq!((one.len(), other.len()), (5, 5));
    // Of two precisions, so not the same bits: but a moment or a count that was lost would show.
    assert!(one.iter().zip(&other).all(|(a, b)| (a - b).abs() < 0.02 * a), "{one:?} and {other:?}");
}

/// A run on a device with this fault, into a directory where a run of two steps was saved.
fn faulty(corpus: &Corpus, out: &Path, fault: Fault) -> Option<handbert::train::Result<Summary>> {
    let be = CudaBackend::new(FaultyDevice::new(fault, Box::new(|_, _| Ok(())))?);
    let from = Start::resume(out).expect("a checkpoint");
    let plan = six_steps(out);
    Some(match be {
        Ok(be) => run(&be, from, &corpus.set, &plan, &mut Silent),
        Err(error) => Err(error.into()),
    })
}

#[test]
fn whatever_a_device_does_the_last_checkpoint_is_whole() {
    let corpus = corpus(60, 8);
    let saved = tempfile::tempdir().expect("a directory");
    let watcher = &mut Watcher::stopping_after(2);
    run(&cpu(), fresh(&corpus, &Task::MLM), &corpus.set, &six_steps(saved.path()), watcher).expect("two steps");
    let before = left(saved.path(), 2);
    let mut seen = [0; 3];
    for number in [0, 2, 11, 30, 120] {
        for (kind, fault) in
            [Fault::NoMemory(number), Fault::NoLaunch(number), Fault::Lost(number)].into_iter().enumerate()
        {
            let out = tempfile::tempdir().expect("a directory");
            support::training::copy(saved.path(), out.path());
            let Some(outcome) = faulty(&corpus, out.path(), fault) else { return };
            if let Err(error) = outcome {
                seen[kind] += 1;
                let text = error.to_string();
                let named = match fault {
                    Fault::NoMemory(_) => text.contains("out of GPU memory for") && text.contains("--batch-tokens"),
                    Fault::NoLaunch(_) => text.contains("<<<") && text.contains("a launch that fails"),
                    Fault::Lost(_) => text.contains("the device is lost"),
                };
                assert!(named, "{fault:?}: {text}");
            }
            let Checkpoint { state, .. } = Checkpoint::latest(out.path()).expect("whole").expect("there");
            assert!(state.step >= 2, "{fault:?}");
            assert!(left(out.path(), 2).checkpoint == before.checkpoint, "{fault:?}");
        }
    }
    assert!(seen.iter().all(|&errors| errors >= 2), "faults that were met: {seen:?}");
}

#[test]
fn steps_without_numbers_are_skipped_counted_and_end_the_run() {
    let Some(be) = sim_device::backend() else { return };
    let corpus = corpus(60, 9);
    let out = tempfile::tempdir().expect("a directory");
    let mut plan = steps(&Task::MLM, out.path(), 40);
    plan.adam.learning_rate = 1e30;
    plan.adam.max_grad_norm = 0.0;
    let watcher = &mut Watcher::default();
    let error = run(&be, fresh(&corpus, &Task::MLM), &corpus.set, &plan, watcher).expect_err("it diverges");
    assert!(matches!(error, Error::Diverged { count: 10, .. }), "{error}");
    assert_eq!(watcher.skipped, 10);
}
