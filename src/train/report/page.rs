//! The page: sections in order, every piece of text escaped.

use std::fmt::Write;

use super::chart::{Chart, Ink, Stroke};
use super::{Error, Perplexity, Posting, ReportData, Table, curves};
use crate::train::records::ClassifierEval;

const STYLE: &str = include_str!("page.css");
/// Characters of a posting that are shown.
const EXCERPT: usize = 360;

/// The whole page.
pub(super) fn html(data: &ReportData) -> Result<String, Error> {
    let mut page = Page::default();
    page.raw("<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n");
    page.raw("<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n");
    page.raw("<meta name=\"color-scheme\" content=\"light dark\">\n");
    page.element("title", "", &data.title);
    page.raw("\n<style>\n").raw(STYLE).raw("</style>\n</head>\n<body>\n<main>\n");
    page.raw("<header>").element("h1", "", &data.title).element("p", "lead", &data.lead).raw("</header>\n");
    page.figures(data);
    if let Some(perplexity) = &data.perplexity {
        page.perplexity(perplexity);
    }
    if let Some(result) = &data.classifier {
        page.classifier(result)?;
    }
    for run in &data.runs {
        let charts: Vec<_> = run.charts.iter().filter(|c| c.has_points()).collect();
        if !charts.is_empty() {
            page.section(&run.title, "").raw("<div class=\"charts\">\n");
            charts.into_iter().try_for_each(|chart| page.chart(chart))?;
            page.raw("</div>\n</section>\n");
        }
    }
    page.fills(data);
    page.postings(&data.postings);
    page.commands(data);
    page.tables(&data.tables);
    page.raw("<footer>Written by HandBERT ")
        .text(env!("CARGO_PKG_VERSION"))
        .raw(". This page needs no network.</footer>\n");
    page.raw("</main>\n</body>\n</html>\n");
    Ok(page.0)
}

#[derive(Default)]
struct Page(String);

impl Page {
    fn raw(&mut self, html: &str) -> &mut Self {
        self.0.push_str(html);
        self
    }

    /// Text, escaped for content and for attributes.
    fn text(&mut self, text: &str) -> &mut Self {
        for c in text.chars() {
            match c {
                '&' => self.0.push_str("&amp;"),
                '<' => self.0.push_str("&lt;"),
                '>' => self.0.push_str("&gt;"),
                '"' => self.0.push_str("&quot;"),
                '\'' => self.0.push_str("&#39;"),
                // What HTML does not allow in a document.
                c if c.is_control() && !matches!(c, '\n' | '\t') => self.0.push('\u{fffd}'),
                c => self.0.push(c),
            }
        }
        self
    }

    /// An element that holds text only; `class` may be empty.
    fn element(&mut self, tag: &str, class: &str, text: &str) -> &mut Self {
        self.raw("<").raw(tag);
        if !class.is_empty() {
            self.raw(" class=\"").raw(class).raw("\"");
        }
        self.raw(">").text(text).raw("</").raw(tag).raw(">")
    }

    fn section(&mut self, title: &str, note: &str) -> &mut Self {
        self.raw("<section>\n").element("h2", "", title).raw("\n");
        if !note.is_empty() {
            self.element("p", "note", note).raw("\n");
        }
        self
    }

    fn figures(&mut self, data: &ReportData) {
        if data.figures.is_empty() {
            return;
        }
        self.raw("<dl class=\"figures\">\n");
        for figure in &data.figures {
            self.raw("<div>").element("dt", "", &figure.name).element("dd", "", &figure.value);
            self.element("dd", "note", &figure.note).raw("</div>\n");
        }
        self.raw("</dl>\n");
    }

