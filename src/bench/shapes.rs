//! Models and batches to measure with: base size, random tokens packed as real postings are.

use super::ops::Load;
use crate::data::pack::{Cursor, PackCounts};
use crate::data::{DrawKey, MaskedBatch, PackedBatch, Piece};
use crate::model::Config;
use crate::philox::{Purpose, below, key, philox4x32};
use crate::train::loader::{Group, LastOfEpoch};
use crate::train::task::MicroBatch;

/// Lengths of the sequences in 4,096 tokens, as a packed batch of real postings has them.
pub const LENGTHS: [usize; 14] = [512, 180, 300, 411, 97, 350, 260, 512, 233, 310, 140, 401, 290, 100];

/// The longest of them.
const LONGEST: usize = 512;

/// Of the tokens that are not special.
const MASKED: f64 = 0.15;

/// Ids of special tokens; others are drawn from [`ORDINARY`] on.
const CLS: u32 = 1;
const SEP: u32 = 2;
const MASK: u32 = 3;
const ORDINARY: u32 = 4;

/// The configuration of distilbert-base-uncased.
pub fn base_config() -> Config {
    Config {
        vocab_size: 30_522,
        max_position_embeddings: 512,
        sinusoidal_pos_embds: false,
        n_layers: 6,
        n_heads: 12,
        dim: 768,
        hidden_dim: 3072,
        dropout: 0.1,
        attention_dropout: 0.1,
        seq_classif_dropout: 0.2,
        initializer_range: 0.02,
        pad_token_id: 0,
        labels: Vec::new(),
    }
}

/// How long sequences are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Lengths {
    /// As postings are; see [`LENGTHS`].
    Mixed,
    /// All as long as the model takes, and no longer than 512.
    Equal,
}

impl Lengths {
    /// Those of `tokens` tokens, for a model of so many positions. Equal ones are as many as fit; the last of mixed ones is
    /// cut where the tokens end.
    pub fn of(self, tokens: usize, positions: usize) -> Vec<usize> {
        let longest = positions.min(LONGEST);
        match self {
            Lengths::Equal => vec![longest.min(tokens); (tokens / longest).max(1)],
            Lengths::Mixed => {
                let mut left = tokens;
                let scaled = LENGTHS.iter().map(|&length| (length * longest).div_ceil(LONGEST)).cycle();
                let cut = scaled.map_while(|length| {
                    let length = length.min(left);
                    left -= length;
                    (length > 0).then_some(length)
                });
                cut.collect()
            }
        }
    }
}

/// A batch of random tokens in sequences of these lengths, 15 % of them to be predicted; without labels where there are no
/// classes. Words are as unequal as in text: the r-th most frequent one has a share of about 1 / (r ln V).
pub fn batch(lengths: &[usize], vocab: usize, classes: usize, seed: u64) -> MicroBatch {
    let mut batch = MaskedBatch::default();
    batch.packed.clear();
    for (number, &length) in (0u64..).zip(lengths) {
        append(&mut batch, number, length as u32, vocab, seed);
        if classes > 0 {
            batch.packed.labels.push((number % classes as u64) as i32);
        }
    }
    MicroBatch { batch, label_weights: Vec::new() }
}

fn append(batch: &mut MaskedBatch, number: u64, length: u32, vocab: usize, seed: u64) {
    let MaskedBatch { packed, masked_rows, targets } = batch;
    let key = key(seed, Purpose::Synth);
    for place in 0..length {
        let [word, hidden, shown, other] = philox4x32([place, number as u32, 0, 0], key);
        let ordinary = zipf(word, vocab);
        let id = match place {
            0 => CLS,
            _ if place + 1 == length => SEP,
            _ if f64::from(hidden) < MASKED * 2f64.powi(32) => {
                masked_rows.push(packed.ids.len() as u32);
                targets.push(ordinary);
                match below(shown, 10) {
                    0..8 => MASK,
                    8 => zipf(other, vocab),
                    _ => ordinary,
                }
            }
            _ => ordinary,
        };
        packed.ids.push(id);
        packed.position_ids.push(place);
    }
    packed.cu_seqlens.push(packed.ids.len() as u32);
    packed.pieces.push(Piece { sample: number, start: 0, len: length.saturating_sub(2) });
    packed.draws.push(DrawKey { index: number, position: 0 });
}

