//! Which way a product is computed: asked for, or found by trying all of them and kept on disk.
//!
//! Ways add up in different orders, so what is chosen decides the bits of a run. A choice is made once for each product on a
//! device, with a version of its library and of the kernels, and read from disk from then on: runs on one machine repeat each
//! other bit for bit.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::{fs, io};

use super::device::GemmWay;
use crate::backend::Result;
use crate::disk;

/// A way to compute a product.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Way {
    /// kernels/matmul.cu, on every GPU.
    Mma,
    /// kernels/matmul_hopper.cu, where there is wgmma.
    Wgmma,
    /// The vendor's library, where it was found.
    Library(GemmWay),
}

/// Ways of one origin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// [`Way::Mma`]
    Mma,
    /// [`Way::Wgmma`]
    Wgmma,
    /// [`Way::Library`]
    Library,
}

impl Way {
    fn origin(&self) -> Origin {
        match self {
            Way::Mma => Origin::Mma,
            Way::Wgmma => Origin::Wgmma,
            Way::Library(_) => Origin::Library,
        }
    }
}

/// Which product of a linear layer; see `Task` of ops/product.rs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// y = x Wᵀ + b
    Bias,
    /// … and its GELU
    BiasGelu,
    /// d_x = d_y W
    Dx,
    /// d_x += d_y W
    DxAdd,
    /// d_x = d_y W, of few rows and many outputs
    DxOfMany,
    /// d_x = d_y W, carried on through a GELU
    DxGelu,
    /// d_W += d_yᵀ x
    Dw,
}

/// All that a choice depends on, beside the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct Question {
    /// Which product.
    pub kind: Kind,
    /// The most rows.
    pub rows: usize,
    /// Columns of x.
    pub inputs: usize,
    /// Columns of y.
    pub outputs: usize,
}

/// What a way took.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
struct Trial {
    way: Way,
    seconds: f64,
}

/// A choice as it stands in the file.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
struct Choice {
    #[serde(flatten)]
    question: Question,
    way: Way,
    /// What it was chosen from, where that was more than one.
    trials: Vec<Trial>,
}

/// How choices are made.
#[derive(Debug)]
enum Rule {
    /// The first way of this origin. Nothing is timed, so runs repeat each other on any machine.
    First(Origin),
    /// The quickest of these origins, kept in a file.
    Quickest(Vec<Origin>, Option<PathBuf>),
}

/// What was chosen so far.
#[derive(Debug)]
pub struct Choices {
    rule: Rule,
    made: Mutex<HashMap<Question, Choice>>,
}

impl Choices {
    /// Always a way of this origin, or our best one for products that it has none for.
    pub fn first(origin: Origin) -> Choices {
        Choices { rule: Rule::First(origin), made: Mutex::default() }
    }

    /// The quickest way of these origins, or our best one for products that they have none for. `file` is where such choices are
    /// kept: what stands there is taken. One that cannot be read or written costs a second of each run, and its bits may
    /// then differ.
    pub fn quickest(origins: &[Origin], file: Option<PathBuf>) -> Choices {
        let made = file.as_deref().and_then(|file| match fs::read(file) {
            Ok(bytes) => serde_json::from_slice::<Vec<Choice>>(&bytes)
                .inspect_err(|error| tracing::warn!("{}: {error}; products are timed anew", file.display()))
                .ok(),
            Err(_) => None,
        });
        let made = made.into_iter().flatten().map(|choice| (choice.question, choice)).collect();
        Choices { rule: Rule::Quickest(origins.to_vec(), file), made: Mutex::new(made) }
    }

    fn made(&self) -> MutexGuard<'_, HashMap<Question, Choice>> {
        // A poisoned lock: the table only ever gains whole entries.
        self.made.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was chosen before.
    pub fn made_for(&self, question: &Question) -> Option<Way> {
        self.made().get(question).map(|choice| choice.way)
    }

