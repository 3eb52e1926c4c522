//! The run directory: who may write there, what an earlier run left, and the metrics file.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::Write;
use std::path::{Path, PathBuf};

use super::checkpoint;
use super::plan::Occupied;
use super::records::Record;
use super::{Error, Result};

/// One line of JSON per logged step and per evaluation.
pub const METRICS: &str = "metrics.jsonl";
/// The settings that repeat the run.
pub const SETTINGS: &str = "run.toml";
/// A page with pictures, where a command writes one.
pub const REPORT: &str = "report.html";
/// The token set made of the files a run was given.
pub const TOKENS: &str = "tokens";
const LOCK: &str = ".lock";

/// Files of the best model in a run directory.
const MODEL_FILES: &[&str] = &[
    crate::model::hub::CONFIG,
    crate::model::hub::WEIGHTS,
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
    "special_tokens_map.json",
];

/// A run directory that no other process writes to while this lives.
#[derive(Debug)]
pub struct RunDir {
    path: PathBuf,
    // Held for its lock, which the system releases even after a crash.
    _lock: File,
    /// What `metrics.jsonl` holds.
    pub records: Vec<Record>,
}

/// What a run directory is opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opening {
    /// A new run.
    Fresh(Occupied),
    /// To go on after this step.
    Resume(u64),
}

impl RunDir {
    /// Makes the directory where it is missing, locks it, and clears it of what an earlier run left,
    /// as far as `opening` allows.
    pub fn claim(path: &Path, opening: Opening) -> Result<RunDir> {
        std::fs::create_dir_all(path).map_err(Error::io(path))?;
        let lock_path = path.join(LOCK);
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&lock_path)
            .map_err(Error::io(&lock_path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(Error::file(path, "another run is writing there; wait for it or name another --out"));
            }
            Err(TryLockError::Error(source)) => return Err(Error::Io { path: lock_path, source }),
        }
        let mut dir = RunDir { path: path.to_path_buf(), _lock: lock, records: Vec::new() };
        match opening {
            Opening::Fresh(occupied) => {
                check_free(path, occupied)?;
                clear(path)?;
            }
            Opening::Resume(step) => dir.rewind(step)?,
        }
        Ok(dir)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Adds a line to `metrics.jsonl`.
    pub fn record(&mut self, record: Record) -> Result<()> {
        let path = self.path.join(METRICS);
        let mut file = OpenOptions::new().create(true).append(true).open(&path).map_err(Error::io(&path))?;
        writeln!(file, "{}", line(&record)).map_err(Error::io(&path))?;
        self.records.push(record);
        Ok(())
    }

    /// Writes `run.toml`.
    pub fn write_settings(&self, text: &str) -> Result<()> {
        replace(&self.path.join(SETTINGS), text)
    }

    /// Drops the lines after `step`: they are about to be made again. A line cut short by a crash is one of them.
    fn rewind(&mut self, step: u64) -> Result<()> {
        self.records = read_metrics(&self.path)?.into_iter().filter(|record| record.step() <= step).collect();
        let text: String = self.records.iter().map(|record| line(record) + "\n").collect();
        replace(&self.path.join(METRICS), &text)
    }
}

impl Drop for RunDir {
    fn drop(&mut self) {
        // A lock file that stays does no harm: what counts is the lock on it.
        let _ = std::fs::remove_file(self.path.join(LOCK));
    }
}

/// The records of a run directory; none where it has no `metrics.jsonl`. A last line cut short is left out.
pub fn read_metrics(dir: &Path) -> Result<Vec<Record>> {
    let path = dir.join(METRICS);
    if !path.exists() {
        return Ok(Vec::new());
    }
    let text = std::fs::read_to_string(&path).map_err(Error::io(&path))?;
    let lines: Vec<&str> = text.lines().collect();
    let mut records = Vec::with_capacity(lines.len());
    for (i, line) in lines.iter().enumerate() {
        match serde_json::from_str(line) {
            Ok(record) => records.push(record),
            Err(_) if i + 1 == lines.len() => {}
            Err(error) => return Err(Error::file(&path, format!("line {}: {error}; delete the line", i + 1))),
        }
    }
    Ok(records)
}

/// Whether a new run may write there: into what is missing or empty, or, with [`Occupied::Overwrite`],
/// over an earlier run. A token set made for this run does not count.
pub fn check_free(path: &Path, occupied: Occupied) -> Result<()> {
    let Some(found) = entries(path)?.into_iter().find(|name| name != LOCK && name != TOKENS) else { return Ok(()) };
    match occupied {
        Occupied::Refuse => Err(Error::file(
            path,
            format!(
                "is not empty (it holds {found}); go on with --resume, start over with --overwrite, or name another --out"
            ),
        )),
        // Somebody's own files are not ours to delete.
        Occupied::Overwrite if !path.join(SETTINGS).exists() => Err(Error::file(
            path,
            format!("is not empty (it holds {found}) and holds no run that could be overwritten; name another --out"),
        )),
        Occupied::Overwrite => Ok(()),
    }
}

/// Deletes what a run writes, and nothing else.
fn clear(path: &Path) -> Result<()> {
    let files = MODEL_FILES.iter().chain(&[METRICS, REPORT, SETTINGS]);
    for file in files.map(|name| path.join(name)).filter(|file| file.exists()) {
        std::fs::remove_file(&file).map_err(Error::io(&file))?;
    }
    for name in entries(path)?.iter().filter(|name| checkpoint::is_name(name)) {
        let dir = path.join(name);
        std::fs::remove_dir_all(&dir).map_err(Error::io(&dir))?;
    }
    Ok(())
}

/// Writes a file under a temporary name and renames it: on a full disk, what was there stays.
fn replace(path: &Path, text: &str) -> Result<()> {
    let partial = path.with_extension("partial");
    let written = std::fs::write(&partial, text).and_then(|()| std::fs::rename(&partial, path));
    if written.is_err() {
        // Left there, it would make the directory one that is not empty and holds no run.
        let _ = std::fs::remove_file(&partial);
    }
    written.map_err(Error::io(path))
}

fn entries(path: &Path) -> Result<Vec<String>> {
    if !path.exists() {
        return Ok(Vec::new());
    }
    let mut names = Vec::new();
    for entry in std::fs::read_dir(path).map_err(Error::io(path))? {
        names.push(entry.map_err(Error::io(path))?.file_name().to_string_lossy().into_owned());
    }
    names.sort_unstable();
    Ok(names)
}

/// A record as one line, its curves left out.
fn line(record: &Record) -> String {
    let mut record = record.clone();
    if let Record::Eval(super::EvalRecord { eval: super::EvalResult::Classifier(eval), .. }) = &mut record {
        eval.curves = None;
    }
    serde_json::json!(record).to_string()
}
