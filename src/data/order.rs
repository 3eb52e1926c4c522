//! The order of an epoch: a permutation of the samples that is computed, not stored.
//!
//! An alternating Feistel network over just enough bits, its rounds keyed by Philox of (seed,
//! epoch, round), is a bijection on 0..2^bits; walking its cycle until it lands below `len` makes
//! it one on 0..len (Black and Rogaway, "Ciphers with arbitrary finite domains", CT-RSA 2002).

use crate::philox::{Purpose, key, philox4x32};

/// Rounds of the network, each changing one half; even, so both halves change equally often.
const ROUNDS: u32 = 8;

/// Fewest bits of the network: with two halves of a few values each, too few permutations are reachable.
const MIN_BITS: u32 = 8;

/// A permutation of 0..len in O(1) memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Order {
    len: u64,
    kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Sequential,
    Shuffled { key: [u32; 2], epoch: u32, left_bits: u32, right_bits: u32 },
}

impl Order {
    /// A pseudo-random permutation, a function of (len, seed, epoch) alone.
    pub fn shuffled(len: u64, seed: u64, epoch: u32) -> Self {
        let bits = (u64::BITS - len.saturating_sub(1).leading_zeros()).max(MIN_BITS);
        let left_bits = bits / 2;
        let kind = Kind::Shuffled { key: key(seed, Purpose::Order), epoch, left_bits, right_bits: bits - left_bits };
        Order { len, kind }
    }

    /// The identity.
    pub fn sequential(len: u64) -> Self {
        Order { len, kind: Kind::Sequential }
    }

    /// Number of indices permuted.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there is nothing to permute.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Where index `i` goes, below `len`. `i` must be below `len`.
    pub fn at(&self, i: u64) -> u64 {
        debug_assert!(i < self.len);
        let Kind::Shuffled { key, epoch, left_bits, right_bits } = self.kind else {
            return i;
        };
        let mut value = i;
        // Ends: the walk follows a cycle that contains i, which is below len.
        loop {
            value = network(value, key, epoch, left_bits, right_bits);
            if value < self.len {
                return value;
            }
        }
    }
}

/// A bijection on 0..2^(left_bits + right_bits): each round adds to one half, modulo 2, a function of the other.
fn network(value: u64, key: [u32; 2], epoch: u32, left_bits: u32, right_bits: u32) -> u64 {
    let right_mask = (1u64 << right_bits) - 1;
    let left_mask = (1u64 << left_bits) - 1;
    let mut left = value >> right_bits;
    let mut right = value & right_mask;
    for round in 0..ROUNDS {
        // Both halves have at most 32 bits, as an index has at most 64.
        if round % 2 == 0 {
            left ^= u64::from(philox4x32([right as u32, round, epoch, 0], key)[0]) & left_mask;
        } else {
            right ^= u64::from(philox4x32([left as u32, round, epoch, 0], key)[0]) & right_mask;
        }
    }
    left << right_bits | right
}

#[cfg(test)]
mod tests {
    use super::*;

    fn permutation(order: Order) -> Vec<u64> {
        (0..order.len()).map(|i| order.at(i)).collect()
    }

    #[test]
    fn is_a_bijection_at_every_length() {
        let lengths = (0..=300).chain([511, 512, 513, 1000, 4095, 4096, 4097, 65_537, 100_000]);
        for len in lengths {
            for (seed, epoch) in [(42, 0), (42, 1), (7 << 32, 0)] {
                let mut seen = permutation(Order::shuffled(len, seed, epoch));
                seen.sort_unstable();
                assert!(seen.iter().copied().eq(0..len), "len {len}, seed {seed}, epoch {epoch}");
            }
        }
    }

    #[test]
    fn huge_lengths_work_without_memory() {
        for len in [1u64 << 40, (1 << 40) + 1, u64::MAX - 1, u64::MAX] {
            let order = Order::shuffled(len, 1, 2);
            let mut seen: Vec<u64> = (0..1000).map(|i| order.at(i)).collect();
            assert!(seen.iter().all(|&v| v < len));
            seen.sort_unstable();
            seen.dedup();
            assert_eq!(seen.len(), 1000);
        }
    }

    #[test]
    fn depends_on_seed_and_epoch_and_nothing_else() {
        let base = permutation(Order::shuffled(1000, 42, 0));
        assert_eq!(base, permutation(Order::shuffled(1000, 42, 0)));
        assert_ne!(base, permutation(Order::shuffled(1000, 42, 1)));
        assert_ne!(base, permutation(Order::shuffled(1000, 43, 0)));
        assert!(permutation(Order::sequential(1000)).into_iter().eq(0..1000));
    }

    #[test]
    fn every_value_reaches_every_place_equally_often() {
        // Chi-square over (place, value) counts, against its mean plus six standard deviations.
        for len in [2usize, 3, 5, 12, 40] {
            let epochs = 4000;
            let mut counts = vec![0u32; len * len];
            for epoch in 0..epochs {
                for (place, value) in permutation(Order::shuffled(len as u64, 9, epoch)).into_iter().enumerate() {
                    counts[place * len + value as usize] += 1;
                }
            }
            let expected = f64::from(epochs) / len as f64;
            let chi: f64 = counts.iter().map(|&c| (f64::from(c) - expected).powi(2) / expected).sum();
            let freedom = ((len - 1) * (len - 1)) as f64;
            assert!(chi < freedom + 6.0 * (2.0 * freedom).sqrt() + 6.0, "len {len}: {chi} for {freedom} degrees");
        }
    }

    #[test]
    fn neighbours_are_parted() {
        // In a random permutation of n, the mean distance of neighbours is (n + 1) / 3.
        let len = 10_000;
        let places = permutation(Order::shuffled(len, 3, 0));
        let mean = places.windows(2).map(|w| w[0].abs_diff(w[1]) as f64).sum::<f64>() / (len - 1) as f64;
        let expected = (len + 1) as f64 / 3.0;
        assert!((mean - expected).abs() < expected * 0.03, "{mean}, expected {expected}");
    }
}
