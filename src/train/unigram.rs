//! The model that knows only how frequent each token is: what a perplexity is measured against.

use crate::data::split::{Split, Subset};
use crate::data::token_set::TokenSet;

use super::Result;

/// Token frequencies of a training side, plus one each (Laplace's rule of succession).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unigram {
    /// [V]
    counts: Vec<u64>,
    /// Sum of the counts.
    total: u64,
}

impl Unigram {
    /// Counts the tokens of the training side, of the first `limit` samples; special tokens are not in a set.
    pub fn count(set: &TokenSet, split: Split, limit: Option<u64>, vocab: usize) -> Result<Self> {
        let mut counts = vec![1u64; vocab];
        let mut ids = Vec::new();
        for i in 0..set.len().min(limit.unwrap_or(u64::MAX)) {
            if split.contains(Subset::Train, set.group(i)) {
                ids.clear();
                set.append_tokens(i, 0, set.sample_len(i)?, &mut ids)?;
                for &id in &ids {
                    if let Some(count) = counts.get_mut(id as usize) {
                        *count += 1;
                    }
                }
            }
        }
        Ok(Unigram::from_counts(counts))
    }

    /// A model with these counts, each at least 1.
    pub fn from_counts(counts: Vec<u64>) -> Self {
        let total = counts.iter().sum();
        Unigram { counts, total }
    }

    /// exp of the mean cross-entropy of targets that occur so often each. [V]
    pub fn perplexity(&self, targets: &[u64]) -> f64 {
        let (mut nats, mut number) = (0.0, 0u64);
        for (&count, &times) in self.counts.iter().zip(targets) {
            nats -= times as f64 * (count as f64 / self.total as f64).ln();
            number += times;
        }
        (nats / number as f64).exp()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn perplexity_of_a_known_distribution() {
        let uniform = Unigram::from_counts(vec![1; 8]);
        assert!((uniform.perplexity(&[3, 0, 1, 0, 0, 0, 9, 0]) - 8.0).abs() < 1e-12);
        // Half a, a quarter b, a quarter c, and targets alike: 2^1.5.
        let skewed = Unigram::from_counts(vec![2, 1, 1]);
        assert!((skewed.perplexity(&[20, 10, 10]) - 2f64.powf(1.5)).abs() < 1e-12);
    }
}
