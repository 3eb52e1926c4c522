//! Labelling as a library: a row's score is its own, whatever it is computed with.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use handbert::backend::cpu::Cpu;
use handbert::data::PackedBatch;
use handbert::data::pack::Long;
use handbert::data::synth;
use handbert::data::token_set::Existing;
use handbert::data::tokenizer::Tokenizer;
use handbert::model::{Config, DistilBert, Head, ParamTable};
use handbert::predict::classify::{Classifier, Decision};
use handbert::predict::{self, Destination, Error, Inputs, Job, Options, Scores, Summary, TextColumns};
use serde_json::Value;

const MAX_LENGTH: usize = 96;

struct Setup {
    be: Cpu,
    model: DistilBert<Cpu>,
    tokenizer: Tokenizer,
    dir: tempfile::TempDir,
}

impl Setup {
    /// A random model with weights large enough that postings score differently.
    fn new() -> Self {
        let texts: Vec<String> = (0..300).map(|i| synth::row(1, i).text).collect();
        let tokenizer = Tokenizer::train(texts.into_iter().map(Ok), 500).unwrap();
        let config = Config {
            vocab_size: tokenizer.vocab_size(),
            max_position_embeddings: MAX_LENGTH,
            sinusoidal_pos_embds: false,
            n_layers: 2,
            n_heads: 2,
            dim: 64,
            hidden_dim: 128,
            dropout: 0.1,
            attention_dropout: 0.1,
            seq_classif_dropout: 0.2,
            initializer_range: 0.3,
            pad_token_id: 0,
            labels: vec!["in_person".into(), "remote".into()],
        };
        let head = Head::Classifier { classes: 2 };
        let values = ParamTable::new(&config, head).initial_weights(&config, 5);
        let be = Cpu::new();
        let model = DistilBert::new(&be, config, head, &values).unwrap();
        Setup { be, model, tokenizer, dir: tempfile::tempdir().unwrap() }
    }

    fn write(&self, name: &str, rows: impl Iterator<Item = (u64, String)>) -> PathBuf {
        let path = self.dir.path().join(name);
        let line = |(id, text): (u64, String)| serde_json::json!({ "id": id, "text": text }).to_string() + "\n";
        std::fs::write(&path, rows.map(line).collect::<String>()).unwrap();
        path
    }

    fn options(&self) -> Options {
        Options {
            long: Long::Truncate,
            max_length: MAX_LENGTH,
            batch_tokens: 512,
            scores: Scores::All,
            prefix: None,
            decision: Decision::MostProbable,
        }
    }

    fn try_label(&self, input: &Path, out: &str, options: &Options, stop_after: u64) -> predict::Result<Summary> {
        let stop = AtomicBool::new(false);
        let progress = |done: predict::Progress| {
            if done.rows >= stop_after {
                stop.store(true, Ordering::Relaxed);
            }
        };
        let job = Job {
            inputs: Inputs::open(&[input.to_owned()], None, TextColumns::Suggested(&[]))?,
            destination: Destination::new(&self.dir.path().join(out), None, Existing::Replace)?,
            tokenizer: &self.tokenizer,
            labels: &self.model.config.labels,
            options,
            stop: &stop,
            progress: &progress,
        };
        predict::run(&self.be, &self.model, job)
    }

    /// (id, score of "remote") of each row, in the order of the output.
    fn label(&self, input: &Path, options: &Options) -> Vec<(u64, f64)> {
        self.try_label(input, "out.jsonl", options, u64::MAX).unwrap();
        scores(&self.dir.path().join("out.jsonl"))
    }
}

fn scores(path: &Path) -> Vec<(u64, f64)> {
    let text = std::fs::read_to_string(path).unwrap();
    let rows = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    rows.map(|row| (row["id"].as_u64().unwrap(), row["score_remote"].as_f64().unwrap())).collect()
}

fn posting(id: u64) -> (u64, String) {
    let text = synth::row(2, id).text;
    // All lengths, down to a few words.
    let words = 1 + (id * 37 % 120) as usize;
    (id, text.split_whitespace().take(words).collect::<Vec<_>>().join(" "))
}

