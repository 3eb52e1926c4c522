//! Packs the sequences of many rows into full batches and gives the rows back in their order.

use std::collections::VecDeque;

use crate::data::{PackedBatch, Piece, Row};

/// A batch is filled from about this many batches' worth of waiting sequences: enough to find one that
/// fits into what is left, few enough that rows come out soon after they went in.
const LOOK_AHEAD: usize = 3;
/// Rows that take more memory than this wait no longer for a fuller batch: their texts may be small beside the rest.
const MOST_BYTES: usize = 256 << 20;
/// [CLS] and [SEP].
const SHORTEST: usize = 2;

/// A row whose text is tokenized: one sequence, or one for each window of a long text.
#[derive(Debug)]
pub struct Tokenized {
    /// The row as it was read.
    pub row: Row,
    /// Token ids, framed. At least one sequence.
    pub sequences: Vec<Vec<u32>>,
}

/// A row and the probability of each class. [K]
#[derive(Debug)]
pub struct Scored {
    /// The row as it was read.
    pub row: Row,
    /// Mean over its windows. [K]
    pub probabilities: Vec<f32>,
}

#[derive(Debug)]
struct Pending {
    row: Row,
    /// [`Row::bytes`]
    bytes: usize,
    /// Probabilities of each window, in order of the windows. [W, K]
    scores: Vec<f32>,
    missing: usize,
}

#[derive(Debug)]
struct Waiting {
    /// Number of its row since the beginning, and of the window within the row.
    row: u64,
    window: usize,
    ids: Vec<u32>,
}

/// Rows on their way through the model.
#[derive(Debug)]
pub struct Queue {
    batch_tokens: usize,
    batch_sequences: usize,
    classes: usize,
    /// In input order; the first one has number `first`.
    rows: VecDeque<Pending>,
    first: u64,
    /// Of all of them.
    bytes: usize,
    /// In input order.
    waiting: VecDeque<Waiting>,
    waiting_tokens: usize,
    /// (row, window) of each sequence of the batch at hand.
    batch: Vec<(u64, usize)>,
}

impl Queue {
    /// For batches of at most this many tokens and sequences, and K classes. No sequence may be
    /// longer than `batch_tokens`.
    pub fn new(batch_tokens: usize, batch_sequences: usize, classes: usize) -> Self {
        Queue {
            batch_tokens,
            batch_sequences,
            classes,
            rows: VecDeque::new(),
            first: 0,
            bytes: 0,
            waiting: VecDeque::new(),
            waiting_tokens: 0,
            batch: Vec::new(),
        }
    }

    /// Whether another row would help to fill the next batch.
    pub fn wants_more(&self) -> bool {
        self.waiting_tokens < LOOK_AHEAD * self.batch_tokens
            && self.waiting.len() < LOOK_AHEAD * self.batch_sequences
            && self.bytes < MOST_BYTES
    }

    /// Adds a row at the end.
    pub fn push(&mut self, tokenized: Tokenized) {
        let Tokenized { row, sequences } = tokenized;
        let number = self.first + self.rows.len() as u64;
        let windows = sequences.len();
        let bytes = row.bytes();
        self.bytes += bytes;
        self.rows.push_back(Pending { row, bytes, scores: vec![0.0; windows * self.classes], missing: windows });
        for (window, ids) in sequences.into_iter().enumerate() {
            debug_assert!(ids.len() <= self.batch_tokens);
            self.waiting_tokens += ids.len();
            self.waiting.push_back(Waiting { row: number, window, ids });
        }
    }

    /// Fills the next batch; false where nothing waits. The longest-waiting sequence is always in it.
    pub fn fill(&mut self, batch: &mut PackedBatch) -> bool {
        batch.clear();
        self.batch.clear();
        let mut passed_over = Vec::new();
        for _ in 0..LOOK_AHEAD * self.batch_sequences {
            if batch.sequences() == self.batch_sequences || batch.tokens() + SHORTEST > self.batch_tokens {
                break;
            }
            let Some(next) = self.waiting.pop_front() else { break };
            if batch.tokens() + next.ids.len() <= self.batch_tokens {
                self.waiting_tokens -= next.ids.len();
                append(batch, &next);
                self.batch.push((next.row, next.window));
            } else {
                passed_over.push(next);
            }
        }
        for waiting in passed_over.into_iter().rev() {
            self.waiting.push_front(waiting);
        }
        !self.batch.is_empty()
    }

    /// Takes the probabilities [B, K] of the batch last filled, and hands out the rows at the front
    /// that are complete.
    pub fn give(&mut self, probabilities: &[f32]) -> Vec<Scored> {
        for (&(row, window), scores) in self.batch.iter().zip(probabilities.chunks(self.classes)) {
            if let Some(pending) = self.rows.get_mut((row - self.first) as usize) {
                pending.scores[window * self.classes..][..self.classes].copy_from_slice(scores);
                pending.missing -= 1;
            }
        }
        self.batch.clear();
        let mut done = Vec::new();
        while self.rows.front().is_some_and(|row| row.missing == 0) {
            let Some(Pending { row, bytes, scores, .. }) = self.rows.pop_front() else { break };
            self.first += 1;
            self.bytes -= bytes;
            done.push(Scored { row, probabilities: mean(&scores, self.classes) });
        }
        done
    }
}

