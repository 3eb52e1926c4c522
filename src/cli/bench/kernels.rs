//! `handbert bench kernels`.

use anyhow::{Result, bail};
use serde_json::json;

use super::{Machine, Size, batch_json, batch_text, caution, duration, model_text};
use crate::backend::Backend;
use crate::bench::calls;
use crate::bench::kernels::{Measurement, Wanted};
use crate::bench::shapes::{self, Lengths};
use crate::cli::{Common, Outcome};

/// Tokens in a batch on a CPU.
const CPU_TOKENS: usize = 2048;

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    size: Size,
    /// Only ops with this in their name, as in linear_backward; several, comma-separated
    #[arg(long, value_delimiter = ',', value_name = "NAME")]
    only: Vec<String>,
}

pub fn run<B: Backend>(be: &B, args: &Args, common: &Common) -> Result<Outcome> {
    check_names::<B>(&args.only)?;
    let (size, precision) = (&args.size, be.precision());
    let (config, effort) = (size.config()?, size.effort(precision));
    let tokens = size.tokens(precision, CPU_TOKENS);
    let machine = Machine::new(be, &effort)?;
    let wanted = Wanted { config: &config, tokens, effort: &effort, only: &args.only };
    let measured = wanted.everything(be, &mut tell)?;
    let machine = machine.again(be, &effort)?;

    let lengths = Lengths::Mixed.of(tokens, config.max_position_embeddings);
    let load = shapes::load(&shapes::batch(&lengths, config.vocab_size, 0, 1));
    let mut json = machine.as_json();
    json["quick"] = json!(size.quick);
    json["effort"] = json!(effort);
    json["config"] = config.to_json("DistilBertForMaskedLM");
    json["batch"] = batch_json(&load);
    json["ops"] = measured.iter().map(|m| machine.op_json(m)).collect();
    let text = [
        machine.as_text(),
        model_text(&config),
        batch_text(&load),
        caution(size).to_owned(),
        "\n".to_owned(),
        machine.ops_text(&measured),
    ];
    common.print(&json, &text.concat())?;
    Ok(outcome(&measured))
}

/// A log line for each op as it is measured, so that something is left of a run that is cut short.
pub fn tell(m: &Measurement) {
    match &m.outcome {
        Ok(timing) => tracing::info!("{}: {}", m.name, duration(timing.median)),
        Err(error) => tracing::warn!("{}: {error}", m.name),
    }
}

/// Whether all of it was measured.
pub fn outcome(measured: &[Measurement]) -> Outcome {
    if measured.iter().all(|m| m.outcome.is_ok()) { Outcome::Done } else { Outcome::SomeRowsBad }
}

fn check_names<B: Backend>(only: &[String]) -> Result<()> {
    let calls = calls::all::<B>();
    for part in only {
        if !calls.iter().any(|call| call.name.contains(part.as_str())) {
            let names: Vec<_> = calls.iter().filter(|c| c.lengths == Lengths::Mixed).map(|c| c.name).collect();
            bail!("--only {part}: no op has that in its name; there are {}", names.join(", "));
        }
    }
    Ok(())
}
