//! The plan, for programs and for people.

use serde_json::{Value, json};

use super::{Plan, Task};
use crate::backend::Precision;
use crate::bench::gpu::Ceiling;
use crate::bench::ops::{Part, Pass, ops};
use crate::bench::{Op, Time, Total};
use crate::cli::figures::grouped;
use crate::model::ParamTable;

/// Said with every plan.
const CAUTION: &str = "Nothing here was measured. A floor is what the datasheet's rates allow: an op's FLOPs over the matrix \
                       rate or its bytes over the bandwidth, whichever takes longer, one op after another. What is \
                       expected takes these shares of the rates:";

const PASSES: [(Pass, &str); 3] = [(Pass::Forward, "forward"), (Pass::Backward, "backward"), (Pass::Update, "update")];

impl Plan {
    fn ops(&self) -> Vec<Op> {
        ops(&self.config, self.head, &self.load, self.task.mode(), Precision::Bf16)
    }

    fn parameters(&self) -> u64 {
        ParamTable::new(&self.config, self.head).parameters() as u64
    }

    /// Weights, and in training both moments, in f32: what a checkpoint takes on disk.
    fn checkpoint_bytes(&self) -> u64 {
        self.parameters() * if self.task == Task::Predict { 4 } else { 12 }
    }

    fn tokens_per_second(&self, seconds: f64) -> f64 {
        self.load.tokens as f64 / seconds
    }
}

// ---- For programs ------------------------------------------------------------------------------------------------------

/// Every figure, in FLOPs, bytes and seconds.
pub fn as_json(plan: &Plan) -> Value {
    let ops = plan.ops();
    let step = Total::of(&ops, plan.gpu);
    let memory = plan.memory.total();
    let mut kinds = serde_json::to_value(plan.memory).unwrap_or_default();
    kinds["total"] = json!(memory);
    let pace = |seconds: f64| {
        json!({
            "seconds": seconds,
            "tokens_per_second": plan.tokens_per_second(seconds),
            "mfu": step.utilisation(seconds, plan.gpu),
        })
    };
    json!({
        "measured": false,
        "task": plan.task,
        "parameters": plan.parameters(),
        "config": plan.config.to_json(plan.head.architecture()),
        "gpu": {
            "id": plan.gpu.id,
            "name": plan.gpu.name,
            "flops_per_second": plan.gpu.matrix_rate,
            "bytes_per_second": plan.gpu.bandwidth,
            "memory_bytes": plan.gpu.memory,
            "source": plan.gpu.source,
        },
        "batch": {
            "tokens": plan.load.tokens,
            "max_length": plan.batching.max_length,
            "mean_length": plan.load.mean_length,
            "sequences": plan.load.sequences(),
            "masked": plan.load.masked,
            "most_sequences": plan.capacity.sequences,
            "most_masked": plan.capacity.masked,
        },
        "ops": ops.iter().map(|op| op_json(op, plan)).collect::<Vec<_>>(),
        "step": {
            "flops": step.flops.round() as u64,
            "bytes": step.bytes.round() as u64,
            "flops_per_token": step.flops / plan.load.tokens as f64,
            "floor": pace(step.floor),
            "expected": pace(step.expected),
        },
        "expected_shares": shares(plan),
        "memory_bytes": kinds,
        "memory_share": memory as f64 / plan.gpu.memory as f64,
        "checkpoint_bytes": plan.checkpoint_bytes(),
        "corpus": plan.corpus.map(|corpus| corpus.as_json(plan.load.tokens, &step)),
    })
}

fn op_json(op: &Op, plan: &Plan) -> Value {
    let time = Time::of(op, plan.gpu);
    json!({
        "part": op.part,
        "pass": op.pass,
        "name": op.name,
        "call": op.call,
        "kind": op.kind,
        "shape": op.shape,
        "times": op.times,
        "flops": op.cost.flops.round() as u64,
        "bytes": op.cost.bytes.round() as u64,
        "cached_bytes": op.cost.cached_bytes.round() as u64,
        "seconds_by_flops": time.by_flops,
        "seconds_by_bytes": time.by_bytes,
        "floor_seconds": time.floor(),
        "bound": time.bound(),
        "expected_seconds": time.expected,
    })
}

