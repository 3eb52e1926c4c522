//! All postings of a subset laid end to end, cut every so many tokens.

use super::super::order::Order;
use super::super::tokenizer::SpecialIds;
use super::super::{Error, PackedBatch, Piece, Result, TokenSet};
use super::documents::order;
use super::look_ahead::FRAME;
use super::plan::{PackPlan, Verdict};
use super::{Cursor, PackCounts};

/// Samples from one mark to the next.
const MARK_EVERY: u64 = 64;

/// Where the samples of a subset begin in the row of all their tokens. Built in one pass over the offsets and
/// groups; takes 16 bytes for every 64 samples of the subset.
#[derive(Debug)]
pub(super) struct ChunkIndex {
    marks: Vec<Mark>,
    /// Tokens of the subset, [CLS] and [SEP] of every sample counted.
    total: u64,
    length: u64,
    pub counts: PackCounts,
}

#[derive(Debug, Clone, Copy)]
struct Mark {
    sample: u64,
    /// Tokens before its [CLS].
    start: u64,
}

impl ChunkIndex {
    pub fn new(set: &TokenSet, plan: &PackPlan, length: usize) -> Result<Self> {
        let mut index =
            ChunkIndex { marks: Vec::new(), total: 0, length: length as u64, counts: PackCounts::default() };
        for sample in 0..plan.samples(set) {
            match plan.verdict(set, sample)? {
                Verdict::OtherSubset => {}
                Verdict::Unlabelled => index.counts.unlabelled += 1,
                Verdict::Empty => index.counts.empty += 1,
                Verdict::Taken(len) => {
                    if index.counts.samples.is_multiple_of(MARK_EVERY) {
                        index.marks.push(Mark { sample, start: index.total });
                    }
                    index.counts.samples += 1;
                    index.total += u64::from(len) + FRAME as u64;
                }
            }
        }
        index.counts.tail_tokens = index.total % index.length;
        Ok(index)
    }

    /// Number of chunks, a shorter one at the end counted.
    pub fn chunks(&self) -> u64 {
        self.total.div_ceil(self.length)
    }

    /// Tokens of a chunk.
    pub fn len(&self, chunk: u64) -> usize {
        (self.total - chunk * self.length).min(self.length) as usize
    }
}

/// Chooses and reads the chunks of each batch.
#[derive(Debug)]
pub(super) struct Chunks<'a> {
    set: &'a TokenSet,
    plan: PackPlan,
    index: ChunkIndex,
    order: Order,
    epoch: u32,
    next: u64,
    pub counts: PackCounts,
}

impl<'a> Chunks<'a> {
    pub fn new(set: &'a TokenSet, plan: &PackPlan, length: usize, cursor: &Cursor) -> Result<Self> {
        let index = ChunkIndex::new(set, plan, length)?;
        let order = order(index.chunks(), plan, cursor.epoch);
        if cursor.next > order.len() || !cursor.pending.is_empty() {
            let (next, all) = (cursor.next, order.len());
            return Err(Error::Invalid(format!(
                "chunk {next} of {all}: the place to go on from belongs to other data or settings"
            )));
        }
        let counts = index.counts;
        Ok(Chunks { set, plan: plan.clone(), index, order, epoch: cursor.epoch, next: cursor.next, counts })
    }

    pub fn cursor(&self) -> Cursor {
        Cursor { epoch: self.epoch, next: self.next, pending: Vec::new() }
    }

    pub fn epoch_len(&self) -> u64 {
        self.order.len()
    }

    pub fn next_epoch(&mut self) {
        self.epoch += 1;
        self.next = 0;
        self.order = order(self.order.len(), &self.plan, self.epoch);
    }

    /// Chooses the chunks of the next batch; none at the epoch's end.
    pub fn select(&mut self, out: &mut Vec<u64>) {
        out.clear();
        let mut room = self.plan.batch_tokens;
        while self.next < self.order.len() && out.len() < self.plan.max_sequences {
            let chunk = self.order.at(self.next);
            let length = self.index.len(chunk);
            if length > room {
                break;
            }
            room -= length;
            out.push(chunk);
            self.next += 1;
        }
    }

    /// Appends the tokens of a chunk to the batch and says which piece its first token belongs to.
    pub fn append(&self, chunk: u64, special: SpecialIds, batch: &mut PackedBatch) -> Result<Piece> {
        let mut left = self.index.len(chunk) as u64;
        let start = chunk * self.index.length;
        let mark = self.index.marks.partition_point(|mark| mark.start <= start).saturating_sub(1);
        let Some(&Mark { mut sample, start: mut begin }) = self.index.marks.get(mark) else {
            return Err(Error::Invalid(format!("chunk {chunk} of {}", self.index.chunks())));
        };
        let mut first = None;
        while left > 0 {
            if let Verdict::Taken(len) = self.plan.verdict(self.set, sample)? {
                let end = begin + u64::from(len) + FRAME as u64;
                let from = start.max(begin) - begin;
                if end > start {
                    let to = (end - begin).min(from + left);
                    let piece = self.append_framed(sample, len, (from, to), special, batch)?;
                    first.get_or_insert(piece);
                    left -= to - from;
                }
                begin = end;
            }
            sample += 1;
        }
        first.ok_or_else(|| Error::Invalid(format!("chunk {chunk} is empty")))
    }

    /// Appends tokens `from..to` of [CLS] sample [SEP].
    fn append_framed(
        &self, sample: u64, len: u32, (from, to): (u64, u64), special: SpecialIds, batch: &mut PackedBatch,
    ) -> Result<Piece> {
        if from == 0 {
            batch.ids.push(special.cls);
        }
        // The frame's token comes first: token t of the sample is at t + 1.
        let body = |at: u64| at.saturating_sub(1).min(u64::from(len)) as u32;
        let piece = Piece { sample, start: body(from), len: body(to) - body(from) };
        self.set.append_tokens(sample, piece.start, piece.len, &mut batch.ids)?;
        if to == u64::from(len) + FRAME as u64 {
            batch.ids.push(special.sep);
        }
        Ok(piece)
    }
}
