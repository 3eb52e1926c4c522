//! Runs of tiny models: what they learn, what they keep, and what they refuse.

mod support {
    pub mod training;
}

use std::ops::ControlFlow;
use std::path::Path;

use handbert::backend::Capacity;
use handbert::data::pack::{Cursor, Packing, Shuffle};
use handbert::data::split::Subset;
use handbert::model::{Config, DistilBert, Head, ParamTable, hub};
use handbert::train::checkpoint::Checkpoint;
use handbert::train::loader::{Group, LastOfEpoch, Loader};
use handbert::train::optimizer::AdamSettings;
use handbert::train::run_dir::read_metrics;
use handbert::train::step::{Replay, Trainer};
use handbert::train::task::{MicroBatch, Objective};
use handbert::train::{
    Batching, ClassWeights, Ended, Error, EvalPlan, EvalResult, Every, Feed, Length, Metric, Outliers, Record, Silent,
    Task, TrainPlan, Unigram, evaluate, run,
};
use support::training::{
    Corpus, Watcher, config, corpus, corpus_of, cpu, plan, refrains, start, weights, without_dropout,
};

fn objective(corpus: &Corpus, plan: &TrainPlan) -> Objective {
    Objective::new(&plan.task, plan.seed, &corpus.tokenizer, &corpus.set, 2, &plan.batching).expect("fine")
}

fn loader<'a>(corpus: &'a Corpus, plan: &TrainPlan, cursor: Cursor) -> Loader<'a> {
    let packing = plan.batching.pack_plan(&plan.task, Subset::Train, Shuffle::Shuffled { seed: plan.seed });
    let special = corpus.tokenizer.special();
    Loader::new(&corpus.set, &packing, special, cursor, objective(corpus, plan), plan.accumulation).expect("fine")
}

/// The groups of the first `epochs` epochs.
fn groups(corpus: &Corpus, plan: &TrainPlan, epochs: usize) -> Vec<Group> {
    let mut loader = loader(corpus, plan, Cursor::start(0));
    let mut groups: Vec<Group> = Vec::new();
    while groups.iter().filter(|group| group.last_of_epoch == LastOfEpoch::Yes).count() < epochs {
        groups.push(loader.next_group().expect("a group"));
    }
    groups
}

#[test]
fn batches_and_masks_do_not_depend_on_accumulation() {
    let corpus = corpus(120, 1);
    for packing in [Packing::Documents, Packing::Chunks { length: 32 }] {
        let of = |accumulation: usize| -> Vec<MicroBatch> {
            let mut plan = plan(Task::MLM, "unused".into());
            plan.accumulation = accumulation;
            plan.batching.packing = packing;
            let groups = groups(&corpus, &plan, 2);
            for group in &groups {
                assert!(group.micro.len() == accumulation || group.last_of_epoch == LastOfEpoch::Yes);
                let targets: usize = group.micro.iter().map(|micro| micro.batch.targets.len()).sum();
                assert_eq!(group.weight, targets as f64);
            }
            groups.into_iter().flat_map(|group| group.micro).collect()
        };
        let one = of(1);
        assert!(one.len() > 20, "{} batches", one.len());
        // The last: each epoch is one group.
        assert!(one == of(2) && one == of(7) && one == of(usize::MAX), "{packing:?}");
    }
}

#[test]
fn a_group_says_where_to_go_on_and_how_far_its_epoch_is() {
    let corpus = corpus(120, 2);
    for packing in [Packing::Documents, Packing::Chunks { length: 32 }] {
        let mut plan = plan(Task::MLM, "unused".into());
        plan.accumulation = 3;
        plan.batching.packing = packing;
        let groups = groups(&corpus, &plan, 3);
        for (i, group) in groups.iter().enumerate().skip(1) {
            let again = loader(&corpus, &plan, groups[i - 1].cursor.clone()).next_group().expect("a group");
            // Another loader counts from another beginning.
            assert!(Group { counts: group.counts, ..again } == *group, "{packing:?}: group {i} after its cursor");
            assert!(group.epoch > groups[i - 1].epoch || packing == Packing::Documents);
        }
        let ends: Vec<f64> =
            groups.iter().filter(|g| g.last_of_epoch == LastOfEpoch::Yes).map(|group| group.epoch).collect();
        assert_eq!(ends, [1.0, 2.0, 3.0]);
    }
}

