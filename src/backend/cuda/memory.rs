//! Where values lie on the device: matrices carved from one arena, flat parameter buffers, the tally.

use std::any::Any;
use std::sync::Arc;

use super::device::{Device, LiveRows, Region};
use crate::backend::shape::{Dim, check_span, misfit};
use crate::backend::{Arena, Capacity, Planner, Result, Rows, Span};

/// Matrices begin at multiples of this many bytes, as tensor copies and cuBLASLt want.
pub const ALIGNMENT: usize = 256;

/// Matrices with fewer columns, class logits, are kept in f32.
pub const NARROW: usize = 64;

/// Device memory and what keeps it alive.
#[derive(Clone)]
pub struct Allocation {
    region: Region,
    _owner: Arc<dyn Any + Send + Sync>,
}

impl Allocation {
    /// Fresh memory that holds nothing yet.
    pub fn new<D: Device>(device: &D, bytes: usize, what: &'static str) -> Result<Allocation>
    where
        D::Buffer: 'static,
    {
        let buffer = device.alloc(bytes, what)?;
        Ok(Allocation { region: device.region(&buffer), _owner: Arc::new(buffer) })
    }

    /// No memory, where only sizes are wanted.
    pub fn none() -> Allocation {
        Allocation { region: Region::new(0, 0), _owner: Arc::new(()) }
    }

    /// All of it.
    pub fn region(&self) -> Region {
        self.region
    }

    /// A part of it that keeps the whole alive.
    pub fn part(&self, offset: usize, bytes: usize) -> Allocation {
        Allocation { region: self.region.part(offset, bytes), _owner: self._owner.clone() }
    }
}

impl std::fmt::Debug for Allocation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.region.fmt(f)
    }
}

/// How a matrix's elements are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Element {
    /// The compute type.
    Bf16,
    /// Statistics and narrow matrices.
    F32,
}

impl Element {
    /// Bytes of one.
    pub fn bytes(self) -> usize {
        match self {
            Element::Bf16 => 2,
            Element::F32 => 4,
        }
    }

    /// That of a matrix of activations.
    fn of_activations(cols: usize) -> Element {
        if cols < NARROW { Element::F32 } else { Element::Bf16 }
    }
}

/// A row-major matrix of fixed capacity. How many of its rows are live is known on the device, where kernels look; `live`
/// is what the host knows of it, for checks and for reading back.
#[derive(Debug)]
pub struct Mat {
    memory: Allocation,
    kind: Rows,
    capacity: usize,
    live: usize,
    cols: usize,
    element: Element,
}

impl Mat {
    /// Live rows.
    pub fn rows(&self) -> usize {
        self.live
    }

    /// The most rows it can hold.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Columns, and distance from row to row.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Which count says how many rows are live.
    pub fn kind(&self) -> Rows {
        self.kind
    }

    /// How elements are stored.
    pub fn element(&self) -> Element {
        self.element
    }

    /// All its memory, rows that are not live included.
    pub fn region(&self) -> Region {
        self.memory.region()
    }

    /// Row `row` and all after it.
    pub fn region_from(&self, row: usize) -> Region {
        let offset = row * self.cols * self.element.bytes();
        self.memory.region().part(offset, self.memory.region().bytes() - offset)
    }

    /// The first `rows` rows.
    pub fn first_rows(&self, rows: usize) -> Region {
        self.memory.region().part(0, rows * self.cols * self.element.bytes())
    }

    /// Checks that an input has the shape wanted, each dimension under its name.
    pub fn expect(&self, op: &'static str, what: &'static str, rows: Dim, cols: Dim) -> Result<()> {
        if (self.live, self.cols) == (rows.size, cols.size) {
            return Ok(());
        }
        Err(misfit(op, what, [self.live, self.cols], [rows, cols]))
    }

    /// Gives an output its live rows, after checking that it can hold them.
    pub fn prepare(&mut self, op: &'static str, what: &'static str, rows: Dim, cols: Dim) -> Result<()> {
        if rows.size > self.capacity || self.cols != cols.size {
            return Err(misfit(op, what, [self.capacity, self.cols], [rows, cols]));
        }
        self.live = rows.size;
        Ok(())
    }
}

/// A flat f32 buffer as long as the parameters: master weights, gradients or moments.
#[derive(Debug)]
pub struct Flat {
    memory: Allocation,
    len: usize,
}

impl Flat {
    /// Room for `len` values, which hold nothing yet.
    pub fn new<D: Device>(device: &D, len: usize) -> Result<Flat>
    where
        D::Buffer: 'static,
    {
        Ok(Flat { memory: Allocation::new(device, len * size_of::<f32>(), "parameters")?, len })
    }

