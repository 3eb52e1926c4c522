//! `handbert kernels`: whether a device is right, compiling without a GPU, the cache, and what goes wrong on a machine that lacks
//! something.
//!
//! HANDBERT_NVRTC names a directory with NVRTC's libraries; tests that compile skip without it.

#[path = "support/binary.rs"]
mod binary;
#[path = "support/skip.rs"]
mod skip;

use std::path::{Path, PathBuf};
use std::process::Command;

use binary::Run;
use skip::skipped;

/// Runs the binary with `nvrtc` alone on the library path.
fn handbert(nvrtc: Option<&Path>, cache: &Path, kernels: Option<&Path>, args: &[&str]) -> Run {
    let mut command = Command::new(env!("CARGO_BIN_EXE_handbert"));
    command.env_remove("LD_LIBRARY_PATH").env_remove("HANDBERT_KERNELS").env_remove("RUST_LOG");
    command.env("HANDBERT_CACHE", cache).args(args);
    for (name, dir) in [("LD_LIBRARY_PATH", nvrtc), ("HANDBERT_KERNELS", kernels)] {
        if let Some(dir) = dir {
            command.env(name, dir);
        }
    }
    Run::of(&mut command)
}

/// NVRTC's directory, where there is one.
fn nvrtc() -> Option<PathBuf> {
    let dir = std::env::var_os("HANDBERT_NVRTC").map(PathBuf::from);
    if dir.is_none() {
        skipped("HANDBERT_NVRTC names no directory with libnvrtc.so");
    }
    dir
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(dir).expect("listed").map(|e| e.expect("an entry").path()).collect();
    files.sort();
    files
}

#[test]
fn without_nvrtc_there_is_a_message_that_says_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let run =
        handbert(None, dir.path(), None, &["kernels", "compile", "--arch", "sm_90a", "--out", out.to_str().unwrap()]);
    if run.code == Some(0) {
        return skipped("NVRTC is installed where every program finds it");
    }
    run.exits(2).says(&["NVRTC", "libnvrtc.so", "pip install nvidia-cuda-nvrtc", "HANDBERT_KERNELS"]);
    assert!(!out.exists());
}

#[test]
fn architectures_and_sizes_that_there_are_not() {
    let dir = tempfile::tempdir().unwrap();
    let compile =
        |args: &[&str]| handbert(None, dir.path(), None, &[&["kernels", "compile", "--out", "k"], args].concat());
    compile(&["--arch", "sm_75"]).exits(2).says(&["sm_75", "sm_90a"]);
    compile(&["--size", "DEPTH=3"]).exits(2).says(&["DEPTH", "WIDTH"]);
}

#[test]
fn what_was_compiled_elsewhere_serves_a_machine_without_nvrtc() {
    let Some(nvrtc) = nvrtc() else { return };
    let dir = tempfile::tempdir().unwrap();
    let (out, cache) = (dir.path().join("kernels"), dir.path().join("cache"));
    let compile = ["kernels", "compile", "--arch", "sm_90a", "--out", out.to_str().unwrap(), "--json"];
    let json = handbert(Some(&nvrtc), &cache, None, &compile).exits(0).json();
    assert_eq!(json["modules"].as_array().unwrap().len(), files(&out).len());
    let list = ["kernels", "list", "--arch", "sm_90a", "--json"];
    let json = handbert(None, &cache, Some(&out), &list).exits(0).json();
    let kernels = json["kernels"].as_array().unwrap();
    assert!(kernels.len() > 20, "{} kernels", kernels.len());
    for kernel in kernels {
        assert!(kernel["registers"].as_u64().unwrap() > 0, "{kernel}");
        assert_eq!(kernel["spilled_bytes"], 0, "{kernel}");
    }
    let taken = dir.path().join("taken");
    std::fs::write(&taken, "a file").unwrap();
    let beneath = taken.join("kernels");
    let compile = ["kernels", "compile", "--arch", "sm_90a", "--out", beneath.to_str().unwrap()];
    handbert(Some(&nvrtc), &cache, None, &compile).exits(2).says(&["taken", "can be written"]);
}