fn shares(plan: &Plan) -> Value {
    let of = |(name, fraction): (&str, crate::bench::gpu::Fraction)| {
        let figures = json!({ "share": fraction.share, "of": fraction.ceiling, "source": fraction.source });
        (name.to_owned(), figures)
    };
    Value::Object(plan.gpu.expected.by_name().into_iter().map(of).collect())
}

// ---- For people --------------------------------------------------------------------------------------------------------

/// The same, as tables.
pub fn as_text(plan: &Plan) -> String {
    let ops = plan.ops();
    let step = Total::of(&ops, plan.gpu);
    let tables =
        [heading(plan), table(plan, &ops), paces(plan, &step), memory(plan), corpus(plan, &step), caution(plan)];
    tables.into_iter().filter(|table| !table.is_empty()).collect::<Vec<_>>().join("\n")
}

fn heading(plan: &Plan) -> String {
    let what = match plan.task {
        Task::Mlm => "a training step of masked-language modelling",
        Task::Classifier => "a training step of a classifier",
        Task::Predict => "a forward pass of a classifier",
    };
    let (config, gpu, load) = (&plan.config, plan.gpu, &plan.load);
    let masked = match load.masked {
        0 => String::new(),
        masked => format!(", {} of them masked", grouped(masked as u64)),
    };
    format!(
        "{what}, before it is run\n  model  {} layers of width {}, {} parameters\n  card   {}: {:.0} TFLOP/s in bf16, {:.2} \
         TB/s, {}\n  batch  {} tokens in sequences of {:.1} on average, of {} at most{masked}\n",
        config.n_layers,
        config.dim,
        grouped(plan.parameters()),
        gpu.name,
        gpu.matrix_rate / 1e12,
        gpu.bandwidth / 1e12,
        bytes(gpu.memory),
        grouped(load.tokens as u64),
        load.mean_length,
        plan.batching.max_length,
    )
}

/// Columns line up with those of [`row`] and [`sum`].
const COLUMNS: &str = "\
GFLOP, MB and us are of one run of an op, ms of all of them
part        op                 times     GFLOP         MB  us by FLOP  us by byte    ms floor  ms expected
";

fn table(plan: &Plan, ops: &[Op]) -> String {
    let mut text = COLUMNS.to_owned();
    for (pass, name) in PASSES {
        let of_pass: Vec<_> = ops.iter().filter(|op| op.pass == pass).collect();
        if of_pass.is_empty() {
            continue;
        }
        for op in &of_pass {
            text += &row(op, &Time::of(op, plan.gpu));
        }
        text += &sum(name, &Total::of(of_pass, plan.gpu));
    }
    text + &sum("all", &Total::of(ops, plan.gpu))
}

fn row(op: &Op, time: &Time) -> String {
    let part = match op.part {
        Part::Embeddings => "embeddings",
        Part::Block => "block",
        Part::MlmHead | Part::ClassHead => "head",
        Part::Update => "update",
    };
    let times = op.times as f64;
    format!(
        "{part:<12}{:<18}{:>6}{:>10.1}{:>11.1}{:>12.1}{:>12.1}{:>12.3}{:>13.3}\n",
        op.name,
        op.times,
        op.cost.flops / 1e9,
        op.cost.bytes / 1e6,
        time.by_flops * 1e6,
        time.by_bytes * 1e6,
        times * time.floor() * 1e3,
        times * time.expected * 1e3,
    )
}

fn sum(name: &str, total: &Total) -> String {
    format!(
        "= {name:<34}{:>10.1}{:>11.1}{:>12}{:>12}{:>12.3}{:>13.3}\n",
        total.flops / 1e9,
        total.bytes / 1e6,
        "",
        "",
        total.floor * 1e3,
        total.expected * 1e3,
    )
}

fn paces(plan: &Plan, step: &Total) -> String {
    let line = |name: &str, seconds: f64| {
        format!(
            "{name:<14}{:>10.3} ms{:>14} tokens/s{:>9.1} % of the matrix rate\n",
            seconds * 1e3,
            grouped(plan.tokens_per_second(seconds) as u64),
            100.0 * step.utilisation(seconds, plan.gpu),
        )
    };
    format!(
        "{}{}{:.1} MFLOP a token\n",
        line("at the floor", step.floor),
        line("as expected", step.expected),
        step.flops / plan.load.tokens as f64 / 1e6,
    )
}

