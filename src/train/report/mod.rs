//! report.html: a run on one page that opens offline, with pictures drawn here and nothing fetched.
//!
//! [`ReportData`] says what there is to show, [`write`] lays it out ([`page`]) and draws the curves
//! ([`chart`]); [`curves`] turns a run's metrics into charts, and [`of_training`] a whole run into a report, beside an
//! [`OtherRun`] where one is to be compared with.

mod axis;
pub mod chart;
pub mod curves;
mod other_run;
mod page;
mod training;

use std::path::{Path, PathBuf};

pub use chart::{Chart, Ink, Scale, Series, Stroke};
pub use other_run::OtherRun;
pub use training::{of_training, settings};

use super::records::ClassifierEval;

/// What can go wrong in writing a report.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A picture could not be drawn.
    #[error("chart {chart:?} of the report: {why}")]
    Drawing {
        /// Its title.
        chart: String,
        /// What the drawing library said.
        why: String,
    },
}

/// Everything a report can show. What is empty or `None` is left out of the page.
#[derive(Debug, Clone, Default)]
pub struct ReportData {
    /// Heading of the page.
    pub title: String,
    /// What was done, in a sentence or two.
    pub lead: String,
    /// The figures that matter most, shown large.
    pub figures: Vec<Figure>,
    /// Perplexity on held-out postings.
    pub perplexity: Option<Perplexity>,
    /// Figures of a classifier on held-out postings.
    pub classifier: Option<ClassifierEval>,
    /// Curves of each training run.
    pub runs: Vec<RunCurves>,
    /// What a model fills into a text.
    pub fills: Vec<Fill>,
    /// A few postings with what the model says of them.
    pub postings: Vec<Posting>,
    /// What was done, as commands.
    pub commands: Vec<Command>,
    /// Configuration, data, device, figures of the evaluation.
    pub tables: Vec<Table>,
}

/// A figure with its name.
#[derive(Debug, Clone)]
pub struct Figure {
    /// What it is.
    pub name: String,
    /// The figure, as it is to be read.
    pub value: String,
    /// A line of explanation.
    pub note: String,
}

/// Perplexity on held-out postings, lower being better.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Perplexity {
    /// Before the first step, where it was measured.
    pub before: Option<f64>,
    /// Of the model kept.
    pub after: f64,
    /// Of a model that knows the frequency of each token and nothing else, where it was measured.
    pub unigram: Option<f64>,
}

/// Curves of one training run.
#[derive(Debug, Clone)]
pub struct RunCurves {
    /// Heading.
    pub title: String,
    /// Shown side by side.
    pub charts: Vec<Chart>,
}

/// A text with a gap and what goes there.
#[derive(Debug, Clone)]
pub struct Fill {
    /// The text, with its `[MASK]`.
    pub text: String,
    /// Tokens and their probabilities, best first.
    pub tokens: Vec<(String, f64)>,
}

/// A posting and what the model says of it.
#[derive(Debug, Clone)]
pub struct Posting {
    /// Its text; shown shortened.
    pub text: String,
    /// The label predicted.
    pub label: String,
    /// Probability of that label.
    pub score: f64,
    /// The label it has, where that is known.
    pub truth: Option<String>,
}

/// A command and what it does.
#[derive(Debug, Clone)]
pub struct Command {
    /// What it does.
    pub what: String,
    /// As typed into a shell.
    pub line: String,
}

/// Names and values under a heading.
#[derive(Debug, Clone)]
pub struct Table {
    /// Heading.
    pub title: String,
    /// Name, value.
    pub rows: Vec<(String, String)>,
}

/// Writes `dir/report.html`, as a whole, and returns its path.
///
/// # Errors
/// Where a picture cannot be drawn or the file cannot be written.
pub fn write(dir: &Path, data: &ReportData) -> Result<PathBuf, Error> {
    let path = dir.join("report.html");
    let page = page::html(data)?;
    match crate::disk::replace(&path, page) {
        Ok(()) => Ok(path),
        Err(source) => Err(Error::Io { path, source }),
    }
}
