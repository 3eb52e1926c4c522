//! The batch on the device: what the host holds, and the lists that kernels would otherwise each work out for themselves:
//! tiles of attention, and the rows of each token and each position for the gradients of the embedding tables.

use bytemuck::{Pod, Zeroable};

use super::device::{Device, Region};
use super::memory::{ALIGNMENT, Allocation};
use crate::backend::batch::{Groups, check, check_labels, check_targets};
use crate::backend::{BatchLimits, BatchView, Capacity, Error, Pick, Result, Rows};

/// Queries, or keys, in a tile of attention; `TILE` of attention.cuh.
pub const TILE: usize = 64;

/// The most rows that one piece of an embedding gradient sums; `PIECE` of embedding.cu.
pub const PIECE: usize = 32;

/// Slot of a piece that is all its key has.
const NO_SLOT: u32 = u32::MAX;

/// 64 neighbouring tokens of one sequence; `struct Tile` of attention.cuh.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
pub struct Tile {
    /// First packed row of the sequence.
    pub start: u32,
    /// Its length.
    pub length: u32,
    /// Position within the sequence of the tile's first token.
    pub first: u32,
    /// Which sequence.
    pub sequence: u32,
}

/// Rows of one key, few enough for one warp to sum; `struct Piece` of embedding.cu.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
pub struct Piece {
    /// The rows are `order[first..first + count]`.
    pub first: u32,
    /// How many.
    pub count: u32,
    /// The key: which row of the table their sum belongs to.
    pub target: u32,
    /// Where the sum waits for its key's other pieces; all ones if there are none.
    pub slot: u32,
}

/// A key of several pieces; `struct Sum` of embedding.cu.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
pub struct Sum {
    /// The key.
    pub target: u32,
    /// Its pieces' slots are `first_slot..first_slot + slots`.
    pub first_slot: u32,
    /// How many.
    pub slots: u32,
    /// Fills up 16 bytes.
    pub unused: u32,
}

/// What is known of the batch uploaded last, number by number, each a u32 (or f32) in device memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Head {
    /// N
    Tokens,
    /// B
    Sequences,
    /// M
    Masked,
    /// Number of the pass, for dropout.
    Step,
    /// Multiplies every gradient of the loss; f32.
    LossScale,
    /// Tiles of attention.
    Tiles,
    /// Pieces of the word table's gradient.
    IdPieces,
    /// Words of several pieces.
    IdSums,
    /// Pieces of the position table's gradient.
    PositionPieces,
    /// Positions of several pieces.
    PositionSums,
}

impl Head {
    /// Numbers in the head.
    const COUNT: usize = 10;
    /// Bytes of the head.
    pub const BYTES: usize = Head::COUNT * 4;

    /// Where a number lies.
    pub fn offset(self) -> usize {
        self as usize * 4
    }

    /// The number of live rows of a kind.
    pub fn live(rows: Rows) -> Head {
        match rows {
            Rows::Tokens => Head::Tokens,
            Rows::Sequences => Head::Sequences,
            Rows::Masked => Head::Masked,
        }
    }
}

/// Rows grouped by a key, for sums in a fixed order.
#[derive(Debug)]
pub struct Sorted {
    /// All rows, those of one key together. [N] u32
    pub order: Region,
    /// [N] `Piece`
    pub pieces: Region,
    /// [N / 32] `Sum`
    pub sums: Region,
    groups: Groups,
}

/// Device memory that holds the batch uploaded last into it.
#[derive(Debug)]
pub struct Batch {
    capacity: Capacity,
    /// Keeps the arrays below alive.
    _memory: Allocation,
    /// Token ids. [N] u32
    pub ids: Region,
    /// [N] u32
    pub position_ids: Region,
    /// [M] u32
    pub masked_rows: Region,
    /// [M] u32
    pub targets: Region,
    /// -1 for none. [B] i32
    pub labels: Region,
    /// [B] f32
    pub label_weights: Region,
    /// First packed row of each sequence. [B] u32
    pub first_rows: Region,
    /// Longest sequences first. [`Batch::tile_capacity`] `Tile`
    pub tiles: Region,
    /// Rows by token id.
    pub by_id: Sorted,
    /// Rows by position.
    pub by_position: Sorted,
    host: Host,
}

