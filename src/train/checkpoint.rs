//! `checkpoint-<step>/`: a model directory that `transformers` loads, with the moments
//! (`handbert_state.safetensors`) and everything else a run needs to go on bit for bit (`run.json`).
//! It is written under a temporary name and renamed when it is on the disk, and renamed again before it is deleted: at
//! whatever moment the process is killed, what bears the name of a checkpoint is whole.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use crate::data::pack::Cursor;
use crate::data::token_set::{Stamps, TokenSet};
use crate::data::tokenizer::Tokenizer;
use crate::disk;
use crate::model::{Config, Head, ParamTable, hub};

use super::outliers::Recent;
use super::policy::Memory;
use super::records::EvalResult;
use super::{Error, Result};

const PREFIX: &str = "checkpoint-";
const PARTIAL: &str = ".partial";
/// Of one that is being deleted.
const LEAVING: &str = ".leaving";
/// Where a run stood, in a checkpoint.
pub const STATE: &str = "run.json";
const MOMENTS: &str = "handbert_state.safetensors";
const VERSION: u32 = 1;
/// Stands for the checksum of `run.json` while it is computed.
const NO_CHECKSUM: &str = "0000000000000000";

/// Where a run stands. With the weights and moments, all it takes to go on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunState {
    /// Steps made.
    pub step: u64,
    /// Steps of the whole run.
    pub total_steps: u64,
    /// Updates made: steps less those skipped.
    pub updates: u32,
    /// Batches gone forward.
    pub micro_batches: u64,
    /// Tokens trained on.
    pub tokens: u64,
    /// Epochs gone through.
    pub epoch: f64,
    /// Where the packer goes on.
    pub cursor: Cursor,
    /// Steps skipped: not finite, or outliers.
    pub skipped: u64,
    /// The outliers among them.
    #[serde(default)]
    pub outliers: u64,
    /// Steps skipped since the last that was not.
    pub skipped_in_a_row: u32,
    /// What the next step is compared with.
    #[serde(default)]
    pub recent: Recent,
    /// What the policies remember.
    pub policy: Memory,
    /// Loss since the last logged step.
    pub interval: Interval,
    /// Whether an evaluation is owed before the next step.
    pub evaluation_due: bool,
    /// The evaluation before step 1.
    pub evaluation_before: Option<EvalResult>,
    /// The last evaluation.
    pub evaluation: Option<EvalResult>,
    /// Seconds of all sittings.
    pub seconds: f64,
    /// Those spent on steps, evaluation and saving left out.
    pub train_seconds: f64,
    /// `run.toml` as the run was begun.
    pub settings: String,
    /// The data it was begun with.
    pub data: DataPrint,
    /// Its files as they lay on the disk.
    #[serde(default)]
    pub data_files: Stamps,
}

/// Sums since the last logged step, exact across a resume.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// Of weighted losses.
    #[serde(with = "super::exact")]
    pub loss: f64,
    /// Of target weights.
    #[serde(with = "super::exact")]
    pub weight: f64,
    /// Of tokens.
    pub tokens: u64,
    /// Of seconds spent on steps.
    pub seconds: f64,
}

/// What identifies a token set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataPrint {
    /// Of every byte of it.
    pub checksum: String,
    /// Of its tokenizer.
    pub tokenizer: String,
    /// Samples.
    pub samples: u64,
    /// Tokens.
    pub tokens: u64,
}

impl DataPrint {
    /// Of an open token set, from the checksums in its `meta.json`.
    pub fn of(set: &TokenSet) -> DataPrint {
        let meta = serde_json::json!(set.meta()).to_string();
        DataPrint {
            checksum: hex(xxh3_64(meta.as_bytes())),
            tokenizer: set.meta().tokenizer.clone(),
            samples: set.len(),
            tokens: set.tokens_total(),
        }
    }

    /// What differs from `other`, in words.
    pub fn differences(&self, now: &DataPrint) -> Vec<String> {
        if self.tokenizer != now.tokenizer {
            return vec![format!("the vocabulary was {} and is now {}", self.tokenizer, now.tokenizer)];
        }
        if self.checksum != now.checksum {
            let describe = |d: &DataPrint| format!("{} postings of {} tokens ({})", d.samples, d.tokens, d.checksum);
            return vec![format!("the data was {} and is now {}", describe(self), describe(now))];
        }
        Vec::new()
    }
}

