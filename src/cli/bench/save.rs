//! What steps were measured on, for others to be measured on the same: the weights they start from, as a model directory,
//! and their batches, as `batches.safetensors`.
//!
//! Tensors are i32 and named `ids.3` and so on, by the batch's number: `ids` [N], masked; `cu_seqlens` [B+1]; `masked_rows` and
//! `targets` [M].

use std::path::Path;

use anyhow::{Context, Result, bail};
use safetensors::tensor::{Dtype, TensorView, serialize_to_file};

use crate::bench::pass::Plan;
use crate::model::{Head, ParamTable, hub};
use crate::train::task::MicroBatch;

/// Name of the batches' file.
const BATCHES: &str = "batches.safetensors";

/// That a directory may take them: random weights are not put over a model.
pub fn check_free(dir: &Path) -> Result<()> {
    match [hub::CONFIG, hub::WEIGHTS].map(|name| dir.join(name)).into_iter().find(|path| path.exists()) {
        Some(path) => bail!("--save: {} is there already; name another directory", path.display()),
        None => Ok(()),
    }
}

/// Writes both into a directory.
pub fn save(dir: &Path, plan: &Plan<'_>) -> Result<()> {
    let table = ParamTable::new(plan.config, Head::Mlm);
    hub::save(dir, plan.config, Head::Mlm, &table, &plan.initial_weights(Head::Mlm))?;
    let named: Vec<(String, &[u32])> =
        plan.batches.iter().enumerate().flat_map(|(number, micro)| arrays(number, micro)).collect();
    let mut tensors = Vec::with_capacity(named.len());
    for (name, values) in &named {
        // Ids, rows and lengths are far below 2³¹.
        tensors.push((name, TensorView::new(Dtype::I32, vec![values.len()], bytemuck::cast_slice(values))?));
    }
    let file = dir.join(BATCHES);
    serialize_to_file(tensors, None, &file).with_context(|| file.display().to_string())
}

fn arrays(number: usize, micro: &MicroBatch) -> [(String, &[u32]); 4] {
    let batch = &micro.batch;
    let packed = &batch.packed;
    [
        (format!("ids.{number}"), packed.ids.as_slice()),
        (format!("cu_seqlens.{number}"), packed.cu_seqlens.as_slice()),
        (format!("masked_rows.{number}"), batch.masked_rows.as_slice()),
        (format!("targets.{number}"), batch.targets.as_slice()),
    ]
}
