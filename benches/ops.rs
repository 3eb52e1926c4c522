//! Each op of a training step of DistilBERT-base on 4096 tokens, on all threads.
//! Products report multiplications and additions per second (Gelem/s = GFLOP/s), the others the bytes they cannot but move.
//! `handbert bench kernels --device cpu` measures the same calls beside what the machine can do.
//!
//! `cargo bench --bench ops`, or `cargo bench --bench ops -- attention` for those with that in their name.

use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput};
use handbert::backend::Memory;
use handbert::backend::cpu::Cpu;
use handbert::bench::calls;
use handbert::bench::kernels::MOST_IN_PLACE;
use handbert::bench::measure::Effort;
use handbert::bench::operands::Operands;
use handbert::bench::ops::{Op, ops};
use handbert::bench::shapes::{Lengths, base_config};
use handbert::model::{Head, Mode};

const TOKENS: usize = 4096;

fn main() {
    let mut criterion =
        Criterion::default().configure_from_args().sample_size(10).warm_up_time(Duration::from_millis(500));
    let (be, config, mode) = (Cpu::new(), base_config(), Mode::Training);
    let effort = Effort::full(be.precision());
    let mut operands = Operands::new(&be, &config, Head::Mlm, TOKENS, mode).expect("memory for a model");
    let ops = ops(&config, Head::Mlm, &operands.load(Lengths::Mixed), mode, be.precision());
    let mut group = criterion.benchmark_group("base, 4096 tokens");
    for call in calls::all::<Cpu>().iter().filter(|call| call.lengths == Lengths::Mixed) {
        let made = call.ops(&ops);
        let Some(times) = made.first().map(|op| op.times) else { continue };
        let sum = |of: fn(&Op) -> f64| made.iter().map(|op| of(op)).sum::<f64>();
        let (flops, bytes) = (sum(|op| op.cost.flops), sum(|op| op.cost.bytes));
        group.throughput(if flops > 0.0 {
            Throughput::Elements(flops as u64)
        } else {
            Throughput::Bytes(bytes as u64)
        });
        let mut sets = None;
        group.bench_function(format!("{} ({times} a step)", call.name), |bencher| {
            let count = call.cold_sets(&effort, bytes);
            let sets = sets.get_or_insert_with(|| call.ready(&mut operands, count).expect(call.name));
            let at_once = MOST_IN_PLACE * sets.len();
            bencher.iter_custom(|calls| {
                let mut spent = Duration::ZERO;
                for begin in (0..calls).step_by(at_once) {
                    operands.refresh(sets, call.lengths).expect(call.name);
                    let clock = Instant::now();
                    for number in begin..calls.min(begin + at_once as u64) {
                        (call.run)(&mut operands, &mut sets[number as usize % count]).expect(call.name);
                        operands.number += 1;
                    }
                    spent += clock.elapsed();
                }
                spent
            });
        });
    }
    group.finish();
    criterion.final_summary();
}
