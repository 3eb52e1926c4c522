//! Text → ids → batches → masks, each on its own: `cargo bench --bench data`. Throughput is in bytes of text
//! for the tokenizer and in packed tokens for the rest; rayon's threads are RAYON_NUM_THREADS.

use std::hint::black_box;
use std::path::Path;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use handbert::data::mask::{MaskUnit, Masker};
use handbert::data::pack::{Cursor, Empty, Filled, LabelNeed, Long, PackPlan, Packer, Packing, Shuffle, count_batches};
use handbert::data::split::{Split, Subset};
use handbert::data::token_set::{About, TokenSetWriter};
use handbert::data::{MaskedBatch, TokenSet, Tokenizer};

fn tokenizer() -> Tokenizer {
    Tokenizer::load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tokenizer/uncased")).unwrap()
}

/// Postings of 20 to 400 words made of the vocabulary's own, with some punctuation and a dash that is not ASCII.
fn postings(tokenizer: &Tokenizer, count: u32) -> Vec<String> {
    let words: Vec<&str> =
        (300..1283).filter(|&id| !tokenizer.is_continuation(id)).filter_map(|id| tokenizer.token(id)).collect();
    let pick = |i: u32| words[(i.wrapping_mul(2_654_435_761) >> 7) as usize % words.len()];
    let posting = |i: u32| {
        let length = 20 + i.wrapping_mul(2_654_435_761) % 380;
        let word = |w: u32| match w % 23 {
            7 => format!("{},", pick(i * 401 + w)),
            15 => format!("{} – ", pick(i * 401 + w)),
            _ => format!("{} ", pick(i * 401 + w)),
        };
        (0..length).map(word).collect()
    };
    (0..count).map(posting).collect()
}

fn set(dir: &Path, tokenizer: &Tokenizer) -> TokenSet {
    let mut writer = TokenSetWriter::create(&dir.join("set"), tokenizer, About::default()).unwrap();
    for (ids, group) in tokenizer.encode_batch(&postings(tokenizer, 20_000)).unwrap().iter().zip(0..) {
        writer.push(ids, -1, group).unwrap();
    }
    writer.finish().unwrap()
}

fn plan(packing: Packing, batch_tokens: usize) -> PackPlan {
    PackPlan {
        packing,
        long: Long::Split,
        need: LabelNeed::Any,
        empty: Empty::PassOver,
        subset: Subset::Train,
        split: Split { held_fraction: 0.05 },
        shuffle: Shuffle::Shuffled { seed: 42 },
        batch_tokens,
        max_sequences: batch_tokens / 8,
        max_length: 512,
        limit: None,
    }
}

fn encode(c: &mut Criterion) {
    let tokenizer = tokenizer();
    let texts = postings(&tokenizer, 2000);
    let mut group = c.benchmark_group("tokenizer");
    group.throughput(Throughput::Bytes(texts.iter().map(|text| text.len() as u64).sum()));
    group.bench_function("encode_batch", |b| b.iter(|| black_box(tokenizer.encode_batch(&texts).unwrap())));
    group.finish();
}

fn pack(c: &mut Criterion) {
    let dir = tempfile::tempdir().unwrap();
    let tokenizer = tokenizer();
    let set = set(dir.path(), &tokenizer);
    let masker = Masker::new(0.15, 42, MaskUnit::Token, &tokenizer);
    let mut group = c.benchmark_group("pack");
    for (name, packing, batch_tokens) in [
        ("documents 2048", Packing::Documents, 2048),
        ("documents 65536", Packing::Documents, 65_536),
        ("chunks 65536", Packing::Chunks { length: 256 }, 65_536),
    ] {
        let plan = plan(packing, batch_tokens);
        group.throughput(Throughput::Elements(batch_tokens as u64));
        let mut batch = MaskedBatch::default();
        let mut packer = Packer::new(&set, &plan, tokenizer.special(), Cursor::start(0)).unwrap();
        let mut fill = |batch: &mut MaskedBatch| {
            while packer.next(&mut batch.packed).unwrap() == Filled::EpochEnd {}
        };
        group.bench_function(name, |b| b.iter(|| fill(black_box(&mut batch))));
        group.bench_function(format!("{name}, masked"), |b| {
            b.iter(|| {
                fill(&mut batch);
                masker.mask(0, black_box(&mut batch))
            })
        });
    }
    let plan = plan(Packing::Documents, 65_536);
    group.throughput(Throughput::Elements(set.tokens_total()));
    group.bench_function("count_batches", |b| b.iter(|| black_box(count_batches(&set, &plan, 0).unwrap())));
    group.finish();
}

criterion_group!(benches, encode, pack);
criterion_main!(benches);
