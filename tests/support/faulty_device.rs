//! A simulated GPU that fails at a chosen call, or does something after each launch.

use std::sync::atomic::{AtomicI64, Ordering};

use handbert::backend::cuda::device::{Device, Features, Gemm, GemmWay, Launch, Region};
use handbert::backend::cuda::kernel::ModuleSpec;
use handbert::backend::{Error, Result};

use crate::sim_device::SimDevice;

/// Which call fails, counted from zero.
#[derive(Debug, Clone, Copy)]
pub enum Fault {
    /// This allocation finds no memory.
    NoMemory(i64),
    /// This launch is refused.
    NoLaunch(i64),
    /// This copy to the host, or fill, finds the device gone, and so does every call after it.
    Lost(i64),
}

/// What is done after each launch.
pub type AfterLaunch = Box<dyn Fn(&SimDevice, &Launch<'_>) -> Result<()> + Send + Sync>;

/// [`SimDevice`], but for one fault.
pub struct FaultyDevice {
    inner: SimDevice,
    fault: Fault,
    left: AtomicI64,
    after_launch: AfterLaunch,
}

impl FaultyDevice {
    /// `None` where there is no simulated GPU.
    pub fn new(fault: Fault, after_launch: AfterLaunch) -> Option<FaultyDevice> {
        let (Fault::NoMemory(number) | Fault::NoLaunch(number) | Fault::Lost(number)) = fault;
        Some(FaultyDevice { inner: SimDevice::new(1)?, fault, left: AtomicI64::new(number), after_launch })
    }

    /// Counts a call that may be the one.
    fn is_now(&self) -> bool {
        self.left.fetch_sub(1, Ordering::Relaxed) == 0
    }

    fn check_lost(&self, counted: bool) -> Result<()> {
        let Fault::Lost(_) = self.fault else { return Ok(()) };
        let left = if counted { self.left.fetch_sub(1, Ordering::Relaxed) } else { self.left.load(Ordering::Relaxed) };
        if left > 0 || (left == 0 && !counted) {
            return Ok(());
        }
        let advice = "the run cannot go on; the last checkpoint is whole".into();
        Err(Error::Gpu { what: "simulated GPU".into(), why: "the device is lost".into(), advice })
    }
}

impl Device for FaultyDevice {
    type Buffer = <SimDevice as Device>::Buffer;
    type Module = <SimDevice as Device>::Module;
    type Fetch = <SimDevice as Device>::Fetch;
    type Recording = <SimDevice as Device>::Recording;

    fn describe(&self) -> String {
        self.inner.describe()
    }

    fn features(&self) -> Features {
        self.inner.features()
    }

    fn alloc(&self, bytes: usize, what: &'static str) -> Result<Self::Buffer> {
        self.check_lost(false)?;
        if matches!(self.fault, Fault::NoMemory(_)) && self.is_now() {
            return Err(Error::GpuMemory { what, needed: bytes, free: 0 });
        }
        self.inner.alloc(bytes, what)
    }

    fn region(&self, buffer: &Self::Buffer) -> Region {
        self.inner.region(buffer)
    }

    fn upload(&self, from: &[u8], to: Region) -> Result<()> {
        self.check_lost(false)?;
        self.inner.upload(from, to)
    }

    fn download(&self, from: Region, to: &mut [u8]) -> Result<()> {
        self.check_lost(true)?;
        self.inner.download(from, to)
    }

    fn fetch(&self, from: Region) -> Result<Self::Fetch> {
        self.check_lost(true)?;
        self.inner.fetch(from)
    }

    fn is_ready(&self, fetch: &Self::Fetch) -> Result<bool> {
        self.check_lost(false)?;
        self.inner.is_ready(fetch)
    }

    fn wait(&self, fetch: Self::Fetch) -> Result<Vec<u8>> {
        self.check_lost(false)?;
        self.inner.wait(fetch)
    }

    fn record(&self, run: &mut dyn FnMut() -> Result<()>) -> Result<Self::Recording> {
        self.check_lost(false)?;
        self.inner.record(run)
    }

    fn replay(&self, recording: &Self::Recording) -> Result<()> {
        self.check_lost(false)?;
        self.inner.replay(recording)
    }

    fn fill(&self, to: Region, byte: u8) -> Result<()> {
        self.check_lost(true)?;
        self.inner.fill(to, byte)
    }

    fn copy(&self, from: Region, to: Region) -> Result<()> {
        self.check_lost(false)?;
        self.inner.copy(from, to)
    }

    fn load(&self, spec: &ModuleSpec) -> Result<Self::Module> {
        self.check_lost(false)?;
        self.inner.load(spec)
    }

    fn launch(&self, module: &Self::Module, launch: &Launch<'_>) -> Result<()> {
        self.check_lost(false)?;
        if matches!(self.fault, Fault::NoLaunch(_)) && self.is_now() {
            return Err(launch.error("a launch that fails".into()));
        }
        self.inner.launch(module, launch)?;
        (self.after_launch)(&self.inner, launch)
    }

    fn gemm_ways(&self, gemm: &Gemm) -> Result<Vec<GemmWay>> {
        self.check_lost(false)?;
        self.inner.gemm_ways(gemm)
    }

    fn gemm(&self, gemm: &Gemm, way: &GemmWay) -> Result<()> {
        self.check_lost(false)?;
        self.inner.gemm(gemm, way)
    }
}
