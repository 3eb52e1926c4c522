//! Layouts as the PTX manual gives them, written out.

use super::case::Swizzle;

/// "Swizzling Modes": in which place of its row of chunks each 16-byte chunk lies, row by row until the pattern repeats.
/// A swizzle of 128 bytes has rows of 8 chunks, 64 bytes rows of 4, 32 bytes rows of 2.
pub const CHUNKS_128: [[usize; 8]; 8] = [
    [0, 1, 2, 3, 4, 5, 6, 7],
    [1, 0, 3, 2, 5, 4, 7, 6],
    [2, 3, 0, 1, 6, 7, 4, 5],
    [3, 2, 1, 0, 7, 6, 5, 4],
    [4, 5, 6, 7, 0, 1, 2, 3],
    [5, 4, 7, 6, 1, 0, 3, 2],
    [6, 7, 4, 5, 2, 3, 0, 1],
    [7, 6, 5, 4, 3, 2, 1, 0],
];
pub const CHUNKS_64: [[usize; 4]; 8] =
    [[0, 1, 2, 3], [0, 1, 2, 3], [1, 0, 3, 2], [1, 0, 3, 2], [2, 3, 0, 1], [2, 3, 0, 1], [3, 2, 1, 0], [3, 2, 1, 0]];
pub const CHUNKS_32: [[usize; 2]; 8] = [[0, 1], [0, 1], [0, 1], [0, 1], [1, 0], [1, 0], [1, 0], [1, 0]];

/// Where chunk `chunk` of row `row` of a box lies, in bytes.
pub fn chunk_place(swizzle: Swizzle, row: usize, chunk: usize, chunks: usize) -> usize {
    let moved = match swizzle {
        Swizzle::None => chunk,
        Swizzle::Bytes32 => CHUNKS_32[row % 8][chunk],
        Swizzle::Bytes64 => CHUNKS_64[row % 8][chunk],
        Swizzle::Bytes128 => CHUNKS_128[row % 8][chunk],
    };
    (row * chunks + moved) * 16
}

/// A mode of CuTe's notation: parts of an index, fastest first, and what each adds for a step of one.
pub type Mode = &'static [(usize, Stride)];

#[derive(Debug, Clone, Copy)]
#[allow(clippy::enum_variant_names)] // The manual has a stride called stride.
pub enum Stride {
    /// So many elements.
    Of(usize),
    /// The descriptor's leading dimension byte offset.
    Leading,
    /// Its stride dimension byte offset.
    Stride,
}

/// "Canonical Layouts" for elements of 16 bits, so T = 8; the repetition that the manual calls m or k comes last, as 0.
pub struct Canonical {
    pub swizzle: Swizzle,
    pub mn: Mode,
    pub k: Mode,
}

use Stride::{Leading, Of, Stride as Step};

/// K-major: ((8, m), (T, 2k)) : ((T, SBO), (1, LBO)), and ((8, m), (T, 2k)) : ((nT, SBO), (1, T)) with n = 2, 4, 8.
pub const K_MAJOR: [Canonical; 4] = [
    Canonical { swizzle: Swizzle::None, mn: &[(8, Of(8)), (0, Step)], k: &[(8, Of(1)), (0, Leading)] },
    Canonical { swizzle: Swizzle::Bytes32, mn: &[(8, Of(16)), (0, Step)], k: &[(8, Of(1)), (0, Of(8))] },
    Canonical { swizzle: Swizzle::Bytes64, mn: &[(8, Of(32)), (0, Step)], k: &[(8, Of(1)), (0, Of(8))] },
    Canonical { swizzle: Swizzle::Bytes128, mn: &[(8, Of(64)), (0, Step)], k: &[(8, Of(1)), (0, Of(8))] },
];

