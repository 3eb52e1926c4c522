//! Settings from a TOML file whose keys are the names of the flags; the command line wins over it.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::Serialize;
use serde::de::{DeserializeOwned, Error as _, IntoDeserializer, value};
use serde::{Deserialize, Deserializer};

use crate::train::checkpoint;
use crate::train::run_dir::SETTINGS;

/// What the command line leaves open, from the files, the first of which weighs least. A key that is no
/// flag of this command is an error.
pub fn overlay<T>(command_line: &T, files: &[PathBuf]) -> Result<T>
where
    T: Serialize + DeserializeOwned + clap::Args,
{
    let known = keys::<T>();
    let mut table = toml::Table::new();
    for file in files {
        let text = std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
        let mut settings: toml::Table = toml::from_str(&text).with_context(|| file.display().to_string())?;
        beside(file, &mut settings);
        check_keys(file, &settings, &known)?;
        // One by one, so that a wrong value is blamed on the right file and key.
        for (key, value) in &settings {
            let alone = toml::Table::from_iter([(key.clone(), value.clone())]);
            alone.try_into::<T>().with_context(|| format!("{}: {key} = {value}", file.display()))?;
        }
        put_over(&mut table, settings);
    }
    over(&table, command_line)
}

/// A recipe's config.json lies beside the recipe, wherever it is called from.
fn beside(file: &Path, settings: &mut toml::Table) {
    if let (Some(toml::Value::String(config)), Some(dir)) = (settings.get_mut("config"), file.parent()) {
        *config = dir.join(&*config).to_string_lossy().into_owned();
    }
}

/// What the command line leaves open, from these settings, of which those that are no flag of the command do not count.
pub fn over<T: Serialize + DeserializeOwned>(settings: &toml::Table, command_line: &T) -> Result<T> {
    let mut table = settings.clone();
    put_over(&mut table, toml::Table::try_from(command_line).context("the command line")?);
    table.try_into().context("settings")
}

/// What a run said of itself, and where.
pub struct RunSettings {
    /// The file it stands in.
    pub file: PathBuf,
    /// Keys are names of flags; none for a model that was not trained here.
    pub settings: toml::Table,
}

/// The settings of the run that wrote a model: of its run.toml, or, for a checkpoint, of its run.json.
pub fn run_settings(model: &Path) -> Result<RunSettings> {
    let in_state = !model.join(SETTINGS).exists() && model.join(checkpoint::STATE).exists();
    let file = model.join(if in_state { checkpoint::STATE } else { SETTINGS });
    let named = || file.display().to_string();
    let text = match std::fs::read_to_string(&file) {
        Ok(text) if in_state => {
            let state: serde_json::Value = serde_json::from_str(&text).with_context(named)?;
            state["settings"].as_str().unwrap_or_default().to_owned()
        }
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(error).with_context(named),
    };
    let settings = toml::from_str(&text).with_context(named)?;
    Ok(RunSettings { file, settings })
}

/// Settings of which only one can be meant: the one given last takes the place of the other.
const RIVALS: &[(&str, &str)] =
    &[("max_steps", "num_train_epochs"), ("warmup_steps", "warmup_ratio"), ("model", "config")];

/// Settings that go with one value of another and leave with it.
const DEPENDENTS: &[(&str, &str, &str)] = &[
    ("packing", "chunks", "chunk_length"),
    ("long", "windows", "window_stride"),
    ("eval_strategy", "steps", "eval_steps"),
];

fn put_over(table: &mut toml::Table, settings: toml::Table) {
    for (name, value, dependent) in DEPENDENTS {
        if settings.get(*name).is_some_and(|new| new.as_str() != Some(*value)) {
            table.remove(*dependent);
        }
    }
    for (one, other) in RIVALS {
        let given = (settings.contains_key(*one), settings.contains_key(*other));
        match given {
            (true, false) => drop(table.remove(*other)),
            (false, true) => drop(table.remove(*one)),
            _ => {}
        }
    }
    // A tokenizer is named for a configuration; a model has its own.
    if settings.contains_key("model") && !settings.contains_key("tokenizer") {
        table.remove("tokenizer");
    }
    table.extend(settings);
}

/// Options that say what to do with a run rather than what the run is.
const COMMAND_LINE_ONLY: &[&str] = &["config-file", "no-graph", "out", "overwrite", "resume"];

/// Names of a command's options, in snake case. `seed` is an option of every command.
fn keys<T: clap::Args>() -> Vec<String> {
    let command = T::augment_args(clap::Command::new("keys"));
    let longs = command.get_arguments().filter_map(|arg| arg.get_long());
    let settings = longs.filter(|name| !COMMAND_LINE_ONLY.contains(name)).chain(["seed"]);
    settings.map(|name| name.replace('-', "_")).collect()
}

