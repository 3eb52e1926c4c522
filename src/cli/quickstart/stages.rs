//! What the quickstart does, stage by stage. Each leaves its result on the disk, where the next one finds it.

use std::io::Write;
use std::ops::ControlFlow;
use std::sync::atomic::AtomicBool;

use anyhow::{Context, Result, bail};
use indicatif::ProgressBar;

use super::recipe::{self, Recipe};
use crate::backend::Backend;
use crate::cli::train::args::LABEL_COLUMN;
use crate::cli::{Common, fill_mask};
use crate::data::record::RecordSpec;
use crate::data::source::{Compression, Format};
use crate::data::split::Subset;
use crate::data::synth::{self, REMOTE, SynthRow};
use crate::data::token_set::{BuildOptions, TokenSet, build, texts};
use crate::data::tokenizer::Tokenizer;
use crate::model::hub::{self, Wanted};
use crate::model::{DistilBert, Head, ParamTable};
use crate::predict::classify::Decision;
use crate::predict::output::Existing;
use crate::predict::{self, Destination, Inputs, Job, Options, Scores, TextColumns};
use crate::train::evaluate::{EvalPlan, MASK_SEED, evaluate};
use crate::train::observer::{Event, Observer};
use crate::train::records::{ClassifierEval, EvalResult, MlmEval, Record};
use crate::train::start::Start;
use crate::train::task::Task;
use crate::train::unigram::Unigram;

/// Everything a stage needs.
pub(super) struct Stages<'a, B: Backend> {
    pub(super) recipe: &'a Recipe,
    pub(super) be: &'a B,
    pub(super) common: &'a Common,
}

/// Postings and what became of them.
pub(super) struct Data {
    pub(super) set: TokenSet,
    pub(super) remote: u64,
    pub(super) in_person: u64,
    pub(super) vocab: usize,
}

/// The language model, measured.
pub(super) struct Mlm {
    pub(super) parameters: usize,
    pub(super) steps: u64,
    pub(super) tokens_per_second: f64,
    pub(super) before: f64,
    pub(super) after: MlmEval,
    pub(super) unigram: f64,
    pub(super) history: Vec<Record>,
}

/// The classifier, measured.
pub(super) struct Trained {
    pub(super) steps: u64,
    pub(super) eval: ClassifierEval,
    pub(super) roc_auc: f64,
    pub(super) history: Vec<Record>,
}

/// Postings that no model had seen, labelled.
pub(super) struct Labelled {
    pub(super) summary: predict::Summary,
    /// Those for the report: what was invented, the label given, its probability.
    pub(super) examples: Vec<(SynthRow, String, f64)>,
    /// Share that got the label they were invented with.
    pub(super) accuracy: f64,
}

/// Tokens for the gap and their probabilities.
pub(super) struct Filled {
    pub(super) tokens: Vec<(String, f64)>,
}

