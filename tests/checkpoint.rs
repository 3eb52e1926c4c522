//! What lies in a run directory: whole, or refused by name.

mod support {
    pub mod training;
}

use std::path::{Path, PathBuf};

use handbert::train::checkpoint::{Checkpoint, directory, steps};
use handbert::train::run_dir::{Opening, RunDir, read_metrics};
use handbert::train::{Ended, Event, Every, Length, Observer, Occupied, Record, Silent, Start, Task, run};
use support::training::{Corpus, Watcher, config, corpus, cpu, plan, start, weights};

/// A run of two saved steps.
fn run_of_two(corpus: &Corpus, out: &Path) {
    let mut plan = plan(Task::MLM, out.to_path_buf());
    plan.length = Length::Steps(2);
    plan.policy.save_steps = Some(1);
    let mut watcher = Watcher::default();
    run(&cpu(), start(config(corpus.tokenizer.vocab_size()), &Task::MLM), &corpus.set, &plan, &mut watcher)
        .expect("a run");
    assert_eq!(watcher.saved, [directory(out, 1), directory(out, 2)]);
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(dir).expect("listed").map(|e| e.expect("an entry").path()).collect();
    files.sort();
    files
}

#[test]
fn every_flipped_byte_and_every_missing_file_is_noticed() {
    let corpus = corpus(40, 1);
    let out = tempfile::tempdir().expect("a directory");
    run_of_two(&corpus, out.path());
    let newest = directory(out.path(), 2);
    let whole = files(&newest);
    assert!(whole.len() >= 7, "{whole:?}");
    let advice = "delete checkpoint-2 to go on from checkpoint-1";
    for file in &whole {
        let name = file.file_name().expect("a name").to_str().expect("text");
        let bytes = std::fs::read(file).expect("read");
        for place in [0, bytes.len() / 3, bytes.len() / 2, bytes.len() - 1] {
            let mut flipped = bytes.clone();
            flipped[place] ^= 1;
            std::fs::write(file, &flipped).expect("written");
            let error = Start::resume(out.path()).expect_err(name).to_string();
            assert!(error.contains(name) && error.contains(advice), "byte {place} of {name}: {error}");
        }
        std::fs::write(file, &bytes[..bytes.len() / 2]).expect("written");
        assert!(Start::resume(out.path()).expect_err(name).to_string().contains(name));
        std::fs::remove_file(file).expect("removed");
        assert!(Start::resume(out.path()).expect_err(name).to_string().contains(name));
        std::fs::write(file, bytes).expect("written");
    }
    Start::resume(out.path()).expect("whole again");
    std::fs::remove_dir_all(&newest).expect("removed");
    assert_eq!(Start::resume(out.path()).expect("the one before").checkpoint.map(|c| c.state.step), Some(1));
}

#[test]
fn a_checkpoint_is_a_model_directory() {
    let corpus = corpus(40, 2);
    let out = tempfile::tempdir().expect("a directory");
    run_of_two(&corpus, out.path());
    for dir in [out.path().to_path_buf(), directory(out.path(), 2)] {
        let loaded = handbert::model::hub::load(&dir, &handbert::model::hub::Wanted::AsSaved, 0).expect("a model");
        assert!(loaded.fresh.is_empty());
        let tokenizer = handbert::data::tokenizer::Tokenizer::load(&dir).expect("a tokenizer");
        assert_eq!(tokenizer.fingerprint(), corpus.tokenizer.fingerprint());
    }
    assert!(weights(out.path()) == weights(&directory(out.path(), 2)), "without evaluations, the last is the best");
}

#[test]
fn what_a_crash_leaves_behind_is_no_checkpoint() {
    let corpus = corpus(40, 3);
    let out = tempfile::tempdir().expect("a directory");
    run_of_two(&corpus, out.path());
    std::fs::create_dir(out.path().join(".checkpoint-3.partial")).expect("made");
    std::fs::write(out.path().join("metrics.jsonl"), {
        let text = std::fs::read_to_string(out.path().join("metrics.jsonl")).expect("read");
        text + "{\"step\":3,\"epo"
    })
    .expect("written");
    assert_eq!(steps(out.path()).expect("listed"), [1, 2]);
    assert_eq!(read_metrics(out.path()).expect("the whole lines").len(), 2);
    Start::resume(out.path()).expect("whole");
}

/// Puts a file where the next checkpoint's directory would be made: that write fails, whoever runs the test.
struct Blocks(PathBuf);

impl Observer for Blocks {
    fn on(&mut self, event: Event<'_>) {
        if let Event::Step(_) = event {
            std::fs::write(&self.0, "in the way").expect("written");
        }
    }
}

#[test]
fn a_failed_save_names_the_file_and_leaves_the_checkpoint_before() {
    let corpus = corpus(40, 4);
    let out = tempfile::tempdir().expect("a directory");
    run_of_two(&corpus, out.path());
    std::fs::remove_dir_all(directory(out.path(), 2)).expect("removed");
    let mut plan = plan(Task::MLM, out.path().to_path_buf());
    plan.length = Length::Steps(2);
    plan.policy.save_steps = Some(1);
    let from = Start::resume(out.path()).expect("checkpoint-1");
    let mut blocks = Blocks(out.path().join(".checkpoint-2.partial"));
    let error = run(&cpu(), from, &corpus.set, &plan, &mut blocks).expect_err("blocked").to_string();
    for part in ["step 2 could not be saved", ".checkpoint-2.partial", "checkpoint-1 is whole", "--resume"] {
        assert!(error.contains(part), "{part}: {error}");
    }
    assert_eq!(Checkpoint::latest(out.path()).expect("whole").map(|c| c.state.step), Some(1));
}

