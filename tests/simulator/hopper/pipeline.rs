//! A ring of tensor copies feeding wgmma: right as it is, and caught with any one fault.

use super::case::{Case, Draws, Swizzle, Tensor, value};

const FILE: &str = "tests/simulator/kernels/hopper_pipeline.cu";
const TILES: usize = 5;
const DEPTH: usize = 64 * TILES;
const SEEDS: u64 = 6;

/// `enum class Fault` of the kernel, in its order, and what the message must say: one of these, as the order of threads has it.
const FAULTS: [(&str, &[&str]); 21] = [
    ("none", &[]),
    ("no_init", &["which mbarrier_init has not made"]),
    ("no_init_fence", &["with no fence_mbarrier_init by thread (0, 0, 0)"]),
    ("no_expect_tx", &["has not been waited for", "with no barrier between"]),
    ("expect_too_much", &["lacks 0 of 1 arrivals and 16 bytes"]),
    ("no_full_wait", &["has not been waited for", "which nobody has written"]),
    (
        "wrong_parity",
        &["has not been waited for", "which nobody has written", "with no barrier between", "nobody can go on"],
    ),
    ("no_empty_wait", &["more often than its count of 1", "starts a copy that writes", "still reads"]),
    ("early_release", &["starts a copy that writes", "still reads"]),
    ("too_few_arrivals", &["lacks 1 of 128 arrivals"]),
    ("too_many_arrivals", &["more often than its count of 1", "completes a second phase", "has not been waited for"]),
    ("no_wgmma_fence", &["with no wgmma.fence since"]),
    ("no_wgmma_wait", &["it has not waited for it", "still reads", "starts a copy that writes"]),
    ("warp_missing", &["a wgmma that not all warps of its warpgroup have issued"]),
    ("no_proxy_fence", &["no fence.proxy.async after them"]),
    ("no_store_barrier", &["starts a copy that reads"]),
    ("no_store_wait", &["nobody has waited for it"]),
    ("source_overwritten", &["a copy from shared memory still reads"]),
    ("named_barrier_count", &["bar_sync of barrier 2"]),
    ("barrier_overwritten", &["whose memory thread (129, 0, 0) has written to"]),
    ("map_misaligned", &["which is not a multiple of 1024"]),
];

struct Data {
    a: Vec<u16>,
    b: Vec<u16>,
}

fn run(data: &Data, fault: usize, seed: u64) -> Option<Result<Vec<u16>, String>> {
    let mut case = Case::new(seed)?;
    let (a, b) = (case.input("a", &data.a), case.input("b", &data.b));
    let y = case.output::<u16>("y", 64 * 64);
    for (address, columns) in [(a, DEPTH), (b, DEPTH), (y, 64)] {
        case.map(&Tensor { address, rows: 64, columns, of_box: [64, 64], swizzle: Swizzle::Bytes128 });
    }
    case.arg(&[TILES as u64]);
    case.arg(&[fault as u64]);
    let module = case.load(FILE, &[]);
    let done = case.run(&module, "pipeline", 1, 160, 5 * 8192 + 32);
    Some(done.map(|()| case.read(y, 64 * 64)))
}

fn data() -> Data {
    let mut draws = Draws(31);
    Data { a: draws.bf16s(64 * DEPTH), b: draws.bf16s(64 * DEPTH) }
}

#[test]
fn a_good_pipeline_gives_the_same_bits_in_any_order_of_threads() {
    let data = data();
    let mut first: Option<Vec<u16>> = None;
    for seed in 0..SEEDS {
        let Some(done) = run(&data, 0, seed) else { return };
        let y = done.unwrap();
        for (row, column) in (0..64 * 64).map(|i| (i / 64, i % 64)) {
            let terms = (0..DEPTH).map(|k| value(data.a[row * DEPTH + k]) * value(data.b[column * DEPTH + k]));
            let (sum, size) = terms.fold((0.0, 0.0), |(sum, size), term| (sum + term, size + term.abs()));
            let got = value(y[row * 64 + column]);
            // One rounding to bf16, and those of the sums.
            let allowed = sum.abs() * 2f64.powi(-8) + DEPTH as f64 * size * 2f64.powi(-24);
            assert!((got - sum).abs() <= allowed, "y[{row}, {column}] {got}, not {sum}");
        }
        assert_eq!(first.get_or_insert_with(|| y.clone()), &y);
    }
}

#[test]
fn every_fault_is_caught_with_kernel_block_and_thread() {
    let text = std::fs::read_to_string(format!("{}/{FILE}", env!("CARGO_MANIFEST_DIR"))).unwrap();
    let data = data();
    for (number, (name, texts)) in FAULTS.iter().enumerate().skip(1) {
        assert!(text.contains(&format!("    {name},")), "the kernel has no fault {name}");
        for seed in 0..SEEDS {
            let Some(done) = run(&data, number, seed) else { return };
            let error = done.expect_err(name);
            assert!(error.starts_with("pipeline: block (0, 0, 0) thread ("), "{name}: {error}");
            assert!(texts.iter().any(|text| error.contains(text)), "{name}, seed {seed}: {error}");
        }
    }
}

/// `kernel(flag, out)` on `threads` threads with `count` u32 of output.
fn small(kernel: &str, threads: u32, count: usize, flag: u64, seed: u64) -> Option<Result<Vec<u32>, String>> {
    let mut case = Case::new(seed)?;
    case.arg(&[flag]);
    let out = case.output::<u32>("out", count);
    case.arg(&[out]);
    let module = case.load(FILE, &[]);
    let done = case.run(&module, kernel, 1, threads, 256);
    Some(done.map(|()| case.read(out, count)))
}

#[test]
fn setmaxnreg_is_for_whole_warpgroups() {
    for seed in 0..SEEDS {
        let Some(done) = small("registers", 256, 256, 1, seed) else { return };
        done.unwrap();
        let error = small("registers", 256, 256, 0, seed).unwrap().unwrap_err();
        assert!(error.starts_with("registers: block (0, 0, 0) thread (32, 0, 0): this warp has not run"), "{error}");
    }
}

#[test]
fn named_barriers_order_arrivals_before_waits() {
    for seed in 0..SEEDS {
        let Some(done) = small("hand_over", 128, 64, 0, seed) else { return };
        assert_eq!(done.unwrap(), (0..64).rev().collect::<Vec<u32>>());
        let error = small("hand_over", 128, 64, 1, seed).unwrap().unwrap_err();
        assert!(error.starts_with("hand_over: block (0, 0, 0) thread (") && error.contains("shared memory"), "{error}");
    }
}
