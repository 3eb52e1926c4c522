//! What stands between the launchers and a GPU: memory, copies, modules, launches.
//!
//! [`Device`] is implemented for a real GPU in `driver.rs`; tests implement it by a simulator that runs the same
//! kernels on the CPU. Nothing above this file knows which of the two it has.

use std::fmt;

use super::kernel::{Kernel, ModuleSpec};
use crate::backend::{Error, Result};

/// A run of bytes in device memory.
///
/// Only devices make them, for memory that they own, and only [`Region::part`] cuts them; so whatever lies in a launch's
/// arguments is within an allocation. A region does not keep its memory alive: the buffer it came from must.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Region {
    address: u64,
    bytes: usize,
}

impl Region {
    /// The whole of an allocation. For devices.
    pub fn new(address: u64, bytes: usize) -> Region {
        Region { address, bytes }
    }

    /// Where it begins.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// How long it is.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// `bytes` bytes from `offset` on.
    ///
    /// # Panics
    ///
    /// If they do not all lie within: that is a defect of the caller, whose shapes have been checked.
    pub fn part(&self, offset: usize, bytes: usize) -> Region {
        let fits = offset.checked_add(bytes).is_some_and(|end| end <= self.bytes);
        assert!(fits, "{bytes} bytes at {offset} of a region of {}", self.bytes);
        Region { address: self.address + offset as u64, bytes }
    }

    /// Whether a byte belongs to both.
    pub fn overlaps(&self, other: Region) -> bool {
        let begins_before_end_of = |a: &Region, b: &Region| a.address < b.address + b.bytes as u64;
        begins_before_end_of(self, &other) && begins_before_end_of(&other, self)
    }
}

/// Which rows of a matrix a launch works on; `struct Rows` of common.cuh.
#[derive(Debug, Clone, Copy)]
pub struct LiveRows {
    /// A u32 in device memory: live rows of the whole matrix.
    pub live: Region,
    /// The first row to work on.
    pub first: u32,
    /// The most rows to work on; the grid is sized for it.
    pub capacity: u32,
}

/// Dropout as kernels see it; `struct Dropout` of common.cuh.
#[derive(Debug, Clone, Copy)]
pub struct DropoutArg {
    /// A u32 in device memory: the number of the pass.
    pub step: Region,
    /// Values are dropped when their 16 bits are below it; 0 = no dropout.
    pub threshold: u32,
    /// Which place of the model.
    pub site: u32,
    /// Of Philox.
    pub key: [u32; 2],
    /// What kept values are multiplied by.
    pub keep_scale: f32,
}

/// A row-major bf16 matrix as tensor copies read it: box by box, each swizzled by 128 bytes ("Tensor-map" of the PTX
/// manual); `struct TensorMap` of ptx_hopper.cuh.
#[derive(Debug, Clone, Copy)]
pub struct TensorMap {
    /// The matrix, without gaps between its rows.
    pub matrix: Region,
    /// Its rows and columns.
    pub size: [u32; 2],
    /// Rows and columns of a box; the columns are 128 bytes.
    pub of_box: [u32; 2],
}

/// A tensor map as the device's copy engine reads it.
pub type EncodedMap = [u64; 16];

/// One argument of a kernel, with what the kernel does to the memory it points to.
#[derive(Debug, Clone, Copy)]
pub enum Arg {
    /// A pointer that is only read through.
    Read(Region),
    /// A pointer that is only written through: nothing in it is read before this launch writes it.
    Write(Region),
    /// A pointer that is read and written through.
    Update(Region),
    /// A null pointer: the kernel does without.
    Null,
    /// u32
    U32(u32),
    /// float
    F32(f32),
    /// `struct Rows`
    Rows(LiveRows),
    /// `struct Dropout`
    Dropout(DropoutArg),
    /// `struct TensorMap`, of a matrix that is only read
    TensorMap(TensorMap),
}

/// What a block has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Block {
    /// Threads along x; as many as the kernel was compiled for.
    pub threads: u32,
    /// Dynamic shared memory in bytes; at most what the kernel's table says.
    pub shared_bytes: usize,
}

