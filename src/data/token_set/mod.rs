//! A corpus as token ids on disk, mapped into memory: opening a set reads its description and nothing else.
//!
//! A directory holds `meta.json`, the tokenizer's files, and shards of about 1 GiB:
//!
//! | file | holds |
//! | --- | --- |
//! | `tokens-00000.bin` | ids of all samples end to end, u16 or u32, without special tokens |
//! | `offsets-00000.bin` | u64, where each sample begins in it, and its end: one more than samples |
//! | `labels-00000.bin` | i32, the class of each sample, -1 for none; only in sets with labels |
//! | `groups-00000.bin` | u64, the hash that decides each sample's side of a split |
//!
//! All numbers are little endian. Nothing in these files is trusted: what an offset points at is checked
//! whenever it is used, [`TokenSet::verify`] checks every byte.

mod build;
mod mapped;
mod meta;
mod rows;
mod stamps;
mod writer;

use std::path::{Path, PathBuf};

use rayon::prelude::*;
use xxhash_rust::xxh3::xxh3_64;

use super::{Error, Result, Tokenizer};
pub use build::{BuildOptions, BuildReport, build, build_rows};
use mapped::Mapped;
pub use meta::{About, Dtype, Existing, FileSum, Meta, Shard};
use meta::{META, Part, damaged, hex};
pub use rows::{FileRows, texts};
pub use stamps::Stamps;
pub use writer::TokenSetWriter;

/// An opened token set.
#[derive(Debug)]
pub struct TokenSet {
    dir: PathBuf,
    meta: Meta,
    shards: Vec<Files>,
    /// Number of the first sample of each shard, ascending.
    first: Vec<u64>,
    stamps: Stamps,
}

/// The files of one shard.
#[derive(Debug)]
struct Files {
    tokens: Mapped,
    offsets: Mapped,
    groups: Mapped,
    labels: Option<Mapped>,
    samples: u64,
}

/// Where the tokens of a sample are.
struct Place<'a> {
    files: &'a Files,
    start: usize,
    len: u32,
}