    /// Bars from zero, so that lengths compare as the figures do.
    fn perplexity(&mut self, p: &Perplexity) {
        let note = "How many tokens the model hesitates between at a hidden one, on postings it was not trained on. Lower is better.";
        self.section("Perplexity", note).raw("<div class=\"bars\">\n");
        let most =
            [p.before, Some(p.after), p.unigram].into_iter().flatten().filter(|v| v.is_finite()).fold(1.0, f64::max);
        let bars = [
            ("before training", p.before, Ink::Quiet),
            ("unigram model", p.unigram, Ink::Second),
            ("after training", Some(p.after), Ink::First),
        ];
        for (name, value, ink) in bars {
            let Some(value) = value else { continue };
            let share = if value.is_finite() { (100.0 * value / most).clamp(0.4, 100.0) } else { 100.0 };
            self.element("span", "name", name);
            let _ = write!(
                self.0,
                "<span class=\"bar\"><i class=\"{}\" style=\"width:{share:.2}%\"></i></span>",
                ink.class()
            );
            self.element("span", "value", &figure(value)).raw("\n");
        }
        self.raw("</div>\n</section>\n");
    }

    fn classifier(&mut self, result: &ClassifierEval) -> Result<(), Error> {
        self.section("Classification", "On postings the model was not trained on.").raw("<div class=\"charts\">\n");
        for chart in curves::classifier(result) {
            self.chart(&chart)?;
        }
        if !result.labels.is_empty() && result.confusion.len() == result.labels.len() {
            self.confusion(result);
        }
        self.raw("<figure><figcaption><b>Figures</b></figcaption>").facts(&figures_of(result)).raw("</figure>\n");
        self.raw("</div>\n</section>\n");
        Ok(())
    }

    /// Shaded by share of the row's postings.
    fn confusion(&mut self, result: &ClassifierEval) {
        self.raw("<figure><figcaption>")
            .element("b", "", "Confusion")
            .raw("</figcaption>\n<table class=\"confusion\">\n<thead><tr><td></td>");
        for label in &result.labels {
            self.raw("<th scope=\"col\">predicted<br>").text(label).raw("</th>");
        }
        self.raw("</tr></thead>\n<tbody>\n");
        for (label, row) in result.labels.iter().zip(&result.confusion) {
            self.raw("<tr><th scope=\"row\">is ").text(label).raw("</th>");
            let total = row.iter().sum::<u64>().max(1) as f64;
            for &count in row {
                let share = count as f64 / total;
                let _ = write!(self.0, "<td style=\"--share:{:.0}%\">", 8.0 + 60.0 * share);
                self.element("b", "", &grouped(count))
                    .element("small", "", &format!("{:.1} %", 100.0 * share))
                    .raw("</td>");
            }
            self.raw("</tr>\n");
        }
        self.raw("</tbody></table></figure>\n");
    }

    fn chart(&mut self, chart: &Chart) -> Result<(), Error> {
        self.raw("<figure><figcaption>").element("b", "", &chart.title);
        for series in chart.series.iter().filter(|s| !s.name.is_empty()) {
            let dashed = if series.stroke == Stroke::Dashed { " dashed" } else { "" };
            let _ = write!(self.0, "<span class=\"key\"><i class=\"{}{dashed}\"></i>", series.ink.class());
            self.text(&series.name).raw("</span>");
        }
        self.raw("</figcaption>\n").raw(&chart.svg()?).raw("</figure>\n");
        Ok(())
    }

    fn fills(&mut self, data: &ReportData) {
        if data.fills.is_empty() {
            return;
        }
        self.section("Filling in the gap", "What the language model puts in place of [MASK], with probabilities.");
        for fill in &data.fills {
            self.raw("<div class=\"fill\">").element("p", "", &fill.text).raw("<p class=\"tokens\">");
            for (token, score) in &fill.tokens {
                self.raw("<span>")
                    .element("b", "", token)
                    .raw(" ")
                    .element("small", "", &format!("{:.1} %", 100.0 * score))
                    .raw("</span>");
            }
            self.raw("</p></div>\n");
        }
        self.raw("</section>\n");
    }

