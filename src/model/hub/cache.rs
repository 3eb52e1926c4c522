//! From what the user typed to a model directory: a path, or a hub id found in HF's cache.
//!
//! The cache's layout and the variables that place it are those of `huggingface_hub`:
//! `<cache>/models--<org>--<name>/{refs/<revision>, snapshots/<commit>/<file>}`.

use std::path::{Path, PathBuf};

use super::{CONFIG, INDEX, WEIGHTS};
use crate::model::{Error, Result};

/// Revision of a hub id that names none.
const MAIN: &str = "main";

/// Whether models may be fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Network {
    /// What is not in the cache is downloaded.
    Allowed,
    /// HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set: the cache has to do.
    Off,
}

/// Where models named by hub id are looked for.
pub struct Hub {
    /// The cache; `None` where no variable places it and there is no home directory.
    pub cache: Option<PathBuf>,
    /// Address of the hub or of its mirror.
    pub endpoint: String,
    /// Token for private models.
    pub token: Option<String>,
    /// Whether models may be fetched.
    pub network: Network,
}

/// What of a model is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Configuration and weights, and a tokenizer where there is one.
    Whole,
    /// Its config.json.
    Config,
}

/// A hub id, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubId {
    /// `name` or `org/name`.
    pub repo: String,
    /// Branch, tag or commit.
    pub revision: String,
}

/// The directory of a model: `model` itself where it is one, else the snapshot of that hub id (`id` or `id@revision`)
/// in HF's cache, else downloaded into it.
///
/// # Errors
///
/// [`Error::Hub`]: the id is none, or is not in the cache and cannot be downloaded; [`Error::File`] where `model` is a file.
pub fn resolve(model: &str) -> Result<PathBuf> {
    Hub::from_env().resolve(model)
}

/// config.json of a model, found as [`resolve`] finds its directory; nothing else of it is looked for or downloaded.
///
/// # Errors
///
/// Those of [`resolve`]; [`Error::File`] of a directory without config.json.
pub fn resolve_config(model: &str) -> Result<PathBuf> {
    Hub::from_env().resolve_config(model)
}

impl Hub {
    /// As the environment says.
    pub fn from_env() -> Hub {
        Hub::from_lookup(|name| std::env::var(name).ok())
    }

    /// As these variables say; an empty one counts as unset.
    pub fn from_lookup(var: impl Fn(&str) -> Option<String>) -> Hub {
        let var = |name: &str| var(name).filter(|value| !value.is_empty());
        let home = var("HOME").or_else(|| var("USERPROFILE")).map(PathBuf::from);
        let path = |name: &str| {
            let value = var(name)?;
            Some(match (value.strip_prefix("~/"), &home) {
                (Some(rest), Some(home)) => home.join(rest),
                _ => PathBuf::from(value),
            })
        };
        let hf_home = path("HF_HOME")
            .or_else(|| path("XDG_CACHE_HOME").map(|dir| dir.join("huggingface")))
            .or_else(|| home.as_ref().map(|dir| dir.join(".cache/huggingface")));
        let cache = path("HF_HUB_CACHE")
            .or_else(|| path("HUGGINGFACE_HUB_CACHE"))
            .or_else(|| hf_home.as_ref().map(|dir| dir.join("hub")));
        let token_file = path("HF_TOKEN_PATH").or_else(|| hf_home.map(|dir| dir.join("token")));
        let stored_token = || std::fs::read_to_string(token_file?).ok();
        let token = var("HF_TOKEN").or_else(|| var("HUGGING_FACE_HUB_TOKEN")).or_else(stored_token);
        let is_on = |name: &str| {
            var(name).is_some_and(|v| ["1", "on", "true", "yes"].contains(&v.to_ascii_lowercase().as_str()))
        };
        let offline = is_on("HF_HUB_OFFLINE") || is_on("TRANSFORMERS_OFFLINE");
        Hub {
            cache: cache.map(|dir| std::path::absolute(&dir).unwrap_or(dir)),
            endpoint: var("HF_ENDPOINT").map_or("https://huggingface.co".into(), |e| e.trim_end_matches('/').into()),
            token: token.map(|t| t.trim().to_owned()).filter(|t| !t.is_empty()),
            network: if offline { Network::Off } else { Network::Allowed },
        }
    }