    /// Elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// All of it.
    pub fn region(&self) -> Region {
        self.memory.region()
    }

    /// The elements of a span, which must hold `len` of them.
    pub fn span(&self, op: &'static str, what: &'static str, span: Span, len: Dim) -> Result<Region> {
        check_span(op, what, span, len, self.len)?;
        Ok(self.memory.region().part(span.offset * size_of::<f32>(), span.len * size_of::<f32>()))
    }
}

/// The parameters: f32 master copy and bf16 compute copy, element for element at the same places.
#[derive(Debug)]
pub struct Weights {
    /// What AdamW updates; biases, gammas and betas are read from it.
    pub master: Flat,
    /// What products and look-ups read. [flat_len] bf16
    pub compute: Allocation,
    /// AdamW's table of what to update and what to decay, with the spans it was made for.
    pub(super) groups: Option<super::ops::adamw::Groups>,
}

impl Weights {
    /// A weight matrix or table in bf16.
    pub fn matrix(&self, op: &'static str, what: &'static str, span: Span, len: Dim) -> Result<Region> {
        check_span(op, what, span, len, self.master.len)?;
        Ok(self.compute.region().part(span.offset * 2, span.len * 2))
    }

    /// A bias, gamma or beta in f32.
    pub fn vector(&self, op: &'static str, what: &'static str, span: Span, len: Dim) -> Result<Region> {
        self.master.span(op, what, span, len)
    }
}

/// `struct Tally` of the loss and norm kernels.
#[repr(C)]
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
pub struct DeviceTally {
    /// Sum of weighted cross-entropies, in nats.
    pub loss: f64,
    /// Sum of target weights.
    pub weight: f64,
    /// Targets seen.
    pub targets: u64,
    /// Targets whose most probable class was right.
    pub correct: u64,
    /// L2 norm of all gradients.
    pub grad_norm: f64,
}

/// A tally on the device.
#[derive(Debug)]
pub struct Tally(pub(super) Allocation);

impl Tally {
    /// Its memory.
    pub fn region(&self) -> Region {
        self.0.region()
    }
}

/// Hands out matrices, one behind the other, from one allocation.
#[derive(Debug)]
pub struct CudaArena {
    memory: Allocation,
    used: usize,
    capacity: Capacity,
}

impl CudaArena {
    /// One allocation for everything planned.
    pub fn new<D: Device>(device: &D, plan: &Planner) -> Result<CudaArena>
    where
        D::Buffer: 'static,
    {
        let memory = Allocation::new(device, CudaArena::bytes(plan), "activations")?;
        Ok(CudaArena { memory, used: 0, capacity: plan.capacity })
    }

    /// Bytes that [`CudaArena::new`] takes.
    pub fn bytes(plan: &Planner) -> usize {
        let size = |rows, cols, element| bytes(plan.capacity.of(rows), cols, element).next_multiple_of(ALIGNMENT);
        let mats = plan.mats.iter().map(|&(rows, cols)| size(rows, cols, Element::of_activations(cols)));
        let stats = plan.stats.iter().map(|&(rows, cols)| size(rows, cols, Element::F32));
        mats.chain(stats).sum()
    }

    /// More than was planned gives a matrix of no rows, and the first op to write it says so.
    fn take(&mut self, kind: Rows, cols: usize, element: Element) -> Mat {
        let wanted = bytes(self.capacity.of(kind), cols, element);
        let left = self.memory.region().bytes() - self.used;
        let (capacity, taken) = if wanted <= left { (self.capacity.of(kind), wanted) } else { (0, 0) };
        let memory = self.memory.part(self.used, taken);
        self.used = (self.used + taken).next_multiple_of(ALIGNMENT).min(self.memory.region().bytes());
        Mat { memory, kind, capacity, live: 0, cols, element }
    }
}

fn bytes(rows: usize, cols: usize, element: Element) -> usize {
    rows * cols * element.bytes()
}

impl Arena for CudaArena {
    type Mat = Mat;
    type Stats = Mat;

    fn mat(&mut self, rows: Rows, cols: usize) -> Mat {
        self.take(rows, cols, Element::of_activations(cols))
    }

    fn stats(&mut self, rows: Rows, cols: usize) -> Mat {
        self.take(rows, cols, Element::F32)
    }
}

/// Some rows of a matrix as a launch sees them.
pub fn rows(live: Region, first: usize, capacity: usize) -> LiveRows {
    LiveRows { live, first: first as u32, capacity: capacity as u32 }
}
