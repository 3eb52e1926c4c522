//! The stand-in for cuBLASLt, and that it is strict.

use std::ffi::{CStr, c_char, c_void};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use cudarc::cublaslt::{result, sys};
use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};

use crate::simulator::build;
use crate::skip::skipped;

/// The name under which cuBLASLt is looked for first.
const NAME: &str = "libcublasLt.so";

/// The library. Its state is the process's: one test at a time has it.
pub struct StandIn {
    library: &'static Library,
    _turn: MutexGuard<'static, ()>,
}

impl StandIn {
    /// As it is at first; `None`, and a line that says so, where there is no C++ compiler.
    pub fn take() -> Option<StandIn> {
        static TURN: Mutex<()> = Mutex::new(());
        static LIBRARY: OnceLock<Option<Library>> = OnceLock::new();
        // Another test's failure does no harm: what it changed is set anew.
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let library = LIBRARY.get_or_init(|| {
            let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cublaslt");
            let built = build::library(build::compiler()?, &sources, NAME, &[]).unwrap_or_else(|why| panic!("{why}"));
            // SAFETY: loading it runs no code but constructors of its own.
            Some(unsafe { Library::open(Some(built), RTLD_NOW | RTLD_GLOBAL) }.expect("the stand-in loads"))
        });
        let Some(library) = library else {
            skipped("no C++ compiler");
            return None;
        };
        let stand_in = StandIn { library, _turn: turn };
        stand_in.is(13_01_00);
        stand_in.offers(3);
        Some(stand_in)
    }

    /// Handles and descriptions that have not been given back.
    pub fn alive(&self) -> usize {
        // SAFETY: the type is that of stand_in.cpp.
        unsafe { self.library.get::<extern "C" fn() -> usize>(b"stand_in_alive").expect("stand_in_alive")() }
    }

    /// Why it refused the last call that it refused.
    pub fn refusal(&self) -> String {
        // SAFETY: the type is that of stand_in.cpp; the text ends in NUL and stays until the next refusal, which waits for its
        // test's turn.
        unsafe {
            let refusal = self.library.get::<extern "C" fn() -> *const c_char>(b"stand_in_refusal");
            CStr::from_ptr(refusal.expect("stand_in_refusal")()).to_string_lossy().into_owned()
        }
    }

    /// It has so many results for a product from now on.
    pub fn offers(&self, ways: i32) {
        // SAFETY: the type is that of stand_in.cpp.
        unsafe { self.library.get::<extern "C" fn(i32)>(b"stand_in_offers").expect("stand_in_offers")(ways) }
    }

    /// It is of this version from now on.
    pub fn is(&self, version: usize) {
        // SAFETY: the type is that of stand_in.cpp.
        unsafe { self.library.get::<extern "C" fn(usize)>(b"stand_in_is").expect("stand_in_is")(version) }
    }

    /// The stream that it was last given.
    pub fn stream(&self) -> usize {
        // SAFETY: the type is that of stand_in.cpp.
        let stream = unsafe { self.library.get::<extern "C" fn() -> *mut c_void>(b"stand_in_stream") };
        stream.expect("stand_in_stream")() as usize
    }
}

type Answer = Result<(), result::CublasError>;

/// Asks for a way, with one matrix of this type and distance from column to column as A, B, C and D.
fn ways_for(handle: sys::cublasLtHandle_t, of: sys::cudaDataType, ld: i64) -> Answer {
    let (layout, preference) = (result::create_matrix_layout(of, 16, 16, ld)?, result::create_matmul_pref()?);
    with_operation(|operation| {
        // SAFETY: all of them are alive until they are given back; a handle that is not the stand-in refuses.
        unsafe {
            let found =
                result::get_matmul_algo_heuristic(handle, operation, layout, layout, layout, layout, preference);
            result::destroy_matmul_pref(preference)?;
            result::destroy_matrix_layout(layout)?;
            found.map(|_| ())
        }
    })
}

fn with_operation(run: impl FnOnce(sys::cublasLtMatmulDesc_t) -> Answer) -> Answer {
    let compute = sys::cublasComputeType_t::CUBLAS_COMPUTE_32F;
    let operation = result::create_matmul_desc(compute, sys::cudaDataType::CUDA_R_32F)?;
    let answer = run(operation);
    // SAFETY: it was made above, and is given back once.
    unsafe { result::destroy_matmul_desc(operation) }?;
    answer
}

fn transposed_by_one_byte() -> Answer {
    let attribute = sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSA;
    // SAFETY: the operation is alive, and there is one byte.
    with_operation(|operation| unsafe {
        result::set_matmul_desc_attribute(operation, attribute, [1u8].as_ptr().cast(), 1)
    })
}

fn given_back_twice() -> Answer {
    let layout = result::create_matrix_layout(sys::cudaDataType::CUDA_R_16BF, 16, 16, 16)?;
    // SAFETY: it is alive the first time; the stand-in looks up what it is given and does not use it.
    unsafe { result::destroy_matrix_layout(layout).and_then(|()| result::destroy_matrix_layout(layout)) }
}

#[test]
fn the_stand_in_refuses_what_the_manual_does() {
    use sys::cudaDataType::{CUDA_R_16BF, CUDA_R_32F};
    let Some(stand_in) = StandIn::take() else { return };
    let handle = result::create_handle().expect("a handle");
    ways_for(handle, CUDA_R_16BF, 16).expect("what it allows");
    let refused = |answer: Answer, why: &str| {
        answer.expect_err(why);
        assert_eq!(stand_in.refusal(), why);
    };
    refused(ways_for(handle, CUDA_R_32F, 16), "types of the matrices");
    refused(ways_for(handle, CUDA_R_16BF, 15), "a layout of [16, 16] ld 15");
    refused(ways_for(std::ptr::null_mut(), CUDA_R_16BF, 16), "something that is not in use");
    refused(transposed_by_one_byte(), "attribute 3 has not 1 bytes");
    refused(given_back_twice(), "given back, but not in use");
    // SAFETY: it is alive, and given back once.
    unsafe { result::destroy_handle(handle) }.expect("it is in use");
    refused(ways_for(handle, CUDA_R_16BF, 16), "something that is not in use");
    assert_eq!(stand_in.alive(), 0);
}
