//! The weights of a model directory: one safetensors file, or several and their index.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::Value;

use super::tensors::TensorFile;
use super::{CONFIG, INDEX, WEIGHTS};
use crate::model::{Error, Result};

/// Prefix of the encoder's tensors in a model with a head; the bare encoder goes without.
const PREFIX: &str = "distilbert.";

/// A buffer that some versions saved: 0, 1, 2 … It is no parameter and nothing reads it.
const POSITION_IDS: &str = "distilbert.embeddings.position_ids";

/// All tensors of a model directory, under the names they have in a model with a head.
#[derive(Debug)]
pub struct Weights {
    files: Vec<TensorFile>,
    tensors: BTreeMap<String, Place>,
}

#[derive(Debug)]
struct Place {
    file: usize,
    /// The name in that file, with or without the prefix.
    name: String,
}

impl Weights {
    /// Reads the weights files of a model directory.
    pub fn open(dir: &Path) -> Result<Weights> {
        let mut weights = Weights { files: Vec::new(), tensors: BTreeMap::new() };
        if dir.join(WEIGHTS).exists() {
            weights.add(TensorFile::open(&dir.join(WEIGHTS))?)?;
        } else if dir.join(INDEX).exists() {
            weights.add_shards(dir)?;
        } else {
            return Err(missing(dir));
        }
        Ok(weights)
    }

    /// The files, in the order they were read.
    pub fn files(&self) -> &[TensorFile] {
        &self.files
    }

    /// Each tensor's name in a model with a head, the file that has it and its name there; sorted.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &TensorFile, &str)> {
        self.tensors.iter().filter_map(|(name, place)| {
            self.files.get(place.file).map(|file| (name.as_str(), file, place.name.as_str()))
        })
    }

    /// The file that has a tensor, and its name there.
    pub fn find(&self, name: &str) -> Option<(&TensorFile, &str)> {
        let place = self.tensors.get(name)?;
        Some((self.files.get(place.file)?, &place.name))
    }

    /// Shape of a tensor; `None` where there is none of that name.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.find(name).and_then(|(file, name)| file.shape(name))
    }

    fn add(&mut self, file: TensorFile) -> Result<()> {
        for name in file.names() {
            let encoder = name.starts_with("embeddings.") || name.starts_with("transformer.");
            let canonical = if encoder { format!("{PREFIX}{name}") } else { name.clone() };
            if canonical == POSITION_IDS {
                continue;
            }
            if self.tensors.contains_key(&canonical) {
                return Err(file.error(&name, "is there twice; save the model again with save_pretrained"));
            }
            self.tensors.insert(canonical, Place { file: self.files.len(), name });
        }
        self.files.push(file);
        Ok(())
    }

    fn add_shards(&mut self, dir: &Path) -> Result<()> {
        let path = dir.join(INDEX);
        let wrong = |why: String| Error::File { path: path.clone(), why };
        let text = std::fs::read_to_string(&path).map_err(Error::io(&path))?;
        let index: Value = serde_json::from_str(&text).map_err(|e| wrong(format!("not valid JSON: {e}")))?;
        let map = index.get("weight_map").and_then(Value::as_object);
        let map = map.ok_or_else(|| wrong("has no weight_map of tensor names to file names".into()))?;
        let mut shards = BTreeSet::new();
        for (name, shard) in map {
            let plain = shard.as_str().filter(|s| !s.is_empty() && !s.contains(['/', '\\']) && *s != "..");
            shards.insert(plain.ok_or_else(|| wrong(format!("gives {name} the file {shard}, which is no file name")))?);
        }
        for shard in shards {
            self.add(TensorFile::open(&dir.join(shard))?)?;
        }
        let listed = |file: &TensorFile, name: &str| {
            map.get(name).and_then(Value::as_str).is_some_and(|shard| file.path().ends_with(shard))
        };
        for file in &self.files {
            if let Some(stray) = file.names().into_iter().find(|name| !listed(file, name)) {
                return Err(file.error(&stray, format!("is not where {INDEX} says; copy all weights files again")));
            }
        }
        let found: BTreeSet<String> = self.files.iter().flat_map(TensorFile::names).collect();
        match map.iter().find(|(name, _)| !found.contains(*name)) {
            None => Ok(()),
            Some((name, shard)) => Err(wrong(format!(
                "says that {name} is in {}, where it is missing; copy all weights files again",
                shard.as_str().unwrap_or_default()
            ))),
        }
    }
}

/// Why a directory has no weights that can be read.
fn missing(dir: &Path) -> Error {
    let why = if dir.join("pytorch_model.bin").exists() {
        format!(
            "has its weights in pytorch_model.bin only, a pickle that HandBERT does not read; convert it once with\n  \
             python -c 'import transformers as t; t.{}.from_pretrained(\"{dir}\").save_pretrained(\"{dir}\")'",
            architecture(dir).as_deref().unwrap_or("DistilBertForMaskedLM"),
            dir = dir.display(),
        )
    } else {
        format!("has no weights: neither {WEIGHTS} nor {INDEX} is there")
    };
    Error::File { path: dir.into(), why }
}

/// The class of `transformers` that saved a directory, where config.json names one.
fn architecture(dir: &Path) -> Option<String> {
    let text = std::fs::read_to_string(dir.join(CONFIG)).ok()?;
    let config: Value = serde_json::from_str(&text).ok()?;
    let name = config.get("architectures")?.get(0)?.as_str()?;
    name.chars().all(|c| c.is_ascii_alphanumeric()).then(|| name.to_owned())
}
