//! Token sets: written and read back, built from files, damaged in every way that has a name.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use handbert::data::token_set::{About, BuildOptions, BuildReport, Existing, TokenSetWriter, build, texts};
use handbert::data::{Error, RecordSpec, TokenSet, Tokenizer};

use crate::skip::skipped;

fn tokenizer() -> Tokenizer {
    Tokenizer::load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tokenizer/uncased")).unwrap()
}

/// Lengths that put samples before, on and after shard borders, with empty ones among them.
fn samples() -> Vec<(Vec<u32>, i32, u64)> {
    let sample =
        |i: u32| ((0..i * 7 % 23).map(|t| (i * 31 + t) % 1283).collect(), i as i32 % 3 - 1, u64::from(i) << 40 | 5);
    (0..200).map(sample).collect()
}

fn about() -> About {
    About { label_names: vec!["in_person".into(), "remote".into()], shard_bytes: 512, ..About::default() }
}

fn write(dir: &Path, about: About) -> TokenSet {
    let mut writer = TokenSetWriter::create(dir, &tokenizer(), about).unwrap();
    for (ids, label, group) in samples() {
        writer.push(&ids, label, group).unwrap();
    }
    writer.finish().unwrap()
}

fn read(set: &TokenSet, sample: u64) -> Vec<u32> {
    let mut ids = Vec::new();
    set.append_tokens(sample, 0, set.sample_len(sample).unwrap(), &mut ids).unwrap();
    ids
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn what_is_written_is_read_back_across_shards() {
    let dir = tempfile::tempdir().unwrap();
    for set in [write(&dir.path().join("set"), about()), TokenSet::open(&dir.path().join("set")).unwrap()] {
        set.verify().unwrap();
        assert!(set.meta().shards.len() > 5, "the test means to have several shards");
        assert_eq!(set.len(), 200);
        assert_eq!(set.tokens_total(), samples().iter().map(|s| s.0.len() as u64).sum::<u64>());
        for (i, (ids, label, group)) in (0..).zip(samples()) {
            assert_eq!(read(&set, i), ids);
            assert_eq!((set.label(i), set.group(i)), (label, group));
        }
        let mut part = vec![7];
        set.append_tokens(3, 5, 4, &mut part).unwrap();
        assert_eq!(part, [&[7], &samples()[3].0[5..9]].concat()[..]);
        assert!(set.append_tokens(3, 20, 2, &mut part).is_err());
        assert!(set.append_tokens(3, u32::MAX, 2, &mut part).is_err());
        assert!(set.sample_len(200).is_err() && set.sample_len(u64::MAX).is_err());
        assert_eq!(set.tokenizer().unwrap().fingerprint(), tokenizer().fingerprint());
    }
    assert_eq!(names(dir.path()), ["set"], "no temporary directory is left");
}

#[test]
fn a_set_without_labels_has_no_label_files() {
    let dir = tempfile::tempdir().unwrap();
    let set = write(&dir.path().join("set"), About { label_names: Vec::new(), ..about() });
    assert!(!names(set.dir()).iter().any(|name| name.starts_with("labels")));
    assert!((0..200).all(|i| set.label(i) == -1));
    set.verify().unwrap();
}

#[test]
fn ids_take_four_bytes_only_where_the_vocabulary_needs_them() {
    let dir = tempfile::tempdir().unwrap();
    let mut tokens: Vec<String> = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"].map(String::from).to_vec();
    for (size, bytes) in [(65_536usize, 2), (65_537, 4)] {
        tokens.extend((tokens.len()..size).map(|i| format!("t{i}")));
        let model = dir.path().join(format!("model{size}"));
        fs::create_dir(&model).unwrap();
        fs::write(model.join("vocab.txt"), tokens.join("\n")).unwrap();
        let tokenizer = Tokenizer::load(&model).unwrap();
        let mut writer =
            TokenSetWriter::create(&dir.path().join(format!("set{size}")), &tokenizer, About::default()).unwrap();
        let last = size as u32 - 1;
        writer.push(&[5, last, 6], -1, 0).unwrap();
        assert!(writer.push(&[last + 1], -1, 0).unwrap_err().to_string().contains("outside the vocabulary"));
        let set = writer.finish().unwrap();
        set.verify().unwrap();
        assert_eq!(read(&set, 0), [5, last, 6]);
        assert_eq!(fs::metadata(set.dir().join("tokens-00000.bin")).unwrap().len(), 3 * bytes);
    }
}

#[test]
fn an_unfinished_set_leaves_nothing_and_harms_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("set");
    let old = write(&target, about());
    let replace = About { existing: Existing::Replace, ..about() };
    let mut writer = TokenSetWriter::create(&target, &tokenizer(), replace.clone()).unwrap();
    writer.push(&[1, 2, 3], 0, 0).unwrap();
    assert_eq!(names(dir.path()).len(), 2);
    drop(writer);
    assert_eq!(names(dir.path()), ["set"]);
    TokenSet::open(&target).unwrap().verify().unwrap();
    assert_eq!(old.len(), 200);

    let mut writer = TokenSetWriter::create(&target, &tokenizer(), replace).unwrap();
    writer.push(&[1, 2, 3], 0, 0).unwrap();
    let new = writer.finish().unwrap();
    assert_eq!((new.len(), names(dir.path())), (1, vec!["set".to_owned()]));
    new.verify().unwrap();
    // The old set stays readable for whoever has it open.
    assert_eq!(read(&old, 3), samples()[3].0);
}

