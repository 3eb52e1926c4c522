//! How long a call takes.
//!
//! Many calls are made in a row and waited for once: recorded and replayed where the backend records, so that launching
//! them costs the device nothing. The host's clock runs around the whole. The median of several such runs counts.

use std::time::Instant;

use crate::backend::{Memory, Precision, Result};

/// How much is measured, and with what.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct Effort {
    /// Timed runs of each call.
    pub runs: usize,
    /// Calls are repeated within a run until it is about this long.
    pub run_seconds: f64,
    /// Calls work on as many sets of operands in turn as come to this many bytes, so that none finds its own in a cache.
    pub cold_bytes: f64,
    /// Values of the buffer that is copied to measure the bandwidth.
    pub copy_values: usize,
    /// Rows, inputs and outputs of the product that is computed to measure the matrix rate.
    pub product: [usize; 3],
}

impl Effort {
    /// What it takes to measure a device.
    pub fn full(precision: Precision) -> Effort {
        match precision {
            // A GPU's L2 cache has 50 to 126 MB.
            Precision::Bf16 => {
                Effort { runs: 7, run_seconds: 0.02, cold_bytes: 512e6, copy_values: 1 << 26, product: [8192; 3] }
            }
            // The CPU's matmul is at its best at this depth.
            Precision::F32 => Effort {
                runs: 5,
                run_seconds: 0.05,
                cold_bytes: 256e6,
                copy_values: 1 << 25,
                product: [4096, 768, 3072],
            },
        }
    }

    /// What it takes to see that everything works.
    pub fn quick() -> Effort {
        Effort { runs: 3, run_seconds: 0.001, cold_bytes: 1e6, copy_values: 1 << 16, product: [128; 3] }
    }
}

/// What runs of a call took, in seconds a call.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Timing {
    /// Of all runs.
    #[serde(rename = "seconds")]
    pub median: f64,
    /// The quickest run.
    #[serde(rename = "seconds_best")]
    pub best: f64,
    /// The slowest run.
    #[serde(rename = "seconds_worst")]
    pub worst: f64,
    /// Runs.
    pub runs: usize,
    /// Calls in each of them.
    pub calls: usize,
    /// Sets of operands that they worked on in turn.
    pub sets: usize,
}

impl Timing {
    /// From the seconds of each run of so many calls.
    fn new(mut seconds: Vec<f64>, calls: usize, sets: usize) -> Timing {
        seconds.iter_mut().for_each(|run| *run /= calls as f64);
        let median = median(&mut seconds);
        Timing { median, best: seconds[0], worst: seconds[seconds.len() - 1], runs: seconds.len(), calls, sets }
    }
}

/// The middle value, or the mean of the two in the middle; sorts. NaN of none.
pub fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    let (middle, odd) = (values.len() / 2, values.len() % 2 == 1);
    match values.len() {
        0 => f64::NAN,
        _ if odd => values[middle],
        _ => 0.5 * (values[middle - 1] + values[middle]),
    }
}

/// A call to measure.
pub trait Subject<B: Memory> {
    /// Sets of operands.
    fn sets(&self) -> usize;
    /// The most calls on a set before it has to be made anew.
    fn most_calls(&self) -> usize;
    /// Makes the call, with this set.
    ///
    /// # Errors
    ///
    /// Those of the op.
    fn call(&mut self, set: usize) -> Result<()>;
    /// Makes the sets anew.
    ///
    /// # Errors
    ///
    /// Those of the backend.
    fn refresh(&mut self) -> Result<()>;
}

/// The most calls in a run; each becomes a handful of launches in a recording.
const MOST_CALLS: usize = 1024;

/// Waits for the device.
struct Clock<'a, B: Memory> {
    be: &'a B,
    tally: B::Tally,
}