/// Frames are in the ids already; positions count from 0 in each sequence.
fn append(batch: &mut PackedBatch, sequence: &Waiting) {
    let len = sequence.ids.len() as u32;
    batch.ids.extend_from_slice(&sequence.ids);
    batch.position_ids.extend(0..len);
    batch.cu_seqlens.push(batch.ids.len() as u32);
    batch.pieces.push(Piece { sample: sequence.row, start: 0, len: len.saturating_sub(2) });
    batch.labels.push(-1);
}

/// Mean of the windows, summed in their order, so that it does not depend on which batch each was in.
fn mean(scores: &[f32], classes: usize) -> Vec<f32> {
    let windows = scores.len() / classes;
    let sum = |class: usize| scores.iter().skip(class).step_by(classes).map(|&p| f64::from(p)).sum::<f64>();
    (0..classes).map(|class| (sum(class) / windows as f64) as f32).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::data::Location;

    fn tokenized(line: u64, lengths: &[usize]) -> Tokenized {
        let at = Location { file: "p.txt".into(), line };
        let sequences = lengths.iter().enumerate().map(|(w, &n)| vec![(line * 10) as u32 + w as u32; n]).collect();
        Tokenized { row: Row { fields: serde_json::Map::new(), at }, sequences }
    }

    /// A score that says which sequence it is of: the first id.
    fn first_ids(batch: &PackedBatch) -> Vec<f32> {
        let starts = batch.cu_seqlens.iter().take(batch.sequences());
        starts.flat_map(|&s| [batch.ids[s as usize] as f32, 1.0]).collect()
    }

    #[test]
    fn windows_are_averaged_in_order() {
        let mut queue = Queue::new(10, 4, 2);
        queue.push(tokenized(1, &[8, 6]));
        queue.push(tokenized(2, &[2]));
        let mut batch = PackedBatch::default();
        assert!(queue.fill(&mut batch));
        assert_eq!(batch.cu_seqlens, [0, 8, 10]);
        assert!(queue.give(&first_ids(&batch)).is_empty(), "row 2 is done, but row 1 comes first");
        assert!(queue.fill(&mut batch));
        let done = queue.give(&first_ids(&batch));
        assert_eq!(done.len(), 2);
        assert_eq!(done[0].probabilities, [10.5, 1.0]);
        assert_eq!(done[1].probabilities, [20.0, 1.0]);
        assert!(!queue.fill(&mut batch));
    }

    #[test]
    fn large_rows_do_not_pile_up() {
        let mut queue = Queue::new(65_536, 8192, 2);
        let html = serde_json::Value::String("x".repeat(MOST_BYTES / 4));
        let mut rows = 0;
        while queue.wants_more() {
            let mut row = tokenized(rows, &[8]);
            row.row.fields.insert("html".to_owned(), html.clone());
            queue.push(row);
            rows += 1;
        }
        assert_eq!(rows, 4);
        let mut batch = PackedBatch::default();
        assert!(queue.fill(&mut batch));
        assert_eq!(queue.give(&first_ids(&batch)).len(), 4);
        assert!(queue.wants_more());
    }

    proptest! {
        #[test]
        fn every_row_comes_out_once_in_order_and_batches_keep_their_limits(
            rows in prop::collection::vec(prop::collection::vec(2usize..=64, 1..4), 0..300),
            tokens in 64usize..400, sequences in 1usize..40,
        ) {
            let mut queue = Queue::new(tokens, sequences, 2);
            let mut input = rows.iter().enumerate();
            let (mut batch, mut seen) = (PackedBatch::default(), Vec::new());
            loop {
                while queue.wants_more() {
                    let Some((i, lengths)) = input.next() else { break };
                    queue.push(tokenized(i as u64, lengths));
                }
                if !queue.fill(&mut batch) { break }
                prop_assert!(batch.tokens() <= tokens && batch.sequences() <= sequences);
                prop_assert_eq!(batch.cu_seqlens.last().copied(), Some(batch.tokens() as u32));
                for scored in queue.give(&first_ids(&batch)) {
                    let i = scored.row.at.line as usize;
                    let windows = rows[i].len() as f32;
                    prop_assert_eq!(scored.probabilities[0], (i * 10) as f32 + (windows - 1.0) / 2.0);
                    seen.push(i);
                }
            }
            prop_assert_eq!(seen, (0..rows.len()).collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_steady_stream_fills_batches() {
        let mut queue = Queue::new(4096, 1024, 2);
        let (mut batch, mut filled, mut batches) = (PackedBatch::default(), 0, 0);
        let mut lengths = (0..4000u64).map(|i| 20 + (i * 7919 % 300) as usize);
        loop {
            while queue.wants_more() {
                let Some(n) = lengths.next() else { break };
                queue.push(tokenized(1, &[n]));
            }
            if !queue.fill(&mut batch) {
                break;
            }
            (filled, batches) = (filled + batch.tokens(), batches + 1);
            queue.give(&first_ids(&batch));
        }
        let fill = filled as f64 / (batches * 4096) as f64;
        assert!(fill > 0.99, "{fill}");
    }
}