/// A kernel's grid and arguments.
#[derive(Debug)]
pub struct Launch<'a> {
    /// Which.
    pub kernel: &'static Kernel,
    /// Blocks along x, y and z; none may be zero.
    pub grid: [u32; 3],
    /// What each has.
    pub block: Block,
    /// In the order of the kernel's parameters.
    pub args: &'a [Arg],
}

impl Launch<'_> {
    /// Why this launch does not work, with everything that identifies it.
    pub fn error(&self, why: String) -> Error {
        let args = self.args.iter().map(|arg| match *arg {
            Arg::Read(region) | Arg::Write(region) | Arg::Update(region) => format!("[{} B]", region.bytes),
            Arg::Null => "null".into(),
            Arg::U32(value) => value.to_string(),
            Arg::F32(value) => value.to_string(),
            Arg::Rows(rows) => format!("rows {}..{}", rows.first, rows.first + rows.capacity),
            Arg::Dropout(drop) => format!("dropout {}/65536", drop.threshold),
            Arg::TensorMap(map) => format!("map of {:?} in {:?}", map.size, map.of_box),
        });
        let args = args.collect::<Vec<_>>().join(", ");
        Error::Launch { kernel: self.kernel.name, grid: self.grid, threads: self.block.threads, args, why }
    }
}

/// What devices may or may not have.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Features {
    /// wgmma and tensor copies, as on sm_90a.
    pub wgmma: bool,
    /// Streaming multiprocessors.
    pub multiprocessors: u32,
    /// The vendor's library of products and its version, as in `cuBLASLt 13.1.0`.
    pub library: Option<String>,
}

/// How the operands of a product lie in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// D = A Bᵀ: A [rows, depth], B [cols, depth]
    Nt,
    /// D = A B: A [rows, depth], B [depth, cols]
    Nn,
    /// D = Aᵀ B: A [depth, rows], B [depth, cols]
    Tn,
}

/// What becomes of the sums of a product, which are f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sums {
    /// D, bf16, is overwritten.
    Write,
    /// The same, after a row of bf16 [cols] is added to each row.
    WriteWithBias(Region),
    /// They are added to D, bf16.
    Add,
    /// They are added to D, f32.
    AddToF32,
}

/// A matrix in memory, row-major.
#[derive(Debug, Clone, Copy)]
pub struct Rectangle {
    /// Where it lies, as far as it is used.
    pub region: Region,
    /// Elements from row to row.
    pub lead: usize,
}

/// A product of bf16 matrices as the vendor's library computes it. All rows count, live or not.
#[derive(Debug, Clone, Copy)]
pub struct Gemm {
    /// How A and B lie.
    pub form: Form,
    /// Of D.
    pub rows: usize,
    /// Of D.
    pub cols: usize,
    /// The dimension that is summed over.
    pub depth: usize,
    /// bf16
    pub a: Rectangle,
    /// bf16
    pub b: Rectangle,
    /// bf16, or f32 where `sums` says so.
    pub d: Rectangle,
    /// What becomes of the sums.
    pub sums: Sums,
}

/// One of the matrices of a [`Gemm`], as it lies in memory.
#[derive(Debug, Clone, Copy)]
pub struct Operand {
    /// `a`, `b` or `d`.
    pub name: &'static str,
    /// Its memory.
    pub at: Rectangle,
    /// Its rows and columns.
    pub size: [usize; 2],
    /// Bytes of an element.
    pub element: usize,
}

impl Operand {
    /// Row `row` of it. It must lie within its region, as [`Gemm::check`] finds.
    pub fn row(&self, row: usize) -> Region {
        self.at.region.part(row * self.at.lead * self.element, self.size[1] * self.element)
    }

    fn check(&self) -> std::result::Result<(), String> {
        let Operand { name, at: Rectangle { region, lead }, size: [rows, cols], element } = *self;
        let needed = if rows * cols == 0 { 0 } else { ((rows - 1) * lead + cols) * element };
        if lead < cols || needed > region.bytes {
            let has = region.bytes;
            return Err(format!("{name} is [{rows}, {cols}], {lead} from row to row, in a region of {has} bytes"));
        }
        if !region.address.is_multiple_of(Gemm::ALIGNMENT as u64) {
            return Err(format!("{name} begins at {:#x}, no multiple of {}", region.address, Gemm::ALIGNMENT));
        }
        Ok(())
    }
}