/// What the host remembers of the batch.
#[derive(Debug, Default)]
struct Host {
    serial: u64,
    counts: [usize; 3],
    targets: Vec<u32>,
    labels: Vec<i32>,
    /// Rows that a word and a position table must have: beyond the largest id and the longest sequence.
    table_rows: [usize; 2],
}

/// Cuts an allocation into aligned arrays; counts only, where there is none yet.
struct Cutter {
    memory: Option<Region>,
    used: usize,
}

impl Cutter {
    fn array<T>(&mut self, len: usize) -> Region {
        let (offset, bytes) = (self.used, len * size_of::<T>());
        self.used = (offset + bytes).next_multiple_of(ALIGNMENT);
        self.memory.map_or(Region::new(0, bytes), |memory| memory.part(offset, bytes))
    }

    fn sorted(&mut self, tokens: usize) -> Sorted {
        Sorted {
            order: self.array::<u32>(tokens),
            pieces: self.array::<Piece>(tokens),
            sums: self.array::<Sum>(sum_capacity(tokens)),
            groups: Groups::default(),
        }
    }
}

impl Batch {
    /// Room for batches up to `capacity`; holds none yet.
    pub fn new<D: Device>(device: &D, capacity: Capacity) -> Result<Batch>
    where
        D::Buffer: 'static,
    {
        let memory = Allocation::new(device, Batch::bytes(capacity), "the batch")?;
        let mut cutter = Cutter { memory: Some(memory.region()), used: 0 };
        Ok(Batch::cut(&mut cutter, capacity, memory))
    }

    /// Bytes that [`Batch::new`] takes.
    pub fn bytes(capacity: Capacity) -> usize {
        let mut sizes = Cutter { memory: None, used: 0 };
        Batch::cut(&mut sizes, capacity, Allocation::none());
        sizes.used
    }

    fn cut(cut: &mut Cutter, capacity: Capacity, memory: Allocation) -> Batch {
        let Capacity { tokens, sequences, masked } = capacity;
        Batch {
            capacity,
            _memory: memory,
            ids: cut.array::<u32>(tokens),
            position_ids: cut.array::<u32>(tokens),
            masked_rows: cut.array::<u32>(masked),
            targets: cut.array::<u32>(masked),
            labels: cut.array::<i32>(sequences),
            label_weights: cut.array::<f32>(sequences),
            first_rows: cut.array::<u32>(sequences),
            tiles: cut.array::<Tile>(tile_capacity(capacity)),
            by_id: cut.sorted(tokens),
            by_position: cut.sorted(tokens),
            host: Host::default(),
        }
    }

    /// The most it can hold.
    pub fn capacity(&self) -> Capacity {
        self.capacity
    }

    /// The most tiles of attention it can have.
    pub fn tile_capacity(&self) -> usize {
        tile_capacity(self.capacity)
    }

    /// The most partial sums that the pieces of one table can leave.
    pub fn slot_capacity(&self) -> usize {
        slot_capacity(self.capacity.tokens)
    }

    /// N, B or M.
    pub fn count(&self, rows: Rows) -> usize {
        self.host.counts[Head::live(rows) as usize]
    }

    /// The rows of a pick, and how many there are.
    pub fn picked(&self, pick: Pick) -> (Region, Rows) {
        match pick {
            Pick::Masked => (self.masked_rows, Rows::Masked),
            Pick::First => (self.first_rows, Rows::Sequences),
        }
    }

    /// An error unless this batch is the one that the head tells of.
    pub(super) fn check_current(&self, op: &'static str, serial: u64) -> Result<()> {
        if self.host.serial == serial {
            return Ok(());
        }
        Err(Error::Batch(format!("{op}: another batch was uploaded after this one; upload it again")))
    }

    /// Checks that every target is below `vocab`: that of the layer at hand, not that of the upload.
    pub fn check_targets(&self, op: &str, vocab: usize) -> Result<()> {
        check_targets(op, &self.host.targets, vocab)
    }

    /// Checks that tables of so many rows have one for every id and every position.
    pub fn check_tables(&self, op: &'static str, words: usize, positions: usize) -> Result<()> {
        let [ids, longest] = self.host.table_rows;
        let tables = [("word embeddings", "V", words, ids), ("position embeddings", "P", positions, longest)];
        match tables.into_iter().find(|&(_, _, rows, wanted)| rows < wanted) {
            None => Ok(()),
            Some((what, letter, rows, wanted)) => {
                let (got, expected) = (format!("{rows} rows"), format!("{letter}>={wanted} rows"));
                Err(Error::Shape { op, what, got, expected })
            }
        }
    }

