//! Masks: 15 % hidden, 80/10/10, special tokens never, the same whatever stands around.

use std::collections::HashMap;

use handbert::data::mask::{MaskUnit, Masker};
use handbert::data::pack::{Cursor, PackPlan, Shuffle};
use handbert::data::{DrawKey, MaskedBatch, PackedBatch, TokenSet};

use crate::corpus::{epoch, lengths, plan, sequence, set_of, tokenizer};

fn masked(set: &TokenSet, plan: &PackPlan, masker: &Masker, mask_epoch: u32) -> Vec<(PackedBatch, MaskedBatch)> {
    let hide = |packed: PackedBatch| {
        let mut batch = MaskedBatch { packed: packed.clone(), ..MaskedBatch::default() };
        assert_eq!(masker.mask(mask_epoch, &mut batch), 0, "eight standard deviations are enough");
        (packed, batch)
    };
    epoch(set, plan, Cursor::start(0)).0.into_iter().map(hide).collect()
}

#[test]
fn fifteen_percent_are_hidden_eighty_ten_ten() {
    let dir = tempfile::tempdir().unwrap();
    let set = set_of(dir.path(), &lengths(20_000));
    let tokenizer = tokenizer();
    let plan = PackPlan { batch_tokens: 4096, max_sequences: 512, ..plan() };
    let masker = Masker::new(0.15, 7, MaskUnit::Token, &tokenizer);
    let (mut ordinary, mut hidden, mut shown_mask, mut same) = (0u64, 0u64, 0u64, 0u64);
    let mut random: HashMap<u32, u64> = HashMap::new();
    for (before, after) in masked(&set, &plan, &masker, 0) {
        ordinary += before.ids.iter().filter(|&&id| !tokenizer.is_special(id)).count() as u64;
        hidden += after.masked_rows.len() as u64;
        assert!(after.masked_rows.len() <= masker.capacity(before.tokens()));
        assert!(after.masked_rows.is_sorted_by(|a, b| a < b));
        let mut restored = after.packed.clone();
        for (&row, &target) in after.masked_rows.iter().zip(&after.targets) {
            assert!(!tokenizer.is_special(target));
            match after.packed.ids[row as usize] {
                id if id == tokenizer.special().mask => shown_mask += 1,
                id if id == target => same += 1,
                id => *random.entry(id).or_default() += 1,
            }
            restored.ids[row as usize] = target;
        }
        assert_eq!(restored, before, "nothing else is changed");
    }
    let within = |count: u64, of: u64, p: f64| {
        let sigma = (of as f64 * p * (1.0 - p)).sqrt();
        assert!((count as f64 - of as f64 * p).abs() < 5.0 * sigma, "{count} of {of}, expected {p}");
    };
    assert!(ordinary > 500_000);
    within(hidden, ordinary, 0.15);
    within(shown_mask, hidden, 0.8);
    within(random.values().sum(), hidden, 0.1 * 1277.0 / 1278.0);
    within(same, hidden, 0.1 + 0.1 / 1278.0);
    // Uniform over the 1,278 ordinary tokens, [unused] ones included, special ones never.
    assert!(random.keys().all(|&id| !tokenizer.is_special(id)));
    let (draws, kinds) = (random.values().sum::<u64>() as f64, 1278.0);
    let chi: f64 = (0..1283)
        .filter(|&id| !tokenizer.is_special(id))
        .map(|id| (random.get(&id).copied().unwrap_or(0) as f64 - draws / kinds).powi(2) * kinds / draws)
        .sum();
    assert!((chi - kinds).abs() < 6.0 * (2.0 * kinds).sqrt(), "{chi} for {kinds} kinds");
}

#[test]
fn what_is_hidden_does_not_depend_on_the_batch() {
    let dir = tempfile::tempdir().unwrap();
    let set = set_of(dir.path(), &lengths(2000));
    let masker = Masker::new(0.15, 7, MaskUnit::Token, &tokenizer());
    let collect = |plan: &PackPlan, masker: &Masker, mask_epoch: u32| {
        let mut hidden: Vec<(u64, u32, u32)> = Vec::new();
        for (before, after) in masked(&set, plan, masker, mask_epoch) {
            for &row in &after.masked_rows {
                let i = before.cu_seqlens.partition_point(|&end| end <= row) - 1;
                let position = before.draws[i].position + row - before.cu_seqlens[i];
                hidden.push((before.draws[i].index, position, after.packed.ids[row as usize]));
            }
        }
        hidden.sort_unstable();
        hidden
    };
    let base = collect(&plan(), &masker, 5);
    let others = [
        PackPlan { batch_tokens: 1000, ..plan() },
        PackPlan { max_sequences: 3, ..plan() },
        PackPlan { shuffle: Shuffle::Sequential, ..plan() },
        // Cut elsewhere, too: positions are those in the sample.
        PackPlan { max_length: 40, ..plan() },
    ];
    for other in &others {
        assert_eq!(base, collect(other, &masker, 5));
    }
    assert_ne!(base, collect(&plan(), &masker, 6));
    assert_ne!(base, collect(&plan(), &Masker::new(0.15, 8, MaskUnit::Token, &tokenizer()), 5));
    assert_eq!(collect(&plan(), &masker, Masker::EVAL_EPOCH), collect(&others[2], &masker, Masker::EVAL_EPOCH));
}

