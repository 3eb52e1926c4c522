//! A simulated GPU that counts the calls that can fail, fails at a chosen one, or does something after each launch.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};

use handbert::backend::cuda::batch::Head;
use handbert::backend::cuda::device::{Device, Features, Gemm, GemmWay, Launch, Region};
use handbert::backend::cuda::kernel::ModuleSpec;
use handbert::backend::{Error, Result};

use crate::sim_device::SimDevice;

/// A call that can fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// Of memory.
    Allocation,
    /// Kernels compiled and loaded.
    Load,
    /// A launch that is made.
    Launch,
    /// A launch, fill or copy that is written down.
    Recorded,
    /// What was written down is made.
    Replay,
    /// The upload of what kernels go by in a pass with gradients.
    Pass,
    /// Any other way to or from the device, or on it.
    Transfer,
}

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// The allocation finds no memory.
    NoMemory,
    /// The launch, or the replay, is refused.
    NoLaunch,
    /// The device is gone, for this call and all after it.
    Lost,
    /// The scale of the loss is no number, from this pass on for so many passes.
    NoNumber {
        /// How many.
        passes: usize,
    },
}

/// When what goes wrong.
#[derive(Debug, Clone, Copy)]
pub struct Fault {
    /// What.
    pub trouble: Trouble,
    /// The number of the call, from zero.
    pub at: usize,
}

/// What is done after each launch.
pub type AfterLaunch = Box<dyn Fn(&SimDevice, &Launch<'_>) -> Result<()> + Send + Sync>;

/// [`SimDevice`], but for one fault.
pub struct FaultyDevice {
    inner: SimDevice,
    fault: Option<Fault>,
    calls: Mutex<Vec<Call>>,
    records: AtomicBool,
    /// Where the backend keeps what kernels go by.
    head: AtomicU64,
    after_launch: AfterLaunch,
}

impl FaultyDevice {
    /// `None` where there is no simulated GPU.
    pub fn new(fault: Option<Fault>, after_launch: AfterLaunch) -> Option<FaultyDevice> {
        let (calls, records, head) = (Mutex::default(), AtomicBool::new(false), AtomicU64::new(0));
        Some(FaultyDevice { inner: SimDevice::new(1)?, fault, calls, records, head, after_launch })
    }

    /// All calls so far, in order.
    pub fn calls(&self) -> MutexGuard<'_, Vec<Call>> {
        self.calls.lock().expect("nothing panics with the lock")
    }

    /// Notes a call and says what goes wrong with it, but for a device that is lost: that is an error of every call.
    fn note(&self, call: Call) -> Result<Option<Trouble>> {
        let mut calls = self.calls();
        let number = calls.len();
        calls.push(call);
        match self.fault {
            Some(Fault { trouble: Trouble::Lost, at }) if number >= at => Err(refused("the device is lost")),
            Some(Fault { trouble: Trouble::NoNumber { passes }, at }) if number >= at => {
                let begun = calls[at..].iter().filter(|&&call| call == Call::Pass).count();
                Ok((call == Call::Pass && begun <= passes).then_some(Trouble::NoNumber { passes }))
            }
            Some(Fault { trouble, at }) if number == at => Ok(Some(trouble)),
            _ => Ok(None),
        }
    }

    fn launch_or_recorded(&self) -> Call {
        if self.records.load(Ordering::Relaxed) { Call::Recorded } else { Call::Launch }
    }

    /// Evaluations have a scale of zero.
    fn upload_of(&self, from: &[u8], to: Region) -> Call {
        let at = Head::LossScale.offset();
        // A single number of it may be uploaded too.
        let scale = || from.get(at..at + 4).is_some_and(|scale| scale.iter().any(|&byte| byte != 0));
        if to.address() == self.head.load(Ordering::Relaxed) && scale() { Call::Pass } else { Call::Transfer }
    }

    fn on_device(&self) -> Call {
        if self.records.load(Ordering::Relaxed) { Call::Recorded } else { Call::Transfer }
    }
}

