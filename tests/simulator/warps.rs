//! Shuffles and votes against a naive reading of the manual; lanes that are missing or that do something else.

use super::trial::{Trial, input, output, values};

fn warp(kernel: &'static str, threads: u32) -> Trial {
    let args = vec![output::<u32>(threads as usize)];
    Trial { file: "warps.cu", kernel, blocks: 1, threads, shared_bytes: 0, args }
}

#[test]
fn shuffles_and_votes_follow_the_manual() {
    let x: Vec<u32> = (0..32).map(|lane| 1000 + 7 * lane).collect();
    let args = vec![input(&x), output::<u32>(512)];
    let Some(outputs) = (Trial { args, ..warp("shuffles", 32) }).passes() else { return };
    let found = values::<u32>(&outputs[0]);
    let ballot = |mask: u32, holds: &dyn Fn(u32) -> bool| {
        (0..32).filter(|&l| mask >> l & 1 == 1 && holds(l)).fold(0, |b, l| b | 1 << l)
    };
    for lane in 0..32u32 {
        let at = |lane: u32| x[lane as usize];
        let third = (0..32).filter(|l| l % 3 == lane % 3).fold(0, |mask, l| mask | 1 << l);
        let expected = [
            at(5),
            at((lane + 1) % 32),
            at(lane / 8 * 8 + 3),
            at(if lane >= 3 { lane - 3 } else { lane }),
            at(if lane % 8 >= 3 { lane - 3 } else { lane }),
            at(if lane + 3 < 32 { lane + 3 } else { lane }),
            at(if lane % 8 + 3 < 8 { lane + 3 } else { lane }),
            at(lane ^ 21),
            // An earlier segment may be read, a later one not.
            at(if lane ^ 12 <= lane / 8 * 8 + 7 { lane ^ 12 } else { lane }),
            at((lane + 3) % 30),
            ballot(u32::MAX, &|l| at(l) % 3 == 0),
            u32::from(lane % 3 == 0),
            u32::from(lane % 3 == 0),
            at(lane ^ 1),
            third,
            0u32.wrapping_sub(at(if lane < 16 { lane + 16 } else { lane })),
        ];
        assert_eq!(found[16 * lane as usize..][..16], expected, "lane {lane}");
    }
}

#[test]
fn a_lane_that_does_not_come_is_caught() {
    warp("shuffle_in_a_branch", 32).is_caught("__syncwarp");
    warp("shuffle_in_a_branch", 32).is_caught("__shfl_xor_sync");
    warp("shuffle_after_exit", 32).is_caught("__shfl_xor_sync with mask 0xffffffff");
    warp("mma_in_a_branch", 32).is_caught("mma.sync");
    warp("sum_of_part_of_a_warp", 48)
        .is_caught("__shfl_xor_sync with mask 0xffffffff names lane 16, which this block's last warp does not have");
}

#[test]
fn a_mask_of_those_who_come_passes() {
    let half = Trial { args: vec![output::<u32>(16)], ..warp("shuffle_of_half", 32) };
    assert!(
        half.passes().is_none_or(|outputs| values::<u32>(&outputs[0]) == (0..16).map(|l| l ^ 1).collect::<Vec<_>>())
    );
}

#[test]
fn a_wrong_mask_is_caught() {
    warp("shuffle_without_self", 32)
        .is_caught("__shfl_xor_sync with mask 0x0000ffff, which leaves out the lane that calls it, ");
    warp("shuffle_from_outside", 32).is_caught("shuffle with mask 0x0000ffff reads lane 20, which is not in the mask");
    warp("two_masks", 32).is_caught("waits for it at __shfl_xor_sync with mask 0xffffffff");
    warp("two_shuffles", 32).is_caught("_sync with mask 0xffffffff, but thread (");
}
