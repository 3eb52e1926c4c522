//! Runs the .cu files of kernels/ on the CPU: kernels/sim, built with the C++ compiler at hand and loaded.
//!
//! ```ignore
//! let Some(simulator) = Simulator::new(1) else { return };   // says `skipped: …: no C++ compiler`
//! let module = simulator.load("kernels/gelu.cu", &[("WIDTH", 128)])?;
//! let x = simulator.alloc(bytes);
//! simulator.write(x, &data)?;
//! simulator.launch(&module, &Launch { kernel: "gelu_forward", args: &[…], regions: &[…], … })?;
//! simulator.read(y, &mut out)?;
//! ```
//!
//! Each access of a kernel is checked; kernels/sim/README.md says for what. Everything may be called from several
//! threads at once, as tests do.

#![allow(dead_code)] // Each test file uses its part.

#[path = "simulator/build.rs"]
pub mod build;
#[path = "simulator/source.rs"]
mod source;
#[path = "simulator/tensor_map.rs"]
pub mod tensor_map;

use std::collections::HashMap;
use std::ffi::{CStr, CString, c_char, c_void};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_LOCAL, RTLD_NOW};

use crate::skip::skipped;

/// What a launch does to a region.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Access {
    /// Reads; writing is an error.
    Read = 1,
    /// Writes before it reads anything of it: the region counts as never written when the launch begins.
    Write = 2,
    /// Both.
    Update = 3,
}

/// Memory that a launch may touch.
#[derive(Debug, Clone)]
pub struct Region {
    /// Where it begins, inside one allocation.
    pub address: u64,
    /// How long it is.
    pub bytes: u64,
    /// What may be done to it.
    pub access: Access,
    /// What errors call it.
    pub name: String,
}

/// A launch of a kernel.
#[derive(Debug, Clone, Copy)]
pub struct Launch<'a> {
    /// Name of the kernel in its module.
    pub kernel: &'a str,
    /// Blocks along x, y, z.
    pub grid: [u32; 3],
    /// Threads along x, y, z.
    pub block: [u32; 3],
    /// Dynamic shared memory of a block.
    pub shared_bytes: u32,
    /// Where each argument lies: as many bytes as the kernel's parameter has, and laid out like it.
    pub args: &'a [*const c_void],
    /// All the memory that the kernel may touch.
    pub regions: &'a [Region],
}

/// Kernels of one source file, compiled.
pub struct Module {
    kernels: HashMap<String, Kernel>,
    _library: Library,
}

struct Kernel {
    entry: unsafe extern "C" fn(*mut *mut c_void),
    parameters: Vec<Parameter>,
    /// As its `__launch_bounds__` say; 0 where it has none.
    most_threads: u32,
}

struct Parameter {
    name: String,
    bytes: usize,
}

impl Module {
    /// What the source calls a kernel's parameter.
    ///
    /// # Panics
    ///
    /// If there is no such kernel or parameter.
    pub fn parameter(&self, kernel: &str, index: usize) -> &str {
        &self.kernel(kernel).parameters[index].name
    }

    fn kernel(&self, name: &str) -> &Kernel {
        self.kernels.get(name).unwrap_or_else(|| panic!("no kernel {name}"))
    }
}

/// The simulated device. Memory is shared by all of them in a process.
#[derive(Clone)]
pub struct Simulator {
    runtime: Arc<Runtime>,
    seed: u64,
}

impl Simulator {
    /// With blocks and threads in the order that `seed` decides. None, and a line that says so, where there is no C++
    /// compiler ($CXX, or else g++).
    pub fn new(seed: u64) -> Option<Simulator> {
        static RUNTIME: OnceLock<Option<Result<Arc<Runtime>, String>>> = OnceLock::new();
        let runtime = RUNTIME.get_or_init(|| build::compiler().map(|compiler| Runtime::load(compiler).map(Arc::new)));
        let Some(runtime) = runtime else {
            skipped("no C++ compiler");
            return None;
        };
        let runtime = runtime.clone().unwrap_or_else(|why| panic!("the simulator does not build: {why}"));
        Some(Simulator { runtime, seed })
    }

