//! A run that is killed a hundred times, each time in the middle of something.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use handbert::train::Record;
use handbert::train::checkpoint::{Checkpoint, directory};
use handbert::train::run_dir::read_metrics;

use super::support::{Run, arg, command, tiny};

const KILLS: usize = 100;
const STEPS: u64 = 560;
/// So near its end a run might get there before it is killed.
const NEAR_THE_END: u64 = STEPS - 80;
/// Kills on a machine that is so quick that it comes near the end before all of them.
const LEAST_KILLS: usize = 30;

/// What a run is doing when it is killed: so long after a line of its log, or after its start.
struct Moment {
    /// What the line says.
    after: Option<&'static str>,
    /// Up to so many milliseconds later.
    within: u64,
}

const MOMENTS: [Moment; 5] = [
    Moment { after: None, within: 120 },
    // A step is under way, or a save.
    Moment { after: Some(": epoch"), within: 12 },
    // The model is about to be replaced, the checkpoint to be written.
    Moment { after: Some("held out"), within: 12 },
    Moment { after: Some("model ->"), within: 12 },
    // An older checkpoint is about to be deleted.
    Moment { after: Some("saved"), within: 3 },
];

fn train(out: &Path, more: &[&str]) -> Command {
    let t = tiny();
    let mut command = command();
    command.args(["train", "mlm", "--config", arg(&t.config), "--data", arg(&t.tokens), "--out", arg(out)]);
    command.args(["--batch-tokens", "128", "--max-length", "64", "--learning-rate", "1e-3", "--limit", "60"]);
    command.args(["--max-steps", &STEPS.to_string(), "--eval-steps", "7", "--logging-steps", "1"]);
    command.args(["--save-total-limit", "2", "--validation-split-percentage", "20"]).args(more).stdin(Stdio::null());
    command
}

/// Begins the run or goes on with it, as a user would.
fn begin(out: &Path) -> Child {
    let more: &[&str] = if Checkpoint::latest(out).expect("whole").is_some() {
        &["--save-steps", "2", "--resume"]
    } else {
        &["--save-steps", "2", "--overwrite"]
    };
    train(out, more).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("the binary starts")
}

/// Kills a run at such a moment.
fn kill(mut child: Child, moment: &Moment, random: &mut u64) {
    let mut log = BufReader::new(child.stderr.take().expect("stderr is piped"));
    if let Some(said) = moment.after {
        let (mut line, mut all) = (String::new(), String::new());
        while !line.contains(said) {
            all += &line;
            line.clear();
            assert!(log.read_line(&mut line).expect("text") > 0, "ended without a word of {said:?}: {all}");
        }
    }
    *random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    std::thread::sleep(Duration::from_micros((*random >> 33) % (1000 * moment.within)));
    child.kill().expect("killed");
    let status = child.wait().expect("ended");
    assert_eq!(status.code(), None, "it was to die, and ended by itself");
}

/// A directory in memory where there is one: a process that dies leaves the same there as on a disk, which takes its
/// time where it is told to sync thousands of times.
fn in_memory() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    let dir = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
    dir.expect("a directory")
}

/// Losses of all logged steps and evaluations, to the bit.
fn losses(out: &Path) -> Vec<(u64, u64)> {
    let loss = |record: &Record| match record {
        Record::Step(step) => (step.step, step.loss.to_bits()),
        Record::Eval(eval) => (eval.step, eval.eval.loss().to_bits()),
    };
    read_metrics(out).expect("metrics").iter().map(loss).collect()
}

#[cfg(unix)]
#[test]
fn a_hundred_kills_cost_no_checkpoint_and_no_bit() {
    let dir = in_memory();
    let (whole, killed) = (dir.path().join("whole"), dir.path().join("killed"));
    Run::of(&mut train(&whole, &[])).exits(0);

    let (mut random, mut newest, mut in_a_save, mut kills) = (1, 0, 0, 0);
    while kills < KILLS && newest < NEAR_THE_END {
        kill(begin(&killed), &MOMENTS[kills % MOMENTS.len()], &mut random);
        kills += 1;
        let step = Checkpoint::latest(&killed).unwrap_or_else(|e| panic!("kill {kills}: {e}"));
        let step = step.map_or(0, |checkpoint| checkpoint.state.step);
        assert!(step >= newest, "kill {kills}: step {newest} was saved, and step {step} is left");
        newest = step;
        in_a_save += usize::from(left_over(&killed));
    }
    eprintln!("killed {kills} times at steps up to {newest}, {in_a_save} times in the middle of a save");
    assert!(newest > 20 && newest < STEPS && kills >= LEAST_KILLS, "at step {newest} after {kills} kills");
    assert!(in_a_save > 0, "none of {kills} kills came in the middle of a save");

    Run::of(&mut train(&killed, &["--resume"])).exits(0);
    let last = |run: &Path, name: &str| std::fs::read(directory(run, STEPS).join(name)).expect("a checkpoint");
    for name in ["model.safetensors", "handbert_state.safetensors"] {
        assert!(last(&whole, name) == last(&killed, name), "{name} differs");
    }
    let best = |run: &Path| std::fs::read(run.join("model.safetensors")).expect("a model");
    assert!(best(&whole) == best(&killed), "the best model differs");
    assert_eq!(losses(&whole), losses(&killed));
    assert!(!left_over(&killed), "what was half done is gone");
    let kept = handbert::train::checkpoint::steps(&killed).expect("listed");
    assert!(kept.len() <= 2, "{kept:?} where 2 are to be kept");
}

/// Whether something lies there under a temporary name.
fn left_over(run: &Path) -> bool {
    let names = std::fs::read_dir(run).into_iter().flatten().map(|e| e.expect("an entry").file_name());
    names
        .map(|name| name.to_string_lossy().into_owned())
        .any(|name| name.contains(".partial") || name.contains(".leaving"))
}
