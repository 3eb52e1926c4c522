//! What came of a check: a row for each op and output, and every failure in full.

use std::fmt;

use super::tolerance::Verdict;

/// What came of a check.
#[derive(Debug, Clone, Default, serde::Serialize)]
pub struct Report {
    /// Cases that were run.
    pub cases: usize,
    /// Runs of an op that were compared: each case at least twice.
    pub runs: usize,
    /// Cases that were left out because the device was lost, or the op had failed too often.
    pub left_out: usize,
    /// One for each op and output, in the order they were first met.
    pub rows: Vec<Row>,
    /// What is wrong.
    pub failures: Vec<Failure>,
    /// The error after which the device answered no more.
    pub lost: Option<String>,
}

/// The largest error that an output of an op had, in all cases of the op.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Row {
    /// The op.
    pub op: &'static str,
    /// Its output.
    pub output: &'static str,
    /// Cases that have this output.
    pub cases: usize,
    /// Values compared, in all cases.
    pub values: usize,
    /// Largest error, in the case where it is the largest share of what is allowed; infinite where a value is no number.
    pub error: f64,
    /// Largest error of the naive computation there.
    pub naive: f64,
    /// Largest error that passes there.
    pub allowed: f64,
    /// `error` / `allowed`; 0 where both are.
    pub share: f64,
    /// The shape there.
    pub shape: String,
}

/// One thing that is wrong.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Failure {
    /// The op.
    pub op: &'static str,
    /// Its shape, and what else is particular to the case.
    pub shape: String,
    /// What is wrong with it.
    #[serde(flatten)]
    pub fault: Fault,
}

/// What can be wrong with an op.
#[derive(Debug, Clone, serde::Serialize)]
#[serde(tag = "fault", rename_all = "snake_case")]
pub enum Fault {
    /// It gave an error.
    Error {
        /// Which.
        why: String,
    },
    /// A value is further off than allowed, or no number.
    Wrong {
        /// Which output.
        output: &'static str,
        /// Index of the value that is furthest off.
        element: usize,
        /// What it is.
        got: f64,
        /// What it should be.
        expected: f64,
        /// The difference.
        error: f64,
        /// Largest error of the naive computation.
        naive: f64,
        /// Largest error that passes.
        allowed: f64,
    },
    /// An output has another number of values.
    Length {
        /// Which output.
        output: &'static str,
        /// Values there are.
        got: usize,
        /// Values there should be.
        expected: usize,
    },
    /// Another run gave other bits.
    Bits {
        /// Which output.
        output: &'static str,
        /// Index of the first value that differs; absent where only a sample of the output was kept.
        element: Option<usize>,
        /// Both of its values, likewise.
        values: Option<[f64; 2]>,
        /// What was different about the other run.
        when: String,
    },
    /// Something that the op promises is not so.
    Broken {
        /// What.
        what: String,
    },
}

impl Report {
    /// Whether everything that was to be checked was, and was right.
    pub fn is_right(&self) -> bool {
        self.failures.is_empty() && self.left_out == 0 && self.lost.is_none() && self.cases > 0
    }

    /// How often an op failed.
    pub(super) fn failures_of(&self, op: &str) -> usize {
        self.failures.iter().filter(|failure| failure.op == op).count()
    }

    /// Enters an output of a case into its row.
    pub(super) fn enter(
        &mut self, op: &'static str, output: &'static str, shape: &str, values: usize, verdict: &Verdict,
    ) {
        let place = self.rows.iter().position(|row| (row.op, row.output) == (op, output)).unwrap_or(self.rows.len());
        if place == self.rows.len() {
            let (error, naive, allowed, share) = (0.0, 0.0, 0.0, -1.0);
            self.rows.push(Row { op, output, cases: 0, values: 0, error, naive, allowed, share, shape: String::new() });
        }
        let row = &mut self.rows[place];
        row.cases += 1;
        row.values += values;
        let share = if verdict.error == 0.0 { 0.0 } else { verdict.error / verdict.allowed };
        if share > row.share {
            let Verdict { error, naive, allowed, .. } = *verdict;
            *row = Row { error, naive, allowed, share, shape: shape.to_owned(), ..*row };
        }
    }
}

/// Columns of [`Report`]'s text, which line up with those of [`Row`]'s.
const COLUMNS: &str =
    "op                    output                 cases       values    error    naive  allowed   share  at\n";

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Row { op, output, cases, values, error, naive, allowed, share, shape } = self;
        write!(
            f,
            "{op:<22}{output:<22}{cases:>6}{values:>13} {error:>8.1e} {naive:>8.1e} {allowed:>8.1e}{:>6.0} %  {}",
            100.0 * share,
            shortened(shape),
        )
    }
}

/// A shape in a line of a table.
fn shortened(shape: &str) -> String {
    const MOST: usize = 90;
    if shape.chars().count() <= MOST {
        return shape.to_owned();
    }
    shape.chars().take(MOST - 1).chain(['…']).collect()
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}", self.op, self.shape, self.fault)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Error { why } => write!(f, "{why}"),
            Fault::Wrong { output, element, got, expected, error, naive, allowed } => write!(
                f,
                "{output}[{element}] is {got:e}, should be {expected:e}: off by {error:.3e}, allowed {allowed:.3e} (the naive \
                 computation is off by {naive:.3e})"
            ),
            Fault::Length { output, got, expected } => write!(f, "{output} has {got} values, should have {expected}"),
            Fault::Bits { output, element: Some(i), values: Some([one, other]), when } => {
                write!(f, "{output}[{i}] is {one:e}, and {other:e} in {when}")
            }
            Fault::Bits { output, when, .. } => write!(f, "{output} has other bits in {when}"),
            Fault::Broken { what } => write!(f, "{what}"),
        }
    }
}

/// The table, then every failure.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(COLUMNS)?;
        self.rows.iter().try_for_each(|row| writeln!(f, "{row}"))?;
        if !self.failures.is_empty() {
            writeln!(f)?;
        }
        self.failures.iter().try_for_each(|failure| writeln!(f, "wrong: {failure}"))?;
        if let Some(error) = &self.lost {
            writeln!(f, "the device answers no more, after: {error}")?;
        }
        if self.left_out > 0 {
            writeln!(f, "{} cases were left out", self.left_out)?;
        }
        Ok(())
    }
}
