//! NVRTC, NVIDIA's run-time compiler: CUDA C++ to machine code. cudarc's safe layer gives PTX only and takes no headers,
//! so this goes through its raw bindings.

use std::ffi::{CStr, CString, c_char, c_int};
use std::ptr;

use cudarc::nvrtc::sys;

use super::{Arch, options};
use crate::backend::cuda::kernel::{HEADERS, ModuleSpec};
use crate::backend::{Error, Result};

/// What an error is about.
const WHAT: &str = "NVRTC, which compiles the kernels";

/// The library, loaded.
#[derive(Debug, Clone, Copy)]
pub struct Nvrtc {
    version: (c_int, c_int),
}

/// Machine code and what the compiler said about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compiled {
    /// For one architecture.
    pub cubin: Vec<u8>,
    /// Registers, spills, warnings.
    pub log: String,
}

impl Nvrtc {
    /// Looks for the library. Nothing of it is called before it is known to be there, since cudarc panics otherwise.
    pub fn load() -> Result<Nvrtc> {
        // SAFETY: it only tries to open libraries of known names.
        if !unsafe { sys::is_culib_present() } {
            return Err(missing("libnvrtc.so, .so.13 and .so.12 were looked for on the library path".into()));
        }
        let (mut major, mut minor) = (0, 0);
        // SAFETY: both pointers are to live integers.
        let status = unsafe { sys::nvrtcVersion(&mut major, &mut minor) };
        if status != sys::nvrtcResult::NVRTC_SUCCESS {
            return Err(missing(format!("it was found, but does not tell its version ({status:?})")));
        }
        if major < 12 {
            return Err(missing(format!("version {major}.{minor} was found, 12.0 or later is needed")));
        }
        Ok(Nvrtc { version: (major, minor) })
    }

    /// That a driver loads what it compiles: one of the same major version or a later one ("CUDA Compatibility", minor version
    /// compatibility). `driver` is as cuDriverGetVersion gives it, 1000 · major + 10 · minor.
    pub fn fits(self, driver: i32) -> Result<Nvrtc> {
        let (major, minor) = (driver / 1000, driver % 1000 / 10);
        if self.version.0 <= major {
            return Ok(self);
        }
        let advice = format!(
            "update the driver, or use an older compiler: `pip install nvidia-cuda-nvrtc-cu{major}`, the directory of its \
             libnvrtc.so.{major} on LD_LIBRARY_PATH and none of a later version"
        );
        let why = format!(
            "version {} was found, and the driver, for CUDA {major}.{minor}, does not load its code",
            self.version()
        );
        Err(Error::Gpu { what: WHAT.into(), why, advice })
    }

    /// As in `13.0`.
    pub fn version(&self) -> String {
        format!("{}.{}", self.version.0, self.version.1)
    }

    /// Compiles a family for these sizes.
    pub fn compile(&self, spec: &ModuleSpec, arch: Arch) -> Result<Compiled> {
        let fail = |why: String| Error::Module { module: spec.to_string(), arch: arch.to_string(), why };
        let program = Program::new(spec).map_err(fail)?;
        let compiled = program.compile(&options(spec, arch));
        let log = program.log();
        match compiled.and_then(|()| program.cubin()) {
            Ok(cubin) => Ok(Compiled { cubin, log }),
            Err(status) => Err(fail(format!("NVRTC {}: {status:?}\n{log}", self.version()))),
        }
    }
}

fn missing(why: String) -> Error {
    let advice = "install the CUDA toolkit, or `pip install nvidia-cuda-nvrtc` and put the directory of its libnvrtc.so on \
                  LD_LIBRARY_PATH; or compile the kernels elsewhere with `handbert kernels compile --out DIR` and set \
                  HANDBERT_KERNELS=DIR";
    Error::Gpu { what: WHAT.into(), why, advice: advice.into() }
}

/// A program being compiled; freed when dropped.
struct Program(sys::nvrtcProgram);