fn memory(plan: &Plan) -> String {
    let room = plan.capacity;
    let masked = if room.masked == 0 { String::new() } else { format!(" and {} masked", grouped(room.masked as u64)) };
    let (tokens, sequences) = (grouped(room.tokens as u64), grouped(room.sequences as u64));
    let mut text = format!("memory, with room for {tokens} tokens in {sequences} sequences{masked}\n");
    for (kind, size) in plan.memory.by_kind().into_iter().filter(|&(_, size)| size > 0) {
        text += &format!("  {kind:<16}{:>12}\n", bytes(size));
    }
    let (total, card) = (plan.memory.total(), plan.gpu.memory);
    let share = 100.0 * total as f64 / card as f64;
    text + &format!("= {:<16}{:>12}, {share:.1} % of {}\n", "all", bytes(total), bytes(card))
}

fn corpus(plan: &Plan, step: &Total) -> String {
    let checkpoint = bytes(plan.checkpoint_bytes());
    let (what, runs) = match plan.task {
        Task::Predict => ("the model", "batches"),
        Task::Mlm | Task::Classifier => ("each checkpoint", "steps"),
    };
    let Some(corpus) = plan.corpus else { return format!("disk: {checkpoint} for {what}\n") };
    let steps = corpus.steps(plan.load.tokens);
    let often = if corpus.epochs == 1.0 { "once".to_owned() } else { format!("{} times", corpus.epochs) };
    format!(
        "a corpus of {} postings, {} tokens, read {often}, with batches full and nothing held out\n  disk  {} for the token \
         set ({}), {checkpoint} for {what}\n  time  {} {runs}: {} at the floor, {} as expected\n",
        grouped(corpus.postings),
        grouped(corpus.tokens),
        bytes(corpus.token_set_bytes()),
        format!("{:?}", corpus.dtype()).to_lowercase(),
        grouped(steps as u64),
        duration(steps * step.floor),
        duration(steps * step.expected),
    )
}

fn caution(plan: &Plan) -> String {
    let mut text = wrapped(CAUTION, "");
    for (name, fraction) in plan.gpu.expected.by_name() {
        let of = match fraction.ceiling {
            Ceiling::MatrixRate => "matrix rate",
            Ceiling::Bandwidth => "bandwidth",
        };
        let name = name.replace('_', " ");
        text += &wrapped(&format!("  {name:<20}{:.2} of the {of}: {}", fraction.share, fraction.source), MARGIN);
    }
    text + &wrapped(&format!("  rates               {}", plan.gpu.source), MARGIN)
}

/// Under the text of a share.
const MARGIN: &str = "                      ";
/// Columns of a terminal that most have.
const WIDTH: usize = 110;

/// Lines of at most [`WIDTH`] characters where words allow it, all but the first behind `margin`.
fn wrapped(text: &str, margin: &str) -> String {
    let (mut lines, mut column) = (String::new(), 0);
    for word in text.split_inclusive(' ') {
        if column + word.trim_end().chars().count() > WIDTH {
            lines.truncate(lines.trim_end().len());
            lines += &format!("\n{margin}");
            column = margin.len();
        }
        lines += word;
        column += word.chars().count();
    }
    lines + "\n"
}

/// In units of powers of 1,000.
pub fn bytes(bytes: u64) -> String {
    let (mut size, mut unit) = (bytes as f64, "B");
    for next in ["kB", "MB", "GB", "TB", "PB"] {
        if size >= 999.95 {
            (size, unit) = (size / 1e3, next);
        }
    }
    if unit == "B" { format!("{bytes} B") } else { format!("{size:.1} {unit}") }
}

fn duration(seconds: f64) -> String {
    match seconds {
        s if s < 60.0 => format!("{s:.1} s"),
        s if s < 3600.0 => format!("{:.0} min {:.0} s", (s / 60.0).floor(), (s % 60.0).floor()),
        s if s < 48.0 * 3600.0 => format!("{:.1} h", s / 3600.0),
        s => format!("{:.1} days", s / 86_400.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_times_are_told_in_units_people_use() {
        let sizes = [0, 999, 1000, 999_949, 999_950, 141_000_000_000, u64::MAX].map(bytes);
        assert_eq!(sizes, ["0 B", "999 B", "1.0 kB", "999.9 kB", "1.0 MB", "141.0 GB", "18446.7 PB"]);
        let times = [0.25, 59.0, 61.5, 3600.0, 200_000.0].map(duration);
        assert_eq!(times, ["0.2 s", "59.0 s", "1 min 1 s", "1.0 h", "2.3 days"]);
    }
}
