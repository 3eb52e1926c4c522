//! A whole training step of DistilBERT-base (MLM, dropout 0.1, AdamW): tokens per second, and which
//! op takes how much of it. The same step in PyTorch: benches/peers/train_step.py.
//!
//! `cargo bench --bench step`, or `-- equal` for 8 sequences of 512 tokens instead of mixed lengths.

mod base;

use std::time::Instant;

use handbert::backend::Memory;
use handbert::backend::cpu::Cpu;
use handbert::backend::{AdamW, Backend};
use handbert::model::{DistilBert, Error, Head, Mode, ParamTable};

/// Steps timed, after one that is not.
const STEPS: u32 = 5;
/// Runs of each op.
const RUNS: usize = 3;

fn main() -> Result<(), Error> {
    let equal = std::env::args().any(|arg| arg == "equal");
    let lengths = if equal { vec![512; 8] } else { base::LENGTHS.to_vec() };
    let be = Cpu::new();
    println!("{}; {} sequences, {} tokens", be.describe(), lengths.len(), lengths.iter().sum::<usize>());
    let seconds = step(&be, &base::Arrays::new(&lengths))?;
    if !equal {
        shares(seconds)?;
    }
    Ok(())
}

/// Median seconds of a step.
fn step(be: &Cpu, arrays: &base::Arrays) -> Result<f64, Error> {
    let config = base::config();
    let table = ParamTable::new(&config, Head::Mlm);
    let mut model = DistilBert::new(be, config.clone(), Head::Mlm, &table.initial_weights(&config, 1))?;
    let mut ws = model.workspace(be, arrays.capacity(), Mode::Training, 7)?;
    let flat = || be.flat(table.flat_len);
    let (mut grads, mut m, mut v) = (flat()?, flat()?, flat()?);
    let spans = table.update_spans();
    let mut times = Vec::new();
    for number in 0..=STEPS {
        let start = Instant::now();
        model.upload(be, &arrays.view(number), &mut ws)?;
        be.zero(&mut grads)?;
        model.loss_and_grads(be, &mut ws, &mut grads)?;
        be.grad_norm(&grads, &mut ws.tally)?;
        let hyper = AdamW { step: number + 1, ..base::ADAMW };
        be.adamw(&mut model.weights, &grads, &mut m, &mut v, &spans, &hyper, &ws.tally)?;
        let tally = be.take_tally(&mut ws.tally)?;
        times.push(start.elapsed().as_secs_f64());
        println!("step {number}: {:.3} s, loss {:.4}", times[number as usize], tally.loss / tally.weight);
    }
    let timed = &mut times[1..];
    timed.sort_by(f64::total_cmp);
    let (best, median) = (timed[0], timed[timed.len() / 2]);
    let tokens = arrays.capacity().tokens as f64;
    println!("best {:.0} tokens/s, median {:.0} tokens/s", tokens / best, tokens / median);
    Ok(median)
}

/// Best time of each op, and its share of the step.
fn shares(step: f64) -> Result<(), Error> {
    let mut base = base::Base::new()?;
    let mut total = 0.0;
    println!("{:32} {:>9} {:>6} {:>8} {:>8} {:>7}", "op", "ms", "calls", "GFLOP/s", "GB/s", "share");
    for op in base::OPS {
        let mut best = f64::INFINITY;
        for _ in 0..RUNS {
            let start = Instant::now();
            (op.run)(&mut base)?;
            best = best.min(start.elapsed().as_secs_f64());
        }
        let spent = best * op.per_step as f64;
        total += spent;
        let rate = |work: f64| if work > 0.0 { format!("{:.1}", work / best / 1e9) } else { String::new() };
        let (ms, share) = (best * 1e3, spent / step * 100.0);
        println!("{:32} {ms:9.2} {:>6} {:>8} {:>8} {share:6.1}%", op.name, op.per_step, rate(op.flops), rate(op.bytes));
    }
    println!("{:32} {:9.2} {:31} {:6.1}%", "all of them", total * 1e3, "", total / step * 100.0);
    Ok(())
}
