//! TensorBoard's event file: what `metrics.jsonl` holds, under the names that Hugging Face's Trainer gives it.
//!
//! The file is a row of TFRecords: the length of an event as a u64, its masked CRC-32C, the event, its masked CRC-32C,
//! little-endian all. An event is a protocol buffer of one time, one step and named scalars (`event.proto` and
//! `summary.proto` of TensorBoard).

use std::fs::OpenOptions;
use std::io::{Result, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use super::records::{EvalRecord, EvalResult, Record, StepRecord};
use crate::disk;

/// Where it lies in a run directory: the name that TensorBoard shows for the run, below that of the directory.
pub const DIR: &str = "tensorboard";
/// TensorBoard reads files whose names hold `tfevents`.
const FILE: &str = "events.out.tfevents.handbert";
/// What TensorBoard asks of the first event.
const FILE_VERSION: &str = "brain.Event:2";

/// An event file that events are added to.
#[derive(Debug)]
pub struct EventFile {
    path: PathBuf,
    /// When the run began, in seconds of Unix time; sittings count as if they had followed one another.
    began: f64,
}

impl EventFile {
    /// Writes the file of a run directory anew: what an earlier sitting added after these records is gone.
    pub fn of_run(run: &Path, records: &[Record]) -> Result<EventFile> {
        let dir = run.join(DIR);
        std::fs::create_dir_all(&dir)?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64());
        let file = EventFile { path: dir.join(FILE), began: now - records.last().map_or(0.0, Record::seconds) };
        let mut bytes = framed(&Message::default().double(1, file.began).bytes(3, FILE_VERSION.as_bytes()));
        records.iter().for_each(|record| bytes.extend(framed(&file.event(record))));
        disk::replace(&file.path, bytes)?;
        Ok(file)
    }

    /// Adds a record.
    pub fn add(&self, record: &Record) -> Result<()> {
        OpenOptions::new().append(true).open(&self.path)?.write_all(&framed(&self.event(record)))
    }

    fn event(&self, record: &Record) -> Message {
        let mut summary = Message::default();
        for (tag, scalar) in scalars(record) {
            summary = summary.message(1, &Message::default().bytes(1, tag.as_bytes()).float(2, scalar as f32));
        }
        Message::default().double(1, self.began + record.seconds()).integer(2, record.step()).message(5, &summary)
    }
}

/// Deletes what lies in a run directory of it.
pub fn delete(run: &Path) -> Result<()> {
    let dir = run.join(DIR);
    for entry in dir.read_dir().into_iter().flatten() {
        let entry = entry?;
        let name = entry.file_name();
        if name == FILE || disk::partial_of(&name.to_string_lossy()) == Some(FILE) {
            std::fs::remove_file(entry.path())?;
        }
    }
    // Somebody may have put files of his own there.
    let _ = std::fs::remove_dir(dir);
    Ok(())
}

/// A record's scalars. Trainer's TensorBoardCallback puts `train/` before the names it logs, and `eval/` for `eval_`.
fn scalars(record: &Record) -> Vec<(&'static str, f64)> {
    match record {
        Record::Step(StepRecord {
            epoch, loss, learning_rate, grad_norm, skipped, tokens, tokens_per_second, ..
        }) => {
            vec![
                ("train/loss", *loss),
                ("train/grad_norm", *grad_norm),
                ("train/learning_rate", *learning_rate),
                ("train/epoch", *epoch),
                ("train/num_input_tokens_seen", *tokens as f64),
                ("train/tokens_per_second", *tokens_per_second),
                ("train/skipped_steps", *skipped as f64),
            ]
        }
        Record::Eval(EvalRecord { eval: EvalResult::Mlm(eval), .. }) => {
            vec![("eval/loss", eval.loss), ("eval/perplexity", eval.perplexity), ("eval/accuracy", eval.accuracy)]
        }
        Record::Eval(EvalRecord { eval: EvalResult::Classifier(eval), .. }) => {
            let areas =
                [("eval/roc_auc", eval.roc_auc), ("eval/average_precision", eval.average_precision)].into_iter();
            let figures = [
                ("eval/loss", eval.loss),
                ("eval/accuracy", eval.accuracy),
                ("eval/f1", eval.f1),
                ("eval/macro_f1", eval.macro_f1),
            ];
            figures.into_iter().chain(areas.filter_map(|(tag, area)| Some((tag, area?)))).collect()
        }
    }
}

/// A protocol buffer's message ("Encoding", protobuf.dev): fields, each a key of number and wire type, and a value.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn key(mut self, field: u8, wire_type: u8) -> Self {
        self.0.push(field << 3 | wire_type);
        self
    }

    /// Seven bits a byte, the lowest first; the eighth says that more follow.
    fn varint(mut self, mut value: u64) -> Self {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
        self
    }

    fn integer(self, field: u8, value: u64) -> Self {
        self.key(field, 0).varint(value)
    }

    fn double(self, field: u8, value: f64) -> Self {
        let mut message = self.key(field, 1);
        message.0.extend(value.to_le_bytes());
        message
    }

    fn bytes(self, field: u8, bytes: &[u8]) -> Self {
        let mut message = self.key(field, 2).varint(bytes.len() as u64);
        message.0.extend(bytes);
        message
    }

    fn message(self, field: u8, inner: &Message) -> Self {
        self.bytes(field, &inner.0)
    }

    fn float(self, field: u8, value: f32) -> Self {
        let mut message = self.key(field, 5);
        message.0.extend(value.to_le_bytes());
        message
    }
}

/// An event as a record of the file.
fn framed(event: &Message) -> Vec<u8> {
    let length = (event.0.len() as u64).to_le_bytes();
    [&length[..], &masked_crc(&length), &event.0, &masked_crc(&event.0)].concat()
}

/// A CRC-32C of bytes that hold CRCs themselves, disguised (`record_writer.cc` of TensorFlow).
fn masked_crc(bytes: &[u8]) -> [u8; 4] {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xA282_EAD8).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_of_known_bytes() {
        let event = Message::default()
            .double(1, 1.5)
            .integer(2, 300)
            .message(5, &Message::default().message(1, &Message::default().bytes(1, b"a").float(2, 0.5)));
        #[rustfmt::skip]
        assert_eq!(event.0, [
            0x09, 0, 0, 0, 0, 0, 0, 0xF8, 0x3F,
            0x10, 0xAC, 0x02,
            0x2A, 10, 0x0A, 8, 0x0A, 1, b'a', 0x15, 0, 0, 0, 0x3F,
        ]);
        let record = framed(&event);
        assert_eq!(record.len(), 8 + 4 + event.0.len() + 4);
        assert_eq!(record[..8], [24, 0, 0, 0, 0, 0, 0, 0]);
        // CRC-32C of "123456789" is e3069283 (RFC 3720's polynomial).
        assert_eq!(masked_crc(b"123456789"), (0xE306_9283u32.rotate_right(15).wrapping_add(0xA282_EAD8)).to_le_bytes());
    }
}
