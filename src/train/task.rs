//! What masked-language modelling and classification do differently: which samples they use, what
//! is hidden, what a batch weighs in the loss.

use serde::{Deserialize, Serialize};

use crate::backend::BatchView;
use crate::data::MaskedBatch;
use crate::data::mask::{self, MaskUnit, Masker};
use crate::data::pack::{Empty, LabelNeed};
use crate::data::split::Subset;
use crate::data::token_set::TokenSet;
use crate::data::tokenizer::Tokenizer;
use crate::model::Head;

use super::plan::Batching;
use super::{Error, Result};

/// What a model is trained or evaluated for.
#[derive(Debug, Clone, PartialEq)]
pub enum Task {
    /// Masked-language modelling.
    Mlm {
        /// Share of ordinary tokens to predict.
        probability: f64,
        /// Whether tokens or whole words are hidden.
        unit: MaskUnit,
    },
    /// Classification.
    Classifier {
        /// Name of the class that F1, ROC AUC and average precision are about; the second class where it is absent.
        positive: Option<String>,
        /// What a row of each class weighs in the loss.
        class_weights: ClassWeights,
        /// ε, from 0 to below 1: in training, (1-ε) onehot + ε/K stands for a label. Evaluations take labels as they are.
        label_smoothing: f64,
    },
}

/// What a row of each class weighs in the loss.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub enum ClassWeights {
    /// One.
    #[default]
    Equal,
    /// Rows / (classes × rows of the class), counted on the training side, as scikit-learn's `balanced`.
    Balanced,
    /// These, by class id.
    Given(Vec<f32>),
}

impl Task {
    /// Masked-language modelling with 15 % of the tokens hidden one by one.
    pub const MLM: Task = Task::Mlm { probability: 0.15, unit: MaskUnit::Token };
    /// Classification, every row weighing the same, about the second class.
    pub const CLASSIFIER: Task =
        Task::Classifier { positive: None, class_weights: ClassWeights::Equal, label_smoothing: 0.0 };

    /// Whether samples without a label are of use.
    pub fn need(&self) -> LabelNeed {
        match self {
            Task::Mlm { .. } => LabelNeed::Any,
            Task::Classifier { .. } => LabelNeed::Labelled,
        }
    }

    /// What becomes of samples without a token: there is nothing to mask in them, but a classifier must answer.
    pub fn empty(&self) -> Empty {
        match self {
            Task::Mlm { .. } => Empty::PassOver,
            Task::Classifier { .. } => Empty::Keep,
        }
    }

    /// Checks the numbers; errors name flags.
    pub fn check(&self) -> Result<()> {
        match self {
            Task::Mlm { probability, .. } if !(*probability > 0.0 && *probability < 1.0) => {
                Err(Error::Plan(format!("--mlm-probability {probability} is not between 0 and 1")))
            }
            Task::Classifier { label_smoothing, .. } if !(0.0..1.0).contains(label_smoothing) => {
                Err(Error::Plan(format!("--label-smoothing-factor {label_smoothing} is not from 0 to below 1")))
            }
            _ => Ok(()),
        }
    }

    /// Checks that a model's head is the one for this task.
    pub fn check_head(&self, head: Head) -> Result<()> {
        match (self, head) {
            (Task::Mlm { .. }, Head::Mlm) | (Task::Classifier { .. }, Head::Classifier { .. }) => Ok(()),
            _ => Err(Error::Plan(format!("the model is a {}, which is not what this task needs", head.architecture()))),
        }
    }

    /// ε of the targets trained on.
    pub fn label_smoothing(&self) -> f32 {
        match self {
            Task::Mlm { .. } => 0.0,
            Task::Classifier { label_smoothing, .. } => *label_smoothing as f32,
        }
    }

    /// Most masked positions in a batch of `tokens`.
    pub fn masked_capacity(&self, tokens: usize) -> usize {
        match self {
            Task::Mlm { probability, unit } => mask::capacity(tokens, *probability, *unit),
            Task::Classifier { .. } => 0,
        }
    }

    /// The class that counts as positive.
    pub fn positive_class(&self, labels: &[String]) -> Result<usize> {
        let Task::Classifier { positive: Some(name), .. } = self else {
            return Ok(labels.len().saturating_sub(1).min(1));
        };
        labels
            .iter()
            .position(|label| label == name)
            .ok_or_else(|| Error::Plan(format!("--positive-label {name:?} is not one of [{}]", labels.join(", "))))
    }
}

