//! The time that costs come to on a card: at best, and as expected.
//!
//! An op takes at least its FLOPs over the matrix rate and at least its bytes over the bandwidth; the larger of the two is its
//! floor. Ops run one after another, so a pass takes at least the sum of its ops' floors.

use super::cost::Cost;
use super::gpu::{Ceiling, Fraction, Gpu, LAUNCH_SECONDS};
use super::ops::{Kind, Op};

/// What a device can do at most: by its datasheet, or as measured.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct Ceilings {
    /// FLOP/s of matrix products.
    #[serde(rename = "flops_per_second")]
    pub matrix_rate: f64,
    /// Bytes/s to and from memory.
    #[serde(rename = "bytes_per_second")]
    pub bandwidth: f64,
}

impl Ceilings {
    /// The least seconds that so much takes.
    pub fn floor(&self, cost: &Cost) -> f64 {
        (cost.flops / self.matrix_rate).max(cost.bytes / self.bandwidth)
    }

    /// Which of them says so.
    pub fn bound(&self, cost: &Cost) -> Ceiling {
        if cost.flops / self.matrix_rate > cost.bytes / self.bandwidth {
            Ceiling::MatrixRate
        } else {
            Ceiling::Bandwidth
        }
    }
}

/// What one run of an op takes, in seconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Time {
    /// FLOPs over the matrix rate.
    pub by_flops: f64,
    /// Bytes over the bandwidth.
    pub by_bytes: f64,
    /// With the shares of these ceilings that [`super::gpu::Fractions`] gives, and no less than a launch.
    pub expected: f64,
}

impl Time {
    /// That of one run of `op`.
    pub fn of(op: &Op, gpu: &Gpu) -> Time {
        let expected = &gpu.expected;
        let matrix = match op.kind {
            Kind::AttentionForward => expected.attention_forward,
            Kind::AttentionBackward => expected.attention_backward,
            _ => expected.products,
        };
        let memory = match op.kind {
            Kind::Lookup => expected.lookups,
            Kind::Optimizer => expected.optimizer,
            _ => expected.rows,
        };
        let rate = |fraction: Fraction| fraction.share * gpu.ceiling(fraction.ceiling);
        let by_memory = op.cost.bytes / rate(memory) + op.cost.cached_bytes / rate(expected.cache);
        Time {
            by_flops: op.cost.flops / gpu.matrix_rate,
            by_bytes: op.cost.bytes / gpu.bandwidth,
            expected: (op.cost.flops / rate(matrix)).max(by_memory).max(LAUNCH_SECONDS),
        }
    }

    /// The larger of both.
    pub fn floor(&self) -> f64 {
        self.by_flops.max(self.by_bytes)
    }

    /// Which of them it is.
    pub fn bound(&self) -> Ceiling {
        if self.by_flops > self.by_bytes { Ceiling::MatrixRate } else { Ceiling::Bandwidth }
    }
}

impl Gpu {
    /// Those of its datasheet.
    pub fn ceilings(&self) -> Ceilings {
        Ceilings { matrix_rate: self.matrix_rate, bandwidth: self.bandwidth }
    }

    /// FLOP/s or bytes/s.
    pub fn ceiling(&self, ceiling: Ceiling) -> f64 {
        match ceiling {
            Ceiling::MatrixRate => self.matrix_rate,
            Ceiling::Bandwidth => self.bandwidth,
        }
    }
}

/// What several ops come to, each as often as it is run.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Total {
    /// FLOPs.
    pub flops: f64,
    /// Bytes to and from memory.
    pub bytes: f64,
    /// Sum of the floors, in seconds.
    pub floor: f64,
    /// Sum of what is expected, in seconds.
    pub expected: f64,
}

impl Total {
    /// That of these ops.
    pub fn of<'a>(ops: impl IntoIterator<Item = &'a Op>, gpu: &Gpu) -> Total {
        ops.into_iter().fold(Total::default(), |sum, op| {
            let (times, time) = (op.times as f64, Time::of(op, gpu));
            Total {
                flops: sum.flops + times * op.cost.flops,
                bytes: sum.bytes + times * op.cost.bytes,
                floor: sum.floor + times * time.floor(),
                expected: sum.expected + times * time.expected,
            }
        })
    }

    /// Model FLOPs utilisation of a pass that takes `seconds`: its FLOPs over what the card could do meanwhile.
    pub fn utilisation(&self, seconds: f64, gpu: &Gpu) -> f64 {
        self.flops / (seconds * gpu.matrix_rate)
    }
}
