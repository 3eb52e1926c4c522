//! A run from start to summary; the loop itself is in [`super::session`].

use serde::Serialize;

use crate::backend::{Backend, Capacity};
use crate::data::pack::{Cursor, PackCounts, PackPlan, Shuffle, count_batches};
use crate::data::split::Subset;
use crate::data::token_set::TokenSet;
use crate::model::DistilBert;

use super::checkpoint::{DataPrint, Interval, RunState};
use super::evaluate::{EvalPlan, Evaluator, MASK_SEED};
use super::loader::Loader;
use super::observer::{Event, Observer, Started};
use super::outliers::Recent;
use super::plan::{Length, TrainPlan};
use super::policy::{Best, Every, Memory};
use super::records::{EvalResult, Record};
use super::run_dir::{Opening, RunDir};
use super::session::{Ready, Session};
use super::settings::differences;
use super::start::Start;
use super::step::Trainer;
use super::task::Objective;
use super::{Error, Result};

/// What a run did.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Summary {
    /// Steps made, earlier sittings included.
    pub steps: u64,
    /// Epochs gone through, fraction included.
    pub epochs: f64,
    /// Tokens trained on, special tokens included.
    pub tokens: u64,
    /// Seconds, evaluation and saving included.
    pub seconds: f64,
    /// Tokens a second of the steps alone.
    pub tokens_per_second: f64,
    /// Mean loss over the steps last logged, in nats.
    pub loss: Option<f64>,
    /// The evaluation before step 1.
    pub evaluation_before: Option<EvalResult>,
    /// The last evaluation.
    pub evaluation: Option<EvalResult>,
    /// The best evaluation's step and metric.
    pub best: Option<Best>,
    /// Steps skipped: their loss or gradients were not finite, or outliers.
    pub skipped_steps: u64,
    /// The outliers among them.
    pub outlier_steps: u64,
    /// What one epoch of this sitting packed, cut and passed over; all of it where it was less than an epoch.
    pub packing: PackCounts,
    /// Why it ended.
    pub ended: Ended,
    /// The lines of `metrics.jsonl`.
    #[serde(skip)]
    pub history: Vec<Record>,
}

/// Why a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Ended {
    /// All steps were made.
    Finished,
    /// Evaluations stopped getting better.
    OutOfPatience,
    /// The observer asked for it; a checkpoint was saved.
    Stopped,
}

/// Trains. The best model ends up in `plan.out` itself; checkpoints, `metrics.jsonl` and `run.toml` beside it.
///
/// With a [`Start::resume`], goes on from there bit for bit; what the run was begun with must be what
/// it is given now.
pub fn run<B: Backend>(
    be: &B, start: Start, set: &TokenSet, plan: &TrainPlan, observer: &mut dyn Observer,
) -> Result<Summary> {
    plan.check(&start.config)?;
    plan.task.check_head(start.head)?;
    let tokenizer = set.tokenizer()?;
    check_vocabulary(&start, tokenizer.vocab_size())?;

    let packing = plan.batching.pack_plan(&plan.task, Subset::Train, Shuffle::Shuffled { seed: plan.seed });
    let classes = start.config.labels.len();
    let objective = Objective::new(&plan.task, plan.seed, &tokenizer, set, classes, &plan.batching)?;
    let capacity = Capacity {
        tokens: packing.batch_tokens,
        sequences: packing.max_sequences,
        masked: objective.masked_capacity(packing.batch_tokens),
    };

    let opening = match &start.checkpoint {
        Some(checkpoint) => {
            let RunState { step, evaluation_due, .. } = checkpoint.state;
            Opening::Resume { step, evaluation_due }
        }
        None => Opening::Fresh(plan.occupied),
    };
    let state = state_of(&start, set, plan, &packing)?;
    let trainer = trainer(be, start, plan, capacity)?;
    let evaluator = evaluator(be, &trainer.model, set, plan)?;
    let loader = Loader::new(set, &packing, tokenizer.special(), state.cursor.clone(), objective, plan.accumulation)?;
    let loader = loader.feeding(plan.feed);
    // Last of all, as this may delete an earlier run: whatever else can be refused was refused by now.
    let mut dir = RunDir::claim(&plan.out, opening)?;
    dir.write_settings(&state.settings)?;
    dir.report_to(plan.report_to)?;
    observer.on(Event::Started(Started {
        device: &be.describe(),
        parameters: trainer.model.table.parameters(),
        step: state.step,
        total_steps: state.total_steps,
        warmup_steps: plan.schedule.warmup_steps(state.total_steps),
    }));

    let mut session = Session::new(be, plan, Ready { set, tokenizer, trainer, evaluator, state, dir }, observer);
    let ended = std::thread::scope(|scope| session.steps(&loader.run_ahead(scope)))?;
    session.finish(ended)
}

