//! Each op of a training step of DistilBERT-base on 4096 tokens, on all threads.
//! Products report multiplications and additions per second (Gelem/s = GFLOP/s), the others the bytes they cannot but move.
//!
//! `cargo bench --bench ops`, or `cargo bench --bench ops -- attention` for those with that in their name.

mod base;

use std::time::Duration;

use criterion::{Criterion, Throughput};

fn main() {
    let mut criterion =
        Criterion::default().configure_from_args().sample_size(10).warm_up_time(Duration::from_millis(500));
    let mut base = base::Base::new().expect("memory for the operands");
    let mut group = criterion.benchmark_group("base, 4096 tokens");
    for op in base::OPS {
        group.throughput(if op.flops > 0.0 {
            Throughput::Elements(op.flops as u64)
        } else {
            Throughput::Bytes(op.bytes as u64)
        });
        let name = format!("{} ({} a step)", op.name, op.per_step);
        group.bench_function(name, |bencher| bencher.iter(|| (op.run)(&mut base).expect(op.name)));
    }
    group.finish();
    criterion.final_summary();
}
