//! A device that is wrong is caught, whatever is wrong with it: the simulated GPU, spoilt.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use handbert::backend::Result;
use handbert::backend::cuda::CudaBackend;
use handbert::backend::cuda::device::{Access, Device, Region};
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
    let held: Mutex<HashMap<u64, Vec<u8>>> = Mutex::default();
    let late: AfterLaunch = Box::new(move |device, launch| {
        if launch.kernel.name != "adamw" {
            return Ok(());
        }
        let (region, _) = launch.args[COMPUTE].memory().expect("weights in bf16");
        let mut new = vec![0; region.bytes()];
        device.download(region, &mut new)?;
        match held.lock().expect("nothing panics with the lock").insert(region.address(), new) {
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
