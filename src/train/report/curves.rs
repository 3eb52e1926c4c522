//! Charts of a run's metrics and of a classifier's evaluation.

use super::chart::{Chart, Ink, Scale, Series, Stroke};
use crate::train::records::{ClassifierEval, EvalRecord, EvalResult, Record, StepRecord};

/// The bold line of a noisy curve averages over this share of the run.
const SMOOTHING_SHARE: f64 = 0.04;
/// What the legend calls the loss on training postings.
const TRAINING: &str = "training";

/// The curves of a run, in reading order: loss, held-out figure, learning rate, gradient norm, speed.
pub fn of_run(records: &[Record]) -> Vec<Chart> {
    let mut steps = Vec::new();
    let mut evals = Vec::new();
    for record in records {
        match record {
            Record::Step(step) => steps.push(step),
            Record::Eval(eval) => evals.push(eval),
        }
    }
    let mut charts = vec![loss(&steps, &evals), held_out(&evals)];
    charts.push(by_step(&steps, "Learning rate", "learning rate", |s| s.learning_rate));
    charts.push(noisy(&steps, "Gradient norm, before clipping", "L2 norm", |s| s.grad_norm));
    charts.push(noisy(&steps, "Speed", "tokens per second", |s| s.tokens_per_second));
    charts
}

/// A run's curves, those of another drawn quietly beneath them.
pub fn beside(charts: Vec<Chart>, records: &[Record], name: &str) -> Vec<Chart> {
    let add = |(mut chart, other): (Chart, Chart)| {
        let named = |series: &Series| match series.name.as_str() {
            "" | TRAINING => name.to_owned(),
            what => format!("{name}, {what}"),
        };
        // Of a noisy curve, only its mean: two clouds of values hide each other.
        let quiet = other.series.into_iter().filter(|series| series.stroke != Stroke::Faint).map(|series| {
            let stroke = if series.stroke == Stroke::Dots { Stroke::Dots } else { Stroke::Dashed };
            Series { name: named(&series), ink: Ink::Quiet, stroke, ..series }
        });
        let quiet: Vec<_> = quiet.filter(|series| !series.points.is_empty()).collect();
        if let (false, Some(own)) = (quiet.is_empty(), chart.series.last_mut().filter(|series| series.name.is_empty()))
        {
            own.name = "this run".into();
        }
        chart.series.splice(0..0, quiet);
        chart
    };
    charts.into_iter().zip(of_run(records)).map(add).collect()
}

/// The ROC and the precision-recall curve of the positive class, where the evaluation has them.
pub fn classifier(eval: &ClassifierEval) -> Vec<Chart> {
    let Some(curves) = &eval.curves else { return Vec::new() };
    let base = base_rate(eval);
    let points = |curve: &[[f64; 2]]| curve.iter().map(|&[x, y]| (x, y)).collect::<Vec<_>>();
    let named = |what: &str, value: Option<f64>| match value {
        Some(value) => format!("{}, {what} {value:.3}", eval.positive),
        None => eval.positive.clone(),
    };
    let unit =
        |title: &str, x: &str, y: &str, guess: Vec<(f64, f64)>, curve: Vec<(f64, f64)>, guess_name, name| Chart {
            title: title.to_owned(),
            x_label: x.to_owned(),
            y_label: y.to_owned(),
            scale: Scale::Unit,
            series: vec![
                Series { name: guess_name, points: guess, ink: Ink::Quiet, stroke: Stroke::Dashed },
                Series { name, points: curve, ink: Ink::First, stroke: Stroke::Area },
            ],
        };
    vec![
        unit(
            "ROC",
            "false positive rate",
            "true positive rate",
            vec![(0.0, 0.0), (1.0, 1.0)],
            points(&curves.roc),
            "guessing, area 0.5".to_owned(),
            named("area", eval.roc_auc),
        ),
        unit(
            "Precision and recall",
            "recall",
            "precision",
            vec![(0.0, base), (1.0, base)],
            points(&curves.precision_recall),
            format!("guessing, {base:.2}"),
            named("average precision", eval.average_precision),
        ),
    ]
}

