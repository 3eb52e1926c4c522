//! Models named by hub id: where the cache is, what is in it, and what is fetched from a hub (here: one on 127.0.0.1).

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use handbert::model::hub::Hub;
use handbert::model::hub::cache::{HubId, Network};

const COMMIT: &str = "6cdc0aad91f5ae2e6712e91bc7b65d1cf5c05411";

fn from(variables: &[(&str, &str)]) -> Hub {
    let map: HashMap<_, _> = variables.iter().copied().collect();
    Hub::from_lookup(|name| map.get(name).map(|v| (*v).to_owned()))
}

fn offline(cache: &Path) -> Hub {
    Hub { cache: Some(cache.into()), network: Network::Off, ..from(&[]) }
}

fn refused(hub: &Hub, model: &str, says: &[&str]) {
    let error = hub.resolve(model).expect_err(model).to_string();
    for part in says {
        assert!(error.contains(part), "{error:?} does not say {part:?}");
    }
}

/// Puts files into a cache as huggingface_hub does, without the detour over blobs.
fn cached(cache: &Path, folder: &str, commit: &str, files: &[&str]) -> PathBuf {
    let snapshot = cache.join(folder).join("snapshots").join(commit);
    std::fs::create_dir_all(&snapshot).unwrap();
    for file in files {
        std::fs::write(snapshot.join(file), "x").unwrap();
    }
    snapshot
}

fn refer(cache: &Path, folder: &str, revision: &str, commit: &str) {
    let file = cache.join(folder).join("refs").join(revision);
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    std::fs::write(file, commit).unwrap();
}

#[test]
fn the_cache_is_where_the_variables_say_in_their_order() {
    let all = [
        ("HF_HUB_CACHE", "/a"),
        ("HUGGINGFACE_HUB_CACHE", "/b"),
        ("HF_HOME", "/c"),
        ("XDG_CACHE_HOME", "/d"),
        ("HOME", "/e"),
    ];
    let expected = ["/a", "/b", "/c/hub", "/d/huggingface/hub", "/e/.cache/huggingface/hub"];
    for (i, place) in expected.iter().enumerate() {
        assert_eq!(from(&all[i..]).cache.unwrap(), Path::new(place));
    }
    assert!(from(&[]).cache.is_none());
    assert_eq!(from(&[("HF_HOME", "~/hf"), ("HOME", "/e")]).cache.unwrap(), Path::new("/e/hf/hub"));
    assert_eq!(from(&[("HF_HUB_CACHE", ""), ("HF_HOME", "/c")]).cache.unwrap(), Path::new("/c/hub"));
}

#[test]
fn endpoint_token_and_offline_come_from_the_environment() {
    let plain = from(&[("HOME", "/nowhere")]);
    assert_eq!(plain.endpoint, "https://huggingface.co");
    assert!(plain.token.is_none() && plain.network == Network::Allowed);
    assert_eq!(from(&[("HF_ENDPOINT", "https://mirror.example/")]).endpoint, "https://mirror.example");
    for on in ["1", "true", "YES", "on"] {
        assert_eq!(from(&[("HF_HUB_OFFLINE", on)]).network, Network::Off);
        assert_eq!(from(&[("TRANSFORMERS_OFFLINE", on)]).network, Network::Off);
    }
    assert_eq!(from(&[("HF_HUB_OFFLINE", "0")]).network, Network::Allowed);

    let home = tempfile::tempdir().unwrap();
    std::fs::write(home.path().join("token"), "stored\n").unwrap();
    let hf_home = ("HF_HOME", home.path().to_str().unwrap());
    assert_eq!(from(&[hf_home]).token.unwrap(), "stored");
    assert_eq!(from(&[hf_home, ("HF_TOKEN", "given")]).token.unwrap(), "given");
}

#[test]
fn a_directory_is_itself_and_needs_no_cache() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(from(&[]).resolve(dir.path().to_str().unwrap()).unwrap(), dir.path());
    let file = dir.path().join("model.safetensors");
    std::fs::write(&file, "x").unwrap();
    refused(&from(&[]), file.to_str().unwrap(), &["model.safetensors: is a file; name the directory"]);
}

#[test]
fn ids_are_told_from_paths() {
    let id = |repo: &str, revision: &str| HubId { repo: repo.into(), revision: revision.into() };
    assert_eq!(HubId::parse("distilbert-base-uncased").unwrap(), id("distilbert-base-uncased", "main"));
    assert_eq!(HubId::parse("org/some.model_2@v1.0").unwrap(), id("org/some.model_2", "v1.0"));
    assert_eq!(HubId::parse("org/name@refs/pr/1").unwrap(), id("org/name", "refs/pr/1"));
    for bad in ["", "./gone", "../gone", "/gone", "a/b/c", "gone/", "a b", "a@", "a@../../x", "a/..", "~/m", "a\\b"] {
        refused(&from(&[]), bad, &["no such directory, and no hub id"]);
    }
}

