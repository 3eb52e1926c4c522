//! Which samples are for training and which are held out: a function of the group alone, so a
//! posting never changes sides and reposts never straddle them.

use xxhash_rust::xxh3::xxh3_64;

/// The side of the split a sample is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// For training.
    Train,
    /// For evaluation.
    Held,
}

/// Which samples of a token set are looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Subset {
    /// Those for training.
    Train,
    /// Those held out.
    Held,
    /// All.
    All,
}

/// Splits by hash of the group. Raising the fraction moves samples from training to held out and
/// none the other way.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Split {
    /// Expected fraction of the groups that are held out, 0 to 1.
    pub held_fraction: f64,
}

impl Split {
    /// The side of all samples with this group hash.
    pub fn side(&self, group: u64) -> Side {
        // Hashed once more: a caller's groups may be small consecutive numbers.
        let unit = (xxh3_64(&group.to_le_bytes()) >> 11) as f64 / (1u64 << 53) as f64;
        if unit < self.held_fraction { Side::Held } else { Side::Train }
    }

    /// Whether samples with this group hash belong to the subset.
    pub fn contains(&self, subset: Subset, group: u64) -> bool {
        match subset {
            Subset::All => true,
            Subset::Train => self.side(group) == Side::Train,
            Subset::Held => self.side(group) == Side::Held,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holds_out_the_fraction_asked_for() {
        for held_fraction in [0.0, 0.05, 0.2, 0.5, 1.0] {
            let split = Split { held_fraction };
            let groups = 100_000u64;
            let held = (0..groups).filter(|&g| split.side(g) == Side::Held).count() as f64;
            // Five standard deviations of a binomial.
            let sigma = (groups as f64 * held_fraction * (1.0 - held_fraction)).sqrt();
            assert!(
                (held - held_fraction * groups as f64).abs() <= 5.0 * sigma,
                "{held} of {groups} for {held_fraction}"
            );
        }
    }

    #[test]
    fn train_and_held_part_all() {
        let split = Split { held_fraction: 0.3 };
        for group in 0..1000 {
            assert!(split.contains(Subset::All, group));
            assert_ne!(split.contains(Subset::Train, group), split.contains(Subset::Held, group));
        }
    }

    #[test]
    fn sides_never_move() {
        // These sides are on disk in everybody's results: a change of the hash would mix training and held-out data.
        let split = Split { held_fraction: 0.5 };
        let held: Vec<u64> = (0..16).filter(|&g| split.side(g) == Side::Held).collect();
        assert_eq!(held, [1, 2, 3, 6, 9, 11, 14]);
        for group in 0..1000 {
            if (Split { held_fraction: 0.1 }).side(group) == Side::Held {
                assert_eq!((Split { held_fraction: 0.2 }).side(group), Side::Held);
            }
        }
    }
}
