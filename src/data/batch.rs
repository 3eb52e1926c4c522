//! The one batch type, from the packer to the backend.

/// A run of consecutive tokens of one sample, to be framed by [CLS] and [SEP].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct Piece {
    /// Index of the sample in its token set.
    pub sample: u64,
    /// First token of the piece within the sample (special tokens not counted).
    pub start: u32,
    /// Number of the sample's tokens in the piece (special tokens not counted).
    pub len: u32,
}

/// What the mask draws of a sequence are functions of, so that they depend on nothing around it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DrawKey {
    /// The sample; in `chunks` packing, the chunk.
    pub index: u64,
    /// Added to a token's row within the sequence: the piece's first token within the sample; in `chunks`
    /// packing, 0.
    pub position: u32,
}

/// B sequences laid end to end in a flat row of N tokens; there is no padding.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PackedBatch {
    /// Token ids, special tokens included. [N]
    pub ids: Vec<u32>,
    /// Position of each token within its sequence. [N]
    pub position_ids: Vec<u32>,
    /// Prefix sums of the sequence lengths, starting at 0. [B+1]
    pub cu_seqlens: Vec<u32>,
    /// What each sequence shows; in `chunks` packing, the piece its first token belongs to. [B]
    pub pieces: Vec<Piece>,
    /// Class of each sequence, -1 where it has none. [B]
    pub labels: Vec<i32>,
    /// Where the mask draws of each sequence come from. [B]
    pub draws: Vec<DrawKey>,
}

impl PackedBatch {
    /// Number of tokens, N.
    pub fn tokens(&self) -> usize {
        self.ids.len()
    }

    /// Number of sequences, B.
    pub fn sequences(&self) -> usize {
        self.pieces.len()
    }

    /// Empties the batch, keeping its memory.
    pub fn clear(&mut self) {
        self.ids.clear();
        self.position_ids.clear();
        self.cu_seqlens.clear();
        self.cu_seqlens.push(0);
        self.pieces.clear();
        self.labels.clear();
        self.draws.clear();
    }
}

/// A packed batch whose ids are masked for MLM, and what stood there before.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MaskedBatch {
    /// The batch, with 15 % of its ordinary tokens hidden.
    pub packed: PackedBatch,
    /// Packed rows whose token is to be predicted, ascending. [M]
    pub masked_rows: Vec<u32>,
    /// The token each of them had. [M]
    pub targets: Vec<u32>,
}
