//! The binary as it ships, on a machine that has the stand-in for a driver.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::binary::Run;
use crate::skip::skipped;
use crate::stand_in::{NAME, Place};
use crate::training::{Corpus, corpus, texts, weights};

/// A machine, and a directory for what is made on it.
struct Machine {
    place: &'static Place,
    corpus: Corpus,
    dir: tempfile::TempDir,
}

/// What the stand-in says of a command.
#[derive(Debug)]
struct Report {
    in_use: usize,
    refused: usize,
    performed: usize,
}

impl Report {
    fn read(file: &Path) -> Report {
        let text = std::fs::read_to_string(file).expect("a report");
        let number = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)).expect("its line");
            line.parse().expect("a number")
        };
        Report { in_use: number("in use: "), refused: number("refused: "), performed: number("performed: ") }
    }
}

impl Machine {
    fn new() -> Option<Machine> {
        let place = Place::find()?;
        let (corpus, dir) = (corpus(30, 3), tempfile::tempdir().expect("a directory"));
        std::os::unix::fs::symlink(&place.file, dir.path().join(NAME)).expect("a link");
        let model = crate::one_block(&corpus).to_json("DistilBertForMaskedLM").to_string();
        std::fs::write(dir.path().join("config.json"), model).expect("written");
        Some(Machine { place, corpus, dir })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn set(&self) -> &Path {
        self.corpus.set.dir()
    }

    /// Runs a command on the stand-in, set up like this.
    fn run(&self, settings: &str, args: &[&str]) -> (Run, Report) {
        self.run_with(&[], settings, args)
    }

    /// The same with these in its environment.
    fn run_with(&self, surroundings: &[(&str, &str)], settings: &str, args: &[&str]) -> (Run, Report) {
        let report = self.path("report");
        let mut command = Command::new(env!("CARGO_BIN_EXE_handbert"));
        command.args(args).args(["--device", "cuda:0", "--threads", "2"]).stdin(Stdio::null());
        command.env("LD_LIBRARY_PATH", self.dir.path()).env("HANDBERT_KERNELS", &self.place.kernels);
        command.env("HANDBERT_CACHE", self.path("cache")).env("HF_HUB_OFFLINE", "1").env_remove("RUST_LOG");
        command.env_remove("HANDBERT_MATMUL").envs(surroundings.iter().copied());
        command.env("STAND_IN", settings).env("STAND_IN_REPORT", &report);
        (Run::of(&mut command), Report::read(&report))
    }

    /// The same for one that succeeds, without anything refused, and gives everything back. Says how much was performed.
    fn succeeds(&self, settings: &str, args: &[&str]) -> (Run, usize) {
        let (run, report) = self.run(settings, args);
        assert_eq!((report.in_use, report.refused), (0, 0), "{run:?} {report:?}");
        (run.exits(0), report.performed)
    }

    /// Six steps of MLM, an evaluation before and after, saved after every other one.
    fn six_steps<'a>(&'a self, file: &'a Path, out: &'a Path) -> Vec<&'a str> {
        let train = ["train", "mlm", "--config", arg(file), "--data", arg(self.set()), "--out", arg(out)];
        let sizes = ["--batch-tokens", "64", "--max-length", "48", "--max-steps", "6", "--save-steps", "2"];
        let held = ["--validation-split-percentage", "20", "--learning-rate", "1e-3"];
        [&train[..], &sizes, &held].concat()
    }
}

fn arg(path: &Path) -> &str {
    path.to_str().expect("test paths are UTF-8")
}

#[test]
fn the_binary_trains_and_labels() {
    let Some(machine) = Machine::new() else { return };
    let [file, mlm, classifier] = ["config.json", "mlm", "classifier"].map(|name| machine.path(name));
    let [out, postings] = ["out.jsonl", "new.jsonl"].map(|name| machine.path(name));
    let (trained, _) = machine.succeeds("", &machine.six_steps(&file, &mlm));
    trained.says(&["Stand-in GPU 0 (sm_80), bf16"]);
    let train = ["train", "classifier", "--model", arg(&mlm), "--data", arg(machine.set()), "--out", arg(&classifier)];
    let sizes = ["--batch-tokens", "256", "--max-length", "48", "--max-steps", "2"];
    machine.succeeds("", &[&train[..], &sizes].concat());

    // On Hopper, where there is a choice of products, which is kept.
    let eval = ["eval", "mlm", "--model", arg(&mlm), "--data", arg(machine.set()), "--batch-tokens", "256", "--json"];
    let perplexity = |run: Run| run.json()["perplexity"].as_f64().expect("a number");
    let [ampere, hopper] = ["", "capability=90"].map(|settings| perplexity(machine.succeeds(settings, &eval).0));
    assert!(ampere > 1.0 && (ampere / hopper - 1.0).abs() < 0.01, "{ampere} and {hopper}");
    let kept = std::fs::read_dir(machine.path("cache")).expect("the cache").map(|entry| entry.expect("listed").path());
    let tried = |path: &PathBuf| std::fs::read_to_string(path).expect("choices").contains("wgmma");
    assert_eq!(kept.filter(tried).count(), 1);

    let lines = texts(20, 9).into_iter().map(|(text, _)| serde_json::json!({ "text": text }).to_string() + "\n");
    std::fs::write(&postings, lines.collect::<String>()).expect("written");
    let predict = ["predict", arg(&postings), "--model", arg(&classifier), "--out", arg(&out), "--batch-tokens", "256"];
    machine.succeeds("", &predict);
    let labelled = std::fs::read_to_string(&out).expect("labels");
    assert!(labelled.lines().count() == 20 && labelled.lines().all(|line| line.contains("\"score\":")), "{labelled}");
}