#[test]
fn targets_that_are_something_else_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let refused = |target: &Path, existing: Existing| {
        let error = TokenSetWriter::create(target, &tokenizer(), About { existing, ..about() }).err().unwrap();
        assert!(matches!(error, Error::File { .. }), "{error}");
        error.to_string()
    };
    let set = dir.path().join("set");
    write(&set, about());
    assert!(refused(&set, Existing::Refuse).contains("--overwrite"));
    let thesis = dir.path().join("thesis");
    fs::create_dir(&thesis).unwrap();
    fs::write(thesis.join("chapter1.tex"), "…").unwrap();
    assert!(refused(&thesis, Existing::Replace).contains("neither empty nor a token set"));
    assert!(refused(&thesis.join("chapter1.tex"), Existing::Replace).contains("a file stands here"));
    assert_eq!(names(&thesis), ["chapter1.tex"]);
    // A meta.json of another kind, or a file put beside a set: what is not ours is never deleted.
    fs::write(thesis.join("meta.json"), "{}").unwrap();
    fs::write(set.join("notes.txt"), "…").unwrap();
    assert!(refused(&thesis, Existing::Replace).contains("chapter1.tex"));
    assert!(refused(&set, Existing::Replace).contains("notes.txt"));
    assert_eq!(names(&thesis), ["chapter1.tex", "meta.json"]);
    let empty = dir.path().join("empty");
    fs::create_dir(&empty).unwrap();
    assert_eq!(write(&empty, about()).len(), 200);
    #[cfg(unix)]
    {
        let (disk, link) = (dir.path().join("disk"), dir.path().join("link"));
        fs::create_dir(&disk).unwrap();
        std::os::unix::fs::symlink(&disk, &link).unwrap();
        assert_eq!(write(&link, about()).len(), 200);
        assert_eq!(TokenSet::open(&disk).unwrap().len(), 200);
        assert!(link.is_symlink());
    }
    assert_eq!(write(&dir.path().join("new/deep/set"), about()).len(), 200);
}

#[test]
fn a_flipped_byte_is_found_wherever_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let set = write(&dir.path().join("set"), about());
    let set = set.dir().to_owned();
    for name in names(&set) {
        let path = set.join(&name);
        let good = fs::read(&path).unwrap();
        // All over the file, the ends included.
        for at in (0..good.len()).step_by(good.len().div_ceil(10)).chain([good.len() - 2, good.len() - 1]) {
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            fs::write(&path, bad).unwrap();
            let found = TokenSet::open(&set).and_then(|set| set.verify());
            let error = found.expect_err(&format!("byte {at} of {name}"));
            let text = error.to_string();
            assert!(matches!(error, Error::File { .. }) && text.contains(&name), "{name}: {text}");
            assert!(text.contains("handbert tokenize"), "{text}");
        }
        fs::write(&path, good).unwrap();
    }
    TokenSet::open(&set).unwrap().verify().unwrap();
}

