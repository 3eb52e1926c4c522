//! The simulated GPU as the CUDA backend's device: every launch of the backend runs its kernel on the CPU, checked.

#![allow(dead_code)] // Each test file uses its part.

#[path = "sim_device/library.rs"]
mod library;

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use handbert::backend::cuda::CudaBackend;
use handbert::backend::cuda::device::{
    Access, Arg, Block, Device, EncodedMap, Features, Gemm, GemmWay, Launch, Region, TensorMap,
};
use handbert::backend::cuda::kernel::{Kernel, ModuleSpec};
use handbert::backend::{Error, Result};

use crate::simulator::tensor_map::{Swizzle, Tensor};
use crate::simulator::{self, Module, Simulator};

/// Device memory of a simulated GPU; freed when dropped.
pub struct SimBuffer {
    simulator: Arc<Simulator>,
    address: u64,
    bytes: usize,
}

impl Drop for SimBuffer {
    fn drop(&mut self) {
        self.simulator.free(self.address);
    }
}

/// A simulated GPU.
pub struct SimDevice {
    simulator: Arc<Simulator>,
    /// As many as its features say; results must not depend on it.
    pub multiprocessors: u32,
    /// Decides the order of blocks and threads of the next launch: no two have the same.
    next_seed: AtomicU64,
    /// The library of products that tests say it has; none at first.
    pub library: Option<String>,
    /// What is being recorded.
    recording: Mutex<Option<Vec<Call>>>,
}

/// A call that can be made again.
#[derive(Clone)]
pub enum Call {
    Launch { module: Arc<Module>, kernel: &'static Kernel, grid: [u32; 3], block: Block, args: Vec<Arg> },
    Fill { to: Region, byte: u8 },
    Copy { from: Region, to: Region },
    Gemm { gemm: Gemm, way: GemmWay },
}

impl SimDevice {
    /// `None`, and a line that says so, where there is no C++ compiler.
    pub fn new(seed: u64) -> Option<SimDevice> {
        let simulator = Simulator::new(seed)?.into();
        // Sequences of seeds that begin a small number apart must not meet.
        let next_seed = AtomicU64::new(seed << 32);
        Some(SimDevice { simulator, multiprocessors: 3, next_seed, library: None, recording: Mutex::default() })
    }

    /// For one launch.
    pub fn draw_seed(&self) -> u64 {
        self.next_seed.fetch_add(1, Ordering::Relaxed)
    }
}

/// The CUDA backend on a simulated GPU; `None`, and a line that says so, where there is no C++ compiler.
pub fn backend() -> Option<CudaBackend<SimDevice>> {
    seeded(1)
}

/// The same, its blocks and threads in another order.
pub fn seeded(seed: u64) -> Option<CudaBackend<SimDevice>> {
    Some(CudaBackend::new(SimDevice::new(seed)?).expect("a backend"))
}

fn error(what: &str, why: String) -> Error {
    Error::Gpu { what: what.into(), why, advice: "mend the kernel or its launcher".into() }
}

impl SimDevice {
    fn recording(&self) -> MutexGuard<'_, Option<Vec<Call>>> {
        self.recording.lock().expect("nothing panics with the lock")
    }

    /// An error while calls are recorded: a GPU cannot record this one.
    fn refuse_in_recording(&self, call: &str) -> Result<()> {
        match *self.recording() {
            None => Ok(()),
            Some(_) => Err(error(call, "called while a step is recorded".into())),
        }
    }

    fn encode(&self, map: &TensorMap) -> std::result::Result<EncodedMap, String> {
        let ([rows, columns], [box_rows, box_columns]) = (map.size.map(|size| size as usize), map.of_box);
        let row_bytes = columns * size_of::<u16>();
        let (wanted, there) = (rows * row_bytes, map.matrix.bytes());
        if wanted > there {
            return Err(format!("a tensor map of [{rows}, {columns}] wants {wanted} bytes, the matrix has {there}"));
        }
        let of_box = [box_columns, box_rows];
        let tensor = Tensor { address: map.matrix.address(), rows, columns, of_box, swizzle: Swizzle::Bytes128 };
        self.simulator.encode_tensor_map(&tensor, row_bytes)
    }

    fn run(&self, module: &Module, launch: &Launch<'_>) -> Result<()> {
        let encode = |map: &TensorMap| self.encode(map);
        let packed: std::result::Result<Vec<_>, _> = launch.args.iter().map(|arg| arg.pack(encode)).collect();
        let packed = packed.map_err(|why| launch.error(why))?;
        let args: Vec<_> = packed.iter().map(|packed| packed.as_ptr().cast()).collect();
        let region = |(i, arg): (usize, &Arg)| {
            let (region, access) = arg.memory()?;
            let access = match access {
                Access::Read => simulator::Access::Read,
                Access::Write => simulator::Access::Write,
                Access::Update => simulator::Access::Update,
            };
            let (address, bytes) = (region.address(), region.bytes() as u64);
            Some(simulator::Region { address, bytes, access, name: module.parameter(launch.kernel.name, i).to_owned() })
        };
        let regions: Vec<simulator::Region> = launch.args.iter().enumerate().filter_map(region).collect();
        let described = simulator::Launch {
            kernel: launch.kernel.name,
            grid: launch.grid,
            block: [launch.block.threads, 1, 1],
            shared_bytes: launch.block.shared_bytes as u32,
            args: &args,
            regions: &regions,
        };
        self.simulator.in_order(self.draw_seed()).launch(module, &described).map_err(|why| launch.error(why))
    }
}

