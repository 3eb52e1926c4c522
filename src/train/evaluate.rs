//! Measures a model on one side of a token set, in the set's order, without dropout.

use std::ops::ControlFlow;

use crate::backend::{Backend, Capacity};
use crate::data::mask::Masker;
use crate::data::pack::{Cursor, Filled, Packer, Shuffle, count_batches};
use crate::data::split::Subset;
use crate::data::token_set::TokenSet;
use crate::data::tokenizer::Tokenizer;
use crate::model::distilbert::Workspace;
use crate::model::{DistilBert, Mode};

use super::metrics::{Confusion, Ranking, Truth};
use super::plan::Batching;
use super::records::{ClassifierEval, EvalResult, MlmEval};
use super::task::{ClassWeights, MicroBatch, Objective, Task};
use super::unigram::Unigram;
use super::{Error, Result};

/// Seed of the masks of every evaluation, whatever the run's seed, so that all perplexities compare.
pub const MASK_SEED: u64 = 42;

/// What to measure on.
#[derive(Debug, Clone, PartialEq)]
pub struct EvalPlan {
    /// What the model is for.
    pub task: Task,
    /// How samples become batches.
    pub batching: Batching,
    /// Which side.
    pub subset: Subset,
    /// Of the masks.
    pub seed: u64,
}

/// Evaluates as often as asked; everything it needs is made once.
pub struct Evaluator<'a, B: Backend> {
    set: &'a TokenSet,
    plan: EvalPlan,
    objective: Objective,
    tokenizer: Tokenizer,
    workspace: Workspace<B>,
    batches: u64,
    vocab: usize,
}

/// Called after each batch with (batches done, batches in all); `Break` gives the evaluation up.
pub type Progress<'p> = &'p mut dyn FnMut(u64, u64) -> ControlFlow<()>;

/// Evaluates once. `unigram` adds its perplexity on the same masked tokens.
pub fn evaluate<B: Backend>(
    be: &B, model: &DistilBert<B>, set: &TokenSet, plan: EvalPlan, unigram: Option<&Unigram>, progress: Progress<'_>,
) -> Result<Option<EvalResult>> {
    Evaluator::new(be, model, set, plan)?.evaluate(be, model, unigram, progress)
}

impl<'a, B: Backend> Evaluator<'a, B> {
    /// Makes ready; a side without a single batch is an error.
    pub fn new(be: &B, model: &DistilBert<B>, set: &'a TokenSet, plan: EvalPlan) -> Result<Self> {
        plan.task.check_head(model.head)?;
        plan.batching.check(&model.config)?;
        let tokenizer = set.tokenizer()?;
        let mut task = plan.task.clone();
        if let Task::Classifier { class_weights, .. } = &mut task {
            // Every row counts the same in an evaluation, whatever it weighed in training.
            *class_weights = ClassWeights::Equal;
        }
        let classes = model.config.labels.len();
        let objective = Objective::new(&task, plan.seed, &tokenizer, set, classes, &plan.batching)?;
        let capacity = Capacity {
            tokens: plan.batching.batch_tokens,
            sequences: plan.batching.max_sequences(),
            masked: objective.masked_capacity(plan.batching.batch_tokens),
        };
        let workspace = model.workspace(be, capacity, Mode::Inference, plan.seed)?;
        let packing = plan.batching.pack_plan(&plan.task, plan.subset, Shuffle::Sequential);
        let batches = count_batches(set, &packing, 0)?;
        if batches == 0 {
            return Err(Error::Plan(match plan.subset {
                Subset::Held => "no usable posting is held out; raise --validation-split-percentage".into(),
                Subset::Train => {
                    "no usable posting is on the training side; lower --validation-split-percentage".into()
                }
                Subset::All => {
                    "no posting can be used; does the token set have text, and labels for a classifier?".into()
                }
            }));
        }
        Ok(Evaluator { set, vocab: model.config.vocab_size, plan, objective, tokenizer, workspace, batches })
    }

    /// The figures, or `None` where `progress` gave up.
    pub fn evaluate(
        &mut self, be: &B, model: &DistilBert<B>, unigram: Option<&Unigram>, progress: Progress<'_>,
    ) -> Result<Option<EvalResult>> {
        match self.plan.task {
            Task::Mlm { .. } => self.mlm(be, model, unigram, progress),
            Task::Classifier { .. } => self.classifier(be, model, progress),
        }
    }

    fn mlm(
        &mut self, be: &B, model: &DistilBert<B>, unigram: Option<&Unigram>, progress: Progress<'_>,
    ) -> Result<Option<EvalResult>> {
        let mut targets = vec![0u64; self.vocab];
        let done = self.each_batch(progress, |micro, workspace| {
            for &target in &micro.batch.targets {
                if let Some(count) = targets.get_mut(target as usize) {
                    *count += 1;
                }
            }
            model.upload(be, &micro.view(0.0, 0), workspace)?;
            Ok(model.loss(be, workspace)?)
        })?;
        let sums = be.take_tally(&mut self.workspace.tally)?;
        if done.is_break() {
            return Ok(None);
        }
        if sums.targets == 0 {
            return Err(Error::Plan("no token was masked for evaluation; raise --mlm-probability".into()));
        }
        let loss = sums.loss / sums.targets as f64;
        Ok(Some(EvalResult::Mlm(MlmEval {
            loss,
            perplexity: loss.exp(),
            masked_tokens: sums.targets,
            accuracy: sums.correct as f64 / sums.targets as f64,
            perplexity_unigram: unigram.map(|unigram| unigram.perplexity(&targets)),
        })))
    }