impl<B: Memory> Clock<'_, B> {
    /// From idle to idle.
    fn time(&mut self, run: impl FnOnce() -> Result<()>) -> Result<f64> {
        self.be.take_tally(&mut self.tally)?;
        let start = Instant::now();
        run()?;
        self.be.take_tally(&mut self.tally)?;
        Ok(start.elapsed().as_secs_f64())
    }
}

/// Times a call, after each of its sets has been used once.
///
/// # Errors
///
/// Those of the call and of the device.
pub fn time<B: Memory>(be: &B, effort: &Effort, subject: &mut impl Subject<B>) -> Result<Timing> {
    let sets = subject.sets();
    let mut clock = Clock { be, tally: be.tally()? };
    let warm_up = clock.time(|| (0..sets).try_for_each(|set| subject.call(set)))?;
    let again = clock.time(|| (0..sets).try_for_each(|set| subject.call(set)))?;
    let calls = calls(warm_up.min(again) / sets as f64, effort.run_seconds, sets, subject.most_calls());
    let mut all = || (0..calls).try_for_each(|call| subject.call(call % sets));
    let recording = be.record(&mut all)?;
    if let Some(recording) = &recording {
        // The first replay may bring the recording to the device.
        clock.time(|| be.replay(recording))?;
    }
    let mut seconds = Vec::with_capacity(effort.runs);
    for _ in 0..effort.runs {
        subject.refresh()?;
        seconds.push(match &recording {
            Some(recording) => clock.time(|| be.replay(recording))?,
            None => clock.time(|| (0..calls).try_for_each(|call| subject.call(call % sets)))?,
        });
    }
    Ok(Timing::new(seconds, calls, sets))
}

/// Calls in a run: as many as take about `wanted` seconds, each set equally often.
fn calls(seconds: f64, wanted: f64, sets: usize, most_of_a_set: usize) -> usize {
    let rounds = (wanted / seconds.max(1e-9) / sets as f64).ceil() as usize;
    rounds.clamp(1, (MOST_CALLS / sets).clamp(1, most_of_a_set)) * sets
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cpu::Cpu;

    #[test]
    fn medians() {
        assert_eq!(median(&mut [3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&mut [4.0, 1.0, 3.0, 2.0]), 2.5);
        assert!(median(&mut []).is_nan());
        let timing = Timing::new(vec![3.0, 1.0, 2.0], 10, 2);
        assert_eq!((timing.median, timing.best, timing.worst, timing.runs), (0.2, 0.1, 0.3, 3));
    }

    #[test]
    fn runs_are_as_long_as_wanted_and_use_sets_equally_often() {
        assert_eq!(calls(1e-3, 0.02, 1, 64), 20);
        assert_eq!(calls(1e-3, 0.02, 3, 64), 21);
        assert_eq!(calls(1.0, 0.02, 4, 64), 4);
        assert_eq!(calls(0.0, 0.02, 5, 64), 320);
        assert_eq!(calls(1e-6, 0.02, 5, 4096), 1020);
        assert_eq!(calls(1e-6, 0.02, 256, 4096), 1024);
    }

    struct Counts {
        of_set: [usize; 3],
        refreshed: usize,
    }

    impl Subject<Cpu> for Counts {
        fn sets(&self) -> usize {
            3
        }
        fn most_calls(&self) -> usize {
            2
        }
        fn call(&mut self, set: usize) -> Result<()> {
            self.of_set[set] += 1;
            Ok(())
        }
        fn refresh(&mut self) -> Result<()> {
            self.refreshed += 1;
            Ok(())
        }
    }

    #[test]
    fn every_set_is_warm_and_new_before_each_run() {
        let mut counts = Counts { of_set: [0; 3], refreshed: 0 };
        let timing = time(&Cpu::new(), &Effort::quick(), &mut counts).unwrap();
        assert_eq!((timing.runs, timing.calls, timing.sets), (3, 6, 3));
        assert_eq!((counts.of_set, counts.refreshed), ([2 + 3 * 2; 3], 3));
        assert!(timing.best <= timing.median && timing.median <= timing.worst);
    }
}
