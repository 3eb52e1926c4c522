//! A real GPU, through the CUDA driver, loaded at run time by cudarc.
//!
//! cudarc's safe layer follows each allocation with events and copies launch arguments through a builder; here is one
//! stream and raw addresses, so its raw calls serve better. What it does keep for us is the loading of the library, the
//! primary context and the stream. tests/driver runs all of it against a stand-in for the driver.

mod pinned;
mod recording;
mod tensor_map;

use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::sync::Arc;

use cudarc::driver::sys::{self, CUdevice_attribute, CUfunction_attribute};
use cudarc::driver::{CudaContext, CudaStream, DriverError, result};

pub use pinned::Fetch;
use pinned::Pool;
pub use recording::Recording;

use super::compile::{Arch, Compiler};
use super::cublaslt::CublasLt;
use super::device::{Device, Features, Gemm, GemmWay, Launch, Region};
use super::kernel::ModuleSpec;
use crate::backend::{Error, Result};

/// The oldest driver API that every call here is in.
const OLDEST_DRIVER: i32 = 12_000;

/// Shared memory that a block may have without being asked for beforehand ("CUDA C++ Programming Guide", compute
/// capabilities).
const SHARED_WITHOUT_ASKING: u32 = 48 << 10;

/// A GPU and a stream on it.
#[derive(Debug)]
pub struct Gpu {
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
    compiler: Compiler,
    pinned: Pool,
    name: String,
    features: Features,
    library: Option<Library>,
    /// Bytes of shared memory that a block may ask for.
    shared_limit: u32,
}

/// cuBLASLt and what it works in.
#[derive(Debug)]
struct Library {
    cublaslt: CublasLt,
    workspace: GpuBuffer,
}

/// Device memory; given back to the stream's pool when dropped.
#[derive(Debug)]
pub struct GpuBuffer {
    stream: Arc<CudaStream>,
    address: u64,
    bytes: usize,
}

/// Loaded kernels of a family; unloaded when dropped.
#[derive(Debug)]
pub struct GpuModule {
    stream: Arc<CudaStream>,
    module: sys::CUmodule,
    functions: HashMap<&'static str, sys::CUfunction>,
}

// SAFETY: modules and functions are handles that the driver allows any thread to use.
unsafe impl Send for GpuModule {}
// SAFETY: as above; nothing here is changed after loading.
unsafe impl Sync for GpuModule {}

impl Gpu {
    /// The GPU of this number, as the driver counts them.
    pub fn new(ordinal: usize) -> Result<Gpu> {
        let driver = check_driver()?;
        let no_device = |error: DriverError| {
            let advice = "choose another with --device cuda:N, or --device cpu";
            gpu_error(&format!("GPU {ordinal}"), error, advice)
        };
        let context = CudaContext::new(ordinal).map_err(no_device)?;
        // SAFETY: everything runs on one stream, so there is no order that events would have to keep.
        unsafe { context.disable_event_tracking() };
        let stream = context.new_stream().map_err(no_device)?;
        let (major, minor) = context.compute_capability().map_err(no_device)?;
        let shared = CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN;
        let shared_limit = context.attribute(shared).map_err(no_device)? as u32;
        let name = context.name().map_err(no_device)?;
        let arch = Arch::of_capability(major, minor)?;
        let multiprocessors = CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT;
        let multiprocessors = context.attribute(multiprocessors).map_err(no_device)? as u32;
        let features = Features { wgmma: arch == Arch::Sm90a, multiprocessors, library: None };
        let compiler = Compiler::from_environment(arch, Some(driver));
        let pinned = Pool::new(&context);
        let mut gpu = Gpu { pinned, context, stream, compiler, name, features, library: None, shared_limit };
        gpu.find_library()?;
        Ok(gpu)
    }

    /// Starts cuBLASLt, where it is there.
    fn find_library(&mut self) -> Result<()> {
        self.bind()?;
        if let Some(cublaslt) = CublasLt::find() {
            self.features.library = Some(cublaslt.name());
            let workspace = self.alloc(workspace_bytes(self.compiler.arch()), "cuBLASLt to work in")?;
            self.library = Some(Library { cublaslt, workspace });
        }
        Ok(())
    }

    /// That there are kernels for it, or a compiler to make them.
    pub fn check_kernels(&self) -> Result<()> {
        self.compiler.check()
    }