fn check_vocabulary(start: &Start, entries: usize) -> Result<()> {
    if entries <= start.config.vocab_size {
        return Ok(());
    }
    Err(Error::Plan(format!(
        "the token set's vocabulary has {entries} entries, the model's {}; tokenize with the model's tokenizer",
        start.config.vocab_size
    )))
}

/// The model and moments that `start` says.
fn trainer<B: Backend>(be: &B, start: Start, plan: &TrainPlan, capacity: Capacity) -> Result<Trainer<B>> {
    let model = DistilBert::new(be, start.config, start.head, &start.values)?;
    let mut trainer = Trainer::new(be, model, plan.adam, capacity, plan.seed, plan.replay)?;
    trainer.smooth_labels(plan.task.label_smoothing());
    if let Some(checkpoint) = &start.checkpoint {
        let [m, v] = checkpoint.moments(&trainer.model.table)?;
        be.write_flat(&mut trainer.optimizer.m, &m)?;
        be.write_flat(&mut trainer.optimizer.v, &v)?;
        trainer.optimizer.updates = checkpoint.state.updates;
        trainer.micro_batches = checkpoint.state.micro_batches;
    }
    Ok(trainer)
}

/// What measures the model during the run; none where that is never asked for.
fn evaluator<'a, B: Backend>(
    be: &B, model: &DistilBert<B>, set: &'a TokenSet, plan: &TrainPlan,
) -> Result<Option<Evaluator<'a, B>>> {
    if plan.policy.evaluate == Every::Never {
        return Ok(None);
    }
    let (task, batching) = (plan.task.clone(), plan.batching.clone());
    let on = EvalPlan { task, batching, subset: Subset::Held, seed: MASK_SEED };
    Evaluator::new(be, model, set, on).map(Some)
}

/// The checkpoint's state, after checking that data and settings are those of then; or that of step 0.
fn state_of(start: &Start, set: &TokenSet, plan: &TrainPlan, packing: &PackPlan) -> Result<RunState> {
    let data = DataPrint::of(set);
    let settings = plan.settings();
    let Some(checkpoint) = &start.checkpoint else {
        return Ok(RunState {
            step: 0,
            total_steps: count_steps(set, packing, plan)?,
            updates: 0,
            micro_batches: 0,
            tokens: 0,
            epoch: 0.0,
            cursor: Cursor::start(0),
            skipped: 0,
            outliers: 0,
            skipped_in_a_row: 0,
            recent: Recent::default(),
            policy: Memory::default(),
            interval: Interval::default(),
            evaluation_due: plan.policy.evaluate != Every::Never,
            evaluation_before: None,
            evaluation: None,
            seconds: 0.0,
            train_seconds: 0.0,
            settings: settings.to_string(),
            data,
            data_files: set.stamps().clone(),
        });
    };
    let state = checkpoint.state.clone();
    let then: toml::Table = toml::from_str(&state.settings)
        .map_err(|error| Error::file(&checkpoint.dir, format!("run.json holds no settings: {error}")))?;
    let mut differing = state.data.differences(&data);
    differing.extend(differences(&then, &settings));
    if !differing.is_empty() {
        return Err(Error::Differs { path: checkpoint.dir.clone(), differences: differing });
    }
    if state.data_files != *set.stamps() {
        // Moved, copied, or changed under the same description: only reading every byte tells.
        set.verify()?;
    }
    // What may differ, and does, is from now on as it is asked for now.
    Ok(RunState { settings: settings.to_string(), data_files: set.stamps().clone(), ..state })
}

/// Steps of a whole run: each epoch's batches, packed over lengths only, in groups.
fn count_steps(set: &TokenSet, packing: &PackPlan, plan: &TrainPlan) -> Result<u64> {
    let steps_of =
        |epoch: u32| -> Result<u64> { Ok(count_batches(set, packing, epoch)?.div_ceil(plan.accumulation as u64)) };
    let total = match plan.length {
        Length::Steps(steps) => steps,
        Length::Epochs(epochs) => {
            let whole = epochs.floor();
            let mut total = 0;
            for epoch in 0..whole as u32 {
                total += steps_of(epoch)?;
            }
            match epochs - whole {
                0.0 => total,
                part => total + (part * steps_of(whole as u32)? as f64).ceil() as u64,
            }
        }
    };
    match total {
        0 => Err(Error::Plan(
            "no posting is left to train on; check --limit, --validation-split-percentage and the labels".into(),
        )),
        _ => Ok(total),
    }
}
