//! Philox4x32-10, the counter-based random generator behind every random number in HandBERT.
//!
//! Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011);
//! the known answers in the tests are Random123's (`kat_vectors`). A draw is a pure function of
//! where it is used, so nothing depends on tiling, on the backend or on the number of threads.

use pulp::Simd;

const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
const ROUNDS: usize = 10;

/// Four uniform 32-bit words for a 128-bit counter under a 64-bit key.
#[inline(always)]
pub fn philox4x32(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let [mut c0, mut c1, mut c2, mut c3] = counter;
    let [mut k0, mut k1] = key;
    for _ in 0..ROUNDS {
        let p0 = u64::from(MULTIPLIERS[0]) * u64::from(c0);
        let p1 = u64::from(MULTIPLIERS[1]) * u64::from(c2);
        (c0, c1, c2, c3) = ((p1 >> 32) as u32 ^ c1 ^ k0, p1 as u32, (p0 >> 32) as u32 ^ c3 ^ k1, p0 as u32);
        k0 = k0.wrapping_add(WEYL[0]);
        k1 = k1.wrapping_add(WEYL[1]);
    }
    [c0, c1, c2, c3]
}

/// [`philox4x32`] of as many counters as a vector has lanes.
#[inline(always)]
pub fn philox4x32_vectors<S: Simd>(simd: S, counter: [S::u32s; 4], key: [u32; 2]) -> [S::u32s; 4] {
    let [mut c0, mut c1, mut c2, mut c3] = counter;
    let [mut k0, mut k1] = key;
    let multipliers = MULTIPLIERS.map(|m| simd.splat_u32s(m));
    for _ in 0..ROUNDS {
        let (low0, high0) = simd.widening_mul_u32s(multipliers[0], c0);
        let (low1, high1) = simd.widening_mul_u32s(multipliers[1], c2);
        c0 = simd.xor_u32s(simd.xor_u32s(high1, c1), simd.splat_u32s(k0));
        c2 = simd.xor_u32s(simd.xor_u32s(high0, c3), simd.splat_u32s(k1));
        (c1, c3) = (low1, low0);
        k0 = k0.wrapping_add(WEYL[0]);
        k1 = k1.wrapping_add(WEYL[1]);
    }
    [c0, c1, c2, c3]
}

/// What a stream of draws is for. Each purpose has its own key, so streams never overlap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Purpose {
    /// Dropout, counter (column / 8, packed row, site, step).
    Dropout = 0,
    /// MLM masks, counter (position, sample low, sample high, epoch).
    Mask = 1,
    /// Order of the samples in an epoch.
    Order = 2,
    /// Initial weights, counter (element / 4, parameter).
    Init = 3,
    /// Synthetic postings.
    Synth = 4,
}

/// The Philox key of a seed and a purpose.
#[inline]
pub fn key(seed: u64, purpose: Purpose) -> [u32; 2] {
    // The high word carries the purpose: seeds above 2^32 fold into both words.
    let high = (seed >> 32) as u32;
    [seed as u32, high ^ (purpose as u32).wrapping_mul(0x9E37_79B9)]
}

/// A word as a number in [0, 1), with 24 bits, exactly representable in f32.
#[inline(always)]
pub fn unit_f32(word: u32) -> f32 {
    (word >> 8) as f32 * (1.0 / (1 << 24) as f32)
}

/// A word as an integer in 0..n, by multiplication (bias below n / 2^32).
#[inline(always)]
pub fn below(word: u32, n: u32) -> u32 {
    ((u64::from(word) * u64::from(n)) >> 32) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Random123 1.14, tests/kat_vectors, lines "philox4x32 10".
    #[test]
    fn known_answers_of_random123() {
        let cases = [
            ([0; 4], [0; 2], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]),
            ([u32::MAX; 4], [u32::MAX; 2], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]),
            (
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xa409_3822, 0x299f_31d0],
                [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
            ),
        ];
        for (counter, key, expected) in cases {
            assert_eq!(philox4x32(counter, key), expected);
        }
    }

    #[test]
    fn purposes_have_distinct_keys() {
        let purposes = [Purpose::Dropout, Purpose::Mask, Purpose::Order, Purpose::Init, Purpose::Synth];
        let mut keys: Vec<_> = purposes.iter().map(|&p| key(42, p)).collect();
        keys.sort_unstable();
        keys.dedup();
        assert_eq!(keys.len(), purposes.len());
    }
}
