//! Packing: every token once an epoch, batches full, resumed exactly.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use handbert::data::pack::{Cursor, Empty, LabelNeed, Long, PackPlan, Packer, Packing, Shuffle, count_batches};
use handbert::data::split::Subset;
use handbert::data::token_set::{BuildOptions, build, texts};
use handbert::data::{PackedBatch, RecordSpec, TokenSet, Tokenizer};

use crate::corpus::{epoch, lengths, plan, sequence, set_of, token, tokenizer};
use crate::skip::skipped;

#[test]
fn every_token_of_every_posting_is_seen_once_an_epoch() {
    let dir = tempfile::tempdir().unwrap();
    let lengths = lengths(3000);
    let set = set_of(dir.path(), &lengths);
    let special = tokenizer().special();
    for (subset, shuffle) in
        [(Subset::All, Shuffle::Sequential), (Subset::Train, plan().shuffle), (Subset::Held, plan().shuffle)]
    {
        let plan = PackPlan { subset, shuffle, ..plan() };
        let (batches, _, counts) = epoch(&set, &plan, Cursor::start(0));
        let mut seen: HashMap<(u64, u32), u32> = HashMap::new();
        for batch in &batches {
            for (i, piece) in batch.pieces.iter().enumerate() {
                let ids = sequence(batch, i);
                assert_eq!(
                    (ids[0], ids[ids.len() - 1]),
                    (special.cls, special.sep),
                    "framed, and nothing of another posting within"
                );
                assert_eq!(ids.len(), piece.len as usize + 2);
                for (position, &id) in (piece.start..).zip(&ids[1..ids.len() - 1]) {
                    assert_eq!(id, token(piece.sample, position));
                    *seen.entry((piece.sample, position)).or_default() += 1;
                }
                assert_eq!(batch.labels[i], set.label(piece.sample));
                assert_eq!((batch.draws[i].index, batch.draws[i].position), (piece.sample, piece.start));
            }
        }
        let members: Vec<u64> = (0..set.len()).filter(|&s| plan.split.contains(subset, set.group(s))).collect();
        let tokens: u64 = members.iter().map(|&s| u64::from(lengths[s as usize])).sum();
        assert_eq!(seen.len() as u64, tokens);
        assert!(seen.values().all(|&times| times == 1));
        let empty = members.iter().filter(|&&s| lengths[s as usize] == 0).count() as u64;
        let cut = members.iter().filter(|&&s| lengths[s as usize] > 62).count() as u64;
        assert_eq!((counts.samples, counts.empty, counts.cut), (members.len() as u64 - empty, empty, cut));
        assert_eq!((counts.batches, counts.tokens), (batches.len() as u64, tokens + 2 * counts.pieces));
        assert_eq!(count_batches(&set, &plan, 0).unwrap(), batches.len() as u64);
    }
}

#[test]
fn no_piece_waits_for_ever() {
    let dir = tempfile::tempdir().unwrap();
    let set = set_of(dir.path(), &lengths(20_000));
    let plan = PackPlan { shuffle: Shuffle::Sequential, ..plan() };
    let (batches, _, _) = epoch(&set, &plan, Cursor::start(0));
    // The oldest waiting piece goes into every batch, so with 1,024 waiting none is later by more than that.
    let mut oldest_missing = 0;
    let mut packed = vec![false; set.len() as usize];
    for (number, batch) in batches.iter().enumerate() {
        let last = number + 1 == batches.len();
        batch.pieces.iter().for_each(|piece| packed[piece.sample as usize] = true);
        let youngest = batch.pieces.iter().map(|piece| piece.sample).max().unwrap();
        while packed.get(oldest_missing as usize).is_some_and(|&p| p || set.sample_len(oldest_missing).unwrap() == 0) {
            oldest_missing += 1;
        }
        assert!(youngest < oldest_missing + 1024 + 64 || last, "{youngest} packed before {oldest_missing}");
    }
}

