//! meta.json: what a token set holds and how to tell that it is whole.

use std::collections::BTreeMap;
use std::path::Path;

use xxhash_rust::xxh3::xxh3_64;

use super::super::{Error, Result};

/// Name of the description in its directory.
pub(super) const META: &str = "meta.json";

/// Value of the field `format`.
const FORMAT: &str = "handbert token set";

/// The version that is written and the only one that is read.
const VERSION: u32 = 1;

/// How a token id is stored, little endian.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// Two bytes, for at most 65,536 tokens in the vocabulary.
    U16,
    /// Four bytes.
    U32,
}

impl Dtype {
    /// The smallest that holds every id below `vocab_size`.
    pub fn for_vocabulary(vocab_size: u64) -> Dtype {
        if vocab_size > 1 << 16 { Dtype::U32 } else { Dtype::U16 }
    }

    /// Bytes of an id.
    pub fn bytes(self) -> u64 {
        match self {
            Dtype::U16 => 2,
            Dtype::U32 => 4,
        }
    }
}

/// Size and checksum of one file.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct FileSum {
    /// Its length.
    pub bytes: u64,
    /// xxh3 of its contents, 64 bits in hexadecimal.
    pub xxh3: String,
}

/// How much of the set a quadruple of files holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Shard {
    /// Samples.
    pub samples: u64,
    /// Tokens of these samples.
    pub tokens: u64,
}

/// What meta.json holds.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Meta {
    /// Always `handbert token set`.
    pub format: String,
    /// Version of the format.
    pub version: u32,
    /// How ids are stored.
    pub dtype: Dtype,
    /// Samples in all shards.
    pub samples: u64,
    /// Tokens in all shards, special tokens not counted: there are none.
    pub tokens: u64,
    /// V of the tokenizer; every id is below it.
    pub vocab_size: u64,
    /// Fingerprint of the tokenizer, whose files stand beside this one.
    pub tokenizer: String,
    /// Columns whose texts were joined.
    pub text_columns: Vec<String>,
    /// Column of the labels.
    pub label_column: Option<String>,
    /// Column of the groups.
    pub group_column: Option<String>,
    /// Names of the classes by number; empty where there are no labels and no label files.
    pub label_names: Vec<String>,
    /// What each shard holds, in order.
    pub shards: Vec<Shard>,
    /// Every other file of the set.
    pub files: BTreeMap<String, FileSum>,
    /// xxh3 of this description with this field empty, 64 bits in hexadecimal.
    pub checksum: String,
}

/// The four kinds of shard files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    Tokens,
    Offsets,
    Labels,
    Groups,
}

impl Part {
    pub(super) fn file(self, shard: usize) -> String {
        let stem = match self {
            Part::Tokens => "tokens",
            Part::Offsets => "offsets",
            Part::Labels => "labels",
            Part::Groups => "groups",
        };
        format!("{stem}-{shard:05}.bin")
    }

    /// The length the file must have.
    pub(super) fn bytes(self, shard: Shard, dtype: Dtype) -> Option<u64> {
        match self {
            Part::Tokens => shard.tokens.checked_mul(dtype.bytes()),
            Part::Offsets => shard.samples.checked_add(1)?.checked_mul(8),
            Part::Labels => shard.samples.checked_mul(4),
            Part::Groups => shard.samples.checked_mul(8),
        }
    }
}

/// What the writer is told about a set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct About {
    /// Columns whose texts were joined.
    pub text_columns: Vec<String>,
    /// Column of the labels.
    pub label_column: Option<String>,
    /// Column of the groups.
    pub group_column: Option<String>,
    /// Names of the classes by number; empty where there are none or they are not known yet.
    pub label_names: Vec<String>,
    /// What to do with a token set that is already there.
    pub existing: Existing,
    /// A file that grew to this many bytes is followed by another shard.
    pub shard_bytes: u64,
}

impl Default for About {
    fn default() -> Self {
        About {
            text_columns: Vec::new(),
            label_column: None,
            group_column: None,
            label_names: Vec::new(),
            existing: Existing::Refuse,
            shard_bytes: 1 << 30,
        }
    }
}

/// What to do with a token set that is already where one is to be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Existing {
    /// An error.
    #[default]
    Refuse,
    /// Replace it, once the new one is complete.
    Replace,
}

