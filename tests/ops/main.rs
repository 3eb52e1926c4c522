//! Every op of the `Backend` trait against the f64 reference: the suite of `handbert::check`, stamped for each backend.
//!
//! `cargo test --test ops -- --nocapture` prints each op's worst error beside what is allowed.

#[path = "../support/faulty_device.rs"]
#[allow(dead_code)] // Whole runs use the rest.
mod faulty_device;
#[path = "../support/instruction_sets.rs"]
mod instruction_sets;
#[path = "../support/sim_device.rs"]
mod sim_device;
#[path = "../support/simulator.rs"]
mod simulator;
#[path = "../support/skip.rs"]
mod skip;

mod caught;
mod large;
mod library;
mod oracle;
mod products;
mod refusals;
mod upload;

use handbert::backend::Backend;
use handbert::check::{Effort, Family, Orders, Report, check};

/// On one, two and three threads; on two alone, where all of it is done once more under another instruction set.
fn threads() -> Orders {
    let pools: &[usize] = if std::env::var_os("HANDBERT_SIMD").is_none() { &[1, 2, 3] } else { &[2] };
    Orders::threads(pools).expect("threads")
}

/// What came of one family, which the output of a failed test shows.
fn report<B: Backend + Sync>(be: &B, orders: &Orders, effort: Effort, family: Family) -> Report {
    let report = check(be, orders, effort, &[family], &mut |_| ());
    println!("{family:?}\n{report}");
    report
}

/// The whole of a family passes, and it has as many cases as that.
fn passes<B: Backend + Sync>(be: &B, orders: &Orders, family: Family, cases: usize) {
    let report = report(be, orders, Effort::Suite, family);
    assert!(report.is_right(), "{report}");
    assert_eq!(report.cases, cases, "cases of {family:?}");
    let each = if let Orders::Threads(pools) = orders { 2 + pools.len() } else { 2 };
    assert!(report.runs >= each * cases - 4, "{} runs of {cases} cases", report.runs);
    assert!(report.rows.iter().all(|row| row.share <= 1.0));
}

/// The whole suite, one test per family, for a backend.
macro_rules! stamp {
    ($name:ident, $backend:expr, $orders:expr) => {
        mod $name {
            use handbert::check::Family;

            stamp!(@families $backend, $orders,
                embedding: Embedding 19,
                linear: Linear 19,
                gelu: Gelu 10,
                attention: Attention 23,
                layernorm: LayerNorm 35,
                rows: Rows 31,
                vocabulary: Vocabulary 14,
                classes: Classes 44,
                top_k: TopK 7,
                optimizer: Optimizer 21,
            );
            stamp!(@host $backend, refusals upload);
        }
    };
    (@families $backend:expr, $orders:expr, $($name:ident: $family:ident $cases:literal,)*) => {
        $(
            #[test]
            fn $name() {
                if let Some(backend) = $backend {
                    super::passes(&backend, &$orders, Family::$family, $cases);
                }
            }
        )*
    };
    (@host $backend:expr, $($name:ident)*) => {
        $(
            #[test]
            fn $name() {
                if let Some(backend) = $backend {
                    super::$name::suite(&backend);
                }
            }
        )*
    };
}

/// On which "a second run" relies to be one in another order.
#[test]
fn launches_on_the_simulated_gpu_have_an_order_each() {
    let Some(device) = sim_device::SimDevice::new(1) else { return };
    let other = sim_device::SimDevice::new(2).expect("a compiler was there");
    let seeds: std::collections::HashSet<u64> =
        [&device, &other].into_iter().flat_map(|device| (0..1000).map(|_| device.draw_seed())).collect();
    assert_eq!(seeds.len(), 2000);
}

stamp!(cpu, Some(handbert::backend::cpu::Cpu::new()), super::threads());
stamp!(cuda, super::sim_device::backend(), handbert::check::Orders::Device);
