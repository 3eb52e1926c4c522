//! What the quickstart says: a stage at a time, or one JSON object at the end.

use std::io::Write;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};
use serde_json::json;

use super::recipe::{FILL, Recipe};
use super::stages::{Data, Filled, Labelled, Mlm, Trained};
use crate::cli::Common;

/// Tells on stdout, as it happens; with `--json` only at the end.
pub(super) struct Story<'a> {
    common: &'a Common,
    commands: Vec<Vec<String>>,
    stage: usize,
}

/// Everything that came out.
pub(super) struct Facts<'a> {
    pub(super) recipe: &'a Recipe,
    /// What computed.
    pub(super) device: &'a str,
    pub(super) data: Data,
    pub(super) mlm: Mlm,
    pub(super) classifier: Trained,
    pub(super) labelled: Labelled,
    pub(super) filled: Filled,
    pub(super) seconds: f64,
}

/// What a stage has to say, in a line or two.
pub(super) trait Told {
    fn told(&self) -> String;
}

impl<'a> Story<'a> {
    pub(super) fn new(common: &'a Common) -> Self {
        Story { common, commands: Vec::new(), stage: 0 }
    }

    /// The heading.
    pub(super) fn begins(&mut self, recipe: &Recipe, device: &str) -> Result<()> {
        let c = recipe.commands();
        self.commands =
            [vec![c.synth, c.tokenize], vec![c.mlm], vec![c.classifier], vec![c.predict], vec![c.fill]].into();
        self.say(&format!("HandBERT quickstart in {}, on {device}\n", recipe.dir.display()))
    }

    /// Does a stage, then says what came out and how to do it by hand.
    pub(super) fn told<T: Told>(&mut self, stage: impl FnOnce() -> Result<T>) -> Result<T> {
        let began = Instant::now();
        let result = stage()?;
        let seconds = began.elapsed().as_secs_f64();
        self.stage += 1;
        let mut text = format!("\n{}. {}  [{seconds:.1} s]\n", self.stage, result.told());
        for command in self.commands.get(self.stage - 1).into_iter().flatten() {
            text += &format!("   $ {command}\n");
        }
        self.say(&text)?;
        Ok(result)
    }

    /// The figures, and where to look.
    pub(super) fn ends(&self, facts: &Facts<'_>, report: &Path) -> Result<()> {
        let (mlm, classifier) = (&facts.mlm, &facts.classifier);
        let json = json!({
            "perplexity_before": mlm.before,
            "perplexity_after": mlm.after.perplexity,
            "perplexity_unigram": mlm.unigram,
            "roc_auc": classifier.roc_auc,
            "device": facts.device,
            "seconds": facts.seconds,
            "tokens_per_second": mlm.tokens_per_second,
            "average_precision": classifier.eval.average_precision,
            "accuracy": classifier.eval.accuracy,
            "f1": classifier.eval.f1,
            "rows": facts.recipe.rows,
            "out": facts.recipe.dir.display().to_string(),
            "report": report.display().to_string(),
            "commands": facts.recipe.commands(),
        });
        let text = format!("\nDone in {:.0} s. All of it with pictures: {}\n", facts.seconds, report.display());
        self.common.print(&json, &text)
    }

    fn say(&self, text: &str) -> Result<()> {
        if self.common.json {
            return Ok(());
        }
        let mut out = std::io::stdout().lock();
        out.write_all(text.as_bytes()).and_then(|()| out.flush()).context("stdout")
    }
}

impl Told for Data {
    fn told(&self) -> String {
        format!(
            "{} synthetic postings, {} remote and {} in person; {} tokens of a vocabulary of {}",
            self.set.len(),
            self.remote,
            self.in_person,
            self.set.tokens_total(),
            self.vocab
        )
    }
}

impl Told for Mlm {
    fn told(&self) -> String {
        format!(
            "A language model of {:.1} M parameters in {} steps, {:.0} tokens/s\n   \
             perplexity on held-out postings: {:.0} before, {:.1} after; a unigram model has {:.0}",
            self.parameters as f64 / 1e6,
            self.steps,
            self.tokens_per_second,
            self.before,
            self.after.perplexity,
            self.unigram
        )
    }
}

impl Told for Trained {
    fn told(&self) -> String {
        let eval = &self.eval;
        format!(
            "A classifier from it, remote or in person, in {} steps\n   \
             on {} held-out postings: ROC AUC {:.3}, accuracy {:.3}, F1 of {} {:.3}",
            self.steps, eval.rows, self.roc_auc, eval.accuracy, eval.positive, eval.f1
        )
    }
}

impl Told for Labelled {
    fn told(&self) -> String {
        format!(
            "Labels for {} new postings, {:.0} postings/s; {:.1} % as they were invented",
            self.summary.rows,
            self.summary.rows_per_second,
            100.0 * self.accuracy
        )
    }
}

impl Told for Filled {
    fn told(&self) -> String {
        let words: Vec<String> = self.tokens.iter().map(|(t, p)| format!("{t} {:.0} %", 100.0 * p)).collect();
        format!("\"{FILL}\"\n   {}", words.join(", "))
    }
}
