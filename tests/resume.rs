//! A run that is stopped and resumed ends with the same bits as one that never was.

mod support {
    pub mod training;
}

use std::path::Path;

use handbert::data::pack::{Long, Packing};
use handbert::train::checkpoint::{Checkpoint, directory};
use handbert::train::run_dir::read_metrics;
use handbert::train::schedule::ScheduleKind;
use handbert::train::{Ended, Every, Feed, Length, Outliers, Record, Silent, Start, Summary, Task, TrainPlan, run};
use support::training::{Corpus, Watcher, config, corpus, cpu, plan, start, weights};

/// Accumulation of 2, three epochs of a few steps, dropout on, an evaluation each epoch.
fn long_plan(task: Task, out: &Path) -> TrainPlan {
    let mut plan = plan(task, out.to_path_buf());
    plan.accumulation = 2;
    plan.length = Length::Epochs(2.5);
    plan.logging_steps = 2;
    plan.policy.evaluate = Every::Epoch;
    plan
}

/// What a run leaves that must not depend on how often it was stopped.
#[derive(Debug, PartialEq)]
struct Outcome {
    checkpoint: Vec<u8>,
    moments: Vec<u8>,
    best: Vec<u8>,
    losses: Vec<(u64, u64)>,
}

fn outcome(out: &Path, steps: u64) -> Outcome {
    let last = directory(out, steps);
    let losses = read_metrics(out).expect("metrics");
    Outcome {
        checkpoint: weights(&last),
        moments: std::fs::read(last.join("handbert_state.safetensors")).expect("moments"),
        best: weights(out),
        losses: losses
            .iter()
            .map(|record| match record {
                Record::Step(step) => (step.step, step.loss.to_bits()),
                Record::Eval(eval) => (eval.step, eval.eval.loss().to_bits()),
            })
            .collect(),
    }
}

/// Runs once through, then stopped after each of these numbers of steps, and compares. `stops` is told
/// how many steps the first epoch has. Gives what came of the run that was not stopped.
fn check(
    corpus: &Corpus, change: impl Fn(&mut TrainPlan), task: Task, stops: impl Fn(u64) -> Vec<Vec<u64>>,
) -> Summary {
    let model = || start(config(corpus.tokenizer.vocab_size()), &task);
    let whole = tempfile::tempdir().expect("a directory");
    let mut plan = long_plan(task.clone(), whole.path());
    change(&mut plan);
    let summary = run(&cpu(), model(), &corpus.set, &plan, &mut Silent).expect("a run");
    assert_eq!(summary.ended, Ended::Finished);
    let evals = summary.history.iter().filter(|record| matches!(record, Record::Eval(_)));
    let ends: Vec<u64> = evals.map(Record::step).collect();
    assert!(ends.len() == 4 && ends[1] >= 3, "evaluations after {ends:?}");
    let expected = outcome(whole.path(), summary.steps);

    for sittings in stops(ends[1]) {
        let parts = tempfile::tempdir().expect("a directory");
        plan.out = parts.path().to_path_buf();
        let mut from = model();
        for &steps in &sittings {
            let stopped =
                run(&cpu(), from, &corpus.set, &plan, &mut Watcher::stopping_after(steps)).expect("a sitting");
            assert_eq!(stopped.ended, Ended::Stopped);
            from = Start::resume(parts.path()).expect("a checkpoint");
        }
        let resumed = run(&cpu(), from, &corpus.set, &plan, &mut Silent).expect("the last sitting");
        let counts = |of: &Summary| (of.steps, of.tokens, of.outlier_steps);
        assert_eq!(counts(&resumed), counts(&summary));
        assert!(outcome(parts.path(), summary.steps) == expected, "{task:?} stopped after {sittings:?} differs");
    }
    summary
}

#[test]
fn documents_across_epochs() {
    let corpus = corpus(90, 1);
    // Within an epoch, at its end, just after it, twice in the next; and after every step.
    let stops = |epoch| vec![vec![1], vec![epoch], vec![epoch + 1], vec![epoch - 1, 2, 2], vec![1; 2 * epoch as usize]];
    check(&corpus, |_| {}, Task::MLM, stops);
}

#[test]
fn chunks_across_epochs() {
    let corpus = corpus(90, 2);
    let chunks = |plan: &mut TrainPlan| plan.batching.packing = Packing::Chunks { length: 32 };
    check(&corpus, chunks, Task::MLM, |epoch| vec![vec![2], vec![epoch], vec![epoch + 1, 1]]);
}

/// Accumulation of one batch and of three beside the two of the others, in both packings, with everything that is
/// remembered from step to step: a guard against outliers that finds some, and the schedule.
#[test]
fn every_accumulation_in_both_packings_with_a_guard() {
    let corpus = corpus(90, 7);
    for accumulation in [1, 3] {
        for packing in [Packing::Documents, Packing::Chunks { length: 32 }] {
            let change = |plan: &mut TrainPlan| {
                plan.accumulation = accumulation;
                plan.batching.packing = packing;
                plan.schedule.kind = ScheduleKind::Cosine;
                plan.outliers = Outliers { max_loss: Some(2.0), max_grad_norm: Some(1.0), window: 3 };
            };
            let summary = check(&corpus, change, Task::MLM, |epoch| vec![vec![epoch - 1], vec![epoch + 1, 2]]);
            assert!(summary.outlier_steps > 0, "accumulation {accumulation}, {packing:?}: no outliers");
        }
    }
}

