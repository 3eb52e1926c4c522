//! `handbert inspect` of a token set.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Result;
use serde_json::{Map, Value, json};

use super::inspect_model::grouped;
use crate::data::{TokenSet, Tokenizer};

/// Shares of the samples that are at most as long as the length given for them.
const PERCENTILES: [u64; 7] = [1, 10, 25, 50, 75, 90, 99];

/// More samples than this are not looked at one by one unless every byte is read anyway: of 100 GB, gigabytes.
const LOOKED_AT: u64 = 1 << 20;

/// Tokens of the first sample that are shown.
const SHOWN_TOKENS: u32 = 64;

/// Lengths below this are counted in an array, the few above it in a map.
const USUAL: usize = 1 << 16;

/// What is in a token set, for programs and for people; with `verify`, every byte is checked first.
pub(super) fn describe_set(dir: &Path, verify: bool) -> Result<(Value, String)> {
    describe(dir, verify, LOOKED_AT)
}

/// Figures of a set's single samples are null where there are more than `looked_at` and no `verify`.
fn describe(dir: &Path, verify: bool, looked_at: u64) -> Result<(Value, String)> {
    let set = TokenSet::open(dir)?;
    if verify {
        set.verify()?;
    }
    let meta = set.meta();
    let counts = if verify || set.len() <= looked_at { Some(Counts::of(&set)?) } else { None };
    let counts = counts.as_ref();
    let label = |class: usize| counts.and_then(|counts| counts.labels.get(class));
    let labels: Map<String, Value> =
        meta.label_names.iter().enumerate().map(|(class, name)| (name.clone(), json!(label(class)))).collect();
    let mut json = json!({
        "kind": "token set",
        "samples": set.len(),
        "tokens": set.tokens_total(),
        "tokens_per_sample": set.tokens_total() as f64 / set.len().max(1) as f64,
        "empty": counts.map(|counts| counts.lengths.count(0)),
        "lengths": counts.map(|counts| counts.lengths.percentiles(set.len())),
        "labels": labels,
        "unlabelled": counts.map(|counts| counts.unlabelled),
        "text_columns": meta.text_columns,
        "label_column": meta.label_column,
        "group_column": meta.group_column,
        "vocab_size": meta.vocab_size,
        "tokenizer": meta.tokenizer,
        "dtype": meta.dtype,
        "shards": meta.shards.len(),
        "files": meta.files.len(),
        "bytes": meta.files.values().map(|file| file.bytes).sum::<u64>(),
        "first": first(&set)?,
    });
    if verify {
        json["verified"] = json!(true);
    }
    let text = as_text(dir, &json);
    Ok((json, text))
}

/// What is found by looking at each sample.
struct Counts {
    lengths: Lengths,
    /// Samples of each class.
    labels: Vec<u64>,
    unlabelled: u64,
}

impl Counts {
    fn of(set: &TokenSet) -> Result<Counts> {
        let (mut labels, mut unlabelled) = (vec![0u64; set.meta().label_names.len()], 0);
        for sample in 0..set.len() {
            match usize::try_from(set.label(sample)).ok().and_then(|class| labels.get_mut(class)) {
                Some(count) => *count += 1,
                None => unlabelled += 1,
            }
        }
        Ok(Counts { lengths: Lengths::of(set)?, labels, unlabelled })
    }
}

/// How many samples have each length.
struct Lengths {
    usual: Vec<u64>,
    long: BTreeMap<u32, u64>,
}

impl Lengths {
    fn of(set: &TokenSet) -> Result<Lengths> {
        let mut lengths = Lengths { usual: vec![0; USUAL], long: BTreeMap::new() };
        for sample in 0..set.len() {
            let length = set.sample_len(sample)?;
            match lengths.usual.get_mut(length as usize) {
                Some(count) => *count += 1,
                None => *lengths.long.entry(length).or_default() += 1,
            }
        }
        Ok(lengths)
    }

    fn count(&self, length: usize) -> u64 {
        self.usual.get(length).copied().unwrap_or_default()
    }

    /// Each length that occurs, ascending, and its samples.
    fn ascending(&self) -> impl Iterator<Item = (u32, u64)> {
        let usual = (0u32..).zip(self.usual.iter().copied()).filter(|&(_, count)| count > 0);
        usual.chain(self.long.iter().map(|(&length, &count)| (length, count)))
    }

    /// The smallest length, the percentiles by nearest rank, and the largest.
    fn percentiles(&self, samples: u64) -> Value {
        let mut found = Map::new();
        let ends = (self.ascending().next(), self.ascending().last());
        found.insert("min".to_owned(), json!(ends.0.map(|(length, _)| length)));
        for percent in PERCENTILES {
            let rank = (u128::from(samples) * u128::from(percent)).div_ceil(100) as u64;
            let mut below = 0;
            let at = self.ascending().find(|&(_, count)| {
                below += count;
                below >= rank
            });
            found.insert(format!("p{percent}"), json!(at.map(|(length, _)| length)));
        }
        found.insert("max".to_owned(), json!(ends.1.map(|(length, _)| length)));
        Value::Object(found)
    }
}

/// The beginning of the first sample, decoded.
fn first(set: &TokenSet) -> Result<String> {
    if set.is_empty() {
        return Ok(String::new());
    }
    let mut ids = Vec::new();
    let whole = set.sample_len(0)?;
    set.append_tokens(0, 0, whole.min(SHOWN_TOKENS), &mut ids)?;
    let text = Tokenizer::preview(set.dir(), &ids)?;
    Ok(if whole > SHOWN_TOKENS { text + " …" } else { text })
}