    /// Chooses among all ways there are, ours in ascending order of promise; `seconds` tells what each of some takes.
    pub fn make(
        &self, question: Question, ways: &[Way], seconds: impl FnOnce(&[Way]) -> Result<Vec<f64>>,
    ) -> Result<Way> {
        let origins = match &self.rule {
            Rule::First(origin) => std::slice::from_ref(origin),
            Rule::Quickest(origins, _) => origins.as_slice(),
        };
        let candidates: Vec<Way> = ways.iter().filter(|way| origins.contains(&way.origin())).copied().collect();
        let timed = matches!(self.rule, Rule::Quickest(..)) && candidates.len() > 1;
        let seconds = if timed { seconds(&candidates)? } else { Vec::new() };
        let trials = candidates.iter().zip(seconds).map(|(&way, seconds)| Trial { way, seconds });
        let trials: Vec<Trial> = trials.collect();
        let quickest = trials.iter().min_by(|a, b| a.seconds.total_cmp(&b.seconds)).map(|trial| trial.way);
        let own = || ways.iter().rfind(|way| way.origin() != Origin::Library).copied();
        let way = quickest.or(candidates.first().copied()).or_else(own).unwrap_or(Way::Mma);
        let mut made = self.made();
        made.insert(question, Choice { question, way, trials });
        if let Rule::Quickest(_, Some(file)) = &self.rule
            && let Err(error) = keep(file, &made)
        {
            tracing::warn!("{}: {error}; products are timed anew in each run, whose bits may differ", file.display());
        }
        Ok(way)
    }
}

/// Writes all choices, and those of other processes where this one has made none.
fn keep(file: &Path, made: &HashMap<Question, Choice>) -> io::Result<()> {
    let mut all: Vec<Choice> =
        fs::read(file).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
    all.retain(|choice| !made.contains_key(&choice.question));
    all.extend(made.values().cloned());
    all.sort_by_key(|Choice { question: q, .. }| (q.kind as u8, q.rows, q.inputs, q.outputs));
    fs::create_dir_all(file.parent().unwrap_or(Path::new("")))?;
    disk::replace(file, serde_json::to_string_pretty(&all)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIBRARY: Way = Way::Library(GemmWay([7; 8]));
    const ALL: [Origin; 3] = [Origin::Mma, Origin::Wgmma, Origin::Library];

    fn question(rows: usize) -> Question {
        Question { kind: Kind::Dw, rows, inputs: 768, outputs: 3072 }
    }

    fn never(_: &[Way]) -> Result<Vec<f64>> {
        panic!("nothing is to be timed")
    }

    #[test]
    fn what_is_asked_for_is_taken_and_nothing_timed() {
        let ways = [Way::Mma, LIBRARY, Way::Library(GemmWay([8; 8]))];
        let of = |origin, ways| Choices::first(origin).make(question(1), ways, never).unwrap();
        assert_eq!([of(Origin::Mma, &ways), of(Origin::Library, &ways)], [Way::Mma, LIBRARY]);
        assert_eq!(of(Origin::Wgmma, &ways), Way::Mma);
        assert_eq!(of(Origin::Wgmma, &[Way::Mma, Way::Wgmma]), Way::Wgmma);
        assert_eq!(of(Origin::Library, &[Way::Mma, Way::Wgmma]), Way::Wgmma);
    }

    #[test]
    fn the_quickest_is_chosen_once_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("deep/products.json");
        let ways = [Way::Mma, Way::Wgmma, LIBRARY];
        let choices = Choices::quickest(&ALL, Some(file.clone()));
        assert_eq!(choices.made_for(&question(1)), None);
        let timed = |ways: &[Way]| {
            assert_eq!(ways.len(), 3);
            Ok(vec![3.0, 1.0, 2.0])
        };
        assert_eq!(choices.make(question(1), &ways, timed).unwrap(), Way::Wgmma);
        assert_eq!(choices.make(question(2), &ways, |_| Ok(vec![3.0, 4.0, 2.0])).unwrap(), LIBRARY);
        assert_eq!(choices.made_for(&question(1)), Some(Way::Wgmma));
        let later = Choices::quickest(&ALL, Some(file.clone()));
        assert_eq!([1, 2, 3].map(|rows| later.made_for(&question(rows))), [Some(Way::Wgmma), Some(LIBRARY), None]);
        let text = fs::read_to_string(&file).unwrap();
        assert!(text.contains("\"way\": \"wgmma\"") && text.contains("\"seconds\": 4.0"), "{text}");
        // One candidate is not timed; a file that is no such file is as good as none.
        assert_eq!(Choices::quickest(&ALL[..1], None).make(question(1), &ways, never).unwrap(), Way::Mma);
        fs::write(&file, "[{}]").unwrap();
        assert_eq!(Choices::quickest(&ALL, Some(file)).made_for(&question(1)), None);
    }

    #[test]
    fn processes_that_share_a_file_lose_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("products.json");
        let [one, other] = [(); 2].map(|()| Choices::quickest(&ALL, Some(file.clone())));
        one.make(question(1), &[Way::Mma], never).unwrap();
        other.make(question(2), &[Way::Mma], never).unwrap();
        let third = Choices::quickest(&ALL, Some(file));
        assert_eq!([1, 2].map(|rows| third.made_for(&question(rows))), [Some(Way::Mma); 2]);
    }
}
