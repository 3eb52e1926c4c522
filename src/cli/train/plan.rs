//! From what the user typed to a plan: defaults filled in, contradictions refused.

use anyhow::{Result, bail};

use super::args::{
    ClassArgs, ClassifierArgs, DataArgs, LongName, MaskingArgs, MlmArgs, OptimizationArgs, PackingName, PolicyArgs,
    Strategy,
};
use crate::cli::batch_tokens::BatchTokens;
use crate::data::mask::MaskUnit;
use crate::data::pack::{Long, Packing};
use crate::model::Config;
use crate::train::outliers::DEFAULT_WINDOW;
use crate::train::plan::{DEFAULT_BATCH_TOKENS, DEFAULT_MAX_LENGTH};
use crate::train::schedule::Warmup;
use crate::train::{Batching, ClassWeights, Every, Feed, Length, Outliers, Task, TrainPlan};

/// Tokens of a chunk, as in the notebook this project replaces.
const DEFAULT_CHUNK_LENGTH: usize = 256;
/// Of tokens, in masked-language modelling.
const DEFAULT_MLM_PROBABILITY: f64 = 0.15;

/// The plan of `train mlm`; `seed` is the command line's or the default.
pub fn mlm(args: &MlmArgs, config: &Config, seed: u64) -> Result<TrainPlan> {
    let mut plan = base(masking_task(&args.masking)?, &args.data, &args.optimization, &args.policy, seed)?;
    batching(&args.data, config, &mut plan.batching);
    plan.batching.packing = packing(&args.masking, config)?;
    plan.check(config)?;
    Ok(plan)
}

/// The plan of `train classifier`.
pub fn classifier(args: &ClassifierArgs, config: &Config, seed: u64) -> Result<TrainPlan> {
    let task = Task::Classifier {
        positive: args.class.positive_label.clone(),
        class_weights: class_weights(args.class_weights.as_deref())?,
        label_smoothing: args.label_smoothing_factor.unwrap_or(0.0),
    };
    let mut plan = base(task, &args.data, &args.optimization, &args.policy, seed)?;
    batching(&args.data, config, &mut plan.batching);
    plan.batching.long = long(&args.class, plan.batching.max_length)?;
    plan.check(config)?;
    Ok(plan)
}

/// What is hidden.
pub fn masking_task(args: &MaskingArgs) -> Result<Task> {
    let unit = if args.whole_word == Some(true) { MaskUnit::WholeWord } else { MaskUnit::Token };
    let task = Task::Mlm { probability: args.mlm_probability.unwrap_or(DEFAULT_MLM_PROBABILITY), unit };
    task.check()?;
    Ok(task)
}

/// Documents, or chunks of this length.
pub fn packing(args: &MaskingArgs, config: &Config) -> Result<Packing> {
    match (args.packing, args.chunk_length) {
        (None | Some(PackingName::Documents), None) => Ok(Packing::Documents),
        (None | Some(PackingName::Documents), Some(_)) => bail!("--chunk-length is for --packing chunks"),
        (Some(PackingName::Chunks), length) => {
            let length = length.unwrap_or(DEFAULT_CHUNK_LENGTH.min(config.max_position_embeddings));
            Ok(Packing::Chunks { length })
        }
    }
}

/// What becomes of postings that are too long for a classifier.
pub fn long(args: &ClassArgs, max_length: usize) -> Result<Long> {
    let half = max_length.saturating_sub(2).div_ceil(2);
    match (args.long, args.window_stride) {
        (Some(LongName::Windows), stride) => Ok(Long::Windows { stride: stride.unwrap_or(half) }),
        (_, Some(_)) => bail!("--window-stride is for --long windows"),
        (Some(LongName::HeadTail), None) => Ok(Long::HeadTail),
        (None | Some(LongName::Truncate), None) => Ok(Long::Truncate),
    }
}

