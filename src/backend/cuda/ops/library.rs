//! Products by the vendor's library, and what it cannot do in the same call.
//!
//! The library counts all rows of a matrix, live or not. Where they are summed over they are cleared beforehand; else they
//! come out as rows that are not live, which nobody looks at. Its GELU is the tanh form, so ours is a kernel of its own; on
//! the way back d_x would be rounded once before it and once after, so that product is left to us.

use super::super::CudaBackend;
use super::super::device::{Device, Form, Gemm, GemmWay, Rectangle, Region, Sums};
use super::gelu;
use super::product::{Onto, Product, Task};
use super::rows::zero_dead_rows;
use crate::backend::Result;

/// The call that computes a product, or most of it; `None` where it could not be as exact as ours.
pub(super) fn gemm(product: &Product, task: &Task) -> Option<Gemm> {
    let Product { inputs, outputs, .. } = *product;
    let rows = product.capacity();
    let rectangle = |region: Region, lead: usize| Rectangle { region, lead };
    let (of_x, of_y) = (|region| rectangle(region, inputs), |region| rectangle(region, product.lead()));
    let backward = |d_y, weight, d_x, sums| Gemm {
        form: Form::Nn,
        rows,
        cols: inputs,
        depth: outputs,
        a: of_y(d_y),
        b: of_x(weight),
        d: of_x(d_x),
        sums,
    };
    Some(match *task {
        Task::Bias { x, weight, bias, y } | Task::BiasGelu { x, weight, bias, pre: y, .. } => Gemm {
            form: Form::Nt,
            rows,
            cols: outputs,
            depth: inputs,
            a: of_x(x),
            b: of_x(weight),
            d: of_y(y),
            sums: Sums::WriteWithBias(bias.rounded),
        },
        Task::Dx { d_y, weight, d_x: Onto::Write(d_x) } | Task::DxOfMany { d_y, weight, d_x } => {
            backward(d_y, weight, d_x, Sums::Write)
        }
        Task::Dx { d_y, weight, d_x: Onto::Add(d_x) } => backward(d_y, weight, d_x, Sums::Add),
        Task::Dw { d_y, x, d_weight } => Gemm {
            form: Form::Tn,
            rows: outputs,
            cols: inputs,
            depth: rows,
            a: of_y(d_y),
            b: of_x(x),
            d: of_x(d_weight),
            sums: Sums::AddToF32,
        },
        Task::DxGelu { .. } => return None,
    })
}

/// Computes a product by its [`gemm`].
pub(super) fn run<D: Device>(
    be: &CudaBackend<D>, product: &Product, task: &Task, gemm: &Gemm, way: &GemmWay,
) -> Result<()>
where
    D::Buffer: 'static,
{
    if let Task::Dw { d_y, x, .. } = *task {
        zero_dead_rows(be, d_y, product.lead(), product.rows)?;
        zero_dead_rows(be, x, product.inputs, product.rows)?;
    }
    be.device().gemm(gemm, way)?;
    match *task {
        Task::BiasGelu { pre, y, .. } => gelu::forward_of(be, pre, y, product.lead(), product.rows),
        _ => Ok(()),
    }
}
