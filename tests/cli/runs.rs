//! Run directories and data that cannot be used, as a user meets them: nothing that was written is lost.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use handbert::train::checkpoint::Checkpoint;

use super::skip::skipped;
use super::support::{Run, arg, command, copy_dir, handbert, scratch, tiny};

/// Small steps on a token set.
fn train(data: &Path, out: &Path, more: &[&str]) -> Command {
    let mut command = command();
    command.args(["train", "mlm", "--config", arg(&tiny().config), "--data", arg(data), "--out", arg(out)]);
    command.args(["--batch-tokens", "256", "--max-length", "64", "--eval-strategy", "no"]).args(more);
    command.stdin(Stdio::null());
    command
}

fn resume(out: &Path) -> Run {
    handbert(["train", "mlm", "--out", arg(out), "--resume"])
}

/// Waits until something is there.
fn wait_for(what: &Path) {
    let began = Instant::now();
    while !what.exists() {
        assert!(began.elapsed() < Duration::from_secs(60), "no {} in a minute", what.display());
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn a_second_run_in_the_same_directory_is_refused_and_the_first_goes_on() {
    let dir = scratch("second-run");
    let out = dir.join("run");
    let postings = arg(&tiny().postings);
    let first = train(&tiny().tokens, &out, &["--max-steps", "5000", "--save-steps", "5"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let mut first = first.expect("the binary starts");
    wait_for(&out.join("checkpoint-5"));
    let says = ["run: another run is writing there", "name another --out"];
    resume(&out).exits(2).says(&says);
    // Not even the token set of the first is touched.
    let model = ["train", "mlm", "--model", arg(&tiny().mlm), "--data", postings, "--out", arg(&out)];
    handbert(model.into_iter().chain(["--overwrite"])).exits(2).says(&says);
    assert!(!out.join("tokens").exists());
    assert!(first.try_wait().expect("asked").is_none(), "the first goes on");
    first.kill().expect("killed");
    first.wait().expect("ended");
    // The lock of a dead process holds nobody back.
    let step = Checkpoint::latest(&out).expect("whole").expect("one").state.step;
    assert!(step >= 5);
    resume_to(&out, step + 1);
}

/// Goes on with a run until it has saved this step.
fn resume_to(out: &Path, step: u64) {
    let mut child = command()
        .args(["train", "mlm", "--out", arg(out), "--resume", "--save-steps", "1"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the binary starts");
    wait_for(&out.join(format!("checkpoint-{step}")));
    child.kill().expect("killed");
    child.wait().expect("ended");
}

/// A copy of the tiny token set.
fn set(dir: &Path) -> PathBuf {
    let set = dir.join("set");
    copy_dir(&tiny().tokens, &set);
    set
}

#[test]
fn data_that_changes_under_a_run_stops_it_before_it_saves() {
    let dir = scratch("changed-data");
    let (set, out) = (set(&dir), dir.join("run"));
    let child = train(&set, &out, &["--max-steps", "5000", "--save-steps", "5"])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary starts");
    wait_for(&out.join("checkpoint-5"));
    let tokens = set.join("tokens-00000.bin");
    let good = std::fs::read(&tokens).expect("read");
    // In place: a file that is emptied first is a bad memory access for whoever has it mapped.
    let mut file = OpenOptions::new().write(true).open(&tokens).expect("opened");
    file.write_all(&[good[0] ^ 1]).expect("written");
    drop(file);
    let run = Run::ended(child.wait_with_output().expect("ended")).exits(2);
    let last = Checkpoint::latest(&out).expect("whole").expect("one").state.step;
    let back = format!("go on from checkpoint-{last} with --resume");
    let run = run.says(&["tokens-00000.bin: was changed under the run", &back]);
    assert!(!run.err.contains("cannot be read"), "{run:?}");

    // Nor does a run go on with it: every byte is read where a file is not as it was left.
    resume(&out).exits(2).says(&["tokens-00000.bin", "its contents have changed"]);
    std::fs::write(&tokens, &good).expect("written");
    resume_to(&out, last + 1);
    // A set that was cut short is noticed when it is opened.
    std::fs::write(&tokens, &good[..good.len() - 2]).expect("written");
    resume(&out).exits(2).says(&["tokens-00000.bin", "bytes, expected"]);
}

#[test]
fn other_data_under_the_same_name_is_refused_on_resuming() {
    let dir = scratch("other-data");
    let (set, out) = (set(&dir), dir.join("run"));
    Run::of(&mut train(&set, &out, &["--max-steps", "2"])).exits(0);
    std::fs::remove_dir_all(&set).expect("removed");
    let again = ["tokenize", arg(&tiny().postings), "--tokenizer", arg(&tiny().tokens), "--limit", "50"];
    handbert(again.into_iter().chain(["--text-columns", "title,text", "--out", arg(&set)])).exits(0);
    resume(&out).exits(2).says(&[
        "checkpoint-2",
        "the data was 240 postings",
        "is now 50 postings",
        "name another --out",
    ]);
    assert_eq!(Checkpoint::latest(&out).expect("whole").map(|c| c.state.step), Some(2));
}

/// A file system that was made read-only after it was written to.
struct ReadOnly(PathBuf);

impl ReadOnly {
    /// `None` where this user may not mount one.
    fn mount(dir: PathBuf, fill: impl FnOnce(&Path)) -> Option<Self> {
        let mount = |options: &str| {
            let done = Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(&dir).output();
            done.is_ok_and(|output| output.status.success())
        };
        if !mount("size=16m") {
            return None;
        }
        fill(&dir);
        let disk = ReadOnly(dir.clone());
        mount("remount,ro").then_some(disk)
    }
}

impl Drop for ReadOnly {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).output();
    }
}

#[test]
fn a_run_directory_that_cannot_be_written_to() {
    let dir = scratch("read-only");
    let file = dir.join("a-file");
    std::fs::write(&file, "mine").expect("written");
    for out in [file.clone(), file.join("run"), PathBuf::from("/proc/handbert")] {
        let run = Run::of(&mut train(&tiny().tokens, &out, &["--max-steps", "1"]));
        run.exits(2).says(&[arg(&out), "name another --out"]);
    }
    assert_eq!(std::fs::read_to_string(&file).expect("still there"), "mine");

    let disk = dir.join("disk");
    std::fs::create_dir(&disk).expect("made");
    let fill = |disk: &Path| {
        Run::of(&mut train(&tiny().tokens, &disk.join("run"), &["--max-steps", "1"])).exits(0);
    };
    let Some(disk) = ReadOnly::mount(disk, fill) else {
        return skipped("no right to mount a file system");
    };
    let says = ["Read-only file system", "name another --out"];
    resume(&disk.0.join("run")).exits(2).says(&says);
    Run::of(&mut train(&tiny().tokens, &disk.0.join("other"), &["--max-steps", "1"])).exits(2).says(&says);
    assert_eq!(Checkpoint::latest(&disk.0.join("run")).expect("whole").map(|c| c.state.step), Some(1));
}

#[test]
fn a_run_killed_before_its_first_checkpoint_says_how_to_begin_again() {
    let dir = scratch("no-checkpoint");
    let out = dir.join("run");
    let mut child = train(&tiny().tokens, &out, &["--max-steps", "5000"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the binary starts");
    wait_for(&out.join("run.toml"));
    child.kill().expect("killed");
    child.wait().expect("ended");
    resume(&out).exits(2).says(&["holds no checkpoint yet", "--overwrite"]);
    // As if it had been killed earlier still, while it made its token set or wrote its settings.
    std::fs::remove_file(out.join("run.toml")).expect("removed");
    std::fs::remove_file(out.join("metrics.jsonl")).ok();
    std::fs::remove_dir_all(out.join("tensorboard")).ok();
    std::fs::write(out.join(".run.toml.partial-1"), "lea").expect("written");
    std::fs::create_dir(out.join(".tokens.partial-1")).expect("made");
    Run::of(&mut train(&tiny().tokens, &out, &["--max-steps", "1"])).exits(0);
    assert!(!out.join(".run.toml.partial-1").exists() && !out.join(".tokens.partial-1").exists());
}

#[test]
fn overfitting_one_batch_learns_it_by_heart_and_says_so() {
    let dir = scratch("overfit");
    let out = dir.join("run");
    let more =
        ["--overfit-one-batch", "--max-steps", "150", "--learning-rate", "3e-3", "--lr-scheduler-type", "constant"];
    let mut train = train(&tiny().tokens, &out, &more);
    let run = Run::of(train.arg("--json")).exits(0).says(&["--overfit-one-batch: every step is on the batches"]);
    let json = run.json();
    assert!(json["loss"].as_f64().is_some_and(|loss| loss < 0.5), "{json}");
    assert!(json["evaluation"].is_null());
    let again = ["train", "mlm", "--out", arg(&out), "--resume", "--overfit-one-batch=false"];
    handbert(again).exits(2).says(&["--overfit-one-batch was true"]);
}
