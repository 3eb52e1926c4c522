//! Where a case is run: memory of a backend, poisoned before an op writes to it.

use super::batches::TestBatch;
use super::params::Params;
use super::reference::widen;
use crate::backend::{Arena, Backend, Capacity, Planner, Result, Rows};

/// Memory of a backend for the cases that follow one another in it.
///
/// Matrices and statistics are handed out not-a-number in all their rows, as if a larger batch had left them; the batch is
/// the one that the case before used.
pub struct Room<'b, B: Backend> {
    /// The backend.
    pub be: &'b B,
    capacity: Capacity,
    /// Rows that the case at hand has.
    live: Capacity,
    batch: Option<B::Batch>,
}

impl<'b, B: Backend> Room<'b, B> {
    /// A room for batches up to `capacity`, of which a case has `live`.
    pub fn new(be: &'b B, capacity: Capacity, live: Capacity) -> Self {
        Room { be, capacity, live, batch: None }
    }

    /// The next case has so many rows.
    pub fn turn_to(&mut self, live: Capacity) {
        self.live = live;
    }

    /// A matrix to write to. Its rows are live once more than the case has, and not-a-number.
    pub fn empty(&self, rows: Rows, cols: usize) -> Result<B::Mat> {
        let mut mat = self.untouched(rows, cols)?;
        // Backends may count the live rows of a kind, not of each matrix: as many as the case has from here on.
        for rows in self.poisoned(rows) {
            self.be.write_mat(&mut mat, rows, &vec![f32::NAN; rows * cols])?;
        }
        Ok(mat)
    }

    /// A matrix to write to that holds whatever its memory did.
    pub fn untouched(&self, rows: Rows, cols: usize) -> Result<B::Mat> {
        let mut plan = Planner::new(self.capacity);
        plan.mat(rows, cols);
        Ok(self.be.arena(&plan)?.mat(rows, cols))
    }

    /// A matrix with these values, and not-a-number in the rows beyond.
    pub fn mat(&self, rows: Rows, cols: usize, values: &[f32]) -> Result<B::Mat> {
        let live = values.len() / cols;
        let mut mat =
            if live == self.capacity.of(rows) { self.untouched(rows, cols)? } else { self.empty(rows, cols)? };
        self.be.write_mat(&mut mat, live, values)?;
        Ok(mat)
    }

    /// Statistics to write to, not-a-number like [`Room::empty`].
    pub fn stats(&self, rows: Rows, cols: usize) -> Result<B::Stats> {
        let mut plan = Planner::new(self.capacity);
        plan.stats(rows, cols);
        let mut stats = self.be.arena(&plan)?.stats(rows, cols);
        for rows in self.poisoned(rows) {
            self.be.write_stats(&mut stats, rows, &vec![f32::NAN; rows * cols])?;
        }
        Ok(stats)
    }

    /// How many rows are written, and after that how many: all there is room for, then those that the case has.
    fn poisoned(&self, rows: Rows) -> impl Iterator<Item = usize> {
        let (all, live) = (self.capacity.of(rows), self.live.of(rows));
        std::iter::once(all).chain((live != all).then_some(live))
    }

    /// The batch, uploaded; hand it back with [`Room::give_batch`].
    pub fn upload(&mut self, batch: &TestBatch) -> Result<B::Batch> {
        let mut uploaded = match self.batch.take() {
            Some(used) => used,
            None => self.be.batch(self.capacity)?,
        };
        self.be.upload(&batch.view(), &batch.limits, &mut uploaded)?;
        Ok(uploaded)
    }

    /// For the next case.
    pub fn give_batch(&mut self, batch: B::Batch) {
        self.batch = Some(batch);
    }

    /// Weights with the values of `params`.
    pub fn weights(&self, params: &Params) -> Result<B::Weights> {
        self.be.weights(&params.values)
    }

    /// A flat buffer with the gradients that `params` starts from.
    pub fn grads(&self, params: &Params) -> Result<B::Flat> {
        self.flat(&params.grads)
    }

    /// A flat buffer with these values.
    pub fn flat(&self, values: &[f32]) -> Result<B::Flat> {
        let mut flat = self.be.flat(values.len())?;
        self.be.write_flat(&mut flat, values)?;
        Ok(flat)
    }

    /// An output matrix's live values.
    pub fn read(&self, mat: &B::Mat) -> Result<Vec<f64>> {
        Ok(widen(&self.be.read_mat(mat)?))
    }

    /// Statistics' live values.
    pub fn read_stats(&self, stats: &B::Stats) -> Result<Vec<f64>> {
        Ok(widen(&self.be.read_stats(stats)?))
    }
}
