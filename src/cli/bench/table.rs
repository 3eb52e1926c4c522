//! Measurements, for programs and for people.

use serde_json::{Value, json};

use super::Machine;
use super::rate;
use crate::bench::gpu::Ceiling;
use crate::bench::kernels::Measurement;
use crate::bench::shapes::Lengths;

impl Machine {
    /// FLOP/s or bytes/s, whichever bounds the op by what was measured.
    fn bound(&self, m: &Measurement) -> Ceiling {
        self.measured.ceilings().bound(&m.cost())
    }

    /// The least time by what was measured, over the time taken.
    fn share(&self, m: &Measurement) -> Option<f64> {
        m.seconds().map(|seconds| m.floor(&self.measured.ceilings()) / seconds)
    }

    fn expected(&self, m: &Measurement) -> Option<f64> {
        self.gpu.map(|gpu| m.expected(gpu))
    }

    /// Every figure of an op, in FLOPs, bytes and seconds a call.
    pub fn op_json(&self, m: &Measurement) -> Value {
        let (cost, first) = (m.cost(), &m.ops[0]);
        let per_second = |work: f64| m.seconds().filter(|_| work > 0.0).map(|seconds| work / seconds);
        let mut figures = json!({
            "name": m.name,
            "call": first.call,
            "part": first.part,
            "pass": first.pass,
            "makes": m.ops.iter().map(|op| op.name).collect::<Vec<_>>(),
            "lengths": m.lengths,
            "times": m.times,
            "formula": m.formula,
            "flops": cost.flops,
            "bytes": cost.bytes,
            "flops_per_second": per_second(cost.flops),
            "bytes_per_second": per_second(cost.bytes),
            "bound": self.bound(m),
            "share_of_measured": self.share(m),
            "floor_seconds": m.floor(&self.ceilings()),
            "expected_seconds": self.expected(m),
        });
        match &m.outcome {
            Ok(timing) => {
                let timing = serde_json::to_value(timing).unwrap_or_default();
                for (name, value) in timing.as_object().into_iter().flatten() {
                    figures[name.as_str()] = value.clone();
                }
            }
            Err(error) => figures["error"] = json!(error),
        }
        figures
    }

    /// A line for each op, and what they come to.
    pub fn ops_text(&self, measured: &[Measurement]) -> String {
        let mut text = COLUMNS.to_owned();
        for m in measured {
            text += &self.op_text(m);
        }
        let sum = |of: &dyn Fn(&Measurement) -> f64| measured.iter().map(|m| m.times as f64 * of(m)).sum::<f64>() * 1e3;
        let seconds = sum(&|m| m.seconds().unwrap_or(0.0));
        let floor = sum(&|m| m.floor(&self.ceilings()));
        let expected = match self.gpu {
            Some(gpu) => format!("{:.3}", sum(&|m| m.expected(gpu))),
            None => "-".to_owned(),
        };
        text + &format!("= ms a pass{seconds:>76.3}   floor {floor:.3}   expected {expected}\n{NOTE}")
    }

    fn op_text(&self, m: &Measurement) -> String {
        let name = if m.lengths == Lengths::Equal { format!("{}, equal lengths", m.name) } else { m.name.to_owned() };
        let timing = match &m.outcome {
            Ok(timing) => timing,
            Err(error) => return format!("{name:<37}{:>6}  failed: {error}\n", m.times),
        };
        let (cost, seconds) = (m.cost(), timing.median);
        let reached = match self.bound(m) {
            Ceiling::MatrixRate => rate(cost.flops / seconds, "FLOP/s"),
            Ceiling::Bandwidth => rate(cost.bytes / seconds, "B/s"),
        };
        let expected = self.expected(m).map_or("-".to_owned(), |expected| format!("{:.1}", expected * 1e6));
        format!(
            "{name:<37}{:>6}{:>12.1}{:>8.1} %{reached:>16}{:>7.1} %{:>12.1}{expected:>12}{:>10.3}  {}\n",
            m.times,
            seconds * 1e6,
            100.0 * (timing.worst - timing.best) / seconds,
            100.0 * self.share(m).unwrap_or(f64::NAN),
            m.floor(&self.ceilings()) * 1e6,
            m.times as f64 * seconds * 1e3,
            m.formula,
        )
    }
}

/// They line up with those of [`Machine::op_text`].
const COLUMNS: &str = "\
op                                    times     us/call   spread            rate  reached    floor us expected us    ms all  counted as
";

const NOTE: &str = "\
us/call is the median of several runs, spread the slowest less the quickest. The rate is FLOP or bytes, as the work is counted,
over the time: FLOP where the measured product bounds the op, bytes where the measured copy does. Reached is the least time by
these two measured ceilings over the time. Times is how often a pass makes the call; 0 stands beside it.
Letters: N tokens, M masked, B sequences, C width, F feed-forward width, V vocabulary, P positions, K classes, S length of the
sequence that a token is in, W different words, A parameters, e bytes of an activation.
";