#[test]
fn missing_shortened_and_foreign_files_are_named_on_opening() {
    let dir = tempfile::tempdir().unwrap();
    let set = write(&dir.path().join("set"), about()).dir().to_owned();
    let open = || TokenSet::open(&set).map(|_| ()).unwrap_err().to_string();
    for name in names(&set) {
        let path = set.join(&name);
        let good = fs::read(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let missing = open();
        // Of the description, more than its last line break.
        fs::write(&path, &good[..good.len() - if name == "meta.json" { 9 } else { 1 }]).unwrap();
        let shortened = open();
        fs::write(&path, &good).unwrap();
        if name == "meta.json" {
            assert!(missing.contains("no meta.json, so this is no token set"), "{missing}");
            assert!(shortened.contains("not the description of a token set"), "{shortened}");
        } else {
            assert!(missing.contains(&name) && missing.contains("missing"), "{missing}");
            let expected = format!("it has {} bytes, expected {}", good.len() - 1, good.len());
            assert!(shortened.contains(&name) && shortened.contains(&expected), "{shortened}");
        }
    }
    let meta = fs::read_to_string(set.join("meta.json")).unwrap();
    for (from, to, wanted) in [
        ("\"version\": 1", "\"version\": 2", "field \"version\" is 2, expected 1"),
        ("handbert token set", "parquet", "field \"format\" is \"parquet\", expected \"handbert token set\""),
        ("\"samples\": 200", "\"samples\": 201", "field \"checksum\""),
        ("\"dtype\": \"u16\"", "\"dtype\": \"u8\"", "unknown variant `u8`"),
        ("{", "[", "not the description of a token set"),
    ] {
        fs::write(set.join("meta.json"), meta.replacen(from, to, 1)).unwrap();
        let error = open();
        assert!(error.contains(wanted) && error.contains("handbert tokenize"), "{error}");
    }
    assert!(TokenSet::open(&set.join("meta.json")).is_err());
}

#[test]
fn damaged_offsets_are_errors_and_never_panics() {
    let dir = tempfile::tempdir().unwrap();
    let set = write(&dir.path().join("set"), About { shard_bytes: 1 << 30, ..about() }).dir().to_owned();
    let path = set.join("offsets-00000.bin");
    let good = fs::read(&path).unwrap();
    for value in [u64::MAX, u64::MAX / 2, 1 << 33, 0] {
        let mut bad = good.clone();
        bad[50 * 8..51 * 8].copy_from_slice(&value.to_le_bytes());
        fs::write(&path, bad).unwrap();
        // Lengths are right, so it opens; what the offset touches fails, the rest is readable.
        let set = TokenSet::open(&set).unwrap();
        assert!(set.verify().is_err());
        let mut out = Vec::new();
        let errors = (0..set.len()).filter(|&i| {
            let read = set.sample_len(i).and_then(|len| set.append_tokens(i, 0, len, &mut out));
            read.is_err_and(|e| {
                e.to_string().contains("the offsets are damaged") && e.to_string().contains("handbert tokenize")
            })
        });
        let errors: Vec<u64> = errors.collect();
        assert!(errors == [49, 50] || (value == 0 && errors == [49]), "{errors:?}");
    }
}

#[test]
fn another_vocabulary_is_an_error_that_names_both() {
    let dir = tempfile::tempdir().unwrap();
    let set = write(&dir.path().join("set"), about());
    set.check_tokenizer(&tokenizer()).unwrap();
    let cased = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tokenizer/cased");
    let error = set.check_tokenizer(&Tokenizer::load(&cased).unwrap()).unwrap_err().to_string();
    assert!(error.contains("another vocabulary") && error.contains("1283") && error.contains("1335"), "{error}");
}

/// A set whose files are holes of 100 GiB in all, with the checksums of nothing.
#[test]
fn a_hundred_gigabytes_open_in_milliseconds() {
    let dir = tempfile::tempdir().unwrap();
    let set = write(&dir.path().join("set"), About { label_names: Vec::new(), shard_bytes: 1 << 30, ..about() })
        .dir()
        .to_owned();
    let mut meta: serde_json::Value = serde_json::from_slice(&fs::read(set.join("meta.json")).unwrap()).unwrap();
    let (samples, tokens, shards) = (1u64 << 20, 1u64 << 29, 100u64);
    for shard in 0..shards {
        for (part, bytes) in [("tokens", tokens * 2), ("offsets", (samples + 1) * 8), ("groups", samples * 8)] {
            let name = format!("{part}-{shard:05}.bin");
            let Ok(()) = fs::File::create(set.join(&name)).and_then(|file| file.set_len(bytes)) else {
                return skipped(format_args!("no sparse files in {}", set.display()));
            };
            meta["files"][name] = serde_json::json!({"bytes": bytes, "xxh3": "0000000000000000"});
        }
    }
    meta["shards"] = (0..shards).map(|_| serde_json::json!({"samples": samples, "tokens": tokens})).collect();
    meta["samples"] = (samples * shards).into();
    meta["tokens"] = (tokens * shards).into();
    let open = |meta: &serde_json::Value| {
        fs::write(set.join("meta.json"), meta.to_string()).unwrap();
        let start = Instant::now();
        (TokenSet::open(&set), start.elapsed())
    };
    // The checksum of a description is in the error that misses it.
    let error = open(&meta).0.unwrap_err().to_string();
    let checksum = error.split("expected ").nth(1).unwrap().split(';').next().unwrap();
    meta["checksum"] = checksum.into();
    let (opened, mut took) = open(&meta);
    let opened = opened.unwrap();
    for _ in 0..4 {
        took = took.min(open(&meta).1);
    }
    assert_eq!((opened.len(), opened.tokens_total() * 2), (samples * shards, 100 << 30));
    assert_eq!(opened.sample_len(77_000_000).unwrap(), 0);
    eprintln!("opened 100 GiB in {took:?}");
    // The least of five: a busy machine pauses us now and then.
    assert!(took.as_millis() < 50, "{took:?}");
}

// ---- build: files -> token set

struct Files(tempfile::TempDir);

impl Files {
    fn new() -> Files {
        Files(tempfile::tempdir().unwrap())
    }

    fn file(&self, name: &str, contents: &[u8]) -> PathBuf {
        let path = self.0.path().join(name);
        fs::write(&path, contents).unwrap();
        path
    }

    fn out(&self) -> PathBuf {
        self.0.path().join("set")
    }

    fn build(&self, files: &[PathBuf], options: &BuildOptions) -> Result<(BuildReport, TokenSet), Error> {
        let report = build(files, &tokenizer(), options, &self.out(), &|_| ())?;
        let set = TokenSet::open(&self.out())?;
        set.verify()?;
        Ok((report, set))
    }
}

fn labelled() -> BuildOptions {
    let spec = RecordSpec {
        text_columns: vec!["title".into(), "text".into()],
        label_column: Some("label".into()),
        group_column: Some("company".into()),
    };
    BuildOptions { spec, existing: Existing::Replace, ..BuildOptions::default() }
}

const CSV: &[u8] = b"title,text,label,company\n\
    Nurse,\"Remote work,\nfull time\",remote,A\n\
    Sales,onsite job,in_person,B\n\
    ,,remote,A\n\
    Cook,kitchen staff,,C\n";

#[test]
fn rows_become_samples_with_sorted_labels_and_shared_groups() {
    let files = Files::new();
    let second = "{\"title\": \"x\", \"text\": \"later file\", \"label\": \"hybrid\", \"company\": \"B\"}\n";
    let inputs = [files.file("a.csv", CSV), files.file("b.jsonl", second.as_bytes())];
    let (report, set) = files.build(&inputs, &labelled()).unwrap();
    assert_eq!((report.rows, report.bad_rows, report.empty, report.unlabelled), (5, 0, 1, 1));
    let counts = [("hybrid", 1), ("in_person", 1), ("remote", 2)].map(|(name, count)| (name.to_owned(), count));
    assert_eq!(report.labels, counts);
    assert_eq!(set.meta().label_names, ["hybrid", "in_person", "remote"]);
    assert_eq!((0..5).map(|i| set.label(i)).collect::<Vec<_>>(), [2, 1, 2, -1, 0]);
    assert_eq!((set.group(0), set.group(1)), (set.group(2), set.group(4)));
    assert_ne!(set.group(0), set.group(1));
    assert_eq!(read(&set, 0), tokenizer().encode("Nurse Remote work,\nfull time").unwrap());
    assert_eq!(report.tokens, set.tokens_total());
    assert_eq!(set.meta().text_columns, ["title", "text"]);
    assert_eq!(set.meta().label_column.as_deref(), Some("label"));
}

#[test]
fn labels_that_are_given_keep_their_order_and_others_are_bad_rows() {
    let files = Files::new();
    let mut rows = CSV.to_vec();
    for i in 0..7 {
        rows.extend(format!("t,x{i},maybe,D\n").bytes());
    }
    let names = vec!["remote".to_owned(), "in_person".to_owned()];
    let options = BuildOptions { labels: Some(names.clone()), ..labelled() };
    let (report, set) = files.build(&[files.file("postings.csv", &rows)], &options).unwrap();
    assert_eq!((report.rows, report.bad_rows, report.first_bad.len()), (4, 7, 5));
    let first = &report.first_bad[0];
    assert!(
        first.contains("postings.csv:7: label \"maybe\" is not one of [remote, in_person]; add it with --labels"),
        "{first}"
    );
    assert_eq!(set.meta().label_names, names);
    assert_eq!((0..4).map(|i| set.label(i)).collect::<Vec<_>>(), [0, 1, 0, -1]);
    let twice = BuildOptions { labels: Some(vec!["a".into(), "a".into()]), ..labelled() };
    assert!(files.build(&[files.file("postings.csv", CSV)], &twice).unwrap_err().to_string().contains("named twice"));
}

#[test]
fn bad_rows_are_skipped_and_named_in_order() {
    let files = Files::new();
    let rows: String = (0..10_000)
        .map(|i| if i % 1000 == 999 { "{broken\n".to_owned() } else { format!("{{\"text\": \"remote work {i}\"}}\n") })
        .collect();
    let input = files.file("rows.jsonl", rows.as_bytes());
    let (report, set) = files.build(std::slice::from_ref(&input), &BuildOptions::default()).unwrap();
    assert_eq!((report.rows, report.bad_rows, set.len()), (9990, 10, 9990));
    let lines: Vec<bool> =
        (1..=5).map(|n| report.first_bad[n - 1].contains(&format!("rows.jsonl:{}: ", n * 1000))).collect();
    assert_eq!(lines, [true; 5], "{:?}", report.first_bad);
    assert_eq!(report.text_columns, ["text"], "inferred");
    assert_eq!(read(&set, 5000), tokenizer().encode("remote work 5005").unwrap());

    // The same bytes on one thread.
    let meta = set.meta().files.clone();
    let one = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    let options = BuildOptions { existing: Existing::Replace, ..BuildOptions::default() };
    let again = one.install(|| files.build(&[input], &options)).unwrap();
    assert_eq!((again.0, &again.1.meta().files), (report, &meta));
}

#[test]
fn a_limit_ends_the_reading_early() {
    let files = Files::new();
    let rows: String = (0..50_000).map(|i| format!("{{\"text\": \"remote work {i}\"}}\n")).collect();
    let input = files.file("rows.jsonl", rows.as_bytes());
    for limit in [0, 1, 4096, 4097] {
        let options = BuildOptions { limit: Some(limit), existing: Existing::Replace, ..BuildOptions::default() };
        let (report, set) = files.build(std::slice::from_ref(&input), &options).unwrap();
        assert_eq!((report.rows, set.len()), (limit, limit));
    }
    let spec = RecordSpec::default();
    assert_eq!(texts(&[input], &spec, Some(12)).unwrap().count(), 12);
}

#[test]
fn fatal_errors_say_how_far_it_came_and_leave_nothing() {
    use std::io::Write;
    let files = Files::new();
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    for i in 0..20_000 {
        writeln!(gz, "{{\"text\": \"remote work {i} {}\"}}", i * 7919 % 10_007).unwrap();
    }
    let whole = gz.finish().unwrap();
    let truncated = files.file("cut.jsonl.gz", &whole[..whole.len() / 2]);
    let error = files.build(&[truncated], &BuildOptions::default()).unwrap_err().to_string();
    let rows: u64 = error.split("(after ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
    assert!(error.contains("cut.jsonl.gz") && (5_000..15_000).contains(&rows), "{error}");
    assert_eq!(names(files.0.path()), ["cut.jsonl.gz"]);

    // A column that only the second file lacks, and an earlier set that stays.
    let (_, earlier) = files.build(&[files.file("a.csv", CSV)], &labelled()).unwrap();
    let inputs = [files.file("a.csv", CSV), files.file("b.csv", b"title,text\nx,y\n")];
    let error = files.build(&inputs, &labelled()).unwrap_err().to_string();
    assert!(
        error.contains("b.csv") && error.contains("\"label\"") && error.contains("(after 4 rows; nothing was written)"),
        "{error}"
    );
    assert_eq!(TokenSet::open(earlier.dir()).unwrap().meta(), earlier.meta());
    earlier.verify().unwrap();

    let many: String = (0..1500).map(|i| format!("t,x,label{i},c\n")).collect();
    let input = files.file("many.csv", format!("title,text,label,company\n{many}").as_bytes());
    let error = files.build(&[input], &labelled()).unwrap_err().to_string();
    assert!(error.contains("column \"label\" has more than 1000 different values"), "{error}");
    let error = files.build(&[], &labelled()).unwrap_err().to_string();
    assert!(error.contains("no input files"), "{error}");
}

#[test]
fn a_raised_stop_ends_it() {
    let files = Files::new();
    let input = files.file("a.csv", CSV);
    let stop = Some(std::sync::Arc::new(std::sync::atomic::AtomicBool::new(true)));
    let error = files.build(&[input], &BuildOptions { stop, ..labelled() }).unwrap_err().to_string();
    assert_eq!(error, "interrupted after 4 rows; nothing was written");
    assert_eq!(names(files.0.path()), ["a.csv"]);
}