    fn postings(&mut self, postings: &[Posting]) {
        if postings.is_empty() {
            return;
        }
        self.section("A few labelled postings", "").raw("<div class=\"postings\">\n");
        for posting in postings {
            let verdict = match &posting.truth {
                None => "",
                Some(truth) if *truth == posting.label => "right",
                Some(_) => "wrong",
            };
            self.raw("<article><p class=\"verdict\">").element("b", verdict, &posting.label);
            self.raw(" ").text(&format!("{:.1} %", 100.0 * posting.score));
            if let Some(truth) = &posting.truth {
                self.element(
                    "small",
                    verdict,
                    &if verdict == "right" { "right".to_owned() } else { format!("wrong: it is {truth}") },
                );
            }
            self.raw("</p>").element("p", "", &excerpt(&posting.text)).raw("</article>\n");
        }
        self.raw("</div>\n</section>\n");
    }

    fn commands(&mut self, data: &ReportData) {
        if data.commands.is_empty() {
            return;
        }
        self.section("By hand", "The same, one command at a time.").raw("<dl class=\"commands\">\n");
        for command in &data.commands {
            self.element("dt", "", &command.what).raw("<dd>").element("code", "", &command.line).raw("</dd>\n");
        }
        self.raw("</dl>\n</section>\n");
    }

    fn tables(&mut self, tables: &[Table]) {
        if tables.iter().all(|t| t.rows.is_empty()) {
            return;
        }
        self.section("Details", "").raw("<div class=\"tables\">\n");
        for table in tables.iter().filter(|t| !t.rows.is_empty()) {
            self.raw("<div>").element("h3", "", &table.title).facts(&table.rows).raw("</div>\n");
        }
        self.raw("</div>\n</section>\n");
    }

    fn facts(&mut self, rows: &[(String, String)]) -> &mut Self {
        self.raw("<table class=\"facts\">\n");
        for (name, value) in rows {
            self.raw("<tr><th scope=\"row\">").text(name).raw("</th>").element("td", "", value).raw("</tr>\n");
        }
        self.raw("</table>")
    }
}

/// The figures beside the curves.
fn figures_of(eval: &ClassifierEval) -> Vec<(String, String)> {
    let of = |value: Option<f64>| value.map_or("—".to_owned(), |v| format!("{v:.3}"));
    let positive = &eval.positive;
    vec![
        ("postings".to_owned(), grouped(eval.rows)),
        ("accuracy".to_owned(), of(Some(eval.accuracy))),
        ("area under the ROC curve".to_owned(), of(eval.roc_auc)),
        ("average precision".to_owned(), of(eval.average_precision)),
        (format!("F1 of {positive}"), of(Some(eval.f1))),
        ("F1, mean of the classes".to_owned(), of(Some(eval.macro_f1))),
        (format!("best threshold for {positive}"), of(eval.threshold)),
        (format!("F1 of {positive} at that threshold"), of(eval.f1_at_threshold)),
        ("loss, nats".to_owned(), of(Some(eval.loss))),
    ]
}

/// The beginning of a text, cut at a word, its white space made even.
fn excerpt(text: &str) -> String {
    let mut out = String::new();
    for word in text.split_whitespace() {
        if out.chars().count() + word.chars().count() > EXCERPT {
            // A word longer than the excerpt is shown in part.
            if out.is_empty() {
                out.extend(word.chars().take(EXCERPT));
            }
            out.push('…');
            break;
        }
        if !out.is_empty() {
            out.push(' ');
        }
        out.push_str(word);
    }
    out
}