#[test]
fn postings_held_out_are_no_progress() {
    let corpus = corpus(600, 11);
    let plan = plan(Task::MLM, "unused".into());
    // One batch of about 65. All postings are in the look-ahead buffer by then, but for the fifth that is held out.
    let first = loader(&corpus, &plan, Cursor::start(0)).next_group().expect("a group");
    assert!(first.epoch < 0.1, "{}", first.epoch);
}

#[test]
fn four_small_batches_are_as_good_as_one_large() {
    let corpus = corpus(150, 3);
    let config = without_dropout(config(corpus.tokenizer.vocab_size()));
    let run = |batch_tokens: usize, accumulation: usize| {
        let mut plan = plan(Task::MLM, "unused".into());
        plan.batching.packing = Packing::Chunks { length: 32 };
        plan.batching.batch_tokens = batch_tokens;
        plan.accumulation = accumulation;
        // An epsilon far above the gradients makes updates proportional to them: otherwise the last bit of a
        // gradient near zero would decide about the sign of a full-size update.
        let adam = AdamSettings { learning_rate: 1.0, epsilon: 1.0, ..AdamSettings::default() };
        let table = ParamTable::new(&config, Head::Mlm);
        let values = table.initial_weights(&config, 7);
        let be = cpu();
        let model = DistilBert::new(&be, config.clone(), Head::Mlm, &values).expect("a model");
        let masked = objective(&corpus, &plan).masked_capacity(batch_tokens);
        let capacity = Capacity { tokens: batch_tokens, sequences: batch_tokens, masked };
        let mut trainer = Trainer::new(&be, model, adam, capacity, 42, Replay::WhenItCan).expect("a trainer");
        let groups = groups(&corpus, &plan, 1);
        let mut step = |group| {
            trainer.begin(&be, group)?;
            trainer.complete(&be, 1.0)?;
            trainer.settle(&be)
        };
        let outcomes: Vec<_> = groups.iter().map(|group| step(group).expect("a step").expect("its outcome")).collect();
        let after = handbert::backend::Memory::read_weights(&be, &trainer.model.weights).expect("weights");
        (outcomes, values, after)
    };
    let (large, before, one) = run(512, 1);
    let (small, _, four) = run(128, 4);
    assert!(large.len() >= 4, "{} steps", large.len());
    assert_eq!(large.len(), small.len());
    for (l, s) in large.iter().zip(&small) {
        assert_eq!(l.weight, s.weight);
        assert!((l.loss - s.loss).abs() < 1e-5 * l.loss, "{} and {}", l.loss, s.loss);
        assert!((l.grad_norm - s.grad_norm).abs() < 1e-4 * l.grad_norm, "{} and {}", l.grad_norm, s.grad_norm);
    }
    let largest =
        |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| (a - b).abs()).max_by(f32::total_cmp).expect("some");
    let (moved, apart) = (largest(&before, &one), largest(&one, &four));
    assert!(moved > 1e-2 && apart < 1e-4 * moved, "moved {moved}, apart {apart}");
}

/// Measured on what was trained on, after the run.
fn by_heart(corpus: &Corpus, task: Task, steps: u64) -> EvalResult {
    let config = without_dropout(config(corpus.tokenizer.vocab_size()));
    let out = tempfile::tempdir().expect("a directory");
    let mut plan = plan(task.clone(), out.path().to_path_buf());
    plan.batching.validation_split_percentage = 0.0;
    plan.batching.batch_tokens = 1024;
    plan.adam.learning_rate = 3e-3;
    plan.length = Length::Steps(steps);
    let summary = run(&cpu(), start(config, &task), &corpus.set, &plan, &mut Silent).expect("a run");
    assert_eq!((summary.steps, summary.ended), (steps, Ended::Finished));
    evaluate_saved(out.path(), corpus, plan.task, plan.batching, Subset::All)
}

/// The model in a directory, measured.
fn evaluate_saved(dir: &Path, corpus: &Corpus, task: Task, batching: Batching, subset: Subset) -> EvalResult {
    let be = cpu();
    let loaded = hub::load(dir, &hub::Wanted::AsSaved, 0).expect("a model");
    let model = DistilBert::new(&be, loaded.config, loaded.head, &loaded.values).expect("a model");
    let plan = EvalPlan { task, batching, subset, seed: 42 };
    let go_on = &mut |_, _| ControlFlow::Continue(());
    evaluate(&be, &model, &corpus.set, plan, None, go_on).expect("fine").expect("not given up")
}

