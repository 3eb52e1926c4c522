//! Figures of an evaluation, for people.

use std::path::Path;

use crate::train::{ClassifierEval, EvalResult, MlmEval};

/// The most telling figures, on one line.
pub fn one_line(eval: &EvalResult) -> String {
    match eval {
        EvalResult::Mlm(e) => {
            format!("loss {:.4}, perplexity {:.2}, accuracy {:.1} %", e.loss, e.perplexity, 100.0 * e.accuracy)
        }
        EvalResult::Classifier(e) => format!(
            "loss {:.4}, accuracy {:.1} %, F1 {:.3}, ROC AUC {}, average precision {}",
            e.loss,
            100.0 * e.accuracy,
            e.f1,
            optional(e.roc_auc),
            optional(e.average_precision)
        ),
    }
}

/// All figures, a line each.
pub fn table(eval: &EvalResult) -> String {
    match eval {
        EvalResult::Mlm(e) => mlm(e),
        EvalResult::Classifier(e) => classifier(e),
    }
}

fn mlm(e: &MlmEval) -> String {
    let mut text = format!("perplexity         {:.3}\n", e.perplexity);
    if let Some(unigram) = e.perplexity_unigram {
        text += &format!("of a unigram model {unigram:.3}\n");
    }
    text + &format!(
        "loss               {:.4} nats\naccuracy           {:.2} % of {} masked tokens\n",
        e.loss,
        100.0 * e.accuracy,
        grouped(e.masked_tokens)
    )
}

fn classifier(e: &ClassifierEval) -> String {
    let mut text = format!(
        "rows               {}\nloss               {:.4} nats\naccuracy           {:.2} %\n\
         F1 of {:<12} {:.4}\nmacro F1           {:.4}\nROC AUC            {}\naverage precision  {}\n",
        grouped(e.rows),
        e.loss,
        100.0 * e.accuracy,
        e.positive,
        e.f1,
        e.macro_f1,
        optional(e.roc_auc),
        optional(e.average_precision)
    );
    if let (Some(threshold), Some(f1)) = (e.threshold, e.f1_at_threshold) {
        text += &format!("best F1            {f1:.4}, from a score of {threshold:.4} on\n");
    }
    let width = e.labels.iter().map(String::len).max().unwrap_or(0).max(8);
    text += &format!("{:width$}  predicted\n{:width$}", "true", "");
    text += &e.labels.iter().map(|label| format!("  {label:>width$}")).collect::<String>();
    for (label, row) in e.labels.iter().zip(&e.confusion) {
        text += &format!("\n{label:width$}");
        text += &row.iter().map(|count| format!("  {count:>width$}")).collect::<String>();
    }
    text + "\n"
}

fn optional(figure: Option<f64>) -> String {
    figure.map_or("undefined".to_owned(), |figure| format!("{figure:.4}"))
}

/// 1234567 as 1,234,567.
pub fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A path as it is typed into a shell.
pub fn shell_word(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_alphanumeric() || "/._-+=:,@%".contains(c);
    if !text.is_empty() && text.chars().all(plain) { text } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_a_shell() {
        let words = ["runs/mlm-1", "my run", "it's"].map(|path| shell_word(Path::new(path)));
        assert_eq!(words, ["runs/mlm-1", "'my run'", r"'it'\''s'"]);
    }

    #[test]
    fn thousands() {
        assert_eq!([0, 999, 1000, 1_234_567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
    }
}
