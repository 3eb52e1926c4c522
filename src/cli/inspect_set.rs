//! `handbert inspect` of a token set.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Result;
use serde_json::{Map, Value, json};

use super::inspect_model::grouped;
use crate::data::TokenSet;

/// Shares of the samples that are at most as long as the length given for them.
const PERCENTILES: [u64; 7] = [1, 10, 25, 50, 75, 90, 99];

/// Tokens of the first sample that are shown.
const SHOWN_TOKENS: u32 = 64;

/// Lengths below this are counted in an array, the few above it in a map.
const USUAL: usize = 1 << 16;

/// What is in a token set, for programs and for people; with `verify`, every byte is checked first.
pub(super) fn describe_set(dir: &Path, verify: bool) -> Result<(Value, String)> {
    let set = TokenSet::open(dir)?;
    if verify {
        set.verify()?;
    }
    let meta = set.meta();
    let lengths = Lengths::of(&set)?;
    let mut counts = vec![0u64; meta.label_names.len()];
    let mut unlabelled = 0u64;
    for sample in 0..set.len() {
        match usize::try_from(set.label(sample)).ok().and_then(|class| counts.get_mut(class)) {
            Some(count) => *count += 1,
            None => unlabelled += 1,
        }
    }
    let labels: Map<String, Value> =
        meta.label_names.iter().cloned().zip(counts.into_iter().map(Value::from)).collect();
    let mut json = json!({
        "kind": "token set",
        "samples": set.len(),
        "tokens": set.tokens_total(),
        "tokens_per_sample": set.tokens_total() as f64 / set.len().max(1) as f64,
        "empty": lengths.count(0),
        "lengths": lengths.percentiles(set.len()),
        "labels": labels,
        "unlabelled": unlabelled,
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
    let text = set.tokenizer()?.decode(&ids);
    Ok(if whole > SHOWN_TOKENS { text + " …" } else { text })
}

fn as_text(dir: &Path, json: &Value) -> String {
    let text_of = |field: &str| json[field].as_str().unwrap_or("none").to_owned();
    let count = |field: &str| grouped(&json[field]);
    let columns: Vec<_> = json["text_columns"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let lengths = json["lengths"].as_object().into_iter().flatten();
    let lengths: Vec<String> = lengths.map(|(name, length)| format!("{name} {}", grouped(length))).collect();
    let labels = json["labels"].as_object().into_iter().flatten();
    let mut labels: Vec<String> = labels.map(|(name, rows)| format!("{name} {}", grouped(rows))).collect();
    labels.push(format!("none {}", count("unlabelled")));
    let checked = if json["verified"] == true { ", every byte as it was written" } else { "" };
    let rows = [
        ("postings", format!("{}, of which {} empty", count("samples"), count("empty"))),
        (
            "tokens",
            format!("{}, {:.1} a posting", count("tokens"), json["tokens_per_sample"].as_f64().unwrap_or_default()),
        ),
        ("lengths", lengths.join(", ")),
        ("labels", labels.join(", ")),
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
    use crate::data::Tokenizer;
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
    fn an_empty_set_is_described_too() {
        let dir = tempfile::tempdir().unwrap();
        let (json, _) = describe_set(&set(dir.path(), &[]), false).unwrap();
        assert_eq!((&json["samples"], &json["lengths"]["p50"]), (&json!(0), &Value::Null));
    }
}
