//! From a model directory to a model's values.

use std::collections::BTreeSet;
use std::path::Path;

use super::flat::check_shape;
use super::weights::Weights;
use super::{CONFIG, WEIGHTS};
use crate::backend::Linear;
use crate::model::config::Config;
use crate::model::distilbert::Head;
use crate::model::params::{HeadParams, ParamSpec, ParamTable, initialise};
use crate::model::{Error, Result};

/// The vocabulary projection, which is the word embeddings once more; stored by some versions only.
const TIED: &str = "vocab_projector.weight";
const CLASSIFIER: &str = "classifier.weight";

/// Which head a model is to have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// The one its file has, the classifier if it has both; a bare encoder is an error.
    AsSaved,
    /// Masked-language modelling; fresh where the file has none.
    Mlm,
    /// Classification into these classes. That of the file where it knows the same classes (in any order), else fresh.
    Classifier {
        /// Names of the classes, by id; at least two.
        labels: Vec<String>,
    },
}

/// A model as it was loaded.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// As in config.json, with the labels of the head.
    pub config: Config,
    /// Which head it has.
    pub head: Head,
    /// All values, in table order: a flat buffer of [`ParamTable::flat_len`].
    pub values: Vec<f32>,
    /// Names of the tensors that were not in the file and were initialised.
    pub fresh: Vec<String>,
    /// Names of the tensors in the file that belong to another head and were left out.
    pub unused: Vec<String>,
}

/// Where a head's values come from.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Source {
    /// The file has no such head.
    Fresh,
    /// The file, as it is.
    File,
    /// The file, with its classes in another order: for each class, its row there.
    Reordered(Vec<usize>),
}

/// Which head the tensors of a file make.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Mlm,
    Classifier,
}

impl Kind {
    /// The head a tensor belongs to; `None` for the encoder's, and for those of no DistilBERT.
    fn of(name: &str) -> Option<Kind> {
        match name.split('.').next() {
            Some("classifier" | "pre_classifier") => Some(Kind::Classifier),
            Some("vocab_transform" | "vocab_layer_norm" | "vocab_projector") => Some(Kind::Mlm),
            _ => None,
        }
    }
}

/// Loads the model in `dir` with the head `wanted`; `seed` is that of fresh weights.
///
/// Reads f32, f16, bf16 and f64, with or without the `distilbert.` prefix, with or without the tied projection. Every
/// tensor must be there in the shape that config.json asks for, and no other.
///
/// # Errors
///
/// [`Error::Config`], [`Error::File`], [`Error::Tensor`] or [`Error::Io`] for what cannot be read or does not fit; [`Error::Head`] for a
/// bare encoder that is wanted as it was saved.
pub fn load(dir: &Path, wanted: &Wanted, seed: u64) -> Result<Loaded> {
    let mut config = read_config(dir)?;
    let weights = Weights::open(dir)?;
    let (head, source) = choose_head(dir, &mut config, &weights, wanted)?;
    let table = ParamTable::new(&config, head);
    let is_fresh = |spec: &ParamSpec| source == Source::Fresh && Kind::of(&spec.hf_name).is_some();

    // Everything is checked before memory is taken: config.json may ask for more than there is.
    for spec in table.specs.iter().filter(|spec| !is_fresh(spec)) {
        match weights.find(&spec.hf_name) {
            Some((file, name)) => check_shape(file, name, &spec.shape)?,
            None => return Err(missing(dir, &spec.hf_name)),
        }
    }
    let unused = other_heads(&weights, &table, &source)?;

    let mut values = vec![0.0; table.flat_len];
    let mut fresh = Vec::new();
    for spec in &table.specs {
        let place = &mut values[spec.span.range()];
        match weights.find(&spec.hf_name) {
            Some((file, name)) if !is_fresh(spec) => file.read(name, place)?,
            _ => {
                initialise(place, spec, config.initializer_range, seed);
                fresh.push(spec.hf_name.clone());
            }
        }
    }
    match (&table.head, &source) {
        (HeadParams::Classifier(p), Source::Reordered(order)) => reorder(&mut values, &p.classifier, order),
        (HeadParams::Mlm(p), Source::File) => check_tied(&weights, &values[p.projection.weight.range()])?,
        _ => {}
    }
    Ok(Loaded { config, head, values, fresh, unused })
}

fn read_config(dir: &Path) -> Result<Config> {
    let file = dir.join(CONFIG);
    if file.exists() {
        return Config::read(&file);
    }
    let why = if dir.is_dir() { "has no config.json, so it is no model directory" } else { "is no directory" };
    Err(Error::File { path: dir.into(), why: why.into() })
}