#[test]
fn resuming_at_any_batch_goes_on_exactly() {
    let dir = tempfile::tempdir().unwrap();
    let set = set_of(dir.path(), &lengths(6000));
    for packing in [Packing::Documents, Packing::Chunks { length: 50 }] {
        let plan = PackPlan { packing, subset: Subset::Train, ..plan() };
        let special = tokenizer().special();
        let mut packer = Packer::new(&set, &plan, special, Cursor::start(3)).unwrap();
        let mut steps = Vec::new();
        // Over the end of one epoch and into the next.
        while packer.cursor().epoch < 4 || steps.len() % 7 != 0 {
            let cursor: Cursor = serde_json::from_str(&serde_json::to_string(&packer.cursor()).unwrap()).unwrap();
            let mut batch = PackedBatch::default();
            let filled = packer.next(&mut batch).unwrap();
            steps.push((cursor, filled, batch));
        }
        assert!(steps.len() > 150);
        for at in (0..steps.len()).step_by(37).chain([steps.len() - 1]) {
            let mut resumed = Packer::new(&set, &plan, special, steps[at].0.clone()).unwrap();
            for (number, (cursor, filled, batch)) in steps[at..].iter().take(60).enumerate() {
                assert_eq!(&resumed.cursor(), cursor, "{packing:?}, {number} after {at}");
                let mut again = PackedBatch::default();
                assert_eq!(resumed.next(&mut again).unwrap(), *filled);
                assert_eq!(&again, batch, "{packing:?}, {number} after {at}");
            }
        }
    }
}

#[test]
fn epochs_differ_and_repeat() {
    let dir = tempfile::tempdir().unwrap();
    let set = set_of(dir.path(), &lengths(500));
    let first = |n| epoch(&set, &plan(), Cursor::start(n)).0;
    assert_eq!(first(0), first(0));
    assert_ne!(first(0), first(1));
    assert_ne!(
        first(0),
        epoch(&set, &PackPlan { shuffle: Shuffle::Shuffled { seed: 43 }, ..plan() }, Cursor::start(0)).0
    );
    let (_, cursor, _) = epoch(&set, &plan(), Cursor::start(0));
    assert_eq!(cursor, Cursor::start(1));
}

#[test]
fn a_classifier_sees_each_labelled_posting_once_empty_ones_too() {
    let dir = tempfile::tempdir().unwrap();
    let lengths = lengths(1000);
    let set = set_of(dir.path(), &lengths);
    let special = tokenizer().special();
    for long in [Long::Truncate, Long::HeadTail] {
        let plan = PackPlan { long, need: LabelNeed::Labelled, empty: Empty::Keep, ..plan() };
        let (batches, _, counts) = epoch(&set, &plan, Cursor::start(0));
        let mut samples = Vec::new();
        for batch in &batches {
            for (i, piece) in batch.pieces.iter().enumerate() {
                samples.push(piece.sample);
                assert!(batch.labels[i] >= 0);
                let whole = lengths[piece.sample as usize];
                let shown: Vec<u32> = match (long, whole > 62) {
                    (Long::HeadTail, true) => (0..31).chain(whole - 31..whole).collect(),
                    _ => (0..whole.min(62)).collect(),
                };
                let body: Vec<u32> = shown.into_iter().map(|t| token(piece.sample, t)).collect();
                assert_eq!(sequence(batch, i), [vec![special.cls], body, vec![special.sep]].concat());
            }
        }
        samples.sort_unstable();
        let labelled: Vec<u64> = (0..1000).filter(|&s| set.label(s) >= 0).collect();
        assert_eq!(samples, labelled);
        assert_eq!((counts.samples, counts.unlabelled), (labelled.len() as u64, 1000 - labelled.len() as u64));
        let long: Vec<u64> = labelled.iter().map(|&s| u64::from(lengths[s as usize])).filter(|&l| l > 62).collect();
        assert_eq!((counts.truncated, counts.tokens_left_out), (long.len() as u64, long.iter().map(|l| l - 62).sum()));
    }
}