fn refused(why: &str) -> Error {
    let advice = "the run cannot go on; the last checkpoint is whole".into();
    Error::Gpu { what: "simulated GPU".into(), why: why.into(), advice }
}

/// The bytes with a scale of the loss that is no number.
fn without_number(head: &[u8]) -> Vec<u8> {
    let mut head = head.to_vec();
    head[Head::LossScale.offset()..][..4].copy_from_slice(&f32::NAN.to_le_bytes());
    head
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
        match self.note(Call::Allocation)? {
            Some(Trouble::NoMemory) => Err(Error::GpuMemory { what, needed: bytes, free: 0 }),
            _ => {
                let buffer = self.inner.alloc(bytes, what)?;
                // The backend's first.
                let address = self.inner.region(&buffer).address();
                let _ = self.head.compare_exchange(0, address, Ordering::Relaxed, Ordering::Relaxed);
                Ok(buffer)
            }
        }
    }

    fn region(&self, buffer: &Self::Buffer) -> Region {
        self.inner.region(buffer)
    }

    fn upload(&self, from: &[u8], to: Region) -> Result<()> {
        match self.note(self.upload_of(from, to))? {
            Some(Trouble::NoNumber { .. }) => self.inner.upload(&without_number(from), to),
            _ => self.inner.upload(from, to),
        }
    }

    fn download(&self, from: Region, to: &mut [u8]) -> Result<()> {
        self.note(Call::Transfer)?;
        self.inner.download(from, to)
    }

    fn fetch(&self, from: Region) -> Result<Self::Fetch> {
        self.note(Call::Transfer)?;
        self.inner.fetch(from)
    }

    fn is_ready(&self, fetch: &Self::Fetch) -> Result<bool> {
        self.note(Call::Transfer)?;
        self.inner.is_ready(fetch)
    }

    fn wait(&self, fetch: Self::Fetch) -> Result<Vec<u8>> {
        self.note(Call::Transfer)?;
        self.inner.wait(fetch)
    }

    fn record(&self, run: &mut dyn FnMut() -> Result<()>) -> Result<Self::Recording> {
        self.records.store(true, Ordering::Relaxed);
        let recorded = self.inner.record(run);
        self.records.store(false, Ordering::Relaxed);
        recorded
    }

    fn replay(&self, recording: &Self::Recording) -> Result<()> {
        match self.note(Call::Replay)? {
            Some(Trouble::NoLaunch) => Err(refused("a recording that does not start")),
            _ => self.inner.replay(recording),
        }
    }

    fn fill(&self, to: Region, byte: u8) -> Result<()> {
        self.note(self.on_device())?;
        self.inner.fill(to, byte)
    }

    fn copy(&self, from: Region, to: Region) -> Result<()> {
        self.note(self.on_device())?;
        self.inner.copy(from, to)
    }

    fn load(&self, spec: &ModuleSpec) -> Result<Self::Module> {
        self.note(Call::Load)?;
        self.inner.load(spec)
    }

    fn launch(&self, module: &Self::Module, launch: &Launch<'_>) -> Result<()> {
        match self.note(self.launch_or_recorded())? {
            Some(Trouble::NoLaunch) => Err(launch.error("a launch that fails".into())),
            _ => {
                self.inner.launch(module, launch)?;
                (self.after_launch)(&self.inner, launch)
            }
        }
    }

    fn gemm_ways(&self, gemm: &Gemm) -> Result<Vec<GemmWay>> {
        self.note(Call::Transfer)?;
        self.inner.gemm_ways(gemm)
    }

    fn gemm(&self, gemm: &Gemm, way: &GemmWay) -> Result<()> {
        match self.note(self.launch_or_recorded())? {
            Some(Trouble::NoLaunch) => Err(refused("a product that fails")),
            _ => self.inner.gemm(gemm, way),
        }
    }
}