/// MN-major: ((T, 1, m), (8, k)) : ((1, T, SBO), (T, LBO)), and ((T, n, m), (8, k)) : ((1, T, LBO), (nT, SBO)).
pub const MN_MAJOR: [Canonical; 4] = [
    Canonical { swizzle: Swizzle::None, mn: &[(8, Of(1)), (1, Of(8)), (0, Step)], k: &[(8, Of(8)), (0, Leading)] },
    Canonical { swizzle: Swizzle::Bytes32, mn: &[(8, Of(1)), (2, Of(8)), (0, Leading)], k: &[(8, Of(16)), (0, Step)] },
    Canonical { swizzle: Swizzle::Bytes64, mn: &[(8, Of(1)), (4, Of(8)), (0, Leading)], k: &[(8, Of(32)), (0, Step)] },
    Canonical { swizzle: Swizzle::Bytes128, mn: &[(8, Of(1)), (8, Of(8)), (0, Leading)], k: &[(8, Of(64)), (0, Step)] },
];

impl Canonical {
    /// The byte at which element (mn, k) begins, for offsets in bytes, from the start of the pattern.
    pub fn place(&self, mn: usize, k: usize, leading: usize, stride: usize) -> usize {
        let along = |mode: Mode, mut index: usize| {
            let mut bytes = 0;
            for &(size, step) in mode {
                let part = index.checked_rem(size).unwrap_or(index);
                index = index.checked_div(size).unwrap_or(0);
                bytes += part
                    * match step {
                        Of(elements) => 2 * elements,
                        Leading => leading,
                        Step => stride,
                    };
            }
            bytes
        };
        let plain = along(self.mn, mn) + along(self.k, k);
        // Swizzle<B, 4, 3>: of the address's bits, B from bit 7 on are XORed onto those from bit 4 on.
        let bits = [0, 1, 2, 3][self.swizzle as usize];
        plain ^ (((plain >> 7) & ((1 << bits) - 1)) << 4)
    }
}

/// Where an element of a fragment is: a register of a thread of the warpgroup (for A, of its eight elements).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    pub thread: usize,
    pub register: usize,
}

/// Figure "WGMMA .m64nNk16 register fragment layout for accumulator matrix D": (row, column, thread, register), its corners.
pub const D_FIGURE: [(usize, usize, usize, usize); 18] = [
    (0, 0, 0, 0),
    (0, 1, 0, 1),
    (0, 2, 1, 0),
    (0, 6, 3, 0),
    (0, 7, 3, 1),
    (0, 8, 0, 4),
    (0, 9, 0, 5),
    (0, 15, 3, 5),
    (1, 0, 4, 0),
    (7, 0, 28, 0),
    (7, 7, 31, 1),
    (8, 0, 0, 2),
    (8, 1, 0, 3),
    (15, 8, 28, 6),
    (15, 15, 31, 7),
    (16, 0, 32, 0),
    (48, 0, 96, 0),
    (63, 7, 127, 3),
];

pub fn holder_of_d(row: usize, column: usize) -> Held {
    let thread = row / 16 * 32 + row % 8 * 4 + column % 8 / 2;
    Held { thread, register: column / 8 * 4 + row % 16 / 8 * 2 + column % 2 }
}

/// Figure "WGMMA .m64nNk16 register fragment layout for matrix A": (row, k, thread, element), its corners.
pub const A_FIGURE: [(usize, usize, usize, usize); 14] = [
    (0, 0, 0, 0),
    (0, 1, 0, 1),
    (0, 2, 1, 0),
    (0, 7, 3, 1),
    (0, 8, 0, 4),
    (0, 9, 0, 5),
    (0, 15, 3, 5),
    (7, 0, 28, 0),
    (8, 0, 0, 2),
    (8, 8, 0, 6),
    (15, 15, 31, 7),
    (16, 0, 32, 0),
    (40, 5, 66, 3),
    (63, 15, 127, 7),
];

pub fn holder_of_a(row: usize, k: usize) -> Held {
    let thread = row / 16 * 32 + row % 8 * 4 + k % 8 / 2;
    Held { thread, register: k / 8 * 4 + row % 16 / 8 * 2 + k % 2 }
}
