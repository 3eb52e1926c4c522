//! cuBLASLt, NVIDIA's library of matrix products, loaded at run time. cudarc's safe layer has one type for all matrices and
//! takes the first way that the library offers; here gradients are f32 and ways are timed, so this goes through its raw
//! bindings.
//!
//! The library is column-major, everything here is row-major. The same bytes are the transpose of the matrix there, so it
//! is asked for Dᵀ = op(B)ᵀ op(A)ᵀ, with our B as its A. Its bias, one value for each row of its D, is one for each column of
//! ours.
//!
//! Types, by the table of cublasLtMatmul() in the cuBLAS manual: A and B bf16, sums and factors f32 (CUBLAS_COMPUTE_32F,
//! CUDA_R_32F), C and D both bf16 or both f32, the bias of D's type.

use std::ffi::c_void;
use std::ptr;

use cudarc::cublaslt::result::{self, CublasError};
use cudarc::cublaslt::sys::{
    self, cublasComputeType_t, cublasLtEpilogue_t, cublasLtMatmulAlgo_t, cublasLtMatmulDescAttributes_t,
    cublasLtMatmulHeuristicResult_t, cublasLtMatmulPreferenceAttributes_t, cublasLtReductionScheme_t, cublasStatus_t,
    cudaDataType,
};
use cudarc::driver;

use super::device::{Form, Gemm, GemmWay, Operand, Region, Sums};
use crate::backend::{Error, Result};

/// The oldest version that knows every call and attribute here, as the library counts.
const OLDEST: usize = 12_00_00;

/// Ways that are asked for.
const MOST_WAYS: usize = 8;

/// CUBLAS_OP_T, of an enumeration that cudarc has with cuBLAS alone.
const TRANSPOSED: i32 = 1;

/// What the library keeps for us; given back when dropped.
#[derive(Debug)]
struct Kept<T: Copy> {
    raw: T,
    free: unsafe fn(T) -> std::result::Result<(), CublasError>,
}

impl<T: Copy> Drop for Kept<T> {
    fn drop(&mut self) {
        // SAFETY: the library gave it to us, and it is given back once. That it does not take it back can only be ignored.
        let _ = unsafe { (self.free)(self.raw) };
    }
}

/// The library, started on a GPU.
#[derive(Debug)]
pub struct CublasLt {
    handle: Kept<sys::cublasLtHandle_t>,
    version: usize,
}

// SAFETY: the handle holds no state of a call; any thread may use it ("Thread Safety" of the cuBLAS manual).
unsafe impl Send for CublasLt {}
// SAFETY: as above.
unsafe impl Sync for CublasLt {}

impl CublasLt {
    /// The library on the GPU of this thread's context; `None`, and a line in the log, where it is not there, too old or
    /// does not start. Nothing of it is called before it is known to be there, since cudarc panics otherwise.
    pub fn find() -> Option<CublasLt> {
        let without = "matrix products are computed by our own kernels alone";
        // SAFETY: it only tries to open libraries of known names.
        if !unsafe { sys::is_culib_present() } {
            tracing::debug!("cuBLASLt: libcublasLt.so, .so.13 and .so.12 are not on the library path; {without}");
            return None;
        }
        // SAFETY: no obligations.
        let version = unsafe { sys::cublasLtGetVersion() };
        if version < OLDEST {
            tracing::debug!("cuBLASLt: version {version} was found, {OLDEST} or later is needed; {without}");
            return None;
        }
        match result::create_handle() {
            Ok(raw) => Some(CublasLt { handle: Kept { raw, free: result::destroy_handle }, version }),
            Err(error) => {
                tracing::warn!("{} does not start ({error}); {without}", name(version));
                None
            }
        }
    }

    /// As in `cuBLASLt 13.1.0`.
    pub fn name(&self) -> String {
        name(self.version)
    }

