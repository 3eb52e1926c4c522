//! A device that is wrong is caught, whatever is wrong with it: the simulated GPU, spoilt.

use std::collections::{HashMap, HashSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytemuck::Pod;
use half::bf16;
use handbert::backend::Result;
use handbert::backend::cuda::CudaBackend;
use handbert::backend::cuda::device::{Access, Arg, Device, Launch, Region};
use handbert::check::reference::gelu::gelu_derivative;
use handbert::check::{Effort, Family, Fault, Orders, Report};

use crate::faulty_device::{self, AfterLaunch, Call, FaultyDevice, Trouble};
use crate::sim_device::SimDevice;

/// What a device with a fault, or one that does something after each launch, is found to do.
fn found(
    fault: Option<faulty_device::Fault>, after_launch: AfterLaunch, effort: Effort, family: Family,
) -> Option<Report> {
    let be = CudaBackend::new(FaultyDevice::new(fault, after_launch)?).expect("a backend");
    let report = super::report(&be, &Orders::Device, effort, family);
    assert!(!report.is_right());
    Some(report)
}

/// After each launch of a kernel, changes the first value of each region that it writes.
fn spoils(
    kernel: &'static str, spoil: impl Fn(&SimDevice, Region) -> Result<()> + Send + Sync + 'static,
) -> AfterLaunch {
    Box::new(move |device, launch| {
        let mut written =
            launch.args.iter().filter_map(|arg| arg.memory()).filter(|(_, access)| *access != Access::Read);
        let spoilt = |(region, _): (Region, Access)| if region.bytes() < 4 { Ok(()) } else { spoil(device, region) };
        if launch.kernel.name == kernel { written.try_for_each(spoilt) } else { Ok(()) }
    })
}

/// The first two bytes become these.
fn overwritten(kernel: &'static str, bytes: [u8; 2]) -> AfterLaunch {
    spoils(kernel, move |device, region| device.upload(&bytes, region.part(0, 2)))
}

/// The faults of an op.
fn faults<'a>(report: &'a Report, op: &'a str) -> impl Iterator<Item = &'a Fault> {
    report.failures.iter().filter(move |failure| failure.op == op).map(|failure| &failure.fault)
}

#[test]
fn a_value_that_is_off_and_one_that_is_no_number() {
    for (bytes, value) in [([0x00, 0x43], Some(128.0)), ([0xff, 0xff], None)] {
        let spoilt = overwritten("gather_rows", bytes);
        let Some(report) = found(None, spoilt, Effort::Quick, Family::Rows) else { return };
        assert!(report.failures.len() > 3, "{report}");
        for fault in faults(&report, "gather_rows") {
            let Fault::Wrong { output: "y", element: 0, got, error, allowed, .. } = *fault else { panic!("{fault}") };
            assert!(error > allowed);
            assert_eq!(value, (!got.is_nan()).then_some(got));
        }
        let row = report.rows.iter().find(|row| row.output == "y").expect("a row");
        assert!(row.share > 1.0 && row.error > row.allowed, "{row}");
        assert!(report.rows.iter().find(|row| row.output == "d_x").expect("a row").share <= 1.0);
    }
}

#[test]
fn other_bits_in_a_second_run() {
    let launches = AtomicUsize::new(0);
    // The last bit of a value, every other time: well within the tolerance.
    let spoilt = spoils("gelu_backward", move |device, region| {
        if launches.fetch_add(1, Ordering::Relaxed).is_multiple_of(4) {
            let mut bytes = [0; 2];
            device.download(region.part(0, 2), &mut bytes)?;
            device.upload(&[bytes[0] ^ 1, bytes[1]], region.part(0, 2))?;
        }
        Ok(())
    });
    let Some(report) = found(None, spoilt, Effort::Quick, Family::Gelu) else { return };
    for fault in faults(&report, "linear_gelu") {
        assert!(matches!(fault, Fault::Bits { output: "d", element: Some(0), .. }), "{fault}");
    }
    assert!(report.rows.iter().all(|row| row.share <= 1.0), "{report}");
}

#[test]
fn a_write_where_nothing_may_be_written() {
    let spoilt = overwritten("adamw", [0, 0]);
    let Some(report) = found(None, spoilt, Effort::Quick, Family::Optimizer) else { return };
    let strayed = |fault: &Fault| matches!(fault, Fault::Broken { what } if what.contains("between the spans"));
    assert!(faults(&report, "adamw").any(strayed), "{report}");
    assert_eq!(faults(&report, "grad_norm").count(), 0);
}

#[test]
fn weights_that_products_read_one_update_late() {
    const COMPUTE: usize = 1;
    // What they were, by address.
    let last: Mutex<HashMap<u64, Vec<u8>>> = Mutex::default();
    let late: AfterLaunch = Box::new(move |device, launch| {
        if launch.kernel.name != "adamw" {
            return Ok(());
        }
        let (region, _) = launch.args[COMPUTE].memory().expect("weights in bf16");
        let new = held::<u8>(device, region)?;
        match last.lock().expect("nothing panics with the lock").insert(region.address(), new) {
            Some(old) if old.len() == region.bytes() => device.upload(&old, region),
            _ => Ok(()),
        }
    });
    let Some(report) = found(None, late, Effort::Quick, Family::Optimizer) else { return };
    assert!(report.rows.iter().all(|row| row.share <= 1.0), "{report}");
    for failure in &report.failures {
        let Fault::Broken { what } = &failure.fault else { panic!("{failure}") };
        assert!(what.starts_with("products read "), "{failure}");
    }
    assert!(faults(&report, "adamw").count() > 3, "{report}");
}

/// The regions that a launch is given, with their use.
fn regions(launch: &Launch<'_>) -> Vec<(Region, Access)> {
    launch.args.iter().filter_map(|arg| arg.memory()).collect()
}

/// What a region holds.
fn held<T: Pod>(device: &SimDevice, region: Region) -> Result<Vec<T>> {
    let mut values = vec![T::zeroed(); region.bytes() / size_of::<T>()];
    device.download(region, bytemuck::cast_slice_mut(&mut values))?;
    Ok(values)
}

/// to = f(to, from), in bf16, in the rows that are live.
fn change(
    device: &SimDevice, launch: &Launch<'_>, to: Region, from: Region, f: impl Fn(f64, f64) -> f64,
) -> Result<()> {
    let rows = launch.args.iter().find_map(|arg| if let Arg::Rows(rows) = arg { Some(rows) } else { None });
    let rows = rows.expect("live rows");
    let live = held::<u32>(device, rows.live)?[0] as usize;
    let live = |region: Region| region.part(0, region.bytes() / rows.capacity as usize * live);
    let (to, from) = (live(to), live(from));
    let (before, from) = (held::<u16>(device, to)?, held::<u16>(device, from)?);
    let value = |bits: u16| bf16::from_bits(bits).to_f64();
    let changed = before.iter().zip(from).map(|(&to, from)| bf16::from_f64(f(value(to), value(from))).to_bits());
    device.upload(bytemuck::cast_slice(&changed.collect::<Vec<u16>>()), to)
}

/// The tanh form of the GELU, and its slope.
fn tanh_gelu(x: f64) -> (f64, f64) {
    let (a, c) = (0.044_715, (2.0 / std::f64::consts::PI).sqrt());
    let tanh = (c * (x + a * x.powi(3))).tanh();
    let slope = 0.5 * (1.0 + tanh) + 0.5 * x * (1.0 - tanh * tanh) * c * (1.0 + 3.0 * a * x * x);
    (0.5 * x * (1.0 + tanh), slope)
}

#[test]
fn the_tanh_form_of_gelu() {
    let tanh: AfterLaunch = Box::new(|device, launch| {
        let regions = regions(launch);
        let first = regions.iter().position(|(_, access)| *access != Access::Read).expect("a result");
        if launch.kernel.name.contains("bias_gelu") {
            change(device, launch, regions[first + 1].0, regions[first].0, |_, pre| tanh_gelu(pre).0)
        } else if launch.kernel.name.contains("gelu_backward") {
            let slopes = |d: f64, pre: f64| {
                let slope = gelu_derivative(pre);
                if slope.abs() < 1e-3 { d } else { d / slope * tanh_gelu(pre).1 }
            };
            change(device, launch, regions[first].0, regions[first - 1].0, slopes)
        } else {
            Ok(())
        }
    });
    let Some(report) = found(None, tanh, Effort::Quick, Family::Gelu) else { return };
    let mut wrong = HashSet::new();
    for failure in &report.failures {
        // Only where both are small does bf16 tell them apart.
        assert_eq!(failure.shape, "[Tokens=40, C=128] to [F=256]");
        if let Fault::Wrong { output, .. } = failure.fault {
            wrong.insert(output);
        }
    }
    assert!(["y", "d_pre", "d"].iter().all(|output| wrong.contains(output)), "{report}");
}

#[test]
fn an_update_that_goes_by_the_norm_alone() {
    let by_the_norm: AfterLaunch = Box::new(|device, launch| {
        if launch.kernel.name != "adamw" {
            return Ok(());
        }
        let regions = regions(launch);
        let [(w, _), (compute, _), .., (step, _), (tally, _)] = regions[..] else { panic!("adamw's arguments") };
        let (step, tally) = (held::<f32>(device, step)?, held::<f64>(device, tally)?);
        let (loss, weight, norm) = (tally[0], tally[1], tally[4]);
        let (loss_limit, norm_limit) = (step[8], step[9]);
        let most = f64::from(loss_limit) * weight;
        if norm as f32 <= norm_limit && (loss > most || loss.is_nan()) {
            // The first value of the first span.
            device.upload(&1.0f32.to_le_bytes(), w.part(64 * 4, 4))?;
            device.upload(&bf16::ONE.to_le_bytes(), compute.part(64 * 2, 2))?;
        }
        Ok(())
    });
    let Some(report) = found(None, by_the_norm, Effort::Quick, Family::Optimizer) else { return };
    for what in ["a loss beyond its limit", "a loss that is no number"] {
        assert!(report.failures.iter().any(|failure| failure.shape.starts_with(what)), "{report}");
    }
    for failure in &report.failures {
        assert!(failure.op == "adamw, limits" && failure.shape.starts_with("a loss "), "{failure}");
        match &failure.fault {
            Fault::Wrong { output: "w", element: 0, .. } => {}
            Fault::Broken { what } => assert_eq!(what, "changed: w"),
            fault => panic!("{fault}"),
        }
    }
}

#[test]
fn an_empty_sequence_that_passes_for_the_one_after_it() {
    for (kernel, wrong) in [("gather_rows", "y"), ("scatter_rows", "d_x")] {
        let spoilt: AfterLaunch = Box::new(move |device, launch| {
            if launch.kernel.name != kernel {
                return Ok(());
            }
            let (regions, Arg::U32(cols)) = (regions(launch), launch.args[3]) else { panic!("{kernel}'s arguments") };
            let [(from, _), (picked, _), (to, _), ..] = regions[..] else { panic!("{kernel}'s arguments") };
            let first = || held::<u32>(device, picked.part(0, 16));
            if picked.bytes() < 16 || !first().is_ok_and(|picked| picked == [0, 0, 50, 50]) {
                return Ok(());
            }
            let source = if kernel == "gather_rows" { to.part(cols as usize * 2, 2) } else { from.part(0, 2) };
            device.copy(source, to.part(0, 2))
        });
        let Some(report) = found(None, spoilt, Effort::Suite, Family::Rows) else { return };
        assert_eq!(report.failures.len(), 1, "{report}");
        let Fault::Wrong { output, element: 0, .. } = report.failures[0].fault else { panic!("{report}") };
        assert_eq!(output, wrong);
    }
}

#[test]
fn an_op_that_fails_once_leaves_the_others_as_they_are() {
    let nothing = || -> AfterLaunch { Box::new(|_, _| Ok(())) };
    for (call, number, trouble) in [(Call::Launch, 9, Trouble::NoLaunch), (Call::Allocation, 30, Trouble::NoMemory)] {
        let Some(device) = FaultyDevice::new(None, nothing()) else { return };
        let whole = CudaBackend::new(device).expect("a backend");
        assert!(super::report(&whole, &Orders::Device, Effort::Quick, Family::Rows).is_right());
        let calls = whole.device().calls().clone();
        let at = (0..calls.len()).filter(|&at| calls[at] == call).nth(number);
        let fault = at.map(|at| faulty_device::Fault { trouble, at });
        let Some(report) = found(fault, nothing(), Effort::Quick, Family::Rows) else { return };
        assert_eq!((report.failures.len(), report.left_out), (1, 0), "{report}");
        assert!(matches!(report.failures[0].fault, Fault::Error { .. }) && report.lost.is_none());
        assert!(report.cases > 10 && report.rows.iter().all(|row| row.share <= 1.0));
    }
}

#[test]
fn a_device_that_is_lost_ends_the_check() {
    let nothing: AfterLaunch = Box::new(|_, _| Ok(()));
    let lost = Some(faulty_device::Fault { trouble: Trouble::Lost, at: 200 });
    let Some(report) = found(lost, nothing, Effort::Quick, Family::Rows) else { return };
    assert_eq!(report.failures.len(), 1, "{report}");
    assert!(report.lost.is_some_and(|error| error.contains("the device is lost")));
    assert!(report.left_out > 5);
}

#[test]
fn an_op_that_fails_again_and_again_is_left_alone() {
    let spoilt = overwritten("gather_rows", [0x00, 0x43]);
    let Some(report) = found(None, spoilt, Effort::Suite, Family::Rows) else { return };
    assert!(report.left_out > 0 && report.lost.is_none());
    assert_eq!(report.failures.len(), 20, "{report}");
}
