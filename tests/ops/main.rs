//! Every op of the `Backend` trait against the f64 oracle: one suite, stamped for each backend.
//!
//! A family's file holds its cases: how the op is run on a backend, and how the oracle computes the same. `harness::check`
//! compares the two and asks for equal bits from two runs, from one, two and three threads (or orders of a simulated GPU's
//! threads), and from memory that an earlier batch has used. `HANDBERT_RATIOS=1 cargo test --test ops -- --nocapture` prints
//! each error.

#[path = "../support/random.rs"]
mod random;
#[path = "../support/reference/mod.rs"]
mod reference;
#[path = "../support/sim_device.rs"]
mod sim_device;
#[path = "../support/simulator.rs"]
mod simulator;
#[path = "../support/tolerance.rs"]
mod tolerance;

mod batches;
mod harness;
mod params;

mod attention;
mod classes;
mod embedding;
mod gelu;
mod layernorm;
mod library;
mod linear;
mod optimizer;
mod oracle;
mod products;
mod refusals;
mod rows;
mod top_k;
mod upload;
mod vocabulary;

/// The whole suite, one test per family, for a backend.
macro_rules! stamp {
    ($name:ident, $backend:expr) => {
        mod $name {
            stamp!(@families $backend, embedding linear gelu attention layernorm rows vocabulary classes top_k);
            stamp!(@families $backend, optimizer refusals upload);
        }
    };
    (@families $backend:expr, $($family:ident)*) => {
        $(
            #[test]
            fn $family() {
                if let Some(backend) = $backend {
                    super::$family::suite(&backend);
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

stamp!(cpu, Some(handbert::backend::cpu::Cpu::new()));
stamp!(cuda, super::sim_device::backend());