/// The error of a set that cannot be used: what differs, and how to get a good one.
pub(super) fn damaged(path: &Path, what: impl std::fmt::Display) -> Error {
    let dir = if path.is_dir() { path } else { path.parent().unwrap_or(path) };
    let why = format!("{what}; rebuild it with `handbert tokenize FILES… --out {} --overwrite`", dir.display());
    Error::File { path: path.to_owned(), why }
}

/// Checksum of a file's contents as it stands in meta.json.
pub(super) fn hex(hash: u64) -> String {
    format!("{hash:016x}")
}

impl Meta {
    pub(super) fn new(about: &About, vocab_size: u64, fingerprint: String) -> Meta {
        Meta {
            format: FORMAT.to_owned(),
            version: VERSION,
            dtype: Dtype::for_vocabulary(vocab_size),
            samples: 0,
            tokens: 0,
            vocab_size,
            tokenizer: fingerprint,
            text_columns: about.text_columns.clone(),
            label_column: about.label_column.clone(),
            group_column: about.group_column.clone(),
            label_names: about.label_names.clone(),
            shards: Vec::new(),
            files: BTreeMap::new(),
            checksum: String::new(),
        }
    }

    /// Parts that each shard of the set has.
    pub(super) fn parts(&self) -> &'static [Part] {
        if self.label_names.is_empty() {
            &[Part::Tokens, Part::Offsets, Part::Groups]
        } else {
            &[Part::Tokens, Part::Offsets, Part::Groups, Part::Labels]
        }
    }

    fn own_checksum(&self) -> Option<String> {
        let bare = Meta { checksum: String::new(), ..self.clone() };
        serde_json::to_vec(&bare).ok().map(|bytes| hex(xxh3_64(&bytes)))
    }

    /// The contents of meta.json, checksum included.
    pub(super) fn sealed(mut self) -> Result<(Meta, String)> {
        let failed = || Error::Invalid("meta.json: a name cannot be written as JSON".to_owned());
        self.checksum = self.own_checksum().ok_or_else(failed)?;
        let text = serde_json::to_string_pretty(&self).map_err(|_| failed())?;
        Ok((self, text + "\n"))
    }

    /// Reads and checks a description; `path` is for errors.
    pub(super) fn parse(bytes: &[u8], path: &Path) -> Result<Meta> {
        let differs = |field: &str, expected: &dyn std::fmt::Display, found: &dyn std::fmt::Display| {
            damaged(path, format!("field {field:?} is {found}, expected {expected}"))
        };
        let value: serde_json::Value = serde_json::from_slice(bytes)
            .map_err(|e| damaged(path, format!("not the description of a token set ({e})")))?;
        if value["format"] != FORMAT {
            return Err(differs("format", &format!("{FORMAT:?}"), &value["format"]));
        }
        // A later version may have other fields: say so before they are missed.
        if value["version"] != VERSION {
            return Err(differs("version", &VERSION, &value["version"]));
        }
        let meta: Meta = serde_json::from_value(value).map_err(|e| damaged(path, e))?;
        let checksum = meta.own_checksum().unwrap_or_default();
        if checksum != meta.checksum {
            return Err(differs("checksum", &checksum, &meta.checksum));
        }
        if let Some(name) = meta.files.keys().find(|name| name.contains(['/', '\\'])) {
            return Err(differs("files", &"names of files in this directory", &format!("{name:?}")));
        }
        let sum = |count: fn(&Shard) -> u64| meta.shards.iter().map(count).try_fold(0u64, u64::checked_add);
        for (field, stated, found) in
            [("samples", meta.samples, sum(|s| s.samples)), ("tokens", meta.tokens, sum(|s| s.tokens))]
        {
            if found != Some(stated) {
                return Err(differs(field, &format!("the sum over shards, {}", found.unwrap_or(u64::MAX)), &stated));
            }
        }
        let dtype = Dtype::for_vocabulary(meta.vocab_size);
        if meta.dtype != dtype {
            return Err(differs(
                "dtype",
                &format!("{dtype:?} for vocab_size {}", meta.vocab_size),
                &format!("{:?}", meta.dtype),
            ));
        }
        Ok(meta)
    }
}
