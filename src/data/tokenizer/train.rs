//! Learning a WordPiece vocabulary.
//!
//! The crate's trainer numbers the `##x` forms of the alphabet in the order in which its hash map
//! yields words, and breaks ties between merges by those numbers, so that two runs over the same
//! text give two vocabularies. Handing it the alphabet, sorted and in both forms, as the first entries
//! of its vocabulary leaves it nothing to number by chance.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use serde_json::{Map, json};
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::tokenizer::{
    AddedToken, Normalizer, OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer, Trainer,
};
use tokenizers::{NormalizedString, normalizers::BertNormalizer, pre_tokenizers::bert::BertPreTokenizer};

use super::files::{SPECIAL_TOKENS, bert_pipeline};
use super::plain::{Chunk, Plain};
use super::{Error, Result, Tokenizer};

/// Smallest vocabulary that can be asked for.
const SMALLEST: usize = 64;

/// Most characters of the alphabet; rarer ones become [UNK], as in HF's BertWordPieceTokenizer.
const ALPHABET: usize = 1000;

/// Pairs seen less often are not merged.
const MIN_FREQUENCY: u64 = 2;

/// The trainer counts pairs in 32 bits with a sign; a text of fewer bytes cannot overflow them.
const MOST_BYTES: usize = i32::MAX as usize;

/// Texts are counted in pieces of about this many bytes.
const FEED_BYTES: usize = 1 << 18;

impl Tokenizer {
    /// Learns an uncased WordPiece vocabulary of at most `vocab_size` tokens, `[PAD]` 0, `[UNK]` 1,
    /// `[CLS]` 2, `[SEP]` 3, `[MASK]` 4. The same texts give the same vocabulary, whatever the number of
    /// threads. Of more than 2 GiB of text, the first 2 GiB are looked at.
    ///
    /// # Errors
    /// The first error of `texts`; a size below 64; texts without a single word.
    pub fn train(texts: impl Iterator<Item = Result<String>> + Send, vocab_size: usize) -> Result<Tokenizer> {
        if vocab_size < SMALLEST {
            return Err(Error::Invalid(format!(
                "a vocabulary of {vocab_size} tokens is too small; the least is {SMALLEST}"
            )));
        }
        let mut words = Words::new()?;
        let failed = Mutex::new(None);
        let mut trainer = BpeTrainer::builder()
            .vocab_size(vocab_size)
            .min_frequency(MIN_FREQUENCY)
            .continuing_subword_prefix("##".to_owned())
            .show_progress(false)
            .build();
        trainer.feed(gather(texts, &failed), |text| words.split(text)).map_err(training)?;
        if let Some(error) = failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
            return Err(error);
        }
        // Each character takes two entries, "x" and "##x"; half of the vocabulary is left for merges.
        let limit = ALPHABET.min((vocab_size - SPECIAL_TOKENS.len()) / 4);
        let alphabet = words.alphabet(limit);
        if alphabet.is_empty() {
            return Err(Error::Invalid("there is not one word to learn a vocabulary from".to_owned()));
        }
        let begin = alphabet.iter().map(char::to_string);
        let continued = alphabet.iter().map(|c| format!("##{c}"));
        let first = SPECIAL_TOKENS.iter().map(|(_, token)| (*token).to_owned()).chain(begin).chain(continued);
        trainer.special_tokens = first.map(|token| AddedToken::from(token, true)).collect();
        trainer.initial_alphabet = alphabet.iter().copied().collect();
        trainer.limit_alphabet = Some(alphabet.len());
        let mut model = BPE::default();
        trainer.train(&mut model).map_err(training)?;

        let names = SPECIAL_TOKENS.map(|(_, token)| token.to_owned());
        let pipeline = bert_pipeline(model.get_vocab(), &names);
        let config: Map<_, _> = [("tokenizer_class".to_owned(), json!("DistilBertTokenizer"))].into_iter().collect();
        Tokenizer::from_pipeline(pipeline, config, &Map::new())
    }
}

fn training(error: tokenizers::Error) -> Error {
    Error::Invalid(format!("learning the vocabulary: {error}"))
}

/// Texts joined into pieces worth a thread's while; ends at the first error, which it leaves in `failed`.
fn gather(
    mut texts: impl Iterator<Item = Result<String>> + Send, failed: &Mutex<Option<Error>>,
) -> impl Iterator<Item = String> + Send {
    let (mut left, mut ended) = (MOST_BYTES, false);
    std::iter::from_fn(move || {
        let mut piece = String::new();
        while piece.len() < FEED_BYTES && !ended {
            match texts.next() {
                Some(Ok(text)) if text.len() < left => {
                    left -= text.len() + 1;
                    piece.push_str(&text);
                    piece.push('\n');
                }
                Some(Ok(_)) => {
                    tracing::warn!("the vocabulary is learnt from the first 2 GiB of text");
                    ended = true;
                }
                Some(Err(error)) => {
                    *failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                    ended = true;
                }
                None => ended = true,
            }
        }
        (!piece.is_empty()).then_some(piece)
    })
}

