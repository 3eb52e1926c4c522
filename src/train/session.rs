//! One sitting of a run: makes steps and performs what the policies ask for.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::sync::mpsc::Receiver;
use std::time::Instant;

use crate::backend::Backend;
use crate::data::pack::PackCounts;
use crate::data::token_set::TokenSet;
use crate::data::tokenizer::Tokenizer;
use crate::model::hub;

use super::checkpoint::{self, Interval, RunState, Snapshot};
use super::evaluate::Evaluator;
use super::loader::{Group, LastOfEpoch};
use super::observer::{Event, Observer, StepDone};
use super::plan::TrainPlan;
use super::policy::{Action, Moment, Place};
use super::records::{EvalRecord, Record, StepRecord};
use super::run::{Ended, Summary};
use super::run_dir::RunDir;
use super::step::{StepOutcome, Trainer, Update, Why};
use super::{Error, Result};

/// Steps skipped one after another that end a run.
const MOST_SKIPPED_IN_A_ROW: u32 = 10;

/// A run under way.
pub struct Session<'a, B: Backend> {
    be: &'a B,
    plan: &'a TrainPlan,
    set: &'a TokenSet,
    tokenizer: Tokenizer,
    trainer: Trainer<B>,
    evaluator: Option<Evaluator<'a, B>>,
    state: RunState,
    dir: RunDir,
    observer: &'a mut dyn Observer,
    began: Began,
    /// Up to when the seconds of steps are counted.
    counted: Instant,
    packing: Packing,
    under_way: Option<UnderWay>,
}

/// A step that was completed, of which the host does not know yet what came.
struct UnderWay {
    group: Group,
    place: Place,
}

/// What was packed in this sitting.
enum Packing {
    /// Less than an epoch so far.
    Part(PackCounts),
    /// An epoch, the first that came to its end.
    Epoch(PackCounts),
}

/// What a sitting began with.
struct Began {
    at: Instant,
    seconds: f64,
    tokens: u64,
    train_seconds: f64,
}

/// What a session takes over.
pub struct Ready<'a, B: Backend> {
    /// What is trained on.
    pub set: &'a TokenSet,
    /// The token set's.
    pub tokenizer: Tokenizer,
    /// Model and moments as `state` has them.
    pub trainer: Trainer<B>,
    /// What measures the model; none where that is never asked for.
    pub evaluator: Option<Evaluator<'a, B>>,
    /// Where the run stands.
    pub state: RunState,
    /// Where it writes.
    pub dir: RunDir,
}

impl<'a, B: Backend> Session<'a, B> {
    /// Makes ready to go on from `ready.state`.
    pub fn new(be: &'a B, plan: &'a TrainPlan, ready: Ready<'a, B>, observer: &'a mut dyn Observer) -> Self {
        let Ready { set, tokenizer, trainer, evaluator, state, dir } = ready;
        let began = Began {
            at: Instant::now(),
            seconds: state.seconds,
            tokens: state.tokens,
            train_seconds: state.train_seconds,
        };
        Session {
            be,
            plan,
            set,
            tokenizer,
            trainer,
            evaluator,
            state,
            dir,
            observer,
            began,
            counted: Instant::now(),
            packing: Packing::Part(PackCounts::default()),
            under_way: None,
        }
    }

    /// Makes the steps that are left.
    pub fn steps(&mut self, groups: &Receiver<Result<Group>>) -> Result<Ended> {
        let there = checkpoint::steps(self.dir.path())?;
        for step in self.plan.policy.left_over(&self.state.policy, self.state.step, &there) {
            self.delete(step)?;
        }
        if self.state.evaluation_due {
            // After a step, its checkpoint was written without knowing the outcome.
            let again = (self.state.step > 0).then_some(Action::Save);
            if let Some(ended) = self.perform([Action::Evaluate].into_iter().chain(again))? {
                return Ok(ended);
            }
        }
        if self.plan.policy.out_of_patience(&self.state.policy) {
            return Ok(Ended::OutOfPatience);
        }
        self.counted = Instant::now();
        loop {
            if self.state.step >= self.state.total_steps {
                return Ok(Ended::Finished);
            }
            let group = groups.recv().map_err(|_| Error::Plan("the loader stopped".into()))??;
            let moment = self.step(group)?;
            let actions = self.plan.policy.after_step(moment);
            if self.trainer.is_done(self.be)? {
                self.settle()?;
            }
            if !actions.is_empty() || self.observer.wants_stop() {
                self.settle()?;
                if let Some(ended) = self.perform(actions)? {
                    return Ok(ended);
                }
                self.counted = Instant::now();
            }
        }
    }

    /// Makes a step, settling the one before while a device is busy with this one's passes.
    fn step(&mut self, group: Group) -> Result<Moment> {
        self.trainer.begin(self.be, &group)?;
        self.settle()?;
        let (step, total) = (self.state.step + 1, self.state.total_steps);
        self.trainer.optimizer.limits = self.plan.outliers.limits(&self.state.recent);
        self.trainer.complete(self.be, self.plan.schedule.factor(step, total))?;
        let place = match group.last_of_epoch {
            _ if step == total => Place::RunEnd,
            LastOfEpoch::Yes => Place::EpochEnd,
            LastOfEpoch::No => Place::Within,
        };
        if place != Place::Within {
            self.check_data()?;
        }
        self.under_way = Some(UnderWay { group, place });
        Ok(Moment { step, place })
    }

