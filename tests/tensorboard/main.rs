//! Event files: what `metrics.jsonl` holds, in TensorBoard's form, whatever becomes of the run.

#[path = "../support/skip.rs"]
mod skip;
#[path = "../support/training.rs"]
mod training;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use handbert::train::run_dir::read_metrics;
use handbert::train::{EvalResult, Every, Length, Record, ReportTo, Silent, Start, Task, TrainPlan, run};
use skip::skipped;
use training::{Watcher, config, corpus, cpu, plan, start};

/// (step, value) by tag.
type Scalars = BTreeMap<String, Vec<(u64, f32)>>;

fn event_file(run: &Path) -> std::path::PathBuf {
    run.join("tensorboard/events.out.tfevents.handbert")
}

/// A field of a protocol buffer: its number and what it holds.
enum Field<'a> {
    Integer(u64),
    Bytes(&'a [u8]),
}

/// The fields of a message, read back by the rules of "Encoding" (protobuf.dev).
fn fields(mut bytes: &[u8]) -> Vec<(u64, Field<'_>)> {
    fn take<'a>(bytes: &mut &'a [u8], len: usize) -> &'a [u8] {
        let (taken, rest) = bytes.split_at(len);
        *bytes = rest;
        taken
    }
    fn varint(bytes: &mut &[u8]) -> u64 {
        let mut value = 0;
        for shift in (0..).step_by(7) {
            let byte = take(bytes, 1)[0];
            value |= u64::from(byte & 0x7F) << shift;
            if byte < 0x80 {
                break;
            }
        }
        value
    }
    let mut fields = Vec::new();
    while !bytes.is_empty() {
        let key = varint(&mut bytes);
        let field = match key & 7 {
            0 => Field::Integer(varint(&mut bytes)),
            1 => Field::Bytes(take(&mut bytes, 8)),
            2 => {
                let len = varint(&mut bytes) as usize;
                Field::Bytes(take(&mut bytes, len))
            }
            5 => Field::Bytes(take(&mut bytes, 4)),
            other => panic!("wire type {other}"),
        };
        fields.push((key >> 3, field));
    }
    fields
}

fn bytes<'a>(fields: &[(u64, Field<'a>)], number: u64) -> Option<&'a [u8]> {
    fields.iter().find_map(|(found, field)| match field {
        Field::Bytes(bytes) if *found == number => Some(*bytes),
        _ => None,
    })
}

/// Bit by bit: a CRC-32C that shares nothing with the one under test.
fn masked_crc(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0x82F6_3B78 } else { crc >> 1 };
        }
    }
    (!crc).rotate_right(15).wrapping_add(0xA282_EAD8)
}

/// The scalars of an event file; every checksum is looked at, and that time never runs backwards.
fn read(run: &Path) -> Scalars {
    let file = std::fs::read(event_file(run)).expect("an event file");
    let (mut rest, mut scalars, mut time, mut first) = (&file[..], Scalars::new(), 0.0, true);
    while !rest.is_empty() {
        let len = u64::from_le_bytes(rest[..8].try_into().expect("eight")) as usize;
        let crc = |at: usize| u32::from_le_bytes(rest[at..at + 4].try_into().expect("four"));
        let event = &rest[12..12 + len];
        assert_eq!((crc(8), crc(12 + len)), (masked_crc(&rest[..8]), masked_crc(event)));
        let event = fields(event);
        let at = f64::from_le_bytes(bytes(&event, 1).expect("a time").try_into().expect("eight"));
        assert!(at >= time, "{at} after {time}");
        time = at;
        assert_eq!(bytes(&event, 3).is_some(), std::mem::take(&mut first), "the version stands first and nowhere else");
        if let Some(summary) = bytes(&event, 5) {
            let step = event.iter().find_map(|(number, field)| match field {
                Field::Integer(step) if *number == 2 => Some(*step),
                _ => None,
            });
            for (number, value) in fields(summary) {
                let (1, Field::Bytes(value)) = (number, value) else { panic!("field {number} of a summary") };
                let value = fields(value);
                let tag = String::from_utf8(bytes(&value, 1).expect("a tag").to_vec()).expect("text");
                let scalar = f32::from_le_bytes(bytes(&value, 2).expect("a value").try_into().expect("four"));
                scalars.entry(tag).or_default().push((step.expect("a step"), scalar));
            }
        }
        rest = &rest[16 + len..];
    }
    scalars
}