    /// The same device, its launches in the order that another seed decides.
    pub fn in_order(&self, seed: u64) -> Simulator {
        Simulator { seed, ..self.clone() }
    }

    /// Whether loads and stores of structs are checked as such, their alignment too. clang takes them apart first.
    pub fn sees_whole_structs(&self) -> bool {
        !self.runtime.compiler.is_clang()
    }

    /// Memory that counts as never written; 256-byte aligned at least. 0 if there is not so much.
    pub fn alloc(&self, bytes: usize) -> u64 {
        // SAFETY: no obligations.
        unsafe { (self.runtime.alloc)(bytes as u64) as u64 }
    }

    /// Gives memory from [`Simulator::alloc`] back; no launch may be using it.
    pub fn free(&self, address: u64) {
        // SAFETY: addresses that were not allocated are ignored.
        unsafe { (self.runtime.free)(address as *mut c_void) }
    }

    /// Host to device. An error if that is not all inside one allocation.
    pub fn write(&self, address: u64, bytes: &[u8]) -> Result<(), String> {
        // SAFETY: no obligations; it looks the address up.
        if unsafe { (self.runtime.host_written)(address, bytes.len() as u64) } != 0 {
            return Err(format!("{} bytes at {address:#x} are not inside one allocation", bytes.len()));
        }
        // SAFETY: the bytes lie inside one allocation, as was just found, and nothing else refers to it.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), address as *mut u8, bytes.len()) }
        Ok(())
    }

    /// As if these bytes had never been written, for what is good for nothing. Errors say that `kernel` was to write them, as
    /// part of `region`. An error if that is not all inside one allocation.
    pub fn promise(&self, address: u64, bytes: usize, kernel: &str, region: &str) -> Result<(), String> {
        let (kernel, region) = (text(kernel), text(region));
        // SAFETY: it looks the address up, and copies the texts.
        let outside = unsafe { (self.runtime.host_promised)(address, bytes as u64, kernel.as_ptr(), region.as_ptr()) };
        if outside == 0 { Ok(()) } else { Err(format!("{bytes} bytes at {address:#x} are not inside one allocation")) }
    }

    /// Device to host. An error where a byte was never written: which, and which kernel was to write it.
    pub fn read(&self, address: u64, to: &mut [u8]) -> Result<(), String> {
        let mut first_bad = 0;
        let mut error = ErrorText::new();
        // SAFETY: it looks the address up; the error text has the length it says.
        let bad = unsafe {
            (self.runtime.check_written)(address, to.len() as u64, &mut first_bad, error.start(), error.capacity())
        };
        if bad != 0 {
            return Err(error.text());
        }
        // SAFETY: the bytes lie inside one allocation, as was just found.
        unsafe { std::ptr::copy_nonoverlapping(address as *const u8, to.as_mut_ptr(), to.len()) }
        Ok(())
    }

    /// Compiles a .cu file, unless that was done before, and loads it. `file` is relative to the repository.
    ///
    /// # Errors
    ///
    /// The compiler's messages.
    pub fn load(&self, file: impl AsRef<Path>, defines: &[(&str, u32)]) -> Result<Module, String> {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
        let (built, signatures) = self.compile(&file, defines)?;
        // SAFETY: what was just compiled runs no code when it is loaded but the compiler's own set-up.
        let library = unsafe { Library::open(Some(&built), RTLD_NOW | RTLD_LOCAL) }
            .map_err(|e| format!("{}: {e}", file.display()))?;
        let kernels = signatures.into_iter().map(|signature| {
            // SAFETY: the symbols are made by SIM_ENTRY and SIM_BOUNDS of kernels/sim/sim.cuh, with these types.
            let kernel = unsafe { Kernel::find(&library, &signature) };
            (signature.name, kernel)
        });
        Ok(Module { kernels: kernels.collect(), _library: library })
    }