#[test]
fn a_classifier_learns_twenty_postings_by_heart() {
    let EvalResult::Classifier(eval) = by_heart(&corpus(20, 4), Task::CLASSIFIER, 60) else { panic!("a classifier") };
    assert_eq!((eval.rows, eval.accuracy, eval.roc_auc), (20, 1.0, Some(1.0)));
    assert!(eval.loss < 0.05, "loss {}", eval.loss);
    assert_eq!(eval.labels, support::training::LABELS);
    assert_eq!((eval.positive.as_str(), eval.f1), ("remote", 1.0));
}

#[test]
fn a_language_model_learns_twenty_postings() {
    let EvalResult::Mlm(eval) = by_heart(&corpus_of(&refrains(20)), Task::MLM, 150) else { panic!("a language model") };
    // Knowing which two words a posting is made of gives 2; a unigram model has about 40.
    assert!(eval.perplexity < 2.5, "perplexity {}", eval.perplexity);
}

#[test]
fn the_best_model_ends_up_in_the_run_directory() {
    let corpus = corpus(100, 5);
    let out = tempfile::tempdir().expect("a directory");
    let mut plan = plan(Task::CLASSIFIER, out.path().to_path_buf());
    plan.length = Length::Epochs(6.0);
    plan.policy.evaluate = Every::Steps(3);
    plan.policy.save_total_limit = Some(2);
    plan.policy.metric = Metric::AveragePrecision;
    // Rises to a rate that ruins what was learned.
    plan.adam.learning_rate = 0.3;
    plan.schedule.warmup = handbert::train::schedule::Warmup::Ratio(1.0);
    let model = start(config(corpus.tokenizer.vocab_size()), &plan.task);
    let summary = run(&cpu(), model, &corpus.set, &plan, &mut Silent).expect("a run");

    let metric = |eval: &EvalResult| Metric::AveragePrecision.of(eval).expect("defined");
    let evals: Vec<(u64, f64)> = summary
        .history
        .iter()
        .filter_map(|record| match record {
            handbert::train::Record::Eval(e) if e.step > 0 => Some((e.step, metric(&e.eval))),
            _ => None,
        })
        .collect();
    let best = summary.best.expect("a best");
    let highest = evals.iter().map(|&(_, value)| value).fold(0.0, f64::max);
    assert_eq!(best.value, highest);
    assert_eq!(evals.iter().find(|&&(_, value)| value == highest).map(|&(step, _)| step), Some(best.step));
    assert!(best.step < summary.steps && evals.last().is_some_and(|&(_, value)| value < highest), "{evals:?}");

    let saved = evaluate_saved(out.path(), &corpus, plan.task, plan.batching, Subset::Held);
    assert_eq!(metric(&saved), highest);
    let kept = handbert::train::checkpoint::steps(out.path()).expect("listed");
    assert_eq!(kept, [best.step, summary.steps]);
    assert!(weights(out.path()) == weights(&out.path().join(format!("checkpoint-{}", best.step))));
    // What is on the disk is what the summary says.
    let on_disk = read_metrics(out.path()).expect("metrics");
    assert_eq!(on_disk.len(), summary.history.len());
    assert!(on_disk.iter().zip(&summary.history).all(|(a, b)| a.step() == b.step()));
}

#[test]
fn patience_ends_a_run_that_does_not_improve() {
    let corpus = corpus(100, 6);
    let out = tempfile::tempdir().expect("a directory");
    let mut plan = plan(Task::MLM, out.path().to_path_buf());
    plan.length = Length::Steps(1000);
    plan.policy.evaluate = Every::Steps(1);
    plan.policy.patience = Some(3);
    plan.policy.save_total_limit = Some(1);
    // Nothing moves, so nothing gets better after the first evaluation.
    plan.adam.learning_rate = 0.0;
    let model = start(config(corpus.tokenizer.vocab_size()), &plan.task);
    let summary = run(&cpu(), model, &corpus.set, &plan, &mut Silent).expect("a run");
    assert_eq!((summary.ended, summary.steps, summary.best.map(|b| b.step)), (Ended::OutOfPatience, 4, Some(1)));
    let (before, last) = (summary.evaluation_before.expect("made"), summary.evaluation.expect("made"));
    assert_eq!(before.loss(), last.loss());
}

