//! `--data`: a token set, or posting files of which one is made first.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::{Common, interrupt};
use crate::data::record::RecordSpec;
use crate::data::token_set::{BuildOptions, BuildReport, Existing, TokenSet, build};
use crate::data::tokenizer::Tokenizer;

/// What `--data` names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Data {
    /// A token set.
    Set(PathBuf),
    /// Posting files, or `-`.
    Files(Vec<PathBuf>),
}

/// What to make of posting files.
#[derive(Debug, Clone)]
pub struct Making<'a> {
    /// Which columns hold what.
    pub spec: RecordSpec,
    /// Names of the classes; `None`: those that occur.
    pub labels: Option<Vec<String>>,
    /// Only the first so many.
    pub limit: Option<u64>,
    /// Where the token set goes.
    pub place: &'a Path,
    /// What to do with one that is there already.
    pub earlier: Earlier,
}

/// What to do with a token set that an earlier sitting made of the files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Earlier {
    /// Use it.
    Keep,
    /// Make it again.
    Replace,
}

/// A token set and, where it was made just now, what became of the rows.
pub struct Corpus {
    /// The token set.
    pub set: TokenSet,
    /// What became of the rows.
    pub report: Option<BuildReport>,
}

impl Data {
    /// One directory, or files.
    pub fn new(names: &[String]) -> Result<Data> {
        let paths: Vec<PathBuf> = names.iter().map(PathBuf::from).collect();
        match paths.as_slice() {
            [] => bail!("--data names no token set and no file"),
            [one] if one.is_dir() => Ok(Data::Set(one.clone())),
            files => match files.iter().find(|path| path.is_dir()) {
                Some(dir) => bail!("--data: {} is a directory; name one token set, or files", dir.display()),
                None => Ok(Data::Files(paths)),
            },
        }
    }

    /// Names that mean the same from any directory.
    pub fn absolute(&self) -> Vec<String> {
        let paths = match self {
            Data::Set(path) => std::slice::from_ref(path),
            Data::Files(paths) => paths,
        };
        paths.iter().map(|path| absolute(path)).collect()
    }

    /// Opens the token set, or makes it of the files with this tokenizer.
    pub fn open(&self, tokenizer: Option<&Tokenizer>, making: &Making<'_>, common: &Common) -> Result<Corpus> {
        let files = match self {
            Data::Set(path) => return Ok(Corpus { set: TokenSet::open(path)?, report: None }),
            Data::Files(files) => files,
        };
        if making.earlier == Earlier::Keep && making.place.exists() {
            return Ok(Corpus { set: TokenSet::open(making.place)?, report: None });
        }
        let tokenizer = tokenizer.context("no tokenizer to read the files with; name one with --tokenizer")?;
        let options = BuildOptions {
            spec: making.spec.clone(),
            labels: making.labels.clone(),
            limit: making.limit,
            existing: Existing::Replace,
            stop: Some(interrupt::stop_flag()?),
        };
        let bar = common.progress(0, "{spinner} tokenizing  {pos} rows  {elapsed}")?;
        let report = build(files, tokenizer, &options, making.place, &|rows| bar.set_position(rows))?;
        bar.finish_and_clear();
        tracing::info!("{} postings, {} tokens -> {}", report.rows, report.tokens, making.place.display());
        report.first_bad.iter().for_each(|bad| tracing::warn!("{bad}"));
        if report.bad_rows > 0 {
            tracing::warn!("{} rows were bad and passed over", report.bad_rows);
        }
        Ok(Corpus { set: TokenSet::open(making.place)?, report: Some(report) })
    }
}

/// Columns that a command line names.
#[derive(Debug, Clone, Copy)]
pub struct Columns<'a> {
    /// --text-columns
    pub text: Option<&'a [String]>,
    /// --label-column
    pub label: Option<&'a str>,
    /// --group-column
    pub group: Option<&'a str>,
}

impl Corpus {
    /// That a token set which was there already was made of the columns that are named now: nothing would read them.
    pub fn check_columns(&self, named: Columns<'_>) -> Result<()> {
        if self.report.is_some() {
            return Ok(());
        }
        let meta = self.set.meta();
        let joined = |columns: &[String]| columns.join(",");
        let columns = [
            (
                "--text-columns",
                named.text.map(joined),
                Some(joined(&meta.text_columns)).filter(|columns| !columns.is_empty()),
            ),
            ("--label-column", named.label.map(str::to_owned), meta.label_column.clone()),
            ("--group-column", named.group.map(str::to_owned), meta.group_column.clone()),
        ];
        for (flag, named, made) in columns {
            match named {
                Some(named) if made.as_ref() != Some(&named) => bail!(
                    "{}: {flag} {named}, but this token set was made with {}; leave it out, or make the set again with \
                     `handbert tokenize FILES… {flag} {named}`",
                    self.set.dir().display(),
                    made.map_or("none".to_owned(), |made| format!("{flag} {made}"))
                ),
                _ => {}
            }
        }
        Ok(())
    }

    /// That a token set which was there already splits as the data did which the model was trained on: by the same
    /// groups, or else by the same texts. Otherwise much of what is held out here was trained on. A model that was not
    /// trained here names no columns.
    pub fn check_split(&self, trained: Columns<'_>) -> Result<()> {
        let Some(text) = trained.text.filter(|_| self.report.is_none()) else { return Ok(()) };
        let meta = self.set.meta();
        let by = |group: Option<&str>, text: &[String]| match group {
            Some(group) => format!("--group-column {group}"),
            None => format!("the texts of --text-columns {}", text.join(",")),
        };
        let (then, now) = (by(trained.group, text), by(meta.group_column.as_deref(), &meta.text_columns));
        if then != now {
            bail!(
                "{}: is split by {now}, the data that the model was trained on by {then}, so postings held out here may have \
                 been trained on; measure with --subset all, or on a token set or files split as those were",
                self.set.dir().display()
            );
        }
        Ok(())
    }

    /// Rows that were bad, where files were read just now.
    pub fn bad_rows(&self) -> u64 {
        self.report.as_ref().map_or(0, |report| report.bad_rows)
    }
}

/// That a token set was made with the tokenizer of the model `name`: ids of another one mean other tokens.
pub fn check_tokenizer(name: &str, tokenizer: &Tokenizer, set: &TokenSet) -> Result<()> {
    let (model, data) = (tokenizer.fingerprint(), &set.meta().tokenizer);
    if model == *data {
        return Ok(());
    }
    bail!(
        "{}: was made with another tokenizer ({data}) than that of {name} ({model}); \
         make it again with `handbert tokenize FILES… --out SET --tokenizer {name}`",
        set.dir().display()
    )
}

/// A path that means the same from any directory; `-` stays what it is.
pub fn absolute(path: &Path) -> String {
    let path =
        if path == Path::new("-") { path.to_path_buf() } else { std::path::absolute(path).unwrap_or(path.into()) };
    path.to_string_lossy().into_owned()
}
