//! A whole training step of DistilBERT-base (MLM, dropout 0.1, AdamW) on 4096 tokens: tokens per second. Beside PyTorch's step:
//! benches/peers/side_by_side.py. `handbert bench train --device cpu` also says which op takes how much of it.
//!
//! `cargo bench --bench step`, or `-- equal` for 8 sequences of 512 tokens instead of mixed lengths.

use handbert::backend::Memory;
use handbert::backend::cpu::Cpu;
use handbert::bench::pass::{Plan, random_batches, train};
use handbert::bench::shapes::{Lengths, base_config};
use handbert::train::Error;

const TOKENS: usize = 4096;

fn main() -> Result<(), Error> {
    let equal = std::env::args().any(|arg| arg == "equal");
    let lengths = if equal { Lengths::Equal } else { Lengths::Mixed };
    let (be, config) = (Cpu::new(), base_config());
    let batches = random_batches(&config, lengths, TOKENS, 1);
    let plan = Plan { config: &config, batches: &batches, warm_up: 1, timed: 5, seed: 1 };
    let steps = train(&be, &plan)?;
    let paces = &steps.paces;
    println!("{}; {} sequences, {TOKENS} tokens", be.describe(), paces.0[0].load.sequences());
    for (pace, loss) in paces.0.iter().zip(&steps.losses[plan.warm_up..]) {
        println!("{:.3} s, loss {loss:.4}", pace.seconds);
    }
    let best = paces.0.iter().map(|pace| pace.seconds).fold(f64::INFINITY, f64::min);
    let rate = |seconds: f64| TOKENS as f64 / seconds;
    println!("best {:.0} tokens/s, median {:.0} tokens/s", rate(best), rate(paces.median()));
    Ok(())
}
