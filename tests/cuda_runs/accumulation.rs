//! Batches of a group add up, bit for bit where the order of sums is the same.
//!
//! Four batches against one batch of all their sequences are not such a place: an op sums the rows of a tile, or of a split,
//! before it adds to what was there, and which rows those are depends on the batch. That such runs agree within rounding
//! is shown in tests/training.rs.

use handbert::backend::{Backend, Capacity};
use handbert::data::pack::{Cursor, Shuffle};
use handbert::data::split::Subset;
use handbert::model::{DistilBert, Mode};
use handbert::train::loader::{Group, Loader};
use handbert::train::optimizer::{AdamSettings, Optimizer};
use handbert::train::step::{Trainer, Update};
use handbert::train::task::{MicroBatch, Objective};
use handbert::train::{Replay, Start, Task};

use crate::sim_device;
use crate::support::training::{Corpus, config, corpus, cpu, plan, start, without_dropout};

const TOKENS: usize = 128;
const DROPOUT_SEED: u64 = 42;

/// Four batches in a group, three groups.
fn groups(corpus: &Corpus, task: &Task) -> Vec<Group> {
    let mut plan = plan(task.clone(), "unused".into());
    plan.batching.batch_tokens = TOKENS;
    let packing = plan.batching.pack_plan(task, Subset::Train, Shuffle::Shuffled { seed: 1 });
    let objective = Objective::new(task, 1, &corpus.tokenizer, &corpus.set, 2, &plan.batching).expect("an objective");
    let special = corpus.tokenizer.special();
    let mut loader = Loader::new(&corpus.set, &packing, special, Cursor::start(0), objective, 4).expect("a loader");
    let groups: Vec<Group> = (0..3).map(|_| loader.next_group().expect("a group")).collect();
    assert!(groups.iter().all(|group| group.micro.len() == 4 && group.weight > 0.0));
    groups
}

fn capacity() -> Capacity {
    Capacity { tokens: TOKENS, sequences: TOKENS / 8, masked: TOKENS }
}

fn adam() -> AdamSettings {
    AdamSettings { learning_rate: 1e-3, ..AdamSettings::default() }
}

fn model<B: Backend>(be: &B, start: Start) -> DistilBert<B> {
    DistilBert::new(be, start.config, start.head, &start.values).expect("a model")
}

/// Weights after each group, through the trainer: the first step op by op, then as recorded.
fn trained<B: Backend>(be: &B, from: Start, groups: &[Group]) -> Vec<Vec<f32>> {
    let model = model(be, from);
    let mut trainer = Trainer::new(be, model, adam(), capacity(), DROPOUT_SEED, Replay::WhenItCan).expect("a trainer");
    let step = |group: &Group| {
        trainer.begin(be, group).expect("begun");
        trainer.complete(be, 1.0).expect("completed");
        assert_eq!(trainer.settle(be).expect("settled").expect("an outcome").update, Update::Made);
        be.read_weights(&trainer.model.weights).expect("weights")
    };
    groups.iter().map(step).collect()
}

/// The same by hand: a pass for each batch, then norm and update.
fn by_hand<B: Backend>(be: &B, from: Start, groups: &[Group]) -> Vec<Vec<f32>> {
    let mut model = model(be, from);
    let mut ws = model.workspace(be, capacity(), Mode::Training, DROPOUT_SEED).expect("a workspace");
    let mut optimizer = Optimizer::new(be, &model.table, adam()).expect("moments");
    let mut passes = 0..;
    let step = |group: &Group| {
        let mut grads = be.flat(model.table.flat_len).expect("gradients");
        for micro in &group.micro {
            let view = micro.view((1.0 / group.weight) as f32, passes.next().expect("without end"));
            model.upload(be, &view, &mut ws).expect("a batch");
            model.loss_and_grads(be, &mut ws, &mut grads).expect("a pass");
        }
        optimizer.prepare(be, 1.0).expect("hyperparameters");
        be.grad_norm(&grads, &mut ws.tally).expect("a norm");
        optimizer.update(be, &mut model.weights, &grads, &ws.tally).expect("an update");
        optimizer.updates += 1;
        be.read_weights(&model.weights).expect("weights")
    };
    groups.iter().map(step).collect()
}