#[test]
fn the_binary_says_that_the_device_was_lost_and_goes_on_later() {
    let Some(machine) = Machine::new() else { return };
    let [file, whole, parts] = ["config.json", "whole", "parts"].map(|name| machine.path(name));
    let (_, performed) = machine.succeeds("", &[&machine.six_steps(&file, &whole)[..], &["--no-graph"]].concat());
    let (run, _) = machine.run(&format!("lose_device={}", performed * 3 / 5), &machine.six_steps(&file, &parts));
    run.exits(2).says(&["Stand-in GPU 0", "CUDA_ERROR_ILLEGAL_ADDRESS", "the last checkpoint is whole"]);
    assert!(parts.join("checkpoint-2").exists() && !parts.join("checkpoint-6").exists());
    machine.succeeds("", &["train", "mlm", "--out", arg(&parts), "--resume"]);
    assert!(weights(&whole) == weights(&parts), "neither the loss nor the graph makes a difference");
}

#[test]
fn the_binary_finds_every_op_right() {
    let Some(machine) = Machine::new() else { return };
    machine.place.be_ready_for_check();
    let (run, _) = machine.succeeds("", &["kernels", "check", "--quick", "--json"]);
    assert_eq!((&run.json()["right"], &run.json()["device"]), (&true.into(), &"Stand-in GPU 0 (sm_80), bf16".into()));
}

/// Ways of products that were chosen and kept, each once.
fn kept(machine: &Machine) -> Vec<String> {
    let files = std::fs::read_dir(machine.path("cache")).expect("the cache").map(|entry| entry.expect("listed").path());
    let files = files.filter(|file| file.extension().is_some_and(|extension| extension == "json"));
    let read = |file: PathBuf| std::fs::read_to_string(file).expect("choices");
    let choices = files.flat_map(|file| serde_json::from_str::<Vec<serde_json::Value>>(&read(file)).expect("choices"));
    let mut ways: Vec<String> = choices.map(|choice| choice["way"].to_string()).collect();
    ways.sort();
    ways.dedup();
    ways
}

#[test]
fn products_are_computed_as_they_are_asked_for_or_refused() {
    let Some(machine) = Machine::new() else { return };
    let [config, mlm] = ["config.json", "mlm"].map(|name| machine.path(name));
    let train = ["train", "mlm", "--config", arg(&config), "--data", arg(machine.set()), "--out", arg(&mlm)];
    let sizes = ["--batch-tokens", "64", "--max-length", "48", "--max-steps", "1", "--eval-strategy", "no"];
    machine.succeeds("", &[&train[..], &sizes].concat());
    let eval = ["eval", "mlm", "--model", arg(&mlm), "--data", arg(machine.set()), "--batch-tokens", "256", "--json"];

    // By either name; the one on the command line wins.
    let ask = |flag| [&eval[..], &["--matmul", flag]].concat();
    let no_wgmma = ["wgmma, asked for by --matmul", "only Hopper has it", "--matmul own"];
    machine.run("", &ask("wgmma")).0.exits(2).says(&no_wgmma);
    machine.run_with(&[("HANDBERT_MATMUL", "wgmma")], "", &eval).0.exits(2).says(&no_wgmma);
    machine.run_with(&[("HANDBERT_MATMUL", "wgmma")], "", &ask("mma")).0.exits(0);
    machine.run_with(&[("HANDBERT_MATMUL", "fastest")], "", &eval).0.exits(2).says(&["fastest", "cublaslt"]);
    // SAFETY: it only tries to open libraries of known names.
    if unsafe { cudarc::cublaslt::sys::is_culib_present() } {
        skipped("this machine has cuBLASLt");
    } else {
        let no_library = ["cuBLASLt, asked for by --matmul", "libcublasLt.so", "--matmul own"];
        machine.run("", &ask("cublaslt")).0.exits(2).says(&no_library);
    }

    // On Hopper there is a choice.
    for flag in ["mma", "wgmma"] {
        std::fs::remove_dir_all(machine.path("cache")).ok();
        machine.succeeds("capability=90", &ask(flag));
        assert_eq!(kept(&machine), [format!("\"{flag}\"")], "--matmul {flag}");
    }
}
