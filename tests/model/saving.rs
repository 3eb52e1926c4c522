//! What we write: whole or not at all, the same bytes every time, and damage that is found out.

use std::path::Path;

use handbert::model::hub::{self, Loaded, Wanted, load_flat, save_flat};
use handbert::model::{Head, ParamTable};

use crate::model_dir::{ModelDir, fixture, read_raw};

fn load(name: &str) -> (Loaded, ParamTable) {
    let loaded = hub::load(&fixture(name), &Wanted::AsSaved, 0).unwrap();
    let table = ParamTable::new(&loaded.config, loaded.head);
    (loaded, table)
}

fn save(dir: &Path, (loaded, table): &(Loaded, ParamTable)) -> Result<(), handbert::model::Error> {
    hub::save(dir, &loaded.config, loaded.head, table, &loaded.values)
}

fn files(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort_unstable();
    names
}

#[test]
fn what_is_saved_loads_the_same_and_is_the_same_bytes_every_time() {
    for name in ["mlm", "classifier"] {
        let model = load(name);
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        save(&one.path().join("new/folder"), &model).unwrap();
        save(two.path(), &model).unwrap();
        assert_eq!(files(two.path()), ["config.json", "model.safetensors"]);
        for file in ["config.json", "model.safetensors"] {
            let read = |dir: &Path| std::fs::read(dir.join(file)).unwrap();
            assert!(read(&one.path().join("new/folder")) == read(two.path()), "{file}");
        }
        let again = hub::load(two.path(), &Wanted::AsSaved, 1).unwrap();
        assert_eq!((&again.config, again.head), (&model.0.config, model.0.head));
        assert!(again.values == model.0.values && again.fresh.is_empty() && again.unused.is_empty());
    }
}

#[test]
fn the_file_has_the_names_and_shapes_that_transformers_saved() {
    for name in ["mlm", "classifier"] {
        let dir = tempfile::tempdir().unwrap();
        save(dir.path(), &load(name)).unwrap();
        let shapes = |file: &Path| -> Vec<(String, Vec<usize>)> {
            read_raw(file).into_iter().map(|(name, raw)| (name, raw.shape)).collect()
        };
        assert_eq!(shapes(&dir.path().join("model.safetensors")), shapes(&fixture(name).join("model.safetensors")));
    }
}

/// A full disk, here /dev/full under the temporary name: the model that was there is still there, and whole.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_leaves_the_model_that_was_there() {
    let dir = tempfile::tempdir().unwrap();
    save(dir.path(), &load("mlm")).unwrap();
    let before = std::fs::read(dir.path().join("model.safetensors")).unwrap();
    for file in ["model.safetensors", "config.json"] {
        let mut changed = load("mlm");
        changed.0.values[0] += 1.0;
        std::os::unix::fs::symlink("/dev/full", dir.path().join(format!(".{file}.partial-{}", std::process::id())))
            .unwrap();
        let error = save(dir.path(), &changed).unwrap_err().to_string();
        assert!(error.contains(file) && error.contains("No space left"), "{error}");
        assert_eq!(files(dir.path()), ["config.json", "model.safetensors"], "temporary files are removed");
        assert!(std::fs::read(dir.path().join("model.safetensors")).unwrap() == before);
    }
    hub::load(dir.path(), &Wanted::AsSaved, 0).unwrap();
}

#[test]
fn a_path_that_cannot_be_a_directory_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("model");
    std::fs::write(&file, "a file").unwrap();
    let error = save(&file, &load("mlm")).unwrap_err().to_string();
    assert!(error.contains(file.to_str().unwrap()), "{error}");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "a file");
}

/// Whatever single byte of the weights is flipped: an error that names the file, or exactly the same model.
#[test]
fn a_flipped_byte_never_changes_a_model_unnoticed() {
    let dir = tempfile::tempdir().unwrap();
    let model = load("classifier");
    save(dir.path(), &model).unwrap();
    let path = dir.path().join("model.safetensors");
    let whole = std::fs::read(&path).unwrap();
    let header = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    let places: Vec<usize> = (0..header).step_by(3).chain((header..whole.len()).step_by(2003)).collect();
    let mut refused = 0;
    for &place in &places {
        let mut bytes = whole.clone();
        bytes[place] ^= 0x04;
        std::fs::write(&path, &bytes).unwrap();
        match hub::load(dir.path(), &Wanted::AsSaved, 0) {
            Ok(loaded) => {
                assert!(place < header, "a flipped byte of the data, at {place}, was not noticed");
                assert!(loaded.values == model.0.values, "byte {place} changed the model");
            }
            Err(error) => {
                assert!(error.to_string().contains("model.safetensors"), "{error}");
                refused += 1;
            }
        }
    }
    assert!(refused * 10 > places.len() * 9, "{refused} of {}", places.len());
}

#[test]
fn flipped_data_is_told_from_a_file_of_another_kind() {
    let dir = tempfile::tempdir().unwrap();
    save(dir.path(), &load("mlm")).unwrap();
    let path = dir.path().join("model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let error = hub::load(dir.path(), &Wanted::AsSaved, 0).unwrap_err().to_string();
    assert!(error.contains("do not match its checksum"), "{error}");
}

#[test]
fn moments_come_back_as_they_were() {
    let (loaded, table) = load("mlm");
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("handbert_state.safetensors");
    // Alignment gaps are not kept: they are zero, as in a fresh buffer.
    let mut second = vec![0.0f32; table.flat_len];
    for spec in &table.specs {
        for (i, value) in second[spec.span.range()].iter_mut().enumerate() {
            *value = (i as f32 + 0.5) * 1e-9;
        }
    }
    save_flat(&file, &table, &[("m", &loaded.values), ("v", &second)]).unwrap();
    assert_eq!(files(dir.path()), ["handbert_state.safetensors"]);
    let back = load_flat(&file, &table, &["m", "v"]).unwrap();
    assert!(back[0] == loaded.values && back[1] == second);

    let error = |result: Result<Vec<Vec<f32>>, handbert::model::Error>| result.unwrap_err().to_string();
    assert!(error(load_flat(&file, &table, &["m"])).contains("does not belong to this model"));
    assert!(error(load_flat(&file, &table, &["m", "v", "w"])).contains(".w: is missing"));
    let other = ParamTable::new(&loaded.config, Head::Classifier { classes: 2 });
    assert!(error(load_flat(&file, &other, &["m", "v"])).contains("pre_classifier.weight.m: is missing"));
    assert!(save_flat(&file, &table, &[("m", &second[..10])]).is_err());

    let mut bytes = std::fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    std::fs::write(&file, bytes).unwrap();
    assert!(
        error(load_flat(&file, &table, &["m", "v"])).contains("handbert_state.safetensors: its bytes do not match")
    );
}

#[test]
fn files_of_other_programs_carry_no_checksum_and_load() {
    let model = ModelDir::copy("mlm");
    let weights = hub::Weights::open(model.path()).unwrap();
    assert!(!weights.files()[0].is_checksummed());
    let dir = tempfile::tempdir().unwrap();
    save(dir.path(), &load("mlm")).unwrap();
    assert!(hub::Weights::open(dir.path()).unwrap().files()[0].is_checksummed());
}
