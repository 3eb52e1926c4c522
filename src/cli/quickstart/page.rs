//! The quickstart's report: both models on one page.

use std::path::PathBuf;

use anyhow::Result;

use super::recipe::FILL;
use super::story::Facts;
use crate::train::report::{self, Command, Figure, Fill, Perplexity, Posting, ReportData, RunCurves, Table, curves};

/// Labelled postings shown.
const SHOWN: usize = 6;

/// Writes the report and returns its path.
pub(super) fn write(facts: &Facts<'_>) -> Result<PathBuf> {
    let Facts { recipe, mlm, classifier, .. } = facts;
    let data = ReportData {
        title: "HandBERT quickstart".to_owned(),
        lead: format!(
            "A DistilBERT of {:.1} M parameters, trained from scratch on {} synthetic postings: first to fill in \
             hidden words, then to tell remote postings from in-person ones.",
            mlm.parameters as f64 / 1e6,
            facts.data.set.len()
        ),
        figures: figures(facts),
        perplexity: Some(Perplexity {
            before: Some(mlm.before),
            after: mlm.after.perplexity,
            unigram: Some(mlm.unigram),
        }),
        classifier: Some(classifier.eval.clone()),
        runs: vec![
            RunCurves { title: "Training the language model".to_owned(), charts: curves::of_run(&mlm.history) },
            RunCurves { title: "Training the classifier".to_owned(), charts: curves::of_run(&classifier.history) },
        ],
        fills: vec![Fill { text: FILL.to_owned(), tokens: facts.filled.tokens.clone() }],
        postings: postings(facts),
        commands: commands(facts),
        tables: vec![
            data_table(facts),
            report::settings("Language model", &recipe.mlm_plan()),
            report::settings("Classifier", &recipe.classifier_plan()),
        ],
    };
    Ok(report::write(&recipe.dir, &data)?)
}

fn figures(facts: &Facts<'_>) -> Vec<Figure> {
    let figure = |name: &str, value: String, note: String| Figure { name: name.to_owned(), value, note };
    let (mlm, classifier) = (&facts.mlm, &facts.classifier);
    vec![
        figure(
            "perplexity",
            format!("{:.1}", mlm.after.perplexity),
            format!("held-out postings; {:.0} before, unigram model {:.0}", mlm.before, mlm.unigram),
        ),
        figure(
            "area under the ROC curve",
            format!("{:.3}", classifier.roc_auc),
            format!("remote or in person, {} held-out postings", classifier.eval.rows),
        ),
        figure(
            "tokens per second",
            format!("{:.0}", mlm.tokens_per_second),
            format!("training the language model on {}", facts.device),
        ),
        figure("seconds", format!("{:.0}", facts.seconds), "for everything on this page".to_owned()),
    ]
}

/// The surest of each label and the least sure, wrong ones first: where the model errs is what is worth reading.
fn postings(facts: &Facts<'_>) -> Vec<Posting> {
    let mut all: Vec<_> = facts.labelled.examples.iter().collect();
    all.sort_by(|a, b| {
        let right = |e: &(crate::data::synth::SynthRow, String, f64)| e.0.label == e.1;
        right(a).cmp(&right(b)).then(a.2.total_cmp(&b.2))
    });
    let hard = all.iter().take(SHOWN / 3).copied();
    let easy = |label: &'static str| all.iter().rev().filter(move |e| e.1 == label).take(SHOWN / 3).copied();
    let shown = easy(crate::data::synth::REMOTE).chain(easy(crate::data::synth::IN_PERSON)).chain(hard);
    shown
        .map(|(row, label, score)| Posting {
            text: format!("{}. {}", row.title, row.text),
            label: label.clone(),
            score: *score,
            truth: Some(row.label.to_owned()),
        })
        .collect()
}

fn commands(facts: &Facts<'_>) -> Vec<Command> {
    let c = facts.recipe.commands();
    let what = [
        ("Invent postings", c.synth),
        ("Learn a vocabulary and tokenize", c.tokenize),
        ("Train the language model", c.mlm),
        ("Train the classifier", c.classifier),
        ("Label postings", c.predict),
        ("Fill in a word", c.fill),
    ];
    what.map(|(what, line)| Command { what: what.to_owned(), line }).into()
}

fn data_table(facts: &Facts<'_>) -> Table {
    let row = |name: &str, value: String| (name.to_owned(), value);
    let data = &facts.data;
    Table {
        title: "Data and device".to_owned(),
        rows: vec![
            row("postings", data.set.len().to_string()),
            row("remote", data.remote.to_string()),
            row("in person", data.in_person.to_string()),
            row("tokens", data.set.tokens_total().to_string()),
            row("vocabulary", data.vocab.to_string()),
            row("labelled at the end", format!("{} new postings", facts.recipe.size.new_rows)),
            row("labelled as invented", format!("{:.1} %", 100.0 * facts.labelled.accuracy)),
            row("device", facts.device.to_owned()),
        ],
    }
}
