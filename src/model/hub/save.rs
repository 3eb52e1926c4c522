//! From a model's values to a directory that `transformers` loads.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use super::flat::part;
use super::tensors::{Tensor, write};
use super::{CONFIG, WEIGHTS};
use crate::model::config::Config;
use crate::model::distilbert::Head;
use crate::model::params::ParamTable;
use crate::model::{Error, Result};

/// Writes config.json and model.safetensors (f32, HF's names, the tied projection left out) into `dir`, making it
/// where it is missing. Both are on the disk under temporary names before either takes its name, so that what was
/// there before stays until the new model is whole.
pub fn save(dir: &Path, config: &Config, head: Head, table: &ParamTable, values: &[f32]) -> Result<()> {
    std::fs::create_dir_all(dir).map_err(|source| Error::Io { path: dir.into(), source })?;
    let (weights, configuration) = (dir.join(WEIGHTS), dir.join(CONFIG));
    let mut tensors = BTreeMap::new();
    for spec in &table.specs {
        let values = part(&weights, values, spec.span.range())?;
        tensors.insert(spec.hf_name.clone(), Tensor { shape: &spec.shape, values });
    }
    let text = format!("{:#}\n", config.to_json(head.architecture()));
    let weights = Pending::write(&weights, |path| write(path, &tensors))?;
    let configuration = Pending::write(&configuration, |path| {
        let mut file = File::create(path)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()
    })?;
    weights.commit()?;
    configuration.commit()
}

/// A file that is on the disk under a temporary name. Dropped before it is committed, it is removed, and whatever
/// stood in its place is as it was.
pub(super) struct Pending {
    temporary: PathBuf,
    path: PathBuf,
}

impl Pending {
    /// Lets `fill` write and sync the temporary file that will be `path`.
    pub(super) fn write(path: &Path, fill: impl FnOnce(&Path) -> std::io::Result<()>) -> Result<Pending> {
        let mut name = path.file_name().map(OsString::from).unwrap_or_default();
        name.push(".partial");
        let pending = Pending { temporary: path.with_file_name(name), path: path.into() };
        fill(&pending.temporary).map_err(|source| Error::Io { path: path.into(), source })?;
        Ok(pending)
    }

    /// Gives the file its name.
    pub(super) fn commit(self) -> Result<()> {
        std::fs::rename(&self.temporary, &self.path).map_err(|source| Error::Io { path: self.path.clone(), source })?;
        // On Unix a rename is on the disk once its directory is; elsewhere a directory cannot be opened.
        if let Some(Ok(dir)) = self.path.parent().map(File::open) {
            let _ = dir.sync_all();
        }
        Ok(())
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.temporary); // after a commit there is none
    }
}
