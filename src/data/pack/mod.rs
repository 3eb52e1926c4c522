//! Batches of a fixed number of tokens, without padding.
//!
//! A batch is filled from a look-ahead buffer: the oldest pieces first, then whichever piece or pair of pieces
//! fills the rest best. What is chosen depends on the lengths of the pieces alone, so [`count_batches`] knows
//! how many batches an epoch has without reading a token, and on the [`Cursor`] alone, so a run resumes at any
//! batch exactly.

mod chunks;
mod documents;
mod look_ahead;
mod plan;

use super::batch::DrawKey;
use super::tokenizer::SpecialIds;
use super::{Error, PackedBatch, Piece, Result, TokenSet};
use chunks::Chunks;
use documents::Documents;
pub use plan::{Empty, LabelNeed, Long, PackPlan, Packing, Shuffle};

/// Where a packer stands between two batches: enough to go on exactly, and no larger for a larger corpus.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Cursor {
    /// The epoch, from 0.
    pub epoch: u32,
    /// Index in the epoch's order of the next sample (or chunk) to be drawn.
    pub next: u64,
    /// Pieces that were drawn and are not packed yet, oldest first.
    pub pending: Vec<Piece>,
}

impl Cursor {
    /// The beginning of an epoch.
    pub fn start(epoch: u32) -> Self {
        Cursor { epoch, next: 0, pending: Vec::new() }
    }
}

/// What a packer has seen since it was made. Samples are counted when they are drawn, that is before they are
/// packed; in chunks packing, all of them are at once and once only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct PackCounts {
    /// Batches.
    pub batches: u64,
    /// Sequences in them.
    pub pieces: u64,
    /// Tokens in them, special tokens counted.
    pub tokens: u64,
    /// Samples drawn.
    pub samples: u64,
    /// Of these, samples cut into several pieces.
    pub cut: u64,
    /// Of these, samples of which only a part is shown.
    pub truncated: u64,
    /// Tokens of theirs that are not shown.
    pub tokens_left_out: u64,
    /// Samples passed over because they are empty.
    pub empty: u64,
    /// Samples passed over because they have no label.
    pub unlabelled: u64,
    /// In chunks packing, tokens of the last, shorter chunk of the corpus; it is kept. 0 = none is shorter.
    pub tail_tokens: u64,
}

/// What [`Packer::next`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filled {
    /// Filled the batch.
    Batch,
    /// The epoch has no more batches; the next call begins the next epoch. The batch is empty.
    EpochEnd,
}

/// Fills batches, epoch after epoch; a batch never mixes two.
#[derive(Debug)]
pub struct Packer<'a> {
    set: &'a TokenSet,
    plan: PackPlan,
    special: SpecialIds,
    stream: Stream<'a>,
    /// Batches since the epoch began, or `None` where its beginning was before this packer.
    batches: Option<u64>,
}

