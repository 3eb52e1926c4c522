//! When to evaluate, save, delete and stop. A policy returns actions and touches nothing; the run
//! performs them.

use serde::{Deserialize, Serialize};

use super::records::EvalResult;

/// How often something happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Every {
    /// Not at all.
    Never,
    /// After every so many steps.
    Steps(u64),
    /// At the end of each epoch.
    Epoch,
}

/// What makes one evaluation better than another.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// Mean cross-entropy; less is better.
    #[default]
    Loss,
    /// Share that is right.
    Accuracy,
    /// F1 of the positive class.
    F1,
    /// Mean F1 of all classes.
    MacroF1,
    /// Area under the ROC curve.
    RocAuc,
    /// Average precision.
    AveragePrecision,
}

impl Metric {
    /// Its value, where the evaluation has one.
    pub fn of(self, eval: &EvalResult) -> Option<f64> {
        let classifier = eval.classifier();
        match self {
            Metric::Loss => Some(eval.loss()),
            Metric::Accuracy => match eval {
                EvalResult::Mlm(eval) => Some(eval.accuracy),
                EvalResult::Classifier(eval) => Some(eval.accuracy),
            },
            Metric::F1 => classifier.map(|eval| eval.f1),
            Metric::MacroF1 => classifier.map(|eval| eval.macro_f1),
            Metric::RocAuc => classifier.and_then(|eval| eval.roc_auc),
            Metric::AveragePrecision => classifier.and_then(|eval| eval.average_precision),
        }
    }

    /// Whether `value` beats `best`.
    pub fn is_better(self, value: f64, best: f64) -> bool {
        match self {
            Metric::Loss => value < best,
            _ => value > best,
        }
    }
}

/// Rules of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// When to evaluate. The first evaluation is before step 1, the last after the last step.
    pub evaluate: Every,
    /// Save after so many steps, besides after each evaluation.
    pub save_steps: Option<u64>,
    /// Checkpoints kept. The newest and the best always are, so the least that are kept is two where those differ.
    pub save_total_limit: Option<usize>,
    /// What is best.
    pub metric: Metric,
    /// Evaluations in a row without a new best after which to stop.
    pub patience: Option<u32>,
}

/// What policies remember; part of a checkpoint.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Memory {
    /// Steps of the checkpoints there are, oldest first.
    pub saved: Vec<u64>,
    /// The best evaluation so far.
    pub best: Option<Best>,
    /// Evaluations since it.
    pub since_best: u32,
}

/// The best evaluation so far.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Best {
    /// The step after which it was made.
    pub step: u64,
    /// Its metric.
    #[serde(with = "super::exact")]
    pub value: f64,
}

/// Where a run stands after a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// Steps made.
    pub step: u64,
    /// Where in its epoch and in the run that step stood.
    pub place: Place,
}

/// Where a step stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Others of its epoch follow.
    Within,
    /// It was the last of its epoch.
    EpochEnd,
    /// It was the last of the run, planned or because a stop was asked for at an epoch's end.
    RunEnd,
}

/// What the run is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Evaluate on the held-out side.
    Evaluate,
    /// Make this model the run directory's.
    Promote,
    /// Write a checkpoint.
    Save,
    /// Delete the checkpoint of this step.
    Delete(u64),
    /// Stop: patience is used up.
    Stop,
}

impl Policy {
    /// After a step: evaluate, save?
    pub fn after_step(&self, now: Moment) -> Vec<Action> {
        let last = now.place == Place::RunEnd;
        let evaluate = match self.evaluate {
            Every::Never => false,
            Every::Steps(steps) => last || now.step.is_multiple_of(steps),
            Every::Epoch => last || now.place == Place::EpochEnd,
        };
        let save = evaluate || last || self.save_steps.is_some_and(|steps| now.step.is_multiple_of(steps));
        let mut actions = Vec::new();
        if evaluate {
            actions.push(Action::Evaluate);
        }
        if save {
            actions.push(Action::Save);
        }
        actions
    }

    /// After an evaluation: is it the best, and is patience used up? A metric that is undefined or not
    /// a number is never the best.
    pub fn after_evaluation(&self, memory: &mut Memory, step: u64, eval: &EvalResult) -> Vec<Action> {
        let value = self.metric.of(eval).filter(|value| !value.is_nan());
        match (value, memory.best) {
            (Some(value), best) if best.is_none_or(|best| self.metric.is_better(value, best.value)) => {
                memory.best = Some(Best { step, value });
                memory.since_best = 0;
                vec![Action::Promote]
            }
            _ => {
                memory.since_best += 1;
                if self.out_of_patience(memory) { vec![Action::Stop] } else { Vec::new() }
            }
        }
    }

    /// Whether a run stops here, also when it is resumed.
    pub fn out_of_patience(&self, memory: &Memory) -> bool {
        self.patience.is_some_and(|patience| memory.since_best >= patience)
    }

    /// Steps of checkpoints that a sitting of the run, killed after `step` was saved, was still to delete.
    pub fn left_over(&self, memory: &Memory, step: u64, there: &[u64]) -> Vec<u64> {
        let dropped = |saved: &u64| *saved < step && !memory.saved.contains(saved);
        if self.save_total_limit.is_some() { there.iter().copied().filter(dropped).collect() } else { Vec::new() }
    }