#[test]
fn one_batch_again_and_again() {
    let corpus = corpus(90, 8);
    let model = || start(config(corpus.tokenizer.vocab_size()), &Task::MLM);
    let (whole, parts) = (tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("a directory"));
    let mut plan = long_plan(Task::MLM, whole.path());
    plan.policy.evaluate = Every::Never;
    plan.feed = Feed::FirstStep;
    plan.length = Length::Steps(12);
    run(&cpu(), model(), &corpus.set, &plan, &mut Silent).expect("a run");
    plan.out = parts.path().to_path_buf();
    run(&cpu(), model(), &corpus.set, &plan, &mut Watcher::stopping_after(5)).expect("a sitting");
    let from = Start::resume(parts.path()).expect("a checkpoint");
    run(&cpu(), from, &corpus.set, &plan, &mut Silent).expect("the last sitting");
    assert!(outcome(parts.path(), 12) == outcome(whole.path(), 12));
}

#[test]
fn classifier_with_windows() {
    let corpus = corpus(90, 3);
    let windows = |plan: &mut TrainPlan| {
        plan.batching.max_length = 24;
        plan.batching.long = Long::Windows { stride: 11 };
    };
    check(&corpus, windows, Task::CLASSIFIER, |epoch| vec![vec![3], vec![epoch + 1]]);
}

#[test]
fn a_stop_during_an_evaluation_owes_it_to_the_next_sitting() {
    let corpus = corpus(60, 4);
    let model = || start(config(corpus.tokenizer.vocab_size()), &Task::MLM);
    let whole = tempfile::tempdir().expect("a directory");
    let mut plan = long_plan(Task::MLM, whole.path());
    plan.length = Length::Epochs(1.0);
    let summary = run(&cpu(), model(), &corpus.set, &plan, &mut Silent).expect("a run");
    let expected = outcome(whole.path(), summary.steps);

    let parts = tempfile::tempdir().expect("a directory");
    plan.out = parts.path().to_path_buf();
    let mut from = model();
    // Before step 1, then at the end of the epoch.
    for steps in [0, summary.steps] {
        let mut watcher = match steps {
            0 => Watcher { stop_in_evaluation: true, ..Watcher::default() },
            // The evaluation before step 1 is owed: let it pass, and stop in the next.
            _ => Watcher::stopping_after(steps),
        };
        let stopped = run(&cpu(), from, &corpus.set, &plan, &mut watcher).expect("a sitting");
        assert_eq!((stopped.ended, stopped.steps), (Ended::Stopped, steps));
        assert!(Checkpoint::open(&directory(parts.path(), steps)).expect("whole").state.evaluation_due);
        from = Start::resume(parts.path()).expect("a checkpoint");
    }
    let resumed = run(&cpu(), from, &corpus.set, &plan, &mut Silent).expect("the last sitting");
    assert_eq!(resumed.evaluation.map(|e| e.loss()), summary.evaluation.map(|e| e.loss()));
    assert!(outcome(parts.path(), summary.steps) == expected);
}

#[test]
fn what_differs_is_named() {
    let ours = corpus(60, 5);
    let model = || start(config(ours.tokenizer.vocab_size()), &Task::MLM);
    let out = tempfile::tempdir().expect("a directory");
    let plan = long_plan(Task::MLM, out.path());
    run(&cpu(), model(), &ours.set, &plan, &mut Watcher::stopping_after(1)).expect("a sitting");
    let resume = |corpus: &Corpus, plan: &TrainPlan| {
        let from = Start::resume(out.path()).expect("a checkpoint");
        run(&cpu(), from, &corpus.set, plan, &mut Watcher::stopping_after(1)).expect_err("refused").to_string()
    };

    let error = resume(&corpus(61, 5), &plan);
    assert!(error.contains("the data was 60 postings") && error.contains("is now 61 postings"), "{error}");
    let mut other = plan.clone();
    other.adam.learning_rate = 0.5;
    other.seed = 3;
    let error = resume(&ours, &other);
    assert!(error.contains("--learning-rate was 0.001 and is now 0.5"), "{error}");
    assert!(error.contains("--seed was 42 and is now 3"), "{error}");

    // What is only about when something is written may change.
    let mut other = plan.clone();
    other.logging_steps = 1;
    other.policy.save_steps = Some(1);
    let from = Start::resume(out.path()).expect("a checkpoint");
    run(&cpu(), from, &ours.set, &other, &mut Watcher::stopping_after(1)).expect("fine");

    let empty = tempfile::tempdir().expect("a directory");
    let error = Start::resume(empty.path()).expect_err("nothing there").to_string();
    assert!(error.contains("holds no checkpoint to resume; leave --resume out"), "{error}");
}

#[test]
fn a_finished_run_stays_finished() {
    let corpus = corpus(60, 6);
    let out = tempfile::tempdir().expect("a directory");
    let mut plan = long_plan(Task::MLM, out.path());
    plan.length = Length::Steps(3);
    let model = start(config(corpus.tokenizer.vocab_size()), &Task::MLM);
    let first = run(&cpu(), model, &corpus.set, &plan, &mut Silent).expect("a run");
    let best = weights(out.path());
    let again =
        run(&cpu(), Start::resume(out.path()).expect("a checkpoint"), &corpus.set, &plan, &mut Silent).expect("fine");
    assert_eq!((again.steps, again.ended, again.best), (first.steps, Ended::Finished, first.best));
    assert!(weights(out.path()) == best);
}