/// What a checkpoint is made of.
pub struct Snapshot<'a> {
    /// Of the model.
    pub config: &'a Config,
    /// Its head.
    pub head: Head,
    /// Where its tensors lie.
    pub table: &'a ParamTable,
    /// Its weights.
    pub values: &'a [f32],
    /// First moments.
    pub m: &'a [f32],
    /// Second moments.
    pub v: &'a [f32],
    /// Its tokenizer.
    pub tokenizer: &'a Tokenizer,
    /// The rest.
    pub state: &'a RunState,
}

/// `run.json` as it lies on the disk.
#[derive(Serialize, Deserialize)]
struct StateFile {
    version: u32,
    /// xxh3 of this file's text with this field all zeros.
    checksum: String,
    #[serde(flatten)]
    state: RunState,
    /// xxh3 of every other file.
    files: BTreeMap<String, String>,
}

/// A checkpoint on the disk, every byte of it checked.
#[derive(Debug, Clone, PartialEq)]
pub struct Checkpoint {
    /// Its directory, a model directory.
    pub dir: PathBuf,
    /// Where the run stood.
    pub state: RunState,
}

impl Checkpoint {
    /// The one with the highest step in a run directory; `None` where there is none. A damaged one is an error.
    pub fn latest(run: &Path) -> Result<Option<Checkpoint>> {
        let steps = steps(run)?;
        let Some(&newest) = steps.last() else { return Ok(None) };
        let dir = directory(run, newest);
        match (Checkpoint::open(&dir), steps.iter().rev().nth(1)) {
            (Err(Error::File { path, why }), before) => Err(Error::File {
                path,
                why: match before {
                    Some(before) => format!("{why}; delete {PREFIX}{newest} to go on from {PREFIX}{before}"),
                    None => format!("{why}; there is no earlier checkpoint, so start over with --overwrite"),
                },
            }),
            (checkpoint, _) => checkpoint.map(Some),
        }
    }

    /// Reads `run.json` and checks every file.
    pub fn open(dir: &Path) -> Result<Checkpoint> {
        let file = read(dir)?;
        for (name, expected) in &file.files {
            let path = dir.join(name);
            let found = checksum(&path).map_err(|error| Error::file(&path, format!("cannot be read: {error}")))?;
            if found != *expected {
                return Err(Error::file(
                    &path,
                    format!("is damaged: its checksum is {found}, {STATE} says {expected}"),
                ));
            }
        }
        Ok(Checkpoint { dir: dir.to_path_buf(), state: file.state })
    }

    /// First and second moments, laid out as `table`.
    pub fn moments(&self, table: &ParamTable) -> Result<[Vec<f32>; 2]> {
        let path = self.dir.join(MOMENTS);
        let flats = hub::load_flat(&path, table, &["m", "v"])?;
        <[Vec<f32>; 2]>::try_from(flats).map_err(|_| Error::file(path, "does not hold both moments"))
    }
}

/// Reads `run.json` alone.
fn read(dir: &Path) -> Result<StateFile> {
    let path = dir.join(STATE);
    let text = std::fs::read_to_string(&path)
        .map_err(|error| Error::file(&path, format!("cannot be read ({error}), so this is no whole checkpoint")))?;
    let file: StateFile = serde_json::from_str(&text)
        .map_err(|error| Error::file(&path, format!("is damaged or of another version: {error}")))?;
    if file.version != VERSION {
        return Err(Error::file(&path, format!("is of version {}, this is version {VERSION}", file.version)));
    }
    let unsealed = text.replacen(&file.checksum, NO_CHECKSUM, 1);
    if hex(xxh3_64(unsealed.as_bytes())) != file.checksum {
        return Err(Error::file(&path, "is damaged: its checksum does not fit"));
    }
    Ok(file)
}

/// Writes `checkpoint-<step>` into a run directory and gives its path. Whatever fails, what was there stays.
pub fn write(run: &Path, snapshot: &Snapshot<'_>) -> Result<PathBuf> {
    let dir = directory(run, snapshot.state.step);
    let partial = partial(run, snapshot.state.step);
    let written = fill(&partial, snapshot).and_then(|()| put_in_place(&partial, &dir));
    if written.is_err() {
        // What was written of it would only keep a full disk full.
        let _ = std::fs::remove_dir_all(&partial);
    }
    written.map(|()| dir)
}

/// Deletes `checkpoint-<step>`; one that is not there is as good as deleted.
pub fn delete(run: &Path, step: u64) -> Result<PathBuf> {
    let dir = directory(run, step);
    remove(&dir)?;
    Ok(dir)
}

