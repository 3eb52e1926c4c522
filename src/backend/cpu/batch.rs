//! The batch as the ops see it: a checked copy of what the host holds, plus what several ops would
//! otherwise work out each for themselves (which sequence a row is in, which rows show a token).

use crate::backend::batch::{Groups, check, check_labels, check_targets};
use crate::backend::{BatchLimits, BatchView, Capacity, Pick, Result};

/// An uploaded batch.
#[derive(Debug)]
pub struct Batch {
    capacity: Capacity,
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
    /// [B], -1 for none
    pub labels: Vec<i32>,
    /// [B]
    pub label_weights: Vec<f32>,
    /// Multiplies every gradient of the loss.
    pub loss_scale: f32,
    /// Number of the pass, for dropout.
    pub step: u32,
    /// The sequence each row is in. [N]
    pub sequence_of: Vec<u32>,
    /// The first row of each sequence. [B]
    pub first_rows: Vec<u32>,
    /// Rows by token id.
    pub by_id: Groups,
    /// Rows by position.
    pub by_position: Groups,
}

impl Batch {
    /// Room for batches up to `capacity`; holds none yet.
    pub fn new(capacity: Capacity) -> Batch {
        Batch {
            capacity,
            ids: Vec::new(),
            position_ids: Vec::new(),
            cu_seqlens: vec![0],
            masked_rows: Vec::new(),
            targets: Vec::new(),
            labels: Vec::new(),
            label_weights: Vec::new(),
            loss_scale: 0.0,
            step: 0,
            sequence_of: Vec::new(),
            first_rows: Vec::new(),
            by_id: Groups::default(),
            by_position: Groups::default(),
        }
    }

    /// N
    pub fn tokens(&self) -> usize {
        self.ids.len()
    }

    /// B
    pub fn sequences(&self) -> usize {
        self.cu_seqlens.len() - 1
    }

    /// The rows of a sequence.
    pub fn rows_of(&self, sequence: usize) -> std::ops::Range<usize> {
        self.cu_seqlens[sequence] as usize..self.cu_seqlens[sequence + 1] as usize
    }

    /// Checks that every target is below `vocab`: that of the layer at hand, not that of the upload.
    ///
    /// # Errors
    ///
    /// [`Error::Batch`](crate::backend::Error::Batch)
    pub fn check_targets(&self, op: &str, vocab: usize) -> Result<()> {
        check_targets(op, &self.targets, vocab)
    }

    /// Checks that every label is below `classes`: those of the logits at hand, not those of the upload.
    ///
    /// # Errors
    ///
    /// [`Error::Batch`](crate::backend::Error::Batch)
    pub fn check_labels(&self, op: &str, classes: usize) -> Result<()> {
        check_labels(op, &self.labels, classes)
    }

    /// The packed rows of a pick.
    pub fn picked(&self, pick: Pick) -> &[u32] {
        match pick {
            Pick::Masked => &self.masked_rows,
            Pick::First => &self.first_rows,
        }
    }

    /// Takes over what `view` shows, after checking it.
    ///
    /// # Errors
    ///
    /// Those of [`check`]; the batch is then as it was.
    pub fn upload(&mut self, view: &BatchView<'_>, limits: &BatchLimits) -> Result<()> {
        check(view, limits, &self.capacity)?;
        copy(&mut self.ids, view.ids);
        copy(&mut self.position_ids, view.position_ids);
        copy(&mut self.cu_seqlens, view.cu_seqlens);
        copy(&mut self.masked_rows, view.masked_rows);
        copy(&mut self.targets, view.targets);
        let sequences = self.sequences();
        copy(&mut self.labels, view.labels);
        self.labels.resize(sequences, -1);
        copy(&mut self.label_weights, view.label_weights);
        self.label_weights.resize(sequences, 1.0);
        (self.loss_scale, self.step) = (view.loss_scale, view.step);
        copy(&mut self.first_rows, &view.cu_seqlens[..sequences]);
        self.sequence_of.clear();
        for sequence in 0..sequences {
            self.sequence_of.resize(view.cu_seqlens[sequence + 1] as usize, sequence as u32);
        }
        self.by_id.sort(view.ids, limits.vocab);
        self.by_position.sort(view.position_ids, limits.positions);
        Ok(())
    }
}

fn copy<T: Copy>(to: &mut Vec<T>, from: &[T]) {
    to.clear();
    to.extend_from_slice(from);
}