    /// See [`resolve`].
    ///
    /// # Errors
    ///
    /// [`Error::Hub`]: the id is none, or is not in the cache and cannot be downloaded; [`Error::File`] where `model` is a file.
    pub fn resolve(&self, model: &str) -> Result<PathBuf> {
        self.find(model, Part::Whole)
    }

    /// See [`resolve_config`].
    ///
    /// # Errors
    ///
    /// Those of [`resolve`]; [`Error::File`] of a directory without config.json.
    pub fn resolve_config(&self, model: &str) -> Result<PathBuf> {
        let dir = self.find(model, Part::Config)?;
        let file = dir.join(CONFIG);
        if file.exists() {
            return Ok(file);
        }
        Err(Error::File { path: dir, why: format!("has no {CONFIG}, so it is no model directory") })
    }

    fn find(&self, model: &str, part: Part) -> Result<PathBuf> {
        let path = Path::new(model);
        if path.is_dir() {
            return Ok(path.to_path_buf());
        }
        if path.exists() {
            return Err(Error::File { path: path.into(), why: "is a file; name the directory of the model".into() });
        }
        let id = HubId::parse(model)?;
        let error = |why: String| Error::Hub { id: model.into(), why };
        let Some(cache) = &self.cache else {
            return Err(error("no directory of that name, and no cache to look in; set HF_HOME".into()));
        };
        let repo = cache.join(id.folder());
        if let Some(snapshot) = id.snapshot(&repo, part) {
            return Ok(snapshot);
        }
        let looked =
            format!("no directory of that name, and revision {} is not whole in {}", id.revision, repo.display());
        if self.network == Network::Off {
            return Err(error(format!("{looked}; unset HF_HUB_OFFLINE to download it, or name a directory")));
        }
        self.fetch(&id, cache, part).map_err(|why| error(format!("{looked}; {why}")))
    }

    #[cfg(feature = "download")]
    fn fetch(&self, id: &HubId, cache: &Path, part: Part) -> std::result::Result<PathBuf, String> {
        super::download::fetch(self, id, cache, part)
    }

    #[cfg(not(feature = "download"))]
    fn fetch(&self, _id: &HubId, _cache: &Path, _part: Part) -> std::result::Result<PathBuf, String> {
        Err("this handbert was built without the feature `download`; fetch it with `hf download`, or name a directory"
            .into())
    }
}

impl HubId {
    /// Parses `name`, `org/name`, or either with `@revision`.
    ///
    /// # Errors
    ///
    /// [`Error::Hub`]
    pub fn parse(model: &str) -> Result<HubId> {
        let (repo, revision) = model.split_once('@').unwrap_or((model, MAIN));
        let is_word = |word: &str| {
            !word.is_empty()
                && !word.starts_with(['.', '-'])
                && !word.contains("..")
                && word.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
        };
        let words = repo.split('/').count();
        if words <= 2 && repo.split('/').all(is_word) && revision.split('/').all(is_word) {
            return Ok(HubId { repo: repo.into(), revision: revision.into() });
        }
        Err(Error::Hub {
            id: model.into(),
            why: "no such directory, and no hub id either (those look like name, org/name or org/name@revision)".into(),
        })
    }

    /// Name of its folder in the cache.
    fn folder(&self) -> String {
        format!("models--{}", self.repo.replace('/', "--"))
    }

    /// The snapshot of the revision, where the cache has all of it that is wanted.
    fn snapshot(&self, repo: &Path, part: Part) -> Option<PathBuf> {
        let commit = std::fs::read_to_string(repo.join("refs").join(&self.revision));
        let commit = commit.unwrap_or_else(|_| self.revision.clone());
        let snapshot = repo.join("snapshots").join(commit.trim());
        let has = |name: &str| snapshot.join(name).exists();
        let whole = || has(WEIGHTS) || has_shards(&snapshot);
        (has(CONFIG) && (part == Part::Config || whole())).then_some(snapshot)
    }
}

/// Whether the index is there and every file it lists. Anything wrong with it is for the loader to say.
fn has_shards(snapshot: &Path) -> bool {
    let Ok(text) = std::fs::read_to_string(snapshot.join(INDEX)) else { return false };
    let index: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
    let shards = index.get("weight_map").and_then(|map| map.as_object());
    shards.is_none_or(|map| map.values().filter_map(|v| v.as_str()).all(|shard| snapshot.join(shard).exists()))
}
