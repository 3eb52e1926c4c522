//! Token sets of made-up postings, and their batches.

use std::path::Path;

use handbert::data::pack::{Cursor, Empty, Filled, LabelNeed, Long, PackCounts, PackPlan, Packer, Packing, Shuffle};
use handbert::data::split::{Split, Subset};
use handbert::data::token_set::{About, TokenSetWriter};
use handbert::data::{PackedBatch, TokenSet, Tokenizer};

pub fn tokenizer() -> Tokenizer {
    Tokenizer::load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tokenizer/uncased")).unwrap()
}

/// A set of samples with these numbers of tokens. Token t of sample s is an ordinary id made of both.
pub fn set_of(dir: &Path, lengths: &[u32]) -> TokenSet {
    let about = About { label_names: vec!["in_person".into(), "remote".into()], shard_bytes: 4096, ..About::default() };
    let mut writer = TokenSetWriter::create(&dir.join(format!("set{}", lengths.len())), &tokenizer(), about).unwrap();
    for (sample, &length) in (0u64..).zip(lengths) {
        let ids: Vec<u32> = (0..length).map(|t| token(sample, t)).collect();
        writer.push(&ids, sample as i32 % 3 - 1, sample / 2).unwrap();
    }
    writer.finish().unwrap()
}

pub fn token(sample: u64, position: u32) -> u32 {
    104 + ((sample * 1009 + u64::from(position) * 31) % 1100) as u32
}

/// Lengths like those of postings: many short, some long, some empty.
pub fn lengths(samples: u32) -> Vec<u32> {
    let length = |i: u32| {
        let noise = i.wrapping_mul(2_654_435_761) >> 8;
        match noise % 20 {
            0 => 0,
            1..16 => 1 + noise / 20 % 60,
            _ => noise / 20 % 300,
        }
    };
    (0..samples).map(length).collect()
}

pub fn plan() -> PackPlan {
    PackPlan {
        packing: Packing::Documents,
        long: Long::Split,
        need: LabelNeed::Any,
        empty: Empty::PassOver,
        subset: Subset::All,
        split: Split { held_fraction: 0.3 },
        shuffle: Shuffle::Shuffled { seed: 42 },
        batch_tokens: 256,
        max_sequences: 64,
        max_length: 64,
        limit: None,
    }
}

/// The batches of an epoch.
pub fn epoch(set: &TokenSet, plan: &PackPlan, cursor: Cursor) -> (Vec<PackedBatch>, Cursor, PackCounts) {
    let mut packer = Packer::new(set, plan, tokenizer().special(), cursor).unwrap();
    let mut batches = Vec::new();
    loop {
        let mut batch = PackedBatch::default();
        if packer.next(&mut batch).unwrap() == Filled::EpochEnd {
            assert_eq!(batch.tokens(), 0);
            return (batches, packer.cursor(), packer.counts());
        }
        assert_sound(&batch, plan);
        batches.push(batch);
    }
}

pub fn assert_sound(batch: &PackedBatch, plan: &PackPlan) {
    let bounds = &batch.cu_seqlens;
    assert_eq!(bounds.len(), batch.sequences() + 1);
    assert_eq!((bounds[0], bounds[batch.sequences()] as usize), (0, batch.tokens()));
    assert!(batch.tokens() <= plan.batch_tokens && batch.sequences() <= plan.max_sequences);
    assert_eq!((batch.labels.len(), batch.draws.len()), (batch.sequences(), batch.sequences()));
    for pair in bounds.windows(2) {
        let positions = &batch.position_ids[pair[0] as usize..pair[1] as usize];
        assert!(positions.iter().copied().eq(0..pair[1] - pair[0]), "positions begin anew in each sequence");
    }
}

pub fn sequence(batch: &PackedBatch, i: usize) -> &[u32] {
    &batch.ids[batch.cu_seqlens[i] as usize..batch.cu_seqlens[i + 1] as usize]
}
