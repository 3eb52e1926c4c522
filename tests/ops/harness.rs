//! Runs one op on a backend and on the oracle, and compares.

use handbert::backend::cpu::Cpu;
use handbert::backend::cuda::CudaBackend;
use handbert::backend::{Arena, Backend, BatchLimits, Capacity, Planner, Result, Rows};

use crate::batches::TestBatch;
use crate::params::Params;
use crate::reference::{Mixed, Scalar, rounded};
use crate::sim_device::SimDevice;
use crate::tolerance::{Unit, assert_close};

/// What a backend computes in.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Precision {
    /// f32 throughout.
    F32,
    /// f32 arithmetic on activations stored in bf16.
    Mixed,
}

/// A backend that the suite is stamped for.
pub trait Tested: Backend + Sync {
    /// What it computes in.
    const PRECISION: Precision;
    /// Runs an op again in every other way that must give the same bits, and says which each time.
    fn in_other_orders(&self, run: &(dyn Fn() -> Outputs + Sync), compare: &dyn Fn(&str, &Outputs));
}

impl Tested for Cpu {
    const PRECISION: Precision = Precision::F32;

    fn in_other_orders(&self, run: &(dyn Fn() -> Outputs + Sync), compare: &dyn Fn(&str, &Outputs)) {
        for threads in [1, 2, 3] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a thread pool");
            compare(&format!("{threads} threads"), &pool.install(run));
        }
    }
}

impl Tested for CudaBackend<SimDevice> {
    const PRECISION: Precision = Precision::Mixed;

    /// Every launch draws an order of blocks and threads of its own, so the second run was in another one.
    fn in_other_orders(&self, _: &(dyn Fn() -> Outputs + Sync), _: &dyn Fn(&str, &Outputs)) {}
}

