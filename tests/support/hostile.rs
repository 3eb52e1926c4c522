//! Files that come from outside, opened as the program opens them. Whatever the bytes are, this ends in a value or in
//! an error that names the file, and never in a panic. `tests/hostile_files.rs` hands damaged files in here, and the
//! fuzz targets in `fuzz/` whatever they think of.

use std::fmt::Display;
use std::path::{Path, PathBuf};

use handbert::cli::{ClassifierArgs, MlmArgs, classifier_plan, mlm_plan, overlay};
use handbert::data::Tokenizer;
use handbert::data::token_set::{About, Meta, TokenSet, TokenSetWriter};
use handbert::model::hub::tensors::TensorFile;
use handbert::model::hub::{self, Wanted};
use handbert::model::{Config, Head, ParamTable};
use tempfile::TempDir;
use xxhash_rust::xxh3::xxh3_64;

/// What became of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It was read, and all of it used.
    Opened,
    /// It was refused, with an error that names it.
    Refused,
}

/// One kind of file that comes from outside.
pub trait Reader {
    /// A directory of its own, with the files that lie beside one of this kind.
    fn new() -> Self;

    /// Files without a fault.
    fn valid(&self) -> Vec<Vec<u8>>;

    /// Opens the file that these bytes make, and uses what it holds.
    ///
    /// # Panics
    /// Where an error names neither the file nor what in it is wrong: a defect.
    fn open(&self, bytes: &[u8]) -> Outcome;
}

/// An error must say which file it is about.
fn outcome<T, E: Display>(result: Result<T, E>, path: &Path) -> Outcome {
    match result {
        Ok(_) => Outcome::Opened,
        // `#` prints the causes of an error that has some.
        Err(error) => named(&format!("{error:#}"), path),
    }
}

fn named(error: &str, path: &Path) -> Outcome {
    assert!(error.contains(&path.display().to_string()), "{}: an error that does not name it: {error}", path.display());
    Outcome::Refused
}

fn directory() -> TempDir {
    tempfile::tempdir().expect("a directory")
}

fn write(path: &Path, bytes: &[u8]) {
    std::fs::write(path, bytes).expect("written");
}

/// meta.json of a token set whose other files are right: two shards, with labels and groups.
pub struct TokenSetHeader {
    dir: TempDir,
    tokenizer: Tokenizer,
    meta: Vec<u8>,
}

impl TokenSetHeader {
    fn set(&self) -> PathBuf {
        self.dir.path().join("set")
    }

    /// The description with its own checksum put right, so that what lies behind that check is reached as well.
    fn sealed(bytes: &[u8]) -> Option<Vec<u8>> {
        let bare = Meta { checksum: String::new(), ..serde_json::from_slice(bytes).ok()? };
        let checksum = format!("{:016x}", xxh3_64(&serde_json::to_vec(&bare).ok()?));
        serde_json::to_vec_pretty(&Meta { checksum, ..bare }).ok()
    }
}

impl Reader for TokenSetHeader {
    fn new() -> Self {
        let dir = directory();
        let tokenizer = Tokenizer::train(std::iter::repeat_n("remote nurse office".to_owned(), 3).map(Ok), 100);
        let tokenizer = tokenizer.expect("trained");
        let about = About { label_names: vec!["a".into(), "b".into()], shard_bytes: 64, ..About::default() };
        let mut writer = TokenSetWriter::create(&dir.path().join("set"), &tokenizer, about).expect("created");
        for sample in 0..12u32 {
            writer.push(&vec![5 + sample; sample as usize], sample as i32 % 3 - 1, u64::from(sample)).expect("pushed");
        }
        let set = writer.finish().expect("finished");
        assert!(set.meta().shards.len() > 1, "one shard only");
        let meta = std::fs::read(set.dir().join("meta.json")).expect("read");
        TokenSetHeader { dir, tokenizer, meta }
    }

    fn valid(&self) -> Vec<Vec<u8>> {
        vec![self.meta.clone()]
    }

    fn open(&self, bytes: &[u8]) -> Outcome {
        let dir = self.set();
        write(&dir.join("meta.json"), Self::sealed(bytes).as_deref().unwrap_or(bytes));
        let set = match TokenSet::open(&dir) {
            Ok(set) => set,
            Err(error) => return named(&error.to_string(), &dir),
        };
        let mut ids = Vec::new();
        let samples = (0..=set.len()).try_for_each(|sample| {
            let _ = (set.label(sample), set.group(sample));
            let len = set.sample_len(sample)?;
            set.append_tokens(sample, 0, len, &mut ids)
        });
        // One sample more than there are was asked for.
        assert_eq!(outcome(samples, &dir), Outcome::Refused);
        outcome(set.check_tokenizer(&self.tokenizer).and_then(|()| set.verify()), &dir)
    }
}

const CONFIGS: [&[u8]; 3] = [
    include_bytes!("../fixtures/hf/bare/config.json"),
    include_bytes!("../fixtures/hf/classifier/config.json"),
    include_bytes!("../fixtures/hf/mlm/config.json"),
];
const BARE: &[u8] = include_bytes!("../fixtures/hf/bare/model.safetensors");

/// model.safetensors, beside the config.json of a bare encoder.
pub struct Weights {
    dir: TempDir,
}

impl Reader for Weights {
    fn new() -> Self {
        let dir = directory();
        write(&dir.path().join(hub::CONFIG), CONFIGS[0]);
        Weights { dir }
    }

