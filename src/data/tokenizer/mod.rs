//! Text → token ids, as BERT's WordPiece tokenizer does, token for token.
//!
//! The `tokenizers` crate defines what the ids are. On top of it, [`plain`] encodes the chunks of a
//! text that are ASCII, nearly all of an English posting, an order of magnitude faster and to the
//! same ids; whatever else stands in a text goes through the crate.

mod files;
mod plain;
mod train;
mod trie;

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use rayon::prelude::*;
use xxhash_rust::xxh3::Xxh3;

use super::{Error, Result};
pub use files::FILES;
use plain::{Chunk, Plain};
use trie::Trie;

/// A document longer than this is cut at white space and encoded on several threads.
const SEGMENT_BYTES: usize = 1 << 18;

/// Chunks remembered by one thread, and the longest worth remembering.
const CACHE_ENTRIES: usize = 1 << 14;
const CACHE_BYTES: usize = 64;

/// Ids of the tokens with a role of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpecialIds {
    /// [PAD]
    pub pad: u32,
    /// [UNK]
    pub unk: u32,
    /// [CLS]
    pub cls: u32,
    /// [SEP]
    pub sep: u32,
    /// [MASK]
    pub mask: u32,
}

/// A WordPiece tokenizer with BERT's normaliser and pre-tokeniser.
#[derive(Debug)]
pub struct Tokenizer {
    /// Defines the ids.
    inner: tokenizers::Tokenizer,
    /// The same for ASCII, where the pipeline is exactly BERT's.
    fast: Option<Fast>,
    /// Token of each id. [V]
    tokens: Vec<Option<Box<str>>>,
    /// Role of each id. [V]
    roles: Vec<Role>,
    special: SpecialIds,
    /// tokenizer_config.json, as read or made.
    config: serde_json::Map<String, serde_json::Value>,
    fingerprint: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Word,
    Continuation,
    Special,
}

#[derive(Debug)]
struct Fast {
    plain: Plain,
    trie: Trie,
    /// What threads have learnt of chunks that are not plain; one is taken for the length of a text.
    caches: Mutex<Vec<Cache>>,
}

type Cache = HashMap<Box<str>, Box<[u32]>>;

impl Tokenizer {
    /// Ids of a text, without [CLS] and [SEP] around them. A special token that stands in the text
    /// literally, such as `[MASK]`, gives its id, as in transformers.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let Some(fast) = &self.fast else {
            return self.encode_whole(text);
        };
        if text.len() > 2 * SEGMENT_BYTES {
            let parts: Result<Vec<_>> = plain::segments(text, SEGMENT_BYTES)
                .into_par_iter()
                .map(|part| self.encode_segment(fast, part))
                .collect();
            return Ok(parts?.concat());
        }
        self.encode_segment(fast, text)
    }

    /// [`Tokenizer::encode`] of each text, on rayon's threads.
    pub fn encode_batch(&self, texts: &[String]) -> Result<Vec<Vec<u32>>> {
        texts.par_iter().map(|text| self.encode(text)).collect()
    }

    fn encode_segment(&self, fast: &Fast, text: &str) -> Result<Vec<u32>> {
        // A poisoned lock only means that another thread panicked between two consistent states.
        let mut cache = fast.caches.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default();
        // About four bytes a token in English.
        let mut ids = Vec::with_capacity(text.len() / 4 + 8);
        let mut result = Ok(());
        fast.plain.chunks(text, |chunk| {
            match chunk {
                Chunk::Plain(bytes) => fast.plain.words(bytes, |word| fast.trie.encode(word, &mut ids)),
                Chunk::Other(chunk) => result = self.encode_other(chunk, &mut cache, &mut ids),
            }
            result.is_ok()
        });
        fast.caches.lock().unwrap_or_else(PoisonError::into_inner).push(cache);
        result.map(|()| ids)
    }

    fn encode_other(&self, chunk: &str, cache: &mut Cache, ids: &mut Vec<u32>) -> Result<()> {
        if let Some(known) = cache.get(chunk) {
            ids.extend_from_slice(known);
            return Ok(());
        }
        let fresh = self.encode_whole(chunk)?;
        ids.extend_from_slice(&fresh);
        if chunk.len() <= CACHE_BYTES {
            if cache.len() >= CACHE_ENTRIES {
                cache.clear();
            }
            cache.insert(chunk.into(), fresh.into());
        }
        Ok(())
    }

    /// The ids by definition.
    fn encode_whole(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self.inner.encode_fast(text, false);
        Ok(encoding.map_err(|e| Error::Invalid(format!("tokenizer: {e}")))?.get_ids().to_vec())
    }

    /// The token of an id, `None` where the vocabulary has none.
    pub fn token(&self, id: u32) -> Option<&str> {
        self.tokens.get(id as usize)?.as_deref()
    }

    /// The id of a token, `None` where the vocabulary does not hold it.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// Text of the ids, special tokens included; unknown ids are left out.
    pub fn decode(&self, ids: &[u32]) -> String {
        self.inner.decode(ids, false).unwrap_or_else(|_| {
            let tokens: Vec<&str> = ids.iter().filter_map(|&id| self.token(id)).collect();
            tokens.join(" ")
        })
    }

    /// V: one more than the largest id.
    pub fn vocab_size(&self) -> usize {
        self.tokens.len()
    }

    /// The tokens with a role of their own.
    pub fn special(&self) -> SpecialIds {
        self.special
    }

    /// Whether the id continues a word, as `##ing` does.
    pub fn is_continuation(&self, id: u32) -> bool {
        self.roles.get(id as usize) == Some(&Role::Continuation)
    }

    /// Whether the id is a special token, which is never masked.
    pub fn is_special(&self, id: u32) -> bool {
        self.roles.get(id as usize) == Some(&Role::Special)
    }

    /// A hash of everything that decides which ids a text gets.
    pub fn fingerprint(&self) -> String {
        self.fingerprint.clone()
    }
}

/// Hash of the vocabulary in the order of its ids, of the added tokens and of the pipeline's settings.
fn fingerprint(tokens: &[Option<Box<str>>], pipeline: &serde_json::Value) -> String {
    let mut hash = Xxh3::new();
    for (id, token) in tokens.iter().enumerate() {
        if let Some(token) = token {
            hash.update(&(id as u64).to_le_bytes());
            hash.update(&(token.len() as u64).to_le_bytes());
            hash.update(token.as_bytes());
        }
    }
    hash.update(pipeline.to_string().as_bytes());
    format!("xxh3:{:032x}", hash.digest128())
}