impl Program {
    fn new(spec: &ModuleSpec) -> std::result::Result<Program, String> {
        let text = |text: &str| CString::new(text).map_err(|_| "a NUL byte in the source".to_owned());
        let source = text(spec.family.source)?;
        let name = text(&format!("{}.cu", spec.family.name))?;
        let headers = HEADERS.iter().map(|(_, source)| text(source)).collect::<std::result::Result<Vec<_>, _>>()?;
        let names = HEADERS.iter().map(|(name, _)| text(name)).collect::<std::result::Result<Vec<_>, _>>()?;
        let (headers, names) = (pointers(&headers), pointers(&names));
        let mut program = ptr::null_mut();
        // SAFETY: all strings end in NUL and outlive the call, which copies them; both arrays have `headers.len()` entries.
        let status = unsafe {
            sys::nvrtcCreateProgram(
                &mut program,
                source.as_ptr(),
                name.as_ptr(),
                headers.len() as c_int,
                headers.as_ptr(),
                names.as_ptr(),
            )
        };
        if status == sys::nvrtcResult::NVRTC_SUCCESS { Ok(Program(program)) } else { Err(format!("{status:?}")) }
    }

    fn compile(&self, options: &[String]) -> std::result::Result<(), sys::nvrtcResult> {
        let options: Vec<CString> = options.iter().filter_map(|o| CString::new(o.as_str()).ok()).collect();
        let options = pointers(&options);
        // SAFETY: the program is alive, the options end in NUL and outlive the call.
        check(unsafe { sys::nvrtcCompileProgram(self.0, options.len() as c_int, options.as_ptr()) })
    }

    fn cubin(&self) -> std::result::Result<Vec<u8>, sys::nvrtcResult> {
        let mut len = 0;
        // SAFETY: the program is alive and compiled; the pointer is to a live integer.
        check(unsafe { sys::nvrtcGetCUBINSize(self.0, &mut len) })?;
        let mut cubin = vec![0u8; len];
        // SAFETY: the buffer has the length that was asked for just now.
        check(unsafe { sys::nvrtcGetCUBIN(self.0, cubin.as_mut_ptr().cast()) })?;
        Ok(cubin)
    }

    /// What the compiler said; empty where it cannot be had.
    fn log(&self) -> String {
        let mut len = 0;
        // SAFETY: the program is alive; the pointer is to a live integer.
        if check(unsafe { sys::nvrtcGetProgramLogSize(self.0, &mut len) }).is_err() || len == 0 {
            return String::new();
        }
        let mut log = vec![0u8; len];
        // SAFETY: the buffer has the length that was asked for just now, the closing NUL included.
        if check(unsafe { sys::nvrtcGetProgramLog(self.0, log.as_mut_ptr().cast()) }).is_err() {
            return String::new();
        }
        let log = CStr::from_bytes_until_nul(&log).map(CStr::to_string_lossy).unwrap_or_default();
        // How long it took is told too; without that, the same source gives the same file.
        log.trim().lines().filter(|line| !line.contains("Compile time")).collect::<Vec<_>>().join("\n")
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: the program is alive and not used again. A failure to free it can only be ignored.
        let _ = unsafe { sys::nvrtcDestroyProgram(&mut self.0) };
    }
}

fn pointers(strings: &[CString]) -> Vec<*const c_char> {
    strings.iter().map(|string| string.as_ptr()).collect()
}

fn check(status: sys::nvrtcResult) -> std::result::Result<(), sys::nvrtcResult> {
    if status == sys::nvrtcResult::NVRTC_SUCCESS { Ok(()) } else { Err(status) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_driver_loads_code_of_its_own_version_and_of_earlier_ones() {
        let fits = |version, driver| Nvrtc { version }.fits(driver).map(|nvrtc| nvrtc.version());
        assert_eq!(fits((12, 9), 12_040).unwrap(), "12.9");
        assert_eq!(fits((12, 0), 13_000).unwrap(), "12.0");
        let error = fits((13, 0), 12_080).unwrap_err().to_string();
        assert!(["13.0", "CUDA 12.8", "nvidia-cuda-nvrtc-cu12"].iter().all(|part| error.contains(part)), "{error}");
    }
}
