//! What we save, loaded by transformers: no missing and no unexpected tensor, no warning, the same numbers.

use std::path::Path;
use std::process::Command;

use handbert::backend::cpu::Cpu;
use handbert::model::{ParamTable, hub};

use super::hf_case::{Case, relative_error};
use super::output;
use super::skip::skipped;

/// Both sides compute in f32 here, so this is the rounding of two.
const LIMIT: f64 = 1e-5;

#[test]
fn saved_models_load_in_transformers_and_give_the_same_numbers() {
    let Some(python) = std::env::var_os("HANDBERT_PYTHON") else {
        return skipped("HANDBERT_PYTHON names no Python with transformers");
    };
    let be = Cpu::new();
    let names = ["mlm", "classifier"];
    let cases = names.map(Case::open);
    let dirs = names.map(|_| tempfile::tempdir().unwrap());
    let mut command = Command::new(&python);
    command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/hf_parity/load_in_transformers.py"));
    for (case, dir) in cases.iter().zip(&dirs) {
        let loaded = hub::load(&case.dir, &hub::Wanted::AsSaved, 0).unwrap();
        let table = ParamTable::new(&loaded.config, loaded.head);
        hub::save(dir.path(), &loaded.config, loaded.head, &table, &loaded.values).unwrap();
        command.arg(dir.path()).arg(case.dir.join("case.json"));
    }
    let run = command.output().unwrap();
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    let outputs: Vec<Vec<f32>> = serde_json::from_slice(&run.stdout).unwrap();
    assert_eq!(outputs.len(), names.len());
    for ((name, case), theirs) in names.iter().zip(&cases).zip(&outputs) {
        let error = relative_error(&output(&be, &case.model(&be), case).1, theirs);
        println!("{name}: saved by us, loaded by transformers: relative error {error:.1e}");
        assert!(error < LIMIT, "{name}: relative error {error:.1e}");
    }
}
