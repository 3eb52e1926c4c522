//! Another run, to be compared with.

use std::path::Path;

use super::Table;
use crate::train::records::{EvalResult, Record};
use crate::train::run_dir::{self, SETTINGS};
use crate::train::settings::differing;
use crate::train::{Error, Result, Task, TrainPlan};

/// What a run directory tells of its run.
#[derive(Debug, Clone)]
pub struct OtherRun {
    /// That of its directory.
    pub name: String,
    /// The lines of its `metrics.jsonl`.
    pub records: Vec<Record>,
    settings: toml::Table,
}

/// Settings that say where a run is or what reads it, not what it does.
const OF_NO_INTEREST: &[&str] = &["logging_steps", "report_to", "save_steps", "save_total_limit"];

impl OtherRun {
    /// Reads a run directory of the same task.
    pub fn read(dir: &Path, task: &Task) -> Result<OtherRun> {
        let records = run_dir::read_metrics(dir)?;
        let is_mlm = |eval: &EvalResult| eval.mlm().is_some();
        let other_task = |record: &Record| match record {
            Record::Eval(record) => is_mlm(&record.eval) != matches!(task, Task::Mlm { .. }),
            Record::Step(_) => false,
        };
        if records.is_empty() {
            return Err(Error::file(dir, "holds no metrics.jsonl with a run to compare with; name another --compare"));
        }
        if records.iter().any(other_task) {
            return Err(Error::file(dir, "is a run of the other kind of training; name another --compare"));
        }
        let file = dir.join(SETTINGS);
        let text = std::fs::read_to_string(&file).map_err(Error::io(&file))?;
        let settings =
            toml::from_str(&text).map_err(|error| Error::file(&file, format!("holds no settings: {error}")))?;
        let name =
            dir.file_name().map_or_else(|| dir.display().to_string(), |name| name.to_string_lossy().into_owned());
        Ok(OtherRun { name, records, settings })
    }

    /// Its last evaluation beside a run's, and the settings that differ.
    pub fn table(&self, plan: &TrainPlan, records: &[Record]) -> Table {
        let (here, there) = (last_evaluation(records), last_evaluation(&self.records));
        let loss = |eval: Option<&EvalResult>| eval.map_or("none".to_owned(), |eval| format!("{:.4}", eval.loss()));
        let both = |here: String, there: String| format!("{here}, there {there}");
        let mut rows = vec![("held-out loss, last".to_owned(), both(loss(here), loss(there)))];
        let own = plan.settings();
        let value = |value: Option<&toml::Value>| value.map_or("not set".to_owned(), super::training::shown);
        let differing = differing(&own, &self.settings, OF_NO_INTEREST);
        rows.extend(differing.into_iter().map(|(name, h, t)| (name.to_owned(), both(value(h), value(t)))));
        Table { title: format!("Compared with {}", self.name), rows }
    }
}

fn last_evaluation(records: &[Record]) -> Option<&EvalResult> {
    records.iter().rev().find_map(|record| match record {
        Record::Eval(record) => Some(&record.eval),
        Record::Step(_) => None,
    })
}
