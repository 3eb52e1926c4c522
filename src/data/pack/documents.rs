//! Filling batches with postings: oldest first, then what fits best.

use super::super::order::Order;
use super::super::{Error, Piece, Result, TokenSet};
use super::look_ahead::{LookAhead, framed};
use super::plan::{Long, PackPlan, Shuffle, Verdict};
use super::{Cursor, PackCounts};

/// Pieces looked ahead at. Among this many, a remaining space of a few hundred tokens nearly always finds a
/// single piece or a pair that fills it to the last token or two.
const WINDOW: usize = 1024;

/// Chooses the pieces of each batch, looking at lengths alone.
#[derive(Debug)]
pub(super) struct Documents<'a> {
    set: &'a TokenSet,
    plan: PackPlan,
    order: Order,
    epoch: u32,
    /// Index in the order of the next sample to be drawn.
    next: u64,
    ahead: LookAhead,
    pub counts: PackCounts,
}

impl<'a> Documents<'a> {
    pub fn new(set: &'a TokenSet, plan: &PackPlan, cursor: Cursor) -> Result<Self> {
        let order = order(plan.samples(set), plan, cursor.epoch);
        let mut ahead = LookAhead::new(plan.max_length);
        let foreign =
            |what: String| Error::Invalid(format!("{what}: the place to go on from belongs to other data or settings"));
        if cursor.next > order.len() {
            return Err(foreign(format!("sample {} of {}", cursor.next, order.len())));
        }
        for piece in cursor.pending {
            let end = u64::from(piece.start) + u64::from(piece.len);
            if framed(&piece) > plan.max_length || end > u64::from(set.sample_len(piece.sample)?) {
                return Err(foreign(format!("{} tokens of sample {}", piece.len, piece.sample)));
            }
            ahead.push(piece);
        }
        let (epoch, next) = (cursor.epoch, cursor.next);
        Ok(Documents { set, plan: plan.clone(), order, epoch, next, ahead, counts: PackCounts::default() })
    }

    pub fn cursor(&self) -> Cursor {
        Cursor { epoch: self.epoch, next: self.next, pending: self.ahead.waiting().copied().collect() }
    }

    pub fn epoch_len(&self) -> u64 {
        self.order.len()
    }

    pub fn next_epoch(&mut self) {
        self.epoch += 1;
        self.next = 0;
        self.order = order(self.order.len(), &self.plan, self.epoch);
    }

    /// Chooses the pieces of the next batch, in the order in which they are to stand; none at the epoch's end.
    pub fn select(&mut self, out: &mut Vec<Piece>) -> Result<()> {
        out.clear();
        let mut room = self.plan.batch_tokens;
        // 1  Oldest first, so that no piece waits for ever, while any other choice is still open afterwards.
        loop {
            self.top_up()?;
            let Some(length) = self.ahead.oldest() else { return Ok(()) };
            let reserve = if out.is_empty() { 0 } else { self.plan.max_length };
            if out.len() == self.plan.max_sequences || length + reserve > room {
                break;
            }
            out.extend(self.ahead.take(length));
            room -= length;
        }
        // 2  The best fit for what is left.
        while out.len() < self.plan.max_sequences {
            let Some(single) = self.ahead.best(room) else { break };
            let pair = if single < room && out.len() + 2 <= self.plan.max_sequences {
                self.ahead.best_pair(room)
            } else {
                None
            };
            let chosen = pair.filter(|(a, b)| a + b > single).map_or([single, 0], |(a, b)| [a, b]);
            for length in chosen.into_iter().filter(|&length| length > 0) {
                out.extend(self.ahead.take(length));
                room -= length;
            }
            self.top_up()?;
        }
        Ok(())
    }

    /// Draws samples until enough pieces wait, or the epoch's samples are drawn.
    fn top_up(&mut self) -> Result<()> {
        while self.ahead.len() < WINDOW && self.next < self.order.len() {
            let sample = self.order.at(self.next);
            self.next += 1;
            match self.plan.verdict(self.set, sample)? {
                Verdict::OtherSubset => {}
                Verdict::Unlabelled => self.counts.unlabelled += 1,
                Verdict::Empty => self.counts.empty += 1,
                Verdict::Taken(len) => self.draw(sample, len),
            }
        }
        Ok(())
    }

    fn draw(&mut self, sample: u64, len: u32) {
        let (ahead, counts) = (&mut self.ahead, &mut self.counts);
        counts.samples += 1;
        let body = self.plan.body() as u64;
        if u64::from(len) > body {
            match self.plan.long {
                Long::Split | Long::Windows { .. } => counts.cut += 1,
                Long::Truncate | Long::HeadTail => {
                    counts.truncated += 1;
                    counts.tokens_left_out += u64::from(len) - body;
                }
            }
        }
        self.plan.cut(sample, len, |piece| ahead.push(piece));
    }
}

/// The order of `len` things in an epoch.
pub(super) fn order(len: u64, plan: &PackPlan, epoch: u32) -> Order {
    match plan.shuffle {
        Shuffle::Shuffled { seed } => Order::shuffled(len, seed, epoch),
        Shuffle::Sequential => Order::sequential(len),
    }
}
