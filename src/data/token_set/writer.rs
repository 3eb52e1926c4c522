//! Writing a token set: everything under a temporary name beside the target, renamed last.

use std::fs::{self, File};
use std::io::{BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::Xxh3;

use super::super::tokenizer::{FILES, Tokenizer};
use super::super::{Error, Result};
use super::meta::{META, Part, hex};
use super::{About, Dtype, Existing, FileSum, Meta, Shard, TokenSet};
use crate::disk;

const BUFFER_BYTES: usize = 1 << 18;

fn io_error(path: &Path) -> impl FnOnce(std::io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Io { path, source }
}

/// Writes a token set sample by sample. Until [`TokenSetWriter::finish`], and after any error, what stood
/// at the target stands there still; a writer that is dropped leaves nothing behind.
pub struct TokenSetWriter {
    target: PathBuf,
    existing: Existing,
    partial: Partial,
    meta: Meta,
    shard_bytes: u64,
    shard: ShardWriter,
    bytes: Vec<u8>,
}

/// The temporary directory; removed when dropped.
struct Partial(PathBuf);

impl Drop for Partial {
    fn drop(&mut self) {
        // After a rename there is nothing here; otherwise this is as much as can be done.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A file whose length and checksum are known when it is closed.
struct SumFile {
    path: PathBuf,
    file: BufWriter<File>,
    hash: Box<Xxh3>,
    bytes: u64,
}

impl SumFile {
    fn create(path: PathBuf) -> Result<SumFile> {
        let file = File::create_new(&path).map_err(io_error(&path))?;
        Ok(SumFile { path, file: BufWriter::with_capacity(BUFFER_BYTES, file), hash: Box::default(), bytes: 0 })
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(io_error(&self.path))?;
        self.hash.update(bytes);
        self.bytes += bytes.len() as u64;
        Ok(())
    }

    /// Writes what is buffered and waits until it is on the disk, so that a full disk is an error now.
    fn close(mut self) -> Result<FileSum> {
        self.file.flush().map_err(io_error(&self.path))?;
        self.file.get_ref().sync_data().map_err(io_error(&self.path))?;
        Ok(FileSum { bytes: self.bytes, xxh3: hex(self.hash.digest()) })
    }
}

/// The files of the shard being written.
struct ShardWriter {
    tokens: SumFile,
    offsets: SumFile,
    groups: SumFile,
    labels: Option<SumFile>,
    holds: Shard,
}

impl ShardWriter {
    fn create(dir: &Path, number: usize, labelled: bool) -> Result<ShardWriter> {
        let create = |part: Part| SumFile::create(dir.join(part.file(number)));
        let mut offsets = create(Part::Offsets)?;
        offsets.write(&0u64.to_le_bytes())?;
        let labels = if labelled { Some(create(Part::Labels)?) } else { None };
        let (tokens, groups) = (create(Part::Tokens)?, create(Part::Groups)?);
        Ok(ShardWriter { tokens, offsets, groups, labels, holds: Shard { samples: 0, tokens: 0 } })
    }

    fn largest(&self) -> u64 {
        self.tokens.bytes.max(self.offsets.bytes)
    }

    fn close(self, number: usize, meta: &mut Meta) -> Result<()> {
        let files = [
            (Part::Tokens, Some(self.tokens)),
            (Part::Offsets, Some(self.offsets)),
            (Part::Groups, Some(self.groups)),
            (Part::Labels, self.labels),
        ];
        for (part, file) in files {
            if let Some(file) = file {
                meta.files.insert(part.file(number), file.close()?);
            }
        }
        meta.samples += self.holds.samples;
        meta.tokens += self.holds.tokens;
        meta.shards.push(self.holds);
        Ok(())
    }
}

impl TokenSetWriter {
    /// Whether a set may be written at `dir`: nothing is there, an empty directory, or a token set to be replaced,
    /// which goes with all that stands in its directory and so must be alone there.
    ///
    /// # Errors
    /// It may not, and why.
    pub fn check_target(dir: &Path, existing: Existing) -> Result<()> {
        let refuse = |why: &str| Err(Error::File { path: dir.to_owned(), why: why.to_owned() });
        match fs::read_dir(dir) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(e) if e.kind() == std::io::ErrorKind::NotADirectory => refuse("a file stands here; give another --out"),
            Err(source) => Err(Error::Io { path: dir.to_owned(), source }),
            Ok(entries) => {
                let names = entries.map(|entry| entry.map(|entry| entry.file_name().to_string_lossy().into_owned()));
                let names = names.collect::<std::io::Result<Vec<String>>>().map_err(io_error(dir))?;
                let foreign = names.iter().find(|name| !is_part_of_a_set(name));
                match (names.iter().any(|name| name == META), foreign, existing) {
                    _ if names.is_empty() => Ok(()),
                    (true, Some(name), Existing::Replace) => refuse(&format!(
                        "it holds {name}, which is no part of a token set and would be lost; move it away or give \
                         another --out"
                    )),
                    (true, None, Existing::Replace) => Ok(()),
                    (true, _, Existing::Refuse) => {
                        refuse("a token set is here already; replace it with --overwrite or give another --out")
                    }
                    (false, _, _) => refuse("the directory is neither empty nor a token set; give another --out"),
                }
            }
        }
    }

    /// Starts a set at `dir`, for ids of `tokenizer`.
    ///
    /// # Errors
    /// `dir` is a token set and [`About::existing`] says to refuse, or it is neither a token set nor empty.
    pub fn create(dir: &Path, tokenizer: &Tokenizer, about: About) -> Result<Self> {
        Self::check_target(dir, about.existing)?;
        let file_error = |path: &Path, why: &str| Error::File { path: path.to_owned(), why: why.to_owned() };
        // A link to a directory stays one: the set takes the place of what it points at.
        let linked = if dir.is_symlink() { fs::canonicalize(dir).ok() } else { None };
        let dir = linked.as_deref().unwrap_or(dir);
        if dir.file_name().is_none() {
            return Err(file_error(dir, "this names no directory that could be made; give one with --out"));
        }
        let parent = dir.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        fs::create_dir_all(parent).map_err(io_error(parent))?;
        let partial = disk::temporary(dir);
        fs::create_dir(&partial).map_err(|source| match source.kind() {
            // Numbers of processes come again, in a container most of all.
            std::io::ErrorKind::AlreadyExists => {
                file_error(&partial, "is left from a run that was killed; delete it, unless that run goes on elsewhere")
            }
            _ => Error::Io { path: partial.clone(), source },
        })?;
        let partial = Partial(partial);
        tokenizer.save(&partial.0)?;
        let labelled = about.label_column.is_some() || !about.label_names.is_empty();
        let shard = ShardWriter::create(&partial.0, 0, labelled)?;
        let meta = Meta::new(&about, tokenizer.vocab_size() as u64, tokenizer.fingerprint());
        let (existing, shard_bytes) = (about.existing, about.shard_bytes);
        Ok(TokenSetWriter { target: dir.to_owned(), existing, partial, meta, shard_bytes, shard, bytes: Vec::new() })
    }

    /// Appends a sample: its ids without [CLS] and [SEP], its class or -1, and the hash of its group.
    ///
    /// # Errors
    /// An id outside the vocabulary; a disk that is full.
    pub fn push(&mut self, ids: &[u32], label: i32, group: u64) -> Result<()> {
        if let Some(id) = ids.iter().find(|&&id| u64::from(id) >= self.meta.vocab_size) {
            return Err(Error::Invalid(format!("token id {id} is outside the vocabulary of {}", self.meta.vocab_size)));
        }
        if u32::try_from(ids.len()).is_err() {
            return Err(Error::Invalid(format!("a sample of {} tokens; the most is {}", ids.len(), u32::MAX)));
        }
        if self.shard.largest() >= self.shard_bytes {
            let labelled = self.shard.labels.is_some();
            let number = self.meta.shards.len();
            let next = ShardWriter::create(&self.partial.0, number + 1, labelled)?;
            std::mem::replace(&mut self.shard, next).close(number, &mut self.meta)?;
        }
        self.bytes.clear();
        match self.meta.dtype {
            Dtype::U16 => self.bytes.extend(ids.iter().flat_map(|&id| (id as u16).to_le_bytes())),
            Dtype::U32 => self.bytes.extend(ids.iter().flat_map(|id| id.to_le_bytes())),
        }
        let shard = &mut self.shard;
        shard.holds.samples += 1;
        shard.holds.tokens += ids.len() as u64;
        shard.tokens.write(&self.bytes)?;
        shard.offsets.write(&shard.holds.tokens.to_le_bytes())?;
        shard.groups.write(&group.to_le_bytes())?;
        match &mut shard.labels {
            Some(labels) => labels.write(&label.to_le_bytes()),
            None => Ok(()),
        }
    }

    /// Samples written so far.
    pub fn samples(&self) -> u64 {
        self.meta.samples + self.shard.holds.samples
    }

    /// Completes the set and puts it in its place.
    pub fn finish(self) -> Result<TokenSet> {
        let names = self.meta.label_names.clone();
        let same: Vec<i32> = (0..).take(names.len()).collect();
        self.finish_with_labels(names, &same)
    }

    /// [`TokenSetWriter::finish`] for labels that were numbered as they came: class `c` as it was pushed
    /// becomes `renumbered[c]`, and `names` are the classes' names by their final numbers.
    pub fn finish_with_labels(self, names: Vec<String>, renumbered: &[i32]) -> Result<TokenSet> {
        let TokenSetWriter { target, existing, partial, mut meta, shard, .. } = self;
        let labelled = shard.labels.is_some();
        shard.close(meta.shards.len(), &mut meta)?;
        let identity = renumbered.iter().zip(0..).all(|(&to, from)| to == from);
        meta.label_names = names;
        for number in 0..meta.shards.len() {
            let name = Part::Labels.file(number);
            let path = partial.0.join(&name);
            if labelled && meta.label_names.is_empty() {
                // A label column in which no row had a label.
                fs::remove_file(&path).map_err(io_error(&path))?;
                meta.files.remove(&name);
            } else if labelled && !identity {
                meta.files.insert(name, renumber(&path, renumbered)?);
            }
        }
        for name in FILES {
            let path = partial.0.join(name);
            let bytes = fs::read(&path).map_err(io_error(&path))?;
            let sum = FileSum { bytes: bytes.len() as u64, xxh3: hex(xxhash_rust::xxh3::xxh3_64(&bytes)) };
            meta.files.insert(name.to_owned(), sum);
        }
        let (_, text) = meta.sealed()?;
        let path = partial.0.join(META);
        fs::write(&path, text).map_err(io_error(&path))?;
        // The other files are on the disk since they were closed.
        for path in FILES.map(|name| partial.0.join(name)).iter().chain([&path, &partial.0]) {
            disk::sync(path).map_err(io_error(path))?;
        }
        put_in_place(&partial.0, &target, existing)?;
        TokenSet::open(&target)
    }
}

/// Whether a file of this name is one that a token set is made of.
fn is_part_of_a_set(name: &str) -> bool {
    let parts = [Part::Tokens, Part::Offsets, Part::Labels, Part::Groups];
    let number = name.strip_suffix(".bin").and_then(|stem| stem.rsplit_once('-')?.1.parse::<usize>().ok());
    let is_shard_file = number.is_some_and(|number| parts.iter().any(|part| part.file(number) == name));
    name == META || FILES.contains(&name) || is_shard_file
}

/// Rewrites a label file with each class replaced.
fn renumber(path: &Path, renumbered: &[i32]) -> Result<FileSum> {
    let fresh = path.with_extension("new");
    let mut reader = std::io::BufReader::with_capacity(BUFFER_BYTES, File::open(path).map_err(io_error(path))?);
    let mut writer = SumFile::create(fresh.clone())?;
    let mut bytes = [0u8; 4];
    loop {
        match reader.read_exact(&mut bytes) {
            Ok(()) => {}
            Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => break,
            Err(e) => return Err(io_error(path)(e)),
        }
        let label = i32::from_le_bytes(bytes);
        let class = usize::try_from(label).ok().and_then(|class| renumbered.get(class));
        writer.write(&class.copied().unwrap_or(-1).to_le_bytes())?;
    }
    let sum = writer.close()?;
    fs::rename(&fresh, path).map_err(io_error(path))?;
    Ok(sum)
}

/// Renames the finished directory to its name; a set that stood there is removed only once it is replaced.
fn put_in_place(partial: &Path, target: &Path, existing: Existing) -> Result<()> {
    // Long hours may have passed since the first check.
    TokenSetWriter::check_target(target, existing)?;
    if !target.join(META).exists() {
        return disk::rename(partial, target).map_err(io_error(target));
    }
    let old = partial.with_extension(format!("old-{}", std::process::id()));
    fs::rename(target, &old).map_err(io_error(target))?;
    if let Err(source) = disk::rename(partial, target) {
        // Back to what was: the error that matters is the first.
        let _ = fs::rename(&old, target);
        return Err(Error::Io { path: target.to_owned(), source });
    }
    fs::remove_dir_all(&old).map_err(io_error(&old))
}
