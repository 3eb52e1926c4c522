//! `handbert kernels check`: is every op right on the device at hand?

use std::time::Instant;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::backend::{Backend, Precision};
use crate::check::{self, Effort, Family, Orders, Progress, Report, Scale};
use crate::cli::device::AnyBackend;
use crate::cli::{Common, Outcome};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Small shapes only, for tools that slow a kernel down a hundred times, as compute-sanitizer
    #[arg(long)]
    quick: bool,
}

pub fn run(args: &Args, common: &Common) -> Result<Outcome> {
    match common.backend()? {
        AnyBackend::Cpu(be) => {
            let orders = Orders::threads(&[1, 2, 3]).context("starting the threads")?;
            on(&be, &orders, args, common)
        }
        AnyBackend::Cuda(be) => on(&*be, &Orders::Device, args, common),
    }
}

fn on<B: Backend + Sync>(be: &B, orders: &Orders, args: &Args, common: &Common) -> Result<Outcome> {
    let effort = match (args.quick, be.precision()) {
        (true, _) => Effort::Quick,
        (false, Precision::F32) => Effort::Suite,
        (false, Precision::Bf16) => Effort::Large(Scale::BASE),
    };
    let (began, mut at) = (Instant::now(), Instant::now());
    let report = check::check(be, orders, effort, &Family::ALL, &mut |progress| match progress {
        Progress::Failure(failure) => tracing::warn!("{failure}"),
        Progress::Family { cases: 0, .. } => {}
        Progress::Family { family, cases, failures } => {
            tracing::info!("{family:?}: {cases} cases, {failures} failures  [{:.1} s]", at.elapsed().as_secs_f64());
            at = Instant::now();
        }
    });
    let (device, seconds) = (be.describe(), began.elapsed().as_secs_f64());
    let told = format!("{report}\n{}", verdict(&report, &device, seconds));
    common.print(&as_json(&report, &device, seconds, args)?, &told)?;
    outcome(&report, &device)
}

/// Every figure of the table, each failure, and the verdict.
fn as_json(report: &Report, device: &str, seconds: f64, args: &Args) -> Result<Value> {
    let mut json = json!({ "device": device, "quick": args.quick, "right": report.is_right(), "seconds": seconds });
    let report = serde_json::to_value(report).context("the report as JSON")?;
    for (name, figures) in report.as_object().into_iter().flatten() {
        json[name.as_str()] = figures.clone();
    }
    Ok(json)
}

fn verdict(report: &Report, device: &str, seconds: f64) -> String {
    let Report { cases, runs, failures, .. } = report;
    let verdict = if report.is_right() { "right" } else { "WRONG" };
    format!("{verdict}: {} failures in {cases} cases, {runs} runs, {seconds:.1} s, on {device}\n", failures.len())
}

/// An error where anything is wrong, or was not looked at.
fn outcome(report: &Report, device: &str) -> Result<Outcome> {
    if report.is_right() {
        return Ok(Outcome::Done);
    }
    if let Some(error) = &report.lost {
        bail!("{device} answers no more, after: {error}");
    }
    let mut ops: Vec<&str> = report.failures.iter().map(|failure| failure.op).collect();
    ops.dedup();
    bail!("wrong on {device}: {}; believe nothing that it computes", ops.join(", "));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::{Failure, Fault};

    #[test]
    fn only_a_report_without_failures_ends_well() {
        let right = Report { cases: 3, runs: 6, ..Report::default() };
        assert_eq!(outcome(&right, "a device").unwrap(), Outcome::Done);
        let fault = Fault::Length { output: "y", got: 1, expected: 2 };
        let wrong = Report { failures: vec![Failure { op: "linear", shape: "[1]".into(), fault }], ..right.clone() };
        let lost = Report { lost: Some("gone".into()), ..right.clone() };
        let cut = Report { left_out: 1, ..right.clone() };
        for bad in [wrong, lost, cut, Report::default()] {
            assert!(outcome(&bad, "a device").is_err(), "{bad}");
            assert!(verdict(&bad, "a device", 1.0).starts_with("WRONG"));
        }
    }
}