    /// Waits for the step under way, if there is one, counts and logs it.
    fn settle(&mut self) -> Result<()> {
        let Some(UnderWay { group, place }) = self.under_way.take() else { return Ok(()) };
        let Some(outcome) = self.trainer.settle(self.be)? else { return Ok(()) };
        let now = Instant::now();
        let seconds = now.duration_since(self.counted).as_secs_f64();
        self.counted = now;
        self.count(&group, &outcome, seconds)?;
        self.log(&outcome, place)
    }

    /// Brings the state up to date; `seconds` is what waiting for the batches and the step took.
    fn count(&mut self, group: &Group, outcome: &StepOutcome, seconds: f64) -> Result<()> {
        let s = &mut self.state;
        s.step += 1;
        s.tokens += group.tokens;
        s.epoch = group.epoch;
        s.cursor = group.cursor.clone();
        self.packing = match (&self.packing, group.last_of_epoch) {
            (Packing::Epoch(counts), _) => Packing::Epoch(*counts),
            (Packing::Part(_), LastOfEpoch::Yes) => Packing::Epoch(group.counts),
            (Packing::Part(_), LastOfEpoch::No) => Packing::Part(group.counts),
        };
        s.train_seconds += seconds;
        s.interval.tokens += group.tokens;
        s.interval.seconds += seconds;
        let (step, loss, grad_norm) = (s.step, outcome.mean_loss(), outcome.grad_norm);
        if outcome.weight > 0.0 {
            self.plan.outliers.note(&mut s.recent, loss, grad_norm);
        }
        match outcome.update {
            Update::Made => {
                s.skipped_in_a_row = 0;
                s.interval.loss += outcome.loss;
                s.interval.weight += outcome.weight;
            }
            Update::Skipped(why) => {
                s.skipped += 1;
                s.outliers += u64::from(why == Why::Outlier);
                s.skipped_in_a_row += 1;
                self.observer.on(Event::Skipped { step, loss, grad_norm, why });
                if s.skipped_in_a_row >= MOST_SKIPPED_IN_A_ROW {
                    return Err(Error::Diverged { step, count: s.skipped_in_a_row, loss, grad_norm });
                }
            }
        }
        let tokens_per_second = self.tokens_per_second();
        let (tokens, total_steps) = (self.state.tokens, self.state.total_steps);
        self.observer.on(Event::Step(StepDone { step, total_steps, loss, tokens, tokens_per_second }));
        Ok(())
    }

    fn log(&mut self, outcome: &StepOutcome, place: Place) -> Result<()> {
        let s = &self.state;
        let asked = s.step.is_multiple_of(self.plan.logging_steps) || place == Place::RunEnd;
        if !asked || s.interval.weight == 0.0 || outcome.update != Update::Made {
            return Ok(());
        }
        let record = StepRecord {
            step: s.step,
            epoch: s.epoch,
            loss: s.interval.loss / s.interval.weight,
            learning_rate: self.plan.adam.learning_rate * self.plan.schedule.factor(s.step, s.total_steps),
            grad_norm: outcome.grad_norm,
            skipped: s.skipped,
            tokens: s.tokens,
            tokens_per_second: s.interval.tokens as f64 / s.interval.seconds.max(f64::MIN_POSITIVE),
            seconds: self.seconds(),
        };
        self.state.interval = Interval::default();
        self.observer.on(Event::Logged(&record));
        self.record(Record::Step(record))
    }

    /// Performs actions and those that follow from them, in order. A stop that the observer wants comes
    /// after them, with a checkpoint.
    fn perform(&mut self, actions: impl IntoIterator<Item = Action>) -> Result<Option<Ended>> {
        let mut queue: VecDeque<Action> = actions.into_iter().collect();
        let (mut ended, mut saved) = (None, false);
        loop {
            let Some(action) = queue.pop_front() else {
                if !self.observer.wants_stop() || ended.is_some() {
                    return Ok(ended);
                }
                if saved {
                    return Ok(Some(Ended::Stopped));
                }
                queue.push_back(Action::Save);
                continue;
            };
            let follow_ups = match action {
                Action::Evaluate => self.evaluate()?,
                Action::Promote => self.promote()?,
                Action::Save => {
                    saved = true;
                    self.save()?
                }
                Action::Delete(step) => self.delete(step)?,
                Action::Stop => {
                    ended = Some(Ended::OutOfPatience);
                    Vec::new()
                }
            };
            follow_ups.into_iter().rev().for_each(|action| queue.push_front(action));
        }
    }