#[test]
fn numbers_that_are_none_stop_the_run_and_spare_the_weights() {
    let corpus = corpus(100, 7);
    let out = tempfile::tempdir().expect("a directory");
    let mut plan = plan(Task::MLM, out.path().to_path_buf());
    plan.length = Length::Steps(100);
    let mut model = start(config(corpus.tokenizer.vocab_size()), &plan.task);
    let table = ParamTable::new(&model.config, Head::Mlm);
    let gamma = table.specs.iter().find(|spec| spec.hf_name.ends_with("output_layer_norm.weight")).expect("there");
    model.values[gamma.span.offset] = f32::NAN;
    let mut watcher = Watcher::default();
    let error = run(&cpu(), model, &corpus.set, &plan, &mut watcher).expect_err("no numbers");
    assert!(matches!(error, Error::Diverged { step: 10, count: 10, .. }), "{error}");
    assert!(error.to_string().contains("lower --learning-rate"), "{error}");
    assert_eq!(watcher.skipped, 10);
}

/// Steps of about one size, a learning rate that moves nothing far, and what is too large withheld.
fn guarded(out: &Path) -> TrainPlan {
    let mut plan = plan(Task::MLM, out.to_path_buf());
    plan.length = Length::Steps(40);
    plan.adam.learning_rate = 1e-6;
    plan.outliers = Outliers { max_loss: None, max_grad_norm: Some(1.0), window: 8 };
    plan
}

/// One record for each step.
fn steps(records: &[Record]) -> Vec<&handbert::train::StepRecord> {
    records.iter().filter_map(|record| if let Record::Step(step) = record { Some(step) } else { None }).collect()
}

#[test]
fn outliers_are_skipped_counted_and_shown() {
    let corpus = corpus(200, 12);
    let model = || start(config(corpus.tokenizer.vocab_size()), &Task::MLM);
    let out = tempfile::tempdir().expect("a directory");
    let mut watcher = Watcher::default();
    let summary = run(&cpu(), model(), &corpus.set, &guarded(out.path()), &mut watcher).expect("a run");
    // A deviation above the mean of eight: about every sixth of 32 steps.
    assert!((2..20).contains(&summary.outlier_steps), "{} outliers", summary.outlier_steps);
    assert_eq!((summary.steps, summary.skipped_steps, watcher.skipped), (40, summary.outlier_steps, watcher.skipped));
    assert_eq!(watcher.outliers, summary.outlier_steps);
    // A skipped step has no line of its own; the next one's counts it.
    let on_disk = read_metrics(out.path()).expect("metrics");
    let logged = steps(&on_disk);
    assert_eq!(logged.len() as u64, 40 - summary.outlier_steps);
    let last = logged.last().expect("a step");
    assert!(last.skipped + 1 >= summary.outlier_steps && logged[7].skipped == 0, "{last:?}");
    for pair in logged.windows(2) {
        assert_eq!(pair[1].step - pair[0].step, 1 + pair[1].skipped - pair[0].skipped, "{pair:?}");
    }

    // What is withheld is the outlier itself: with all of them withheld, nothing moves.
    let checkpoint = Checkpoint::latest(out.path()).expect("whole").expect("one");
    assert_eq!(u64::from(checkpoint.state.updates), 40 - summary.outlier_steps);
    let none = tempfile::tempdir().expect("a directory");
    let plan = TrainPlan { outliers: Outliers::IGNORED, ..guarded(none.path()) };
    let free = run(&cpu(), model(), &corpus.set, &plan, &mut Silent).expect("a run");
    assert_eq!((free.skipped_steps, free.outlier_steps), (0, 0));
    let (norms, all): (Vec<f64>, Vec<f64>) =
        (logged.iter().map(|s| s.grad_norm).collect(), steps(&free.history).iter().map(|s| s.grad_norm).collect());
    let mean = |x: &[f64]| x.iter().sum::<f64>() / x.len() as f64;
    assert!(mean(&norms) < mean(&all), "those that are left are the smaller ones");
    assert!(weights(out.path()) != weights(none.path()));
}

