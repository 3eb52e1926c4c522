//! kernels/adamw.cu: over the flat buffers: the gradients' norm and AdamW.

use bytemuck::{Pod, Zeroable};

use super::super::device::{Arg, Device};
use super::super::kernel::{Family, Kernel, Limits};
use super::super::memory::{Allocation, Flat, Tally, Weights};
use super::super::{CudaBackend, Scratch};
use crate::backend::shape::dim;
use crate::backend::{AdamW, Error, Result, Span, UpdateSpan};

/// The kernels.
pub static FAMILY: Family = Family {
    name: "adamw",
    source: include_str!("../../../../kernels/adamw.cu"),
    only: None,
    constants: &[],
    kernels: &[
        Kernel {
            name: "grad_squares",
            computes: "partial[p] = Σ g² over 16,384 elements",
            threads: 256,
            shared_bytes: 256 * 8,
            limits: Limits::registers(64),
        },
        Kernel {
            name: "grad_norm",
            computes: "norm = √ Σ partial",
            threads: 1024,
            shared_bytes: 1024 * 8,
            limits: Limits::registers(64),
        },
        Kernel {
            name: "adamw",
            computes: "m, v, w of one step after clipping, and w in bf16",
            threads: 256,
            shared_bytes: 0,
            limits: Limits::registers(64),
        },
    ],
};

/// `SQUARES` of adamw.cu: elements of a block of `grad_squares`.
const SQUARES: usize = 16_384;

/// Elements of a block of `adamw`.
const UPDATES: usize = 2_048;

/// Elements that one byte of the table speaks for.
const GROUP: usize = 64;

/// Set in a byte of the table where weight decay applies.
const DECAYS: u8 = 128;

/// AdamW's table on the device: of each 64 elements, how many are updated, and whether they decay.
#[derive(Debug)]
pub struct Groups {
    /// What it was made for.
    spans: Vec<UpdateSpan>,
    /// [flat / 64] u8
    table: Allocation,
}

/// `struct Step` of adamw.cu: what is the same for all values of a step.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub(in super::super) struct Step {
    /// Learning rate × weight decay.
    decay: f32,
    max_norm: f32,
    one_minus_beta1: f32,
    beta2: f32,
    one_minus_beta2: f32,
    /// Learning rate / (1 - β₁ᵗ)
    rate: f32,
    /// 1 / √(1 - β₂ᵗ)
    root: f32,
    epsilon: f32,
    loss_limit: f32,
    norm_limit: f32,
}

impl Step {
    /// Worked out in f64, as the CPU does.
    pub(in super::super) fn new(hyper: &AdamW) -> Step {
        let (rate, step) = (f64::from(hyper.learning_rate), f64::from(hyper.step));
        let correction = |beta: f32| 1.0 - f64::from(beta).powf(step);
        Step {
            decay: (rate * f64::from(hyper.weight_decay)) as f32,
            max_norm: hyper.max_norm,
            one_minus_beta1: 1.0 - hyper.beta1,
            beta2: hyper.beta2,
            one_minus_beta2: 1.0 - hyper.beta2,
            rate: (rate / correction(hyper.beta1)) as f32,
            root: correction(hyper.beta2).sqrt().recip() as f32,
            epsilon: hyper.epsilon,
            loss_limit: hyper.limits.loss,
            norm_limit: hyper.limits.grad_norm,
        }
    }
}

/// The length of a flat buffer as kernels count.
fn elements(op: &'static str, flat: &Flat) -> Result<u32> {
    u32::try_from(flat.len()).map_err(|_| Error::Shape {
        op,
        what: "parameters",
        got: format!("[{}]", flat.len()),
        expected: format!("fewer than {}", u32::MAX),
    })
}

