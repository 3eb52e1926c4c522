//! Is a backend right? Every op against an f64 reference, on many shapes: what `handbert kernels check` runs on the device
//! at hand, and tests on the CPU and on the simulated GPU.
//!
//! In reading order: [`reference`] (each op in a few plain lines), [`tolerance`] (how far off a result may be), [`batches`],
//! [`params`] and [`random`] (inputs), [`room`] (poisoned memory), [`harness`] (how a case is run and compared), `ops` (a file
//! for each family of ops, with its cases), `large` (shapes as large as real ones, a sample of each worked out), [`report`].
//!
//! A case passes if each output is off by at most twice what the naive computation in the same precision is, plus a stated
//! absolute term, and if a second run, and runs in other orders, give the same bits. Nothing panics because a backend is
//! wrong: whatever it does is a failure in the report, and the next case is tried.

pub mod batches;
pub mod harness;
mod large;
mod ops;
pub mod params;
pub mod random;
pub mod reference;
pub mod report;
pub mod room;
pub mod tolerance;

use rayon::{ThreadPool, ThreadPoolBuildError, ThreadPoolBuilder};

pub use self::large::Scale;
pub use self::report::{Failure, Fault, Report, Row};

use self::harness::Suite;
use crate::backend::Backend;

/// Ops that go together, with their backward passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// embed
    Embedding,
    /// linear
    Linear,
    /// linear_gelu, linear_backward_gelu, gelu_backward
    Gelu,
    /// attention
    Attention,
    /// add_layernorm
    LayerNorm,
    /// gather_rows, scatter_rows
    Rows,
    /// vocab_cross_entropy
    Vocabulary,
    /// relu_dropout, class_cross_entropy
    Classes,
    /// top_k
    TopK,
    /// grad_norm, adamw
    Optimizer,
    /// Shapes as large as real ones, under [`Effort::Large`] alone.
    Large,
}

impl Family {
    /// All of them.
    pub const ALL: [Family; 11] = [
        Family::Embedding,
        Family::Linear,
        Family::Gelu,
        Family::Attention,
        Family::LayerNorm,
        Family::Rows,
        Family::Vocabulary,
        Family::Classes,
        Family::TopK,
        Family::Optimizer,
        Family::Large,
    ];
}

/// How much is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effort {
    /// Shapes of at most 70 rows and small vocabularies: for tools that make a kernel a hundred times slower.
    Quick,
    /// Every shape that leaves an op no easy way out; the largest have some 500 rows.
    Suite,
    /// The suite, and cases of this size.
    Large(Scale),
}

/// In which other orders an op must give the same bits.
#[derive(Debug)]
pub enum Orders {
    /// On each of these pools of threads.
    Threads(Vec<ThreadPool>),
    /// Every launch has an order of its own, so a second run is one in another order.
    Device,
}

impl Orders {
    /// A pool for each number of threads.
    pub fn threads(numbers: &[usize]) -> Result<Orders, ThreadPoolBuildError> {
        let pool = |&threads: &usize| ThreadPoolBuilder::new().num_threads(threads).build();
        Ok(Orders::Threads(numbers.iter().map(pool).collect::<Result<_, _>>()?))
    }
}

/// What is told while a check is under way.
#[derive(Debug)]
pub enum Progress<'a> {
    /// Something is wrong.
    Failure(&'a Failure),
    /// A family is done.
    Family {
        /// Which.
        family: Family,
        /// Its cases that were run.
        cases: usize,
        /// What was wrong with them.
        failures: usize,
    },
}

/// Checks these families on a backend. What comes of it is told as it comes, and returned as a whole.
pub fn check<B: Backend + Sync>(
    be: &B, orders: &Orders, effort: Effort, families: &[Family], tell: &mut dyn FnMut(&Progress<'_>),
) -> Report {
    let mut suite = Suite::new(be, orders, effort, tell);
    for &family in families {
        suite.family(family, |suite| match family {
            Family::Embedding => ops::embedding::suite(suite),
            Family::Linear => ops::linear::suite(suite),
            Family::Gelu => ops::gelu::suite(suite),
            Family::Attention => ops::attention::suite(suite),
            Family::LayerNorm => ops::layernorm::suite(suite),
            Family::Rows => ops::rows::suite(suite),
            Family::Vocabulary => ops::vocabulary::suite(suite),
            Family::Classes => ops::classes::suite(suite),
            Family::TopK => ops::top_k::suite(suite),
            Family::Optimizer => ops::optimizer::suite(suite),
            Family::Large => large::suite(suite),
        });
    }
    suite.into_report()
}