impl Gemm {
    /// Where each matrix of a product begins: at a multiple of so many bytes.
    pub const ALIGNMENT: usize = 16;

    /// A, B and D.
    pub fn operands(&self) -> [Operand; 3] {
        let (rows, cols, depth) = (self.rows, self.cols, self.depth);
        let (a, b) = match self.form {
            Form::Nt => ([rows, depth], [cols, depth]),
            Form::Nn => ([rows, depth], [depth, cols]),
            Form::Tn => ([depth, rows], [depth, cols]),
        };
        let wide = if self.sums == Sums::AddToF32 { size_of::<f32>() } else { 2 };
        [
            Operand { name: "a", at: self.a, size: a, element: 2 },
            Operand { name: "b", at: self.b, size: b, element: 2 },
            Operand { name: "d", at: self.d, size: [rows, cols], element: wide },
        ]
    }

    /// Whether D has no elements.
    pub fn is_empty(&self) -> bool {
        self.rows == 0 || self.cols == 0
    }

    /// That matrices and bias lie within their regions and begin where the library wants them to, and that D's region is
    /// apart from the others.
    ///
    /// # Errors
    ///
    /// What is wrong, by name.
    pub fn check(&self) -> std::result::Result<(), String> {
        let [a, b, d] = self.operands();
        let bias = match self.sums {
            Sums::WriteWithBias(region) => {
                let at = Rectangle { region, lead: self.cols };
                Some(Operand { name: "the bias", at, size: [1, self.cols], element: 2 })
            }
            _ => None,
        };
        d.check()?;
        for read in [a, b].into_iter().chain(bias) {
            read.check()?;
            if read.at.region.overlaps(d.at.region) {
                return Err(format!("d overlaps {}", read.name));
            }
        }
        Ok(())
    }
}

impl fmt::Display for Gemm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Gemm { form, rows, cols, depth, .. } = self;
        let sums = match self.sums {
            Sums::Write => "written",
            Sums::WriteWithBias(_) => "written with a bias",
            Sums::Add => "added to bf16",
            Sums::AddToF32 => "added to f32",
        };
        write!(f, "product {form:?} [{rows}, {cols}], depth {depth}, {sums}")
    }
}

/// A way of the library to compute a product: its own description, good for this product, device and version alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct GemmWay(pub [u64; 8]);

/// A GPU, or what stands in for one. All calls are made in one order, that of a stream: a launch sees what calls before
/// it wrote. Only [`Device::download`] and [`Device::wait`] wait.
pub trait Device: Send + Sync {
    /// Owned device memory, freed when dropped.
    type Buffer: Send + Sync;
    /// Loaded kernels.
    type Module: Send + Sync;
    /// Bytes on their way to the host.
    type Fetch: Send;
    /// Launches, fills, copies and library products that can be made again. It keeps nothing alive that they work on.
    type Recording: Send + Sync;

