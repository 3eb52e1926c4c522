//! From a model's values to a directory that `transformers` loads.

use std::collections::BTreeMap;
use std::path::Path;

use super::flat::part;
use super::tensors::{Tensor, write};
use super::{CONFIG, WEIGHTS};
use crate::disk::Pending;
use crate::model::config::Config;
use crate::model::distilbert::Head;
use crate::model::params::ParamTable;
use crate::model::{Error, Result};

/// Writes config.json and model.safetensors (f32, HF's names, the tied projection left out) into `dir`, making it
/// where it is missing. Both are on the disk under temporary names before either takes its name, so that what was
/// there before stays until the new model is whole.
///
/// # Errors
///
/// [`Error::Io`]; [`Error::File`] for values that are too few.
pub fn save(dir: &Path, config: &Config, head: Head, table: &ParamTable, values: &[f32]) -> Result<()> {
    std::fs::create_dir_all(dir).map_err(Error::io(dir))?;
    let (weights, configuration) = (dir.join(WEIGHTS), dir.join(CONFIG));
    let mut tensors = BTreeMap::new();
    for spec in &table.specs {
        let values = part(&weights, values, spec.span.range())?;
        tensors.insert(spec.hf_name.clone(), Tensor { shape: &spec.shape, values });
    }
    let text = format!("{:#}\n", config.to_json(head.architecture()));
    let weights_there =
        Pending::write(&weights, |temporary| write(temporary, &tensors)).map_err(Error::io(&weights))?;
    let configuration_there = Pending::of(&configuration, text).map_err(Error::io(&configuration))?;
    weights_there.commit().map_err(Error::io(&weights))?;
    configuration_there.commit().map_err(Error::io(&configuration))
}