impl TokenSet {
    /// Opens a set: reads meta.json and the length of every file, and maps them. Takes milliseconds and no
    /// memory, whatever the size.
    ///
    /// # Errors
    /// No token set, another version, or a file that is missing or of another length than meta.json says.
    pub fn open(dir: &Path) -> Result<TokenSet> {
        let path = dir.join(META);
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(source) if source.kind() == std::io::ErrorKind::NotFound => {
                let why =
                    format!("no {META}, so this is no token set; make one with `handbert tokenize FILES… --out DIR`");
                return Err(Error::File { path: dir.to_owned(), why });
            }
            Err(source) => return Err(Error::Io { path, source }),
        };
        let meta = Meta::parse(&bytes, &path)?;
        for (name, sum) in &meta.files {
            check_length(&dir.join(name), sum.bytes)?;
        }
        // Before anything is mapped: what changes from now on is noticed.
        let stamps = Stamps::of(dir, meta.files.keys())?;
        let (mut shards, mut first) = (Vec::with_capacity(meta.shards.len()), Vec::with_capacity(meta.shards.len()));
        let mut samples = 0;
        for number in 0..meta.shards.len() {
            first.push(samples);
            let files = open_shard(dir, &meta, number)?;
            samples += files.samples;
            shards.push(files);
        }
        Ok(TokenSet { dir: dir.to_owned(), meta, shards, first, stamps })
    }

    /// Number of samples.
    pub fn len(&self) -> u64 {
        self.meta.samples
    }

    /// Whether there is no sample.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Number of tokens of all samples; special tokens are not stored.
    pub fn tokens_total(&self) -> u64 {
        self.meta.tokens
    }

    /// What meta.json says.
    pub fn meta(&self) -> &Meta {
        &self.meta
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The tokenizer the set was made with.
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        let tokenizer = Tokenizer::load(&self.dir)?;
        self.check_tokenizer(&tokenizer)?;
        Ok(tokenizer)
    }

    /// Whether the set was made with this tokenizer.
    ///
    /// # Errors
    /// It was not: its ids would mean other tokens.
    pub fn check_tokenizer(&self, tokenizer: &Tokenizer) -> Result<()> {
        let (expected, found) = (tokenizer.fingerprint(), &self.meta.tokenizer);
        if expected == *found {
            return Ok(());
        }
        let what = format!(
            "field \"tokenizer\" is {found} with {} tokens, expected {expected} with {}: it was made with another vocabulary",
            self.meta.vocab_size,
            tokenizer.vocab_size()
        );
        Err(damaged(&self.dir.join(META), what))
    }

    fn place(&self, sample: u64) -> Result<Place<'_>> {
        let shard = self.first.partition_point(|&first| first <= sample).checked_sub(1);
        let Some((files, &first)) = shard.and_then(|s| Some((self.shards.get(s)?, self.first.get(s)?))) else {
            return Err(self.outside(sample));
        };
        let offsets: &[u64] = files.offsets.numbers().unwrap_or_default();
        let local = usize::try_from(sample - first).unwrap_or(usize::MAX);
        let Some(&[start, end]) = offsets.get(local..).and_then(|rest| rest.first_chunk::<2>()) else {
            return Err(self.outside(sample));
        };
        let (start, end) = (u64::from_le(start), u64::from_le(end));
        let stored = files.tokens.bytes().len() as u64 / self.meta.dtype.bytes();
        match end.checked_sub(start).map(u32::try_from) {
            Some(Ok(len)) if end <= stored => Ok(Place { files, start: start as usize, len }),
            _ => {
                let what = format!("sample {sample} is tokens {start} to {end} of {stored}: the offsets are damaged");
                Err(damaged(&files.offsets.path, what))
            }
        }
    }

    fn outside(&self, sample: u64) -> Error {
        Error::Invalid(format!("{}: sample {sample} of {}", self.dir.display(), self.len()))
    }

    /// Number of tokens of a sample.
    ///
    /// # Errors
    /// There is no such sample, or its offsets are damaged.
    pub fn sample_len(&self, sample: u64) -> Result<u32> {
        self.place(sample).map(|place| place.len)
    }

    /// Appends `len` tokens of a sample, from its token `start` on.
    ///
    /// # Errors
    /// There are no such tokens, or the offsets are damaged.
    pub fn append_tokens(&self, sample: u64, start: u32, len: u32, out: &mut Vec<u32>) -> Result<()> {
        let place = self.place(sample)?;
        if start.checked_add(len).is_none_or(|end| end > place.len) {
            let dir = self.dir.display();
            return Err(Error::Invalid(format!(
                "{dir}: tokens {start} to {start} + {len} of {} of sample {sample}",
                place.len
            )));
        }
        let range = place.start + start as usize..place.start + start as usize + len as usize;
        let missing = || damaged(&place.files.tokens.path, format!("tokens {range:?} are not there"));
        match self.meta.dtype {
            Dtype::U16 => {
                let tokens: &[u16] = place.files.tokens.numbers().unwrap_or_default();
                out.extend(
                    tokens.get(range.clone()).ok_or_else(missing)?.iter().map(|&id| u32::from(u16::from_le(id))),
                );
            }
            Dtype::U32 => {
                let tokens: &[u32] = place.files.tokens.numbers().unwrap_or_default();
                out.extend(tokens.get(range.clone()).ok_or_else(missing)?.iter().map(|&id| u32::from_le(id)));
            }
        }
        Ok(())
    }

    fn number<T: bytemuck::AnyBitPattern>(&self, sample: u64, part: impl Fn(&Files) -> Option<&Mapped>) -> Option<T> {
        let shard = self.first.partition_point(|&first| first <= sample).checked_sub(1)?;
        let local = usize::try_from(sample - self.first.get(shard)?).ok()?;
        part(self.shards.get(shard)?)?.numbers::<T>()?.get(local).copied()
    }

    /// Class of a sample, -1 for none.
    pub fn label(&self, sample: u64) -> i32 {
        self.number(sample, |files| files.labels.as_ref()).map_or(-1, i32::from_le)
    }

    /// Hash that decides the side of a sample, see [`super::split::Split`].
    pub fn group(&self, sample: u64) -> u64 {
        self.number(sample, |files| Some(&files.groups)).map_or(0, u64::from_le)
    }

    /// Checks every byte against the checksums, then that every offset, id and label is in range.
    ///
    /// # Errors
    /// The first file, in order of names, that differs.
    pub fn verify(&self) -> Result<()> {
        let files: Vec<_> = self.meta.files.iter().collect();
        let checks: Vec<Result<()>> =
            files.par_iter().map(|(name, sum)| check_sum(&self.dir.join(name), &sum.xxh3)).collect();
        checks.into_iter().collect::<Result<()>>()?;
        self.shards.iter().try_for_each(|files| self.verify_values(files))
    }

    fn verify_values(&self, files: &Files) -> Result<()> {
        let offsets: &[u64] = files.offsets.numbers().unwrap_or_default();
        let stored = files.tokens.bytes().len() as u64 / self.meta.dtype.bytes();
        let ends = (offsets.first().map(|&o| u64::from_le(o)), offsets.last().map(|&o| u64::from_le(o)));
        if ends != (Some(0), Some(stored)) || !offsets.is_sorted_by_key(|&o| u64::from_le(o)) {
            return Err(damaged(&files.offsets.path, format!("the offsets do not ascend from 0 to {stored}")));
        }
        let largest = match self.meta.dtype {
            Dtype::U16 => files
                .tokens
                .numbers::<u16>()
                .unwrap_or_default()
                .par_iter()
                .map(|&id| u32::from(u16::from_le(id)))
                .max(),
            Dtype::U32 => {
                files.tokens.numbers::<u32>().unwrap_or_default().par_iter().map(|&id| u32::from_le(id)).max()
            }
        };
        if let Some(id) = largest.filter(|&id| u64::from(id) >= self.meta.vocab_size) {
            let what = format!("it holds id {id}, and the vocabulary has {}", self.meta.vocab_size);
            return Err(damaged(&files.tokens.path, what));
        }
        let classes = self.meta.label_names.len() as i64;
        if let Some(labels) = &files.labels {
            let numbers = labels.numbers::<i32>().unwrap_or_default();
            let bad = numbers.iter().map(|&label| i64::from(i32::from_le(label))).find(|l| !(-1..classes).contains(l));
            if let Some(label) = bad {
                return Err(damaged(&labels.path, format!("it holds label {label} of {classes}")));
            }
        }
        Ok(())
    }
}

