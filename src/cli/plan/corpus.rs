//! What a corpus of a given size takes: disk, steps, time.

use serde_json::{Value, json};

use crate::bench::Total;
use crate::data::token_set::Dtype;

/// A corpus, by its size alone.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Corpus {
    /// In the token set: [CLS] and [SEP] not counted.
    pub tokens: u64,
    /// Postings, each of them one sequence.
    pub postings: u64,
    /// Passes over it.
    pub epochs: f64,
    /// V
    pub vocab: u64,
    /// Whether postings have labels.
    pub labelled: bool,
}

impl Corpus {
    /// How the token set stores ids.
    pub fn dtype(&self) -> Dtype {
        Dtype::for_vocabulary(self.vocab)
    }

    /// Bytes of the token set: ids; for each posting an offset and a group of 8 bytes, a label of 4.
    pub fn token_set_bytes(&self) -> u64 {
        let each = if self.labelled { 20 } else { 16 };
        self.tokens * self.dtype().bytes() + self.postings * each + 8
    }

    /// Tokens that the model sees, [CLS] and [SEP] of every posting among them.
    pub fn tokens_seen(&self) -> f64 {
        (self.tokens as f64 + 2.0 * self.postings as f64) * self.epochs
    }

    /// Steps, with batches full to the last.
    pub fn steps(&self, batch_tokens: usize) -> f64 {
        (self.tokens_seen() / batch_tokens as f64).ceil()
    }

    /// Every figure.
    pub fn as_json(&self, batch_tokens: usize, step: &Total) -> Value {
        let steps = self.steps(batch_tokens);
        json!({
            "postings": self.postings,
            "tokens": self.tokens,
            "epochs": self.epochs,
            "dtype": self.dtype(),
            "token_set_bytes": self.token_set_bytes(),
            "tokens_seen": self.tokens_seen() as u64,
            "steps": steps as u64,
            "floor_seconds": steps * step.floor,
            "expected_seconds": steps * step.expected,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disk_and_steps_by_hand() {
        let corpus = Corpus { tokens: 298_000, postings: 1000, epochs: 2.0, vocab: 30_522, labelled: false };
        assert_eq!(corpus.token_set_bytes(), 596_000 + 8 * 1001 + 8000);
        assert_eq!((corpus.tokens_seen(), corpus.steps(65_536)), (600_000.0, 10.0));
        let wide = Corpus { vocab: 119_547, labelled: true, ..corpus };
        assert_eq!(wide.token_set_bytes(), 1_192_000 + 8 * 1001 + 8000 + 4000);
    }
}
