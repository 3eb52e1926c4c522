//! Accesses out of bounds, misaligned, to what nobody has written, to what may not be written; and other crashes.

use crate::simulator::Simulator;
use crate::skip::skipped;

use super::trial::{Arg, Trial, input, output, values};

fn trial(kernel: &'static str, threads: u32, args: Vec<Arg>) -> Trial {
    Trial { file: "bounds.cu", kernel, blocks: 1, threads, shared_bytes: 0, args }
}

#[test]
fn a_row_too_far_is_caught() {
    let rows = |rows| trial("double_rows", 32, vec![input(&[1.5f32; 6 * 64]), output::<f32>(6 * 64), Arg::U32(rows)]);
    assert!(rows(6).passes().is_none_or(|outputs| values::<f32>(&outputs[0]) == [3.0; 6 * 64]));
    rows(7).is_caught(" bytes at x + 1");
    rows(7).is_caught(", past its end (1536 bytes)");
    let short = |count| trial("add_one", 8, vec![input(&[1.0f32; 8]), output::<f32>(count)]);
    short(7)
        .is_caught_with("add_one: block (0, 0, 0) thread (7, 0, 0): writes 4 bytes at y + 28, past its end (28 bytes)");
}

#[test]
fn reading_before_the_start_is_caught() {
    let before = trial("before_the_start", 4, vec![input(&[1.0f32; 8]), output::<f32>(4)]);
    before.is_caught("reads 4 bytes at x - ");
    before.is_caught(", before its start");
}

#[test]
fn null_and_foreign_pointers_are_caught() {
    trial("null_pointer", 1, vec![input(&[1.0f32]), output::<f32>(1), Arg::Null]).is_caught_with(
        "null_pointer: block (0, 0, 0) thread (0, 0, 0): reads 4 bytes at 0x0, which belongs to no argument of the launch",
    );
}

#[test]
fn writing_to_what_may_only_be_read_is_caught() {
    trial("write_input", 1, vec![input(&[1.0f32]), output::<f32>(1)]).is_caught_with(
        "write_input: block (0, 0, 0) thread (0, 0, 0): writes 4 bytes at x + 0, which this launch may only read",
    );
}

#[test]
fn a_misaligned_load_is_caught() {
    let odd = |halves| trial("load_at", 1, vec![input(&[0x3f80u16; 4]), output::<f32>(1), Arg::U32(halves)]);
    let _ = odd(2).passes();
    odd(1).is_caught_with(
        "load_at: block (0, 0, 0) thread (0, 0, 0): reads 4 bytes at x + 2, which is not a multiple of 4",
    );
}

#[test]
fn a_misaligned_load_of_a_vector_is_caught() {
    let eight = |first| trial("load_eight", 2, vec![input(&[0x3f80u16; 32]), output::<f32>(16), Arg::U32(first)]);
    assert!(eight(8).passes().is_none_or(|outputs| values::<f32>(&outputs[0]) == [1.0; 16]));
    let Some(simulator) = Simulator::new(1) else { return };
    if !simulator.sees_whole_structs() {
        return skipped("clang takes loads of structs apart: their alignment is not checked");
    }
    eight(4).is_caught("reads 16 bytes at x + ");
    eight(4).is_caught(", which is not a multiple of 16");
    let one = Trial { threads: 1, ..eight(1) };
    one.is_caught_with(
        "load_eight: block (0, 0, 0) thread (0, 0, 0): reads 16 bytes at x + 2, which is not a multiple of 16",
    );
}

/// Downloading it names the element and the kernel that left it out.
#[test]
fn an_output_left_unwritten_is_caught_when_it_is_downloaded() {
    let leave =
        |missing| Trial { blocks: 4, ..trial("leave_one_out", 32, vec![output::<f32>(128), Arg::U32(missing)]) };
    assert!(leave(128).passes().is_none_or(|outputs| values::<f32>(&outputs[0]) == [1.0; 128]));
    let Some(outcome) = leave(77).run(1) else { return };
    assert_eq!(outcome.unwrap_err(), "byte 308 of 512 was never written; leave_one_out was to write it (y + 308)");
}

#[test]
fn shared_memory_starts_unwritten_in_each_block() {
    let left_out = |missing| Trial {
        shared_bytes: 256,
        ..trial("shared_left_out", 64, vec![output::<u32>(64), Arg::U32(missing)])
    };
    assert!(left_out(64).passes().is_none_or(|outputs| values::<u32>(&outputs[0]) == [1; 64]));
    left_out(10).is_caught_with(
        "shared_left_out: block (0, 0, 0) thread (10, 0, 0): reads 4 bytes at shared memory + 40, which nobody has written",
    );
    let blocks = Trial { blocks: 2, shared_bytes: 4, ..trial("shared_of_another_block", 1, vec![output::<u32>(2)]) };
    blocks.is_caught_with(
        "shared_of_another_block: block (1, 0, 0) thread (0, 0, 0): reads 4 bytes at shared memory + 0, which nobody has written",
    );
}

#[test]
fn going_past_shared_memory_is_caught() {
    let words =
        |words| Trial { shared_bytes: 256, ..trial("past_shared", 64, vec![output::<u32>(64), Arg::U32(words)]) };
    assert!(words(64).passes().is_none_or(|outputs| values::<u32>(&outputs[0]) == (0..64).collect::<Vec<_>>()));
    words(65).is_caught_with(
        "past_shared: block (0, 0, 0) thread (0, 0, 0): writes 4 bytes at shared memory + 256, past its end (256 bytes)",
    );
}

#[test]
fn crashes_are_caught() {
    let recurse = |depth| trial("recurse", 2, vec![output::<u32>(2), Arg::U32(depth)]);
    let _ = recurse(10).passes();
    recurse(100_000).is_caught("overflows its stack of 64 KiB");
    let frame = trial("large_frame", 2, vec![super::trial::update(&[9u32, 9])]);
    frame.is_caught("overflows its stack of 64 KiB");
    let divide = |divisor| trial("divide", 2, vec![input(&[3u32, divisor]), output::<u32>(2)]);
    assert!(divide(4).passes().is_none_or(|outputs| values::<u32>(&outputs[0]) == [4, 3]));
    divide(0).is_caught_with("divide: block (0, 0, 0) thread (1, 0, 0): divides an integer by zero");
    // And after a crash all is as before.
    assert!(divide(6).passes().is_none_or(|outputs| values::<u32>(&outputs[0]) == [4, 2]));
}

#[test]
fn impossible_launches_are_refused() {
    let refused = |blocks, threads, shared_bytes, why: &str| {
        let trial =
            Trial { blocks, shared_bytes, ..trial("add_one", threads, vec![input(&[1.0f32; 8]), output::<f32>(8)]) };
        let Some(outcome) = trial.run(1) else { return };
        assert_eq!(outcome.unwrap_err(), format!("add_one: {why}"));
    };
    refused(0, 8, 0, "a grid dimension is 0");
    refused(1, 0, 0, "a block dimension is 0");
    refused(1, 1025, 0, "a block has more than 1,024 threads, or more than 64 in z");
    refused(1, 8, 228 * 1024, "more than 227 KiB of shared memory");
}

#[test]
fn a_block_beyond_the_launch_bounds_is_refused() {
    let trial = |threads| trial("at_most_64", threads, vec![output::<u32>(threads as usize)]);
    assert!(trial(64).passes().is_none_or(|outputs| values::<u32>(&outputs[0])[63] == 63));
    let Some(outcome) = trial(96).run(1) else { return };
    assert_eq!(outcome.unwrap_err(), "at_most_64: a block has more threads than its __launch_bounds__ allow");
}