fn open_shard(dir: &Path, meta: &Meta, number: usize) -> Result<Files> {
    let shard = meta.shards[number];
    let map = |part: Part| {
        let name = part.file(number);
        let path = dir.join(&name);
        let expected = part.bytes(shard, meta.dtype);
        let stated = meta.files.get(&name).map(|sum| sum.bytes);
        if expected.is_none() || stated != expected {
            let found = stated.map_or("missing".to_owned(), |bytes| format!("{bytes} bytes"));
            let what = format!("field \"files.{name}\" is {found}, expected {} bytes", expected.unwrap_or(u64::MAX));
            return Err(damaged(&dir.join(META), what));
        }
        Mapped::open(&path)
    };
    let labels = if meta.parts().contains(&Part::Labels) { Some(map(Part::Labels)?) } else { None };
    Ok(Files {
        tokens: map(Part::Tokens)?,
        offsets: map(Part::Offsets)?,
        groups: map(Part::Groups)?,
        labels,
        samples: shard.samples,
    })
}

fn check_length(path: &Path, expected: u64) -> Result<()> {
    match std::fs::metadata(path) {
        Ok(found) if found.len() == expected => Ok(()),
        Ok(found) => Err(damaged(path, format!("it has {} bytes, expected {expected}", found.len()))),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Err(damaged(path, "the file is missing")),
        Err(source) => Err(Error::Io { path: path.to_owned(), source }),
    }
}

fn check_sum(path: &Path, expected: &str) -> Result<()> {
    let found = hex(xxh3_64(Mapped::open(path)?.bytes()));
    if found == expected {
        return Ok(());
    }
    Err(damaged(path, format!("its checksum is {found}, expected {expected}: its contents have changed")))
}
