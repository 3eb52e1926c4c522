//! The CUDA backend: bf16 activations and compute weights, f32 sums, statistics, gradients and master weights.
//!
//! In reading order: [`device`] (what stands between us and a GPU), [`kernel`] (which kernels there are), [`memory`] and
//! [`batch`] (what ops work on), this file (how an op is launched), then [`ops`], one file of launchers for each file of
//! kernels. [`choice`] says which of several ways computes a product. [`compile`] makes machine code of the kernels, [`driver`]
//! is the GPU itself, [`cublaslt`] NVIDIA's library of matrix products.
//!
//! Kernels see capacities when they are launched and counts when they run: how many rows are live, the number of the
//! pass, the scale of the loss lie in device memory (the head), where `upload` puts them. So a launch is the same for
//! every batch. One op runs at a time, in the order of the calls.

pub mod batch;
pub mod choice;
pub mod compile;
pub mod cublaslt;
pub mod device;
pub mod driver;
pub mod kernel;
pub mod memory;
pub mod ops;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use half::bf16;

use self::batch::{Batch, Head};
use self::choice::{Choices, Origin};
use self::device::{Arg, Block, Device, DropoutArg, Launch, LiveRows, Region};
use self::kernel::{Family, ModuleSpec};
use self::memory::{Allocation, CudaArena, DeviceTally, Element, Flat, Mat, Tally, Weights};
use self::ops::adamw::Step;
use super::shape::{check_same_len, dim};
use super::{AdamW, BatchLimits, BatchView, Capacity, Dropout, Error, Memory, Planner, Precision, Result, Rows};

/// Working memory that an op needs beside its arguments. Each kind is one buffer that grows to the largest use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scratch {
    /// A chunk of logits.
    Logits,
    /// Parts of a product whose inner dimension was split.
    Splits,
    /// Sums over the rows of a block, for gradients of biases, gammas and betas.
    Partials,
    /// A few values for each row.
    Rows,
    /// What is put back after trying out ways to add to it.
    Kept,
}

