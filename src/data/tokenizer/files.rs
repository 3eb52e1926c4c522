//! Tokenizer files as `transformers` reads and writes them.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Mutex;

use serde_json::{Map, Value, json};
use tokenizers::Decoder;
use tokenizers::decoders::wordpiece::WordPiece;

use super::plain::Plain;
use super::trie::Trie;
use super::{Error, Fast, Result, Role, SpecialIds, Tokenizer, fingerprint};

/// The files of a saved tokenizer.
pub const FILES: [&str; 4] = ["tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json"];

const PIPELINE: &str = "tokenizer.json";
const CONFIG: &str = "tokenizer_config.json";
const VOCAB: &str = "vocab.txt";
const SPECIAL_MAP: &str = "special_tokens_map.json";

/// BERT's special tokens, in the order in which training numbers them.
pub(super) const SPECIAL_TOKENS: [(&str, &str); 5] = [
    ("pad_token", "[PAD]"),
    ("unk_token", "[UNK]"),
    ("cls_token", "[CLS]"),
    ("sep_token", "[SEP]"),
    ("mask_token", "[MASK]"),
];

impl Tokenizer {
    /// Reads `tokenizer.json`, or else `vocab.txt`, of a directory, with the settings that
    /// `tokenizer_config.json` gives (do_lower_case, strip_accents, tokenize_chinese_chars), which
    /// win over those of `tokenizer.json` as they do in transformers.
    ///
    /// # Errors
    /// A file that is missing, unreadable or no BERT WordPiece tokenizer; a special token that is missing.
    pub fn load(dir: &Path) -> Result<Tokenizer> {
        let config = optional_json(&dir.join(CONFIG))?;
        let map = optional_json(&dir.join(SPECIAL_MAP))?.unwrap_or_default();
        let (path, mut pipeline) = if dir.join(PIPELINE).exists() {
            let path = dir.join(PIPELINE);
            (path.clone(), Value::Object(read_json(&path)?))
        } else if dir.join(VOCAB).exists() {
            let path = dir.join(VOCAB);
            let vocab = read_vocab(&path)?;
            (path, bert_pipeline(vocab, &names(config.as_ref(), &map)))
        } else {
            return Err(Error::File {
                path: dir.to_owned(),
                why: format!("no {PIPELINE} and no {VOCAB}; name a directory with the files of a tokenizer"),
            });
        };
        let bad = |why: String| Error::File { path: path.clone(), why };
        if let Some(settings) = bert_settings(dir, config.as_ref())? {
            override_normalizer(&mut pipeline, &settings);
        }
        Tokenizer::from_pipeline(pipeline, config.unwrap_or_default(), &map).map_err(|e| bad(e.to_string()))
    }

    /// Text of the ids by `vocab.txt` of a directory, without a tokenizer: to build one takes a tenth of a second.
    ///
    /// # Errors
    /// The file is missing or unreadable.
    pub fn preview(dir: &Path, ids: &[u32]) -> Result<String> {
        let text = read(&dir.join(VOCAB))?;
        let words: Vec<&str> = text.lines().collect();
        let tokens = ids.iter().filter_map(|&id| words.get(id as usize)).map(|&word| word.to_owned()).collect();
        WordPiece::default().decode(tokens).map_err(|e| Error::Invalid(format!("tokenizer: {e}")))
    }

