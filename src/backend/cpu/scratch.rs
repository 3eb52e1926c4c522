//! Working memory of the ops, kept between calls: it grows to the most that was needed, and is not given back.

use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, PoisonError};

use super::memory::Buffer;

/// Working memory of one op at a time. Contents are left over from whoever had it before.
#[derive(Debug, Default)]
pub struct Scratch {
    /// The right operand of a product, packed.
    pub panels: Buffer,
    /// Partial column sums, one row for each chunk of rows.
    pub partials: Buffer,
    /// Results laid out by sequence and head, or logits by vocabulary entry.
    pub blocks: Buffer,
}

/// Scratch that is not in use. Ops called side by side each get their own: a lock held over an op
/// would deadlock when rayon lets a waiting thread start another.
#[derive(Debug, Default)]
pub struct Pool {
    free: Mutex<Vec<Scratch>>,
}

impl Pool {
    /// Scratch for one op; it goes back when dropped.
    pub fn take(&self) -> Taken<'_> {
        let scratch = self.free.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default();
        Taken { pool: self, scratch }
    }
}

/// Scratch in use.
#[derive(Debug)]
pub struct Taken<'a> {
    pool: &'a Pool,
    scratch: Scratch,
}

impl Deref for Taken<'_> {
    type Target = Scratch;
    fn deref(&self) -> &Scratch {
        &self.scratch
    }
}

impl DerefMut for Taken<'_> {
    fn deref_mut(&mut self) -> &mut Scratch {
        &mut self.scratch
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        let scratch = std::mem::take(&mut self.scratch);
        self.pool.free.lock().unwrap_or_else(PoisonError::into_inner).push(scratch);
    }
}