/// A figure with about four digits.
fn figure(value: f64) -> String {
    match value.abs() {
        v if !v.is_finite() => value.to_string(),
        v if v >= 1000.0 => grouped(value.round() as u64),
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// 1234567 as 1,234,567.
fn grouped(value: u64) -> String {
    let digits = value.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(c);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::{Command, Figure, Fill, RunCurves, Scale, Series};
    use super::*;
    use crate::train::records::Curves;

    const HOSTILE: &str = "<script>alert('x')</script> & \"quotes\"";

    fn classifier(positive: &str) -> ClassifierEval {
        ClassifierEval {
            loss: 0.3,
            rows: 1203,
            accuracy: 0.9,
            f1: 0.8,
            macro_f1: 0.8,
            roc_auc: Some(0.9),
            average_precision: Some(0.8),
            threshold: Some(0.4),
            f1_at_threshold: Some(0.85),
            positive: positive.to_owned(),
            labels: vec![positive.to_owned(), "b".into()],
            confusion: vec![vec![1200, 3], vec![0, 0]],
            curves: Some(Curves {
                roc: vec![[0.0, 0.0], [0.1, 0.8], [1.0, 1.0]],
                precision_recall: vec![[0.0, 1.0], [1.0, 0.3]],
            }),
        }
    }

    fn full() -> ReportData {
        let text = HOSTILE.to_owned();
        let series =
            Series { name: text.clone(), points: vec![(0.0, 1.0), (1.0, 2.0)], ink: Ink::First, stroke: Stroke::Line };
        let chart = Chart {
            title: text.clone(),
            x_label: text.clone(),
            y_label: text.clone(),
            scale: Scale::Fit,
            series: vec![series],
        };
        ReportData {
            title: text.clone(),
            lead: text.clone(),
            figures: vec![Figure { name: text.clone(), value: text.clone(), note: text.clone() }],
            perplexity: Some(Perplexity { before: Some(f64::INFINITY), after: 12.0, unigram: Some(600.0) }),
            classifier: Some(classifier(&text)),
            runs: vec![RunCurves { title: text.clone(), charts: vec![chart] }],
            fills: vec![Fill { text: text.clone(), tokens: vec![(text.clone(), 0.5)] }],
            postings: vec![Posting { text: text.clone(), label: text.clone(), score: 0.7, truth: Some(text.clone()) }],
            commands: vec![Command { what: text.clone(), line: text.clone() }],
            tables: vec![Table { title: text.clone(), rows: vec![(text.clone(), text)] }],
        }
    }

    #[test]
    fn every_piece_of_text_is_escaped() {
        let page = html(&full()).unwrap();
        assert!(!page.contains("<script") && !page.contains("\"quotes\""));
        // Title twice, lead, three of the figure, positive class twice, …: none is lost either.
        assert!(page.matches("&lt;script&gt;").count() >= 18);
    }

    #[test]
    fn nothing_is_fetched() {
        let page = html(&full()).unwrap();
        for word in ["http://", "https://", "src=", "@import", "url("] {
            let namespaces = page.matches("xmlns=\"http://www.w3.org/2000/svg\"").count();
            let expected = if word == "http://" { namespaces } else { 0 };
            assert_eq!(page.matches(word).count(), expected, "{word}");
        }
    }

    #[test]
    fn what_is_empty_is_left_out() {
        let page = html(&ReportData { title: "Nothing".into(), ..Default::default() }).unwrap();
        assert!(page.contains("<h1>Nothing</h1>") && !page.contains("<section"));
    }

    #[test]
    fn excerpts_end_at_words() {
        assert_eq!(excerpt("  a\n\n b\tc "), "a b c");
        let long = excerpt(&"word ".repeat(500));
        assert!(long.ends_with("word…") && long.chars().count() <= EXCERPT + 1);
        assert_eq!(excerpt(&"é".repeat(9_000)).chars().count(), EXCERPT + 1);
    }

    #[test]
    fn figures_read_well() {
        assert_eq!(grouped(1_234_567), "1,234,567");
        assert_eq!(grouped(999), "999");
        assert_eq!(figure(4021.3), "4,021");
        assert_eq!(figure(12.345), "12.3");
        assert_eq!(figure(f64::INFINITY), "inf");
    }
}