    /// One line for people: the device's name and what it has.
    fn describe(&self) -> String;
    /// What it has beyond what every device has.
    fn features(&self) -> Features;
    /// Bytes that may still be allocated; `None` where the device does not tell.
    fn free_bytes(&self) -> Result<Option<usize>> {
        Ok(None)
    }
    /// Memory that holds nothing yet, 256-byte aligned; `what` is for the error message. `bytes` may be zero.
    fn alloc(&self, bytes: usize, what: &'static str) -> Result<Self::Buffer>;
    /// All of a buffer.
    fn region(&self, buffer: &Self::Buffer) -> Region;
    /// Host to device; as many bytes as `to` has.
    fn upload(&self, from: &[u8], to: Region) -> Result<()>;
    /// Device to host, when everything before it is done; as many bytes as `from` has.
    fn download(&self, from: Region, to: &mut [u8]) -> Result<()>;
    /// Device to host without waiting: the bytes as they are when everything before is done.
    fn fetch(&self, from: Region) -> Result<Self::Fetch>;
    /// Whether waiting for them would take no time.
    fn is_ready(&self, fetch: &Self::Fetch) -> Result<bool>;
    /// Waits for bytes that were fetched.
    fn wait(&self, fetch: Self::Fetch) -> Result<Vec<u8>>;
    /// Calls `run`, whose launches, fills, copies and library products are written down and not made. Any other call it
    /// makes is an error.
    fn record(&self, run: &mut dyn FnMut() -> Result<()>) -> Result<Self::Recording>;
    /// Makes what was written down.
    fn replay(&self, recording: &Self::Recording) -> Result<()>;
    /// Sets every byte.
    fn fill(&self, to: Region, byte: u8) -> Result<()>;
    /// Device to device; as many bytes as both have, which do not overlap.
    fn copy(&self, from: Region, to: Region) -> Result<()>;
    /// Compiles, or finds compiled, the kernels of a family for these sizes, and loads them.
    fn load(&self, spec: &ModuleSpec) -> Result<Self::Module>;
    /// Starts a kernel of a module.
    fn launch(&self, module: &Self::Module, launch: &Launch<'_>) -> Result<()>;
    /// In which ways the library offers to compute a product, the most promising first; none where there is no library.
    fn gemm_ways(&self, gemm: &Gemm) -> Result<Vec<GemmWay>>;
    /// Starts the library's computation of a product, in one of those ways.
    fn gemm(&self, gemm: &Gemm, way: &GemmWay) -> Result<()>;
}

/// An argument's bytes as the kernel's parameter has them, aligned as a tensor map has to be.
#[derive(Debug, Clone, Copy)]
#[repr(align(64))]
pub struct Packed {
    words: EncodedMap,
}

impl Packed {
    /// Where the parameter's bytes begin. Good for as long as this is not moved.
    pub fn as_ptr(&self) -> *const u64 {
        self.words.as_ptr()
    }
}

impl Arg {
    /// As the kernel's parameter. Structures are laid out as common.cuh declares them; tensor maps are for the device to
    /// encode, and its error is this one's.
    pub fn pack<E>(
        &self, encode: impl FnOnce(&TensorMap) -> std::result::Result<EncodedMap, E>,
    ) -> std::result::Result<Packed, E> {
        let two = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
        let words = |first: [u64; 4]| std::array::from_fn(|i| first.get(i).copied().unwrap_or(0));
        let words = match *self {
            Arg::Read(region) | Arg::Write(region) | Arg::Update(region) => words([region.address, 0, 0, 0]),
            Arg::Null => words([0; 4]),
            Arg::U32(value) => words([value.into(), 0, 0, 0]),
            Arg::F32(value) => words([value.to_bits().into(), 0, 0, 0]),
            Arg::Rows(rows) => words([rows.live.address, two(rows.first, rows.capacity), 0, 0]),
            Arg::Dropout(drop) => words([
                drop.step.address,
                two(drop.threshold, drop.site),
                two(drop.key[0], drop.key[1]),
                drop.keep_scale.to_bits().into(),
            ]),
            Arg::TensorMap(map) => encode(&map)?,
        };
        Ok(Packed { words })
    }

    /// The memory it points to, and how it is used.
    pub fn memory(&self) -> Option<(Region, Access)> {
        match *self {
            Arg::Read(region) => Some((region, Access::Read)),
            Arg::Write(region) => Some((region, Access::Write)),
            Arg::Update(region) => Some((region, Access::Update)),
            Arg::Rows(rows) => Some((rows.live, Access::Read)),
            Arg::Dropout(drop) => Some((drop.step, Access::Read)),
            Arg::TensorMap(map) => Some((map.matrix, Access::Read)),
            Arg::Null | Arg::U32(_) | Arg::F32(_) => None,
        }
    }
}

/// What a launch does to a region.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Reads.
    Read,
    /// Writes, before it reads anything of it.
    Write,
    /// Both.
    Update,
}
