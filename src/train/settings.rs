//! A plan as flat settings under the names of the flags: what `run.toml` holds, and what a resumed
//! run is compared by.

use std::collections::BTreeSet;

use crate::data::mask::MaskUnit;
use crate::data::pack::{Long, Packing};

use super::plan::{Feed, Length, TrainPlan};
use super::policy::Every;
use super::schedule::Warmup;
use super::task::{ClassWeights, Task};

/// Settings that may differ when a run is resumed: they change what is written when, not the weights.
/// Data may have moved; it is compared by content.
const MAY_CHANGE: &[&str] = &[
    "data",
    "eval_steps",
    "eval_strategy",
    "group_column",
    "label_column",
    "labels",
    "logging_steps",
    "patience",
    "report_to",
    "save_steps",
    "save_total_limit",
    "text_columns",
];

impl TrainPlan {
    /// Every setting under the name of its flag, in snake case: what `run.toml` holds.
    pub fn settings(&self) -> toml::Table {
        let mut t = self.provenance.clone();
        let mut set = |name: &str, value: toml::Value| t.insert(name.to_owned(), value);
        let a = &self.adam;
        set("learning_rate", a.learning_rate.into());
        set("weight_decay", a.weight_decay.into());
        set("adam_beta1", a.beta1.into());
        set("adam_beta2", a.beta2.into());
        set("adam_epsilon", a.epsilon.into());
        set("max_grad_norm", a.max_grad_norm.into());
        match self.length {
            Length::Epochs(epochs) => set("num_train_epochs", epochs.into()),
            Length::Steps(steps) => set("max_steps", integer(steps)),
        };
        set("lr_scheduler_type", name_of(self.schedule.kind));
        match self.schedule.warmup {
            Warmup::Steps(steps) => set("warmup_steps", integer(steps)),
            Warmup::Ratio(ratio) => set("warmup_ratio", ratio.into()),
        };
        set("gradient_accumulation_steps", integer(self.accumulation as u64));
        if self.feed == Feed::FirstStep {
            set("overfit_one_batch", true.into());
        }
        set("logging_steps", integer(self.logging_steps));
        set("report_to", name_of(self.report_to));
        set("seed", integer(self.seed));
        self.outlier_settings(&mut t);
        self.policy_settings(&mut t);
        self.batch_settings(&mut t);
        self.task_settings(&mut t);
        t
    }

    fn outlier_settings(&self, t: &mut toml::Table) {
        let o = &self.outliers;
        let window = o.are_wanted().then_some(integer(o.window as u64));
        let optional = [
            ("max_loss_z_score", o.max_loss.map(Into::into)),
            ("max_grad_norm_z_score", o.max_grad_norm.map(Into::into)),
            ("z_score_window", window),
        ];
        t.extend(optional.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))));
    }

    fn policy_settings(&self, t: &mut toml::Table) {
        let p = &self.policy;
        let strategy = match p.evaluate {
            Every::Never => "no",
            Every::Steps(_) => "steps",
            Every::Epoch => "epoch",
        };
        t.insert("eval_strategy".into(), strategy.into());
        t.insert("metric_for_best_model".into(), name_of(p.metric));
        let eval_steps = if let Every::Steps(steps) = p.evaluate { Some(steps) } else { None };
        let optional = [
            ("eval_steps", eval_steps),
            ("save_steps", p.save_steps),
            ("save_total_limit", p.save_total_limit.map(|n| n as u64)),
            ("patience", p.patience.map(u64::from)),
        ];
        t.extend(optional.into_iter().filter_map(|(name, value)| Some((name.to_owned(), integer(value?)))));
    }

    fn batch_settings(&self, t: &mut toml::Table) {
        let b = &self.batching;
        t.insert("batch_tokens".into(), integer(b.batch_tokens as u64));
        t.insert("max_length".into(), integer(b.max_length as u64));
        t.insert("validation_split_percentage".into(), b.validation_split_percentage.into());
        if let Some(limit) = b.limit {
            t.insert("limit".into(), integer(limit));
        }
        if let Task::Classifier { .. } = self.task {
            let long = match b.long {
                Long::Split => "split",
                Long::Truncate => "truncate",
                Long::HeadTail => "head-tail",
                Long::Windows { .. } => "windows",
            };
            t.insert("long".into(), long.into());
            if let Long::Windows { stride } = b.long {
                t.insert("window_stride".into(), integer(stride as u64));
            }
            return;
        }
        match b.packing {
            Packing::Documents => t.insert("packing".into(), "documents".into()),
            Packing::Chunks { length } => {
                t.insert("chunk_length".into(), integer(length as u64));
                t.insert("packing".into(), "chunks".into())
            }
        };
    }

    fn task_settings(&self, t: &mut toml::Table) {
        match &self.task {
            Task::Mlm { probability, unit } => {
                t.insert("mlm_probability".into(), (*probability).into());
                t.insert("whole_word".into(), (*unit == MaskUnit::WholeWord).into());
            }
            Task::Classifier { positive, class_weights, label_smoothing } => {
                if let Some(name) = positive {
                    t.insert("positive_label".into(), name.as_str().into());
                }
                let weights = match class_weights {
                    ClassWeights::Equal => "equal".to_owned(),
                    ClassWeights::Balanced => "balanced".to_owned(),
                    ClassWeights::Given(w) => w.iter().map(f32::to_string).collect::<Vec<_>>().join(","),
                };
                t.insert("class_weights".into(), weights.into());
                t.insert("label_smoothing_factor".into(), (*label_smoothing).into());
            }
        }
    }
}

/// What differs between the settings a run was begun with and those it is resumed with, of those
/// that change the weights.
pub fn differences(then: &toml::Table, now: &toml::Table) -> Vec<String> {
    let show = |value: Option<&toml::Value>| value.map_or("nothing".to_owned(), toml::Value::to_string);
    let told = |(name, then, now): (&str, _, _)| {
        format!("--{} was {} and is now {}", name.replace('_', "-"), show(then), show(now))
    };
    differing(then, now, MAY_CHANGE).into_iter().map(told).collect()
}

/// A setting's name, and its value on either side.
pub type Differing<'a> = (&'a str, Option<&'a toml::Value>, Option<&'a toml::Value>);

/// The settings that are not the same on both sides, by name, but for those that are passed over.
pub fn differing<'a>(one: &'a toml::Table, other: &'a toml::Table, passed_over: &[&str]) -> Vec<Differing<'a>> {
    let names: BTreeSet<&str> = one.keys().chain(other.keys()).map(String::as_str).collect();
    let both = names.into_iter().map(|name| (name, one.get(name), other.get(name)));
    both.filter(|(name, one, other)| !passed_over.contains(name) && one != other).collect()
}

/// TOML's integers are signed: a seed above 2^63 wraps and is read back the same way.
fn integer(value: u64) -> toml::Value {
    toml::Value::Integer(value as i64)
}

/// The name serde gives a variant without fields, which always has one.
fn name_of(value: impl serde::Serialize) -> toml::Value {
    toml::Value::try_from(value).unwrap_or_else(|_| "".into())
}
