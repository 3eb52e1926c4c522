//! The learning rate of each step: a pure function of (step, total steps), with the formulas of
//! `transformers.optimization.get_scheduler`.

use serde::{Deserialize, Serialize};

/// The shape after the warm-up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScheduleKind {
    /// Straight down to zero.
    #[default]
    Linear,
    /// Half a cosine down to zero.
    Cosine,
    /// As it is.
    #[serde(alias = "constant_with_warmup")]
    Constant,
}

/// How long the learning rate rises from zero.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Warmup {
    /// This many steps.
    Steps(u64),
    /// This share of all steps, rounded up.
    Ratio(f64),
}

/// The learning rate over a run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Schedule {
    /// The shape after the warm-up.
    pub kind: ScheduleKind,
    /// The rise before it.
    pub warmup: Warmup,
}

impl Schedule {
    /// Steps of warm-up in a run of `total` steps.
    pub fn warmup_steps(&self, total: u64) -> u64 {
        match self.warmup {
            Warmup::Steps(steps) => steps,
            Warmup::Ratio(ratio) => (total as f64 * ratio).ceil() as u64,
        }
    }

    /// What the peak learning rate is multiplied by at `step` of 1..=total. As in `transformers`, the
    /// first step of a warm-up has factor 0.
    pub fn factor(&self, step: u64, total: u64) -> f64 {
        let warmup = self.warmup_steps(total);
        let done = step.saturating_sub(1);
        if done < warmup {
            return done as f64 / warmup as f64;
        }
        let decay = total.saturating_sub(warmup).max(1) as f64;
        match self.kind {
            ScheduleKind::Linear => (total.saturating_sub(done) as f64 / decay).min(1.0),
            ScheduleKind::Cosine => {
                let progress = ((done - warmup) as f64 / decay).min(1.0);
                0.5 * (1.0 + (std::f64::consts::PI * progress).cos())
            }
            ScheduleKind::Constant => 1.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn factors(kind: ScheduleKind, warmup: Warmup, total: u64) -> Vec<f64> {
        (1..=total).map(|step| Schedule { kind, warmup }.factor(step, total)).collect()
    }

    fn assert_close(got: &[f64], expected: &[f64]) {
        assert_eq!(got.len(), expected.len());
        for (i, (g, e)) in got.iter().zip(expected).enumerate() {
            assert!((g - e).abs() < 1e-12, "step {}: {g}, expected {e}", i + 1);
        }
    }

    /// What `get_scheduler(name, AdamW(lr=1), num_warmup_steps=3, num_training_steps=10)` of
    /// transformers 5 gives at each optimizer step.
    #[test]
    fn values_of_transformers() {
        let sevenths = |n: f64| n / 7.0;
        assert_close(
            &factors(ScheduleKind::Linear, Warmup::Steps(3), 10),
            &[
                0.0,
                1.0 / 3.0,
                2.0 / 3.0,
                1.0,
                sevenths(6.0),
                sevenths(5.0),
                sevenths(4.0),
                sevenths(3.0),
                sevenths(2.0),
                sevenths(1.0),
            ],
        );
        assert_close(
            &factors(ScheduleKind::Cosine, Warmup::Steps(3), 10),
            &[
                0.0,
                0.333_333_333_333_333_3,
                0.666_666_666_666_666_6,
                1.0,
                0.950_484_433_951_209_5,
                0.811_744_900_929_366_7,
                0.611_260_466_978_157_2,
                0.388_739_533_021_842_8,
                0.188_255_099_070_633_18,
                0.049_515_566_048_790_43,
            ],
        );
        assert_close(&factors(ScheduleKind::Constant, Warmup::Steps(2), 4), &[0.0, 0.5, 1.0, 1.0]);
    }

    #[test]
    fn a_ratio_is_rounded_up_and_no_warmup_starts_at_the_peak() {
        let schedule = Schedule { kind: ScheduleKind::Linear, warmup: Warmup::Ratio(0.06) };
        assert_eq!(schedule.warmup_steps(50), 3);
        assert_eq!(schedule.warmup_steps(51), 4);
        assert_close(&factors(ScheduleKind::Linear, Warmup::Ratio(0.0), 4), &[1.0, 0.75, 0.5, 0.25]);
    }

    #[test]
    fn a_warmup_longer_than_the_run_and_steps_past_its_end_stay_in_range() {
        for kind in [ScheduleKind::Linear, ScheduleKind::Cosine, ScheduleKind::Constant] {
            for warmup in [0, 1, 5, 9] {
                let schedule = Schedule { kind, warmup: Warmup::Steps(warmup) };
                for step in 0..20 {
                    let factor = schedule.factor(step, 5);
                    assert!((0.0..=1.0).contains(&factor), "{kind:?} warm-up {warmup} step {step}: {factor}");
                }
            }
        }
    }
}