    /// As transformers writes it, and as we do: with a head, and with a checksum.
    fn valid(&self) -> Vec<Vec<u8>> {
        write(&self.dir.path().join(hub::WEIGHTS), BARE);
        let loaded = hub::load(self.dir.path(), &Wanted::Mlm, 7).expect("a model");
        let table = ParamTable::new(&loaded.config, loaded.head);
        let ours = directory();
        hub::save(ours.path(), &loaded.config, loaded.head, &table, &loaded.values).expect("saved");
        vec![BARE.to_vec(), std::fs::read(ours.path().join(hub::WEIGHTS)).expect("read")]
    }

    fn open(&self, bytes: &[u8]) -> Outcome {
        let path = self.dir.path().join(hub::WEIGHTS);
        write(&path, bytes);
        let tensors = match TensorFile::open(&path) {
            Ok(tensors) => tensors,
            Err(error) => return named(&error.to_string(), &path),
        };
        for name in tensors.names() {
            // As many elements as its shape says, unless that is more than the file has bytes.
            let elements = tensors.shape(&name).unwrap_or_default().iter().try_fold(1usize, |n, &d| n.checked_mul(d));
            let mut values = vec![0.0; elements.unwrap_or(usize::MAX).min(bytes.len())];
            outcome(tensors.read(&name, &mut values), &path);
        }
        let labels = vec!["a".to_owned(), "b".to_owned()];
        outcome(hub::load(self.dir.path(), &Wanted::Classifier { labels }, 7), self.dir.path());
        outcome(hub::load(self.dir.path(), &Wanted::Mlm, 7), self.dir.path())
    }
}

/// config.json, beside the weights of a bare encoder.
pub struct ModelConfig {
    dir: TempDir,
}

impl Reader for ModelConfig {
    fn new() -> Self {
        let dir = directory();
        write(&dir.path().join(hub::WEIGHTS), BARE);
        ModelConfig { dir }
    }

    fn valid(&self) -> Vec<Vec<u8>> {
        CONFIGS.map(<[u8]>::to_vec).to_vec()
    }

    fn open(&self, bytes: &[u8]) -> Outcome {
        let path = self.dir.path().join(hub::CONFIG);
        write(&path, bytes);
        let config = match Config::read(&path) {
            Ok(config) => config,
            Err(error) => return named(&error.to_string(), &path),
        };
        let again = Config::from_json(config.to_json("Any").as_object().expect("an object"), &path);
        assert_eq!(again.expect("what is written is read"), config);
        // Lays the tensors out, which takes no memory for them.
        assert!(ParamTable::new(&config, Head::Mlm).flat_len >= config.vocab_size * config.dim);
        // It may ask for more than the weights have.
        outcome(hub::load(self.dir.path(), &Wanted::Mlm, 7), self.dir.path());
        Outcome::Opened
    }
}

/// A recipe or run.toml, for either kind of training.
pub struct Recipe {
    dir: TempDir,
    model: Config,
}

impl Recipe {
    /// Settings may be right by themselves and no plan together; the error then names their flag.
    fn planned<T>(plan: Result<T, impl Display>) -> Outcome {
        match plan {
            Ok(_) => Outcome::Opened,
            Err(error) => {
                let error = format!("{error:#}");
                assert!(error.contains("--"), "names no flag: {error}");
                Outcome::Refused
            }
        }
    }
}

impl Reader for Recipe {
    fn new() -> Self {
        let dir = directory();
        let config = dir.path().join(hub::CONFIG);
        write(&config, CONFIGS[1]);
        Recipe { model: Config::read(&config).expect("valid"), dir }
    }

    fn valid(&self) -> Vec<Vec<u8>> {
        let all: &[u8] = b"model = \"m\"\ndata = [\"a.csv\", \"b.csv\"]\ntext_columns = \"title, body\"\n\
            num_train_epochs = 2.5\nlearning_rate = 1e-3\nlr_scheduler_type = \"cosine\"\nwarmup_steps = 10\n\
            eval_strategy = \"steps\"\neval_steps = 5\nsave_total_limit = 2\nlogging_steps = 1\nseed = -1\n\
            batch_tokens = \"auto\"\nmax_length = 60\nlimit = 100\nvalidation_split_percentage = 12.5\n";
        let mlm: &[u8] = b"whole_word = true\npacking = \"chunks\"\nchunk_length = 32\nmlm_probability = 0.3\n";
        let classes: &[u8] =
            b"labels = [\"a\", \"b\"]\nclass_weights = \"1,2.5\"\nlong = \"windows\"\nwindow_stride = 7\n";
        vec![[all, mlm].concat(), [all, classes].concat()]
    }

    fn open(&self, bytes: &[u8]) -> Outcome {
        let path = self.dir.path().join("run.toml");
        write(&path, bytes);
        let files = [path.clone()];
        let mlm = match overlay(&MlmArgs::default(), &files) {
            Err(error) => named(&format!("{error:#}"), &path),
            Ok(mut args) => {
                args.data.out = Some("run".into());
                Self::planned(mlm_plan(&args, &self.model, 42))
            }
        };
        let classifier = match overlay(&ClassifierArgs::default(), &files) {
            Err(error) => named(&format!("{error:#}"), &path),
            Ok(mut args) => {
                args.data.out = Some("run".into());
                Self::planned(classifier_plan(&args, &self.model, 42))
            }
        };
        if [mlm, classifier].contains(&Outcome::Opened) { Outcome::Opened } else { Outcome::Refused }
    }
}