/// Puts what was asked for over the defaults.
pub fn batching(args: &DataArgs, config: &Config, batching: &mut Batching) {
    batching.max_length = args.max_length.unwrap_or(DEFAULT_MAX_LENGTH.min(config.max_position_embeddings));
    batching.batch_tokens = match args.batch_tokens {
        None => batching.batch_tokens,
        Some(BatchTokens::Tokens(tokens)) => tokens,
        // Until it is known what computes.
        Some(BatchTokens::Auto) => default_tokens(config),
    };
    batching.validation_split_percentage =
        args.validation_split_percentage.unwrap_or(batching.validation_split_percentage);
    batching.limit = args.limit;
}

/// `--batch-tokens auto` where nothing is known of the memory: the default, and room for the longest sequence.
pub fn default_tokens(config: &Config) -> usize {
    DEFAULT_BATCH_TOKENS.max(config.max_position_embeddings)
}

fn base(
    task: Task, data: &DataArgs, optimization: &OptimizationArgs, policy: &PolicyArgs, seed: u64,
) -> Result<TrainPlan> {
    let Some(out) = data.out.clone() else { bail!("--out is missing: where does the run go?") };
    let mut plan = TrainPlan::new(task, out);
    plan.occupied = data.occupied();
    plan.replay = data.replay();
    plan.seed = seed;
    let o = optimization;
    let adam = &mut plan.adam;
    adam.learning_rate = o.learning_rate.unwrap_or(adam.learning_rate);
    adam.weight_decay = o.weight_decay.unwrap_or(adam.weight_decay);
    adam.beta1 = o.adam_beta1.unwrap_or(adam.beta1);
    adam.beta2 = o.adam_beta2.unwrap_or(adam.beta2);
    adam.epsilon = o.adam_epsilon.unwrap_or(adam.epsilon);
    adam.max_grad_norm = o.max_grad_norm.unwrap_or(adam.max_grad_norm);
    plan.schedule.kind = o.lr_scheduler_type.unwrap_or(plan.schedule.kind);
    plan.schedule.warmup = match (o.warmup_steps, o.warmup_ratio) {
        (Some(_), Some(_)) => bail!("--warmup-steps and --warmup-ratio say the same thing twice; give one"),
        (Some(steps), None) => Warmup::Steps(steps),
        (None, Some(ratio)) => Warmup::Ratio(ratio),
        (None, None) => plan.schedule.warmup,
    };
    plan.length = match (o.num_train_epochs, o.max_steps) {
        (Some(_), Some(_)) => bail!("--num-train-epochs and --max-steps say the same thing twice; give one"),
        (Some(epochs), None) => Length::Epochs(epochs),
        (None, Some(steps)) => Length::Steps(steps),
        (None, None) => plan.length,
    };
    plan.outliers = outliers(o)?;
    plan.feed = if o.overfit_one_batch == Some(true) { Feed::FirstStep } else { Feed::AllBatches };
    plan.accumulation = o.gradient_accumulation_steps.unwrap_or(plan.accumulation);
    plan.logging_steps = policy.logging_steps.unwrap_or(plan.logging_steps);
    plan.report_to = policy.report_to.unwrap_or(plan.report_to);
    plan.policy.evaluate = match plan.feed {
        Feed::FirstStep if policy.eval_strategy.is_none() && policy.eval_steps.is_none() => Every::Never,
        _ => evaluate(policy)?,
    };
    plan.policy.save_steps = policy.save_steps;
    plan.policy.save_total_limit = policy.save_total_limit;
    plan.policy.metric = policy.metric_for_best_model.unwrap_or(plan.policy.metric);
    plan.policy.patience = policy.patience;
    Ok(plan)
}

fn outliers(args: &OptimizationArgs) -> Result<Outliers> {
    let outliers = Outliers {
        max_loss: args.max_loss_z_score,
        max_grad_norm: args.max_grad_norm_z_score,
        window: args.z_score_window.unwrap_or(DEFAULT_WINDOW),
    };
    if args.z_score_window.is_some() && !outliers.are_wanted() {
        bail!("--z-score-window is for --max-loss-z-score or --max-grad-norm-z-score");
    }
    Ok(outliers)
}

