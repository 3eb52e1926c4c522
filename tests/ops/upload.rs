//! upload: each broken rule is an error, never a panic, and nothing valid is refused.

use handbert::backend::{Backend, Capacity, Error};
use handbert::check::batches::{Masks, TestBatch};
use handbert::check::random::Random;

const CAPACITY: Capacity = Capacity { tokens: 12, sequences: 4, masked: 5 };

/// Within every rule, and full.
fn valid() -> TestBatch {
    let mut random = Random::new(1);
    let mut batch = TestBatch::new(&[5, 1, 2, 4], 100, &mut random).masked(Masks::Some, &mut random);
    batch.limits.positions = 5;
    batch.limits.classes = 3;
    batch.masked_rows.push(11);
    batch.targets.push(99);
    batch.ids[3] = 99;
    batch.labels = vec![0, -1, 2, 1];
    batch.label_weights = vec![1.0, 0.0, 2.5, 1.0];
    batch
}

/// What is broken, and how.
type Break = (&'static str, fn(&mut TestBatch));

const BROKEN: [Break; 30] = [
    ("an id at V", |b| b.ids[0] = 100),
    ("an id far beyond V", |b| b.ids[11] = u32::MAX),
    ("a position at P", |b| b.position_ids[4] = 5),
    ("a position far beyond P", |b| b.position_ids[4] = u32::MAX),
    ("cu_seqlens that falls", |b| b.cu_seqlens = vec![0, 6, 5, 8, 12]),
    ("cu_seqlens that starts at 1", |b| b.cu_seqlens = vec![1, 5, 6, 8, 12]),
    ("cu_seqlens that ends before N", |b| b.cu_seqlens = vec![0, 5, 6, 8, 11]),
    ("cu_seqlens that ends after N", |b| b.cu_seqlens = vec![0, 5, 6, 8, 13]),
    ("cu_seqlens that runs beyond N and returns", |b| b.cu_seqlens = vec![0, 5, 6, 400, 12]),
    ("no cu_seqlens", |b| b.cu_seqlens.clear()),
    ("fewer ids than positions", |b| {
        b.ids.pop();
    }),
    ("fewer positions than ids", |b| {
        b.position_ids.pop();
    }),
    ("masked rows not ascending", |b| b.masked_rows.swap(0, 1)),
    ("a masked row twice", |b| b.masked_rows[1] = b.masked_rows[0]),
    ("a masked row at N", |b| b.masked_rows[4] = 12),
    ("a masked row far beyond N", |b| b.masked_rows[4] = u32::MAX),
    ("a target at V", |b| b.targets[0] = 100),
    ("fewer targets than masked rows", |b| {
        b.targets.pop();
    }),
    ("more targets than masked rows", |b| b.targets.push(1)),
    ("a label at K", |b| b.labels[0] = 3),
    ("a label below -1", |b| b.labels[0] = -2),
    ("a label far below -1", |b| b.labels[0] = i32::MIN),
    ("fewer labels than sequences", |b| {
        b.labels.pop();
    }),
    ("more labels than sequences", |b| b.labels.push(0)),
    ("fewer label weights than sequences", |b| {
        b.label_weights.pop();
    }),
    ("more label weights than sequences", |b| b.label_weights.push(1.0)),
    ("a label for a model without classes", |b| b.limits.classes = 0),
    ("a loss scale that is no number", |b| b.loss_scale = f32::NAN),
    ("an infinite loss scale", |b| b.loss_scale = f32::INFINITY),
    ("a negatively infinite loss scale", |b| b.loss_scale = f32::NEG_INFINITY),
];

/// One more than there is room for, and otherwise valid.
fn overfull() -> [(&'static str, TestBatch); 3] {
    let mut random = Random::new(2);
    let mut batch = |lengths: &[usize], masks| TestBatch::new(lengths, 100, &mut random).masked(masks, &mut random);
    [
        ("tokens", batch(&[5, 5, 3], Masks::None)),
        ("sequences", batch(&[2, 2, 2, 2, 2], Masks::None)),
        ("masked", batch(&[6], Masks::All)),
    ]
}

pub fn suite<B: Backend>(be: &B) {
    let mut room = be.batch(CAPACITY).expect("room for a batch");
    let mut upload = |batch: &TestBatch| be.upload(&batch.view(), &batch.limits, &mut room);
    upload(&valid()).expect("a valid batch");
    for (what, damage) in BROKEN {
        let mut broken = valid();
        damage(&mut broken);
        let refused = upload(&broken).expect_err(what);
        assert!(matches!(refused, Error::Batch(_) | Error::Capacity { .. }), "{what}: {refused}");
        assert!(!refused.to_string().is_empty());
        upload(&valid()).expect("a valid batch after a broken one");
    }
    for (what, batch) in overfull() {
        let refused = upload(&batch).expect_err(what);
        assert!(matches!(refused, Error::Capacity { .. }), "more {what} than planned for: {refused}");
    }
    let mut bare = valid();
    bare.labels.clear();
    bare.label_weights.clear();
    bare.masked_rows.clear();
    bare.targets.clear();
    bare.limits.classes = 0;
    upload(&bare).expect("a batch without labels and targets");
    let mut unweighted = valid();
    unweighted.label_weights.clear();
    upload(&unweighted).expect("labels without weights");
    let mut random = Random::new(3);
    upload(&TestBatch::new(&[0, 3, 0], 100, &mut random)).expect("empty sequences");
}