    /// This thread's calls go to this GPU.
    fn bind(&self) -> Result<()> {
        self.context.bind_to_thread().map_err(|error| self.lost(error))
    }

    /// Bytes that may still be allocated. What was freed counts when the stream's pool has given it back, which it does when the
    /// stream is waited for.
    fn free(&self) -> std::result::Result<usize, DriverError> {
        self.stream.synchronize()?;
        result::mem_get_info().map(|(free, _)| free)
    }

    /// An error of a call that is not to blame where the device is lost: what `otherwise` makes of it where it is not.
    fn blamed(&self, error: DriverError, otherwise: impl FnOnce(String) -> Error) -> Error {
        if is_lost(error) { self.lost(error) } else { otherwise(error.to_string()) }
    }

    fn lost(&self, error: DriverError) -> Error {
        gpu_error(&self.name, error, "the run cannot go on; the last checkpoint is whole")
    }

    fn load_function(
        &self, module: sys::CUmodule, kernel: &super::kernel::Kernel,
    ) -> std::result::Result<sys::CUfunction, String> {
        if kernel.shared_bytes > self.shared_limit {
            let (wanted, limit) = (kernel.shared_bytes, self.shared_limit);
            return Err(format!("{} wants {wanted} bytes of shared memory, a block has at most {limit}", kernel.name));
        }
        let name = CString::new(kernel.name).map_err(|error| error.to_string())?;
        let told = |error: DriverError| format!("{}: {error}", kernel.name);
        // SAFETY: the module was loaded just now and is alive.
        let function = unsafe { result::module::get_function(module, name) }.map_err(told)?;
        if kernel.shared_bytes > SHARED_WITHOUT_ASKING {
            let attribute = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: the function is one of a module that is alive.
            unsafe { result::function::set_function_attribute(function, attribute, kernel.shared_bytes as i32) }
                .map_err(told)?;
        }
        Ok(function)
    }
}

/// That the driver is there and new enough; its version. Nothing else of it is called before, since cudarc panics where it is
/// not.
fn check_driver() -> Result<i32> {
    let missing =
        |why: String, advice: &str| Err(Error::Gpu { what: "the CUDA driver".into(), why, advice: advice.into() });
    // SAFETY: it only tries to open libraries of known names.
    if !unsafe { sys::is_culib_present() } {
        return missing(
            "libcuda.so and libcuda.so.1 were looked for on the library path".into(),
            "install NVIDIA's driver, or use --device cpu",
        );
    }
    let mut version = 0;
    // SAFETY: the pointer is to a live integer.
    let status = unsafe { sys::cuDriverGetVersion(&mut version) };
    if status != sys::CUresult::CUDA_SUCCESS || version < OLDEST_DRIVER {
        let dotted = |version: i32| format!("{}.{}", version / 1000, version % 1000 / 10);
        return missing(
            format!("it is for CUDA {}, {} is needed", dotted(version), dotted(OLDEST_DRIVER)),
            "update it, or use --device cpu",
        );
    }
    Ok(version)
}

/// Whether it is one of those after which nothing works any more: something that was started before caused it, and every call
/// from then on returns it ("CUresult").
fn is_lost(DriverError(status): DriverError) -> bool {
    use sys::CUresult::*;
    matches!(
        status,
        CUDA_ERROR_ILLEGAL_ADDRESS
            | CUDA_ERROR_LAUNCH_TIMEOUT
            | CUDA_ERROR_ASSERT
            | CUDA_ERROR_HARDWARE_STACK_ERROR
            | CUDA_ERROR_ILLEGAL_INSTRUCTION
            | CUDA_ERROR_MISALIGNED_ADDRESS
            | CUDA_ERROR_INVALID_ADDRESS_SPACE
            | CUDA_ERROR_INVALID_PC
            | CUDA_ERROR_LAUNCH_FAILED
            | CUDA_ERROR_ECC_UNCORRECTABLE
    )
}

fn gpu_error(what: &str, error: DriverError, advice: &str) -> Error {
    Error::Gpu { what: what.into(), why: error.to_string(), advice: advice.into() }
}

impl Device for Gpu {
    type Buffer = GpuBuffer;
    type Module = GpuModule;
    type Fetch = Fetch;
    type Recording = Recording;