fn evaluate(policy: &PolicyArgs) -> Result<Every> {
    match (policy.eval_strategy, policy.eval_steps) {
        (None | Some(Strategy::Steps), Some(steps)) => Ok(Every::Steps(steps)),
        (Some(Strategy::Steps), None) => bail!("--eval-strategy steps: how many? give --eval-steps"),
        (Some(Strategy::No), None) => Ok(Every::Never),
        (None | Some(Strategy::Epoch), None) => Ok(Every::Epoch),
        (Some(Strategy::No | Strategy::Epoch), Some(_)) => bail!("--eval-steps is for --eval-strategy steps"),
    }
}

fn class_weights(text: Option<&str>) -> Result<ClassWeights> {
    match text {
        None | Some("equal") => Ok(ClassWeights::Equal),
        Some("auto" | "balanced") => Ok(ClassWeights::Balanced),
        Some(numbers) => {
            let weight = |text: &str| text.trim().parse::<f32>().ok().filter(|w| *w >= 0.0 && w.is_finite());
            match numbers.split(',').map(weight).collect::<Option<Vec<f32>>>() {
                Some(weights) if weights.iter().any(|&w| w > 0.0) => Ok(ClassWeights::Given(weights)),
                _ => bail!(
                    "--class-weights {numbers}: expected equal, auto, or a number from 0 for each label, parted by commas"
                ),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::cli::settings::overlay;

    fn config() -> Config {
        let text = include_str!("../../../recipes/small.json");
        let fields: serde_json::Value = serde_json::from_str(text).expect("JSON");
        let config = Config::from_json(fields.as_object().expect("an object"), Path::new("small.json")).expect("valid");
        Config { labels: vec!["in_person".into(), "remote".into()], ..config }
    }

    #[derive(clap::Parser)]
    struct Mlm {
        #[command(flatten)]
        args: MlmArgs,
    }

    #[derive(clap::Parser)]
    struct Classifier {
        #[command(flatten)]
        args: ClassifierArgs,
    }

    fn parse<T: clap::Parser>(flags: &str) -> T {
        T::parse_from(std::iter::once("test").chain(flags.split_whitespace()))
    }

    fn mlm_plan(flags: &str) -> Result<TrainPlan> {
        mlm(&parse::<Mlm>(&format!("--out x {flags}")).args, &config(), 42)
    }

    /// Writes what a run would, and reads it as --config-file would.
    fn read_back<T>(plan: &TrainPlan) -> T
    where
        T: serde::Serialize + serde::de::DeserializeOwned + clap::Args + Default,
    {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("run.toml");
        std::fs::write(&file, plan.settings().to_string()).expect("written");
        overlay(&T::default(), &[file]).expect("every key of run.toml is a flag")
    }

    #[test]
    fn run_toml_repeats_the_plan() {
        let flags = [
            "",
            "--packing chunks --chunk-length 64 --whole-word --mlm-probability 0.3 --max-steps 7 --warmup-ratio 0.1",
            "--learning-rate 1e-3 --weight-decay 0.02 --adam-beta1 0.8 --adam-beta2 0.98 --adam-epsilon 1e-6 --max-grad-norm 0",
            "--eval-steps 5 --save-steps 3 --save-total-limit 2 --patience 4 --metric-for-best-model accuracy --logging-steps 2",
            "--eval-strategy no --num-train-epochs 0.5 --lr-scheduler-type cosine --warmup-steps 3 --limit 100",
            "--gradient-accumulation-steps 3 --batch-tokens 1000 --max-length 100 --validation-split-percentage 12.5",
            "--max-loss-z-score 6 --z-score-window 50 --report-to none",
            "--max-grad-norm-z-score 4.5 --overfit-one-batch",
        ];
        for flags in flags {
            let plan = mlm_plan(flags).expect(flags);
            let mut args: MlmArgs = read_back(&plan);
            args.data.out = Some("x".into());
            let seed = args.optimization.seed.expect("a seed") as u64;
            assert_eq!(mlm(&args, &config(), seed).expect(flags), plan, "{flags}");
        }
        let flags = [
            "",
            "--long windows --window-stride 30 --positive-label in_person --class-weights balanced --metric-for-best-model roc_auc",
            "--class-weights auto",
            "--long head-tail --class-weights 1,2.5 --label-smoothing-factor 0.1",
        ];
        for flags in flags {
            let typed = parse::<Classifier>(&format!("--out x {flags}")).args;
            let plan = classifier(&typed, &config(), u64::MAX).expect(flags);
            let mut args: ClassifierArgs = read_back(&plan);
            args.data.out = Some("x".into());
            let seed = args.optimization.seed.expect("a seed") as u64;
            assert_eq!(classifier(&args, &config(), seed).expect(flags), plan, "{flags}");
        }
    }

    #[test]
    fn recipes_are_valid() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("recipes");
        let mut names = Vec::new();
        for entry in std::fs::read_dir(dir).expect("recipes") {
            let file = entry.expect("an entry").path();
            if file.extension().is_some_and(|extension| extension == "json") {
                Config::read(&file).expect("a configuration");
                continue;
            }
            let name = file.file_name().expect("a name").to_string_lossy().into_owned();
            let mut args: MlmArgs = overlay(&MlmArgs::default(), &[file]).expect(&name);
            args.data.out = Some("x".into());
            // The others are for a pretrained model, of which the size of small.json tells as much as is asked.
            let config = args.config.as_ref().map_or(config(), |file| Config::read(file).expect(&name));
            mlm(&args, &config, 42).expect(&name);
            names.push(name);
        }
        names.sort_unstable();
        assert_eq!(names, ["base.toml", "notebook.toml", "small.toml"]);
    }

    #[test]
    fn defaults_are_those_of_hugging_face() {
        let plan = mlm_plan("").expect("fine");
        let a = plan.adam;
        assert_eq!((a.learning_rate, a.weight_decay, a.max_grad_norm), (5e-5, 0.0, 1.0));
        assert_eq!((a.beta1, a.beta2, a.epsilon), (0.9, 0.999, 1e-8));
        assert_eq!((plan.length, plan.seed, plan.accumulation), (Length::Epochs(3.0), 42, 1));
        assert_eq!(plan.batching.max_length, 512);
    }

    #[test]
    fn contradictions_name_the_flags() {
        let cases = [
            ("--eval-strategy steps", "--eval-steps"),
            ("--eval-strategy no --eval-steps 3", "--eval-strategy steps"),
            ("--chunk-length 64", "--packing chunks"),
            ("--packing chunks --chunk-length 1000", "--chunk-length 1000"),
            ("--max-length 600", "--max-length 600: the model takes 3 to 512"),
            ("--batch-tokens 100", "--batch-tokens 100"),
            ("--learning-rate -1", "--learning-rate"),
            ("--learning-rate nan", "--learning-rate"),
            ("--num-train-epochs 0", "--num-train-epochs"),
            ("--gradient-accumulation-steps 0", "--gradient-accumulation-steps"),
            ("--mlm-probability 1.5", "--mlm-probability"),
            ("--patience 2 --eval-strategy no", "--patience"),
            ("--metric-for-best-model f1", "--metric-for-best-model"),
            ("--validation-split-percentage 0", "--eval-strategy no"),
            ("--z-score-window 5", "--max-loss-z-score"),
            ("--max-loss-z-score 0", "--max-loss-z-score"),
            ("--max-grad-norm-z-score 3 --z-score-window 1", "--z-score-window 1"),
            ("--overfit-one-batch --eval-steps 3", "--eval-strategy"),
            ("--overfit-one-batch --patience 3", "--patience"),
            ("--validation-split-percentage 100", "--validation-split-percentage 100"),
        ];
        for (flags, named) in cases {
            let error = format!("{:#}", mlm_plan(&flags.replace(" -1", "=-1")).expect_err(flags));
            assert!(error.contains(named), "{flags}: {error}");
        }
        let classes = |flags: &str| {
            let args = parse::<Classifier>(&format!("--out x {flags}")).args;
            format!("{:#}", classifier(&args, &config(), 42).expect_err(flags))
        };
        assert!(classes("--window-stride 3").contains("--long windows"));
        assert!(classes("--class-weights heavy").contains("--class-weights heavy"));
        assert!(classes("--label-smoothing-factor 1").contains("--label-smoothing-factor 1 is not"));
    }
}