#[test]
fn windows_cover_every_token_and_keep_their_posting() {
    let dir = tempfile::tempdir().unwrap();
    let lengths = lengths(300);
    let set = set_of(dir.path(), &lengths);
    let plan = PackPlan { long: Long::Windows { stride: 40 }, empty: Empty::Keep, ..plan() };
    let (batches, _, _) = epoch(&set, &plan, Cursor::start(0));
    let mut covered: Vec<Vec<bool>> = lengths.iter().map(|&l| vec![false; l as usize]).collect();
    for piece in batches.iter().flat_map(|b| &b.pieces) {
        let range = piece.start as usize..(piece.start + piece.len) as usize;
        assert!(piece.len == 62 || lengths[piece.sample as usize] == piece.len, "windows are full");
        covered[piece.sample as usize][range].fill(true);
    }
    assert!(covered.iter().flatten().all(|&c| c));
}

#[test]
fn capacities_and_limits_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let set = set_of(dir.path(), &lengths(800));
    for max_sequences in [1, 2, 3, 7] {
        let (batches, _, _) = epoch(&set, &PackPlan { max_sequences, ..plan() }, Cursor::start(0));
        assert!(batches.iter().any(|b| b.sequences() == max_sequences));
        assert_eq!(count_batches(&set, &PackPlan { max_sequences, ..plan() }, 0).unwrap(), batches.len() as u64);
    }
    let limited = PackPlan { limit: Some(10), empty: Empty::Keep, ..plan() };
    let (batches, _, counts) = epoch(&set, &limited, Cursor::start(0));
    assert!(batches.iter().flat_map(|b| &b.pieces).all(|piece| piece.sample < 10));
    assert_eq!(counts.samples, 10);
    // The tightest batch: one whole sequence.
    let tight = PackPlan { batch_tokens: 64, ..plan() };
    let (batches, _, _) = epoch(&set, &tight, Cursor::start(0));
    assert!(!batches.is_empty());
}

#[test]
fn an_epoch_without_batches_is_an_error_not_a_loop() {
    let dir = tempfile::tempdir().unwrap();
    let set = set_of(dir.path(), &[0, 0, 0]);
    for packing in [Packing::Documents, Packing::Chunks { length: 50 }] {
        let plan = PackPlan { packing, ..plan() };
        let mut packer = Packer::new(&set, &plan, tokenizer().special(), Cursor::start(0)).unwrap();
        let error = packer.next(&mut PackedBatch::default()).unwrap_err().to_string();
        assert!(error.contains("nothing to pack") && error.contains("3 samples"), "{error}");
        assert_eq!(count_batches(&set, &plan, 0).unwrap(), 0);
    }
}

#[test]
fn a_cursor_of_other_data_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let set = set_of(dir.path(), &lengths(100));
    let piece = |sample, start, len| vec![handbert::data::Piece { sample, start, len }];
    let cursors = [
        (101, Vec::new()),
        (5, piece(100, 0, 1)),
        (5, piece(1, 0, 61)),
        (5, piece(1, u32::MAX, 1)),
        (5, piece(1, 0, 400)),
    ];
    for (next, pending) in cursors {
        let cursor = Cursor { epoch: 0, next, pending };
        let packed = Packer::new(&set, &plan(), tokenizer().special(), cursor.clone());
        assert!(packed.is_err(), "{cursor:?}");
    }
}