    /// After a checkpoint was written: which are one too many? The oldest go first, the best and the newest never.
    pub fn after_save(&self, memory: &mut Memory, step: u64) -> Vec<Action> {
        memory.saved.retain(|&saved| saved != step);
        memory.saved.push(step);
        let Some(limit) = self.save_total_limit else { return Vec::new() };
        let best = memory.best.map(|best| best.step);
        let excess = memory.saved.len().saturating_sub(limit.max(1));
        let goes: Vec<u64> =
            memory.saved.iter().copied().filter(|&saved| Some(saved) != best && saved != step).take(excess).collect();
        memory.saved.retain(|saved| !goes.contains(saved));
        goes.into_iter().map(Action::Delete).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::records::MlmEval;
    use super::*;

    fn policy(evaluate: Every) -> Policy {
        Policy { evaluate, save_steps: None, save_total_limit: None, metric: Metric::Loss, patience: None }
    }

    fn eval(loss: f64) -> EvalResult {
        EvalResult::Mlm(MlmEval {
            loss,
            perplexity: loss.exp(),
            masked_tokens: 1,
            accuracy: -loss,
            perplexity_unigram: None,
        })
    }

    fn at(step: u64, place: Place) -> Moment {
        Moment { step, place }
    }

    #[test]
    fn evaluations_come_when_asked_for_and_always_at_the_end_and_each_is_saved() {
        let both = [Action::Evaluate, Action::Save];
        let steps = policy(Every::Steps(10));
        assert_eq!(steps.after_step(at(9, Place::Within)), []);
        assert_eq!(steps.after_step(at(10, Place::Within)), both);
        assert_eq!(steps.after_step(at(13, Place::EpochEnd)), []);
        assert_eq!(steps.after_step(at(13, Place::RunEnd)), both);
        let epoch = policy(Every::Epoch);
        assert_eq!(epoch.after_step(at(10, Place::Within)), []);
        assert_eq!(epoch.after_step(at(13, Place::EpochEnd)), both);
        assert_eq!(epoch.after_step(at(13, Place::RunEnd)), both);
        let never = Policy { save_steps: Some(4), ..policy(Every::Never) };
        assert_eq!(never.after_step(at(7, Place::EpochEnd)), []);
        assert_eq!(never.after_step(at(8, Place::Within)), [Action::Save]);
        assert_eq!(never.after_step(at(9, Place::RunEnd)), [Action::Save]);
    }

    #[test]
    fn the_best_is_kept_however_old_it_is() {
        let policy = Policy { save_total_limit: Some(2), ..policy(Every::Steps(1)) };
        let mut memory = Memory::default();
        let mut deleted = Vec::new();
        for (step, loss) in [(1, 3.0), (2, 1.0), (3, 2.0), (4, 2.5), (5, 4.0)] {
            policy.after_evaluation(&mut memory, step, &eval(loss));
            deleted.extend(policy.after_save(&mut memory, step));
        }
        assert_eq!(deleted, [Action::Delete(1), Action::Delete(3), Action::Delete(4)]);
        assert_eq!(memory.saved, [2, 5]);
        assert_eq!(memory.best, Some(Best { step: 2, value: 1.0 }));
    }

    #[test]
    fn a_limit_of_one_or_none_keeps_the_newest_beside_the_best() {
        for limit in [0, 1] {
            let policy = Policy { save_total_limit: Some(limit), ..policy(Every::Steps(1)) };
            let mut memory = Memory::default();
            for (step, loss) in [(1, 1.0), (2, 2.0), (3, 3.0)] {
                policy.after_evaluation(&mut memory, step, &eval(loss));
                policy.after_save(&mut memory, step);
            }
            assert_eq!(memory.saved, [1, 3]);
        }
    }

    #[test]
    fn what_was_dropped_and_is_still_there_goes_when_the_run_goes_on() {
        let limited = Policy { save_total_limit: Some(2), ..policy(Every::Never) };
        let memory = Memory { saved: vec![3, 4], ..Memory::default() };
        // Later ones are of another sitting, and none of ours to judge.
        assert_eq!(limited.left_over(&memory, 4, &[1, 2, 3, 4, 9]), [1, 2]);
        assert!(policy(Every::Never).left_over(&memory, 4, &[1, 2, 3, 4]).is_empty());
    }

    #[test]
    fn saving_the_same_step_again_does_not_count_twice() {
        let policy = Policy { save_total_limit: Some(2), ..policy(Every::Never) };
        let mut memory = Memory { saved: vec![1, 2], ..Memory::default() };
        assert_eq!(policy.after_save(&mut memory, 2), []);
        assert_eq!(memory.saved, [1, 2]);
    }

    #[test]
    fn patience_counts_evaluations_without_a_new_best() {
        let policy = Policy { patience: Some(2), ..policy(Every::Epoch) };
        let mut memory = Memory::default();
        let actions: Vec<Vec<Action>> = [3.0, 2.0, 2.0, 1.0, f64::NAN, 1.5]
            .iter()
            .enumerate()
            .map(|(i, &loss)| policy.after_evaluation(&mut memory, i as u64, &eval(loss)))
            .collect();
        let promote = vec![Action::Promote];
        assert_eq!(actions, [promote.clone(), promote.clone(), vec![], promote, vec![], vec![Action::Stop]]);
        assert!(policy.out_of_patience(&memory));
    }

    #[test]
    fn more_is_better_for_all_metrics_but_loss() {
        assert!(Metric::Loss.is_better(1.0, 2.0) && !Metric::Loss.is_better(2.0, 2.0));
        for metric in [Metric::Accuracy, Metric::F1, Metric::MacroF1, Metric::RocAuc, Metric::AveragePrecision] {
            assert!(metric.is_better(2.0, 1.0) && !metric.is_better(2.0, 2.0));
        }
        assert_eq!(Metric::RocAuc.of(&eval(1.0)), None);
    }
}