    /// In which ways it offers to compute a product with so many bytes to work in, the most promising first; none where it
    /// does not offer any. Partial sums stay f32 in all of them. They are good wherever matrices and bias lie.
    pub fn ways(&self, gemm: &Gemm, workspace_bytes: usize) -> Result<Vec<GemmWay>> {
        if gemm.is_empty() {
            return Ok(Vec::new());
        }
        // What is offered depends on how the bias is aligned ("CUBLASLT_MATMUL_DESC_BIAS_POINTER"), and that of another layer
        // may lie worse.
        let mut asked = *gemm;
        if let Sums::WriteWithBias(bias) = &mut asked.sums {
            *bias = Region::new(Gemm::ALIGNMENT as u64, bias.bytes());
        }
        let described = self.describe(&asked)?;
        let preference = preference(workspace_bytes as u64).map_err(|error| self.failed(gemm, error))?;
        let mut found = [EMPTY; MOST_WAYS];
        let mut count = 0;
        // SAFETY: handle, descriptions and preference are alive; the array has as many entries as it is said to have, and
        // the counter is a live integer.
        let status = unsafe {
            sys::cublasLtMatmulAlgoGetHeuristic(
                self.handle.raw,
                described.operation.raw,
                described.a.raw,
                described.b.raw,
                described.d.raw,
                described.d.raw,
                preference.raw,
                MOST_WAYS as i32,
                found.as_mut_ptr(),
                &mut count,
            )
        };
        match status.result() {
            Err(CublasError(cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED)) => Ok(Vec::new()),
            Err(error) => Err(self.failed(gemm, error)),
            Ok(()) => {
                let good = |way: &&cublasLtMatmulHeuristicResult_t| way.state == cublasStatus_t::CUBLAS_STATUS_SUCCESS;
                let count = usize::try_from(count).unwrap_or(0).min(MOST_WAYS);
                Ok(found[..count].iter().filter(good).map(|way| GemmWay(way.algo.data)).collect())
            }
        }
    }

    /// Starts a product on a stream, in one of its [`CublasLt::ways`]. It allocates nothing and waits for nothing, so that a
    /// stream that records may record it.
    ///
    /// # Safety
    ///
    /// The stream is alive and of the context that the library was found in. `workspace` is 256-byte aligned, has at least
    /// as many bytes as `ways` was told, and nothing but calls on this stream uses it.
    pub unsafe fn run(
        &self, gemm: &Gemm, way: &GemmWay, workspace: Region, stream: driver::sys::CUstream,
    ) -> Result<()> {
        if gemm.is_empty() {
            return Ok(());
        }
        let described = self.describe(gemm)?;
        let (one, beta) = (1.0f32, if adds(gemm.sums) { 1.0f32 } else { 0.0 });
        let scalar = |value: &f32| ptr::from_ref(value).cast::<c_void>();
        let [a, b, d] = [gemm.a, gemm.b, gemm.d].map(|at| at.region.address() as *mut c_void);
        // SAFETY: handle and descriptions are alive, and the library reads factors, descriptions and way before it returns.
        // Every matrix lies within its region, as `describe` found, and regions within allocations that their owner keeps.
        // C is D, with the same layout, which the library allows. Workspace and stream are as the caller promises.
        let computed = unsafe {
            result::matmul(
                self.handle.raw,
                described.operation.raw,
                scalar(&one),
                scalar(&beta),
                b,
                described.a.raw,
                a,
                described.b.raw,
                d,
                described.d.raw,
                d,
                described.d.raw,
                &cublasLtMatmulAlgo_t { data: way.0 },
                workspace.address() as *mut c_void,
                workspace.bytes(),
                stream.cast(),
            )
        };
        computed.map_err(|error| self.failed(gemm, error))
    }

    fn describe(&self, gemm: &Gemm) -> Result<Described> {
        gemm.check().map_err(|why| self.error(gemm, why))?;
        Described::new(gemm).map_err(|error| self.failed(gemm, error))
    }

    fn failed(&self, gemm: &Gemm, error: CublasError) -> Error {
        self.error(gemm, error.to_string())
    }

    fn error(&self, gemm: &Gemm, why: String) -> Error {
        let advice = "--matmul own does without the library".into();
        Error::Gpu { what: format!("{}: {gemm}", self.name()), why, advice }
    }
}

/// Major, minor and patch are two digits each, from the right.
fn name(version: usize) -> String {
    format!("cuBLASLt {}.{}.{}", version / 10_000, version / 100 % 100, version % 100)
}

fn adds(sums: Sums) -> bool {
    matches!(sums, Sums::Add | Sums::AddToF32)
}

/// A result that says nothing yet.
const EMPTY: cublasLtMatmulHeuristicResult_t = cublasLtMatmulHeuristicResult_t {
    algo: cublasLtMatmulAlgo_t { data: [0; 8] },
    workspaceSize: 0,
    state: cublasStatus_t::CUBLAS_STATUS_NOT_INITIALIZED,
    wavesCount: 0.0,
    reserved: [0; 4],
};

/// A product in the library's terms: its A is our B, its B our A, its C and D our D.
struct Described {
    operation: Kept<sys::cublasLtMatmulDesc_t>,
    a: Kept<sys::cublasLtMatrixLayout_t>,
    b: Kept<sys::cublasLtMatrixLayout_t>,
    d: Kept<sys::cublasLtMatrixLayout_t>,
}