#[test]
fn a_score_does_not_depend_on_the_neighbours() {
    let s = Setup::new();
    let options = s.options();
    let forwards = s.label(&s.write("a.jsonl", (0..200).map(posting)), &options);
    assert!(forwards.iter().map(|r| r.0).eq(0..200));
    let distinct: std::collections::BTreeSet<u64> = forwards.iter().map(|r| r.1.to_bits()).collect();
    assert!(distinct.len() > 150, "the model tells postings apart: {} scores", distinct.len());

    let mut backwards = s.label(&s.write("b.jsonl", (0..200).rev().map(posting)), &options);
    assert!(backwards.iter().map(|r| r.0).eq((0..200).rev()));
    backwards.reverse();
    let larger =
        s.label(&s.write("c.jsonl", (0..200).map(posting)), &Options { batch_tokens: 4096, ..options.clone() });
    let alone: Vec<_> =
        (0..20).flat_map(|i| s.label(&s.write("d.jsonl", [posting(i)].into_iter()), &options)).collect();
    for (i, (id, score)) in forwards.iter().enumerate() {
        for other in [Some(&backwards[i]), Some(&larger[i]), alone.get(i)].into_iter().flatten() {
            assert_eq!(other.0, *id);
            assert_eq!(other.1.to_bits(), score.to_bits(), "posting {id}: {} or {score}", other.1);
        }
    }
}

#[test]
fn windows_average_the_probabilities_of_their_sequences() {
    let s = Setup::new();
    let long: String = (0..6).map(|i| synth::row(3, i).text + " ").collect();
    let input = s.write("long.jsonl", [(0, "short".to_owned()), (1, long.clone()), (2, "end".to_owned())].into_iter());
    let stride = 40;
    let options = Options { long: Long::Windows { stride }, ..s.options() };
    let labelled = s.label(&input, &options);

    // The same by hand: each window alone in a batch.
    let ids = s.tokenizer.encode(&long).unwrap();
    let special = s.tokenizer.special();
    let mut classifier = Classifier::new(&s.be, &s.model, 512, 64).unwrap();
    let (mut sum, mut windows) = (0.0, 0);
    for start in (0..).step_by(stride) {
        // The last window is moved back to be full, as in training.
        let start = start.min(ids.len() - (MAX_LENGTH - 2));
        let end = start + MAX_LENGTH - 2;
        let mut batch = PackedBatch::default();
        batch.clear();
        batch.ids = [&[special.cls], &ids[start..end], &[special.sep]].concat();
        batch.position_ids = (0..batch.ids.len() as u32).collect();
        batch.cu_seqlens = vec![0, batch.ids.len() as u32];
        sum += f64::from(classifier.probabilities(&batch).unwrap()[1]);
        windows += 1;
        if end == ids.len() {
            break;
        }
    }
    assert!(windows > 5);
    assert!(
        (labelled[1].1 - sum / f64::from(windows)).abs() < 1e-6,
        "{} or {}",
        labelled[1].1,
        sum / f64::from(windows)
    );
}

#[test]
fn truncation_looks_at_the_beginning_only_and_head_tail_at_the_end_too() {
    let s = Setup::new();
    let (_, start) = posting(119);
    let pad = "and more of the same ".repeat(100);
    let with = |end: &str| (0, format!("{start} {pad} {end}"));
    let of = |end: &str, options: &Options| s.label(&s.write("t.jsonl", [with(end)].into_iter()), options)[0].1;
    let truncate = s.options();
    let head_tail = Options { long: Long::HeadTail, ..s.options() };
    assert_eq!(of("remote", &truncate), of("office", &truncate));
    // 94 tokens of text are less than twice the head: half of them are the end, as in training.
    assert_ne!(of("remote", &head_tail), of("office", &head_tail));
}

#[test]
fn what_was_labelled_before_a_stop_is_kept() {
    let s = Setup::new();
    let input = s.write("many.jsonl", (0..3000).map(posting));
    let error = s.try_label(&input, "kept.jsonl", &s.options(), 500).unwrap_err();
    assert!(matches!(error, Error::Unfinished { .. }), "{error}");
    let partial = s.dir.path().join("kept.jsonl.partial");
    assert!(error.to_string().starts_with("interrupted; the ") && error.to_string().contains("kept.jsonl.partial"));
    let kept = scores(&partial);
    assert!((500..3000).contains(&kept.len()), "{} rows", kept.len());
    assert!(kept.iter().map(|r| r.0).eq(0..kept.len() as u64));
    assert!(!s.dir.path().join("kept.jsonl").exists());
}

#[test]
fn options_that_do_not_fit_are_refused_before_anything_is_written() {
    let s = Setup::new();
    let input = s.write("one.jsonl", [posting(1)].into_iter());
    let good = s.options();
    let bad = [
        Options { max_length: MAX_LENGTH + 1, ..good.clone() },
        Options { max_length: 2, ..good.clone() },
        Options { batch_tokens: MAX_LENGTH - 1, ..good.clone() },
        Options { long: Long::Windows { stride: 0 }, ..good.clone() },
        Options { decision: Decision::Threshold { class: 1, at: f32::NAN }, ..good.clone() },
    ];
    for options in bad {
        let error = s.try_label(&input, "no.jsonl", &options, u64::MAX).unwrap_err();
        assert!(matches!(error, Error::Invalid(_)), "{error}");
        assert!(!s.dir.path().join("no.jsonl.partial").exists());
    }
}