/// What the lines of `metrics.jsonl` say of a few tags.
fn expected(run: &Path) -> Scalars {
    let mut scalars = Scalars::new();
    for record in read_metrics(run).expect("metrics") {
        let mut add =
            |tag: &str, value: f64| scalars.entry(tag.to_owned()).or_default().push((record.step(), value as f32));
        match &record {
            Record::Step(step) => {
                add("train/loss", step.loss);
                add("train/learning_rate", step.learning_rate);
                add("train/grad_norm", step.grad_norm);
                add("train/epoch", step.epoch);
                add("train/num_input_tokens_seen", step.tokens as f64);
            }
            Record::Eval(record) => match &record.eval {
                EvalResult::Mlm(eval) => {
                    add("eval/loss", eval.loss);
                    add("eval/perplexity", eval.perplexity);
                }
                EvalResult::Classifier(eval) => {
                    add("eval/loss", eval.loss);
                    add("eval/f1", eval.f1);
                    add("eval/roc_auc", eval.roc_auc.expect("both labels"));
                }
            },
        }
    }
    scalars
}

#[track_caller]
fn agree(scalars: &Scalars, run: &Path) {
    let expected = expected(run);
    assert!(expected["train/loss"].len() >= 6 && expected["eval/loss"].len() >= 2, "{expected:?}");
    for (tag, values) in expected {
        assert_eq!(scalars.get(&tag), Some(&values), "{tag}");
    }
}

fn plan_of(task: Task, out: &Path) -> TrainPlan {
    let mut plan = plan(task, out.to_path_buf());
    plan.length = Length::Steps(8);
    plan.policy.evaluate = Every::Steps(4);
    plan.policy.save_steps = Some(3);
    plan
}

#[test]
fn an_event_file_says_what_the_metrics_say() {
    let corpus = corpus(120, 3);
    for task in [Task::MLM, Task::CLASSIFIER] {
        let out = tempfile::tempdir().expect("a directory");
        let model = start(config(corpus.tokenizer.vocab_size()), &task);
        run(&cpu(), model, &corpus.set, &plan_of(task, out.path()), &mut Silent).expect("a run");
        agree(&read(out.path()), out.path());
        read_by_tensorboard(out.path());
    }
}

/// The same through the reader that users will look at it with.
fn read_by_tensorboard(run: &Path) {
    let Some(python) = std::env::var_os("HANDBERT_PYTHON") else {
        return skipped("HANDBERT_PYTHON names no Python with tensorboard");
    };
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tensorboard/read_events.py");
    let output = Command::new(python).arg(script).arg(run.join("tensorboard")).output().expect("started");
    let err = String::from_utf8_lossy(&output.stderr);
    if err.contains("No module named 'tensorboard'") {
        return skipped("the Python of HANDBERT_PYTHON has no tensorboard");
    }
    assert!(output.status.success(), "{err}");
    agree(&serde_json::from_slice(&output.stdout).expect("JSON"), run);
}

#[test]
fn resuming_leaves_no_trace_of_what_was_undone() {
    let corpus = corpus(120, 3);
    let out = tempfile::tempdir().expect("a directory");
    let model = || start(config(corpus.tokenizer.vocab_size()), &Task::MLM);
    let plan = plan_of(Task::MLM, out.path());
    run(&cpu(), model(), &corpus.set, &plan, &mut Watcher::stopping_after(5)).expect("stopped");
    // As after a kill: the newest checkpoint is older than the last event, which is cut short.
    std::fs::remove_dir_all(out.path().join("checkpoint-5")).expect("removed");
    std::fs::remove_dir_all(out.path().join("checkpoint-4")).expect("removed");
    let whole = std::fs::read(event_file(out.path())).expect("read");
    std::fs::write(event_file(out.path()), &whole[..whole.len() - 5]).expect("written");
    let from = Start::resume(out.path()).expect("a checkpoint");
    run(&cpu(), from, &corpus.set, &plan, &mut Silent).expect("resumed");
    let scalars = read(out.path());
    agree(&scalars, out.path());
    assert_eq!(scalars["train/loss"].iter().map(|(step, _)| *step).collect::<Vec<_>>(), [1, 2, 3, 4, 5, 6, 7, 8]);
}

#[test]
fn none_writes_none_and_overwriting_takes_it_away() {
    let corpus = corpus(120, 3);
    let out = tempfile::tempdir().expect("a directory");
    let mut plan = plan_of(Task::MLM, out.path());
    let train = |plan: &TrainPlan| {
        let model = start(config(corpus.tokenizer.vocab_size()), &Task::MLM);
        run(&cpu(), model, &corpus.set, plan, &mut Silent).expect("a run");
    };
    train(&plan);
    let mine = out.path().join("tensorboard/mine");
    std::fs::write(&mine, "of somebody").expect("written");
    plan.report_to = ReportTo::None;
    plan.occupied = handbert::train::Occupied::Overwrite;
    train(&plan);
    assert!(mine.exists() && !event_file(out.path()).exists());
    std::fs::remove_file(&mine).expect("removed");
    train(&plan);
    assert!(!out.path().join("tensorboard").exists());
}