#[test]
fn chunks_are_the_row_of_all_postings_cut_at_every_length() {
    let dir = tempfile::tempdir().unwrap();
    let lengths = lengths(700);
    let set = set_of(dir.path(), &lengths);
    let special = tokenizer().special();
    for (subset, length, batch_tokens) in
        [(Subset::All, 50, 250), (Subset::Train, 64, 64), (Subset::Held, 3, 100), (Subset::Train, 7, 256)]
    {
        let plan = PackPlan { packing: Packing::Chunks { length }, subset, batch_tokens, ..plan() };
        let mut row = Vec::new();
        for sample in (0..set.len()).filter(|&s| plan.split.contains(subset, set.group(s)) && lengths[s as usize] > 0) {
            row.push((special.cls, sample, 0));
            row.extend((0..lengths[sample as usize]).map(|t| (token(sample, t), sample, t)));
            row.push((special.sep, sample, lengths[sample as usize]));
        }
        let (batches, _, counts) = epoch(&set, &plan, Cursor::start(0));
        let mut seen = vec![false; row.len().div_ceil(length)];
        for batch in &batches {
            for i in 0..batch.sequences() {
                let chunk = batch.draws[i].index as usize;
                assert!(!std::mem::replace(&mut seen[chunk], true));
                let expected = &row[chunk * length..row.len().min((chunk + 1) * length)];
                assert!(sequence(batch, i).iter().eq(expected.iter().map(|(id, _, _)| id)), "chunk {chunk}");
                assert_eq!((batch.pieces[i].sample, batch.pieces[i].start), (expected[0].1, expected[0].2));
                assert_eq!((batch.draws[i].position, batch.labels[i]), (0, -1));
            }
        }
        assert!(seen.iter().all(|&s| s));
        assert_eq!((counts.tail_tokens, counts.tokens), ((row.len() % length) as u64, row.len() as u64));
        assert_eq!(count_batches(&set, &plan, 0).unwrap(), batches.len() as u64);
        assert_ne!(batches, epoch(&set, &plan, Cursor::start(1)).0);
    }
}

// ---- real postings

fn real(name: &str) -> Option<PathBuf> {
    let root = std::env::var_os("HANDBERT_DATA")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data"), PathBuf::from);
    let path = root.join(name);
    if !path.exists() {
        skipped(format_args!("no real postings at {}", path.display()));
        return None;
    }
    Some(path)
}

#[test]
fn batches_of_real_postings_are_full() {
    let corpora =
        [("hn_hiring/hn_hiring_2013_2018.jsonl.gz", "body"), ("indeed_remote/indeed_remote_2021.jsonl.gz", "text")];
    for (name, column) in corpora {
        let Some(file) = real(name) else { continue };
        let dir = tempfile::tempdir().unwrap();
        let files = [file];
        let spec = RecordSpec { text_columns: vec![column.to_owned()], ..RecordSpec::default() };
        let sample = texts(&files, &spec, Some(2000)).unwrap();
        let tokenizer = Tokenizer::train(sample, 20_000).unwrap();
        let options = BuildOptions { spec, ..BuildOptions::default() };
        let out = dir.path().join("set");
        build(&files, &tokenizer, &options, &out, &|_| ()).unwrap();
        let set = TokenSet::open(&out).unwrap();
        for max_length in [512, 128] {
            for batch_tokens in [2048, 4096, 16_384, 65_536] {
                let plan = PackPlan { max_length, batch_tokens, max_sequences: batch_tokens / 8, ..plan() };
                let (batches, _, counts) = epoch(&set, &plan, Cursor::start(0));
                assert_eq!(counts.tokens, set.tokens_total() + 2 * counts.pieces, "every token once");
                // The last batch of an epoch holds what is left over.
                let (last, full) = batches.split_last().unwrap();
                let fill = (counts.tokens - last.tokens() as u64) as f64 / (full.len() * batch_tokens) as f64;
                let fewest = counts.tokens.div_ceil(batch_tokens as u64);
                eprintln!(
                    "{name} L {max_length} N {batch_tokens}: fill {fill:.5}, {} batches, at least {fewest}",
                    batches.len()
                );
                assert!(fill >= 0.9997, "{name} L {max_length} N {batch_tokens}: {fill}");
                assert!(batches.len() as u64 <= fewest + fewest / 100 + 1);
            }
        }
    }
}