#[test]
fn snapshots_are_found_by_branch_tag_and_commit() {
    let cache = tempfile::tempdir().unwrap();
    let files = ["config.json", "model.safetensors"];
    let folder = "models--distilbert--distilbert-base-uncased";
    let main = cached(cache.path(), folder, COMMIT, &files);
    let old = cached(cache.path(), folder, "0001", &files);
    refer(cache.path(), folder, "main", &format!("{COMMIT}\n"));
    refer(cache.path(), folder, "refs/pr/1", "0001");
    let hub = offline(cache.path());
    let name = "distilbert/distilbert-base-uncased";
    assert_eq!(hub.resolve(name).unwrap(), main);
    assert_eq!(hub.resolve(&format!("{name}@{COMMIT}")).unwrap(), main);
    assert_eq!(hub.resolve(&format!("{name}@refs/pr/1")).unwrap(), old);
    refused(&hub, &format!("{name}@v2"), &["revision v2 is not whole in", folder, "HF_HUB_OFFLINE"]);

    let plain = cached(cache.path(), "models--distilbert-base-uncased", "77", &files);
    refer(cache.path(), "models--distilbert-base-uncased", "main", "77");
    assert_eq!(hub.resolve("distilbert-base-uncased").unwrap(), plain);
}

#[test]
fn a_snapshot_without_weights_is_not_enough() {
    let cache = tempfile::tempdir().unwrap();
    let hub = offline(cache.path());
    refused(&hub, "m", &["model \"m\"", "models--m", "unset HF_HUB_OFFLINE"]);
    let snapshot = cached(cache.path(), "models--m", "1", &["config.json"]);
    refer(cache.path(), "models--m", "main", "1");
    refused(&hub, "m", &["not whole"]);
    let index = r#"{"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}"#;
    std::fs::write(snapshot.join("model.safetensors.index.json"), index).unwrap();
    std::fs::write(snapshot.join("one.safetensors"), "x").unwrap();
    refused(&hub, "m", &["not whole"]);
    std::fs::write(snapshot.join("two.safetensors"), "x").unwrap();
    assert_eq!(hub.resolve("m").unwrap(), snapshot);
    refused(&Hub { cache: None, ..offline(Path::new("")) }, "m", &["no cache to look in; set HF_HOME"]);
}

#[test]
fn a_configuration_needs_no_weights() {
    let cache = tempfile::tempdir().unwrap();
    let hub = offline(cache.path());
    assert!(hub.resolve_config("m").unwrap_err().to_string().contains("not whole"));
    let snapshot = cached(cache.path(), "models--m", "1", &["config.json"]);
    refer(cache.path(), "models--m", "main", "1");
    assert_eq!(hub.resolve_config("m").unwrap(), snapshot.join("config.json"));
    assert_eq!(hub.resolve_config(snapshot.to_str().unwrap()).unwrap(), snapshot.join("config.json"));
    let error = hub.resolve_config(cache.path().to_str().unwrap()).unwrap_err().to_string();
    assert!(error.contains("has no config.json"), "{error}");
}

#[cfg(feature = "download")]
mod download {
    use std::io::{BufRead, BufReader, Write};
    use std::net::{TcpListener, TcpStream};
    use std::sync::{Arc, Mutex, Once};

    use super::*;
    use handbert::model::hub::{self, Wanted};

    /// Whatever proxies the surroundings name, this machine is asked without one.
    fn without_proxies() {
        static ONCE: Once = Once::new();
        // SAFETY: whoever else reads the environment in this process does so through std, which holds a lock meanwhile.
        ONCE.call_once(|| unsafe { std::env::set_var("NO_PROXY", "127.0.0.1") });
    }

    /// A hub with one model, `org/tiny`; remembers what it was asked for.
    struct TinyHub {
        endpoint: String,
        asked: Arc<Mutex<Vec<String>>>,
    }

