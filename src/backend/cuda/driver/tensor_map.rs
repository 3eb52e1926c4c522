//! Tensor maps: descriptions of matrices for the copy engine of Hopper and later.

use std::ffi::c_void;

use cudarc::driver::sys;

use super::super::device::{EncodedMap, TensorMap};

/// Bytes of a bf16.
const ELEMENT: u64 = 2;

/// The map as `cuTensorMapEncodeTiled` makes it: 128-byte swizzle, L2 asked for 256 bytes at a time, zeros from beyond the
/// matrix. An error names the sizes.
pub fn encode(map: &TensorMap) -> Result<EncodedMap, String> {
    let ([rows, cols], [box_rows, box_cols]) = (map.size.map(u64::from), map.of_box);
    let described = || format!("tensor map of [rows={rows}, cols={cols}] in boxes of [{box_rows}, {box_cols}]");
    let bytes = rows * cols * ELEMENT;
    if bytes > map.matrix.bytes() as u64 {
        return Err(format!("{}: wants {bytes} bytes, the matrix has {}", described(), map.matrix.bytes()));
    }
    let mut encoded = sys::CUtensorMap { opaque: [0; 16] };
    // Columns come first: they are the innermost dimension.
    let (size, of_box, steps) = ([cols, rows], [box_cols, box_rows], [1, 1]);
    let row_bytes = [cols * ELEMENT];
    // SAFETY: the arrays have as many entries as rank 2 asks for, and outlive the call, which keeps none of them. The
    // address is not read through here; what the map covers lies within `map.matrix`, as was just checked. Only a device
    // with wgmma gets maps, and drivers that know it have this function.
    let result = unsafe {
        sys::cuTensorMapEncodeTiled(
            &mut encoded,
            sys::CUtensorMapDataType_enum::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
            size.len() as u32,
            map.matrix.address() as *mut c_void,
            size.as_ptr(),
            row_bytes.as_ptr(),
            of_box.as_ptr(),
            steps.as_ptr(),
            sys::CUtensorMapInterleave_enum::CU_TENSOR_MAP_INTERLEAVE_NONE,
            sys::CUtensorMapSwizzle_enum::CU_TENSOR_MAP_SWIZZLE_128B,
            sys::CUtensorMapL2promotion_enum::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
            sys::CUtensorMapFloatOOBfill_enum::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        )
    };
    let made = result.result();
    made.map(|()| encoded.opaque).map_err(|error| format!("{} at {:#x}: {error}", described(), map.matrix.address()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cuda::device::Region;

    #[test]
    fn a_map_larger_than_its_matrix_is_refused() {
        let map = TensorMap { matrix: Region::new(256, 8190), size: [64, 64], of_box: [64, 64] };
        let error = encode(&map).unwrap_err();
        assert!(error.contains("rows=64, cols=64") && error.contains("8192") && error.contains("8190"), "{error}");
    }
}
