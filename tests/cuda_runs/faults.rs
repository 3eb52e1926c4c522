//! Whatever a device does, an error says what happened, and what was saved is whole: a run goes on from it to the same bits.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use handbert::backend::cuda::CudaBackend;
use handbert::model::Config;
use handbert::train::checkpoint::Checkpoint;
use handbert::train::{Ended, Error, Length, Result, Start, Summary, Task, TrainPlan, run};

use crate::faulty_device::{Call, Fault, FaultyDevice, Trouble};
use crate::support::training::{self, Corpus, Watcher, config, corpus, cpu, start};
use crate::{Left, fresh, left, sim_device, six_steps, steps};

/// A run directory where two steps of a model of one block were saved.
struct Saved {
    corpus: Corpus,
    dir: tempfile::TempDir,
    plan: fn(&Path) -> TrainPlan,
}

/// Small batches: dozens of runs are made with them.
fn small(out: &Path) -> TrainPlan {
    let mut plan = six_steps(out);
    plan.batching.batch_tokens = 64;
    plan
}

/// The same, and long enough to be given up.
fn long(out: &Path) -> TrainPlan {
    TrainPlan { length: Length::Steps(40), ..small(out) }
}

impl Saved {
    fn new(plan: fn(&Path) -> TrainPlan) -> Self {
        let (corpus, dir) = (corpus(30, 8), tempfile::tempdir().expect("a directory"));
        let two = &mut Watcher::stopping_after(2);
        let one_block = Config { n_layers: 1, ..config(corpus.tokenizer.vocab_size()) };
        run(&cpu(), start(one_block, &Task::MLM), &corpus.set, &plan(dir.path()), two).expect("two steps");
        Saved { corpus, dir, plan }
    }

    fn copy(&self) -> tempfile::TempDir {
        let out = tempfile::tempdir().expect("a directory");
        training::copy(self.dir.path(), out.path());
        out
    }

    /// Goes on in `out` on a device with this fault, and says which calls it made.
    fn go_on(&self, out: &Path, fault: Option<Fault>, watcher: &mut Watcher) -> Option<(Result<Summary>, Vec<Call>)> {
        let be = match CudaBackend::new(FaultyDevice::new(fault, Box::new(|_, _| Ok(())))?) {
            Ok(be) => be,
            Err(error) => return Some((Err(error.into()), Vec::new())),
        };
        let from = Start::resume(out).expect("a checkpoint");
        let outcome = run(&be, from, &self.corpus.set, &(self.plan)(out), watcher);
        let calls = be.device().calls().clone();
        Some((outcome, calls))
    }
}

/// Which calls of a run that goes on for two steps belong to what.
struct Phases {
    names: [&'static str; 6],
    ranges: [Range<usize>; 6],
}

impl Phases {
    fn of(calls: &[Call]) -> Phases {
        let first = |call| calls.iter().position(|&c| c == call).expect("made");
        let after = |call| calls.iter().rposition(|&c| c == call).expect("made") + 1;
        let ends = [
            first(Call::Launch),
            first(Call::Recorded),
            after(Call::Recorded),
            after(Call::Replay),
            after(Call::Launch),
            calls.len(),
        ];
        assert!(ends.is_sorted(), "{ends:?}");
        let begin = |i: usize| if i == 0 { 0 } else { ends[i - 1] };
        Phases {
            names: ["set-up", "first step", "recording", "replay", "evaluation", "saving"],
            ranges: std::array::from_fn(|i| begin(i)..ends[i]),
        }
    }

    fn name(&self, call: usize) -> &'static str {
        let at = self.ranges.iter().position(|range| range.contains(&call)).expect("within the run");
        self.names[at]
    }
}

/// At most `most` of them: the first, the last, and evenly between.
fn spread(all: Vec<usize>, most: usize) -> Vec<usize> {
    match all.len() {
        len if len <= most => all,
        len => (0..most).map(|i| all[i * (len - 1) / (most - 1)]).collect(),
    }
}

/// Every allocation, and places in every phase for the rest.
fn faults(calls: &[Call], phases: &Phases) -> Vec<Fault> {
    let of = |trouble: Trouble, at: Vec<usize>| at.into_iter().map(move |at| Fault { trouble, at });
    let numbers = |range: Range<usize>, wanted: &[Call]| -> Vec<usize> {
        range.filter(|&number| wanted.is_empty() || wanted.contains(&calls[number])).collect()
    };
    let mut faults: Vec<Fault> = of(Trouble::NoMemory, numbers(0..calls.len(), &[Call::Allocation])).collect();
    for range in &phases.ranges {
        let launches = numbers(range.clone(), &[Call::Launch, Call::Recorded, Call::Replay]);
        faults.extend(of(Trouble::NoLaunch, spread(launches, 5)));
        faults.extend(of(Trouble::Lost, spread(numbers(range.clone(), &[]), 4)));
    }
    faults
}

/// What has to stand in the error.
fn says(trouble: Trouble, call: Call) -> [&'static str; 2] {
    match (trouble, call) {
        (Trouble::NoMemory, _) => ["out of GPU memory for", "--batch-tokens"],
        (Trouble::NoLaunch, Call::Replay) => ["a recording that does not start", "the last checkpoint is whole"],
        (Trouble::NoLaunch, _) => ["<<<", "a launch that fails"],
        _ => ["the device is lost", "the last checkpoint is whole"],
    }
}