#[test]
fn saving_the_same_step_again_replaces_what_it_knew_of_the_run_and_nothing_else() {
    let corpus = corpus(40, 6);
    let out = tempfile::tempdir().expect("a directory");
    let mut plan = plan(Task::MLM, out.path().to_path_buf());
    plan.length = Length::Steps(1);
    plan.policy.evaluate = Every::Epoch;
    let model = start(config(corpus.tokenizer.vocab_size()), &Task::MLM);
    // Stopped in the evaluation after the step: the checkpoint owes it.
    let mut watcher = Watcher::stopping_after(1);
    run(&cpu(), model, &corpus.set, &plan, &mut watcher).expect("a sitting");
    let dir = directory(out.path(), 1);
    assert!(Checkpoint::open(&dir).expect("whole").state.evaluation_due);
    // A directory that nothing is put into or renamed to can only have had its run.json replaced.
    let marker = dir.join("of the user");
    std::fs::write(&marker, "mine").expect("written");
    let summary = run(&cpu(), Start::resume(out.path()).expect("a checkpoint"), &corpus.set, &plan, &mut Silent);
    assert_eq!(summary.expect("a run").ended, Ended::Finished);
    assert!(!Checkpoint::open(&dir).expect("whole").state.evaluation_due && marker.exists());
    assert!(files(out.path()).iter().all(|file| !file.to_string_lossy().contains(".partial")));
}

#[test]
fn what_a_killed_sitting_was_to_delete_goes_with_the_next() {
    let corpus = corpus(40, 7);
    let out = tempfile::tempdir().expect("a directory");
    let mut plan = plan(Task::MLM, out.path().to_path_buf());
    plan.length = Length::Steps(4);
    plan.policy.save_steps = Some(1);
    plan.policy.save_total_limit = Some(2);
    let model = start(config(corpus.tokenizer.vocab_size()), &Task::MLM);
    run(&cpu(), model, &corpus.set, &plan, &mut Watcher::stopping_after(3)).expect("a sitting");
    assert_eq!(steps(out.path()).expect("listed"), [2, 3]);
    support::training::copy(&directory(out.path(), 3), &directory(out.path(), 1));
    for left in [".checkpoint-1.leaving", ".checkpoint-4.partial"] {
        support::training::copy(&directory(out.path(), 2), &out.path().join(left));
    }
    run(&cpu(), Start::resume(out.path()).expect("a checkpoint"), &corpus.set, &plan, &mut Silent).expect("a run");
    assert_eq!(steps(out.path()).expect("listed"), [3, 4]);
    assert!(files(out.path()).iter().all(|file| !file.to_string_lossy().contains("/.checkpoint")));
}

#[test]
fn an_evaluation_that_is_made_again_stands_once() {
    let corpus = corpus(120, 5);
    let out = tempfile::tempdir().expect("a directory");
    let mut plan = plan(Task::MLM, out.path().to_path_buf());
    (plan.length, plan.policy.evaluate) = (Length::Steps(2), Every::Steps(2));
    plan.batching.validation_split_percentage = 20.0;
    let fresh = start(config(corpus.tokenizer.vocab_size()), &Task::MLM);
    run(&cpu(), fresh, &corpus.set, &plan, &mut Silent).expect("a run");
    let evaluations = |evaluation_due| {
        drop(RunDir::claim(out.path(), Opening::Resume { step: 2, evaluation_due }).expect("free"));
        let records = read_metrics(out.path()).expect("whole");
        records.iter().filter(|record| matches!(record, Record::Eval(_))).map(Record::step).collect::<Vec<_>>()
    };
    assert_eq!(evaluations(false), [0, 2]);
    assert_eq!(evaluations(true), [0]);
}

#[test]
fn two_runs_do_not_share_a_directory() {
    let out = tempfile::tempdir().expect("a directory");
    let held = RunDir::claim(out.path(), Opening::Fresh(Occupied::Refuse)).expect("free");
    let error = RunDir::claim(out.path(), Opening::Fresh(Occupied::Refuse)).expect_err("held").to_string();
    assert!(error.contains("another run is writing there"), "{error}");
    drop(held);
    RunDir::claim(out.path(), Opening::Fresh(Occupied::Refuse)).expect("free again");
    assert_eq!(files(out.path()), Vec::<PathBuf>::new());
}

#[test]
fn only_a_run_is_overwritten_and_only_what_it_wrote() {
    let corpus = corpus(40, 5);
    let out = tempfile::tempdir().expect("a directory");
    let claim = |occupied| RunDir::claim(out.path(), Opening::Fresh(occupied)).map(drop).map_err(|e| e.to_string());
    std::fs::write(out.path().join("thesis.txt"), "mine").expect("written");
    assert!(claim(Occupied::Refuse).expect_err("not empty").contains("it holds thesis.txt"));
    assert!(claim(Occupied::Overwrite).expect_err("no run").contains("holds no run that could be overwritten"));
    std::fs::remove_file(out.path().join("thesis.txt")).expect("removed");

    run_of_two(&corpus, out.path());
    let error = claim(Occupied::Refuse).expect_err("a run");
    assert!(error.contains("--resume") && error.contains("--overwrite"), "{error}");
    std::fs::write(out.path().join("thesis.txt"), "mine").expect("written");
    claim(Occupied::Overwrite).expect("a run");
    assert_eq!(files(out.path()), [out.path().join("thesis.txt")]);
}