    /// A tokenizer from the contents of tokenizer.json, tokenizer_config.json and special_tokens_map.json.
    pub(super) fn from_pipeline(
        mut pipeline: Value, config: Map<String, Value>, map: &Map<String, Value>,
    ) -> Result<Self> {
        let invalid = |why: String| Error::Invalid(why);
        let kind = pipeline["model"]["type"].as_str().unwrap_or("none").to_owned();
        if kind != "WordPiece" {
            return Err(invalid(format!("field \"model.type\" is {kind:?}; DistilBERT needs \"WordPiece\"")));
        }
        // What a training script left in the file must not cut our texts.
        pipeline["truncation"] = Value::Null;
        pipeline["padding"] = Value::Null;
        let bytes = serde_json::to_vec(&pipeline).map_err(|e| invalid(e.to_string()))?;
        let inner = tokenizers::Tokenizer::from_bytes(bytes).map_err(|e| invalid(format!("not a tokenizer: {e}")))?;

        let vocab = inner.get_vocab(true);
        let tokens = by_id(&vocab)?;
        let id = |name: &str, default: &str| {
            let token = name_of(Some(&config), map, name).unwrap_or_else(|| default.to_owned());
            vocab.get(&token).copied().ok_or_else(|| invalid(format!("{name} {token:?} is not in the vocabulary")))
        };
        let [pad, unk, cls, sep, mask] = SPECIAL_TOKENS.map(|(name, default)| id(name, default));
        let special = SpecialIds { pad: pad?, unk: unk?, cls: cls?, sep: sep?, mask: mask? };

        let prefix = pipeline["model"]["continuing_subword_prefix"].as_str().unwrap_or("##").to_owned();
        let roles = roles(&inner, &tokens, special, &prefix);
        let fast = fast_path(&inner, &pipeline, &prefix)?;
        let fingerprint = fingerprint(&tokens, &settings(&inner, &pipeline["model"]));
        Ok(Tokenizer { inner, fast, tokens, roles, special, config, fingerprint })
    }

    /// Writes `tokenizer.json`, `tokenizer_config.json`, `vocab.txt` and `special_tokens_map.json`
    /// into an existing directory, so that `AutoTokenizer.from_pretrained` loads it.
    pub fn save(&self, dir: &Path) -> Result<()> {
        let pipeline = self.inner.to_string(true).map_err(|e| Error::Invalid(format!("tokenizer: {e}")))?;
        let mut vocab = String::with_capacity(self.tokens.len() * 8);
        for token in &self.tokens {
            vocab.push_str(token.as_deref().unwrap_or_default());
            vocab.push('\n');
        }
        let names = self.special_names();
        let config = self.saved_config(&names);
        write(&dir.join(PIPELINE), &pipeline)?;
        write(&dir.join(CONFIG), &pretty(&Value::Object(config)))?;
        write(&dir.join(VOCAB), &vocab)?;
        write(&dir.join(SPECIAL_MAP), &pretty(&Value::Object(names)))
    }

    fn special_names(&self) -> Map<String, Value> {
        let SpecialIds { pad, unk, cls, sep, mask } = self.special;
        let ids = [pad, unk, cls, sep, mask];
        let named = SPECIAL_TOKENS.iter().zip(ids);
        named.map(|(&(name, default), id)| (name.to_owned(), json!(self.token(id).unwrap_or(default)))).collect()
    }

    /// What was read, with the settings that are in force.
    fn saved_config(&self, names: &Map<String, Value>) -> Map<String, Value> {
        let mut config = self.config.clone();
        config.extend(names.clone());
        config.entry("model_max_length").or_insert(json!(512));
        config.entry("tokenizer_class").or_insert(json!("DistilBertTokenizer"));
        let normalizer = serde_json::to_value(self.inner.get_normalizer()).unwrap_or_default();
        if normalizer["type"] == "BertNormalizer" {
            config.insert("do_lower_case".to_owned(), normalizer["lowercase"].clone());
            config.insert("strip_accents".to_owned(), normalizer["strip_accents"].clone());
            config.insert("tokenize_chinese_chars".to_owned(), normalizer["handle_chinese_chars"].clone());
        }
        config
    }
}

/// tokenizer.json of a BERT tokenizer with this vocabulary; `names` are the special tokens, uncased.
pub(super) fn bert_pipeline(vocab: HashMap<String, u32>, names: &[String; 5]) -> Value {
    let added: Vec<Value> = {
        let mut found: Vec<(u32, &String)> = names.iter().filter_map(|n| Some((*vocab.get(n)?, n))).collect();
        found.sort_unstable();
        let token = |&(id, content): &(u32, &String)| {
            json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                   "normalized": false, "special": true})
        };
        found.iter().map(token).collect()
    };
    let [_, unk, cls, sep, _] = names;
    let id = |token: &String| vocab.get(token).copied().unwrap_or_default();
    let special = |token: &String, kind: u32| json!({"SpecialToken": {"id": token, "type_id": kind}});
    let sequence = |name: &str, kind: u32| json!({"Sequence": {"id": name, "type_id": kind}});
    let used = |token: &String| json!({"id": token, "ids": [id(token)], "tokens": [token]});
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": {"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
                       "strip_accents": null, "lowercase": true},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [special(cls, 0), sequence("A", 0), special(sep, 0)],
            "pair": [special(cls, 0), sequence("A", 0), special(sep, 0), sequence("B", 1), special(sep, 1)],
            "special_tokens": {cls.as_str(): used(cls), sep.as_str(): used(sep)},
        },
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": true},
        "model": {"type": "WordPiece", "unk_token": unk, "continuing_subword_prefix": "##",
                  "max_input_chars_per_word": 100, "vocab": vocab},
    })
}

