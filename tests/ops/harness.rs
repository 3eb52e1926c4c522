//! Runs one op on a backend and on the oracle, and compares.

use handbert::backend::{Arena, Backend, BatchLimits, Capacity, Planner, Result, Rows};

use crate::batches::TestBatch;
use crate::params::Params;
use crate::reference::Scalar;
use crate::tolerance::assert_close;

/// Outputs of an op by name, as f64: exact for f32, so bits can still be compared.
pub type Outputs = Vec<(&'static str, Vec<f64>)>;

/// One op on one set of inputs.
pub trait OpCase: Sync {
    /// The op and its shape, for messages.
    fn describe(&self) -> String;
    /// How many tokens, sequences and masked rows its inputs have.
    fn counts(&self) -> Capacity;
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
/// Matrices are handed out with all their rows live and not-a-number, as if a larger batch had left
/// them; statistics and the batch are those that the case before used.
pub struct Room<'b, B: Backend> {
    /// The backend.
    pub be: &'b B,
    capacity: Capacity,
    stats: Vec<(Rows, usize, B::Stats)>,
    batch: Option<B::Batch>,
}

impl<'b, B: Backend> Room<'b, B> {
    /// A room for batches up to `capacity`.
    pub fn new(be: &'b B, capacity: Capacity) -> Self {
        Room { be, capacity, stats: Vec::new(), batch: None }
    }

    /// A matrix to write to.
    pub fn empty(&self, rows: Rows, cols: usize) -> Result<B::Mat> {
        let mut plan = Planner::new(self.capacity);
        plan.mat(rows, cols);
        let mut mat = self.be.arena(&plan)?.mat(rows, cols);
        let capacity = self.capacity.of(rows);
        self.be.write_mat(&mut mat, capacity, &vec![f32::NAN; capacity * cols])?;
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
pub fn check<B: Backend + Sync, C: OpCase>(be: &B, case: &C) {
    let what = case.describe();
    let capacity = slack(case.counts());
    let run = |room: &mut Room<'_, B>| case.run(room).unwrap_or_else(|e| panic!("{what}: {e}"));
    let mut room = Room::new(be, capacity);
    let got = run(&mut room);
    compare(case, &got);
    assert_same_bits(&what, "a second run in the same memory", &got, &run(&mut room));
    for threads in [1, 2, 3] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a thread pool");
        let other = pool.install(|| run(&mut Room::new(be, capacity)));
        assert_same_bits(&what, &format!("{threads} threads"), &got, &other);
    }
}

/// `small` gives the same bits after `big` has used the same memory as in memory of its own.
pub fn check_after<B: Backend + Sync, C: OpCase>(be: &B, big: &C, small: &C) {
    let what = small.describe();
    let (a, b) = (big.counts(), small.counts());
    let capacity = Capacity {
        tokens: a.tokens.max(b.tokens),
        sequences: a.sequences.max(b.sequences),
        masked: a.masked.max(b.masked),
    };
    let run = |case: &C, room: &mut Room<'_, B>| case.run(room).unwrap_or_else(|e| panic!("{}: {e}", case.describe()));
    let mut used = Room::new(be, capacity);
    run(big, &mut used);
    let fresh = run(small, &mut Room::new(be, capacity));
    assert_same_bits(&what, &format!("a run after {}", big.describe()), &fresh, &run(small, &mut used));
}

/// Odd numbers of rows get room to spare, even ones just enough.
fn slack(counts: Capacity) -> Capacity {
    let room = |n: usize| (n + 5 * (n % 2)).max(1);
    Capacity { tokens: room(counts.tokens), sequences: room(counts.sequences), masked: room(counts.masked) }
}

/// Each output against the oracle, under the tolerance rule.
fn compare(case: &impl OpCase, got: &Outputs) {
    let (what, exact, naive) = (case.describe(), case.reference::<f64>(), case.reference::<f32>());
    assert_eq!(got.len(), exact.len(), "{what}: number of outputs");
    for ((got, exact), naive) in got.iter().zip(&exact).zip(&naive) {
        assert_eq!((got.0, exact.0), (exact.0, naive.0), "{what}: order of the outputs");
        let what = format!("{what}: {}", got.0);
        let v = assert_close(&what, &got.1, &exact.1, &naive.1, case.terms(got.0));
        if std::env::var_os("HANDBERT_RATIOS").is_some() {
            eprintln!("error {:.1e}, naive {:.1e}, allowed {:.1e}: {what}", v.error, v.naive, v.allowed);
        }
    }
}

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