#[derive(Debug)]
enum Stream<'a> {
    Documents { documents: Documents<'a>, selected: Vec<Piece> },
    Chunks { chunks: Chunks<'a>, selected: Vec<u64> },
}

impl<'a> Packer<'a> {
    /// Packs `set` from `cursor` on, [`Cursor::start`] or one of [`Packer::cursor`].
    ///
    /// # Errors
    /// A plan that contradicts itself, a cursor of other data, damaged offsets.
    pub fn new(set: &'a TokenSet, plan: &PackPlan, special: SpecialIds, cursor: Cursor) -> Result<Self> {
        plan.check()?;
        let batches = (cursor.next == 0).then_some(0);
        let stream = match plan.packing {
            Packing::Documents => {
                Stream::Documents { documents: Documents::new(set, plan, cursor)?, selected: Vec::new() }
            }
            Packing::Chunks { length } => {
                Stream::Chunks { chunks: Chunks::new(set, plan, length, &cursor)?, selected: Vec::new() }
            }
        };
        Ok(Packer { set, plan: plan.clone(), special, stream, batches })
    }

    /// Where the packer stands, after the batch that it filled last.
    pub fn cursor(&self) -> Cursor {
        match &self.stream {
            Stream::Documents { documents, .. } => documents.cursor(),
            Stream::Chunks { chunks, .. } => chunks.cursor(),
        }
    }

    /// What [`Cursor::next`] counts up to in an epoch: samples, or chunks.
    pub fn epoch_len(&self) -> u64 {
        match &self.stream {
            Stream::Documents { documents, .. } => documents.epoch_len(),
            Stream::Chunks { chunks, .. } => chunks.epoch_len(),
        }
    }

    /// What it has seen since it was made.
    pub fn counts(&self) -> PackCounts {
        match &self.stream {
            Stream::Documents { documents, .. } => documents.counts,
            Stream::Chunks { chunks, .. } => chunks.counts,
        }
    }

    /// Fills the next batch.
    ///
    /// # Errors
    /// A damaged token set; an epoch without a single batch, which would otherwise go on for ever.
    pub fn next(&mut self, batch: &mut PackedBatch) -> Result<Filled> {
        batch.clear();
        let (set, plan, special) = (self.set, &self.plan, self.special);
        let counts = match &mut self.stream {
            Stream::Documents { documents, selected } => {
                documents.select(selected)?;
                for piece in selected.iter() {
                    append_piece(set, plan, special, piece, batch)?;
                }
                &mut documents.counts
            }
            Stream::Chunks { chunks, selected } => {
                chunks.select(selected);
                for &chunk in selected.iter() {
                    let piece = chunks.append(chunk, special, batch)?;
                    close_sequence(batch, piece, -1, DrawKey { index: chunk, position: 0 });
                }
                &mut chunks.counts
            }
        };
        if batch.sequences() == 0 {
            return self.end_epoch();
        }
        counts.batches += 1;
        counts.pieces += batch.sequences() as u64;
        counts.tokens += batch.tokens() as u64;
        self.batches = self.batches.map(|batches| batches + 1);
        Ok(Filled::Batch)
    }

    fn end_epoch(&mut self) -> Result<Filled> {
        if self.batches == Some(0) {
            let (set, plan) = (self.set.dir().display(), &self.plan);
            return Err(Error::Invalid(format!(
                "{set}: nothing to pack: of its {} samples none is in the {:?} side of a split that holds out {}, \
                 has what is needed ({:?} label) and is not empty",
                plan.samples(self.set),
                plan.subset,
                plan.split.held_fraction,
                plan.need,
            )));
        }
        match &mut self.stream {
            Stream::Documents { documents, .. } => documents.next_epoch(),
            Stream::Chunks { chunks, .. } => chunks.next_epoch(),
        }
        self.batches = Some(0);
        Ok(Filled::EpochEnd)
    }
}

/// Appends [CLS] piece [SEP].
fn append_piece(
    set: &TokenSet, plan: &PackPlan, special: SpecialIds, piece: &Piece, batch: &mut PackedBatch,
) -> Result<()> {
    let &Piece { sample, start, len } = piece;
    batch.ids.push(special.cls);
    let whole = set.sample_len(sample)?;
    if plan.long == Long::HeadTail && whole > len {
        let head = Long::head(len as usize) as u32;
        set.append_tokens(sample, 0, head, &mut batch.ids)?;
        set.append_tokens(sample, whole - (len - head), len - head, &mut batch.ids)?;
    } else {
        set.append_tokens(sample, start, len, &mut batch.ids)?;
    }
    batch.ids.push(special.sep);
    let label = set.label(sample);
    let classes = set.meta().label_names.len();
    if i64::from(label) >= classes as i64 {
        let why = format!(
            "sample {sample} has label {label} of {classes}: the labels are damaged; rebuild the set with `handbert tokenize`"
        );
        return Err(Error::File { path: set.dir().to_owned(), why });
    }
    close_sequence(batch, *piece, label, DrawKey { index: sample, position: start });
    Ok(())
}

/// Ends a sequence at the last id.
fn close_sequence(batch: &mut PackedBatch, piece: Piece, label: i32, draw: DrawKey) {
    let begin = batch.cu_seqlens.last().copied().unwrap_or_default();
    let end = batch.ids.len() as u32;
    batch.position_ids.extend(0..end - begin);
    batch.cu_seqlens.push(end);
    batch.pieces.push(piece);
    batch.labels.push(label);
    batch.draws.push(draw);
}

/// Number of batches of an epoch: the same packing over lengths only.
///
/// # Errors
/// Those of [`Packer::new`]; an epoch without a batch is none.
pub fn count_batches(set: &TokenSet, plan: &PackPlan, epoch: u32) -> Result<u64> {
    plan.check()?;
    let mut batches = 0;
    match plan.packing {
        Packing::Documents => {
            let mut documents = Documents::new(set, plan, Cursor::start(epoch))?;
            let mut selected = Vec::new();
            loop {
                documents.select(&mut selected)?;
                if selected.is_empty() {
                    return Ok(batches);
                }
                batches += 1;
            }
        }
        Packing::Chunks { length } => {
            let mut chunks = Chunks::new(set, plan, length, &Cursor::start(epoch))?;
            let mut selected = Vec::new();
            loop {
                chunks.select(&mut selected);
                if selected.is_empty() {
                    return Ok(batches);
                }
                batches += 1;
            }
        }
    }
}