    fn describe(&self) -> String {
        format!("{} ({})", self.name, self.compiler.arch())
    }

    fn features(&self) -> Features {
        self.features.clone()
    }

    fn free_bytes(&self) -> Result<Option<usize>> {
        self.free().map(Some).map_err(|error| self.lost(error))
    }

    fn alloc(&self, bytes: usize, what: &'static str) -> Result<GpuBuffer> {
        self.bind()?;
        // The driver refuses to allocate nothing.
        let asked = bytes.max(1);
        // SAFETY: the context is bound; the stream is alive. The memory is written before it is read, as Device asks.
        let address = unsafe { result::malloc_async(self.stream.cu_stream(), asked) };
        match address {
            Ok(address) => Ok(GpuBuffer { stream: self.stream.clone(), address, bytes }),
            Err(DriverError(sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY)) => {
                Err(Error::GpuMemory { what, needed: bytes, free: self.free().unwrap_or(0) })
            }
            Err(error) => Err(self.lost(error)),
        }
    }

    fn region(&self, buffer: &GpuBuffer) -> Region {
        Region::new(buffer.address, buffer.bytes)
    }

    fn upload(&self, from: &[u8], to: Region) -> Result<()> {
        assert_eq!(from.len(), to.bytes(), "upload");
        // The driver does not promise to copy nothing, here and below.
        if from.is_empty() {
            return Ok(());
        }
        self.bind()?;
        self.pinned.upload(&self.stream, from, to).map_err(|error| self.lost(error))
    }

    fn download(&self, from: Region, to: &mut [u8]) -> Result<()> {
        assert_eq!(to.len(), from.bytes(), "download");
        if to.is_empty() {
            return Ok(());
        }
        self.bind()?;
        // SAFETY: `from` lies within an allocation; the stream is waited for before `to` can be looked at.
        unsafe { result::memcpy_dtoh_async(to, from.address(), self.stream.cu_stream()) }.map_err(|e| self.lost(e))?;
        self.stream.synchronize().map_err(|error| self.lost(error))
    }

    fn fetch(&self, from: Region) -> Result<Fetch> {
        self.bind()?;
        self.pinned.fetch(&self.stream, from).map_err(|error| self.lost(error))
    }

    fn is_ready(&self, fetch: &Fetch) -> Result<bool> {
        fetch.is_ready().map_err(|error| self.lost(error))
    }

    fn wait(&self, fetch: Fetch) -> Result<Vec<u8>> {
        self.bind()?;
        self.pinned.wait(fetch).map_err(|error| self.lost(error))
    }

    fn record(&self, run: &mut dyn FnMut() -> Result<()>) -> Result<Recording> {
        self.bind()?;
        let capture = recording::Capture::begin(&self.stream).map_err(|error| self.lost(error))?;
        run()?;
        capture.end().map_err(|error| self.lost(error))
    }

    fn replay(&self, recording: &Recording) -> Result<()> {
        self.bind()?;
        recording.launch(&self.stream).map_err(|error| self.lost(error))
    }

    fn fill(&self, to: Region, byte: u8) -> Result<()> {
        if to.bytes() == 0 {
            return Ok(());
        }
        self.bind()?;
        // SAFETY: `to` lies within an allocation.
        unsafe { result::memset_d8_async(to.address(), byte, to.bytes(), self.stream.cu_stream()) }
            .map_err(|error| self.lost(error))
    }

    fn copy(&self, from: Region, to: Region) -> Result<()> {
        assert_eq!(from.bytes(), to.bytes(), "copy");
        if to.bytes() == 0 {
            return Ok(());
        }
        self.bind()?;
        // SAFETY: both lie within allocations, have as many bytes and, as Device asks, do not overlap.
        unsafe { result::memcpy_dtod_async(to.address(), from.address(), from.bytes(), self.stream.cu_stream()) }
            .map_err(|error| self.lost(error))
    }