fn assert_same_bits(one: &[Vec<f32>], other: &[Vec<f32>]) {
    let bits = |weights: &[f32]| weights.iter().map(|w| w.to_bits()).collect::<Vec<u32>>();
    assert_eq!(one.len(), other.len());
    for (step, (one, other)) in one.iter().zip(other).enumerate() {
        let differing = bits(one).iter().zip(bits(other)).filter(|(a, b)| *a != b).count();
        assert_eq!(differing, 0, "weights that differ after step {}", step + 1);
    }
    assert!(one[0] != one[1] && one[1] != one[2], "steps that change nothing");
}

fn four_accumulated_are_four_passes<B: Backend>(be: &B) {
    for task in [Task::MLM, Task::CLASSIFIER] {
        let corpus = corpus(80, 11);
        let (groups, from) = (groups(&corpus, &task), || start(config(corpus.tokenizer.vocab_size()), &task));
        assert_same_bits(&trained(be, from(), &groups), &by_hand(be, from(), &groups));
    }
}

/// Gradients of a batch so many times over, each time that part of it. The scale of the loss, 1/32 in all, is a power of
/// two and has no digits to lose.
fn grads_of<B: Backend>(be: &B, from: Start, batch: &MicroBatch, times: u8) -> Vec<f32> {
    let model = model(be, from);
    let mut ws = model.workspace(be, capacity(), Mode::Training, DROPOUT_SEED).expect("a workspace");
    let mut grads = be.flat(model.table.flat_len).expect("gradients");
    for pass in 0..times {
        let view = batch.view(1.0 / (32.0 * f32::from(times)), pass.into());
        model.upload(be, &view, &mut ws).expect("a batch");
        model.loss_and_grads(be, &mut ws, &mut grads).expect("a pass");
    }
    be.read_flat(&grads).expect("gradients")
}

#[test]
fn four_batches_accumulated_are_four_passes_on_the_cpu() {
    four_accumulated_are_four_passes(&cpu());
}

#[test]
fn four_batches_accumulated_are_four_passes_on_the_gpu() {
    if let Some(be) = sim_device::backend() {
        four_accumulated_are_four_passes(&be);
    }
}

/// A quarter of a number, once, twice, three and four times added, is that number again, bit for bit, where each pass adds
/// its sum at once. That holds for every gradient but one: the word table, tied to the projection, gets two sums a pass
/// from masked-language modelling. It holds for none on the CPU, whose products add term by term to what is there.
#[test]
fn a_batch_four_times_over_is_that_batch_on_the_gpu() {
    let Some(be) = sim_device::backend() else { return };
    for task in [Task::MLM, Task::CLASSIFIER] {
        let corpus = corpus(80, 11);
        let from = || start(without_dropout(config(corpus.tokenizer.vocab_size())), &task);
        let batch = &groups(&corpus, &task)[0].micro[0];
        let [one, four] = [1, 4].map(|times| grads_of(&be, from(), batch, times));
        let table = model(&be, from()).table;
        let tied = (task == Task::MLM).then_some(table.embedding.word);
        let compared = table.specs.iter().filter(|spec| Some(spec.span) != tied);
        for spec in compared {
            let bits = |grads: &[f32]| grads[spec.span.range()].iter().map(|g| g.to_bits()).collect::<Vec<u32>>();
            assert!(bits(&one) == bits(&four), "{task:?}: {}", spec.hf_name);
            assert!(one[spec.span.range()].iter().any(|&g| g != 0.0), "{task:?}: {} has a gradient", spec.hf_name);
        }
    }
}
