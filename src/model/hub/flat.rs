//! Flat buffers beside a model: the moments of a checkpoint.

use std::collections::BTreeMap;
use std::path::Path;

use super::tensors::{Tensor, TensorFile, write};
use crate::disk::Pending;
use crate::model::params::ParamTable;
use crate::model::{Error, Result};

/// Writes flat buffers, each with a name such as `m`: tensor by tensor, as `<tensor>.<name>`. The file appears whole
/// or not at all.
///
/// # Errors
///
/// [`Error::File`] for a buffer that is too short; [`Error::Io`].
pub fn save_flat(file: &Path, table: &ParamTable, buffers: &[(&str, &[f32])]) -> Result<()> {
    let mut tensors = BTreeMap::new();
    for (name, values) in buffers {
        for spec in &table.specs {
            let values = part(file, values, spec.span.range())?;
            tensors.insert(format!("{}.{name}", spec.hf_name), Tensor { shape: &spec.shape, values });
        }
    }
    Pending::write(file, |temporary| write(temporary, &tensors)).and_then(Pending::commit).map_err(Error::io(file))
}

/// Reads the flat buffers of these names, and nothing but them: every tensor of the table, in its shape.
///
/// # Errors
///
/// [`Error::Io`] and [`Error::File`] of a file that cannot be read; [`Error::Tensor`] for one that is missing, of another shape, or of no
/// model of this table.
pub fn load_flat(file: &Path, table: &ParamTable, names: &[&str]) -> Result<Vec<Vec<f32>>> {
    let tensors = TensorFile::open(file)?;
    let mut buffers = Vec::with_capacity(names.len());
    for name in names {
        let mut flat = vec![0.0; table.flat_len];
        for spec in &table.specs {
            let stored = format!("{}.{name}", spec.hf_name);
            check_shape(&tensors, &stored, &spec.shape)?;
            tensors.read(&stored, &mut flat[spec.span.range()])?;
        }
        buffers.push(flat);
    }
    let known = |stored: &str| {
        stored.rsplit_once('.').is_some_and(|(tensor, name)| {
            names.contains(&name) && table.specs.iter().any(|spec| spec.hf_name == tensor)
        })
    };
    match tensors.names().into_iter().find(|stored| !known(stored)) {
        None => Ok(buffers),
        Some(stray) => Err(tensors.error(&stray, "does not belong to this model; it is the state of another one")),
    }
}

/// Checks that a tensor is there, in this shape.
pub(super) fn check_shape(file: &TensorFile, name: &str, expected: &[usize]) -> Result<()> {
    match file.shape(name) {
        None => Err(file.error(name, "is missing; save the model or checkpoint again")),
        Some(shape) if shape == expected => Ok(()),
        Some(shape) => Err(file.error(name, format!("is {shape:?}, but config.json asks for {expected:?}"))),
    }
}

/// A span of a flat buffer that the caller says is as long as the table.
pub(super) fn part<'a>(file: &Path, values: &'a [f32], range: std::ops::Range<usize>) -> Result<&'a [f32]> {
    let (len, end) = (values.len(), range.end);
    values.get(range).ok_or_else(|| Error::File {
        path: file.into(),
        why: format!("the values to save are {len}, but the model has tensors up to {end}"),
    })
}