/// Outputs of an op by name, as f64: exact for f32, so bits can still be compared.
pub type Outputs = Vec<(&'static str, Vec<f64>)>;

/// One op on one set of inputs.
pub trait OpCase: Sync {
    /// The op and its shape, for messages.
    fn describe(&self) -> String;
    /// How many tokens, sequences and masked rows its inputs have.
    fn counts(&self) -> Capacity;
    /// Its inputs that a bf16 backend rounds when it takes them; the suite rounds them beforehand, for all alike.
    fn inputs(&mut self) -> Vec<&mut [f32]> {
        Vec::new()
    }
    /// What the op should give.
    fn reference<T: Scalar>(&self) -> Outputs;
    /// Largest magnitude of the terms whose difference an output is, where they may cancel; see the tolerance rule.
    fn terms(&self, _output: &str) -> f64 {
        0.0
    }
    /// What the backend gives, under the same names in the same order.
    fn run<B: Backend>(&self, room: &mut Room<'_, B>) -> Result<Outputs>;
}

/// Memory of a backend for the cases that follow one another in it.
///
/// Matrices are handed out not-a-number in all their rows, as if a larger batch had left them; statistics and the batch are those that the case before used.
pub struct Room<'b, B: Backend> {
    /// The backend.
    pub be: &'b B,
    capacity: Capacity,
    /// Rows that the case at hand has.
    live: Capacity,
    stats: Vec<(Rows, usize, B::Stats)>,
    batch: Option<B::Batch>,
}

impl<'b, B: Backend> Room<'b, B> {
    /// A room for batches up to `capacity`, of which a case has `live`.
    pub fn new(be: &'b B, capacity: Capacity, live: Capacity) -> Self {
        Room { be, capacity, live, stats: Vec::new(), batch: None }
    }

    /// A matrix to write to. Its rows are live once more than the case has, and not-a-number.
    pub fn empty(&self, rows: Rows, cols: usize) -> Result<B::Mat> {
        let mut plan = Planner::new(self.capacity);
        plan.mat(rows, cols);
        let mut mat = self.be.arena(&plan)?.mat(rows, cols);
        let capacity = self.capacity.of(rows);
        self.be.write_mat(&mut mat, capacity, &vec![f32::NAN; capacity * cols])?;
        // Backends may count the live rows of a kind, not of each matrix: as many as the case has from here on.
        let live = self.live.of(rows);
        self.be.write_mat(&mut mat, live, &vec![f32::NAN; live * cols])?;
        Ok(mat)
    }

    /// A matrix with these values, and not-a-number in the rows beyond.
    pub fn mat(&self, rows: Rows, cols: usize, values: &[f32]) -> Result<B::Mat> {
        let mut mat = self.empty(rows, cols)?;
        self.be.write_mat(&mut mat, values.len() / cols, values)?;
        Ok(mat)
    }

    /// Statistics to write to; hand them back with [`Room::give_stats`].
    pub fn stats(&mut self, rows: Rows, cols: usize) -> Result<B::Stats> {
        if let Some(i) = self.stats.iter().position(|s| (s.0, s.1) == (rows, cols)) {
            return Ok(self.stats.swap_remove(i).2);
        }
        let mut plan = Planner::new(self.capacity);
        plan.stats(rows, cols);
        Ok(self.be.arena(&plan)?.stats(rows, cols))
    }

    /// For the next case.
    pub fn give_stats(&mut self, rows: Rows, cols: usize, stats: B::Stats) {
        self.stats.push((rows, cols, stats));
    }

    /// The batch, uploaded; hand it back with [`Room::give_batch`].
    pub fn upload(&mut self, batch: &TestBatch) -> Result<B::Batch> {
        let mut uploaded = match self.batch.take() {
            Some(used) => used,
            None => self.be.batch(self.capacity)?,
        };
        let limits: BatchLimits = batch.limits;
        self.be.upload(&batch.view(), &limits, &mut uploaded)?;
        Ok(uploaded)
    }

    /// For the next case.
    pub fn give_batch(&mut self, batch: B::Batch) {
        self.batch = Some(batch);
    }

    /// Weights with the values of `params`.
    pub fn weights(&self, params: &Params) -> Result<B::Weights> {
        self.be.weights(&params.values)
    }

    /// A flat buffer with the gradients that `params` starts from.
    pub fn grads(&self, params: &Params) -> Result<B::Flat> {
        let mut flat = self.be.flat(params.grads.len())?;
        self.be.write_flat(&mut flat, &params.grads)?;
        Ok(flat)
    }

    /// An output matrix's live values.
    pub fn read(&self, mat: &B::Mat) -> Result<Vec<f64>> {
        Ok(widen(&self.be.read_mat(mat)?))
    }

    /// Statistics' live values.
    pub fn read_stats(&self, stats: &B::Stats) -> Result<Vec<f64>> {
        Ok(widen(&self.be.read_stats(stats)?))
    }
}

/// Statistics [R, 2] as two outputs: they differ in size, and each has its own tolerance.
pub fn mean_and_rstd(stats: &[f64]) -> [(&'static str, Vec<f64>); 2] {
    let column = |at: usize| stats.iter().skip(at).step_by(2).copied().collect();
    [("mean", column(0)), ("rstd", column(1))]
}

/// f32 to f64, exactly.
pub fn widen(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&x| f64::from(x)).collect()
}

/// Every demand on one case: right within the tolerance, and the same bits however it is run.
pub fn check<B: Tested, C: OpCase>(be: &B, mut case: C) {
    round_inputs::<B>(&mut case);
    let (what, live) = (case.describe(), case.counts());
    let capacity = slack(live);
    let run = |room: &mut Room<'_, B>| case.run(room).unwrap_or_else(|e| panic!("{what}: {e}"));
    let mut room = Room::new(be, capacity, live);
    let got = run(&mut room);
    compare::<B>(&case, &got);
    assert_same_bits(&what, "a second run in the same memory", &got, &run(&mut room));
    be.in_other_orders(&|| run(&mut Room::new(be, capacity, live)), &|how, other| {
        assert_same_bits(&what, how, &got, other);
    });
}

/// `small` gives the same bits after `big` has used the same memory as in memory of its own.
pub fn check_after<B: Tested, C: OpCase>(be: &B, mut big: C, mut small: C) {
    round_inputs::<B>(&mut big);
    round_inputs::<B>(&mut small);
    let what = small.describe();
    let (a, b) = (big.counts(), small.counts());
    let capacity = Capacity {
        tokens: a.tokens.max(b.tokens),
        sequences: a.sequences.max(b.sequences),
        masked: a.masked.max(b.masked),
    };
    let run = |case: &C, room: &mut Room<'_, B>| case.run(room).unwrap_or_else(|e| panic!("{}: {e}", case.describe()));
    let mut used = Room::new(be, capacity, a);
    run(&big, &mut used);
    used.live = b;
    let fresh = run(&small, &mut Room::new(be, capacity, b));
    assert_same_bits(&what, &format!("a run after {}", big.describe()), &fresh, &run(&small, &mut used));
}

/// What a bf16 backend would round anyway, so that the inputs are exact.
fn round_inputs<B: Tested>(case: &mut impl OpCase) {
    if B::PRECISION == Precision::Mixed {
        case.inputs().into_iter().flatten().for_each(|x| *x = rounded(*x));
    }
}

/// Odd numbers of rows get room to spare, even ones just enough.
fn slack(counts: Capacity) -> Capacity {
    let room = |n: usize| (n + 5 * (n % 2)).max(1);
    Capacity { tokens: room(counts.tokens), sequences: room(counts.sequences), masked: room(counts.masked) }
}

/// Each output against the oracle, under the tolerance rule.
fn compare<B: Tested>(case: &impl OpCase, got: &Outputs) {
    let (what, exact) = (case.describe(), case.reference::<f64>());
    let naive = match B::PRECISION {
        Precision::F32 => case.reference::<f32>(),
        Precision::Mixed => case.reference::<Mixed>(),
    };
    assert_eq!(got.len(), exact.len(), "{what}: number of outputs");
    for ((got, exact), naive) in got.iter().zip(&exact).zip(&naive) {
        assert_eq!((got.0, exact.0), (exact.0, naive.0), "{what}: order of the outputs");
        let what = format!("{what}: {}", got.0);
        let unit = match B::PRECISION {
            Precision::Mixed if ACTIVATIONS.contains(&got.0) => Unit::Bf16,
            _ => Unit::F32,
        };
        let v = assert_close(&what, unit, &got.1, &exact.1, &naive.1, case.terms(got.0));
        if std::env::var_os("HANDBERT_RATIOS").is_some() {
            eprintln!("error {:.1e}, naive {:.1e}, allowed {:.1e}: {what}", v.error, v.naive, v.allowed);
        }
    }
}

/// Outputs that are matrices of activations, which bf16 backends round.
const ACTIVATIONS: [&str; 11] = ["y", "d_x", "ctx", "d_qkv", "sum", "d_sum", "d_branch", "pre", "d_pre", "d", "d_act"];

/// Equal, bit for bit.
pub fn assert_same_bits(what: &str, when: &str, one: &Outputs, other: &Outputs) {
    for ((name, one), (_, other)) in one.iter().zip(other) {
        assert_eq!(one.len(), other.len(), "{what}: {name}, {when}: number of elements");
        let differs = one.iter().zip(other).position(|(a, b)| a.to_bits() != b.to_bits());
        if let Some(i) = differs {
            panic!("{what}: {name}[{i}] is {:e}, and {:e} in {when}", one[i], other[i]);
        }
    }
}