/// An ordinary id from a random word; the most frequent are the last.
fn zipf(word: u32, vocab: usize) -> u32 {
    let ordinary = vocab as u32 - ORDINARY;
    let rank = f64::from(ordinary).powf(f64::from(word) / 2f64.powi(32));
    vocab as u32 - (rank as u32).clamp(1, ordinary)
}

/// What the costs of ops on a batch depend on.
pub fn load(batch: &MicroBatch) -> Load {
    let PackedBatch { ids, cu_seqlens, .. } = &batch.batch.packed;
    let squares: f64 = cu_seqlens.windows(2).map(|ends| f64::from(ends[1] - ends[0]).powi(2)).sum();
    let mut words = ids.clone();
    words.sort_unstable();
    words.dedup();
    let tokens = ids.len();
    Load {
        tokens,
        mean_length: tokens as f64 / (cu_seqlens.len() - 1) as f64,
        attended: squares / tokens as f64,
        masked: batch.batch.targets.len(),
        words: Some(words.len()),
    }
}

/// A step of one batch.
pub fn group(micro: MicroBatch) -> Group {
    let packed = &micro.batch.packed;
    Group {
        weight: micro.batch.targets.len() as f64,
        tokens: packed.tokens() as u64,
        micro: vec![micro],
        cursor: Cursor::start(0),
        epoch: 0.0,
        last_of_epoch: LastOfEpoch::No,
        counts: PackCounts::default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_add_up_and_fit_the_model() {
        assert_eq!(LENGTHS.iter().sum::<usize>(), 4096);
        for (tokens, positions) in [(65_536, 512), (2048, 512), (100, 64), (64, 512), (1, 512)] {
            let mixed = Lengths::Mixed.of(tokens, positions);
            assert_eq!(mixed.iter().sum::<usize>(), tokens);
            assert!(mixed.iter().all(|&length| length > 0 && length <= positions));
            let equal = Lengths::Equal.of(tokens, positions);
            assert!(equal.iter().all(|&length| length == equal[0] && length <= positions));
            assert!(equal.iter().sum::<usize>() <= tokens);
        }
        assert_eq!(Lengths::Equal.of(65_536, 512), vec![512; 128]);
    }

    #[test]
    fn batches_are_random_and_keep_the_rules() {
        let made = batch(&Lengths::Mixed.of(8192, 512), 30_522, 2, 7);
        let view = made.view(1.0, 0);
        let ends = |i: &usize| view.cu_seqlens[i + 1] as usize - 1;
        for i in 0..view.labels.len() {
            assert_eq!((view.ids[view.cu_seqlens[i] as usize], view.ids[ends(&i)]), (CLS, SEP));
        }
        assert!(view.ids.iter().chain(view.targets).all(|&id| id > 0 && id < 30_522));
        assert!(view.masked_rows.is_sorted_by(|a, b| a < b));
        assert!((0.13..0.17).contains(&(view.targets.len() as f64 / 8192.0)));
        assert_ne!(made, batch(&Lengths::Mixed.of(8192, 512), 30_522, 2, 8));
        assert!(batch(&[5], 10, 0, 1).batch.packed.labels.is_empty());
        // The most frequent word of Zipf's law has a share of 1 / ln V, about a tenth.
        let most = view.targets.iter().filter(|&&id| id == 30_521).count() as f64 / view.targets.len() as f64;
        assert!((0.04..0.10).contains(&most), "{most}");
    }

    #[test]
    fn loads_by_hand() {
        let load = load(&batch(&[2, 4], 100, 0, 1));
        assert_eq!((load.tokens, load.mean_length, load.sequences()), (6, 3.0, 2.0));
        assert_eq!(load.attended, (4.0 + 16.0) / 6.0);
        // Two frames and at most two words.
        assert!((3..=4).contains(&load.words.unwrap()));
    }
}