/// [`crate::backend::Backend::grad_norm`]
pub fn grad_norm<D: Device>(be: &CudaBackend<D>, grads: &Flat, tally: &mut Tally) -> Result<()>
where
    D::Buffer: 'static,
{
    let len = elements("grad_norm", grads)?;
    let partials = grads.len().div_ceil(SQUARES);
    let partial = be.scratch(Scratch::Partials, partials * size_of::<f64>())?;
    let args = [Arg::Read(grads.region()), Arg::U32(len), Arg::Write(partial)];
    be.launch(&FAMILY, &[], "grad_squares", [partials, 1, 1], 256 * 8, &args)?;
    let args = [Arg::Read(partial), Arg::U32(partials as u32), Arg::Update(tally.region())];
    be.launch(&FAMILY, &[], "grad_norm", [1, 1, 1], 1024 * 8, &args)
}

/// [`crate::backend::Backend::adamw`]
#[allow(clippy::too_many_arguments)]
pub fn adamw<D: Device>(
    be: &CudaBackend<D>, w: &mut Weights, grads: &Flat, m: &mut Flat, v: &mut Flat, spans: &[UpdateSpan],
    hyper: &Allocation, tally: &Tally,
) -> Result<()>
where
    D::Buffer: 'static,
{
    const OP: &str = "adamw";
    // Everything is checked before anything is changed.
    elements(OP, &w.master)?;
    let len = dim("parameters", w.master.len());
    for (what, flat) in [("gradients", grads), ("first moment", &*m), ("second moment", &*v)] {
        flat.span(OP, what, Span { offset: 0, len: flat.len() }, len)?;
    }
    let known = w.groups.as_ref().filter(|groups| groups.spans == spans);
    let groups = match known {
        Some(groups) => groups,
        None => {
            let bytes = group_table(OP, &w.master, spans)?;
            let table = Allocation::new(be.device(), bytes.len(), "AdamW's table")?;
            be.upload_values(&bytes, table.region())?;
            w.groups.insert(Groups { spans: spans.to_vec(), table })
        }
    };
    let args = [
        Arg::Update(w.master.region()),
        Arg::Update(w.compute.region()),
        Arg::Read(grads.region()),
        Arg::Update(m.region()),
        Arg::Update(v.region()),
        Arg::Read(groups.table.region()),
        Arg::U32(groups.table.region().bytes() as u32),
        Arg::Read(hyper.region()),
        Arg::Read(tally.region()),
    ];
    be.launch(&FAMILY, &[], OP, [w.master.len().div_ceil(UPDATES), 1, 1], 0, &args)
}

/// One byte for each 64 elements: spans begin at multiples of that, so none has two of them.
fn group_table(op: &'static str, w: &Flat, spans: &[UpdateSpan]) -> Result<Vec<u8>> {
    let mut table = vec![0u8; w.len().div_ceil(GROUP)];
    for &UpdateSpan { span, decay } in spans {
        w.span(op, "span", span, dim("span", span.len))?;
        let groups = &mut table[span.offset / GROUP..][..span.len.div_ceil(GROUP)];
        if !span.offset.is_multiple_of(GROUP) || groups.iter().any(|&group| group != 0) {
            let got = format!("[{}] at {}", span.len, span.offset);
            let expected = format!("spans at multiples of {GROUP}, none over another");
            return Err(Error::Shape { op, what: "span", got, expected });
        }
        for (i, group) in groups.iter_mut().enumerate() {
            let live = (span.len - i * GROUP).min(GROUP) as u8;
            *group = if decay { live | DECAYS } else { live };
        }
    }
    Ok(table)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::UpdateLimits;

    #[test]
    fn a_step_is_as_large_as_the_kernel_reads() {
        assert_eq!(size_of::<Step>(), 40);
        let hyper = AdamW {
            learning_rate: 0.5,
            beta1: 0.75,
            beta2: 0.75,
            epsilon: 1e-8,
            weight_decay: 0.5,
            max_norm: 1.0,
            step: 1,
            limits: UpdateLimits::NONE,
        };
        let step = Step::new(&hyper);
        assert_eq!((step.decay, step.rate, step.root), (0.25, 2.0, 2.0));
        assert_eq!((step.one_minus_beta1, step.one_minus_beta2), (0.25, 0.25));
    }
}
