//! From gradients to new weights.

use super::Call;
use crate::backend::Backend;
use crate::bench::ops::{Part, Pass};

/// In the order of train/step.rs.
pub fn all<B: Backend>() -> [Call<B>; 3] {
    let step = || Call { prepare: |s, _| s.reset(), ..Call::of(Part::Update, Pass::Update) };
    [
        Call { name: "zero", makes: &["zero"], formula: "4 A bytes", run: |s, _| s.be.zero(&mut s.grads), ..step() },
        Call {
            name: "grad_norm",
            makes: &["grad_norm"],
            formula: "4 A bytes",
            run: |s, _| s.be.grad_norm(&s.grads, &mut s.tally),
            ..step()
        },
        Call {
            name: "adamw",
            makes: &["adamw"],
            formula: "28 A bytes, 2 A more for a copy of the weights in bf16",
            run: |s, _| {
                let [m, v] = &mut s.moments;
                s.be.adamw(&mut s.w, &s.grads, m, v, &s.spans, &s.hyper, &s.tally)
            },
            ..step()
        },
    ]
}
