//! Models at work on the simulated GPU: labels, perplexities and filled gaps are the CPU's within the noise of bf16, and
//! the same bits a second time.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

use handbert::backend::{Backend, BatchView, Capacity};
use handbert::check::reference::Mixed;
use handbert::data::pack::Long;
use handbert::data::split::Subset;
use handbert::data::token_set::Existing;
use handbert::model::{DistilBert, Mode};
use handbert::predict::classify::Decision;
use handbert::predict::{self, Destination, Inputs, Job, Options, Scores, TextColumns};
use handbert::train::{EvalPlan, EvalResult, Start, Task, evaluate};

use crate::reference_backend::Reference;
use crate::support::training::{Corpus, config, corpus, cpu, plan, start_from, texts};
use crate::{apart, noise, sim_device};

/// Weights large enough that texts differ in what comes out.
fn model<B: Backend>(be: &B, corpus: &Corpus, task: &Task, seed: u64) -> DistilBert<B> {
    let config = handbert::model::Config { initializer_range: 0.1, ..config(corpus.tokenizer.vocab_size()) };
    let Start { config, head, values, .. } = start_from(config, task, seed);
    DistilBert::new(be, config, head, &values).expect("a model")
}

/// Where postings become remote: in the midst of the scores that the random model gives.
const AT: f32 = 0.31;

/// A row as it was labelled.
#[derive(Debug, Clone, PartialEq)]
struct Labelled {
    id: u64,
    label: String,
    /// Of the second class.
    score: f64,
}

/// Texts of all lengths, some longer than the model takes, and a directory for what comes of them.
struct Postings {
    dir: tempfile::TempDir,
    input: PathBuf,
    number: u64,
}

impl Postings {
    fn new(number: u64) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let input = dir.path().join("in.jsonl");
        let line = |(id, (text, _))| serde_json::json!({ "id": id, "text": text }).to_string() + "\n";
        let lines: String = (0..number).zip(texts(number as usize, 13)).map(line).collect();
        std::fs::write(&input, lines).expect("written");
        Postings { dir, input, number }
    }

    fn label<B: Backend>(&self, be: &B, corpus: &Corpus, seed: u64) -> Vec<Labelled> {
        let model = model(be, corpus, &Task::CLASSIFIER, seed);
        let out = self.dir.path().join("out.jsonl");
        let options = Options {
            long: Long::Windows { stride: 20 },
            max_length: 32,
            batch_tokens: 128,
            scores: Scores::All,
            prefix: None,
            decision: Decision::Threshold { class: 1, at: AT },
        };
        let job = Job {
            inputs: Inputs::open(std::slice::from_ref(&self.input), None, TextColumns::Suggested(&[])).expect("inputs"),
            destination: Destination::new(&out, None, Existing::Replace).expect("a destination"),
            tokenizer: &corpus.tokenizer,
            labels: &model.config.labels,
            options: &options,
            stop: &AtomicBool::new(false),
            progress: &|_| (),
        };
        let summary = predict::run(be, &model, job).expect("labelled");
        assert!(summary.windowed > 0 && summary.rows == self.number);
        let row = |line: &str| {
            let row: serde_json::Value = serde_json::from_str(line).expect("JSON");
            Labelled {
                id: row["id"].as_u64().expect("an id"),
                label: row["label"].as_str().expect("a label").to_owned(),
                score: row["score_remote"].as_f64().expect("a score"),
            }
        };
        std::fs::read_to_string(&out).expect("written").lines().map(row).collect()
    }
}

fn scores(rows: &[Labelled]) -> Vec<f64> {
    rows.iter().map(|row| row.score).collect()
}

#[test]
fn labels_are_the_cpus() {
    let Some(gpu) = sim_device::backend() else { return };
    let (postings, corpus) = (Postings::new(40), corpus(20, 12));
    let exact = postings.label(&cpu(), &corpus, 0);
    let ours = postings.label(&gpu, &corpus, 0);
    let of_naive = noise(|seed| {
        let naive = postings.label(&Reference::<Mixed>::default(), &corpus, seed);
        apart(&scores(&naive), &scores(&postings.label(&cpu(), &corpus, seed)))
    });
    let (error, allowed) = (apart(&scores(&ours), &scores(&exact)), 2.0 * of_naive);
    println!("scores: off by {error:.1e} of {allowed:.1e}");
    assert!(error <= allowed, "{error} of {allowed}");
    assert!(ours.iter().map(|row| row.id).eq(0..40), "in the order of the input");
    // Where the CPU is sure beyond the noise, the label is the same.
    let sure: Vec<_> = exact.iter().zip(&ours).filter(|(row, _)| (row.score - f64::from(AT)).abs() > allowed).collect();
    println!("sure: {} of 40", sure.len());
    assert!(sure.len() >= 20, "{} of 40 are sure", sure.len());
    assert!(sure.iter().all(|(row, ours)| row.label == ours.label));
    let labels = |label: &str| sure.iter().filter(|(row, _)| row.label == label).count();
    assert!(labels("remote") >= 3 && labels("in_person") >= 3, "both labels: {exact:?}");

    let again = postings.label(&sim_device::seeded(2).expect("there was one before"), &corpus, 0);
    assert!(ours == again, "a second time, threads in another order");
}

