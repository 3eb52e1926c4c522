//! Tensor maps for the simulated copy engine.

use std::ffi::{c_char, c_int, c_void};

use super::{ErrorText, Simulator};

/// How rows of a box are spread over the banks; the numbers of CUtensorMapSwizzle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Swizzle {
    None = 0,
    Bytes32 = 1,
    Bytes64 = 2,
    Bytes128 = 3,
}

impl Swizzle {
    pub const ALL: [Swizzle; 4] = [Swizzle::None, Swizzle::Bytes32, Swizzle::Bytes64, Swizzle::Bytes128];

    /// Bytes of its rows; of a row of 16-byte chunks where there is none.
    pub fn width(self) -> usize {
        16 << self as usize
    }

    /// As a matrix descriptor of wgmma says it.
    pub fn in_descriptor(self) -> u32 {
        [0, 3, 2, 1][self as usize]
    }
}

/// A matrix of bf16 in device memory, and the box that one copy moves: columns, rows.
pub struct Tensor {
    pub address: u64,
    pub rows: usize,
    pub columns: usize,
    pub of_box: [u32; 2],
    pub swizzle: Swizzle,
}

/// `sim_encode_tensor_map` of kernels/sim/abi_hopper.h.
pub(super) type Encode = unsafe extern "C" fn(
    *mut c_void,
    u32,
    u32,
    *mut c_void,
    *const u64,
    *const u64,
    *const u32,
    *const u32,
    u32,
    u32,
    u32,
    u32,
    *mut c_char,
    usize,
) -> c_int;

impl Simulator {
    /// The map of a matrix with `row_bytes` from row to row, as a kernel takes it; or why there is none.
    pub fn encode_tensor_map(&self, tensor: &Tensor, row_bytes: usize) -> Result<[u64; 16], String> {
        const BFLOAT16: u32 = 9;
        let mut map = [0; 16];
        let dims = [tensor.columns as u64, tensor.rows as u64];
        let (strides, steps) = ([row_bytes as u64], [1, 1]);
        let mut error = ErrorText::new();
        // SAFETY: the map has 128 bytes; the arrays have the lengths that rank 2 asks for; the error text has the length
        // it says.
        let failed = unsafe {
            (self.runtime.encode_tensor_map)(
                map.as_mut_ptr().cast(),
                BFLOAT16,
                2,
                tensor.address as *mut c_void,
                dims.as_ptr(),
                strides.as_ptr(),
                tensor.of_box.as_ptr(),
                steps.as_ptr(),
                0,
                tensor.swizzle as u32,
                0,
                0,
                error.start(),
                error.capacity(),
            )
        };
        if failed == 0 { Ok(map) } else { Err(error.text()) }
    }
}
