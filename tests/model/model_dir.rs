//! Model directories made of a fixture, with something changed.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use handbert::model::Error;
use handbert::model::hub::{self, Loaded, Wanted};
use safetensors::tensor::{Dtype, SafeTensors, View, serialize_to_file};
use serde_json::Value;

/// A tensor as raw bytes.
#[derive(Debug, Clone, PartialEq)]
pub struct Raw {
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub bytes: Vec<u8>,
}

impl View for Raw {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.bytes)
    }

    fn data_len(&self) -> usize {
        self.bytes.len()
    }
}

pub type Tensors = BTreeMap<String, Raw>;

/// A fixture's folder.
pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/hf").join(name)
}

/// The tensors of a safetensors file.
pub fn read_raw(file: &Path) -> Tensors {
    let bytes = std::fs::read(file).unwrap();
    let parsed = SafeTensors::deserialize(&bytes).unwrap();
    let raw = |t: safetensors::tensor::TensorView<'_>| Raw {
        dtype: t.dtype(),
        shape: t.shape().to_vec(),
        bytes: t.data().to_vec(),
    };
    parsed.tensors().into_iter().map(|(name, tensor)| (name, raw(tensor))).collect()
}

/// Writes tensors as transformers does.
pub fn write_raw(file: &Path, tensors: Tensors) {
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    serialize_to_file(tensors, Some(metadata), file).unwrap();
}

/// A temporary model directory.
pub struct ModelDir {
    pub dir: tempfile::TempDir,
}

impl ModelDir {
    /// A copy of a fixture's config.json and model.safetensors.
    pub fn copy(name: &str) -> ModelDir {
        let dir = tempfile::tempdir().unwrap();
        for file in ["config.json", "model.safetensors"] {
            std::fs::copy(fixture(name).join(file), dir.path().join(file)).unwrap();
        }
        ModelDir { dir }
    }

    /// A copy with its tensors changed.
    pub fn with_tensors(name: &str, change: impl FnOnce(&mut Tensors)) -> ModelDir {
        let copy = ModelDir::copy(name);
        let mut tensors = read_raw(&copy.weights());
        change(&mut tensors);
        write_raw(&copy.weights(), tensors);
        copy
    }

    /// A copy with a field of config.json changed.
    pub fn with_config(name: &str, field: &str, value: Value) -> ModelDir {
        let copy = ModelDir::copy(name);
        let file = copy.path().join("config.json");
        let mut config: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
        config[field] = value;
        std::fs::write(file, config.to_string()).unwrap();
        copy
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    pub fn weights(&self) -> PathBuf {
        self.path().join("model.safetensors")
    }

    pub fn load(&self, wanted: &Wanted) -> Result<Loaded, Error> {
        hub::load(self.path(), wanted, 7)
    }

    /// The error of loading it, which must say all of these.
    pub fn refused(&self, wanted: &Wanted, says: &[&str]) {
        let error = self.load(wanted).expect_err("should not load").to_string();
        for part in says {
            assert!(error.contains(part), "{error:?} does not say {part:?}");
        }
    }
}