    /// Checks that every label is below `classes`: those of the logits at hand, not those of the upload.
    pub fn check_labels(&self, op: &str, classes: usize) -> Result<()> {
        check_labels(op, &self.host.labels, classes)
    }

    /// Copies what `view` shows to the device, after checking it, and gives the head that belongs to it.
    pub(super) fn upload<D: Device>(
        &mut self, device: &D, view: &BatchView<'_>, limits: &BatchLimits, serial: u64,
    ) -> Result<[u32; Head::COUNT]> {
        check(view, limits, &self.capacity)?;
        let [tokens, sequences, masked] = [view.ids.len(), view.cu_seqlens.len() - 1, view.masked_rows.len()];
        let mut labels = view.labels.to_vec();
        labels.resize(sequences, -1);
        let mut label_weights = view.label_weights.to_vec();
        label_weights.resize(sequences, 1.0);
        let tiles = tiles(view.cu_seqlens);
        self.by_id.groups.sort(view.ids, limits.vocab);
        self.by_position.groups.sort(view.position_ids, limits.positions);
        let [ids, positions] = [(&self.by_id, limits.vocab), (&self.by_position, limits.positions)]
            .map(|(sorted, keys)| pieces(&sorted.groups, keys));

        let to = Uploader(device);
        to.array(view.ids, self.ids)?;
        to.array(view.position_ids, self.position_ids)?;
        to.array(view.masked_rows, self.masked_rows)?;
        to.array(view.targets, self.targets)?;
        to.array(&labels, self.labels)?;
        to.array(&label_weights, self.label_weights)?;
        to.array(&view.cu_seqlens[..sequences], self.first_rows)?;
        to.array(&tiles, self.tiles)?;
        for (sorted, (pieces, sums)) in [(&self.by_id, &ids), (&self.by_position, &positions)] {
            to.array(sorted.groups.order(), sorted.order)?;
            to.array(pieces, sorted.pieces)?;
            to.array(sums, sorted.sums)?;
        }
        let rows = |keys: &[u32]| keys.iter().max().map_or(0, |&key| key as usize + 1);
        let table_rows = [rows(view.ids), rows(view.position_ids)];
        let counts = [tokens, sequences, masked];
        self.host = Host { serial, counts, targets: view.targets.to_vec(), labels, table_rows };
        let [tiles, id_pieces, id_sums] = [tiles.len(), ids.0.len(), ids.1.len()];
        let counts = counts.map(|n| n as u32);
        let lists = [tiles, id_pieces, id_sums, positions.0.len(), positions.1.len()].map(|n| n as u32);
        let head = counts.into_iter().chain([view.step, view.loss_scale.to_bits()]).chain(lists);
        let mut numbers = [0; Head::COUNT];
        numbers.iter_mut().zip(head).for_each(|(number, value)| *number = value);
        Ok(numbers)
    }
}

/// One tile for each 64 tokens of a sequence begun, at most.
fn tile_capacity(capacity: Capacity) -> usize {
    capacity.tokens.div_ceil(TILE) + capacity.sequences
}

struct Uploader<'a, D>(&'a D);

impl<D: Device> Uploader<'_, D> {
    /// To the beginning of an array; what lies behind it stays.
    fn array<T: Pod>(&self, values: &[T], to: Region) -> Result<()> {
        let bytes: &[u8] = bytemuck::cast_slice(values);
        if bytes.is_empty() { Ok(()) } else { self.0.upload(bytes, to.part(0, bytes.len())) }
    }
}

/// The tiles of every sequence, those of the longest first, so that the last blocks to finish are short ones.
fn tiles(cu_seqlens: &[u32]) -> Vec<Tile> {
    let mut sequences: Vec<(u32, u32)> =
        cu_seqlens.windows(2).enumerate().map(|(sequence, ends)| (sequence as u32, ends[1] - ends[0])).collect();
    sequences.sort_by_key(|&(sequence, length)| (std::cmp::Reverse(length), sequence));
    let of_sequence = |(sequence, length): (u32, u32)| {
        let start = cu_seqlens[sequence as usize];
        (0..length).step_by(TILE).map(move |first| Tile { start, length, first, sequence })
    };
    sequences.into_iter().flat_map(of_sequence).collect()
}