/// Settles on a head and puts its labels into the configuration.
fn choose_head(dir: &Path, config: &mut Config, weights: &Weights, wanted: &Wanted) -> Result<(Head, Source)> {
    // A file may have both: of models that are trained for both at once.
    let has = |kind| weights.iter().any(|(name, ..)| Kind::of(name) == Some(kind));
    match wanted {
        Wanted::AsSaved if has(Kind::Classifier) => saved_classifier(dir, config, weights),
        Wanted::AsSaved if !has(Kind::Mlm) => Err(Error::Head {
            wanted: "trained",
            found: "only the encoder",
            advice: "train one with `handbert train mlm` or `handbert train classifier`",
        }),
        Wanted::AsSaved | Wanted::Mlm => {
            config.labels.clear();
            Ok((Head::Mlm, if has(Kind::Mlm) { Source::File } else { Source::Fresh }))
        }
        Wanted::Classifier { labels } => {
            if labels.len() < 2 {
                return Err(wrong_labels(dir, format!("a classifier needs at least two classes, not {labels:?}")));
            }
            let source = if has(Kind::Classifier) { known_classes(config, labels) } else { Source::Fresh };
            config.labels = labels.clone();
            Ok((Head::Classifier { classes: labels.len() }, source))
        }
    }
}

/// The head of the file; where config.json names no classes, they are LABEL_0, LABEL_1 …, as in transformers.
fn saved_classifier(dir: &Path, config: &mut Config, weights: &Weights) -> Result<(Head, Source)> {
    let shape = weights.shape(CLASSIFIER).ok_or_else(|| missing(dir, CLASSIFIER))?;
    let classes = shape.first().copied().unwrap_or_default();
    if config.labels.is_empty() {
        config.labels = (0..classes).map(|i| format!("LABEL_{i}")).collect();
    }
    if classes != config.labels.len() || classes < 2 {
        let named = config.labels.len();
        return Err(wrong_labels(
            dir,
            format!(
                "names {named} classes, but {CLASSIFIER} has {classes} rows; there must be as many, and at least two"
            ),
        ));
    }
    Ok((Head::Classifier { classes }, Source::File))
}

/// Whether the file's classifier knows exactly these classes.
fn known_classes(config: &Config, labels: &[String]) -> Source {
    if config.labels == labels {
        return Source::File;
    }
    let row = |label: &String| config.labels.iter().position(|known| known == label);
    match labels.iter().map(row).collect::<Option<Vec<_>>>() {
        Some(order) if labels.len() == config.labels.len() => Source::Reordered(order),
        _ => Source::Fresh,
    }
}

fn reorder(values: &mut [f32], classifier: &Linear, order: &[usize]) {
    for (span, width) in [(classifier.weight, classifier.inputs), (classifier.bias, 1)] {
        let old = values[span.range()].to_vec();
        for (new, &row) in values[span.range()].chunks_mut(width).zip(order) {
            new.copy_from_slice(&old[row * width..][..width]);
        }
    }
}

/// A stored projection must be the word embeddings: here it is one tensor with them.
fn check_tied(weights: &Weights, word: &[f32]) -> Result<()> {
    let Some((file, name)) = weights.find(TIED) else { return Ok(()) };
    let mut stored = vec![0.0; word.len()];
    file.read(name, &mut stored)?;
    if stored == word {
        return Ok(());
    }
    Err(file.error(name, "differs from the word embeddings; only a vocabulary projection tied to them is supported"))
}

/// Names of the tensors that belong to another head. One that belongs to none is an error.
fn other_heads(weights: &Weights, table: &ParamTable, source: &Source) -> Result<Vec<String>> {
    let known: BTreeSet<&str> = table.specs.iter().map(|spec| spec.hf_name.as_str()).collect();
    let own = match (&table.head, source) {
        (_, Source::Fresh) => None,
        (HeadParams::Mlm(_), _) => Some(Kind::Mlm),
        (HeadParams::Classifier(_), _) => Some(Kind::Classifier),
    };
    let mut unused = Vec::new();
    for (name, file, stored) in weights.iter() {
        let kind = Kind::of(name);
        if kind.is_some() && kind != own {
            unused.push(name.to_owned());
        } else if !known.contains(name) && name != TIED {
            let layers = table.blocks.len();
            return Err(file.error(stored, format!("is not part of the model of {layers} layers in config.json")));
        }
    }
    Ok(unused)
}

fn missing(dir: &Path, tensor: &str) -> Error {
    Error::Tensor {
        file: dir.join(WEIGHTS),
        tensor: tensor.into(),
        why: "is missing; config.json asks for it, so the file is another model's or was not saved whole".into(),
    }
}

fn wrong_labels(dir: &Path, why: String) -> Error {
    Error::Config { file: dir.join(CONFIG), field: "id2label".into(), why }
}