/// A family's name and the sizes it was compiled for.
type ModuleKey = (&'static str, [u32; ModuleSpec::MOST_SIZES]);

/// DistilBERT's ops on a [`Device`].
#[derive(Debug)]
pub struct CudaBackend<D: Device> {
    device: D,
    modules: Mutex<HashMap<ModuleKey, Arc<D::Module>>>,
    scratch: Mutex<HashMap<Scratch, Allocation>>,
    /// What was outgrown. Recordings may still work in it.
    outgrown: Mutex<Vec<Allocation>>,
    /// What is known of the batch uploaded last; see [`Head`].
    head: Allocation,
    /// Serial number of that batch.
    uploads: AtomicU64,
    /// Ways to compute products.
    choices: Choices,
}

impl<D: Device> CudaBackend<D>
where
    D::Buffer: 'static,
{
    /// A backend on this device.
    pub fn new(device: D) -> Result<Self> {
        let head = Allocation::new(&device, Head::BYTES, "the batch's head")?;
        device.fill(head.region(), 0)?;
        Ok(CudaBackend {
            device,
            modules: Mutex::default(),
            scratch: Mutex::default(),
            outgrown: Mutex::default(),
            head,
            uploads: AtomicU64::new(0),
            choices: Choices::first(Origin::Mma),
        })
    }

    /// The same, with its products computed as `choices` says instead of by mma.sync.
    pub fn choosing(self, choices: Choices) -> Self {
        CudaBackend { choices, ..self }
    }

    fn choices(&self) -> &Choices {
        &self.choices
    }

    /// Waits until everything is done.
    fn finish(&self) -> Result<()> {
        self.device.wait(self.device.fetch(self.head(Head::Step))?).map(drop)
    }

    /// What it computes on.
    pub fn device(&self) -> &D {
        &self.device
    }

    /// Launches a kernel of a family, compiled for `sizes`, with the threads of its table. An empty grid is no launch.
    fn launch(
        &self, family: &'static Family, sizes: &[u32], kernel: &str, grid: [usize; 3], shared_bytes: usize,
        args: &[Arg],
    ) -> Result<()> {
        let block = Block { threads: family.kernel(kernel).threads, shared_bytes };
        self.launch_blocks(family, sizes, kernel, grid, block, args)
    }

    /// The same for kernels whose blocks depend on sizes.
    fn launch_blocks(
        &self, family: &'static Family, sizes: &[u32], kernel: &str, grid: [usize; 3], block: Block, args: &[Arg],
    ) -> Result<()> {
        if grid.contains(&0) {
            return Ok(());
        }
        let module = self.module(ModuleSpec::new(family, sizes))?;
        let grid = grid.map(|blocks| blocks as u32);
        self.device.launch(&module, &Launch { kernel: family.kernel(kernel), grid, block, args })
    }

    fn module(&self, spec: ModuleSpec) -> Result<Arc<D::Module>> {
        // A poisoned lock: another thread panicked, but the table only ever gains whole entries.
        let mut modules = self.modules.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (spec.family.name, spec.sizes);
        if let Some(module) = modules.get(&key) {
            return Ok(module.clone());
        }
        let module = Arc::new(self.device.load(&spec)?);
        modules.insert(key, module.clone());
        Ok(module)
    }

    /// At least `bytes` of working memory, whatever they held before. Good until the next call for the same kind.
    fn scratch(&self, kind: Scratch, bytes: usize) -> Result<Region> {
        let mut scratch = self.scratch.lock().unwrap_or_else(PoisonError::into_inner);
        match scratch.get(&kind) {
            Some(memory) if memory.region().bytes() >= bytes => Ok(memory.region().part(0, bytes)),
            _ => {
                let mut outgrown = self.outgrown.lock().unwrap_or_else(PoisonError::into_inner);
                outgrown.extend(scratch.remove(&kind));
                let memory = Allocation::new(&self.device, bytes, "working memory")?;
                let region = memory.region();
                if kind == Scratch::Logits {
                    // Columns behind the vocabulary stay zero where a product does not write them.
                    self.device.fill(region, 0)?;
                }
                scratch.insert(kind, memory);
                Ok(region)
            }
        }
    }

    /// Serial number of the batch at hand.
    fn serial(&self) -> u64 {
        self.uploads.load(Ordering::Relaxed)
    }

    /// A number of the head.
    fn head(&self, which: Head) -> Region {
        self.head.region().part(which.offset(), 4)
    }

    /// All live rows of a kind, of at most `capacity`.
    fn live(&self, rows: Rows, capacity: usize) -> LiveRows {
        memory::rows(self.head(Head::live(rows)), 0, capacity)
    }

    /// All live rows of a matrix.
    fn rows_of(&self, mat: &Mat) -> Arg {
        Arg::Rows(self.live(mat.kind(), mat.capacity()))
    }

    /// Dropout at the step of the batch at hand.
    fn dropout(&self, drop: &Dropout) -> Arg {
        Arg::Dropout(DropoutArg {
            step: self.head(Head::Step),
            threshold: drop.threshold().into(),
            site: drop.site(),
            key: drop.key(),
            keep_scale: drop.keep_scale(),
        })
    }

    /// Host to device, value by value.
    fn upload_values<T: bytemuck::NoUninit>(&self, values: &[T], to: Region) -> Result<()> {
        let bytes: &[u8] = bytemuck::cast_slice(values);
        if bytes.is_empty() { Ok(()) } else { self.device.upload(bytes, to.part(0, bytes.len())) }
    }

    /// Device to host, value by value.
    fn download_values<T: bytemuck::AnyBitPattern + bytemuck::NoUninit>(&self, from: Region) -> Result<Vec<T>> {
        let mut values = vec![T::zeroed(); from.bytes() / size_of::<T>()];
        if !values.is_empty() {
            self.device.download(from, bytemuck::cast_slice_mut(&mut values))?;
        }
        Ok(values)
    }
}

impl<D: Device> Memory for CudaBackend<D>
where
    D::Buffer: 'static,
{
    type Mat = Mat;
    type Stats = Mat;
    type Weights = Weights;
    type Flat = Flat;
    type Batch = Batch;
    type Tally = Tally;
    type Receipt = D::Fetch;
    type Hyper = Allocation;
    type Recording = D::Recording;
    type Arena = CudaArena;

    fn describe(&self) -> String {
        format!("{}, bf16", self.device.describe())
    }

    fn precision(&self) -> Precision {
        Precision::Bf16
    }

    fn free_bytes(&self) -> Result<Option<usize>> {
        self.device.free_bytes()
    }

    fn arena(&self, plan: &Planner) -> Result<CudaArena> {
        CudaArena::new(&self.device, plan)
    }

    fn batch(&self, capacity: Capacity) -> Result<Batch> {
        Batch::new(&self.device, capacity)
    }

    fn upload(&self, view: &BatchView<'_>, limits: &BatchLimits, batch: &mut Batch) -> Result<()> {
        let serial = self.uploads.fetch_add(1, Ordering::Relaxed) + 1;
        let head = batch.upload(&self.device, view, limits, serial)?;
        self.upload_values(&head, self.head.region())
    }

    fn weights(&self, values: &[f32]) -> Result<Weights> {
        let master = Flat::new(&self.device, values.len())?;
        self.upload_values(values, master.region())?;
        let compute = Allocation::new(&self.device, values.len() * size_of::<bf16>(), "parameters")?;
        let rounded: Vec<u16> = values.iter().map(|&value| bf16::from_f32(value).to_bits()).collect();
        self.upload_values(&rounded, compute.region())?;
        Ok(Weights { master, compute, groups: None })
    }

    fn read_weights(&self, weights: &Weights) -> Result<Vec<f32>> {
        self.download_values(weights.master.region())
    }

    fn flat(&self, len: usize) -> Result<Flat> {
        let mut flat = Flat::new(&self.device, len)?;
        self.zero(&mut flat)?;
        Ok(flat)
    }

    fn read_flat(&self, flat: &Flat) -> Result<Vec<f32>> {
        self.download_values(flat.region())
    }

    fn write_flat(&self, flat: &mut Flat, values: &[f32]) -> Result<()> {
        check_same_len("write_flat", "values", values.len(), flat.len())?;
        self.upload_values(values, flat.region())
    }

    fn zero(&self, flat: &mut Flat) -> Result<()> {
        if flat.is_empty() { Ok(()) } else { self.device.fill(flat.region(), 0) }
    }

    fn copy(&self, from: &Flat, to: &mut Flat) -> Result<()> {
        check_same_len("copy", "from", from.len(), to.len())?;
        if from.is_empty() { Ok(()) } else { self.device.copy(from.region(), to.region()) }
    }

    fn read_mat(&self, mat: &Mat) -> Result<Vec<f32>> {
        let region = mat.first_rows(mat.rows());
        match mat.element() {
            Element::F32 => self.download_values(region),
            Element::Bf16 => {
                let bits: Vec<u16> = self.download_values(region)?;
                Ok(bits.into_iter().map(|bits| bf16::from_bits(bits).to_f32()).collect())
            }
        }
    }

    fn write_mat(&self, mat: &mut Mat, rows: usize, values: &[f32]) -> Result<()> {
        const OP: &str = "write_mat";
        let (rows, cols) = (dim("rows", rows), dim("cols", mat.cols()));
        if values.len() != rows.size * cols.size {
            let (got, expected) = (format!("[{}]", values.len()), format!("[{}·{}]", rows.size, cols.size));
            return Err(Error::Shape { op: OP, what: "values", got, expected });
        }
        mat.prepare(OP, "mat", rows, cols)?;
        match mat.element() {
            Element::F32 => self.upload_values(values, mat.region())?,
            Element::Bf16 => {
                let bits: Vec<u16> = values.iter().map(|&value| bf16::from_f32(value).to_bits()).collect();
                self.upload_values(&bits, mat.region())?;
            }
        }
        self.upload_values(&[rows.size as u32], self.head(Head::live(mat.kind())))
    }

    fn read_stats(&self, stats: &Mat) -> Result<Vec<f32>> {
        self.read_mat(stats)
    }

    fn write_stats(&self, stats: &mut Mat, rows: usize, values: &[f32]) -> Result<()> {
        self.write_mat(stats, rows, values)
    }

    fn tally(&self) -> Result<Tally> {
        let memory = Allocation::new(&self.device, size_of::<DeviceTally>(), "the tally")?;
        self.device.fill(memory.region(), 0)?;
        Ok(Tally(memory))
    }

    fn post_tally(&self, tally: &mut Tally) -> Result<D::Fetch> {
        let sums = self.device.fetch(tally.region())?;
        self.device.fill(tally.region(), 0)?;
        Ok(sums)
    }

    fn is_ready(&self, receipt: &D::Fetch) -> Result<bool> {
        self.device.is_ready(receipt)
    }

    fn collect(&self, receipt: D::Fetch) -> Result<super::Tally> {
        let bytes = self.device.wait(receipt)?;
        let DeviceTally { loss, weight, targets, correct, grad_norm } = bytemuck::pod_read_unaligned(&bytes);
        Ok(super::Tally { loss, weight, targets, correct, grad_norm })
    }

    fn hyper(&self) -> Result<Allocation> {
        Allocation::new(&self.device, size_of::<Step>(), "hyperparameters")
    }

    fn set_hyper(&self, hyper: &mut Allocation, values: &AdamW) -> Result<()> {
        self.upload_values(&[Step::new(values)], hyper.region())
    }

    fn record(&self, run: &mut dyn FnMut() -> Result<()>) -> Result<Option<D::Recording>> {
        self.device.record(run).map(Some)
    }

    fn replay(&self, recording: &D::Recording) -> Result<()> {
        self.device.replay(recording)
    }
}