/// The three settings of a BERT tokenizer class.
struct BertSettings {
    lowercase: bool,
    strip_accents: Option<bool>,
    chinese: bool,
}

/// What transformers would build the normaliser from, or `None` where it takes tokenizer.json as it is: a
/// BERT class, named by tokenizer_config.json or else by the model's config.json, knows its three settings
/// and their defaults.
fn bert_settings(dir: &Path, config: Option<&Map<String, Value>>) -> Result<Option<BertSettings>> {
    let field = |name: &str| config.and_then(|c| c.get(name)).filter(|v| !v.is_null());
    let is_bert = match field("tokenizer_class").and_then(Value::as_str) {
        Some(class) => ["BertTokenizer", "DistilBertTokenizer"].contains(&class.trim_end_matches("Fast")),
        None => {
            let model = optional_json(&dir.join("config.json"))?.unwrap_or_default();
            let kind = model.get("model_type").and_then(Value::as_str);
            // With nothing but a vocabulary there is no pipeline to take as it is.
            matches!(kind, Some("bert" | "distilbert")) || !dir.join(PIPELINE).exists()
        }
    };
    let flag = |name: &str| match field(name) {
        None => Ok(None),
        Some(Value::Bool(value)) => Ok(Some(*value)),
        Some(other) => Err(Error::File {
            path: dir.join(CONFIG),
            why: format!("field {name:?} is {other}, expected true, false or null"),
        }),
    };
    Ok(is_bert.then_some(BertSettings {
        lowercase: flag("do_lower_case")?.unwrap_or(true),
        strip_accents: flag("strip_accents")?,
        chinese: flag("tokenize_chinese_chars")?.unwrap_or(true),
    }))
}

fn override_normalizer(pipeline: &mut Value, settings: &BertSettings) {
    let normalizer = &mut pipeline["normalizer"];
    if normalizer["type"] == "BertNormalizer" {
        normalizer["lowercase"] = json!(settings.lowercase);
        normalizer["strip_accents"] = json!(settings.strip_accents);
        normalizer["handle_chinese_chars"] = json!(settings.chinese);
    }
}

/// What decides the ids besides the vocabulary, in one spelling wherever it was read from.
fn settings(inner: &tokenizers::Tokenizer, model: &Value) -> Value {
    let mut normalizer = json!(inner.get_normalizer());
    if normalizer["type"] == "BertNormalizer" && normalizer["strip_accents"].is_null() {
        normalizer["strip_accents"] = normalizer["lowercase"].clone();
    }
    let mut added: Vec<_> = inner.get_added_tokens_decoder().into_iter().collect();
    added.sort_unstable_by_key(|(id, _)| *id);
    let model = ["unk_token", "continuing_subword_prefix", "max_input_chars_per_word"].map(|name| model[name].clone());
    json!([normalizer, inner.get_pre_tokenizer(), added, model])
}

/// The fast path, where the pipeline is one that it reproduces.
fn fast_path(inner: &tokenizers::Tokenizer, pipeline: &Value, prefix: &str) -> Result<Option<Fast>> {
    let normalizer = &pipeline["normalizer"];
    let is_bert = normalizer["type"] == "BertNormalizer" && normalizer["clean_text"] == true;
    let (Some(lowercase), true) =
        (normalizer["lowercase"].as_bool(), pipeline["pre_tokenizer"]["type"] == "BertPreTokenizer")
    else {
        return Ok(None);
    };
    let added: Vec<_> = inner.get_added_tokens_decoder().into_values().collect();
    // A normalised added token is looked for in the cleaned text, across what we would part.
    if !is_bert || added.iter().any(|token| token.normalized) {
        return Ok(None);
    }
    let Ok(plain) = Plain::new(lowercase, added.into_iter().map(|token| token.content).collect()) else {
        return Ok(None);
    };
    let vocab = inner.get_vocab(false);
    let pairs: Vec<(&str, u32)> = vocab.iter().map(|(token, &id)| (token.as_str(), id)).collect();
    let model = &pipeline["model"];
    let Some(unk) = model["unk_token"].as_str().and_then(|token| vocab.get(token).copied()) else {
        return Err(Error::Invalid("field \"model.unk_token\" is not in the vocabulary".to_owned()));
    };
    let longest = model["max_input_chars_per_word"].as_u64().unwrap_or(100) as usize;
    let trie = Trie::new(&pairs, prefix, unk, longest)?;
    Ok(Some(Fast { plain, trie, caches: Mutex::default() }))
}

