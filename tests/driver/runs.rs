//! Whole runs on the device as it ships: they leave the bits of the simulated device, recorded or launch by launch, and what
//! was saved is whole when the device is lost.

use std::path::Path;

use handbert::backend::cuda::CudaBackend;
use handbert::backend::cuda::choice::{Choices, Origin};
use handbert::backend::cuda::device::Device;
use handbert::backend::cuda::driver::Gpu;
use handbert::train::checkpoint::{Checkpoint, directory};
use handbert::train::run_dir::read_metrics;
use handbert::train::{Every, Length, Record, Replay, Result, Start, Summary, Task, TrainPlan, run};

use crate::sim_device::SimDevice;
use crate::stand_in::StandIn;
use crate::training::{Corpus, Watcher, corpus, plan, start, weights};

/// What a run leaves, bit for bit.
#[derive(PartialEq)]
struct Left {
    weights: Vec<u8>,
    moments: Vec<u8>,
    losses: Vec<u64>,
}

impl Left {
    fn by(out: &Path, step: u64) -> Left {
        let last = directory(out, step);
        let loss = |record: &Record| match record {
            Record::Step(step) => step.loss.to_bits(),
            Record::Eval(eval) => eval.eval.loss().to_bits(),
        };
        Left {
            weights: weights(&last),
            moments: std::fs::read(last.join("handbert_state.safetensors")).expect("moments"),
            losses: read_metrics(out).expect("metrics").iter().map(loss).collect(),
        }
    }
}

/// A task, and how it is computed.
#[derive(Clone)]
struct Made {
    task: Task,
    steps: u64,
    accumulation: usize,
    origin: Origin,
    replay: Replay,
}

impl Made {
    fn mlm() -> Made {
        Made { task: Task::MLM, steps: 4, accumulation: 2, origin: Origin::Mma, replay: Replay::WhenItCan }
    }

    /// An evaluation and a checkpoint after every other step.
    fn plan(&self, out: &Path) -> TrainPlan {
        let mut plan = plan(self.task.clone(), out.to_path_buf());
        plan.batching.batch_tokens = 64;
        plan.length = Length::Steps(self.steps);
        plan.accumulation = self.accumulation;
        plan.policy.evaluate = Every::Steps(2);
        plan.replay = self.replay;
        plan
    }

    fn go<D: Device>(&self, device: D, corpus: &Corpus, out: &Path, watcher: &mut Watcher) -> Result<Summary>
    where
        D::Buffer: 'static,
    {
        let be = CudaBackend::new(device)?.choosing(Choices::first(self.origin));
        let from = match Checkpoint::latest(out).expect("whole") {
            Some(_) => Start::resume(out).expect("a checkpoint"),
            None => start(crate::one_block(corpus), &self.task),
        };
        run(&be, from, &corpus.set, &self.plan(out), watcher)
    }

    fn left_on<D: Device>(&self, device: D, corpus: &Corpus) -> Left
    where
        D::Buffer: 'static,
    {
        let out = tempfile::tempdir().expect("a directory");
        self.go(device, corpus, out.path(), &mut Watcher::default()).expect("a run");
        Left::by(out.path(), self.steps)
    }
}

/// That it is the same on the simulated device and on the stand-in, which is as if new afterwards.
fn is_the_same(stand_in: &StandIn, ways: &[Made]) {
    let corpus = corpus(30, 6);
    let simulated = ways[0].left_on(SimDevice::new(1).expect("a compiler was there"), &corpus);
    for way in ways {
        assert!(simulated == way.left_on(Gpu::new(0).expect("the stand-in"), &corpus), "{:?}", way.replay);
        stand_in.is_content();
    }
}

#[test]
fn a_run_has_the_bits_of_the_simulated_device_recorded_or_not() {
    let Some(stand_in) = StandIn::take() else { return };
    let recorded = Made::mlm();
    is_the_same(&stand_in, &[recorded.clone(), Made { replay: Replay::Never, ..recorded }]);
}

#[test]
fn so_has_a_classifier() {
    let Some(stand_in) = StandIn::take() else { return };
    // Outcomes are there at once, or not before they are waited for.
    for polls in [0, 1 << 40] {
        stand_in.set("polls", polls);
        is_the_same(&stand_in, &[Made { task: Task::CLASSIFIER, steps: 2, accumulation: 1, ..Made::mlm() }]);
    }
}

#[test]
fn so_has_a_run_on_hopper() {
    let Some(stand_in) = StandIn::take() else { return };
    stand_in.set("capability", 90);
    is_the_same(&stand_in, &[Made { steps: 2, accumulation: 1, origin: Origin::Wgmma, ..Made::mlm() }]);
}

#[test]
fn a_run_whose_device_is_lost_goes_on_from_its_last_checkpoint() {
    let Some(stand_in) = StandIn::take() else { return };
    let (corpus, made) = (corpus(30, 6), Made::mlm());
    let gpu = || Gpu::new(0).expect("the stand-in");
    let whole = made.left_on(gpu(), &corpus);
    let of_whole = stand_in.performed();
    let out = tempfile::tempdir().expect("a directory");
    made.go(gpu(), &corpus, out.path(), &mut Watcher::stopping_after(2)).expect("two steps");
    stand_in.is_content();
    let rest = 2 * of_whole - stand_in.performed();
    let gpu = gpu();
    stand_in.set("lose_device", rest / 2);
    let error = made.go(gpu, &corpus, out.path(), &mut Watcher::default()).expect_err("it is lost").to_string();
    let told = ["Stand-in GPU 0", "CUDA_ERROR_ILLEGAL_ADDRESS", "the last checkpoint is whole"];
    assert!(told.iter().all(|part| error.contains(part)), "{error}");
    // As if the process had begun anew.
    drop(stand_in);
    let Some(stand_in) = StandIn::take() else { return };
    made.go(Gpu::new(0).expect("the stand-in"), &corpus, out.path(), &mut Watcher::default()).expect("the rest");
    assert!(whole == Left::by(out.path(), made.steps));
    stand_in.is_content();
}