/// The most keys of several pieces that so many rows can have: each has at least PIECE + 1 of them.
fn sum_capacity(rows: usize) -> usize {
    rows / PIECE
}

/// The most pieces that such keys can have together: at most two for each PIECE of their rows.
fn slot_capacity(rows: usize) -> usize {
    2 * rows / PIECE
}

/// Pieces of at most [`PIECE`] rows, in order of their keys, and the keys that have several.
fn pieces(groups: &Groups, keys: usize) -> (Vec<Piece>, Vec<Sum>) {
    let (mut pieces, mut sums) = (Vec::new(), Vec::new());
    let (mut first, mut slot) = (0, 0);
    for target in 0..keys {
        let rows = groups.of(target).len();
        let several = rows > PIECE;
        if several {
            let slots = rows.div_ceil(PIECE) as u32;
            sums.push(Sum { target: target as u32, first_slot: slot, slots, unused: 0 });
        }
        for done in (0..rows).step_by(PIECE) {
            let count = (rows - done).min(PIECE) as u32;
            let of_piece = if several { slot } else { NO_SLOT };
            pieces.push(Piece { first, count, target: target as u32, slot: of_piece });
            first += count;
            slot += u32::from(several);
        }
    }
    (pieces, sums)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_cover_each_token_once_longest_sequences_first() {
        let cu_seqlens = [0, 65, 65, 66, 200];
        let tiles = tiles(&cu_seqlens);
        let lengths: Vec<u32> = tiles.iter().map(|t| t.length).collect();
        assert_eq!(lengths, [134, 134, 134, 65, 65, 1]);
        let mut covered = vec![0; 200];
        for tile in &tiles {
            assert_eq!(tile.start, cu_seqlens[tile.sequence as usize]);
            let here = tile.first..tile.length.min(tile.first + TILE as u32);
            here.for_each(|position| covered[(tile.start + position) as usize] += 1);
        }
        assert!(covered.iter().all(|&times| times == 1));
        assert!(tiles.len() <= tile_capacity(Capacity { tokens: 200, sequences: 4, masked: 0 }));
    }

    #[test]
    fn pieces_cover_each_row_once_and_several_have_slots() {
        let mut keys = vec![5u32; 70];
        keys.extend([1, 0, 5, 1]);
        keys.extend(vec![2; PIECE]);
        keys.extend(vec![3; PIECE + 1]);
        let mut groups = Groups::default();
        groups.sort(&keys, 7);
        let (pieces, sums) = pieces(&groups, 7);
        let counts: Vec<_> = pieces.iter().map(|p| (p.target, p.count, p.slot)).collect();
        let one = |target, count| (target, count, NO_SLOT);
        assert_eq!(
            counts,
            [one(0, 1), one(1, 2), one(2, 32), (3, 32, 0), (3, 1, 1), (5, 32, 2), (5, 32, 3), (5, 7, 4)]
        );
        let sums: Vec<_> = sums.iter().map(|s| (s.target, s.first_slot, s.slots)).collect();
        assert_eq!(sums, [(3, 0, 2), (5, 2, 3)]);
        let mut seen = vec![false; keys.len()];
        for piece in &pieces {
            for &row in &groups.order()[piece.first as usize..(piece.first + piece.count) as usize] {
                assert_eq!(keys[row as usize], piece.target);
                assert!(!std::mem::replace(&mut seen[row as usize], true));
            }
        }
        assert!(seen.into_iter().all(|seen| seen));
    }

    #[test]
    fn there_is_room_for_every_sum_and_slot() {
        for each in [1, PIECE, PIECE + 1, 2 * PIECE, 2 * PIECE + 1, 5 * PIECE + 1] {
            for keys in [1, 2, 7, 100] {
                let rows: Vec<u32> = (0..keys).flat_map(|key| vec![key; each]).collect();
                let mut groups = Groups::default();
                groups.sort(&rows, keys as usize);
                let (pieces, sums) = pieces(&groups, keys as usize);
                let slots = pieces.iter().filter(|piece| piece.slot != NO_SLOT).count();
                assert!(sums.len() <= sum_capacity(rows.len()), "{keys} keys of {each} rows: {} sums", sums.len());
                assert!(slots <= slot_capacity(rows.len()), "{keys} keys of {each} rows: {slots} slots");
                assert!(pieces.len() <= rows.len());
            }
        }
    }
}
