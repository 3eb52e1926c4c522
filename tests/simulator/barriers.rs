//! What must be ordered by a barrier, within a block and across blocks.

use super::trial::{Trial, input, output, update, values};

fn exchange(kernel: &'static str) -> Trial {
    let x: Vec<u32> = (0..64).collect();
    let args = vec![input(&x), output::<u32>(64)];
    Trial { file: "barriers.cu", kernel, blocks: 1, threads: 64, shared_bytes: 256, args }
}

fn words(kernel: &'static str, threads: u32, words: usize) -> Trial {
    Trial { file: "barriers.cu", kernel, blocks: 1, threads, shared_bytes: 0, args: vec![output::<u32>(words)] }
}

fn check(trial: &Trial, expected: impl Fn(u32) -> u32) {
    let Some(outputs) = trial.passes() else { return };
    let found = values::<u32>(&outputs[0]);
    let expected: Vec<u32> = (0..found.len() as u32).map(expected).collect();
    assert_eq!(found, expected, "{}", trial.kernel);
}

#[test]
fn a_missing_syncthreads_is_caught() {
    check(&exchange("rotate_with_barrier"), |t| (t + 1) % 64);
    let missing = exchange("rotate_without_barrier");
    for seed in super::trial::SEEDS {
        let Some(outcome) = missing.run(seed) else { return };
        let error = outcome.expect_err("a race");
        // Which comes first, the write or the read, depends on the order; both are found.
        let read_first = "with no barrier between (it had passed 0 __syncthreads by then, this thread 0)";
        let uninitialised = "which nobody has written";
        assert!(error.starts_with("rotate_without_barrier: block (0, 0, 0) thread ("), "{error}");
        assert!(error.contains(read_first) || error.contains(uninitialised), "{error}");
        assert!(error.contains(" 4 bytes at shared memory + "), "{error}");
    }
}

#[test]
fn overwriting_what_others_still_read_is_caught() {
    check(&exchange("rounds_with_barrier"), |t| (t + 4) % 64 + 4);
    exchange("rounds_without_barrier").is_caught("with no barrier between (it had passed ");
}

#[test]
fn a_missing_syncwarp_is_caught() {
    check(&exchange("swap_with_syncwarp"), |t| t ^ 1);
    exchange("swap_without_syncwarp").is_caught(" bytes at shared memory + ");
}

#[test]
fn shuffles_do_not_order_memory() {
    exchange("swap_with_shuffle").is_caught("with no barrier between");
}

#[test]
fn syncwarp_orders_one_warp_only() {
    exchange("swap_warps_with_syncwarp").is_caught(" bytes at shared memory + ");
    check(&exchange("chain"), |t| t ^ 33);
}

#[test]
fn a_divergent_syncthreads_is_caught() {
    check(&words("barrier_in_every_branch", 64, 64), |_| 1);
    words("divergent_barrier", 64, 64).is_caught_with(
        "divergent_barrier: block (0, 0, 0) thread (0, 0, 0): waits at __syncthreads (its 1st), \
         but thread (40, 0, 0) has exited: nobody can go on",
    );
    words("barrier_or_shuffle", 64, 64).is_caught_with(
        "barrier_or_shuffle: block (0, 0, 0) thread (32, 0, 0): waits at __syncthreads (its 2nd), \
         but thread (0, 0, 0) has exited: nobody can go on",
    );
}

#[test]
fn two_threads_writing_one_word_are_caught() {
    check(&words("two_writers_in_turn", 64, 32), |_| 2);
    words("two_writers", 64, 32)
        .is_caught("wrote with no barrier between (it had passed 0 __syncthreads by then, this thread 0)");
    let halves = Trial { args: vec![output::<u16>(64)], ..words("two_writers_of_halves", 64, 64) };
    assert!(halves.passes().is_none_or(|outputs| values::<u16>(&outputs[0]) == [1; 64]));
}

#[test]
fn two_blocks_at_one_word_are_caught() {
    let blocks = |overlap| Trial {
        blocks: 5,
        args: vec![output::<u32>(6), super::trial::Arg::U32(overlap)],
        ..words("blocks_write", 32, 6)
    };
    let Some(outcome) = blocks(0).run(1) else { return };
    assert!(outcome.unwrap_err().contains("byte 20 of 24 was never written; blocks_write was to write it (y + 20)"));
    blocks(1).is_caught("wrote in the same launch");
    let reads = Trial { blocks: 5, args: vec![update(&[1u32; 6])], ..words("blocks_read", 32, 6) };
    reads.is_caught("in the same launch");
    for seed in super::trial::SEEDS {
        let error = reads.run(seed).unwrap().unwrap_err();
        assert!(error.contains(") thread (3, 0, 0): "), "{error}");
        assert!(error.contains(" 4 bytes at y + ") && error.contains("which block ("), "{error}");
    }
}