/// Share of positive rows: the precision of guessing.
fn base_rate(eval: &ClassifierEval) -> f64 {
    let positive = eval.labels.iter().position(|l| *l == eval.positive);
    let rows: u64 = eval.confusion.iter().flatten().sum();
    let positives: u64 = positive.and_then(|i| eval.confusion.get(i)).map_or(0, |row| row.iter().sum());
    positives as f64 / rows.max(1) as f64
}

fn loss(steps: &[&StepRecord], evals: &[&EvalRecord]) -> Chart {
    let mut chart = noisy(steps, "Loss", "nats per target", |s| s.loss);
    if let Some(smooth) = chart.series.last_mut() {
        smooth.name = TRAINING.into();
    }
    let points = evals.iter().map(|e| (e.step as f64, e.eval.loss())).collect();
    chart.series.push(Series { name: "held out".into(), points, ink: Ink::Second, stroke: Stroke::Dots });
    chart
}

/// Perplexity, or the area under the ROC curve, on held-out postings.
fn held_out(evals: &[&EvalRecord]) -> Chart {
    let is_mlm = evals.iter().any(|e| e.eval.mlm().is_some());
    let value = |eval: &EvalResult| match eval {
        EvalResult::Mlm(eval) => Some(eval.perplexity),
        EvalResult::Classifier(eval) => eval.roc_auc,
    };
    let points = evals.iter().filter_map(|e| Some((e.step as f64, value(&e.eval)?))).collect();
    let (title, y_label, scale) = match is_mlm {
        // From the thousands down to a few: only a logarithm shows both ends.
        true => ("Perplexity on held-out postings", "perplexity", Scale::Log),
        false => ("Area under the ROC curve on held-out postings", "area", Scale::Fit),
    };
    Chart {
        title: title.into(),
        x_label: "step".into(),
        y_label: y_label.into(),
        scale,
        series: vec![Series { name: String::new(), points, ink: Ink::Second, stroke: Stroke::Dots }],
    }
}

fn by_step(steps: &[&StepRecord], title: &str, y_label: &str, value: impl Fn(&StepRecord) -> f64) -> Chart {
    let points = steps.iter().map(|s| (s.step as f64, value(s))).collect();
    Chart {
        title: title.to_owned(),
        x_label: "step".into(),
        y_label: y_label.to_owned(),
        scale: Scale::FromZero,
        series: vec![Series { name: String::new(), points, ink: Ink::First, stroke: Stroke::Area }],
    }
}

/// The values as they are, pale, and a running mean of them.
fn noisy(steps: &[&StepRecord], title: &str, y_label: &str, value: impl Fn(&StepRecord) -> f64) -> Chart {
    let mut chart = by_step(steps, title, y_label, value);
    let raw: Vec<_> = chart.series.iter().flat_map(|s| s.points.iter().copied()).collect();
    let smooth = smoothed(&raw);
    chart.series = vec![
        Series { name: String::new(), points: raw, ink: Ink::First, stroke: Stroke::Faint },
        Series { name: String::new(), points: smooth, ink: Ink::First, stroke: Stroke::Line },
    ];
    chart
}

