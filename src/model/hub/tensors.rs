//! One safetensors file: reading tensors as f32, writing f32 tensors.
//!
//! What we write carries an xxh3 checksum of its data in the metadata, which other readers pass over;
//! what carries one is checked when it is opened.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, Metadata};
use serde_json::{Map, Value, json};
use xxhash_rust::xxh3::Xxh3;

use crate::model::{Error, Result};

/// Metadata key of the checksum: xxh3-64 of the data section, as 16 hexadecimal digits.
const CHECKSUM: &str = "xxh3";

/// A safetensors file, whole in memory.
#[derive(Debug)]
pub struct TensorFile {
    path: PathBuf,
    bytes: Vec<u8>,
    /// Where the data section begins.
    data: usize,
    header: Metadata,
}

impl TensorFile {
    /// Reads a file; checks its header against its length, and its checksum where it carries one.
    ///
    /// # Errors
    ///
    /// [`Error::Io`]; [`Error::File`] for what is no whole safetensors file.
    pub fn open(path: &Path) -> Result<TensorFile> {
        let bytes = std::fs::read(path).map_err(Error::io(path))?;
        let broken = |why: String| Error::File { path: path.into(), why };
        if bytes.starts_with(b"version https://git-lfs") {
            return Err(broken("is a Git LFS pointer, not the file itself; fetch it with `git lfs pull`".into()));
        }
        let (header_len, header) = SafeTensors::read_metadata(&bytes).map_err(|e| {
            broken(format!("is no whole safetensors file ({e}; {} bytes); copy or download it again", bytes.len()))
        })?;
        let file = TensorFile { path: path.into(), data: 8 + header_len, bytes, header };
        match file.written_checksum() {
            Some(written) if written != checksum([file.data()]) => Err(broken(
                "its bytes do not match its checksum; restore it from a copy, or use another checkpoint".into(),
            )),
            _ => Ok(file),
        }
    }

    /// Where it was read from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes in the file.
    pub fn size(&self) -> usize {
        self.bytes.len()
    }

    /// Whether it carries a checksum, which then was right.
    pub fn is_checksummed(&self) -> bool {
        self.written_checksum().is_some()
    }

    /// Names of its tensors, sorted.
    pub fn names(&self) -> Vec<String> {
        let mut names = self.header.offset_keys();
        names.sort_unstable();
        names
    }

    /// Shape of a tensor, outermost dimension first; `None` where there is none of that name.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.header.info(name).map(|info| info.shape.as_slice())
    }

    /// Element type of a tensor, as the file spells it.
    pub fn dtype(&self, name: &str) -> Option<String> {
        self.header.info(name).map(|info| info.dtype.to_string())
    }

    /// An error that names this file and one of its tensors.
    pub fn error(&self, name: &str, why: impl Into<String>) -> Error {
        Error::Tensor { file: self.path.clone(), tensor: name.into(), why: why.into() }
    }

    /// Copies a tensor of exactly `out.len()` finite elements, whatever float type it has.
    ///
    /// # Errors
    ///
    /// [`Error::Tensor`] for one that is missing, of another length or type, or not finite.
    pub fn read(&self, name: &str, out: &mut [f32]) -> Result<()> {
        let info = self.header.info(name).ok_or_else(|| self.error(name, "is missing"))?;
        let bytes = self.data().get(info.data_offsets.0..info.data_offsets.1).unwrap_or_default();
        match info.dtype {
            Dtype::F32 => convert(bytes, out, f32::from_le_bytes),
            Dtype::F16 => convert(bytes, out, |b| f16::from_le_bytes(b).to_f32()),
            Dtype::BF16 => convert(bytes, out, |b| bf16::from_le_bytes(b).to_f32()),
            Dtype::F64 => convert(bytes, out, |b| f64::from_le_bytes(b) as f32),
            other => Err(format!("has type {other}; only F32, F16, BF16 and F64 can be read")),
        }
        .map_err(|why| self.error(name, why))
    }

    fn data(&self) -> &[u8] {
        self.bytes.get(self.data..).unwrap_or_default()
    }

    fn written_checksum(&self) -> Option<&str> {
        self.header.metadata().as_ref()?.get(CHECKSUM).map(String::as_str)
    }
}

fn convert<const SIZE: usize>(
    bytes: &[u8], out: &mut [f32], element: impl Fn([u8; SIZE]) -> f32,
) -> std::result::Result<(), String> {
    let (elements, rest) = bytes.as_chunks::<SIZE>();
    if elements.len() != out.len() || !rest.is_empty() {
        return Err(format!("has {} elements, expected {}", elements.len(), out.len()));
    }
    for (value, &raw) in out.iter_mut().zip(elements) {
        *value = element(raw);
    }
    match out.iter().position(|value| !value.is_finite()) {
        None => Ok(()),
        Some(i) => Err(format!("holds {} at element {i}; these weights cannot be used", out[i])),
    }
}

fn checksum<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> String {
    let mut hash = Xxh3::new();
    for part in parts {
        hash.update(part);
    }
    format!("{:016x}", hash.digest())
}

/// A tensor to be written.
#[derive(Debug, Clone, Copy)]
pub struct Tensor<'a> {
    /// Its shape, outermost dimension first.
    pub shape: &'a [usize],
    /// Its elements, row-major.
    pub values: &'a [f32],
}

/// Writes f32 tensors, in the order of their names, to `path`.
///
/// The header is written here and not by the safetensors crate, whose metadata comes out in random
/// order: the same tensors make the same bytes.
///
/// # Errors
///
/// Those of the file system.
pub fn write(path: &Path, tensors: &BTreeMap<String, Tensor<'_>>) -> std::io::Result<()> {
    let mut header = Map::new();
    let sum = checksum(tensors.values().map(|t| bytemuck::cast_slice(t.values)));
    header.insert("__metadata__".into(), json!({ "format": "pt", CHECKSUM: sum }));
    let mut end = 0;
    for (name, tensor) in tensors {
        let begin = end;
        end += size_of_val(tensor.values);
        header.insert(name.clone(), json!({ "dtype": "F32", "shape": tensor.shape, "data_offsets": [begin, end] }));
    }
    let mut header = Value::Object(header).to_string();
    let padding = header.len().next_multiple_of(8) - header.len(); // keeps the data aligned for readers that map it
    header.extend(std::iter::repeat_n(' ', padding));

    let file = File::create(path)?;
    let mut out = BufWriter::with_capacity(1 << 20, file);
    out.write_all(&(header.len() as u64).to_le_bytes())?;
    out.write_all(header.as_bytes())?;
    for tensor in tensors.values() {
        out.write_all(bytemuck::cast_slice(tensor.values))?;
    }
    out.into_inner()?.sync_all()
}
