//! The run directory: who may write there, what an earlier run left, and the metrics file.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use super::plan::{Occupied, ReportTo};
use super::records::Record;
use super::tensorboard::EventFile;
use super::{Error, Result, checkpoint, tensorboard};
use crate::disk;

/// One line of JSON per logged step and per evaluation.
pub const METRICS: &str = "metrics.jsonl";
/// The settings that repeat the run.
pub const SETTINGS: &str = "run.toml";
/// A page with pictures, where a command writes one.
pub const REPORT: &str = "report.html";
/// The token set made of the files a run was given.
pub const TOKENS: &str = "tokens";
const LOCK: &str = ".lock";
/// What the name of the token set begins with once another has taken its place.
const OLD_TOKENS: &str = ".tokens.old-";

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
    /// The same for TensorBoard, where it is wanted.
    events: Option<EventFile>,
}

/// What a run directory is opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opening {
    /// A new run.
    Fresh(Occupied),
    /// To go on after this step.
    Resume {
        /// The step.
        step: u64,
        /// Whether its evaluation is made again.
        evaluation_due: bool,
    },
}

impl RunDir {
    /// Makes the directory where it is missing, locks it, and clears it of what an earlier run left,
    /// as far as `opening` allows.
    pub fn claim(path: &Path, opening: Opening) -> Result<RunDir> {
        std::fs::create_dir_all(path).map_err(|error| unwritable(path, error))?;
        let lock = hold(path, OpenOptions::new().create(true).truncate(false).write(true))?
            .ok_or_else(|| unwritable(path, ErrorKind::NotFound.into()))?;
        let mut dir = RunDir { path: path.to_path_buf(), _lock: lock, records: Vec::new(), events: None };
        match opening {
            Opening::Fresh(occupied) => {
                check_free(path, occupied)?;
                clear(path)?;
            }
            Opening::Resume { step, evaluation_due } => {
                sweep(path)?;
                dir.rewind(step, evaluation_due)?;
            }
        }
        Ok(dir)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whatever `metrics.jsonl` holds and is given goes there too.
    pub fn report_to(&mut self, to: ReportTo) -> Result<()> {
        self.events = match to {
            ReportTo::None => None,
            ReportTo::Tensorboard => Some(EventFile::of_run(&self.path, &self.records).map_err(self.no_events())?),
        };
        Ok(())
    }

    fn no_events(&self) -> impl FnOnce(std::io::Error) -> Error {
        Error::io(self.path.join(tensorboard::DIR))
    }

    /// Adds a line to `metrics.jsonl`.
    pub fn record(&mut self, record: Record) -> Result<()> {
        let path = self.path.join(METRICS);
        let mut file = OpenOptions::new().create(true).append(true).open(&path).map_err(Error::io(&path))?;
        writeln!(file, "{}", line(&record)).map_err(Error::io(&path))?;
        if let Some(events) = &self.events {
            events.add(&record).map_err(self.no_events())?;
        }
        self.records.push(record);
        Ok(())
    }

    /// Writes `run.toml`.
    pub fn write_settings(&self, text: &str) -> Result<()> {
        let path = self.path.join(SETTINGS);
        disk::replace(&path, text).map_err(Error::io(&path))
    }

    /// Drops the lines after `step`, and its evaluation where that is due: they are about to be made again. A line cut
    /// short by a crash is one of them.
    fn rewind(&mut self, step: u64, evaluation_due: bool) -> Result<()> {
        let stays = |record: &Record| match record {
            Record::Eval(eval) if evaluation_due => eval.step < step,
            record => record.step() <= step,
        };
        self.records = read_metrics(&self.path)?.into_iter().filter(stays).collect();
        let text: String = self.records.iter().map(|record| line(record) + "\n").collect();
        let path = self.path.join(METRICS);
        disk::replace(&path, text).map_err(Error::io(&path))
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
    let bytes = std::fs::read(&path).map_err(Error::io(&path))?;
    // A line may be cut within a letter.
    let text = String::from_utf8_lossy(&bytes);
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
/// over an earlier run. A token set made for this run does not count, nor does what a killed process left half done.
pub fn check_free(path: &Path, occupied: Occupied) -> Result<()> {
    let Some(found) = entries(path)?.into_iter().find(|name| !is_early(name)) else { return Ok(()) };
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

/// That no other process is writing there. Only [`RunDir::claim`] keeps others away; this is for what comes before it.
pub fn check_idle(path: &Path) -> Result<()> {
    hold(path, OpenOptions::new().write(true)).map(drop)
}

/// Locks a run directory until the file is closed; `None` where it has no lock file and none is to be made.
fn hold(path: &Path, options: &OpenOptions) -> Result<Option<File>> {
    let lock_path = path.join(LOCK);
    loop {
        let lock = match options.open(&lock_path) {
            Ok(lock) => lock,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(unwritable(path, error)),
        };
        match lock.try_lock() {
            // Whoever held it may have deleted it since it was opened here, and the next to come would make a new one.
            Ok(()) if is_at(&lock, &lock_path) => return Ok(Some(lock)),
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(Error::file(path, "another run is writing there; wait for it or name another --out"));
            }
            Err(TryLockError::Error(error)) => return Err(unwritable(path, error)),
        }
    }
}

fn unwritable(path: &Path, error: std::io::Error) -> Error {
    Error::file(path, format!("cannot be written to ({error}); name another --out"))
}

/// Whether an open file is still the one of this name.
#[cfg(unix)]
fn is_at(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let id = |found: &std::fs::Metadata| (found.dev(), found.ino());
    matches!((file.metadata(), std::fs::metadata(path)), (Ok(open), Ok(named)) if id(&open) == id(&named))
}

/// Elsewhere a file that is open keeps its name.
#[cfg(not(unix))]
fn is_at(_: &File, _: &Path) -> bool {
    true
}

/// Deletes what a run writes, and nothing else; last the file that says there is a run.
fn clear(path: &Path) -> Result<()> {
    sweep(path)?;
    for step in checkpoint::steps(path)? {
        checkpoint::delete(path, step)?;
    }
    tensorboard::delete(path).map_err(Error::io(path.join(tensorboard::DIR)))?;
    let files = MODEL_FILES.iter().chain(&[METRICS, REPORT, SETTINGS]);
    for file in files.map(|name| path.join(name)).filter(|file| file.exists()) {
        std::fs::remove_file(&file).map_err(Error::io(&file))?;
    }
    Ok(())
}

/// Whether a directory entry may be there before there is a run, left by a process that was killed early.
fn is_early(name: &str) -> bool {
    [LOCK, TOKENS].contains(&name) || is_leftover(name)
}

/// Whether a directory entry is what a killed process left half done.
fn is_leftover(name: &str) -> bool {
    let is_ours = |name: &str| MODEL_FILES.iter().chain(&[METRICS, REPORT, SETTINGS, TOKENS]).any(|ours| *ours == name);
    disk::partial_of(name).is_some_and(is_ours) || name.starts_with(OLD_TOKENS) || checkpoint::is_leftover(name)
}

/// Deletes it.
fn sweep(path: &Path) -> Result<()> {
    for left in entries(path)?.iter().filter(|name| is_leftover(name)).map(|name| path.join(name)) {
        let deleted = if left.is_dir() { std::fs::remove_dir_all(&left) } else { std::fs::remove_file(&left) };
        deleted.map_err(Error::io(&left))?;
    }
    Ok(())
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