#[test]
fn a_guard_does_not_change_a_run_without_outliers() {
    let corpus = corpus(100, 14);
    let of = |outliers: Outliers| {
        let out = tempfile::tempdir().expect("a directory");
        let plan = TrainPlan { outliers, length: Length::Steps(12), ..guarded(out.path()) };
        let model = start(config(corpus.tokenizer.vocab_size()), &plan.task);
        let summary = run(&cpu(), model, &corpus.set, &plan, &mut Silent).expect("a run");
        (summary.skipped_steps, weights(out.path()))
    };
    let high = Outliers { max_loss: Some(1e6), max_grad_norm: Some(1e6), window: 4 };
    assert!(of(high) == of(Outliers::IGNORED));
}

#[test]
fn one_batch_is_learnt_by_heart_with_either_head() {
    let corpus = corpus(60, 15);
    for task in [Task::MLM, Task::CLASSIFIER] {
        let config = without_dropout(config(corpus.tokenizer.vocab_size()));
        let out = tempfile::tempdir().expect("a directory");
        let mut plan = plan(task.clone(), out.path().to_path_buf());
        plan.feed = Feed::FirstStep;
        plan.accumulation = 2;
        plan.adam.learning_rate = 3e-3;
        plan.length = Length::Steps(120);
        let summary = run(&cpu(), start(config, &task), &corpus.set, &plan, &mut Silent).expect("a run");
        let tokens: Vec<u64> = steps(&summary.history).windows(2).map(|p| p[1].tokens - p[0].tokens).collect();
        assert!(tokens.windows(2).all(|pair| pair[0] == pair[1]), "the same tokens in each step: {tokens:?}");
        assert!(summary.loss.is_some_and(|loss| loss < 0.05), "{task:?}: {:?}", summary.loss);
    }
}

#[test]
fn class_weights_shift_what_is_learned() {
    let corpus = corpus(100, 8);
    let rows_weigh = |class_weights: ClassWeights| {
        let plan = plan(weighted(class_weights), "unused".into());
        let group = groups(&corpus, &plan, 1).remove(0);
        let labels: Vec<i32> = group.micro.iter().flat_map(|m| m.batch.packed.labels.clone()).collect();
        let weights: Vec<f32> = group.micro.iter().flat_map(|m| m.label_weights.clone()).collect();
        (group.weight, labels, weights)
    };
    let (weight, labels, weights) = rows_weigh(ClassWeights::Equal);
    assert_eq!((weight, weights.len()), (labels.len() as f64, 0));
    let (weight, labels, weights) = rows_weigh(ClassWeights::Given(vec![0.5, 3.0]));
    let expected: Vec<f32> = labels.iter().map(|&label| if label == 1 { 3.0 } else { 0.5 }).collect();
    assert_eq!(weights, expected);
    assert_eq!(weight, expected.iter().map(|&w| f64::from(w)).sum::<f64>());
    // Balanced weights make every class weigh the same over the whole training side.
    // Of the postings that are trained on, that is: a limit counts.
    let mut plan = plan(weighted(ClassWeights::Balanced), "unused".into());
    for limit in [None, Some(37)] {
        plan.batching.limit = limit;
        let mut sums = [0.0f64; 2];
        for micro in groups(&corpus, &plan, 1).iter().flat_map(|group| &group.micro) {
            for (&label, &weight) in micro.batch.packed.labels.iter().zip(&micro.label_weights) {
                sums[label as usize] += f64::from(weight);
            }
        }
        assert!((sums[0] - sums[1]).abs() < 1e-4 * sums[0], "limit {limit:?}: {sums:?}");
    }
}

fn weighted(class_weights: ClassWeights) -> Task {
    Task::Classifier { positive: None, class_weights, label_smoothing: 0.0 }
}