impl<B: Backend> Stages<'_, B> {
    /// Invents postings, learns a vocabulary, tokenizes.
    pub(super) fn data(&self) -> Result<Data> {
        let r = self.recipe;
        let postings = r.path(recipe::POSTINGS);
        let job =
            synth::file::Job { rows: r.rows, seed: r.seed, format: Format::Jsonl, compression: Compression::None };
        synth::file::write_file(&postings, &job, &mut |_| ControlFlow::Continue(()))?;
        let spec = RecordSpec {
            text_columns: r.text_columns(),
            label_column: Some(LABEL_COLUMN.to_owned()),
            group_column: None,
        };
        let files = [postings];
        let texts = texts(&files, &spec, None)?;
        let tokenizer = Tokenizer::train(texts, r.size.vocab)?;
        let options = BuildOptions { spec, labels: Some(r.labels()), ..BuildOptions::default() };
        let tokens = r.path(recipe::TOKENS);
        let report = build(&files, &tokenizer, &options, &tokens, &|_| ())?;
        let rows_of = |label: &str| report.labels.iter().find(|(name, _)| name == label).map_or(0, |(_, rows)| *rows);
        let remote = rows_of(REMOTE);
        Ok(Data {
            set: TokenSet::open(&tokens)?,
            remote,
            in_person: report.rows - remote,
            vocab: tokenizer.vocab_size(),
        })
    }

    /// Trains a language model from scratch and measures it beside a unigram model.
    pub(super) fn mlm(&self, data: &Data) -> Result<Mlm> {
        let r = self.recipe;
        let config = r.config(data.vocab, data.set.tokenizer()?.special().pad);
        let path = r.path(recipe::CONFIG);
        let json = serde_json::to_string_pretty(&config.to_json(Head::Mlm.architecture()))? + "\n";
        std::fs::write(&path, json).with_context(|| path.display().to_string())?;
        let table = ParamTable::new(&config, Head::Mlm);
        let start = Start { values: table.initial_weights(&config, r.seed), config, head: Head::Mlm, checkpoint: None };
        let plan = r.mlm_plan();
        let mut bar = Bar::new(self.common, "language model")?;
        let summary = crate::train::run(self.be, start, &data.set, &plan, &mut bar)?;
        let batching = r.batching(&Task::MLM);
        let unigram = Unigram::count(&data.set, batching.split(), None, data.vocab)?;
        let eval = self.measure(recipe::MLM, Task::MLM, &data.set, Some(&unigram))?;
        let (Some(EvalResult::Mlm(before)), EvalResult::Mlm(after)) = (summary.evaluation_before, eval) else {
            bail!("the language model was not evaluated");
        };
        Ok(Mlm {
            parameters: table.parameters(),
            steps: summary.steps,
            tokens_per_second: summary.tokens_per_second,
            before: before.perplexity,
            unigram: after.perplexity_unigram.unwrap_or(f64::NAN),
            after,
            history: summary.history,
        })
    }

    /// Fine-tunes a classifier from the language model.
    pub(super) fn classifier(&self, data: &Data) -> Result<Trained> {
        let r = self.recipe;
        let wanted = Wanted::Classifier { labels: r.labels() };
        let start = Start::fresh(hub::load(&r.path(recipe::MLM), &wanted, r.seed)?);
        let mut bar = Bar::new(self.common, "classifier")?;
        let summary = crate::train::run(self.be, start, &data.set, &r.classifier_plan(), &mut bar)?;
        let EvalResult::Classifier(eval) = self.measure(recipe::CLASSIFIER, Task::CLASSIFIER, &data.set, None)? else {
            bail!("the classifier was not evaluated");
        };
        let Some(roc_auc) = eval.roc_auc else {
            bail!("the held-out postings have one label only; use more --rows");
        };
        Ok(Trained { steps: summary.steps, eval, roc_auc, history: summary.history })
    }

    /// Measures the model as it lies on the disk.
    fn measure(&self, name: &str, task: Task, set: &TokenSet, unigram: Option<&Unigram>) -> Result<EvalResult> {
        let loaded = hub::load(&self.recipe.path(name), &Wanted::AsSaved, 0)?;
        let model = DistilBert::new(self.be, loaded.config, loaded.head, &loaded.values)?;
        let batching = self.recipe.batching(&task);
        let plan = EvalPlan { task, batching, subset: Subset::Held, seed: MASK_SEED };
        let eval = evaluate(self.be, &model, set, plan, unigram, &mut |_, _| ControlFlow::Continue(()))?;
        eval.context("the evaluation was given up")
    }

    /// Invents postings that are in no training set, without their labels, and labels them.
    pub(super) fn label(&self) -> Result<Labelled> {
        let r = self.recipe;
        let new: Vec<SynthRow> = (r.rows..r.rows + r.size.new_rows).map(|i| synth::row(r.seed, i)).collect();
        let path = r.path(recipe::NEW_POSTINGS);
        write_unlabelled(&path, &new).with_context(|| path.display().to_string())?;

        let dir = r.path(recipe::CLASSIFIER);
        let loaded = hub::load(&dir, &Wanted::AsSaved, 0)?;
        let tokenizer = Tokenizer::load(&dir)?;
        let model = DistilBert::new(self.be, loaded.config, loaded.head, &loaded.values)?;
        let batching = r.batching(&Task::CLASSIFIER);
        let options = Options {
            long: batching.long,
            max_length: batching.max_length,
            batch_tokens: batching.batch_tokens,
            scores: Scores::Best,
            prefix: None,
            decision: Decision::MostProbable,
        };
        let out = r.path(recipe::PREDICTIONS);
        let job = Job {
            inputs: Inputs::open(&[path], None, TextColumns::Named(&r.text_columns()))?,
            destination: Destination::new(&out, None, Existing::Refuse)?,
            tokenizer: &tokenizer,
            labels: &model.config.labels,
            options: &options,
            stop: &AtomicBool::new(false),
            progress: &|_| (),
        };
        let summary = predict::run(self.be, &model, job)?;

        let mut examples = Vec::new();
        let mut right = 0;
        for (row, invented) in crate::data::source::Source::open(&out)?.zip(new) {
            let fields = row?.fields;
            let label = fields.get("label").and_then(|v| v.as_str()).unwrap_or_default().to_owned();
            let score = fields.get("score").and_then(|v| v.as_f64()).unwrap_or_default();
            right += u64::from(label == invented.label);
            examples.push((invented, label, score));
        }
        Ok(Labelled { accuracy: right as f64 / examples.len().max(1) as f64, summary, examples })
    }

    /// Has the language model fill in a word.
    pub(super) fn fill(&self) -> Result<Filled> {
        let (found, tokenizer) = fill_mask::fill(self.be, &self.recipe.path(recipe::MLM), recipe::FILL, 5)?;
        let named = |&(id, p): &(u32, f32)| (fill_mask::token(&tokenizer, id).to_owned(), f64::from(p));
        Ok(Filled { tokens: found.iter().flatten().map(named).collect() })
    }
}

fn write_unlabelled(path: &std::path::Path, rows: &[SynthRow]) -> Result<()> {
    let mut file = std::io::BufWriter::new(std::fs::File::create(path)?);
    for row in rows {
        let mut fields = serde_json::to_value(row)?;
        if let Some(fields) = fields.as_object_mut() {
            fields.remove("label");
        }
        writeln!(file, "{fields}")?;
    }
    Ok(file.flush()?)
}

/// Shows a training run on a terminal.
struct Bar {
    bar: ProgressBar,
}

impl Bar {
    fn new(common: &Common, name: &'static str) -> Result<Self> {
        let bar = common.progress(0, "{prefix} {bar:24} {pos}/{len} steps  {msg}  {eta} left")?;
        bar.set_prefix(name);
        Ok(Bar { bar })
    }
}

impl Observer for Bar {
    fn on(&mut self, event: Event<'_>) {
        match event {
            Event::Started(started) => self.bar.set_length(started.total_steps),
            Event::Step(step) => {
                self.bar.set_position(step.step);
                self.bar.set_message(format!("loss {:.2}, {:.0} tokens/s", step.loss, step.tokens_per_second));
            }
            _ => {}
        }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