#[test]
fn none_and_all_can_be_hidden() {
    let dir = tempfile::tempdir().unwrap();
    let set = set_of(dir.path(), &lengths(300));
    let tokenizer = tokenizer();
    for unit in [MaskUnit::Token, MaskUnit::WholeWord] {
        for (before, after) in masked(&set, &plan(), &Masker::new(0.0, 7, unit, &tokenizer), 0) {
            assert_eq!((after.masked_rows.len(), after.packed), (0, before));
        }
        for (before, after) in masked(&set, &plan(), &Masker::new(1.0, 7, unit, &tokenizer), 0) {
            let ordinary = (0u32..).zip(&before.ids).filter(|&(_, &id)| !tokenizer.is_special(id));
            let (rows, targets): (Vec<u32>, Vec<u32>) = ordinary.unzip();
            assert_eq!((after.masked_rows, after.targets), (rows, targets));
        }
    }
}

#[test]
fn whole_words_are_hidden_whole() {
    let dir = tempfile::tempdir().unwrap();
    let set = set_of(dir.path(), &lengths(6000));
    let tokenizer = tokenizer();
    let masker = Masker::new(0.15, 7, MaskUnit::WholeWord, &tokenizer);
    let (mut words, mut hidden_words, mut long_hidden) = (0u64, 0u64, 0u64);
    for (before, after) in masked(&set, &PackPlan { batch_tokens: 2048, ..plan() }, &masker, 0) {
        let mut hidden = vec![false; before.tokens()];
        after.masked_rows.iter().for_each(|&row| hidden[row as usize] = true);
        for i in 0..before.sequences() {
            let start = before.cu_seqlens[i] as usize;
            let ids = sequence(&before, i);
            let mut at = 1;
            while at < ids.len() - 1 {
                let end = at + 1 + ids[at + 1..].iter().take_while(|&&id| tokenizer.is_continuation(id)).count();
                let word = &hidden[start + at..start + end];
                assert!(word.iter().all(|&h| h == word[0]), "a word is hidden whole or not at all");
                words += 1;
                hidden_words += u64::from(word[0]);
                long_hidden += u64::from(word[0] && word.len() > 1);
                at = end;
            }
        }
    }
    assert!(long_hidden > 1000);
    let sigma = (words as f64 * 0.15 * 0.85).sqrt();
    assert!((hidden_words as f64 - words as f64 * 0.15).abs() < 5.0 * sigma, "{hidden_words} of {words}");
}

#[test]
fn ids_outside_the_vocabulary_are_left_alone() {
    let masker = Masker::new(1.0, 7, MaskUnit::WholeWord, &tokenizer());
    let mut batch = MaskedBatch::default();
    batch.packed.clear();
    batch.packed.ids = vec![101, u32::MAX, 1283, 500, 102];
    batch.packed.cu_seqlens.push(5);
    batch.packed.draws.push(DrawKey { index: 0, position: 0 });
    masker.mask(0, &mut batch);
    assert_eq!((batch.masked_rows, batch.targets), (vec![3], vec![500]));
}

#[test]
fn more_than_the_capacity_is_never_hidden() {
    let masker = Masker::new(0.15, 7, MaskUnit::WholeWord, &tokenizer());
    let continuation = (0..1283).find(|&id| tokenizer().is_continuation(id)).unwrap();
    let mut batch = MaskedBatch::default();
    let capacity = masker.capacity(1000);
    // One word of a thousand tokens: hidden whole, were there room for it.
    let left_out = (0..100).map(|sample| {
        batch.packed.clear();
        batch.packed.ids = vec![continuation; 1000];
        batch.packed.cu_seqlens.push(1000);
        batch.packed.draws.push(DrawKey { index: sample, position: 0 });
        let left_out = masker.mask(0, &mut batch);
        assert!(batch.masked_rows.len() + left_out == if left_out > 0 { 1000 } else { 0 });
        assert!(batch.masked_rows.len() <= capacity);
        left_out
    });
    assert!(left_out.max() == Some(1000 - capacity));
    assert!(capacity < 1000 && masker.capacity(10) == 10 && masker.capacity(0) == 0);
}