    fn load(&self, spec: &ModuleSpec) -> Result<GpuModule> {
        let compiled = self.compiler.module(spec)?;
        self.bind()?;
        let fail =
            |why: String| Error::Module { module: spec.to_string(), arch: self.compiler.arch().to_string(), why };
        // SAFETY: the image is a whole ELF file, as NVRTC made it or as its checksum says, and outlives the call.
        let module = unsafe { result::module::load_data(compiled.cubin.as_ptr().cast()) };
        let module = module.map_err(|error| self.blamed(error, fail))?;
        // From here on dropping it unloads it.
        let mut loaded = GpuModule { stream: self.stream.clone(), module, functions: HashMap::new() };
        for kernel in spec.family.kernels {
            let function = self.load_function(module, kernel).map_err(fail)?;
            loaded.functions.insert(kernel.name, function);
        }
        Ok(loaded)
    }

    fn launch(&self, module: &GpuModule, launch: &Launch<'_>) -> Result<()> {
        self.bind()?;
        let Some(&function) = module.functions.get(launch.kernel.name) else {
            return Err(launch.error("it is not in this module".into()));
        };
        let packed: std::result::Result<Vec<_>, _> =
            launch.args.iter().map(|arg| arg.pack(tensor_map::encode)).collect();
        let packed = packed.map_err(|error| launch.error(error))?;
        let mut params: Vec<*mut c_void> = packed.iter().map(|packed| packed.as_ptr().cast_mut().cast()).collect();
        let ([x, y, z], threads) = (launch.grid, (launch.block.threads, 1, 1));
        let (shared, stream) = (launch.block.shared_bytes as u32, self.stream.cu_stream());
        // SAFETY: the function is alive with its module. The launcher's table gives the parameters' types; each entry of
        // `params` points to at least as many bytes, which the driver copies before it returns. Every pointer among them is a
        // Region, within an allocation that its owner keeps, and buffers are freed in stream order, after this launch.
        unsafe { result::launch_kernel(function, (x, y, z), threads, shared, stream, &mut params) }
            .map_err(|error| self.blamed(error, |why| launch.error(why)))
    }

    fn gemm_ways(&self, gemm: &Gemm) -> Result<Vec<GemmWay>> {
        self.bind()?;
        match &self.library {
            Some(Library { cublaslt, workspace }) => cublaslt.ways(gemm, workspace.bytes),
            None => Ok(Vec::new()),
        }
    }

    fn gemm(&self, gemm: &Gemm, way: &GemmWay) -> Result<()> {
        self.bind()?;
        let Some(Library { cublaslt, workspace }) = &self.library else {
            let (what, why) = (format!("{}: {gemm}", self.name), "cuBLASLt is not there".into());
            return Err(Error::Gpu { what, why, advice: "--matmul own does without it".into() });
        };
        // SAFETY: the library was found in this context, which the stream is of. The workspace is as long as gemm_ways says,
        // and everything runs on this one stream.
        unsafe { cublaslt.run(gemm, way, self.region(workspace), self.stream.cu_stream()) }
    }
}

/// At least what the cuBLAS manual recommends for such a GPU ("cublasSetWorkspace()").
fn workspace_bytes(arch: Arch) -> usize {
    if arch < Arch::Sm90a { 4 << 20 } else { 32 << 20 }
}

impl Drop for Gpu {
    fn drop(&mut self) {
        // cuBLASLt is given back to the context that the thread is bound to. A context that is lost has nothing to give back.
        let _ = self.context.bind_to_thread();
    }
}

impl Drop for GpuBuffer {
    fn drop(&mut self) {
        // SAFETY: the address came from malloc_async on this stream, and is freed once. Nothing can be done about a
        // failure: the context is lost, and its memory with it.
        let _ = unsafe { result::free_async(self.address, self.stream.cu_stream()) };
    }
}

impl Drop for GpuModule {
    fn drop(&mut self) {
        // Kernels of it may still run, and the driver does not promise to wait for them. Where that fails the context is lost,
        // and the module with it.
        if self.stream.synchronize().is_ok() {
            // SAFETY: the module is alive and not used again, neither by launches to come nor by those before.
            let _ = unsafe { result::module::unload(self.module) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_driver_there_is_a_message_that_says_what_to_do() {
        // SAFETY: it only tries to open libraries of known names.
        if unsafe { sys::is_culib_present() } {
            return crate::skip::skipped("this machine has a CUDA driver");
        }
        let error = Gpu::new(0).unwrap_err().to_string();
        assert!(error.contains("libcuda.so") && error.contains("--device cpu"), "{error}");
    }
}
