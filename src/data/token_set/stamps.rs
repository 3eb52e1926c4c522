//! What tells, without reading a byte, that the files of a set were touched.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use serde::{Deserialize, Serialize};

use super::meta::META;
use super::{Error, Result, TokenSet};

/// Length and time of the last change of every file, by name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Stamps(BTreeMap<String, Stamp>);

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Stamp {
    bytes: u64,
    /// Nanoseconds since 1970; 0 where the file system keeps no times.
    changed: u64,
}

impl Stamps {
    /// Of the set's description and of the files it names.
    pub(super) fn of<'a>(dir: &Path, files: impl Iterator<Item = &'a String>) -> Result<Stamps> {
        let names = files.map(String::as_str).chain([META]);
        names.map(|name| Ok((name.to_owned(), Stamp::of(&dir.join(name))?))).collect::<Result<_>>().map(Stamps)
    }
}

impl Stamp {
    fn of(path: &Path) -> Result<Stamp> {
        let found = std::fs::metadata(path).map_err(|source| Error::Io { path: path.to_owned(), source })?;
        let changed = found.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        Ok(Stamp { bytes: found.len(), changed: changed.map_or(0, |time| time.as_nanos() as u64) })
    }
}

impl TokenSet {
    /// The files as they were when the set was opened.
    pub fn stamps(&self) -> &Stamps {
        &self.stamps
    }

    /// The first file, in order of names, that is gone or was touched since the set was opened.
    pub fn touched(&self) -> Option<PathBuf> {
        let touched = |(name, stamp): &(&String, &Stamp)| !Stamp::of(&self.dir.join(name)).is_ok_and(|s| s == **stamp);
        self.stamps.0.iter().find(touched).map(|(name, _)| self.dir.join(name))
    }
}