#[test]
fn the_cache_serves_mends_itself_and_is_not_needed() {
    let Some(nvrtc) = nvrtc() else { return };
    let dir = tempfile::tempdir().unwrap();
    let list = |cache: &Path| handbert(Some(&nvrtc), cache, None, &["kernels", "list", "--arch", "sm_80"]);
    let cache = dir.path().join("cache");
    let first = list(&cache);
    assert_eq!((first.code, first.err.as_str()), (Some(0), ""));
    let [version] = &files(&cache)[..] else { panic!("one directory, for this version of NVRTC") };
    let cached = files(version);
    let whole: Vec<Vec<u8>> = cached.iter().map(|file| std::fs::read(file).unwrap()).collect();
    let mut damaged = whole[0].clone();
    *damaged.last_mut().unwrap() ^= 1;
    std::fs::write(&cached[0], damaged).unwrap();
    let second = list(&cache);
    assert_eq!((second.code, &second.out), (Some(0), &first.out));
    assert!(second.err.contains("damaged") && second.err.contains(cached[0].to_str().unwrap()), "{}", second.err);
    for (file, whole) in cached.iter().zip(&whole) {
        assert!(std::fs::read(file).unwrap() == *whole, "{} is whole again", file.display());
    }
    let third = list(&cache);
    assert_eq!((third.code, third.err.as_str(), &third.out), (Some(0), "", &first.out));

    let no_directory = dir.path().join("file");
    std::fs::write(&no_directory, "").unwrap();
    let run = list(&no_directory);
    assert_eq!((run.code, &run.out), (Some(0), &first.out));
    assert!(run.err.contains("HANDBERT_CACHE"), "{}", run.err);
}

/// Ops of the `Backend` trait, by the row they stand in.
const OPS: [&str; 12] = [
    "embed",
    "linear",
    "linear_gelu",
    "attention",
    "add_layernorm",
    "gather_rows",
    "vocab_cross_entropy",
    "relu_dropout",
    "class_cross_entropy",
    "top_k",
    "grad_norm",
    "adamw",
];

#[test]
fn check_prints_every_op_and_ends_well_on_a_cpu_that_is_right() {
    let dir = tempfile::tempdir().unwrap();
    let check = |more: &[&str]| {
        handbert(
            None,
            dir.path(),
            None,
            &[&["kernels", "check", "--quick", "--device", "cpu", "--threads", "2"], more].concat(),
        )
    };
    let text = check(&[]).exits(0).says(&["Attention: ", "0 failures"]);
    let last = text.out.lines().last().unwrap();
    assert!(last.starts_with("right: 0 failures in ") && last.contains("on cpu, 2 threads"), "{last}");
    let json = check(&["--json", "--quiet"]).exits(0);
    assert_eq!(json.err, "");
    let json = json.json();
    assert_eq!((&json["right"], &json["quick"]), (&true.into(), &true.into()));
    assert!(json["cases"].as_u64().unwrap() > 80 && json["runs"].as_u64() > json["cases"].as_u64());
    assert_eq!(json["failures"].as_array().unwrap().len(), 0);
    let rows = json["rows"].as_array().unwrap();
    for op in OPS {
        assert!(text.out.lines().any(|line| line.starts_with(&format!("{op} "))), "{op}: {}", text.out);
        let mut of_op = rows.iter().filter(|row| row["op"] == op).peekable();
        assert!(of_op.peek().is_some(), "{op} is not in the JSON");
        for row in of_op {
            assert!(row["error"].as_f64().unwrap() <= row["allowed"].as_f64().unwrap(), "{row}");
            assert!(row["values"].as_u64().is_some() && row["naive"].is_number(), "{row}");
        }
    }
}