    /// Evaluates and asks the policy what follows. Given up where a stop is wanted: it is then due on resuming.
    fn evaluate(&mut self) -> Result<Vec<Action>> {
        let Some(evaluator) = &mut self.evaluator else { return Ok(Vec::new()) };
        self.state.evaluation_due = true;
        let observer = &mut *self.observer;
        let eval = evaluator.evaluate(self.be, &self.trainer.model, None, &mut |done, total| {
            observer.on(Event::Evaluating { done, total });
            if observer.wants_stop() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        let Some(eval) = eval else { return Ok(Vec::new()) };
        self.state.evaluation_due = false;
        let step = self.state.step;
        let record = EvalRecord { step, epoch: self.state.epoch, eval: eval.clone(), seconds: self.seconds() };
        self.observer.on(Event::Evaluated(&record));
        self.record(Record::Eval(record))?;
        if step == 0 {
            // What was there before training is no candidate for the best.
            self.state.evaluation_before = Some(eval);
            return Ok(Vec::new());
        }
        let actions = self.plan.policy.after_evaluation(&mut self.state.policy, step, &eval);
        self.state.evaluation = Some(eval);
        Ok(actions)
    }

    /// Writes the model into the run directory itself.
    fn promote(&mut self) -> Result<Vec<Action>> {
        let model = &self.trainer.model;
        let values = self.be.read_weights(&model.weights)?;
        hub::save(self.dir.path(), &model.config, model.head, &model.table, &values)
            .map_err(Error::from)
            .and_then(|()| Ok(self.tokenizer.save(self.dir.path())?))
            .map_err(|cause| self.unsaved(cause))?;
        self.observer.on(Event::Promoted(self.dir.path()));
        Ok(Vec::new())
    }

    fn save(&mut self) -> Result<Vec<Action>> {
        self.check_data()?;
        let actions = self.plan.policy.after_save(&mut self.state.policy, self.state.step);
        self.state.seconds = self.seconds();
        self.state.updates = self.trainer.optimizer.updates;
        self.state.micro_batches = self.trainer.micro_batches;
        let Trainer { model, optimizer, .. } = &self.trainer;
        let snapshot = Snapshot {
            config: &model.config,
            head: model.head,
            table: &model.table,
            values: &self.be.read_weights(&model.weights)?,
            m: &self.be.read_flat(&optimizer.m)?,
            v: &self.be.read_flat(&optimizer.v)?,
            tokenizer: &self.tokenizer,
            state: &self.state,
        };
        let path = checkpoint::write(self.dir.path(), &snapshot).map_err(|cause| self.unsaved(cause))?;
        self.observer.on(Event::Saved(&path));
        Ok(actions)
    }

    fn delete(&mut self, step: u64) -> Result<Vec<Action>> {
        let path = checkpoint::delete(self.dir.path(), step)?;
        self.observer.on(Event::Deleted(&path));
        Ok(Vec::new())
    }

    fn record(&mut self, record: Record) -> Result<()> {
        self.dir.record(record).map_err(|cause| self.unsaved(cause))
    }

    /// That nothing of this step could be written, and what is left to go on from.
    fn unsaved(&self, cause: Error) -> Error {
        let last = checkpoint::steps(self.dir.path()).unwrap_or_default().pop();
        Error::Unsaved { step: self.state.step, last, cause: Box::new(cause) }
    }

    /// That the data is what it was when the run or this sitting began. Asked for at the end of each epoch and before a
    /// checkpoint is written.
    fn check_data(&self) -> Result<()> {
        let Some(path) = self.set.touched() else { return Ok(()) };
        let back = match checkpoint::steps(self.dir.path()).unwrap_or_default().pop() {
            Some(step) => format!("put it back as it was and go on from checkpoint-{step} with --resume"),
            None => "start over with --overwrite".into(),
        };
        Err(Error::file(path, format!("was changed under the run, which may have trained on either; {back}")))
    }

    /// Seconds of all sittings.
    fn seconds(&self) -> f64 {
        self.began.seconds + self.began.at.elapsed().as_secs_f64()
    }

    /// Of the steps of this sitting.
    fn tokens_per_second(&self) -> f64 {
        let seconds = self.state.train_seconds - self.began.train_seconds;
        (self.state.tokens - self.began.tokens) as f64 / seconds.max(f64::MIN_POSITIVE)
    }

    /// Leaves a model in the run directory and sums up.
    pub fn finish(mut self, ended: Ended) -> Result<Summary> {
        if self.state.policy.best.is_none() {
            self.promote()?;
        }
        let seconds = self.seconds();
        let s = self.state;
        let loss = self.dir.records.iter().rev().find_map(|record| match record {
            Record::Step(step) => Some(step.loss),
            Record::Eval(_) => None,
        });
        Ok(Summary {
            steps: s.step,
            epochs: s.epoch,
            tokens: s.tokens,
            seconds,
            tokens_per_second: s.tokens as f64 / s.train_seconds.max(f64::MIN_POSITIVE),
            loss,
            evaluation_before: s.evaluation_before,
            evaluation: s.evaluation,
            best: s.policy.best,
            skipped_steps: s.skipped,
            outlier_steps: s.outliers,
            packing: match self.packing {
                Packing::Part(counts) | Packing::Epoch(counts) => counts,
            },
            ended,
            history: std::mem::take(&mut self.dir.records),
        })
    }
}
