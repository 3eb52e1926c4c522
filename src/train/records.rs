//! What a run leaves to read: one line of `metrics.jsonl` per logged step and per evaluation, and
//! the figures of an evaluation.

use serde::{Deserialize, Deserializer, Serialize};

/// One line of `metrics.jsonl`. A line with `eval` is an evaluation, any other a logged step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Record {
    /// An evaluation.
    Eval(EvalRecord),
    /// A logged step.
    Step(StepRecord),
}

impl Record {
    /// The step after which it was made; 0 = before the first.
    pub fn step(&self) -> u64 {
        match self {
            Record::Eval(record) => record.step,
            Record::Step(record) => record.step,
        }
    }

    /// Seconds since the run began.
    pub fn seconds(&self) -> f64 {
        match self {
            Record::Eval(record) => record.seconds,
            Record::Step(record) => record.seconds,
        }
    }
}

/// A logged step. Losses are means over the steps since the one logged before it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepRecord {
    /// Steps made, this one included.
    pub step: u64,
    /// Epochs gone through, fraction included.
    pub epoch: f64,
    /// Loss per target (or per unit of label weight), in nats.
    pub loss: f64,
    /// Learning rate of this step.
    pub learning_rate: f64,
    /// L2 norm of this step's gradients, before clipping.
    pub grad_norm: f64,
    /// Steps skipped since the run began: not finite, or outliers.
    #[serde(default)]
    pub skipped: u64,
    /// Tokens trained on since the run began, special tokens included.
    pub tokens: u64,
    /// Tokens a second over the steps since the one logged before, evaluation and saving not counted.
    pub tokens_per_second: f64,
    /// Seconds since the run began, evaluation and saving included, earlier sittings too.
    pub seconds: f64,
}

/// An evaluation during a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EvalRecord {
    /// Steps made; 0 = before the first.
    pub step: u64,
    /// Epochs gone through, fraction included.
    pub epoch: f64,
    /// The figures.
    pub eval: EvalResult,
    /// Seconds since the run began.
    pub seconds: f64,
}

/// The figures of an evaluation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum EvalResult {
    /// Of a masked-language model.
    Mlm(MlmEval),
    /// Of a classifier.
    Classifier(ClassifierEval),
}

impl EvalResult {
    /// Mean loss, in nats.
    pub fn loss(&self) -> f64 {
        match self {
            EvalResult::Mlm(eval) => eval.loss,
            EvalResult::Classifier(eval) => eval.loss,
        }
    }

    /// The masked-language model's figures.
    pub fn mlm(&self) -> Option<&MlmEval> {
        match self {
            EvalResult::Mlm(eval) => Some(eval),
            EvalResult::Classifier(_) => None,
        }
    }

    /// The classifier's figures.
    pub fn classifier(&self) -> Option<&ClassifierEval> {
        match self {
            EvalResult::Classifier(eval) => Some(eval),
            EvalResult::Mlm(_) => None,
        }
    }
}

/// How well a model predicts hidden tokens. The masks are fixed by seed, so figures compare.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MlmEval {
    /// Mean cross-entropy of the masked tokens, in nats.
    #[serde(deserialize_with = "null_is_nan")]
    pub loss: f64,
    /// exp(loss).
    #[serde(deserialize_with = "null_is_infinite")]
    pub perplexity: f64,
    /// Tokens that were to be predicted.
    pub masked_tokens: u64,
    /// Share of them whose most probable token was right.
    pub accuracy: f64,
    /// Perplexity on the same masked tokens of a unigram model: token frequencies of the training
    /// side, plus one each. Absent where it was not asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub perplexity_unigram: Option<f64>,
}

/// How well a classifier tells labels apart. `f1`, `roc_auc`, `average_precision` and `threshold`
/// are of one class, `positive`, against the rest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ClassifierEval {
    /// Mean cross-entropy of the labelled rows, in nats; windows of one row are averaged first.
    #[serde(deserialize_with = "null_is_nan")]
    pub loss: f64,
    /// Labelled rows.
    pub rows: u64,
    /// Share of rows whose most probable label was right.
    pub accuracy: f64,
    /// F1 of the positive class, at the most probable label.
    pub f1: f64,
    /// Mean of every class's F1, classes that neither occur nor are predicted left out.
    pub macro_f1: f64,
    /// Area under the ROC curve; none where the rows have one label only.
    pub roc_auc: Option<f64>,
    /// Average precision; none where no row is positive.
    pub average_precision: Option<f64>,
    /// Score of the positive class at and above which F1 is best on these rows; none where no row is positive.
    pub threshold: Option<f64>,
    /// F1 of the positive class at that threshold.
    pub f1_at_threshold: Option<f64>,
    /// The class that counts as positive.
    pub positive: String,
    /// Names of the classes, by id.
    pub labels: Vec<String>,
    /// Rows by true class, then by most probable class. [K][K]
    pub confusion: Vec<Vec<u64>>,
    /// Points of the two curves, at most a few hundred each; not written to `metrics.jsonl`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub curves: Option<Curves>,
}

/// Points to draw, each [x, y] in 0..=1, x ascending.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Curves {
    /// False positive rate → true positive rate.
    pub roc: Vec<[f64; 2]>,
    /// Recall → precision.
    pub precision_recall: Vec<[f64; 2]>,
}

/// JSON has neither infinity nor NaN, and null is written in their place: a run whose loss grew out of hand is read
/// back all the same.
fn null_is_nan<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(Option::<f64>::deserialize(deserializer)?.unwrap_or(f64::NAN))
}

/// The same for exp(loss), which overflows long before the loss does.
fn null_is_infinite<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(Option::<f64>::deserialize(deserializer)?.unwrap_or(f64::INFINITY))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_that_json_cannot_hold_are_read_back() {
        let eval = |loss: f64| MlmEval {
            loss,
            perplexity: loss.exp(),
            masked_tokens: 7,
            accuracy: 0.0,
            perplexity_unigram: None,
        };
        let read = |eval: MlmEval| {
            let record = Record::Eval(EvalRecord { step: 3, epoch: 0.5, eval: EvalResult::Mlm(eval), seconds: 1.0 });
            let read: Record = serde_json::from_str(&serde_json::json!(record).to_string()).expect("read back");
            match read {
                Record::Eval(EvalRecord { eval: EvalResult::Mlm(eval), .. }) => eval,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(read(eval(0.0)), eval(0.0));
        assert_eq!(read(eval(1000.0)), eval(1000.0));
        let none = read(eval(f64::NAN));
        assert!(none.loss.is_nan() && none.masked_tokens == 7);
    }
}