fn check_keys(file: &Path, settings: &toml::Table, known: &[String]) -> Result<()> {
    let Some(unknown) = settings.keys().find(|key| !known.contains(key)) else { return Ok(()) };
    let nearest = known.iter().min_by_key(|key| edits(key, unknown));
    match nearest.filter(|key| edits(key, unknown) <= unknown.len().div_ceil(3)) {
        Some(nearest) => bail!("{}: unknown key {unknown:?}; did you mean {nearest:?}?", file.display()),
        None => {
            bail!("{}: unknown key {unknown:?}; the keys are the flags of this command, see --help", file.display())
        }
    }
}

/// Levenshtein's distance.
fn edits(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let substituted = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

/// A variant by the name serde knows it by, for clap.
pub fn named<T: DeserializeOwned>(name: &str) -> Result<T, String> {
    let name: value::StrDeserializer<'_, value::Error> = name.into_deserializer();
    T::deserialize(name).map_err(|error| error.to_string())
}

/// The name of a class as the command line gives it, for clap. Labels are trimmed where rows are read, so a name with
/// a space around it, as in `--labels "remote, in_person"`, would be that of no row.
pub fn trimmed(name: &str) -> Result<String, String> {
    match name.trim() {
        "" => Err("a name is empty".to_owned()),
        name => Ok(name.to_owned()),
    }
}

/// A list, or one string with its entries parted by commas.
pub fn list<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<String>>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Given {
        One(String),
        Many(Vec<String>),
    }
    match Given::deserialize(deserializer) {
        Ok(Given::One(text)) => Ok(Some(text.split(',').map(|entry| entry.trim().to_owned()).collect())),
        Ok(Given::Many(entries)) => Ok(Some(entries)),
        Err(_) => Err(D::Error::custom("expected a string or a list of strings")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::cli::train::args::MlmArgs;

    #[derive(clap::Parser)]
    struct Typed {
        #[command(flatten)]
        args: MlmArgs,
    }

    fn typed(flags: &str) -> MlmArgs {
        <Typed as clap::Parser>::parse_from(std::iter::once("test").chain(flags.split_whitespace())).args
    }

    fn settled(flags: &str, text: &str) -> Result<MlmArgs> {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("recipe.toml");
        std::fs::write(&file, text).expect("written");
        overlay(&typed(flags), &[file])
    }

    fn error(text: &str) -> String {
        format!("{:#}", settled("", text).expect_err("refused"))
    }

    #[test]
    fn the_command_line_wins_over_the_file() {
        let file = "learning_rate = 1e-3\nnum_train_epochs = 2\nwhole_word = true\ndata = [\"a.csv\", \"b.csv\"]\n";
        let args = settled("--learning-rate 0.5 --whole-word=false --logging-steps 7", file).expect("fine");
        assert_eq!(args.optimization.learning_rate, Some(0.5));
        // An integer in the file is as good as a float.
        assert_eq!(args.optimization.num_train_epochs, Some(2.0));
        assert_eq!(args.masking.whole_word, Some(false));
        assert_eq!(args.policy.logging_steps, Some(7));
        assert_eq!(args.data.data, Some(vec!["a.csv".to_owned(), "b.csv".to_owned()]));
        assert_eq!(args.optimization.weight_decay, None);
    }

    #[test]
    fn settings_that_exclude_each_other_do_not_meet() {
        let args = settled("--max-steps 9", "num_train_epochs = 2.0").expect("fine");
        assert_eq!((args.optimization.max_steps, args.optimization.num_train_epochs), (Some(9), None));
        let args = settled("--packing documents", "packing = \"chunks\"\nchunk_length = 64").expect("fine");
        assert_eq!(args.masking.chunk_length, None);
        let args = settled("--chunk-length 32", "packing = \"chunks\"\nchunk_length = 64").expect("fine");
        assert_eq!(args.masking.chunk_length, Some(32));
        let args = settled("--model m", "config = \"c.json\"\ntokenizer = \"t\"").expect("fine");
        assert_eq!((args.config, args.tokenizer), (None, None));
    }

    #[test]
    fn a_list_may_be_one_string() {
        let args = settled("", "text_columns = \"title, body\"").expect("fine");
        assert_eq!(args.data.text_columns, Some(vec!["title".to_owned(), "body".to_owned()]));
    }

    #[test]
    fn names_of_classes_are_trimmed_and_never_empty() {
        assert_eq!(trimmed(" in_person").as_deref(), Ok("in_person"));
        assert!(trimmed(" ").is_err());
    }

    #[test]
    fn errors_name_the_key_and_the_nearest_one() {
        assert!(error("learning_rat = 1.0").contains("unknown key \"learning_rat\"; did you mean \"learning_rate\"?"));
        assert!(error("flavour = 1.0").contains("unknown key \"flavour\"; the keys are the flags"));
        assert!(error("out = \"x\"").contains("unknown key \"out\""));
        assert!(error("max_steps = \"many\"").contains("max_steps"));
        assert!(error("lr_scheduler_type = \"cubic\"").contains("linear"));
    }

    #[test]
    fn distances() {
        assert_eq!(edits("kitten", "sitting"), 3);
        assert_eq!(edits("", "abc"), 3);
        assert_eq!(edits("learning_rate", "learning_rate"), 0);
    }
}