/// The model of this seed, measured on the postings that are held out.
fn measured<B: Backend>(be: &B, corpus: &Corpus, task: &Task, seed: u64) -> EvalResult {
    let batching = plan(task.clone(), "unused".into()).batching;
    let on = EvalPlan { task: task.clone(), batching, subset: Subset::Held, seed: 42 };
    let model = model(be, corpus, task, seed);
    let go_on = &mut |_, _| ControlFlow::Continue(());
    evaluate(be, &model, &corpus.set, on, None, go_on).expect("fine").expect("not given up")
}

#[test]
fn evaluations_are_the_cpus() {
    let Some(gpu) = sim_device::backend() else { return };
    let corpus = corpus(60, 14);
    for task in [Task::MLM, Task::CLASSIFIER] {
        let exact = measured(&cpu(), &corpus, &task, 0);
        let ours = measured(&gpu, &corpus, &task, 0);
        let of_naive = noise(|seed| {
            let naive = measured(&Reference::<Mixed>::default(), &corpus, &task, seed);
            (naive.loss() - measured(&cpu(), &corpus, &task, seed).loss()).abs()
        });
        let (error, allowed) = ((ours.loss() - exact.loss()).abs(), 2.0 * of_naive);
        println!("{task:?}: loss {:.3} off by {error:.1e} of {allowed:.1e}", exact.loss());
        assert!(error <= allowed, "{error} of {allowed}");
        if let (EvalResult::Mlm(ours), EvalResult::Mlm(exact)) = (&ours, &exact) {
            assert_eq!(ours.masked_tokens, exact.masked_tokens);
            assert!((ours.perplexity / exact.perplexity).ln().abs() <= allowed, "perplexity is e to the loss");
        }
        if let (EvalResult::Classifier(ours), EvalResult::Classifier(exact)) = (&ours, &exact) {
            assert_eq!(ours.rows, exact.rows);
        }
        let again = measured(&sim_device::seeded(2).expect("there was one before"), &corpus, &task, 0);
        assert!(ours == again, "a second time, threads in another order");
    }
}

/// Every token and its probability for each of three gaps, best first.
fn filled<B: Backend>(be: &B, corpus: &Corpus, seed: u64) -> Vec<Vec<(u32, f32)>> {
    let model = model(be, corpus, &Task::MLM, seed);
    let special = corpus.tokenizer.special();
    let words = corpus.tokenizer.encode("senior nurse night shift london clinic weekly salary").expect("encoded");
    let mut ids = [&[special.cls], &words[..], &[special.sep]].concat();
    let masked_rows = [2, 5, 7];
    masked_rows.iter().for_each(|&row| ids[row as usize] = special.mask);
    let position_ids: Vec<u32> = (0..ids.len() as u32).collect();
    let view = BatchView {
        ids: &ids,
        position_ids: &position_ids,
        cu_seqlens: &[0, ids.len() as u32],
        masked_rows: &masked_rows,
        targets: &[special.mask; 3],
        ..BatchView::default()
    };
    let capacity = Capacity { tokens: ids.len(), sequences: 1, masked: 3 };
    let mut ws = model.workspace(be, capacity, Mode::Inference, 0).expect("a workspace");
    model.upload(be, &view, &mut ws).expect("a batch");
    model.top_k(be, &mut ws, corpus.tokenizer.vocab_size()).expect("tokens")
}

/// Probabilities of each gap by token.
fn by_token(filled: &[Vec<(u32, f32)>]) -> Vec<f64> {
    let mut tokens: Vec<_> =
        filled.iter().enumerate().flat_map(|(gap, best)| best.iter().map(move |b| (gap, b))).collect();
    tokens.sort_by_key(|(gap, (id, _))| (*gap, *id));
    tokens.into_iter().map(|(_, (_, p))| f64::from(*p)).collect()
}

#[test]
fn gaps_are_filled_as_on_the_cpu() {
    let Some(gpu) = sim_device::backend() else { return };
    let corpus = corpus(20, 15);
    let (exact, ours) = (filled(&cpu(), &corpus, 0), filled(&gpu, &corpus, 0));
    let of_naive = noise(|seed| {
        let naive = filled(&Reference::<Mixed>::default(), &corpus, seed);
        apart(&by_token(&naive), &by_token(&filled(&cpu(), &corpus, seed)))
    });
    let (error, allowed) = (apart(&by_token(&ours), &by_token(&exact)), 2.0 * of_naive);
    println!("probabilities: off by {error:.1e} of {allowed:.1e}");
    assert!(error <= allowed, "{error} of {allowed}");
    let mut clear = 0;
    for (ours, exact) in ours.iter().zip(&exact) {
        // Rank by rank, as long as the next token is further behind than two errors of that size could bring it.
        let ranks = exact.windows(2).take_while(|pair| f64::from(pair[0].1 - pair[1].1) > 2.0 * allowed).count();
        assert!(ours[..ranks].iter().map(|t| t.0).eq(exact[..ranks].iter().map(|t| t.0)), "{ours:?} and {exact:?}");
        clear += ranks;
    }
    assert!(clear >= 3, "{clear} tokens stand out");
    assert!(ours == filled(&sim_device::seeded(2).expect("there was one before"), &corpus, 0), "a second time");
}
