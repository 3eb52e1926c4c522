//! `--device`: what computes, chosen once for a whole command.

use std::str::FromStr;

use anyhow::{Context, Result};
use xxhash_rust::xxh3::xxh3_64;

use super::{Common, Outcome};
use crate::backend::cpu::Cpu;
use crate::backend::cuda::CudaBackend;
use crate::backend::cuda::choice::{Choices, Origin};
use crate::backend::cuda::compile::{cache_dir, sources_hash};
use crate::backend::cuda::device::{Device, Features};
use crate::backend::cuda::driver::Gpu;
use crate::backend::{self, Backend};

/// Where to compute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceArg {
    /// CUDA where it is found, else the CPU.
    Auto,
    /// The CPU.
    Cpu,
    /// The GPU of this number.
    Cuda(u32),
}

impl FromStr for DeviceArg {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "auto" => Ok(DeviceArg::Auto),
            "cpu" => Ok(DeviceArg::Cpu),
            "cuda" => Ok(DeviceArg::Cuda(0)),
            _ => s
                .strip_prefix("cuda:")
                .and_then(|n| n.parse().ok())
                .map(DeviceArg::Cuda)
                .ok_or_else(|| "expected auto, cpu, cuda or cuda:N".to_owned()),
        }
    }
}

/// How a GPU multiplies matrices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Matmul {
    /// Our kernels or cuBLASLt, for each product what is quickest here
    Auto,
    /// Our kernels alone
    Own,
    /// cuBLASLt alone, but for what it could not do as exactly
    Cublaslt,
    /// Our kernels for every GPU alone
    Mma,
    /// Our kernels for Hopper alone
    Wgmma,
}

impl Matmul {
    fn origins(self) -> &'static [Origin] {
        match self {
            Matmul::Auto => &[Origin::Mma, Origin::Wgmma, Origin::Library],
            Matmul::Own => &[Origin::Mma, Origin::Wgmma],
            Matmul::Cublaslt => &[Origin::Library],
            Matmul::Mma => &[Origin::Mma],
            Matmul::Wgmma => &[Origin::Wgmma],
        }
    }

    /// That the device has what is asked for.
    fn check(self, gpu: &Gpu) -> backend::Result<()> {
        let Features { wgmma, library, .. } = gpu.features();
        let missing = |what: &str, why: &str, advice: &str| {
            let what = format!("{what}, asked for by --matmul");
            Err(backend::Error::Gpu { what, why: why.into(), advice: advice.into() })
        };
        match self {
            Matmul::Cublaslt if library.is_none() => missing(
                "cuBLASLt",
                "libcublasLt.so, .so.13 and .so.12 were looked for on the library path",
                "install the CUDA toolkit, or `pip install nvidia-cublas`, or use --matmul own",
            ),
            Matmul::Wgmma if !wgmma => missing("wgmma", "only Hopper has it (H100, H200)", "use --matmul own"),
            _ => Ok(()),
        }
    }

    /// Choices as they are kept for a device, with its library and our kernels in their present versions.
    fn choices(self, gpu: &Gpu) -> Choices {
        let library = gpu.features().library.unwrap_or_default();
        let all = format!("{self:?}\0{}\0{library}\0{:016x}", gpu.describe(), sources_hash());
        let file = cache_dir().map(|dir| dir.join(format!("products-{:016x}.json", xxh3_64(all.as_bytes()))));
        Choices::quickest(self.origins(), file)
    }
}

/// What computes.
pub enum AnyBackend {
    /// The CPU.
    Cpu(Cpu),
    /// A GPU.
    Cuda(Box<CudaBackend<Gpu>>),
}

/// A command from where it needs something that computes: written once, for whatever that is.
pub trait Computation {
    /// Does it.
    fn on<B: Backend>(self, be: &B) -> Result<Outcome>;
}

impl AnyBackend {
    /// What `--device` asks for. With `auto`, the first GPU; where something that it takes is missing, the CPU, and a
    /// line of log that says what.
    pub fn choose(device: DeviceArg, matmul: Matmul) -> Result<AnyBackend> {
        match device {
            DeviceArg::Cpu => Ok(AnyBackend::Cpu(Cpu::new())),
            DeviceArg::Cuda(n) => cuda(n, matmul).with_context(|| format!("--device cuda:{n}")),
            DeviceArg::Auto => Ok(cuda(0, matmul).and_then(with_room).unwrap_or_else(|missing| {
                tracing::info!("computing on the CPU, as no GPU can be used: {missing}");
                AnyBackend::Cpu(Cpu::new())
            })),
        }
    }

    /// Does the rest of a command.
    pub fn run(&self, computation: impl Computation) -> Result<Outcome> {
        match self {
            AnyBackend::Cpu(be) => computation.on(be),
            AnyBackend::Cuda(be) => computation.on(&**be),
        }
    }
}

/// A GPU with everything that computing on it takes: driver, device, and kernels or their compiler.
fn cuda(ordinal: u32, matmul: Matmul) -> backend::Result<AnyBackend> {
    let gpu = Gpu::new(ordinal as usize)?;
    gpu.check_kernels()?;
    matmul.check(&gpu)?;
    let choices = matmul.choices(&gpu);
    Ok(AnyBackend::Cuda(Box::new(CudaBackend::new(gpu)?.choosing(choices))))
}

/// Free memory below which a GPU is left alone unless it is asked for: a model of base size takes more in training.
const LEAST_FREE: usize = 1 << 30;

/// A GPU that others have not filled.
fn with_room(found: AnyBackend) -> backend::Result<AnyBackend> {
    if let AnyBackend::Cuda(be) = &found
        && let Some(free) = be.device().free_bytes()?
        && free < LEAST_FREE
    {
        return Err(backend::Error::Gpu {
            what: be.device().describe(),
            why: format!("{} MiB of its memory are free, {} are the least", free >> 20, LEAST_FREE >> 20),
            advice: "end what else runs on it, or use --device cuda all the same".into(),
        });
    }
    Ok(found)
}

impl Common {
    /// What computes, with rayon's global pool at `--threads`: before anything is computed, and once.
    pub fn backend(&self) -> Result<AnyBackend> {
        self.start_threads()?;
        AnyBackend::choose(self.device, self.matmul)
    }
}