/// Mean over a centred stretch of [`SMOOTHING_SHARE`] of the points; narrower towards the ends, so
/// that the line begins and ends where the values do.
fn smoothed(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let widest = (points.len() as f64 * SMOOTHING_SHARE / 2.0) as usize;
    let mean = |i: usize| {
        let half = widest.min(i).min(points.len() - 1 - i);
        let stretch = &points[i - half..=i + half];
        stretch.iter().map(|p| p.1).sum::<f64>() / stretch.len() as f64
    };
    points.iter().enumerate().map(|(i, p)| (p.0, mean(i))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::records::{Curves, MlmEval};

    fn step(step: u64) -> Record {
        Record::Step(StepRecord {
            step,
            epoch: 0.1,
            loss: 5.0 - step as f64 * 0.01,
            learning_rate: 1e-4,
            grad_norm: 1.0,
            skipped: 0,
            tokens: step * 100,
            tokens_per_second: 1000.0,
            seconds: 1.0,
        })
    }

    fn mlm(step: u64, perplexity: f64) -> Record {
        let eval = MlmEval {
            loss: perplexity.ln(),
            perplexity,
            masked_tokens: 10,
            accuracy: 0.5,
            perplexity_unigram: Some(600.0),
        };
        Record::Eval(EvalRecord { step, epoch: 0.0, eval: EvalResult::Mlm(eval), seconds: 0.0 })
    }

    #[test]
    fn a_run_gives_its_curves() {
        let mut records = vec![mlm(0, 4000.0)];
        records.extend((1..200).map(step));
        records.push(mlm(199, 20.0));
        let charts = of_run(&records);
        assert_eq!(charts.len(), 5);
        assert!(charts.iter().all(|c| c.has_points() && c.svg().is_ok()));
        assert_eq!(charts[1].series[0].points[0], (0.0, 4000.0));
    }

    #[test]
    fn a_run_without_evaluations_leaves_their_chart_out() {
        let charts = of_run(&[step(1), step(2)]);
        assert_eq!(charts.iter().filter(|c| c.has_points()).count(), 4);
        assert!(of_run(&[]).iter().all(|c| !c.has_points()));
    }

    #[test]
    fn another_run_lies_beneath_with_its_name() {
        let mut records = vec![mlm(0, 4000.0)];
        records.extend((1..50).map(step));
        let charts = beside(of_run(&records), &records[1..], "warm");
        let legend = |chart: &Chart| chart.series.iter().map(|s| s.name.clone()).collect::<Vec<_>>();
        assert_eq!(legend(&charts[0]), ["warm", "", "training", "held out"]);
        // It has no evaluation: nothing is added and nothing needs a name.
        assert_eq!(legend(&charts[1]), [""]);
        assert_eq!(legend(&charts[2]), ["warm", "this run"]);
        assert_eq!(charts[2].series[0].points, charts[2].series[1].points);
        assert!(charts.iter().flat_map(|c| &c.series).all(|s| (s.ink == Ink::Quiet) == s.name.starts_with("warm")));
        let both = beside(of_run(&records), &records, "warm");
        assert_eq!(legend(&both[0]), ["warm", "warm, held out", "", "training", "held out"]);
    }

    #[test]
    fn smoothing_keeps_a_line_and_the_ends() {
        let line: Vec<_> = (0..500).map(|i| (f64::from(i), 3.0 * f64::from(i))).collect();
        let smooth = smoothed(&line);
        assert_eq!(smooth.len(), line.len());
        for (a, b) in line.iter().zip(smooth) {
            assert!(a.0 == b.0 && (a.1 - b.1).abs() < 1e-9, "{a:?} became {b:?}");
        }
        assert!(smoothed(&[]).is_empty());
    }

    #[test]
    fn guessing_is_as_precise_as_positives_are_frequent() {
        let eval = ClassifierEval {
            loss: 0.5,
            rows: 100,
            accuracy: 0.9,
            f1: 0.5,
            macro_f1: 0.5,
            roc_auc: None,
            average_precision: None,
            threshold: None,
            f1_at_threshold: None,
            positive: "remote".into(),
            labels: vec!["in_person".into(), "remote".into()],
            confusion: vec![vec![70, 5], vec![5, 20]],
            curves: Some(Curves::default()),
        };
        assert_eq!(base_rate(&eval), 0.25);
        assert_eq!(classifier(&eval)[1].series[0].points, vec![(0.0, 0.25), (1.0, 0.25)]);
        assert!(classifier(&ClassifierEval { curves: None, ..eval }).is_empty());
    }
}