/// Splits text into normalised words and counts their characters.
struct Words {
    plain: Plain,
    normalizer: BertNormalizer,
    characters: Mutex<HashMap<char, u64>>,
}

impl Words {
    fn new() -> Result<Self> {
        Ok(Words {
            plain: Plain::new(true, Vec::new())?,
            normalizer: BertNormalizer::default(),
            characters: Mutex::default(),
        })
    }

    fn split(&self, text: &str) -> tokenizers::Result<Vec<String>> {
        let mut words = Vec::with_capacity(text.len() / 5);
        let mut result = Ok(());
        self.plain.chunks(text, |chunk| {
            match chunk {
                Chunk::Plain(bytes) => {
                    self.plain.words(bytes, |word| words.push(word.iter().map(|&b| char::from(b)).collect()))
                }
                Chunk::Other(chunk) => result = self.split_other(chunk, &mut words),
            }
            result.is_ok()
        });
        result?;
        let mut counts: HashMap<char, u64> = HashMap::new();
        for c in words.iter().flat_map(|word| word.chars()) {
            *counts.entry(c).or_default() += 1;
        }
        let mut characters = self.characters.lock().unwrap_or_else(PoisonError::into_inner);
        for (c, count) in counts {
            *characters.entry(c).or_default() += count;
        }
        Ok(words)
    }

    fn split_other(&self, chunk: &str, words: &mut Vec<String>) -> tokenizers::Result<()> {
        let mut normalized = NormalizedString::from(chunk);
        self.normalizer.normalize(&mut normalized)?;
        let mut parts = PreTokenizedString::from(normalized);
        BertPreTokenizer.pre_tokenize(&mut parts)?;
        let splits = parts.get_splits(OffsetReferential::Original, OffsetType::None);
        words.extend(splits.into_iter().map(|(word, _, _)| word.to_owned()));
        Ok(())
    }

    /// The most frequent characters, at most `limit`, sorted; of equally frequent ones the smaller.
    fn alphabet(&mut self, limit: usize) -> Vec<char> {
        let counts = std::mem::take(self.characters.get_mut().unwrap_or_else(PoisonError::into_inner));
        let mut ranked: Vec<(char, u64)> = counts.into_iter().collect();
        ranked.sort_unstable_by_key(|&(c, count)| (std::cmp::Reverse(count), c));
        let mut kept: Vec<char> = ranked.into_iter().take(limit).map(|(c, _)| c).collect();
        kept.sort_unstable();
        kept
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts() -> Vec<String> {
        // Many ties on purpose: every word as often as every other.
        let syllables = ["ba", "ce", "di", "fo", "gu", "ka", "le", "mi", "no", "pu", "é", "中"];
        let mut texts = Vec::new();
        for a in syllables {
            for b in syllables {
                texts.push(format!("{a}{b} {b}{a}{b}, {a}-{b}{b}!"));
            }
        }
        texts
    }

    fn vocabulary(texts: impl Iterator<Item = String> + Send, size: usize) -> Vec<String> {
        let tokenizer = Tokenizer::train(texts.map(Ok), size).unwrap();
        (0..tokenizer.vocab_size() as u32).map(|id| tokenizer.token(id).unwrap().to_owned()).collect()
    }

    #[test]
    fn the_same_texts_give_the_same_vocabulary() {
        let first = vocabulary(texts().into_iter(), 150);
        assert_eq!(first.len(), 150);
        assert_eq!(first[..5], ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]);
        // The crate's maps hash differently each time, so eight runs would not agree by luck.
        for _ in 0..8 {
            assert_eq!(first, vocabulary(texts().into_iter(), 150));
        }
        assert_eq!(first, vocabulary(texts().into_iter().rev(), 150));
    }

    #[test]
    fn a_small_vocabulary_keeps_room_for_merges() {
        let vocabulary = vocabulary(texts().into_iter(), 64);
        assert_eq!(vocabulary.len(), 64);
        let characters = vocabulary.iter().filter(|t| t.trim_start_matches("##").chars().count() == 1).count();
        assert!(characters <= 2 * (64 - 5) / 4, "{characters}");
        assert!(vocabulary.iter().any(|t| t.trim_start_matches("##").chars().count() > 1));
    }

    #[test]
    fn errors_come_back() {
        let error =
            Tokenizer::train([Ok("a".to_owned()), Err(Error::Invalid("row".to_owned()))].into_iter(), 100).unwrap_err();
        assert_eq!(error.to_string(), "row");
        assert!(Tokenizer::train(std::iter::empty(), 100).unwrap_err().to_string().contains("not one word"));
        assert!(Tokenizer::train(std::iter::empty(), 10).unwrap_err().to_string().contains("too small"));
    }
}
