//! `--device` on a machine without a GPU.

use handbert::backend::cuda::driver::Gpu;

use super::skip::skipped;
use super::support::{Run, arg, command, handbert, scratch, tiny};

/// Whether this machine is one on which a GPU is out of the question; says so where it is not.
fn has_no_driver() -> bool {
    let without = Gpu::new(0).is_err_and(|error| error.to_string().contains("libcuda.so"));
    if !without {
        skipped("this machine has a CUDA driver");
    }
    without
}

fn fill_mask(more: &[&str]) -> Run {
    handbert(["fill-mask", "--model", arg(&tiny().mlm), "we are [MASK]"].iter().chain(more))
}

#[test]
fn cuda_without_a_driver_is_refused() {
    if !has_no_driver() {
        return;
    }
    let t = tiny();
    let dir = scratch("cuda");
    let out = dir.join("out.jsonl");
    for device in ["cuda", "cuda:1"] {
        let says = ["--device cuda:", "libcuda.so", "install NVIDIA's driver", "--device cpu"];
        fill_mask(&["--device", device]).exits(2).says(&says);
        let predict = ["predict", arg(&t.postings), "--model", arg(&t.classifier), "--out", arg(&out)];
        handbert(predict.into_iter().chain(["--device", device])).exits(2).says(&says);
        let train = ["train", "mlm", "--model", arg(&t.mlm), "--data", arg(&t.tokens), "--out", arg(&out)];
        handbert(train.into_iter().chain(["--device", device])).exits(2).says(&says);
        let eval = ["eval", "mlm", "--model", arg(&t.mlm), "--data", arg(&t.tokens)];
        handbert(eval.into_iter().chain(["--device", device])).exits(2).says(&says);
        handbert(["kernels", "check", "--device", device]).exits(2).says(&says);
    }
    assert!(!out.exists());
}

#[test]
fn auto_without_a_driver_computes_on_the_cpu_and_says_so_in_one_line() {
    if !has_no_driver() {
        return;
    }
    let on_cpu = fill_mask(&["--device", "cpu"]).exits(0);
    assert_eq!(on_cpu.err, "");
    let auto = fill_mask(&["--device", "auto"]).exits(0).says(&["CPU", "libcuda.so", "--device cpu"]);
    assert_eq!(auto.err.lines().count(), 1, "{}", auto.err);
    assert_eq!(auto.out, on_cpu.out);
    assert_eq!(fill_mask(&["--device", "auto", "--quiet"]).exits(0).err, "");
    // As does leaving it out.
    let mut unsaid = command();
    unsaid.env_remove("HANDBERT_DEVICE").args(["fill-mask", "--model", arg(&tiny().mlm), "we are [MASK]"]);
    assert_eq!(unsaid.output().unwrap().stderr, auto.err.into_bytes());
}

#[test]
fn predict_takes_batches_of_any_size_and_auto() {
    let t = tiny();
    let label = |tokens: &str| {
        let dir = scratch(&format!("batch-tokens-{tokens}"));
        let out = dir.join("out.jsonl");
        let predict = ["predict", arg(&t.postings), "--model", arg(&t.classifier), "--out", arg(&out)];
        handbert(predict.into_iter().chain(["--batch-tokens", tokens])).exits(0);
        std::fs::read_to_string(out).unwrap()
    };
    assert_eq!(label("auto"), label("4096"));
    let predict = ["predict", arg(&t.postings), "--model", arg(&t.classifier), "--out", "-", "--batch-tokens", "many"];
    handbert(predict).exits(2).says(&["--batch-tokens", "auto"]);
}