/// Whether a directory entry is what is left of writing or deleting a checkpoint.
pub fn is_leftover(name: &str) -> bool {
    let hidden = name.strip_prefix('.');
    let stem = hidden.and_then(|name| name.strip_suffix(PARTIAL).or_else(|| name.strip_suffix(LEAVING)));
    stem.and_then(step_of).is_some()
}

/// Where the checkpoint of a step lies.
pub fn directory(run: &Path, step: u64) -> PathBuf {
    run.join(format!("{PREFIX}{step}"))
}

/// Steps of the checkpoints in a run directory, ascending.
pub fn steps(run: &Path) -> Result<Vec<u64>> {
    if !run.is_dir() {
        return Ok(Vec::new());
    }
    let mut steps = Vec::new();
    for entry in std::fs::read_dir(run).map_err(Error::io(run))? {
        let name = entry.map_err(Error::io(run))?.file_name();
        steps.extend(name.to_str().and_then(step_of));
    }
    steps.sort_unstable();
    Ok(steps)
}

fn step_of(name: &str) -> Option<u64> {
    name.strip_prefix(PREFIX)?.parse().ok()
}

fn partial(run: &Path, step: u64) -> PathBuf {
    run.join(format!(".{PREFIX}{step}{PARTIAL}"))
}

/// Deletes a checkpoint under another name: half of one is no checkpoint.
fn remove(dir: &Path) -> Result<()> {
    let name = dir.file_name().unwrap_or_default().to_string_lossy();
    let leaving = dir.with_file_name(format!(".{name}{LEAVING}"));
    // Left by a process that was killed here.
    gone(std::fs::remove_dir_all(&leaving)).map_err(Error::io(&leaving))?;
    gone(std::fs::rename(dir, &leaving)).map_err(Error::io(dir))?;
    gone(std::fs::remove_dir_all(&leaving)).map_err(Error::io(&leaving))
}

/// What is not there is as good as deleted.
fn gone(result: std::io::Result<()>) -> std::io::Result<()> {
    match result {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn fill(dir: &Path, snapshot: &Snapshot<'_>) -> Result<()> {
    if dir.exists() {
        std::fs::remove_dir_all(dir).map_err(Error::io(dir))?;
    }
    std::fs::create_dir_all(dir).map_err(Error::io(dir))?;
    let Snapshot { config, head, table, values, m, v, tokenizer, state } = *snapshot;
    hub::save(dir, config, head, table, values)?;
    tokenizer.save(dir)?;
    hub::save_flat(&dir.join(MOMENTS), table, &[("m", m), ("v", v)])?;

    let mut files = BTreeMap::new();
    for entry in std::fs::read_dir(dir).map_err(Error::io(dir))? {
        let path = entry.map_err(Error::io(dir))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        files.insert(name, checksum(&path).map_err(Error::io(&path))?);
        disk::sync(&path).map_err(Error::io(&path))?;
    }
    let path = dir.join(STATE);
    let file = StateFile { version: VERSION, checksum: NO_CHECKSUM.into(), state: state.clone(), files };
    let text = format!("{:#}\n", serde_json::json!(file));
    let sealed = text.replacen(NO_CHECKSUM, &hex(xxh3_64(text.as_bytes())), 1);
    std::fs::write(&path, sealed).map_err(Error::io(&path))?;
    disk::sync(&path).and_then(|()| disk::sync(dir)).map_err(Error::io(&path))
}

/// Gives the finished directory its name. Where there is one of the same step with the same weights, which only knew less
/// of the run, its `run.json` alone is replaced: there is no moment without a checkpoint of this step. Any other goes first.
fn put_in_place(partial: &Path, dir: &Path) -> Result<()> {
    if Checkpoint::open(dir).is_ok() && read(dir)?.files == read(partial)?.files {
        let state = dir.join(STATE);
        disk::rename(&partial.join(STATE), &state).map_err(Error::io(&state))?;
        return std::fs::remove_dir_all(partial).map_err(Error::io(partial));
    }
    remove(dir)?;
    disk::rename(partial, dir).map_err(Error::io(dir))
}

fn checksum(path: &Path) -> std::io::Result<String> {
    let mut file = File::open(path)?;
    let mut hasher = Xxh3::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hex(hasher.digest())),
            n => hasher.update(&buffer[..n]),
        }
    }
}

fn hex(hash: u64) -> String {
    format!("{hash:016x}")
}
