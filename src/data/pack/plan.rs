//! What is packed, and how.

use super::super::split::{Split, Subset};
use super::super::{Error, Piece, Result, TokenSet};
use super::look_ahead::FRAME;

/// How the tokens of a corpus become sequences.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Packing {
    /// A sequence shows one posting or a piece of one.
    Documents,
    /// All postings, framed, are laid end to end in the order of the set and cut every `length` tokens.
    Chunks {
        /// Tokens of a sequence, [CLS] and [SEP] of the postings counted.
        length: usize,
    },
}

/// What happens to a posting of more than max_length - 2 tokens, the most that fit between [CLS] and [SEP].
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Long {
    /// Consecutive pieces, none lost.
    Split,
    /// Its first tokens.
    Truncate,
    /// Its first [`Long::head`] tokens and as many of its last as fit: one piece that starts at 0 and is shorter than
    /// its sample.
    HeadTail,
    /// Pieces that begin `stride` tokens apart; the last one is moved back to be full.
    Windows {
        /// Tokens from the beginning of one piece to that of the next.
        stride: usize,
    },
}

impl Long {
    /// Tokens of the beginning that [`Long::HeadTail`] keeps of the `body` tokens that fit into a sequence: 128, or
    /// half of them where that is less.
    pub fn head(body: usize) -> usize {
        128.min(body / 2)
    }

    /// Calls `f` with start and length of each piece of a text of `len` tokens, in order; at most `body` tokens,
    /// which is not 0, fit into a sequence. Training, evaluation and prediction all cut here, so that a model is
    /// asked about what it was trained on.
    pub fn cut(self, len: usize, body: usize, mut f: impl FnMut(usize, usize)) {
        if len <= body {
            return f(0, len);
        }
        match self {
            Long::Truncate | Long::HeadTail => f(0, body),
            Long::Split => {
                let mut start = 0;
                while start < len {
                    let piece = body.min(len - start);
                    f(start, piece);
                    start += piece;
                }
            }
            Long::Windows { stride } => {
                let last = len - body;
                let mut start = 0;
                while start < last {
                    f(start, body);
                    start = start.saturating_add(stride);
                }
                f(last, body);
            }
        }
    }
}

/// Which samples are of use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LabelNeed {
    /// All.
    Any,
    /// Those with a label; others are passed over and counted.
    Labelled,
}

/// What happens to samples without a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Empty {
    /// They become the sequence [CLS] [SEP]: for a classifier, which must answer for them.
    Keep,
    /// They are passed over and counted: there is nothing to mask.
    PassOver,
}

/// Order of the samples, or of the chunks, within an epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Shuffle {
    /// Another one each epoch, a function of the seed and the epoch.
    Shuffled {
        /// The run's seed.
        seed: u64,
    },
    /// That of the set.
    Sequential,
}

/// What is packed into batches, and how.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct PackPlan {
    /// How tokens become sequences.
    pub packing: Packing,
    /// What happens to long samples, in [`Packing::Documents`].
    pub long: Long,
    /// Which samples are of use.
    pub need: LabelNeed,
    /// What happens to empty samples.
    pub empty: Empty,
    /// Which side of the split is packed.
    pub subset: Subset,
    /// The split.
    pub split: Split,
    /// Order within an epoch.
    pub shuffle: Shuffle,
    /// N: the most tokens in a batch, special tokens counted.
    pub batch_tokens: usize,
    /// B: the most sequences in a batch.
    pub max_sequences: usize,
    /// L: the most tokens in a sequence, special tokens counted.
    pub max_length: usize,
    /// Only the first `limit` samples of the set are looked at.
    pub limit: Option<u64>,
}

/// What a sample is to a plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It has this many tokens.
    Taken(u32),
    OtherSubset,
    Unlabelled,
    Empty,
}

impl PackPlan {
    /// # Errors
    /// Numbers that contradict each other.
    pub(super) fn check(&self) -> Result<()> {
        let invalid = |why: String| Err(Error::Invalid(why));
        let (flag, longest) = match self.packing {
            Packing::Documents => ("--max-length", self.max_length),
            Packing::Chunks { length } => ("--chunk-length", length),
        };
        if longest < FRAME + 1 {
            return invalid(format!(
                "{flag} is {longest}; a sequence has at least 3 tokens: [CLS], one of the text, [SEP]"
            ));
        }
        if u32::try_from(self.batch_tokens).is_err() {
            return invalid(format!("--batch-tokens is {}; the most is {}", self.batch_tokens, u32::MAX));
        }
        if self.batch_tokens < longest {
            let tokens = self.batch_tokens;
            return invalid(format!(
                "--batch-tokens is {tokens}, less than {flag} {longest}: a whole sequence must fit into a batch; \
                 raise --batch-tokens or lower {flag}"
            ));
        }
        if self.max_sequences == 0 {
            return invalid("a batch of no sequences".to_owned());
        }
        if let Long::Windows { stride } = self.long
            && !(1..=self.body()).contains(&stride)
        {
            let body = self.body();
            return invalid(format!(
                "windows of {body} tokens cannot begin {stride} apart; give a stride of 1 to {body}"
            ));
        }
        Ok(())
    }

