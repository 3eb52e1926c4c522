//! cp.async: data is there for the thread that waited, and for others after a barrier too; not before.

use super::trial::{Arg, Trial, input, output, values};

const STAGES: usize = 5;

fn reverse(kernel: &'static str) -> Trial {
    let x: Vec<u32> = (0..64 * STAGES as u32).collect();
    let args = vec![input(&x), output::<u32>(64 * STAGES), Arg::U32(STAGES as u32)];
    Trial { file: "copies.cu", kernel, blocks: 1, threads: 64, shared_bytes: 512, args }
}

#[test]
fn a_double_buffer_passes() {
    let Some(outputs) = reverse("reverse_right").passes() else { return };
    let expected: Vec<u32> = (0..STAGES as u32).flat_map(|stage| (0..64).rev().map(move |t| 64 * stage + t)).collect();
    assert_eq!(values::<u32>(&outputs[0]), expected);
}

#[test]
fn reading_before_the_wait_is_caught() {
    reverse("reverse_waits_for_too_few").is_caught("where an asynchronous copy by thread (");
    reverse("reverse_without_commit").is_caught(", 0, 0) has not been waited for");
}

#[test]
fn reading_what_others_copied_without_a_barrier_is_caught() {
    let missing = reverse("reverse_without_barrier");
    missing.is_caught("reads 4 bytes at shared memory + ");
}

#[test]
fn a_copy_into_what_others_still_read_is_caught() {
    let overwrites = reverse("reverse_overwrites");
    for seed in super::trial::SEEDS {
        let Some(outcome) = overwrites.run(seed) else { return };
        let error = outcome.unwrap_err();
        let landed =
            error.contains("reads 4 bytes at shared memory + ") && error.contains(" wrote with no barrier between");
        let late = error.contains("cp.async writes 16 bytes at shared memory + ")
            && error.contains(" read with no barrier between");
        let early = error.contains("reads 4 bytes at shared memory + ") && error.contains("has not been waited for");
        assert!(late || early || landed, "{error}");
    }
}

#[test]
fn the_rest_of_a_copy_is_zeros() {
    for bytes in [0, 4, 8, 12, 16] {
        let x = [7u32; 16];
        let readable = if bytes == 0 { 0 } else { 12 + bytes as usize / 4 };
        let args = vec![input(&x[..readable]), output::<u32>(16), Arg::U32(bytes)];
        let part = Trial { kernel: "copy_part", threads: 4, args, ..reverse("copy_part") };
        let Some(outputs) = part.passes() else { return };
        let expected: Vec<u32> = (0..16).map(|i| if i % 4 * 4 < bytes { 7 } else { 0 }).collect();
        assert_eq!(values::<u32>(&outputs[0]), expected, "{bytes} bytes");
    }
    let args = vec![input(&[7u32; 4]), output::<u32>(4), Arg::U32(20)];
    Trial { threads: 1, args, ..reverse("copy_part") }
        .is_caught_with("copy_part: block (0, 0, 0) thread (0, 0, 0): cp.async of 16 bytes is asked for 20");
}

#[test]
fn copies_are_checked_at_both_ends() {
    let copy = |kernel, words: usize| {
        let args = vec![input(&vec![7u32; words]), output::<u32>(1)];
        Trial { kernel, threads: 1, args, ..reverse(kernel) }
    };
    copy("copy_misaligned", 8).is_caught_with(
        "copy_misaligned: block (0, 0, 0) thread (0, 0, 0): cp.async reads 16 bytes at x + 4, which is not a multiple of 16",
    );
    copy("copy_unused", 3).is_caught_with(
        "copy_unused: block (0, 0, 0) thread (0, 0, 0): cp.async reads 16 bytes at x + 0, past its end (12 bytes)",
    );
    let _ = copy("copy_unused", 4).passes();
    Trial { shared_bytes: 12, ..copy("copy_unused", 4) }.is_caught_with(
        "copy_unused: block (0, 0, 0) thread (0, 0, 0): cp.async writes 16 bytes at shared memory + 0, past its end (12 bytes)",
    );
}
