//! How far a result may be from the truth.
//!
//! An output passes if its worst element is off the f64 oracle by at most twice the worst error of
//! the naive computation in the same precision (the oracle's own lines, run in f32), plus an
//! absolute term of [`ULPS`] units in the last place of the largest magnitude: of the output, or of the terms
//! whose difference it is, where those are larger and may cancel.
//!
//! The absolute term is there for outputs where the naive computation happens to be exact, a few
//! elements, one addition, or two equal roundings that cancel. What an honest f32 implementation may
//! add there, in ulps: ½ for rounding the result, ½ for adding it to what was there, 1 for the last
//! multiplication or division, and 2 for an exp, erf or square root in between: 4.
//!
//! A bf16 backend's sums over the rows of a large batch are made by matrix units, which cut where arithmetic in f32 rounds: what
//! is off grows with the depth of the sum and not with its root. The naive computation of those cuts too, in one sum.

/// See above.
pub const ULPS: f64 = 4.0;

/// What an output is stored in.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Unit {
    /// f32.
    F32,
    /// bf16, from f32 arithmetic: beside the [`ULPS`] of f32, half a unit of bf16, since arithmetic that differs in an ulp
    /// of f32 may round to the other side.
    Bf16,
}

/// The worst element of an output, and what it was measured against.
#[derive(Debug, Clone, Copy)]
pub struct Verdict {
    /// Largest error of the result; infinite where it is not a number.
    pub error: f64,
    /// Where.
    pub worst: usize,
    /// Largest error of the naive computation.
    pub naive: f64,
    /// Largest error that passes.
    pub allowed: f64,
}

impl Verdict {
    /// Whether the output is right.
    pub fn passes(&self) -> bool {
        self.error <= self.allowed
    }
}

fn worst(got: &[f64], exact: &[f64]) -> (usize, f64) {
    let error = |i: usize| if got[i] == exact[i] { 0.0 } else { (got[i] - exact[i]).abs() };
    let finite = |e: f64| if e.is_nan() { f64::INFINITY } else { e };
    (0..exact.len()).map(|i| (i, finite(error(i)))).fold((0, 0.0), |a, b| if b.1 > a.1 { b } else { a })
}

/// Measures an output against the f64 oracle and the naive f32 computation, all of one length. `terms` is the largest
/// magnitude of the terms whose difference the output is, 0 where nothing cancels.
pub fn measure(unit: Unit, got: &[f64], exact: &[f64], naive: &[f64], terms: f64) -> Verdict {
    let largest = exact.iter().fold(terms, |a, b| a.max(b.abs()));
    let (at, error) = worst(got, exact);
    let (_, naive) = worst(naive, exact);
    assert!(naive.is_finite() && largest.is_finite(), "the naive computation must be finite to be a measure");
    let ulp = if largest == 0.0 { 0.0 } else { f64::from(f32::EPSILON) * 2.0f64.powi(largest.log2().floor() as i32) };
    let rounding = match unit {
        Unit::F32 => 0.0,
        // bf16 has 16 bits fewer, and its rounding is half a unit.
        Unit::Bf16 => 65_536.0 / 2.0,
    };
    Verdict { error, worst: at, naive, allowed: 2.0 * naive + (ULPS + rounding) * ulp }
}