#[test]
fn smoothed_labels_are_learnt_as_what_they_are_and_evaluated_as_labels() {
    let corpus = corpus(60, 16);
    let task = Task::Classifier { positive: None, class_weights: ClassWeights::Equal, label_smoothing: 0.2 };
    let config = without_dropout(config(corpus.tokenizer.vocab_size()));
    let out = tempfile::tempdir().expect("a directory");
    let mut plan = plan(task.clone(), out.path().to_path_buf());
    plan.feed = Feed::FirstStep;
    plan.adam.learning_rate = 3e-3;
    plan.length = Length::Steps(120);
    let summary = run(&cpu(), start(config, &task), &corpus.set, &plan, &mut Silent).expect("a run");
    // The best that can be said of a row are probabilities of 0.9 and 0.1.
    let least = -(0.9 * 0.9f64.ln() + 0.1 * 0.1f64.ln());
    let loss = summary.loss.expect("logged");
    assert!((least..least + 0.02).contains(&loss), "{loss} where {least} is the least");
}

#[test]
fn an_evaluation_is_the_same_however_it_is_batched() {
    let corpus = corpus(100, 9);
    let be = cpu();
    for task in [Task::MLM, Task::CLASSIFIER] {
        let from = start(config(corpus.tokenizer.vocab_size()), &task);
        let model = DistilBert::new(&be, from.config, from.head, &from.values).expect("a model");
        let unigram =
            Unigram::count(&corpus.set, Batching::default().split(), None, model.config.vocab_size).expect("counted");
        let eval = |batch_tokens: usize| {
            let batching = Batching { batch_tokens, max_length: 48, ..plan(task.clone(), "unused".into()).batching };
            let on = EvalPlan { task: task.clone(), batching, subset: Subset::Held, seed: 42 };
            let go_on = &mut |_, _| ControlFlow::Continue(());
            evaluate(&be, &model, &corpus.set, on, Some(&unigram), go_on).expect("fine").expect("not given up")
        };
        let (a, b) = (eval(64), eval(4096));
        assert!((a.loss() - b.loss()).abs() < 1e-5 * a.loss(), "{a:?} {b:?}");
        if let (EvalResult::Mlm(a), EvalResult::Mlm(b)) = (&a, &b) {
            assert_eq!((a.masked_tokens, a.perplexity_unigram), (b.masked_tokens, b.perplexity_unigram));
            let unigram = a.perplexity_unigram.expect("asked for");
            // An untrained model knows nothing; a unigram model knows which tokens are frequent.
            let uniform = corpus.tokenizer.vocab_size() as f64;
            assert!((a.perplexity / uniform - 1.0).abs() < 0.3 && unigram < 0.8 * uniform, "{a:?} of {uniform}");
        }
        if let (EvalResult::Classifier(a), EvalResult::Classifier(b)) = (&a, &b) {
            assert_eq!((a.rows, &a.confusion), (b.rows, &b.confusion));
        }
        let mut batches = 0;
        let plan = EvalPlan {
            task: task.clone(),
            batching: plan(task.clone(), "unused".into()).batching,
            subset: Subset::All,
            seed: 42,
        };
        let given_up = evaluate(&be, &model, &corpus.set, plan, None, &mut |done, total| {
            batches = done;
            assert!(total > 2);
            if done == 2 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        assert!(given_up.expect("fine").is_none() && batches == 2);
    }
}

#[test]
fn a_side_with_nothing_on_it_is_an_error() {
    let corpus = corpus(3, 10);
    let out = tempfile::tempdir().expect("a directory");
    let mut plan = plan(Task::MLM, out.path().join("run"));
    plan.policy.evaluate = Every::Epoch;
    plan.batching.validation_split_percentage = 0.001;
    let model = || start(config(corpus.tokenizer.vocab_size()), &Task::MLM);
    let error = run(&cpu(), model(), &corpus.set, &plan, &mut Silent).expect_err("nothing held out").to_string();
    assert!(error.contains("raise --validation-split-percentage"), "{error}");
    assert!(!plan.out.exists(), "a run that cannot begin leaves nothing behind");
    plan.policy.evaluate = Every::Never;
    plan.batching.limit = Some(0);
    let error = run(&cpu(), model(), &corpus.set, &plan, &mut Silent).expect_err("nothing to train on").to_string();
    assert!(error.contains("no posting is left to train on"), "{error}");
    let narrow = Config { vocab_size: 10, ..config(10) };
    let error = run(&cpu(), start(narrow, &Task::MLM), &corpus.set, &plan, &mut Silent).expect_err("ids beyond it");
    assert!(error.to_string().contains("tokenize with the model's tokenizer"), "{error}");
}