impl Described {
    fn new(gemm: &Gemm) -> std::result::Result<Described, CublasError> {
        use cublasLtMatmulDescAttributes_t as Attribute;
        let raw = result::create_matmul_desc(cublasComputeType_t::CUBLAS_COMPUTE_32F, cudaDataType::CUDA_R_32F)?;
        let operation = Kept { raw, free: result::destroy_matmul_desc };
        // The library wants its A to be [cols, depth] and its B [depth, rows]. Seen by columns, our B is [depth, cols] in
        // form Nt, and our A [rows, depth] in form Tn.
        if gemm.form == Form::Nt {
            set(&operation, Attribute::CUBLASLT_MATMUL_DESC_TRANSA, &TRANSPOSED)?;
        }
        if gemm.form == Form::Tn {
            set(&operation, Attribute::CUBLASLT_MATMUL_DESC_TRANSB, &TRANSPOSED)?;
        }
        if let Sums::WriteWithBias(bias) = gemm.sums {
            let epilogue = cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS as u32;
            set(&operation, Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue)?;
            // Where its type is not set, it is D's (CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE of cublasLt.h).
            set(&operation, Attribute::CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias.address())?;
        }
        let [a, b, d] = gemm.operands();
        Ok(Described { operation, a: layout(&b)?, b: layout(&a)?, d: layout(&d)? })
    }
}

/// Sets an attribute of an operation. T is the type that the manual gives for it.
fn set<T: bytemuck::NoUninit>(
    operation: &Kept<sys::cublasLtMatmulDesc_t>, attribute: cublasLtMatmulDescAttributes_t, value: &T,
) -> std::result::Result<(), CublasError> {
    // SAFETY: the operation is alive, the value has the length that goes with it and outlives the call.
    unsafe { result::set_matmul_desc_attribute(operation.raw, attribute, ptr::from_ref(value).cast(), size_of::<T>()) }
}

/// A row-major matrix: its rows are the columns of a column-major one.
fn layout(operand: &Operand) -> std::result::Result<Kept<sys::cublasLtMatrixLayout_t>, CublasError> {
    let of = if operand.element == size_of::<f32>() { cudaDataType::CUDA_R_32F } else { cudaDataType::CUDA_R_16BF };
    let [rows, cols] = operand.size;
    let raw = result::create_matrix_layout(of, cols as u64, rows as u64, operand.at.lead as i64)?;
    Ok(Kept { raw, free: result::destroy_matrix_layout })
}

/// What ways are good for us.
fn preference(workspace_bytes: u64) -> std::result::Result<Kept<sys::cublasLtMatmulPreference_t>, CublasError> {
    use cublasLtMatmulPreferenceAttributes_t as Attribute;
    let preference = Kept { raw: result::create_matmul_pref()?, free: result::destroy_matmul_pref };
    let set = |attribute, value: &[u8]| {
        // SAFETY: the preference is alive, the value has the length that it is said to have and outlives the call.
        unsafe { result::set_matmul_pref_attribute(preference.raw, attribute, value.as_ptr().cast(), value.len()) }
    };
    set(Attribute::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace_bytes.to_ne_bytes())?;
    // A sum may be split, but its parts are not to be rounded to bf16.
    let f32_parts = cublasLtReductionScheme_t::CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE as u32;
    set(Attribute::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &f32_parts.to_ne_bytes())?;
    // Not said, it is taken to be 256.
    for matrix in [
        Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
        Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
        Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
        Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES,
    ] {
        set(matrix, &(Gemm::ALIGNMENT as u32).to_ne_bytes())?;
    }
    Ok(preference)
}

#[cfg(test)]
mod tests {
    use super::super::device::Rectangle;
    use super::*;
    use crate::skip::skipped;

    #[test]
    fn the_library_takes_our_descriptions() {
        // SAFETY: it only tries to open libraries of known names.
        if !unsafe { sys::is_culib_present() } {
            return skipped("this machine has no cuBLASLt");
        }
        // Nothing is computed: it takes no GPU, and there is no memory at these addresses.
        let at = |address| Rectangle { region: Region::new(address, 1 << 16), lead: 64 };
        let (a, b, d, bias) = (at(1 << 16), at(2 << 16), at(3 << 16), Region::new(4 << 16, 128));
        for form in [Form::Nt, Form::Nn, Form::Tn] {
            for sums in [Sums::Write, Sums::WriteWithBias(bias), Sums::Add, Sums::AddToF32] {
                let gemm = Gemm { form, rows: 64, cols: 64, depth: 64, a, b, d, sums };
                gemm.check().unwrap();
                Described::new(&gemm).unwrap();
            }
        }
        preference(32 << 20).unwrap();
    }

    #[test]
    fn without_the_library_nothing_is_called() {
        // SAFETY: it only tries to open libraries of known names.
        if unsafe { sys::is_culib_present() } {
            return skipped("this machine has cuBLASLt");
        }
        assert!(CublasLt::find().is_none());
    }

    #[test]
    fn versions_are_named_as_the_manual_numbers_them() {
        assert_eq!([name(131_000), name(120_304)], ["cuBLASLt 13.10.0", "cuBLASLt 12.3.4"]);
    }
}
