//! A file as a slice of memory, and the only `unsafe` of this room.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use memmap2::Mmap;

use super::super::{Error, Result};

/// A file mapped into memory, read-only.
#[derive(Debug)]
pub(super) struct Mapped {
    pub path: PathBuf,
    map: Mmap,
}

impl Mapped {
    /// Maps a whole file; nothing is read yet.
    pub fn open(path: &Path) -> Result<Mapped> {
        let io = |source: io::Error| Error::Io { path: path.to_owned(), source };
        let file = File::open(path).map_err(io)?;
        // SAFETY: the map is read-only and private to this process, and it lives as long as the slices
        // lent out of it. What remains is that another process may change or truncate the file while it
        // is mapped. A token set's files are written under another name, renamed when complete and never
        // written to again by this program, so only a foreign hand can do that; changed bytes are checked
        // at every access as those of a damaged file are, a truncation ends the process with SIGBUS.
        let map = unsafe { Mmap::map(&file) }.map_err(io)?;
        Ok(Mapped { path: path.to_owned(), map })
    }

    /// All bytes of the file.
    pub fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// The file as an array of numbers in this machine's byte order; `None` where its length is no multiple.
    /// Files are little endian: take each number through `from_le`.
    pub fn numbers<T: bytemuck::AnyBitPattern>(&self) -> Option<&[T]> {
        // Maps begin at a page, which is aligned for every number.
        bytemuck::try_cast_slice(&self.map).ok()
    }
}