    /// Compiles a .cu file, unless that was done before: the library that was made of it, and the kernels it has.
    ///
    /// # Errors
    ///
    /// The compiler's messages.
    pub fn compile(&self, file: &Path, defines: &[(&str, u32)]) -> Result<(PathBuf, Vec<source::Signature>), String> {
        let text = std::fs::read_to_string(file).map_err(|e| format!("{}: {e}", file.display()))?;
        let signatures = source::kernels(&text);
        Ok((build::module(self.runtime.compiler, file, defines, &signatures)?, signatures))
    }

    /// Runs a kernel to its end. An error is one line: kernel, block, thread and what it did; a second line may say where.
    ///
    /// # Panics
    ///
    /// If the module has no such kernel, or it takes another number of arguments.
    pub fn launch(&self, module: &Module, launch: &Launch<'_>) -> Result<(), String> {
        let kernel = module.kernel(launch.kernel);
        let mut held = kernel.hold(launch);
        let mut args: Vec<_> = held.iter_mut().map(|arg| arg.0.as_mut_ptr().cast::<c_void>()).collect();
        let names: Vec<_> = launch.regions.iter().map(|region| text(&region.name)).collect();
        let regions = launch.regions.iter().zip(&names).map(|(region, name)| RawRegion {
            address: region.address,
            bytes: region.bytes,
            access: region.access as u32,
            name: name.as_ptr(),
        });
        let regions: Vec<_> = regions.collect();
        let name = text(launch.kernel);
        let raw = RawLaunch {
            kernel: name.as_ptr(),
            entry: kernel.entry,
            grid: launch.grid,
            block: launch.block,
            most_threads: kernel.most_threads,
            shared_bytes: launch.shared_bytes,
            seed: self.seed,
            args: args.as_mut_ptr(),
            regions: regions.as_ptr(),
            region_count: regions.len() as u32,
        };
        let mut error = ErrorText::new();
        // SAFETY: the entry belongs to the kernel whose parameters the arguments were checked against, and the module
        // is loaded; regions and names outlive the call. What the kernel itself does is checked by the runtime.
        let failed = unsafe { (self.runtime.launch)(&raw, error.start(), error.capacity()) };
        if failed == 0 { Ok(()) } else { Err(error.text()) }
    }
}

fn text(name: &str) -> CString {
    CString::new(name).expect("names hold no zero bytes")
}

/// A kernel's argument, aligned as any parameter may want.
#[repr(align(64))]
struct Held([u8; Held::BYTES]);

impl Held {
    const BYTES: usize = 256;
}

impl Kernel {
    /// # Safety
    ///
    /// The library's symbols of this name must be those of `SIM_ENTRY` and `SIM_BOUNDS`.
    unsafe fn find(library: &Library, signature: &source::Signature) -> Kernel {
        let symbol = |prefix: &str| format!("{prefix}_{}", signature.name);
        // SAFETY: as the caller promises.
        let entry = unsafe { library.get(symbol("sim_entry").as_bytes()) }.expect("an entry for each kernel");
        // SAFETY: as the caller promises; the structure is constant and the library is loaded.
        let parameters: &RawParameters = unsafe {
            &**library.get::<*const RawParameters>(symbol("sim_parameters").as_bytes()).expect("sizes for each kernel")
        };
        assert_eq!(parameters.count as usize, signature.parameters.len(), "parameters of {}", signature.name);
        let named = signature.parameters.iter().zip(parameters.bytes);
        let parameters = named.map(|(name, bytes)| Parameter { name: name.clone(), bytes: bytes as usize });
        // SAFETY: as the caller promises; the number is constant and the library is loaded.
        let most_threads = signature.bounds.as_ref().map_or(0, |_| unsafe {
            **library.get::<*const u32>(symbol("sim_bounds").as_bytes()).expect("bounds where the source has them")
        });
        Kernel { entry: *entry, parameters: parameters.collect(), most_threads }
    }