fn as_text(dir: &Path, json: &Value) -> String {
    let text_of = |field: &str| json[field].as_str().unwrap_or("none").to_owned();
    let count = |field: &str| grouped(&json[field]);
    let columns: Vec<_> = json["text_columns"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let listed = |field: &str| -> Vec<String> {
        let entries = json[field].as_object().into_iter().flatten();
        entries.map(|(name, count)| format!("{name} {}", grouped(count))).collect()
    };
    let (postings, lengths, labels) = if json["lengths"].is_null() {
        let names: Vec<_> = json["labels"].as_object().into_iter().flatten().map(|(name, _)| name.as_str()).collect();
        (count("samples"), "not looked at in a set of this size; --verify does".to_owned(), names.join(", "))
    } else {
        let labels = format!("none {}", count("unlabelled"));
        let labels = listed("labels").into_iter().chain([labels]).collect::<Vec<_>>();
        let postings = format!("{}, of which {} empty", count("samples"), count("empty"));
        (postings, listed("lengths").join(", "), labels.join(", "))
    };
    let checked = if json["verified"] == true { ", every byte as it was written" } else { "" };
    let rows = [
        ("postings", postings),
        (
            "tokens",
            format!("{}, {:.1} a posting", count("tokens"), json["tokens_per_sample"].as_f64().unwrap_or_default()),
        ),
        ("lengths", lengths),
        ("labels", labels),
        ("text columns", columns.join(", ")),
        ("label column", text_of("label_column")),
        ("group column", text_of("group_column")),
        ("vocabulary", format!("{} tokens, {}", count("vocab_size"), text_of("tokenizer"))),
        ("stored", format!("{}, {} bytes in {} files{checked}", text_of("dtype"), count("bytes"), count("files"))),
        ("first posting", text_of("first")),
    ];
    let lines: String = rows.iter().map(|(what, value)| format!("  {what:<24} {value}\n")).collect();
    format!("{}\n{lines}", dir.display())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::token_set::{About, TokenSetWriter};

    fn set(dir: &Path, samples: &[(usize, i32)]) -> std::path::PathBuf {
        let tokenizer = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tokenizer/uncased");
        let tokenizer = Tokenizer::load(&tokenizer).unwrap();
        let about = About { label_names: vec!["a".into(), "b".into()], ..About::default() };
        let mut writer = TokenSetWriter::create(&dir.join("set"), &tokenizer, about).unwrap();
        let work = tokenizer.encode("remote").unwrap();
        for &(length, label) in samples {
            let ids: Vec<u32> = work.iter().copied().cycle().take(length).collect();
            writer.push(&ids, label, 0).unwrap();
        }
        writer.finish().unwrap().dir().to_owned()
    }

    #[test]
    fn lengths_labels_and_the_first_posting_are_told() {
        let dir = tempfile::tempdir().unwrap();
        // One to a hundred tokens, an empty posting and one beyond the array.
        let mut samples: Vec<(usize, i32)> = (1..=100).map(|n| (n, n as i32 % 3 - 1)).collect();
        samples[0] = (200, 0);
        samples.extend([(0, -1), (USUAL + 5, 1)]);
        let (json, text) = describe_set(&set(dir.path(), &samples), true).unwrap();
        assert_eq!((&json["samples"], &json["empty"]), (&json!(102), &json!(1)));
        let lengths =
            json!({"min": 0, "p1": 2, "p10": 11, "p25": 26, "p50": 51, "p75": 77, "p90": 92, "p99": 200, "max": 65541});
        assert_eq!(json["lengths"], lengths);
        assert_eq!(json["labels"], json!({"a": 34, "b": 34}));
        assert_eq!((&json["unlabelled"], &json["verified"]), (&json!(34), &json!(true)));
        assert!(text.contains("every byte as it was written") && text.contains("remote remote …"), "{text}");
        assert!(text.contains("a 34, b 34, none 34") && text.contains("max 65,541"), "{text}");
    }

    #[test]
    fn samples_of_a_large_set_are_looked_at_only_to_verify_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = set(dir.path(), &[(3, 0), (4, 1), (0, -1)]);
        let (json, text) = describe(&path, false, 2).unwrap();
        assert_eq!((&json["samples"], &json["tokens"]), (&json!(3), &json!(7)));
        for field in ["empty", "lengths", "unlabelled"] {
            assert_eq!(json[field], Value::Null, "{field}");
        }
        assert_eq!(json["labels"], json!({"a": null, "b": null}));
        assert!(text.contains("--verify does") && text.contains(" a, b\n") && !text.contains("null"), "{text}");
        assert_eq!(describe(&path, true, 2).unwrap().0["labels"], json!({"a": 1, "b": 1}));
        assert_eq!(describe(&path, false, 3).unwrap().0["empty"], json!(1));
    }

    #[test]
    fn the_first_posting_reads_as_the_tokenizer_decodes_it() {
        let dir = tempfile::tempdir().unwrap();
        let set = TokenSet::open(&set(dir.path(), &[(40, 0)])).unwrap();
        let mut ids = Vec::new();
        set.append_tokens(0, 0, 40, &mut ids).unwrap();
        assert_eq!(first(&set).unwrap(), set.tokenizer().unwrap().decode(&ids));
    }

    #[test]
    fn an_empty_set_is_described_too() {
        let dir = tempfile::tempdir().unwrap();
        let (json, _) = describe_set(&set(dir.path(), &[]), false).unwrap();
        assert_eq!((&json["samples"], &json["lengths"]["p50"]), (&json!(0), &Value::Null));
    }
}
