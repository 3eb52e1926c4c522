//! The products of a linear layer, and the ways there are to compute each of them.

use std::time::Instant;

use super::super::choice::{Kind, Question, Way};
use super::super::device::{Arg, Device, Features, LiveRows, Region};
use super::super::{CudaBackend, Scratch};
use super::{library, matmul, matmul_hopper};
use crate::backend::Result;

/// A layer's sizes, and the rows at hand.
#[derive(Debug, Clone, Copy)]
pub struct Product {
    /// Columns of x; a multiple of 64.
    pub inputs: usize,
    /// Columns of y.
    pub outputs: usize,
    /// Of x and y, counted from where their regions begin.
    pub rows: LiveRows,
}

impl Product {
    /// The most rows.
    pub fn capacity(&self) -> usize {
        self.rows.capacity as usize
    }

    /// Distance from row to row of a matrix with a column for each output.
    pub fn lead(&self) -> usize {
        self.outputs.next_multiple_of(64)
    }

    /// The last arguments of every kernel: inputs, outputs, lead, rows.
    pub(super) fn sizes(&self) -> [Arg; 4] {
        let [inputs, outputs, lead] = [self.inputs, self.outputs, self.lead()].map(|size| Arg::U32(size as u32));
        [inputs, outputs, lead, Arg::Rows(self.rows)]
    }
}

/// A layer's bias. [outputs]
#[derive(Debug, Clone, Copy)]
pub struct Bias {
    /// f32
    pub exact: Region,
    /// bf16, all that cuBLASLt takes
    pub rounded: Region,
}

/// Where sums go, bf16.
#[derive(Debug, Clone, Copy)]
pub enum Onto {
    /// They are written.
    Write(Region),
    /// They are added.
    Add(Region),
}

/// What is to be computed. x, d_x, pre and d_pre are [R, inputs], y and d_y [R, outputs] with rows [`Product::lead`] apart,
/// all bf16; but `pre` of [`Task::BiasGelu`] is like y.
#[derive(Debug, Clone, Copy)]
pub enum Task {
    /// y = x Wᵀ + b. Behind the last output are zeros, or what was there before.
    Bias { x: Region, weight: Region, bias: Bias, y: Region },
    /// pre = x Wᵀ + b;  y = gelu(pre), for whole strips of 64 outputs.
    BiasGelu { x: Region, weight: Region, bias: Bias, pre: Region, y: Region },
    /// d_x = d_y W, or added.
    Dx { d_y: Region, weight: Region, d_x: Onto },
    /// d_x = d_y W for few rows and so many outputs that they are worth splitting. Of d_x whole rows are there, no more.
    DxOfMany { d_y: Region, weight: Region, d_x: Region },
    /// d_pre = (d_y W) ∘ gelu'(pre);  d_bias += Σ_rows d_pre.  d_bias [inputs] f32
    DxGelu { d_y: Region, weight: Region, pre: Region, d_pre: Region, d_bias: Region },
    /// d_W += d_yᵀ x.  d_W [outputs, inputs] f32
    Dw { d_y: Region, x: Region, d_weight: Region },
}

impl Task {
    fn kind(&self) -> Kind {
        match self {
            Task::Bias { .. } => Kind::Bias,
            Task::BiasGelu { .. } => Kind::BiasGelu,
            Task::Dx { d_x: Onto::Write(_), .. } => Kind::Dx,
            Task::Dx { d_x: Onto::Add(_), .. } => Kind::DxAdd,
            Task::DxOfMany { .. } => Kind::DxOfMany,
            Task::DxGelu { .. } => Kind::DxGelu,
            Task::Dw { .. } => Kind::Dw,
        }
    }

    /// What computing it twice would add to twice.
    fn adds_to(&self) -> Option<Region> {
        match *self {
            Task::Dx { d_x: Onto::Add(region), .. } => Some(region),
            Task::DxGelu { d_bias, .. } => Some(d_bias),
            Task::Dw { d_weight, .. } => Some(d_weight),
            Task::Bias { .. } | Task::BiasGelu { .. } | Task::Dx { .. } | Task::DxOfMany { .. } => None,
        }
    }
}

/// Computes a product, in the way that was found to be the quickest, or is asked for.
pub fn run<D: Device>(be: &CudaBackend<D>, product: &Product, task: &Task) -> Result<()>
where
    D::Buffer: 'static,
{
    if product.capacity() == 0 {
        return Ok(());
    }
    let Product { inputs, outputs, .. } = *product;
    let question = Question { kind: task.kind(), rows: product.capacity(), inputs, outputs };
    let way = match be.choices().made_for(&question) {
        Some(way) => way,
        None => {
            let ways = ways(be, product, task)?;
            be.choices().make(question, &ways, |ways| seconds(be, product, task, ways))?
        }
    };
    by(be, way, product, task)
}

fn by<D: Device>(be: &CudaBackend<D>, way: Way, product: &Product, task: &Task) -> Result<()>
where
    D::Buffer: 'static,
{
    match way {
        Way::Mma => matmul::run(be, product, task),
        Way::Wgmma => matmul_hopper::run(be, product, task),
        Way::Library(way) => match library::gemm(product, task) {
            Some(gemm) => library::run(be, product, task, &gemm, &way),
            None => matmul::run(be, product, task),
        },
    }
}

/// Every way there is on this device, mma.sync first.
fn ways<D: Device>(be: &CudaBackend<D>, product: &Product, task: &Task) -> Result<Vec<Way>>
where
    D::Buffer: 'static,
{
    let Features { wgmma, library: has_library, .. } = be.device().features();
    let mut ways = vec![Way::Mma];
    if wgmma {
        ways.push(Way::Wgmma);
    }
    if has_library.is_some()
        && let Some(gemm) = library::gemm(product, task)
    {
        let offered = be.device().gemm_ways(&gemm)?;
        ways.extend(offered.into_iter().map(Way::Library));
    }
    Ok(ways)
}

/// Times of each way are taken so often; the least counts.
const TRIALS: usize = 3;

/// What each of some ways takes. Nothing is added to twice by that.
fn seconds<D: Device>(be: &CudaBackend<D>, product: &Product, task: &Task, ways: &[Way]) -> Result<Vec<f64>>
where
    D::Buffer: 'static,
{
    let kept = match task.adds_to() {
        Some(region) => {
            let room = be.scratch(Scratch::Kept, region.bytes())?;
            be.device().copy(region, room)?;
            Some((region, room))
        }
        None => None,
    };
    let mut seconds = Vec::with_capacity(ways.len());
    for &way in ways {
        // The first run loads and grows what there is to load and to grow.
        by(be, way, product, task)?;
        let mut best = f64::INFINITY;
        for _ in 0..TRIALS {
            be.finish()?;
            let start = Instant::now();
            by(be, way, product, task)?;
            be.finish()?;
            best = best.min(start.elapsed().as_secs_f64());
        }
        seconds.push(best);
    }
    if let Some((region, room)) = kept {
        be.device().copy(room, region)?;
    }
    Ok(seconds)
}