/// One packed batch, ready to be uploaded.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct MicroBatch {
    /// The batch; masked where the task is masked-language modelling.
    pub batch: MaskedBatch,
    /// Weight of each sequence in the classifier's loss. [B], or empty for 1
    pub label_weights: Vec<f32>,
}

impl MicroBatch {
    /// As the backend sees it.
    pub fn view(&self, loss_scale: f32, step: u32) -> BatchView<'_> {
        let packed = &self.batch.packed;
        BatchView {
            ids: &packed.ids,
            position_ids: &packed.position_ids,
            cu_seqlens: &packed.cu_seqlens,
            masked_rows: &self.batch.masked_rows,
            targets: &self.batch.targets,
            labels: &packed.labels,
            label_weights: &self.label_weights,
            loss_scale,
            step,
        }
    }
}

/// A task made ready for a token set and a vocabulary.
pub enum Objective {
    /// Masked-language modelling.
    Mlm(Masker),
    /// Classification; weights by class, empty for 1.
    Classifier(Vec<f32>),
}

impl Objective {
    /// Makes a task ready; `seed` is that of the masks. Balanced class weights count the training side.
    pub fn new(
        task: &Task, seed: u64, tokenizer: &Tokenizer, set: &TokenSet, classes: usize, batching: &Batching,
    ) -> Result<Self> {
        Ok(match task {
            Task::Mlm { probability, unit } => Objective::Mlm(Masker::new(*probability, seed, *unit, tokenizer)),
            Task::Classifier { class_weights, .. } => Objective::Classifier(match class_weights {
                ClassWeights::Equal => Vec::new(),
                ClassWeights::Balanced => balanced(set, classes, batching)?,
                ClassWeights::Given(weights) if weights.len() == classes => weights.clone(),
                ClassWeights::Given(weights) => {
                    return Err(Error::Plan(format!(
                        "--class-weights gives {} weights for {classes} classes",
                        weights.len()
                    )));
                }
            }),
        })
    }

    /// Most masked positions in a batch of `tokens`.
    pub fn masked_capacity(&self, tokens: usize) -> usize {
        match self {
            Objective::Mlm(masker) => masker.capacity(tokens),
            Objective::Classifier(_) => 0,
        }
    }

    /// Masks or weighs a packed batch of this epoch; gives what it weighs in the loss.
    pub fn prepare(&self, epoch: u32, micro: &mut MicroBatch) -> f64 {
        match self {
            Objective::Mlm(masker) => {
                masker.mask(epoch, &mut micro.batch);
                // The token set may have labels; this model has no classes.
                micro.batch.packed.labels.clear();
                micro.batch.targets.len() as f64
            }
            Objective::Classifier(weights) => {
                let labels = &micro.batch.packed.labels;
                if weights.is_empty() {
                    return labels.iter().filter(|&&label| label >= 0).count() as f64;
                }
                let weight = |&label: &i32| usize::try_from(label).ok().and_then(|l| weights.get(l)).copied();
                micro.label_weights.clear();
                micro.label_weights.extend(labels.iter().map(|label| weight(label).unwrap_or(0.0)));
                micro.label_weights.iter().map(|&w| f64::from(w)).sum()
            }
        }
    }
}

fn balanced(set: &TokenSet, classes: usize, batching: &Batching) -> Result<Vec<f32>> {
    let (mut rows, split) = (vec![0u64; classes], batching.split());
    for i in 0..batching.limit.map_or(set.len(), |limit| limit.min(set.len())) {
        let label = usize::try_from(set.label(i)).ok().and_then(|label| rows.get_mut(label));
        if let Some(count) = label.filter(|_| split.contains(Subset::Train, set.group(i))) {
            *count += 1;
        }
    }
    let total: u64 = rows.iter().sum();
    rows.iter()
        .enumerate()
        .map(|(class, &count)| match count {
            0 => Err(Error::Plan(format!(
                "--class-weights balanced: no training posting has label {:?}",
                set.meta().label_names.get(class).map_or("?", String::as_str)
            ))),
            _ => Ok((total as f64 / (classes as f64 * count as f64)) as f32),
        })
        .collect()
}