    /// The most tokens of a sample that fit into a sequence.
    pub(super) fn body(&self) -> usize {
        self.max_length.saturating_sub(FRAME)
    }

    /// Samples looked at.
    pub(super) fn samples(&self, set: &TokenSet) -> u64 {
        self.limit.map_or(set.len(), |limit| limit.min(set.len()))
    }

    pub(super) fn verdict(&self, set: &TokenSet, sample: u64) -> Result<Verdict> {
        if self.subset != Subset::All && !self.split.contains(self.subset, set.group(sample)) {
            return Ok(Verdict::OtherSubset);
        }
        if self.need == LabelNeed::Labelled && set.label(sample) < 0 {
            return Ok(Verdict::Unlabelled);
        }
        let len = set.sample_len(sample)?;
        Ok(if len == 0 && self.empty == Empty::PassOver { Verdict::Empty } else { Verdict::Taken(len) })
    }

    /// Calls `f` with each piece of a sample of `len` tokens, in order.
    pub(super) fn cut(&self, sample: u64, len: u32, mut f: impl FnMut(Piece)) {
        // What is cut off a sample is no longer than it.
        self.long
            .cut(len as usize, self.body(), |start, len| f(Piece { sample, start: start as u32, len: len as u32 }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(long: Long) -> PackPlan {
        PackPlan {
            packing: Packing::Documents,
            long,
            need: LabelNeed::Any,
            empty: Empty::Keep,
            subset: Subset::All,
            split: Split { held_fraction: 0.0 },
            shuffle: Shuffle::Sequential,
            batch_tokens: 64,
            max_sequences: 8,
            max_length: 12,
            limit: None,
        }
    }

    fn cut(long: Long, len: u32) -> Vec<(u32, u32)> {
        let mut pieces = Vec::new();
        plan(long).cut(9, len, |piece| pieces.push((piece.start, piece.len)));
        pieces
    }

    #[test]
    fn long_samples_are_cut_as_asked() {
        assert_eq!(cut(Long::Split, 0), [(0, 0)]);
        assert_eq!(cut(Long::Split, 10), [(0, 10)]);
        assert_eq!(cut(Long::Split, 11), [(0, 10), (10, 1)]);
        assert_eq!(cut(Long::Split, 30), [(0, 10), (10, 10), (20, 10)]);
        assert_eq!(cut(Long::Truncate, 30), [(0, 10)]);
        assert_eq!(cut(Long::HeadTail, 30), [(0, 10)]);
        let windows = Long::Windows { stride: 4 };
        assert_eq!(cut(windows, 10), [(0, 10)]);
        assert_eq!(cut(windows, 11), [(0, 10), (1, 10)]);
        assert_eq!(cut(windows, 18), [(0, 10), (4, 10), (8, 10)]);
        assert_eq!(cut(windows, 19), [(0, 10), (4, 10), (8, 10), (9, 10)]);
        assert_eq!(cut(Long::Windows { stride: 10 }, 20), [(0, 10), (10, 10)]);
    }

    #[test]
    fn contradictions_are_errors_that_name_the_flag() {
        let wrong = |change: fn(&mut PackPlan)| {
            let mut plan = plan(Long::Split);
            change(&mut plan);
            plan.check().unwrap_err().to_string()
        };
        plan(Long::Split).check().unwrap();
        let small = wrong(|p| p.batch_tokens = 11);
        assert!(small.contains("--batch-tokens is 11, less than --max-length 12"), "{small}");
        assert!(wrong(|p| p.packing = Packing::Chunks { length: 65 }).contains("less than --chunk-length 65"));
        assert!(wrong(|p| p.max_length = 2).contains("--max-length is 2"));
        assert!(wrong(|p| p.max_sequences = 0).contains("no sequences"));
        assert!(wrong(|p| p.long = Long::Windows { stride: 0 }).contains("1 to 10"));
        assert!(wrong(|p| p.long = Long::Windows { stride: 11 }).contains("1 to 10"));
    }
}