    fn classifier(&mut self, be: &B, model: &DistilBert<B>, progress: Progress<'_>) -> Result<Option<EvalResult>> {
        let classes = model.config.labels.len();
        let mut windows = Vec::new();
        let done = self.each_batch(progress, |micro, workspace| {
            model.upload(be, &micro.view(0.0, 0), workspace)?;
            let logits = model.logits(be, workspace)?;
            let packed = &micro.batch.packed;
            for ((row, piece), &label) in logits.chunks_exact(classes).zip(&packed.pieces).zip(&packed.labels) {
                windows.push(Window { sample: piece.sample, start: piece.start, label, probabilities: softmax(row) });
            }
            Ok(())
        })?;
        if done.is_break() {
            return Ok(None);
        }
        let positive = self.plan.task.positive_class(&model.config.labels)?;
        Ok(Some(EvalResult::Classifier(summarise(windows, &model.config.labels, positive))))
    }

    fn each_batch(
        &mut self, progress: Progress<'_>, mut visit: impl FnMut(&MicroBatch, &mut Workspace<B>) -> Result<()>,
    ) -> Result<ControlFlow<()>> {
        let packing = self.plan.batching.pack_plan(&self.plan.task, self.plan.subset, Shuffle::Sequential);
        let mut packer = Packer::new(self.set, &packing, self.tokenizer.special(), Cursor::start(0))?;
        let mut micro = MicroBatch::default();
        let mut done = 0;
        while let Filled::Batch = packer.next(&mut micro.batch.packed)? {
            self.objective.prepare(Masker::EVAL_EPOCH, &mut micro);
            visit(&micro, &mut self.workspace)?;
            done += 1;
            if progress(done, self.batches).is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }
}

/// What the model says of one window of a row.
struct Window {
    sample: u64,
    start: u32,
    label: i32,
    /// [K]
    probabilities: Vec<f64>,
}

/// Probabilities of a row of logits.
fn softmax(logits: &[f32]) -> Vec<f64> {
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let exp: Vec<f64> = logits.iter().map(|&x| f64::from(x - most).exp()).collect();
    let sum: f64 = exp.iter().sum();
    exp.into_iter().map(|x| x / sum).collect()
}

/// Averages the windows of each row, then measures.
fn summarise(mut windows: Vec<Window>, labels: &[String], positive: usize) -> ClassifierEval {
    // By sample and place: sums do not depend on how batches were packed.
    windows.sort_unstable_by_key(|w| (w.sample, w.start));
    let mut confusion = Confusion::new(labels.len());
    let mut scores = Vec::new();
    let mut loss = 0.0;
    for row in windows.chunk_by(|a, b| a.sample == b.sample) {
        let Some(truth) = usize::try_from(row[0].label).ok().filter(|&label| label < labels.len()) else { continue };
        let mean = |class: usize| row.iter().map(|w| w.probabilities[class]).sum::<f64>() / row.len() as f64;
        let probabilities: Vec<f64> = (0..labels.len()).map(mean).collect();
        let predicted = (0..labels.len()).reduce(|a, b| if probabilities[b] > probabilities[a] { b } else { a });
        confusion.add(truth, predicted.unwrap_or(0));
        // The least positive number instead of zero: a loss, though large, stays a number.
        loss -= probabilities[truth].max(f64::MIN_POSITIVE).ln();
        scores.push((probabilities[positive], if truth == positive { Truth::Positive } else { Truth::Negative }));
    }
    let ranking = Ranking::new(scores);
    let best = ranking.best_threshold();
    let rows = confusion.rows();
    ClassifierEval {
        loss: loss / rows.max(1) as f64,
        rows,
        accuracy: confusion.accuracy(),
        f1: confusion.f1(positive),
        macro_f1: confusion.macro_f1(),
        roc_auc: ranking.roc_auc(),
        average_precision: ranking.average_precision(),
        threshold: best.map(|b| b.threshold),
        f1_at_threshold: best.map(|b| b.f1),
        positive: labels.get(positive).cloned().unwrap_or_default(),
        labels: labels.to_vec(),
        confusion: confusion.into_counts(),
        curves: Some(ranking.curves()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(sample: u64, start: u32, label: i32, positive: f64) -> Window {
        Window { sample, start, label, probabilities: vec![1.0 - positive, positive] }
    }

    #[test]
    fn windows_of_a_row_are_averaged_before_anything_is_counted() {
        let labels = ["no".to_owned(), "yes".to_owned()];
        let windows = vec![
            window(7, 0, 1, 0.9),
            window(3, 10, 0, 0.1),
            window(7, 20, 1, 0.3),
            window(3, 0, 0, 0.5),
            window(9, 0, 1, 0.2),
        ];
        let eval = summarise(windows, &labels, 1);
        assert_eq!(eval.rows, 3);
        assert_eq!(eval.confusion, [[1, 0], [1, 1]]);
        assert!((eval.loss + (0.6f64.ln() + 0.7f64.ln() + 0.2f64.ln()) / 3.0).abs() < 1e-12);
        assert!((eval.f1 - 2.0 / 3.0).abs() < 1e-12);
        assert_eq!(eval.roc_auc, Some(0.5));
        assert_eq!(eval.positive, "yes");
    }

    #[test]
    fn softmax_of_large_logits_is_a_distribution() {
        let p = softmax(&[1000.0, 999.0, -1000.0]);
        assert!((p.iter().sum::<f64>() - 1.0).abs() < 1e-12);
        assert!((p[0] / p[1] - 1f64.exp()).abs() < 1e-9);
    }
}