    impl TinyHub {
        fn start(files: HashMap<String, Vec<u8>>) -> TinyHub {
            without_proxies();
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let endpoint = format!("http://{}", listener.local_addr().unwrap());
            let asked = Arc::new(Mutex::new(Vec::new()));
            let log = Arc::clone(&asked);
            std::thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    answer(stream, &files, &log);
                }
            });
            TinyHub { endpoint, asked }
        }

        fn hub(&self, cache: &Path) -> Hub {
            let token = Some("secret".into());
            Hub { cache: Some(cache.into()), endpoint: self.endpoint.clone(), token, network: Network::Allowed }
        }
    }

    /// One request, then the connection is closed.
    fn answer(mut stream: TcpStream, files: &HashMap<String, Vec<u8>>, log: &Mutex<Vec<String>>) {
        let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
        let request = lines.next().unwrap_or_default();
        let headers: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
        let header = |name: &str| {
            headers.iter().filter_map(|line| line.split_once(": ")).find(|(n, _)| n.eq_ignore_ascii_case(name))
        };
        let path = request.split(' ').nth(1).unwrap_or_default();
        log.lock().unwrap().push(format!("{path} {}", header("authorization").map_or("", |(_, value)| value)));
        let (status, extra, body) = if path == "/api/models/org/tiny/revision/main" {
            let list: Vec<_> = files.keys().map(|name| serde_json::json!({ "rfilename": name })).collect();
            let info = serde_json::json!({ "siblings": list, "sha": COMMIT });
            ("200 OK", String::new(), info.to_string().into_bytes())
        } else if let Some(file) = path.strip_prefix("/org/tiny/resolve/main/").and_then(|name| files.get(name)) {
            let (_, range) = header("range").unwrap();
            let (from, to) = range.strip_prefix("bytes=").unwrap().split_once('-').unwrap();
            let (from, last) = (from.parse::<usize>().unwrap(), file.len() - 1);
            let to = to.parse::<usize>().unwrap_or(last).min(last);
            let name = path.rsplit('/').next().unwrap();
            let extra = format!(
                "ETag: \"etag-{name}\"\r\nX-Repo-Commit: {COMMIT}\r\nContent-Range: bytes {from}-{to}/{}\r\n",
                file.len()
            );
            ("206 Partial Content", extra, file[from..=to].to_vec())
        } else {
            ("404 Not Found", String::new(), Vec::new())
        };
        let head = format!("HTTP/1.1 {status}\r\n{extra}Content-Length: {}\r\nConnection: close\r\n\r\n", body.len());
        stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body)).unwrap();
    }

    fn fixture_files(name: &str) -> HashMap<String, Vec<u8>> {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/hf").join(name);
        let read = |file: &str| (file.to_owned(), std::fs::read(dir.join(file)).unwrap());
        let mut files = HashMap::from(["config.json", "model.safetensors"].map(read));
        files.insert("vocab.txt".into(), b"[PAD]\n".to_vec());
        files.insert("README.md".into(), b"# not wanted\n".to_vec());
        files
    }

    #[test]
    fn what_the_cache_lacks_is_fetched_once_and_found_there_from_then_on() {
        let server = TinyHub::start(fixture_files("mlm"));
        let cache = tempfile::tempdir().unwrap();
        let snapshot = server.hub(cache.path()).resolve("org/tiny").unwrap();
        assert_eq!(snapshot, cache.path().join("models--org--tiny/snapshots").join(COMMIT));
        assert!(hub::load(&snapshot, &Wanted::AsSaved, 0).is_ok());
        assert!(snapshot.join("vocab.txt").exists() && !snapshot.join("README.md").exists());
        assert_eq!(std::fs::read_to_string(cache.path().join("models--org--tiny/refs/main")).unwrap(), COMMIT);
        let asked = server.asked.lock().unwrap().clone();
        assert!(asked.iter().all(|request| request.ends_with("Bearer secret")), "{asked:?}");
        assert!(asked.last().unwrap().contains("model.safetensors"), "the weights come last: {asked:?}");

        assert_eq!(server.hub(cache.path()).resolve("org/tiny").unwrap(), snapshot);
        assert_eq!(offline(cache.path()).resolve("org/tiny").unwrap(), snapshot);
        assert_eq!(server.asked.lock().unwrap().len(), asked.len(), "the second time comes from the cache");
    }

    #[test]
    fn a_configuration_is_fetched_alone_and_the_rest_when_it_is_wanted() {
        let server = TinyHub::start(fixture_files("mlm"));
        let cache = tempfile::tempdir().unwrap();
        let config = server.hub(cache.path()).resolve_config("org/tiny").unwrap();
        assert_eq!(config, cache.path().join("models--org--tiny/snapshots").join(COMMIT).join("config.json"));
        assert!(!config.with_file_name("model.safetensors").exists());
        let snapshot = server.hub(cache.path()).resolve("org/tiny").unwrap();
        assert!(hub::load(&snapshot, &Wanted::AsSaved, 0).is_ok());
    }

    #[test]
    fn what_the_hub_does_not_have_is_said() {
        let server = TinyHub::start(fixture_files("mlm"));
        let cache = tempfile::tempdir().unwrap();
        let endpoint = server.endpoint.clone();
        refused(&server.hub(cache.path()), "org/other", &["org/other", &endpoint, "404", "no such model"]);
        refused(&server.hub(cache.path()), "org/tiny@v9", &["revision v9", "404"]);

        let mut old = fixture_files("mlm");
        old.remove("model.safetensors");
        let server = TinyHub::start(old);
        refused(&server.hub(cache.path()), "org/tiny", &["without model.safetensors", "save_pretrained"]);
    }

    #[test]
    fn a_hub_that_cannot_be_reached_is_said() {
        without_proxies();
        let cache = tempfile::tempdir().unwrap();
        let hub = |endpoint: String| Hub { endpoint, network: Network::Allowed, ..offline(cache.path()) };
        // Nobody listens at the port of tcpmux.
        refused(&hub("http://127.0.0.1:1".into()), "org/tiny", &["not whole in", "downloading", "check the name"]);
        refused(&hub("ftp://x".into()), "org/tiny", &["HF_ENDPOINT", "no http address"]);
    }
}
