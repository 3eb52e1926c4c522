//! Hides 15 % of the tokens of a batch for masked-language modelling.
//!
//! Whether and how a token is hidden is a function of (seed, epoch, sample, position): the same whatever stands
//! beside it in the batch, on any backend, with any number of threads. As in BERT, of the tokens to be predicted
//! 80 % become [MASK], 10 % a random token and 10 % stay.

use super::batch::MaskedBatch;
use super::tokenizer::Tokenizer;
use crate::philox::{Purpose, below, key, philox4x32};

/// What is hidden at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MaskUnit {
    /// Each token for itself.
    Token,
    /// A token and the `##` continuations that follow it. A sequence that begins within a word treats the rest of
    /// that word as a word.
    WholeWord,
}

/// Chooses the tokens to hide. Special tokens never are.
#[derive(Debug, Clone)]
pub struct Masker {
    probability: f64,
    /// A word below it means yes; 2^32 × probability.
    threshold: u64,
    key: [u32; 2],
    unit: MaskUnit,
    mask: u32,
    /// Role of each id. [V]
    roles: Vec<Role>,
    /// Ids of the special tokens, ascending.
    special: Vec<u32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Word,
    Continuation,
    Special,
}

/// The most tokens hidden in a batch of at most `tokens`, eight standard deviations above the mean.
pub fn capacity(tokens: usize, probability: f64, unit: MaskUnit) -> usize {
    let (n, p) = (tokens as f64, probability.clamp(0.0, 1.0));
    // Words of several tokens come and go together, which widens the spread.
    let spread = if unit == MaskUnit::WholeWord { 3.0 } else { 1.0 };
    let most = n * p + 8.0 * spread * (n * p * (1.0 - p)).sqrt() + 8.0;
    (most.ceil() as usize).min(tokens)
}

impl Masker {
    /// The epoch of evaluation: its masks are those of no training epoch, and always the same.
    pub const EVAL_EPOCH: u32 = u32::MAX;

    /// Hides each unit with `probability`, 0 to 1.
    pub fn new(probability: f64, seed: u64, unit: MaskUnit, tokenizer: &Tokenizer) -> Self {
        let ids = 0..tokenizer.vocab_size() as u32;
        let role = |id| match (tokenizer.is_special(id), tokenizer.is_continuation(id)) {
            (true, _) => Role::Special,
            (_, true) => Role::Continuation,
            _ => Role::Word,
        };
        Masker {
            probability,
            threshold: (probability.clamp(0.0, 1.0) * (1u64 << 32) as f64).round() as u64,
            key: key(seed, Purpose::Mask),
            unit,
            mask: tokenizer.special().mask,
            roles: ids.clone().map(role).collect(),
            special: ids.filter(|&id| tokenizer.is_special(id)).collect(),
        }
    }

    /// M: the most tokens hidden in a batch of at most `tokens`.
    pub fn capacity(&self, tokens: usize) -> usize {
        capacity(tokens, self.probability, self.unit)
    }

    /// Hides tokens of `batch.packed` in place and lists where they stand and what they were. Of more than
    /// [`Masker::capacity`] of the batch's tokens, the last stay as they are; their number is returned.
    pub fn mask(&self, epoch: u32, batch: &mut MaskedBatch) -> usize {
        let MaskedBatch { packed, masked_rows, targets } = batch;
        masked_rows.clear();
        targets.clear();
        let capacity = self.capacity(packed.ids.len());
        let mut left_out = 0;
        for (bounds, draw) in packed.cu_seqlens.windows(2).zip(&packed.draws) {
            let begin = bounds[0];
            let Some(ids) = packed.ids.get_mut(begin as usize..bounds[1] as usize) else { continue };
            let mut word_is_hidden = false;
            let mut in_word = false;
            for (id, row) in ids.iter_mut().zip(0u32..) {
                // An id outside the vocabulary is left for the backend to refuse.
                let role = self.roles.get(*id as usize).copied().unwrap_or(Role::Special);
                if role == Role::Special {
                    in_word = false;
                    continue;
                }
                let words = self.draw(epoch, draw.index, draw.position.wrapping_add(row));
                let continues = self.unit == MaskUnit::WholeWord && role == Role::Continuation && in_word;
                if !continues {
                    word_is_hidden = u64::from(words[0]) < self.threshold;
                }
                in_word = true;
                if !word_is_hidden {
                    continue;
                }
                if masked_rows.len() == capacity {
                    left_out += 1;
                    continue;
                }
                masked_rows.push(begin + row);
                targets.push(*id);
                *id = self.shown(*id, words);
            }
        }
        left_out
    }

    fn draw(&self, epoch: u32, index: u64, position: u32) -> [u32; 4] {
        philox4x32([position, index as u32, (index >> 32) as u32, epoch], self.key)
    }

    /// What stands in place of a hidden token.
    fn shown(&self, id: u32, words: [u32; 4]) -> u32 {
        match below(words[1], 10) {
            0..8 => self.mask,
            8 => self.ordinary(below(words[2], (self.roles.len() - self.special.len()) as u32)),
            _ => id,
        }
    }

    /// The n-th id that is not special.
    fn ordinary(&self, n: u32) -> u32 {
        self.special.iter().fold(n, |id, &special| if special <= id { id + 1 } else { id })
    }
}