    /// Copies of the arguments for the length of a launch.
    fn hold(&self, launch: &Launch<'_>) -> Vec<Held> {
        let name = launch.kernel;
        assert_eq!(launch.args.len(), self.parameters.len(), "{name}: arguments");
        let pairs = launch.args.iter().zip(&self.parameters);
        let held = pairs.map(|(arg, parameter)| {
            let mut held = Held([0; Held::BYTES]);
            assert!(parameter.bytes <= Held::BYTES, "{name}: {} is too large", parameter.name);
            // SAFETY: who launches promises that the argument has as many bytes as the parameter.
            unsafe { std::ptr::copy_nonoverlapping(arg.cast::<u8>(), held.0.as_mut_ptr(), parameter.bytes) }
            held
        });
        held.collect()
    }
}

/// Room for a message from the runtime.
struct ErrorText(Vec<u8>);

impl ErrorText {
    fn new() -> ErrorText {
        ErrorText(vec![0; 8192])
    }

    fn start(&mut self) -> *mut c_char {
        self.0.as_mut_ptr().cast()
    }

    fn capacity(&self) -> usize {
        self.0.len()
    }

    fn text(&self) -> String {
        CStr::from_bytes_until_nul(&self.0)
            .map_or_else(|_| "no message".into(), |text| text.to_string_lossy().into_owned())
    }
}

// ---- kernels/sim/abi.h ---------------------------------------------------------------------------------------------------

#[repr(C)]
struct RawRegion {
    address: u64,
    bytes: u64,
    access: u32,
    name: *const c_char,
}

#[repr(C)]
struct RawLaunch {
    kernel: *const c_char,
    entry: unsafe extern "C" fn(*mut *mut c_void),
    grid: [u32; 3],
    block: [u32; 3],
    most_threads: u32,
    shared_bytes: u32,
    seed: u64,
    args: *mut *mut c_void,
    regions: *const RawRegion,
    region_count: u32,
}

#[repr(C)]
struct RawParameters {
    count: u32,
    bytes: [u32; 31],
}

/// The runtime's functions, and the library that holds them.
struct Runtime {
    alloc: unsafe extern "C" fn(u64) -> *mut c_void,
    free: unsafe extern "C" fn(*mut c_void),
    host_written: unsafe extern "C" fn(u64, u64) -> i32,
    host_promised: unsafe extern "C" fn(u64, u64, *const c_char, *const c_char) -> i32,
    check_written: unsafe extern "C" fn(u64, u64, *mut u64, *mut c_char, usize) -> i32,
    launch: unsafe extern "C" fn(*const RawLaunch, *mut c_char, usize) -> i32,
    encode_tensor_map: tensor_map::Encode,
    compiler: &'static build::Compiler,
    _library: Library,
}

impl Runtime {
    /// Builds and loads it, for kernels to find its functions.
    fn load(compiler: &'static build::Compiler) -> Result<Runtime, String> {
        let built = build::runtime(compiler)?;
        // SAFETY: loading it only registers callbacks inside it.
        let library = unsafe { Library::open(Some(&built), RTLD_NOW | RTLD_GLOBAL) }.map_err(|e| e.to_string())?;
        // SAFETY: the types are those of kernels/sim/abi.h and abi_hopper.h.
        unsafe {
            Ok(Runtime {
                alloc: *library.get(b"sim_alloc").expect("sim_alloc"),
                free: *library.get(b"sim_free").expect("sim_free"),
                host_written: *library.get(b"sim_host_written").expect("sim_host_written"),
                host_promised: *library.get(b"sim_host_promised").expect("sim_host_promised"),
                check_written: *library.get(b"sim_check_written").expect("sim_check_written"),
                launch: *library.get(b"sim_launch").expect("sim_launch"),
                encode_tensor_map: *library.get(b"sim_encode_tensor_map").expect("sim_encode_tensor_map"),
                compiler,
                _library: library,
            })
        }
    }
}
