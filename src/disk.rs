//! Files that are whole or as they were: written under a name of their own, on the disk, then renamed.

use std::fs::{File, OpenOptions};
use std::io::{Result, Write};
use std::path::{Path, PathBuf};

/// What stands between a file's name and the process that writes it.
const PARTIAL: &str = ".partial-";

/// A file that is on the disk under a temporary name. Dropped before it is committed, it is removed, and whatever stood in
/// its place is as it was.
#[derive(Debug)]
pub struct Pending {
    temporary: PathBuf,
    path: PathBuf,
}

impl Pending {
    /// Lets `fill` write and sync the temporary file that will be `path`.
    pub fn write(path: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<Pending> {
        let pending = Pending { temporary: temporary(path), path: path.to_owned() };
        fill(&pending.temporary)?;
        Ok(pending)
    }

    /// A file of these bytes.
    pub fn of(path: &Path, bytes: impl AsRef<[u8]>) -> Result<Pending> {
        Pending::write(path, |temporary| {
            let mut file = File::create(temporary)?;
            file.write_all(bytes.as_ref())?;
            file.sync_all()
        })
    }

    /// Gives the file its name.
    pub fn commit(self) -> Result<()> {
        rename(&self.temporary, &self.path)
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.temporary); // after a commit there is none
    }
}

/// Waits until a file, or the names in a directory, are on the disk.
pub fn sync(path: &Path) -> Result<()> {
    match path.is_dir() {
        // Only Unix opens directories.
        true if cfg!(unix) => File::open(path)?.sync_all(),
        true => Ok(()),
        // Windows syncs only what may be written.
        false => OpenOptions::new().write(true).open(path)?.sync_all(),
    }
}

/// Gives a file or directory that is on the disk its name, and waits until that is there too, where the file system can.
pub fn rename(from: &Path, to: &Path) -> Result<()> {
    std::fs::rename(from, to)?;
    if let Some(parent) = to.parent() {
        let _ = sync(if parent.as_os_str().is_empty() { Path::new(".") } else { parent });
    }
    Ok(())
}

/// Writes a file, or replaces it, as a whole.
pub fn replace(path: &Path, bytes: impl AsRef<[u8]>) -> Result<()> {
    Pending::of(path, bytes)?.commit()
}

/// The name of a file or directory while it is written: no other process's, and hidden.
pub fn temporary(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}{PARTIAL}{}", std::process::id()))
}

/// What a directory entry was to be called, where it is half written: by this process, or by one that was killed.
pub fn partial_of(name: &str) -> Option<&str> {
    let (name, process) = name.strip_prefix('.')?.rsplit_once(PARTIAL)?;
    process.parse::<u32>().is_ok().then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_as_a_whole_or_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        let read = || std::fs::read_to_string(&path).unwrap();
        let names = || std::fs::read_dir(dir.path()).unwrap().count();
        replace(&path, "one").unwrap();
        assert_eq!(read(), "one");
        let pending = Pending::write(&path, |temporary| std::fs::write(temporary, "two")).unwrap();
        assert_eq!((read().as_str(), names()), ("one", 2));
        drop(pending);
        assert_eq!((read().as_str(), names()), ("one", 1));
        let failing = |temporary: &Path| {
            std::fs::write(temporary, "th")?;
            Err(std::io::ErrorKind::StorageFull.into())
        };
        assert!(Pending::write(&path, failing).is_err());
        assert_eq!((read().as_str(), names()), ("one", 1));
        replace(&path, "four").unwrap();
        assert_eq!((read().as_str(), names()), ("four", 1));
    }

    #[test]
    fn what_is_half_written_is_told_from_everything_else() {
        for name in ["run.toml", "tokens", "a.partial-b"] {
            let temporary = temporary(&Path::new("run").join(name));
            assert_eq!(partial_of(temporary.file_name().unwrap().to_str().unwrap()), Some(name));
        }
        for name in ["run.toml", ".run.toml.partial", "run.toml.partial-7", ".partial", ".x.partial-mine", ".lock"] {
            assert_eq!(partial_of(name), None, "{name}");
        }
    }
}