#[test]
fn whatever_a_device_does_the_last_checkpoint_is_whole() {
    let saved = Saved::new(small);
    let before = left(saved.dir.path(), 2);
    let whole = saved.copy();
    let two = || Watcher::stopping_after(2);
    let Some((outcome, calls)) = saved.go_on(whole.path(), None, &mut two()) else { return };
    assert_eq!(outcome.expect("two more steps").ended, Ended::Stopped);
    let expected = left(whole.path(), 4);
    let phases = Phases::of(&calls);
    let mut met = BTreeMap::<_, usize>::new();
    for fault in faults(&calls, &phases) {
        let out = saved.copy();
        let Some((outcome, _)) = saved.go_on(out.path(), Some(fault), &mut two()) else { return };
        let place = (format!("{:?}", fault.trouble), phases.name(fault.at));
        let error = outcome.expect_err("a fault").to_string();
        let wanted = says(fault.trouble, calls[fault.at]);
        assert!(wanted.iter().all(|part| error.contains(part)), "{fault:?} in {place:?}: {error}");

        let Checkpoint { state, .. } = Checkpoint::latest(out.path()).expect("whole").expect("there");
        assert!(state.step >= 2, "{fault:?}");
        assert!(left(out.path(), 2).same_model(&before), "{fault:?}");
        // From the first fault of each kind in each phase, on to the end.
        let times = met.entry(place).or_default();
        *times += 1;
        if *times == 1 {
            let (outcome, _) = saved.go_on(out.path(), None, &mut two()).expect("there was one before");
            outcome.expect("two more steps");
            assert!(left(out.path(), 4) == expected, "{fault:?}: on from the checkpoint");
        }
    }
    let of = |trouble: &str| met.iter().filter(|((t, _), _)| t == trouble).map(|(_, n)| n).sum::<usize>();
    println!("faults met: {met:?}");
    assert_eq!(of("NoMemory"), calls.iter().filter(|&&call| call == Call::Allocation).count());
    assert!(of("NoMemory") >= 15 && of("NoLaunch") >= 15 && of("Lost") >= 20, "{met:?}");
    assert_eq!(met.keys().filter(|(trouble, _)| trouble == "Lost").count(), phases.names.len());
}

/// Of checkpoint 2, the number of a call that begins a pass of step 3.
fn first_pass(saved: &Saved) -> Option<usize> {
    let out = saved.copy();
    let (_, calls) = saved.go_on(out.path(), None, &mut Watcher::stopping_after(1))?;
    calls.iter().position(|&call| call == Call::Pass)
}

#[test]
fn steps_without_numbers_change_nothing_and_a_run_goes_on_after_them() {
    let saved = Saved::new(small);
    let Some(at) = first_pass(&saved) else { return };
    let out = saved.copy();
    // Steps 3 and 4, two batches each.
    let fault = Fault { trouble: Trouble::NoNumber { passes: 4 }, at };
    let mut watcher = Watcher::default();
    let (outcome, _) = saved.go_on(out.path(), Some(fault), &mut watcher).expect("there was one before");
    let summary = outcome.expect("a run");
    assert_eq!((summary.ended, summary.steps), (Ended::Finished, 6));
    assert_eq!((summary.skipped_steps, watcher.skipped), (2, 2));
    let [two, four, six] = [2, 4, 6].map(|step| left(out.path(), step));
    assert!(four.same_model(&two) && !six.same_model(&two));
}

#[test]
fn ten_steps_without_numbers_end_a_run_and_spare_what_was_saved() {
    let saved = Saved::new(long);
    let Some(at) = first_pass(&saved) else { return };
    let (out, before) = (saved.copy(), left(saved.dir.path(), 2));
    let fault = Fault { trouble: Trouble::NoNumber { passes: usize::MAX }, at };
    let mut watcher = Watcher::default();
    let (outcome, _) = saved.go_on(out.path(), Some(fault), &mut watcher).expect("there was one before");
    let error = outcome.expect_err("given up");
    assert!(matches!(error, Error::Diverged { step: 12, count: 10, .. }), "{error}");
    assert_eq!(watcher.skipped, 10);
    let Checkpoint { state, .. } = Checkpoint::latest(out.path()).expect("whole").expect("there");
    assert!(left(out.path(), state.step).same_model(&before), "the checkpoint of step {}", state.step);
}

/// Not the device's fault, but the learning rate's: the loss itself is no number.
#[test]
fn a_run_that_diverges_skips_counts_and_ends() {
    let Some(be) = sim_device::backend() else { return };
    let corpus = corpus(60, 9);
    let out = tempfile::tempdir().expect("a directory");
    let mut plan = steps(&Task::MLM, out.path(), 40);
    plan.adam.learning_rate = 1e30;
    plan.adam.max_grad_norm = 0.0;
    let watcher = &mut Watcher::default();
    let error = run(&be, fresh(&corpus, &Task::MLM), &corpus.set, &plan, watcher).expect_err("it diverges");
    assert!(matches!(error, Error::Diverged { count: 10, loss, .. } if loss.is_nan()), "{error}");
    assert_eq!(watcher.skipped, 10);
}

impl Left {
    /// Whether weights and moments are the same.
    fn same_model(&self, other: &Left) -> bool {
        self.checkpoint == other.checkpoint && self.moments == other.moments
    }
}
