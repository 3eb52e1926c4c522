//! The report of one training run.

use super::{Figure, OtherRun, Perplexity, ReportData, RunCurves, Table, curves};
use crate::train::plan::TrainPlan;
use crate::train::records::{ClassifierEval, EvalResult, MlmEval, Record};
use crate::train::run::Summary;
use crate::train::task::Task;

/// What there is to show of a run: its curves, the figures of the model it kept, its settings; all beside another's, where
/// there is one to compare with.
pub fn of_training(plan: &TrainPlan, summary: &Summary, other: Option<&OtherRun>, device: &str) -> ReportData {
    let kept = kept(summary);
    let charts = curves::of_run(&summary.history);
    let charts = match other {
        Some(other) => curves::beside(charts, &other.records, &other.name),
        None => charts,
    };
    let mut tables = vec![settings("Settings", plan), run(summary, device, matches!(plan.task, Task::Mlm { .. }))];
    tables.extend(other.map(|other| other.table(plan, &summary.history)));
    let name =
        plan.out.file_name().map_or_else(|| plan.out.display().to_string(), |n| n.to_string_lossy().into_owned());
    ReportData {
        title: format!("Training {name}"),
        lead: format!(
            "{} steps, {:.2} epochs, {} tokens in {:.0} seconds.{}",
            summary.steps,
            summary.epochs,
            summary.tokens,
            summary.seconds,
            summary.best.map_or(String::new(), |best| format!(" The model kept is that of step {}.", best.step))
        ),
        figures: figures(kept, summary, device),
        perplexity: kept.and_then(EvalResult::mlm).map(|eval| perplexity(eval, summary)),
        classifier: kept.and_then(EvalResult::classifier).cloned(),
        runs: vec![RunCurves { title: "Curves".into(), charts }],
        tables,
        ..ReportData::default()
    }
}

/// A plan's settings, under the names of the flags.
pub fn settings(title: &str, plan: &TrainPlan) -> Table {
    let rows = plan.settings().iter().map(|(name, value)| (name.clone(), shown(value))).collect();
    Table { title: title.to_owned(), rows }
}

/// A setting as it is typed.
pub(super) fn shown(value: &toml::Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// The evaluation of the model that was kept: the best one's, else the last.
fn kept(summary: &Summary) -> Option<&EvalResult> {
    let of_best = summary.best.and_then(|best| {
        summary.history.iter().rev().find_map(|record| match record {
            Record::Eval(record) if record.step == best.step => Some(&record.eval),
            _ => None,
        })
    });
    match (of_best, &summary.evaluation) {
        // metrics.jsonl leaves a classifier's curves out; of the last evaluation a checkpoint keeps them.
        (Some(best), Some(last)) if best.loss() == last.loss() => Some(last),
        (best, last) => best.or(last.as_ref()),
    }
}

fn perplexity(eval: &MlmEval, summary: &Summary) -> Perplexity {
    let before = summary.evaluation_before.as_ref().and_then(EvalResult::mlm);
    let unigram = eval.perplexity_unigram.or(before.and_then(|eval| eval.perplexity_unigram));
    Perplexity { before: before.map(|eval| eval.perplexity), after: eval.perplexity, unigram }
}

fn figures(kept: Option<&EvalResult>, summary: &Summary, device: &str) -> Vec<Figure> {
    let figure = |name: &str, value: String, note: String| Figure { name: name.to_owned(), value, note };
    let mut figures = match kept {
        None => Vec::new(),
        Some(EvalResult::Mlm(eval)) => vec![
            figure("perplexity", format!("{:.2}", eval.perplexity), format!("{} masked tokens", eval.masked_tokens)),
            figure("accuracy", format!("{:.3}", eval.accuracy), "of the most probable token at a masked one".into()),
        ],
        Some(EvalResult::Classifier(eval)) => classifier_figures(eval),
    };
    figures.push(figure("tokens per second", format!("{:.0}", summary.tokens_per_second), format!("on {device}")));
    figures
}

fn classifier_figures(eval: &ClassifierEval) -> Vec<Figure> {
    let auc = eval.roc_auc.map(|auc| Figure {
        name: "area under the ROC curve".into(),
        value: format!("{auc:.3}"),
        note: format!("of {}, {} held-out postings", eval.positive, eval.rows),
    });
    let accuracy = Figure {
        name: "accuracy".into(),
        value: format!("{:.3}", eval.accuracy),
        note: format!("F1 of {} {:.3}", eval.positive, eval.f1),
    };
    auc.into_iter().chain([accuracy]).collect()
}

fn run(summary: &Summary, device: &str, is_mlm: bool) -> Table {
    let row = |name: &str, value: String| (name.to_owned(), value);
    let mut rows = vec![
        row("model", if is_mlm { "masked-language model" } else { "classifier" }.into()),
        row("steps", summary.steps.to_string()),
        row("epochs", format!("{:.2}", summary.epochs)),
        row("tokens", summary.tokens.to_string()),
        row("seconds", format!("{:.1}", summary.seconds)),
        row("tokens per second", format!("{:.0}", summary.tokens_per_second)),
        row("device", device.to_owned()),
    ];
    if let Some(loss) = summary.loss {
        rows.push(row("training loss, last logged", format!("{loss:.4}")));
    }
    if summary.skipped_steps > 0 {
        rows.push(row("steps skipped: not finite, or outliers", summary.skipped_steps.to_string()));
    }
    Table { title: "Run".into(), rows }
}
