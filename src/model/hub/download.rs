//! Fetching a model from the hub into HF's cache.

use std::path::{Path, PathBuf};

use hf_hub::api::Progress;
use hf_hub::api::sync::{ApiBuilder, ApiRepo};
use hf_hub::{Cache, Repo, RepoType};

use super::cache::{Hub, HubId, Part};
use super::{CONFIG, INDEX, WEIGHTS};

/// Fetched where the hub has them: what the tokenizer is made of.
const OPTIONAL: &[&str] = &["tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json"];

/// How often a broken connection is taken up again where it broke.
const RETRIES: usize = 3;

/// Fetches config, weights and tokenizer of a model, or the config alone; gives its snapshot in the cache. The error says
/// what failed and what to do, for people.
pub(super) fn fetch(hub: &Hub, id: &HubId, cache: &Path, part: Part) -> Result<PathBuf, String> {
    let failed = |what: String| {
        format!(
            "downloading it from {} failed: {what}; check the name and the network, or name a directory",
            hub.endpoint
        )
    };
    if !["http://", "https://"].iter().any(|scheme| hub.endpoint.starts_with(scheme)) {
        return Err(format!("HF_ENDPOINT is {:?}, which is no http address", hub.endpoint));
    }
    let api = ApiBuilder::from_cache(Cache::new(cache.to_path_buf()))
        .with_endpoint(hub.endpoint.clone())
        .with_token(hub.token.clone())
        .with_progress(false)
        .with_retries(RETRIES)
        .build()
        .map_err(|e| failed(e.to_string()))?;
    let repo = api.repo(Repo::with_revision(id.repo.clone(), RepoType::Model, id.revision.clone()));
    let info = repo.info().map_err(|e| failed(explain(&e.to_string())))?;
    let listed: Vec<&str> = info.siblings.iter().map(|file| file.rfilename.as_str()).collect();
    let wanted = match part {
        Part::Whole => files_of(&listed)?,
        Part::Config => vec![CONFIG.to_owned()],
    };

    let mut snapshot = None;
    for name in &wanted {
        let file = fetch_file(&repo, id, name).map_err(|e| failed(format!("{name}: {}", explain(&e))))?;
        snapshot = file.parent().map(Path::to_path_buf);
    }
    snapshot.ok_or_else(|| failed("the hub lists no files".into()))
}

/// Of the files that a model has on the hub, those that are wanted of a whole one. The weights last: a snapshot that has
/// them is taken to be whole.
fn files_of(listed: &[&str]) -> Result<Vec<String>, String> {
    let mut wanted = vec![CONFIG.to_owned()];
    wanted.extend(OPTIONAL.iter().filter(|name| listed.contains(name)).map(|name| (*name).to_owned()));
    if listed.contains(&WEIGHTS) {
        wanted.push(WEIGHTS.into());
    } else if listed.contains(&INDEX) {
        let shard = |name: &&&str| name.ends_with(".safetensors") && !name.contains(['/', '\\']);
        wanted.extend(listed.iter().filter(shard).map(|name| (*name).to_owned()));
        wanted.push(INDEX.into());
    } else {
        return Err(format!("the hub has it, but without {WEIGHTS}; load it in Python and save_pretrained it"));
    }
    Ok(wanted)
}

fn fetch_file(repo: &ApiRepo, id: &HubId, name: &str) -> Result<PathBuf, String> {
    repo.download_with_progress(name, Announce { repo: id.repo.clone(), told: false }).map_err(|e| e.to_string())
}

/// What a status of the hub means.
fn explain(error: &str) -> String {
    let hint = match error {
        e if e.contains("401") || e.contains("403") => " (there is no such model, or it is private: set HF_TOKEN)",
        e if e.contains("404") => " (there is no such model or revision)",
        _ => "",
    };
    format!("{error}{hint}")
}

/// One line in the log for each file; the weights of a base model take a while.
struct Announce {
    repo: String,
    told: bool,
}

impl Progress for Announce {
    fn init(&mut self, size: usize, name: &str) {
        if !std::mem::replace(&mut self.told, true) {
            tracing::info!("downloading {}: {name}, {:.1} MB", self.repo, size as f64 / 1e6);
        }
    }

    fn update(&mut self, _size: usize) {}

    fn finish(&mut self) {}
}