impl Device for SimDevice {
    type Buffer = SimBuffer;
    type Module = Arc<Module>;
    type Fetch = Vec<u8>;
    type Recording = Vec<Call>;

    fn describe(&self) -> String {
        "simulated GPU".into()
    }

    fn features(&self) -> Features {
        Features { wgmma: true, multiprocessors: self.multiprocessors, library: self.library.clone() }
    }

    fn alloc(&self, bytes: usize, what: &'static str) -> Result<SimBuffer> {
        self.refuse_in_recording("alloc")?;
        match self.simulator.alloc(bytes) {
            0 => Err(Error::GpuMemory { what, needed: bytes, free: 0 }),
            address => Ok(SimBuffer { simulator: self.simulator.clone(), address, bytes }),
        }
    }

    fn region(&self, buffer: &SimBuffer) -> Region {
        Region::new(buffer.address, buffer.bytes)
    }

    fn upload(&self, from: &[u8], to: Region) -> Result<()> {
        assert_eq!(from.len(), to.bytes(), "upload");
        self.refuse_in_recording("upload")?;
        self.simulator.write(to.address(), from).map_err(|why| error("upload", why))
    }

    fn download(&self, from: Region, to: &mut [u8]) -> Result<()> {
        assert_eq!(to.len(), from.bytes(), "download");
        self.refuse_in_recording("download")?;
        self.simulator.read(from.address(), to).map_err(|why| error("download", why))
    }

    fn fetch(&self, from: Region) -> Result<Vec<u8>> {
        let mut bytes = vec![0; from.bytes()];
        self.download(from, &mut bytes)?;
        Ok(bytes)
    }

    /// Never, so that whoever could go on without waiting does.
    fn is_ready(&self, _: &Vec<u8>) -> Result<bool> {
        Ok(false)
    }

    fn wait(&self, fetch: Vec<u8>) -> Result<Vec<u8>> {
        Ok(fetch)
    }

    fn record(&self, run: &mut dyn FnMut() -> Result<()>) -> Result<Vec<Call>> {
        *self.recording() = Some(Vec::new());
        let ran = run();
        let calls = self.recording().take().unwrap_or_default();
        ran.map(|()| calls)
    }

    fn replay(&self, recording: &Vec<Call>) -> Result<()> {
        recording.iter().try_for_each(|call| match call {
            Call::Launch { module, kernel, grid, block, args } => {
                self.run(module, &Launch { kernel, grid: *grid, block: *block, args })
            }
            Call::Fill { to, byte } => self.fill(*to, *byte),
            Call::Copy { from, to } => self.copy(*from, *to),
            Call::Gemm { gemm, way } => self.gemm(gemm, way),
        })
    }

    fn fill(&self, to: Region, byte: u8) -> Result<()> {
        if let Some(calls) = &mut *self.recording() {
            calls.push(Call::Fill { to, byte });
            return Ok(());
        }
        self.upload(&vec![byte; to.bytes()], to)
    }

    fn copy(&self, from: Region, to: Region) -> Result<()> {
        assert_eq!(from.bytes(), to.bytes(), "copy");
        if let Some(calls) = &mut *self.recording() {
            calls.push(Call::Copy { from, to });
            return Ok(());
        }
        let mut bytes = vec![0; from.bytes()];
        self.download(from, &mut bytes)?;
        self.upload(&bytes, to)
    }

    fn load(&self, spec: &ModuleSpec) -> Result<Arc<Module>> {
        self.refuse_in_recording("load")?;
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels").join(format!("{}.cu", spec.family.name));
        let defines: Vec<(&str, u32)> = spec.defines().collect();
        let fail = |why| Error::Module { module: spec.to_string(), arch: "the simulator".into(), why };
        self.simulator.load(&source, &defines).map(Arc::new).map_err(fail)
    }

    fn launch(&self, module: &Arc<Module>, launch: &Launch<'_>) -> Result<()> {
        let Launch { kernel, grid, block, args } = *launch;
        assert!(block.threads <= kernel.threads, "{}: threads beyond its table", kernel.name);
        assert!(block.shared_bytes <= kernel.shared_bytes as usize, "{}: shared memory beyond its table", kernel.name);
        if let Some(calls) = &mut *self.recording() {
            calls.push(Call::Launch { module: module.clone(), kernel, grid, block, args: args.to_vec() });
            return Ok(());
        }
        self.run(module, launch)
    }

    fn gemm_ways(&self, gemm: &Gemm) -> Result<Vec<GemmWay>> {
        self.refuse_in_recording("gemm_ways")?;
        gemm.check().map_err(|why| error(&gemm.to_string(), why))?;
        Ok(if self.library.is_some() { library::ways(gemm) } else { Vec::new() })
    }

    fn gemm(&self, gemm: &Gemm, way: &GemmWay) -> Result<()> {
        let wrong = |why: String| error(&gemm.to_string(), why);
        gemm.check().map_err(wrong)?;
        if self.library.is_none() || !library::ways(gemm).contains(way) {
            return Err(wrong("in a way that was not offered for it".into()));
        }
        if let Some(calls) = &mut *self.recording() {
            calls.push(Call::Gemm { gemm: *gemm, way: *way });
            return Ok(());
        }
        library::compute(&self.simulator, gemm).map_err(wrong)
    }
}
