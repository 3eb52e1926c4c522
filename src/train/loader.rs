//! Packs and masks ahead of the step, on a thread of its own, through a bounded channel.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::Scope;

use crate::data::pack::{Cursor, Filled, PackCounts, PackPlan, Packer};
use crate::data::token_set::TokenSet;
use crate::data::tokenizer::SpecialIds;

use super::plan::Feed;
use super::task::{MicroBatch, Objective};
use super::{Error, Result};

/// Groups prepared ahead: enough to hide the packer's hiccups, few enough to stay small.
const AHEAD: usize = 4;

/// The batches of one step.
#[derive(Debug, Clone, PartialEq)]
pub struct Group {
    /// At least one, at most as many as are accumulated; fewer at the end of an epoch.
    pub micro: Vec<MicroBatch>,
    /// Targets, or total label weight, of all of them.
    pub weight: f64,
    /// Tokens of all of them.
    pub tokens: u64,
    /// Where the packer goes on after it.
    pub cursor: Cursor,
    /// Epochs gone through with it, fraction included; whole exactly at an epoch's end.
    pub epoch: f64,
    /// Whether another group of its epoch follows.
    pub last_of_epoch: LastOfEpoch,
    /// What was packed, cut and passed over since the loader was made.
    pub counts: PackCounts,
}

/// Whether a group is the last of its epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LastOfEpoch {
    /// Others follow.
    No,
    /// It is.
    Yes,
}

/// Groups without end, epoch after epoch.
pub struct Loader<'a> {
    packer: Packer<'a>,
    objective: Objective,
    accumulation: usize,
    /// Share of the drawn samples that are on the training side, and so wait before they are packed.
    kept: f64,
    /// The first batch of the next group, packed to see whether its epoch goes on.
    ahead: Option<MicroBatch>,
    feed: Feed,
}

impl<'a> Loader<'a> {
    /// Starts at `cursor`.
    pub fn new(
        set: &'a TokenSet, plan: &PackPlan, special: SpecialIds, cursor: Cursor, objective: Objective,
        accumulation: usize,
    ) -> Result<Self> {
        let packer = Packer::new(set, plan, special, cursor)?;
        let kept = 1.0 - plan.split.held_fraction;
        Ok(Loader { packer, objective, accumulation: accumulation.max(1), kept, ahead: None, feed: Feed::AllBatches })
    }

    /// Gives these groups.
    pub fn feeding(self, feed: Feed) -> Self {
        Loader { feed, ..self }
    }

    /// The next group. An epoch without a single batch is an error: there would be no end to waiting for one.
    pub fn next_group(&mut self) -> Result<Group> {
        // Not of that capacity: a number larger than any epoch means one step an epoch.
        let mut micro = Vec::new();
        // The epoch of this group: batches never mix epochs, and neither do groups.
        let epoch = self.packer.cursor().epoch;
        micro.extend(self.ahead.take());
        while micro.len() < self.accumulation {
            match self.pack()? {
                Some(batch) => micro.push(batch),
                None => return self.group(micro, epoch, LastOfEpoch::Yes),
            }
        }
        let cursor = self.packer.cursor();
        self.ahead = self.pack()?;
        match self.ahead {
            None => self.group(micro, epoch, LastOfEpoch::Yes),
            // Going on from `cursor` packs the batch ahead again.
            Some(_) => Ok(Group { cursor, ..self.group(micro, epoch, LastOfEpoch::No)? }),
        }
    }

    fn pack(&mut self) -> Result<Option<MicroBatch>> {
        let mut micro = MicroBatch::default();
        match self.packer.next(&mut micro.batch.packed)? {
            Filled::Batch => Ok(Some(micro)),
            Filled::EpochEnd => Ok(None),
        }
    }

    fn group(&self, mut micro: Vec<MicroBatch>, epoch: u32, last_of_epoch: LastOfEpoch) -> Result<Group> {
        if micro.is_empty() {
            return Err(Error::Plan(
                "no posting is left to train on; check --limit, --validation-split-percentage and the labels".into(),
            ));
        }
        let weight = micro.iter_mut().map(|batch| self.objective.prepare(epoch, batch)).sum();
        let tokens = micro.iter().map(|batch| batch.batch.packed.tokens() as u64).sum();
        let (cursor, counts) = (self.packer.cursor(), self.packer.counts());
        let done = match last_of_epoch {
            LastOfEpoch::Yes => 1.0,
            // What waits in the look-ahead buffer is drawn but not trained on yet, and about as large a share of the
            // samples drawn between those that wait was held out as of all samples.
            LastOfEpoch::No => {
                let waiting = cursor.pending.chunk_by(|a, b| a.sample == b.sample).count() as f64;
                let packed = cursor.next as f64 - waiting / self.kept;
                (packed / self.packer.epoch_len().max(1) as f64).clamp(0.0, 1.0 - f64::EPSILON)
            }
        };
        Ok(Group { micro, weight, tokens, cursor, epoch: f64::from(epoch) + done, last_of_epoch, counts })
    }

    /// Moves to a thread that fills the channel until its other end is dropped or something fails.
    pub fn run_ahead<'scope>(mut self, scope: &'scope Scope<'scope, '_>) -> Receiver<Result<Group>>
    where
        'a: 'scope,
    {
        let (sender, receiver) = sync_channel(AHEAD);
        scope.spawn(move || self.fill(&sender));
        receiver
    }

    fn fill(&mut self, sender: &SyncSender<Result<Group>>) {
        let here = self.packer.cursor();
        loop {
            let group = self.next_group();
            let failed = group.is_err();
            if let (Feed::FirstStep, Ok(group)) = (self.feed, &group) {
                // Whoever goes on after it begins with it.
                let again = Group { cursor: here, last_of_epoch: LastOfEpoch::No, ..group.clone() };
                while sender.send(Ok(again.clone())).is_ok() {}
                return;
            }
            if sender.send(group).is_err() || failed {
                return;
            }
        }
    }
}
