//! The quickstart, all of its stages, on the simulated GPU: small enough to finish there.

use std::time::Instant;

use handbert::cli::quickstart::{Recipe, Size, carry_out};
use handbert::cli::{Common, DeviceArg, Matmul};
use handbert::train::run_dir::read_metrics;
use handbert::train::{EvalResult, Record};

use crate::sim_device;

const TINY: Size = Size {
    vocab: 500,
    layers: 1,
    heads: 1,
    width: 64,
    feed_forward: 128,
    max_length: 48,
    batch_tokens: 256,
    new_rows: 12,
};

#[test]
fn a_small_quickstart_finishes() {
    let Some(be) = sim_device::backend() else { return };
    let dir = tempfile::tempdir().expect("a directory");
    let mut recipe = Recipe::new(dir.path(), 100, 16, 42).expect("a recipe");
    recipe.size = TINY;
    // Of these, what tells and what is random count; the backend is chosen already.
    let common = Common {
        device: DeviceArg::Cpu,
        matmul: Matmul::Auto,
        threads: 0,
        seed: 42,
        seed_given: false,
        computed: String::new(),
        json: true,
        quiet: true,
    };
    carry_out(&be, &recipe, &common, Instant::now()).expect("carried out");

    let metrics = read_metrics(&dir.path().join("mlm")).expect("metrics");
    let perplexity = |record: &Record| match record {
        Record::Eval(eval) => match &eval.eval {
            EvalResult::Mlm(mlm) => Some(mlm.perplexity),
            EvalResult::Classifier(_) => None,
        },
        Record::Step(_) => None,
    };
    let perplexities: Vec<f64> = metrics.iter().filter_map(perplexity).collect();
    println!("perplexities {perplexities:?}");
    assert!(perplexities.len() == 5 && perplexities[4] < 0.9 * perplexities[0], "{perplexities:?}");
    for name in ["postings.jsonl", "mlm/model.safetensors", "classifier/model.safetensors", "report.html"] {
        assert!(dir.path().join(name).metadata().is_ok_and(|file| file.len() > 0), "{name}");
    }
    let labelled = std::fs::read_to_string(dir.path().join("predictions.jsonl")).expect("predictions");
    assert!(labelled.lines().count() == 12 && labelled.lines().all(|line| line.contains("\"score\":")), "{labelled}");
    let report = std::fs::read_to_string(dir.path().join("report.html")).expect("a report");
    assert!(report.contains("simulated GPU"), "the report names the device");
}
