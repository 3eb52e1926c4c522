//! Runs the binary, and makes one tiny run of everything that all tests share.

use std::ffi::OsStr;
use std::io::Write;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use serde_json::Value;

pub use crate::binary::Run;

/// The binary, on the CPU with two threads, quiet surroundings and no network.
pub fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_handbert"));
    command.env("HANDBERT_DEVICE", "cpu").env("HANDBERT_THREADS", "2");
    command.env("HF_HUB_OFFLINE", "1").env_remove("RUST_LOG");
    command
}

/// Runs the binary to its end.
pub fn handbert<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Run {
    Run::of(command().args(args).stdin(Stdio::null()))
}

/// [`handbert`] with this on standard input.
pub fn handbert_reading<S: AsRef<OsStr>>(input: &[u8], args: impl IntoIterator<Item = S>) -> Run {
    let mut child = command()
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary starts");
    let mut stdin = child.stdin.take().expect("stdin is piped");
    let input = input.to_vec();
    // From a thread: the child may write more than a pipe holds before it has read everything.
    let feeder = std::thread::spawn(move || drop(stdin.write_all(&input)));
    let output = child.wait_with_output().expect("the binary ends");
    feeder.join().expect("stdin is fed");
    Run::ended(output)
}

/// A path as an argument.
pub fn arg(path: &Path) -> &str {
    path.to_str().expect("test paths are UTF-8")
}

/// A directory that goes when it is dropped.
pub struct Scratch(tempfile::TempDir);

impl Deref for Scratch {
    type Target = Path;

    fn deref(&self) -> &Path {
        self.0.path()
    }
}

impl AsRef<Path> for Scratch {
    fn as_ref(&self) -> &Path {
        self
    }
}

/// A directory of one test's own, empty.
pub fn scratch(name: &str) -> Scratch {
    let dir = tempfile::Builder::new().prefix(&format!("handbert-{name}-")).tempdir();
    Scratch(dir.expect("a directory"))
}

/// A directory for what all tests share. Nothing says when the last of them is done, so it stays; what programs before
/// this one left goes a day later.
fn shared() -> PathBuf {
    const DAY: Duration = Duration::from_secs(24 * 60 * 60);
    let all = Path::new(env!("CARGO_TARGET_TMPDIR")).join("cli");
    std::fs::create_dir_all(&all).expect("target/tmp can be written");
    for entry in std::fs::read_dir(&all).expect("target/tmp can be read").flatten() {
        let made = entry.metadata().and_then(|of| of.modified());
        if made.is_ok_and(|made| made.elapsed().is_ok_and(|age| age > DAY)) {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
    tempfile::tempdir_in(all).expect("target/tmp can be written").keep()
}

/// Lines of a JSONL file.
pub fn rows(file: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    text.lines().map(|line| serde_json::from_str(line).expect("each line is JSON")).collect()
}

/// One tiny run of everything, made once by the commands themselves.
pub struct Tiny {
    pub postings: PathBuf,
    pub tokens: PathBuf,
    pub config: PathBuf,
    pub mlm: PathBuf,
    pub classifier: PathBuf,
}

/// Rows of the tiny run's postings.
pub const ROWS: usize = 240;

pub fn tiny() -> &'static Tiny {
    static TINY: OnceLock<Tiny> = OnceLock::new();
    TINY.get_or_init(|| {
        let dir = shared();
        let tiny = Tiny {
            postings: dir.join("postings.jsonl"),
            tokens: dir.join("tokens"),
            config: dir.join("config.json"),
            mlm: dir.join("mlm"),
            classifier: dir.join("classifier"),
        };
        handbert(["synth", "--rows", &ROWS.to_string(), "--out", arg(&tiny.postings)]).exits(0);
        let tokenize = ["tokenize", arg(&tiny.postings), "--train-vocab", "600", "--out", arg(&tiny.tokens)];
        handbert(tokenize.into_iter().chain(["--text-columns", "title,text", "--label-column", "label"])).exits(0);
        std::fs::write(&tiny.config, config(600, "gelu")).expect("config.json is written");
        let common = ["--data", arg(&tiny.tokens), "--batch-tokens", "512", "--max-length", "128"];
        let held = ["--validation-split-percentage", "20", "--learning-rate", "1e-3"];
        let mlm = ["train", "mlm", "--config", arg(&tiny.config), "--out", arg(&tiny.mlm), "--max-steps", "6"];
        handbert(mlm.into_iter().chain(common).chain(held)).exits(0);
        let classifier = ["train", "classifier", "--model", arg(&tiny.mlm), "--out", arg(&tiny.classifier)];
        handbert(classifier.into_iter().chain(["--max-steps", "6"]).chain(common).chain(held)).exits(0);
        tiny
    })
}

/// A config.json of the tiny model.
pub fn config(vocab: usize, activation: &str) -> String {
    serde_json::json!({
        "activation": activation,
        "architectures": ["DistilBertForMaskedLM"],
        "attention_dropout": 0.1,
        "dim": 64,
        "dropout": 0.1,
        "hidden_dim": 128,
        "initializer_range": 0.02,
        "max_position_embeddings": 128,
        "model_type": "distilbert",
        "n_heads": 2,
        "n_layers": 2,
        "pad_token_id": 0,
        "qa_dropout": 0.1,
        "seq_classif_dropout": 0.2,
        "sinusoidal_pos_embds": false,
        "tie_weights_": true,
        "vocab_size": vocab,
    })
    .to_string()
}

/// A copy of a model or token set, to be damaged.
pub fn copy_dir(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("the copy's directory is made");
    for entry in std::fs::read_dir(from).expect("the original is there") {
        let path = entry.expect("the original can be read").path();
        let target = to.join(path.file_name().expect("entries have names"));
        if path.is_dir() {
            copy_dir(&path, &target);
        } else {
            std::fs::copy(&path, &target).expect("a file is copied");
        }
    }
}

/// Flips one bit in the middle of a file.
pub fn flip_a_bit(file: &Path) {
    let mut bytes = std::fs::read(file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    std::fs::write(file, bytes).expect("the damaged file is written");
}
