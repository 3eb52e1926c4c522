//! Compiled kernels on disk: one file for each family, sizes and architecture, named by a hash of everything that
//! decides its content.
//!
//! A file is one line of text, `handbert kernels 1 <xxh3 of the rest>`, then the length of the compiler's log as a u64 (little
//! endian), the log, the machine code.

use std::fs;
use std::path::PathBuf;

use xxhash_rust::xxh3::xxh3_64;

use super::nvrtc::Compiled;
use crate::disk;

const HEADER: &str = "handbert kernels 1 ";

/// A directory of compiled kernels.
#[derive(Debug, Clone)]
pub struct Store {
    dir: PathBuf,
}

/// What a look-up came to.
#[derive(Debug, PartialEq, Eq)]
pub enum Found {
    /// It is there and whole.
    Whole(Compiled),
    /// It is there, but not what was written.
    Damaged,
    /// It is not there, or cannot be read.
    Missing,
}

impl Store {
    /// In this directory, which need not exist.
    pub fn new(dir: impl Into<PathBuf>) -> Store {
        Store { dir: dir.into() }
    }

    /// Where a file of this name lies.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Looks a file up.
    pub fn get(&self, name: &str) -> Found {
        match fs::read(self.path(name)) {
            Ok(bytes) => parse(&bytes).map_or(Found::Damaged, Found::Whole),
            Err(_) => Found::Missing,
        }
    }

    /// Writes a file, the directory too where it is missing.
    pub fn put(&self, name: &str, compiled: &Compiled) -> std::io::Result<()> {
        let mut body = (compiled.log.len() as u64).to_le_bytes().to_vec();
        body.extend_from_slice(compiled.log.as_bytes());
        body.extend_from_slice(&compiled.cubin);
        let header = format!("{HEADER}{:016x}\n", xxh3_64(&body));
        fs::create_dir_all(&self.dir)?;
        disk::replace(&self.path(name), [header.as_bytes(), &body].concat())
    }
}

fn parse(bytes: &[u8]) -> Option<Compiled> {
    let rest = bytes.strip_prefix(HEADER.as_bytes())?;
    let (checksum, body) = rest.split_at_checked(17)?;
    let checksum = u64::from_str_radix(std::str::from_utf8(checksum).ok()?.strip_suffix('\n')?, 16).ok()?;
    if xxh3_64(body) != checksum {
        return None;
    }
    let (len, rest) = body.split_first_chunk()?;
    let (log, cubin) = rest.split_at_checked(usize::try_from(u64::from_le_bytes(*len)).ok()?)?;
    Some(Compiled { cubin: cubin.to_vec(), log: String::from_utf8(log.to_vec()).ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_put_is_found_and_damage_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(dir.path().join("not/there/yet"));
        let compiled = Compiled { cubin: vec![127, b'E', b'L', b'F', 0, 10], log: "Used 13 registers".into() };
        assert_eq!(store.get("gelu"), Found::Missing);
        store.put("gelu", &compiled).unwrap();
        assert_eq!(store.get("gelu"), Found::Whole(compiled));
        let path = store.path("gelu");
        let whole = fs::read(&path).unwrap();
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 1;
            fs::write(&path, &damaged).unwrap();
            assert_eq!(store.get("gelu"), Found::Damaged, "byte {at}");
            fs::write(&path, &whole[..at]).unwrap();
            assert_eq!(store.get("gelu"), Found::Damaged, "cut at {at}");
        }
    }
}
