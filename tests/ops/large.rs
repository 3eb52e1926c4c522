//! The cases for a real GPU, at sizes for a CPU.

use handbert::check::{Effort, Family, Orders, Scale};

/// More than a sample of everything, and no round number.
const SMALL: Scale =
    Scale { tokens: 700, rows: 1500, beyond: 900, width: 128, heads: 2, feed_forward: 192, vocab: 1000 };

fn passes<B: handbert::backend::Backend + Sync>(be: &B, orders: &Orders) {
    let report = super::report(be, orders, Effort::Large(SMALL), Family::Large);
    assert!(report.is_right(), "{report}");
    assert_eq!(report.cases, 11);
}

#[test]
fn on_the_cpu() {
    passes(&handbert::backend::cpu::Cpu::new(), &super::threads());
}

#[test]
fn on_the_simulated_gpu() {
    if let Some(backend) = super::sim_device::backend() {
        passes(&backend, &Orders::Device);
    }
}
