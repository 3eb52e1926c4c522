//! The second stage: texts to framed sequences, on all cores.

use std::sync::mpsc::{Receiver, SyncSender};

use super::input::Block;
use super::queue::Tokenized;
use super::{Error, Result};
use crate::data::pack::Long;
use crate::data::tokenizer::{SpecialIds, Tokenizer};

/// What becomes of texts that are longer than the model can take.
#[derive(Debug, Clone, Copy)]
pub struct Cutter {
    long: Long,
    /// Tokens of text in the longest sequence: the two special tokens not counted.
    room: usize,
    special: SpecialIds,
}

/// What was tokenized.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TokenCounts {
    /// Rows without a token of text; they are labelled all the same.
    pub empty: u64,
    /// Rows of which a part was left out.
    pub truncated: u64,
    /// Rows that were cut into windows.
    pub windowed: u64,
    /// Windows they were cut into.
    pub windows: u64,
}

impl Cutter {
    /// For sequences of at most `max_length` tokens, special ones included.
    ///
    /// # Errors
    /// `max_length` leaves no room for text, or the windows would not get ahead.
    pub fn new(long: Long, max_length: usize, special: SpecialIds) -> Result<Self> {
        let room = max_length.saturating_sub(2);
        if room == 0 {
            return Err(Error::Invalid(format!("--max-length {max_length} leaves no room for text; use at least 3")));
        }
        if let Long::Windows { stride } = long
            && (stride == 0 || stride > room)
        {
            return Err(Error::Invalid(format!(
                "--window-stride {stride}: windows of {room} tokens of text need a stride of 1 to {room}"
            )));
        }
        Ok(Cutter { long, room, special })
    }

    /// The sequences of one text, framed, and what happened to it. There is always one at least.
    pub fn cut(&self, ids: &[u32], counts: &mut TokenCounts) -> Vec<Vec<u32>> {
        counts.empty += u64::from(ids.is_empty());
        if ids.len() <= self.room {
            return vec![self.framed(&[ids])];
        }
        let mut sequences = Vec::new();
        self.long.cut(ids.len(), self.room, |start, len| {
            sequences.push(match self.long {
                Long::HeadTail => {
                    let head = Long::head(self.room);
                    self.framed(&[&ids[..head], &ids[ids.len() - (len - head)..]])
                }
                Long::Truncate | Long::Split | Long::Windows { .. } => self.framed(&[&ids[start..start + len]]),
            });
        });
        match self.long {
            Long::Truncate | Long::HeadTail => counts.truncated += 1,
            Long::Split | Long::Windows { .. } => {
                counts.windowed += 1;
                counts.windows += sequences.len() as u64;
            }
        }
        sequences
    }

    fn framed(&self, parts: &[&[u32]]) -> Vec<u32> {
        let mut sequence = Vec::with_capacity(2 + parts.iter().map(|p| p.len()).sum::<usize>());
        sequence.push(self.special.cls);
        parts.iter().for_each(|part| sequence.extend_from_slice(part));
        sequence.push(self.special.sep);
        sequence
    }
}

/// Tokenizes until no more comes in, or nobody listens.
///
/// # Errors
/// The tokenizer failed.
pub(super) fn tokenize(
    tokenizer: &Tokenizer, cutter: &Cutter, blocks: Receiver<Block>, out: SyncSender<Vec<Tokenized>>,
) -> Result<TokenCounts> {
    let mut counts = TokenCounts::default();
    for block in blocks {
        let ids = tokenizer.encode_batch(&block.texts)?;
        let rows = block.rows.into_iter().zip(ids);
        let tokenized = rows.map(|(row, ids)| Tokenized { row, sequences: cutter.cut(&ids, &mut counts) }).collect();
        if out.send(tokenized).is_err() {
            break;
        }
    }
    Ok(counts)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPECIAL: SpecialIds = SpecialIds { pad: 0, unk: 1, cls: 2, sep: 3, mask: 4 };

    fn cut(long: Long, max_length: usize, tokens: u32) -> (Vec<Vec<u32>>, TokenCounts) {
        let mut counts = TokenCounts::default();
        let ids: Vec<u32> = (10..10 + tokens).collect();
        let sequences = Cutter::new(long, max_length, SPECIAL).unwrap().cut(&ids, &mut counts);
        (sequences, counts)
    }

    #[test]
    fn short_and_empty_texts_are_framed() {
        assert_eq!(cut(Long::Truncate, 6, 4), (vec![vec![2, 10, 11, 12, 13, 3]], TokenCounts::default()));
        let (sequences, counts) = cut(Long::Windows { stride: 2 }, 6, 0);
        assert_eq!((sequences, counts.empty, counts.windowed), (vec![vec![2, 3]], 1, 0));
    }

    #[test]
    fn long_texts_are_cut_as_asked() {
        let (sequences, counts) = cut(Long::Truncate, 6, 5);
        assert_eq!((sequences, counts.truncated), (vec![vec![2, 10, 11, 12, 13, 3]], 1));
        let (sequences, counts) = cut(Long::HeadTail, 302, 400);
        assert_eq!((sequences[0].len(), counts.truncated), (302, 1));
        assert_eq!((&sequences[0][127..131], &sequences[0][300..]), (&[136, 137, 238, 239][..], &[409, 3][..]));
        // Less room than twice the head: half of it for the beginning, half for the end.
        assert_eq!(cut(Long::HeadTail, 6, 9).0, vec![vec![2, 10, 11, 17, 18, 3]]);
    }

    #[test]
    fn windows_cover_every_token_and_the_last_is_full_and_ends_with_the_text() {
        for tokens in 5..60 {
            for stride in 1..=4 {
                let (windows, counts) = cut(Long::Windows { stride }, 6, tokens);
                assert_eq!(counts.windows, windows.len() as u64);
                for (i, window) in windows.iter().enumerate() {
                    assert_eq!(window[1], 10 + (i as u32 * stride as u32).min(tokens - 4));
                    assert_eq!((window[0], window[window.len() - 1]), (2, 3));
                    assert_eq!(window.len(), 6);
                }
                let last = &windows[windows.len() - 1];
                assert_eq!(last[last.len() - 2], 10 + tokens - 1);
                let all: std::collections::BTreeSet<_> = windows.iter().flatten().filter(|&&t| t >= 10).collect();
                assert_eq!(all.len(), tokens as usize);
            }
        }
    }

    #[test]
    fn windows_that_would_not_get_ahead_are_refused() {
        for stride in [0, 5] {
            assert!(Cutter::new(Long::Windows { stride }, 6, SPECIAL).is_err());
        }
        assert!(Cutter::new(Long::Truncate, 2, SPECIAL).is_err());
    }
}
