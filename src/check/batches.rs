//! Packed batches to try the ops on.

use super::random::Random;
use crate::backend::{BatchLimits, BatchView, Capacity};

/// Sequence lengths that leave the ops no easy way out: 1, 3, 113, 511 and 512 tokens; one
/// sequence, many, of mixed lengths, some empty.
pub const LENGTHS: [&[usize]; 7] = [
    &[1],
    &[3],
    &[1, 1, 1],
    &[0, 50, 0, 13, 49, 1, 0],
    &[200, 17, 1, 128, 165],
    &[512],
    &[64, 64, 64, 64, 64, 64, 64, 64],
];

/// Which tokens are to be predicted.
#[derive(Debug, Clone, Copy)]
pub enum Masks {
    /// None.
    None,
    /// Every third, from the second on.
    Some,
    /// All.
    All,
}

/// A batch that owns what a `BatchView` shows.
#[derive(Debug, Clone)]
pub struct TestBatch {
    /// [N]
    pub ids: Vec<u32>,
    /// [N]
    pub position_ids: Vec<u32>,
    /// [B+1]
    pub cu_seqlens: Vec<u32>,
    /// [M]
    pub masked_rows: Vec<u32>,
    /// [M]
    pub targets: Vec<u32>,
    /// [B], or empty
    pub labels: Vec<i32>,
    /// [B], or empty
    pub label_weights: Vec<f32>,
    /// Not 1, so that an op that forgets it shows.
    pub loss_scale: f32,
    /// Not 0, for the same reason.
    pub step: u32,
    /// What upload checks against.
    pub limits: BatchLimits,
}

impl TestBatch {
    /// Sequences of these lengths over a vocabulary of `vocab`, nothing masked, no labels.
    pub fn new(lengths: &[usize], vocab: usize, random: &mut Random) -> Self {
        let tokens = lengths.iter().sum();
        let cu_seqlens = std::iter::once(0).chain(lengths.iter().scan(0, |end, &n| {
            *end += n as u32;
            Some(*end)
        }));
        TestBatch {
            ids: (0..tokens).map(|_| random.below(vocab as u32)).collect(),
            position_ids: lengths.iter().flat_map(|&n| 0..n as u32).collect(),
            cu_seqlens: cu_seqlens.collect(),
            masked_rows: Vec::new(),
            targets: Vec::new(),
            labels: Vec::new(),
            label_weights: Vec::new(),
            loss_scale: 0.37,
            step: 3,
            limits: BatchLimits { vocab, positions: 512, classes: 0 },
        }
    }

    /// The same, with targets.
    pub fn masked(mut self, masks: Masks, random: &mut Random) -> Self {
        let rows = 0..self.ids.len() as u32;
        self.masked_rows = match masks {
            Masks::None => Vec::new(),
            Masks::Some => rows.skip(1).step_by(3).collect(),
            Masks::All => rows.collect(),
        };
        self.targets = self.masked_rows.iter().map(|_| random.below(self.limits.vocab as u32)).collect();
        self
    }

    /// N
    pub fn tokens(&self) -> usize {
        self.ids.len()
    }

    /// B
    pub fn sequences(&self) -> usize {
        self.cu_seqlens.len() - 1
    }

    /// N, B and M.
    pub fn counts(&self) -> Capacity {
        Capacity { tokens: self.tokens(), sequences: self.sequences(), masked: self.masked_rows.len() }
    }

    /// What a backend is shown.
    pub fn view(&self) -> BatchView<'_> {
        BatchView {
            ids: &self.ids,
            position_ids: &self.position_ids,
            cu_seqlens: &self.cu_seqlens,
            masked_rows: &self.masked_rows,
            targets: &self.targets,
            labels: &self.labels,
            label_weights: &self.label_weights,
            loss_scale: self.loss_scale,
            step: self.step,
        }
    }
}