fn by_id(vocab: &HashMap<String, u32>) -> Result<Vec<Option<Box<str>>>> {
    let largest = vocab.values().copied().max().unwrap_or_default() as usize;
    // Ids come from a file: a stray one must not reserve gigabytes.
    if largest > 16 * vocab.len() + 65_536 {
        return Err(Error::Invalid(format!("id {largest} in a vocabulary of {} tokens", vocab.len())));
    }
    let mut tokens = vec![None; largest + 1];
    for (token, &id) in vocab {
        tokens[id as usize] = Some(token.as_str().into());
    }
    Ok(tokens)
}

fn roles(inner: &tokenizers::Tokenizer, tokens: &[Option<Box<str>>], special: SpecialIds, prefix: &str) -> Vec<Role> {
    let role = |token: &Option<Box<str>>| match token.as_deref().and_then(|t| t.strip_prefix(prefix)) {
        Some(rest) if !rest.is_empty() => Role::Continuation,
        _ => Role::Word,
    };
    let mut roles: Vec<Role> = tokens.iter().map(role).collect();
    let SpecialIds { pad, unk, cls, sep, mask } = special;
    let added = inner.get_added_tokens_decoder();
    let others = added.iter().filter(|(_, token)| token.special).map(|(&id, _)| id);
    for id in others.chain([pad, unk, cls, sep, mask]) {
        if let Some(role) = roles.get_mut(id as usize) {
            *role = Role::Special;
        }
    }
    roles
}

/// vocab.txt: line = id. Of a token that stands twice, the later line counts, as in transformers.
fn read_vocab(path: &Path) -> Result<HashMap<String, u32>> {
    let text = read(path)?;
    let text = text.strip_suffix('\n').unwrap_or(&text);
    Ok(text.split('\n').zip(0..).map(|(line, id)| (line.trim_end_matches('\r').to_owned(), id)).collect())
}

/// The special tokens' names in the order of [`SPECIAL_TOKENS`].
fn names(config: Option<&Map<String, Value>>, map: &Map<String, Value>) -> [String; 5] {
    SPECIAL_TOKENS.map(|(name, default)| name_of(config, map, name).unwrap_or_else(|| default.to_owned()))
}

/// A special token's name: a string, or an object with `content`.
fn name_of(config: Option<&Map<String, Value>>, map: &Map<String, Value>, name: &str) -> Option<String> {
    let content = |value: &Value| value.as_str().or_else(|| value["content"].as_str()).map(str::to_owned);
    config.and_then(|c| c.get(name)).and_then(content).or_else(|| map.get(name).and_then(content))
}

fn read(path: &Path) -> Result<String> {
    let bytes = std::fs::read(path).map_err(|source| Error::Io { path: path.to_owned(), source })?;
    String::from_utf8(bytes).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        Error::File {
            path: path.to_owned(),
            why: format!("byte {at} is not UTF-8; the file is damaged, copy it again"),
        }
    })
}

fn read_json(path: &Path) -> Result<Map<String, Value>> {
    serde_json::from_str(&read(path)?)
        .map_err(|e| Error::File { path: path.to_owned(), why: format!("not a JSON object ({e}); copy it again") })
}

fn optional_json(path: &Path) -> Result<Option<Map<String, Value>>> {
    if path.exists() { read_json(path).map(Some) } else { Ok(None) }
}

fn pretty(value: &Value) -> String {
    format!("{value:#}\n")
}

fn write(path: &Path, text: &str) -> Result<()> {
    crate::disk::replace(path, text).map_err(|source| Error::Io { path: path.to_owned(), source })
}
