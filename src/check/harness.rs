//! Runs one case on a backend and on the reference, and compares.

use super::reference::{Mixed, Scalar, rounded};
use super::report::{Failure, Fault, Report};
use super::room::Room;
use super::tolerance::{Unit, measure};
use super::{Effort, Family, Orders, Progress, Scale};
use crate::backend::{Backend, Capacity, Error, Precision, Result};

/// Outputs of an op by name, as f64: exact for f32, so bits can still be compared.
pub type Values = Vec<(&'static str, Vec<f64>)>;

/// What a backend gave.
#[derive(Debug, Clone, Default)]
pub struct Outputs {
    /// The outputs that the reference gives too, in the same order.
    pub values: Values,
    /// Bits of whole outputs of which `values` holds a sample, each as one number.
    pub digests: Vec<(&'static str, u64)>,
    /// What is wrong with them before they are compared.
    pub faults: Vec<Fault>,
}

impl Outputs {
    /// One more output.
    pub fn push(&mut self, name: &'static str, values: Vec<f64>) {
        self.values.push((name, values));
    }

    /// What the op promises beside its values; `otherwise` says what is wrong.
    pub fn promise(&mut self, kept: bool, otherwise: impl FnOnce() -> String) {
        if !kept {
            self.faults.push(Fault::Broken { what: otherwise() });
        }
    }

    /// Whether something that was read has as many values as it should. If not, that is all there is to say of the run.
    pub fn has_length(&mut self, output: &'static str, got: usize, expected: usize) -> bool {
        if got != expected {
            self.faults.push(Fault::Length { output, got, expected });
        }
        got == expected
    }
}

impl From<Values> for Outputs {
    fn from(values: Values) -> Outputs {
        Outputs { values, ..Outputs::default() }
    }
}

/// One op on one set of inputs.
pub trait OpCase: Sync {
    /// The op, with the backward pass that goes with it.
    fn op(&self) -> &'static str;
    /// Its shape, and what else is particular.
    fn shape(&self) -> String;
    /// How many tokens, sequences and masked rows its inputs have.
    fn counts(&self) -> Capacity;
    /// V, where it has one.
    fn vocab(&self) -> usize {
        0
    }
    /// Its inputs that a bf16 backend rounds when it takes them; the suite rounds them beforehand, for all alike.
    fn inputs(&mut self) -> Vec<&mut [f32]> {
        Vec::new()
    }
    /// What the op should give.
    fn reference<T: Scalar>(&self) -> Values;
    /// Largest magnitude of the terms whose difference an output is, where they may cancel; see the tolerance rule.
    fn terms(&self, _output: &str) -> f64 {
        0.0
    }
    /// What the backend gives, under the same names in the same order.
    fn run<B: Backend>(&self, room: &mut Room<'_, B>) -> Result<Outputs>;
}

/// Statistics [R, 2] as two outputs: they differ in size, and each has its own tolerance.
pub fn mean_and_rstd(stats: &[f64]) -> [(&'static str, Vec<f64>); 2] {
    let column = |at: usize| stats.iter().skip(at).step_by(2).copied().collect();
    [("mean", column(0)), ("rstd", column(1))]
}

/// After so many failures an op is not tried again.
const MOST_FAILURES: usize = 20;
/// [`Effort::Quick`] takes cases up to so many rows,
const QUICK_ROWS: usize = 70;
/// and up to so large a vocabulary.
const QUICK_VOCAB: usize = 1000;

/// A check under way.
pub struct Suite<'a, B: Backend> {
    be: &'a B,
    orders: &'a Orders,
    effort: Effort,
    report: Report,
    tell: &'a mut dyn FnMut(&Progress<'_>),
}

impl<'a, B: Backend + Sync> Suite<'a, B> {
    pub(super) fn new(
        be: &'a B, orders: &'a Orders, effort: Effort, tell: &'a mut dyn FnMut(&Progress<'_>),
    ) -> Suite<'a, B> {
        Suite { be, orders, effort, report: Report::default(), tell }
    }

    /// How large the largest cases are to be, where there are to be any.
    pub(super) fn scale(&self) -> Option<Scale> {
        if let Effort::Large(scale) = self.effort { Some(scale) } else { None }
    }

    pub(super) fn into_report(self) -> Report {
        self.report
    }

    /// All cases of a family.
    pub(super) fn family(&mut self, family: Family, cases: impl FnOnce(&mut Self)) {
        let (ran, failed) = (self.report.cases, self.report.failures.len());
        cases(self);
        let (cases, failures) = (self.report.cases - ran, self.report.failures.len() - failed);
        (self.tell)(&Progress::Family { family, cases, failures });
    }

    /// Every demand on one case: right within the tolerance, and the same bits however it is run.
    pub fn check<C: OpCase>(&mut self, mut case: C) {
        if !self.wants(&case) {
            return;
        }
        self.round_inputs(&mut case);
        let (be, live) = (self.be, case.counts());
        let capacity = slack(live);
        let mut room = Room::new(be, capacity, live);
        let Some(got) = self.ran(&case, case.run(&mut room)) else { return };
        self.compare(&case, &got);
        if let Some(again) = self.ran(&case, case.run(&mut room)) {
            self.same_bits(&case, "a second run in the same memory", &got, &again);
        }
        let Orders::Threads(pools) = self.orders else { return };
        for pool in pools {
            let other = pool.install(|| case.run(&mut Room::new(be, capacity, live)));
            let Some(other) = self.ran(&case, other) else { return };
            self.same_bits(&case, &format!("a run by {} threads", pool.current_num_threads()), &got, &other);
        }
    }

    /// `small` gives the same bits after `big` has used the same memory as in memory of its own.
    pub fn check_after<C: OpCase>(&mut self, mut big: C, mut small: C) {
        if !self.wants(&big) {
            return;
        }
        self.round_inputs(&mut big);
        self.round_inputs(&mut small);
        let (be, a, b) = (self.be, big.counts(), small.counts());
        let capacity = Capacity {
            tokens: a.tokens.max(b.tokens),
            sequences: a.sequences.max(b.sequences),
            masked: a.masked.max(b.masked),
        };
        let mut used = Room::new(be, capacity, a);
        if self.ran(&big, big.run(&mut used)).is_none() {
            return;
        }
        used.turn_to(b);
        let Some(fresh) = self.ran(&small, small.run(&mut Room::new(be, capacity, b))) else { return };
        let Some(after) = self.ran(&small, small.run(&mut used)) else { return };
        self.same_bits(&small, &format!("a run after {}", big.shape()), &fresh, &after);
    }

    /// Whether a case is to be run; counts it.
    fn wants(&mut self, case: &impl OpCase) -> bool {
        let counts = case.counts();
        let rows = counts.tokens.max(counts.sequences).max(counts.masked);
        if self.effort == Effort::Quick && (rows > QUICK_ROWS || case.vocab() > QUICK_VOCAB) {
            return false;
        }
        let hopeless = self.report.lost.is_some() || self.report.failures_of(case.op()) >= MOST_FAILURES;
        let count = if hopeless { &mut self.report.left_out } else { &mut self.report.cases };
        *count += 1;
        !hopeless
    }

    /// What a bf16 backend would round anyway, so that the inputs are exact.
    fn round_inputs(&self, case: &mut impl OpCase) {
        if self.be.precision() == Precision::Bf16 {
            case.inputs().into_iter().flatten().for_each(|x| *x = rounded(*x));
        }
    }

    /// The outputs of a run, unless it was an error or something had a wrong length; what is wrong with them is a failure.
    fn ran(&mut self, case: &impl OpCase, run: Result<Outputs>) -> Option<Outputs> {
        self.report.runs += 1;
        match run {
            Ok(mut outputs) => {
                let faults = std::mem::take(&mut outputs.faults);
                let whole = !faults.iter().any(|fault| matches!(fault, Fault::Length { .. }));
                faults.into_iter().for_each(|fault| self.fail(case, fault));
                whole.then_some(outputs)
            }
            Err(error) => {
                self.fail(case, Fault::Error { why: error.to_string() });
                if self.answers().is_err() {
                    self.report.lost = Some(error.to_string());
                }
                None
            }
        }
    }

    /// Whether the device still does anything.
    fn answers(&self) -> std::result::Result<(), Error> {
        let mut tally = self.be.tally()?;
        self.be.take_tally(&mut tally).map(|_| ())
    }

    fn fail(&mut self, case: &impl OpCase, fault: Fault) {
        let failure = Failure { op: case.op(), shape: case.shape(), fault };
        (self.tell)(&Progress::Failure(&failure));
        self.report.failures.push(failure);
    }

    /// Each output against the reference, under the tolerance rule.
    fn compare(&mut self, case: &impl OpCase, got: &Outputs) {
        let precision = self.be.precision();
        let exact = case.reference::<f64>();
        let naive = match precision {
            Precision::F32 => case.reference::<f32>(),
            Precision::Bf16 => case.reference::<Mixed>(),
        };
        let shape = case.shape();
        assert_eq!(got.values.len(), exact.len(), "{} {shape}: number of outputs", case.op());
        for ((&(output, ref got), exact), naive) in got.values.iter().zip(&exact).zip(&naive) {
            assert_eq!((output, exact.0), (exact.0, naive.0), "{} {shape}: order of the outputs", case.op());
            let (exact, naive) = (&exact.1, &naive.1);
            if got.len() != exact.len() {
                self.fail(case, Fault::Length { output, got: got.len(), expected: exact.len() });
                continue;
            }
            let unit = match precision {
                Precision::Bf16 if ACTIVATIONS.contains(&output) => Unit::Bf16,
                _ => Unit::F32,
            };
            let verdict = measure(unit, got, exact, naive, case.terms(output));
            self.report.enter(case.op(), output, &shape, got.len(), &verdict);
            if !verdict.passes() {
                let (element, error, naive, allowed) = (verdict.worst, verdict.error, verdict.naive, verdict.allowed);
                let (got, expected) = (got[element], exact[element]);
                self.fail(case, Fault::Wrong { output, element, got, expected, error, naive, allowed });
            }
        }
    }

    /// Two runs must be equal, bit for bit.
    fn same_bits(&mut self, case: &impl OpCase, when: &str, one: &Outputs, other: &Outputs) {
        let mut faults = Vec::new();
        for (&(output, ref one), (_, other)) in one.values.iter().zip(&other.values) {
            if one.len() != other.len() {
                faults.push(Fault::Length { output, got: other.len(), expected: one.len() });
            } else if let Some(i) = one.iter().zip(other).position(|(a, b)| a.to_bits() != b.to_bits()) {
                let (values, when) = (Some([one[i], other[i]]), when.to_owned());
                faults.push(Fault::Bits { output, element: Some(i), values, when });
            }
        }
        for (&(output, one), &(_, other)) in one.digests.iter().zip(&other.digests) {
            if one != other {
                faults.push(Fault::Bits { output, element: None, values: None, when: when.to_owned() });
            }
        }
        faults.into_iter().for_each(|fault| self.fail(case, fault));
    }
}

/// Odd numbers of rows get room to spare, even ones just enough.
fn slack(counts: Capacity) -> Capacity {
    let room = |n: usize| (n + 5 * (n % 2)).max(1);
    Capacity { tokens: room(counts.tokens), sequences: room(counts.sequences), masked: room(counts.masked) }
}

/// Outputs that are matrices of activations, which bf16 backends round.
const ACTIVATIONS: [&str; 11] = ["y", "d_x", "ctx", "d_qkv", "sum", "d_sum", "d_branch", "pre", "d_pre", "d", "d_act"];
