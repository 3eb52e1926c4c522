//! `handbert fill-mask`: what a model puts in place of [MASK].

use std::fmt::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::device::Computation;
use super::{Common, Outcome};
use crate::backend::{Backend, BatchView, Capacity};
use crate::data::tokenizer::Tokenizer;
use crate::model::hub::{self, Wanted};
use crate::model::{DistilBert, Head, Mode};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Model directory or hub id
    #[arg(long)]
    model: String,
    /// A text with one [MASK] or more
    text: String,
    /// How many tokens to give for each [MASK]
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    top_k: u32,
}

pub fn run(args: &Args, common: &Common) -> Result<Outcome> {
    let dir = hub::resolve(&args.model)?;
    common.backend()?.run(Filling { dir, args, common })
}

struct Filling<'a> {
    dir: PathBuf,
    args: &'a Args,
    common: &'a Common,
}

impl Computation for Filling<'_> {
    fn on<B: Backend>(self, be: &B) -> Result<Outcome> {
        let (found, tokenizer) = fill(be, &self.dir, &self.args.text, self.args.top_k as usize)?;
        self.common.print(&as_json(&found, &tokenizer), &as_text(&found, &tokenizer))?;
        Ok(Outcome::Done)
    }
}

/// Tokens and their probabilities, best first, for each mask. [M][k]
pub(super) type Found = Vec<Vec<(u32, f32)>>;

/// The most probable tokens for each [MASK] of the text, and the vocabulary their ids are of.
pub(super) fn fill<B: Backend>(be: &B, dir: &Path, text: &str, top_k: usize) -> Result<(Found, Tokenizer)> {
    let loaded = hub::load(dir, &Wanted::AsSaved, 0)?;
    if loaded.head != Head::Mlm {
        bail!("{}: is a classifier; name the model that `handbert train mlm` wrote", dir.display());
    }
    let tokenizer = Tokenizer::load(dir)?;
    loaded.config.check_vocabulary(tokenizer.vocab_size(), dir)?;
    let question = Question::new(text, &tokenizer, loaded.config.max_position_embeddings)?;
    let model = DistilBert::new(be, loaded.config, loaded.head, &loaded.values)?;
    let mut ws = model.workspace(be, question.capacity(), Mode::Inference, 0)?;
    model.upload(be, &question.view(), &mut ws)?;
    let found = model.top_k(be, &mut ws, top_k.min(tokenizer.vocab_size()))?;
    Ok((found, tokenizer))
}

/// The text as one sequence, with the rows to fill.
#[derive(Debug, PartialEq, Eq)]
struct Question {
    /// [CLS] text [SEP]. [N]
    ids: Vec<u32>,
    /// 0..N
    position_ids: Vec<u32>,
    /// 0, N
    cu_seqlens: [u32; 2],
    /// Where [MASK] stands. [M]
    masked_rows: Vec<u32>,
    /// Not used in a pass without loss; here for the batch to be well formed. [M]
    targets: Vec<u32>,
}

impl Question {
    /// `longest` is the number of tokens that the model takes, [CLS] and [SEP] included.
    fn new(text: &str, tokenizer: &Tokenizer, longest: usize) -> Result<Question> {
        let special = tokenizer.special();
        let mut ids = vec![special.cls];
        ids.extend(tokenizer.encode(text)?);
        ids.push(special.sep);
        if ids.len() > longest {
            bail!("the text has {} tokens with [CLS] and [SEP], this model takes {longest}; shorten it", ids.len());
        }
        let masked_rows: Vec<u32> =
            (0u32..).zip(&ids).filter(|(_, id)| **id == special.mask).map(|(row, _)| row).collect();
        if masked_rows.is_empty() {
            let mask = tokenizer.token(special.mask).unwrap_or("[MASK]");
            bail!("the text has no {mask}; write {mask} where a token is to be filled in");
        }
        Ok(Question {
            position_ids: (0u32..).take(ids.len()).collect(),
            cu_seqlens: [0, u32::try_from(ids.len()).context("the text is too long")?],
            targets: vec![special.mask; masked_rows.len()],
            masked_rows,
            ids,
        })
    }

    fn capacity(&self) -> Capacity {
        Capacity { tokens: self.ids.len(), sequences: 1, masked: self.masked_rows.len() }
    }

    fn view(&self) -> BatchView<'_> {
        BatchView {
            ids: &self.ids,
            position_ids: &self.position_ids,
            cu_seqlens: &self.cu_seqlens,
            masked_rows: &self.masked_rows,
            targets: &self.targets,
            ..BatchView::default()
        }
    }
}

pub(super) fn token(tokenizer: &Tokenizer, id: u32) -> &str {
    tokenizer.token(id).unwrap_or("(no token)")
}

/// A list of {token, score}; for several masks, a list of lists, as transformers gives it.
fn as_json(found: &[Vec<(u32, f32)>], tokenizer: &Tokenizer) -> Value {
    let list = |best: &Vec<(u32, f32)>| -> Value {
        best.iter().map(|&(id, score)| json!({ "token": token(tokenizer, id), "score": score })).collect()
    };
    match found {
        [one] => list(one),
        several => several.iter().map(list).collect(),
    }
}

fn as_text(found: &[Vec<(u32, f32)>], tokenizer: &Tokenizer) -> String {
    let mut text = String::new();
    for (i, best) in found.iter().enumerate() {
        if found.len() > 1 {
            let _ = writeln!(text, "{}[MASK] {} of {}", if i > 0 { "\n" } else { "" }, i + 1, found.len());
        }
        for &(id, score) in best {
            let _ = writeln!(text, "{score:.4}  {}", token(tokenizer, id));
        }
    }
    text
}
