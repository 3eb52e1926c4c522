//! The arithmetic against figures worked out by hand, those in the headers of kernels/ among them.

use serde_json::json;
use std::path::Path;

use super::cost::Cost;
use super::gpu::{Ceiling, Gpu};
use super::ops::{Kind, Load, Op, Part, Pass, ops};
use super::{Memory, Time, Total};
use crate::backend::{Capacity, Precision};
use crate::model::{Config, Head, Mode};

const BF16: Precision = Precision::Bf16;

fn config(changes: serde_json::Value) -> Config {
    let mut fields = json!({
        "model_type": "distilbert", "activation": "gelu", "vocab_size": 30522, "max_position_embeddings": 512,
        "n_layers": 6, "n_heads": 12, "dim": 768, "hidden_dim": 3072, "dropout": 0.1, "attention_dropout": 0.1,
    });
    let serde_json::Value::Object(changes) = changes else { unreachable!() };
    let serde_json::Value::Object(fields) = &mut fields else { unreachable!() };
    fields.extend(changes);
    Config::from_json(fields, Path::new("config.json")).unwrap()
}

fn base() -> Config {
    config(json!({}))
}

const CLASSIFIER: Head = Head::Classifier { classes: 2 };

fn load(mean_length: f64) -> Load {
    Load::uniform(65_536, mean_length, 9_830)
}

fn h200() -> &'static Gpu {
    Gpu::by_id("h200").unwrap()
}

fn find<'a>(ops: &'a [Op], part: Part, pass: Pass, name: &str) -> &'a Op {
    ops.iter().find(|op| (op.part, op.pass, op.name) == (part, pass, name)).unwrap_or_else(|| panic!("no {name}"))
}

/// MFLOP a token of the ops that `take` wants.
fn mflop(ops: &[Op], take: impl Fn(&Op) -> bool) -> f64 {
    let wanted = ops.iter().filter(|op| take(op));
    wanted.map(|op| op.times as f64 * op.cost.flops).sum::<f64>() / 65_536.0 / 1e6
}

fn close(got: f64, wanted: f64, by: f64) {
    assert!((got - wanted).abs() <= by, "{got} is not {wanted} within {by}");
}

#[test]
fn flops_of_a_base_step_are_six_times_the_weights_plus_attention_plus_head() {
    // 6 × 42,467,328 weights of linear layers; 3.5 × 4 S C for each of six blocks; 6 × 15 % × (V C + C²).
    for (length, attention) in [(256.0, 16.5), (300.0, 19.4), (350.0, 22.6), (512.0, 33.0)] {
        let ops = ops(&base(), Head::Mlm, &load(length), Mode::Training, BF16);
        let is_attention = |op: &Op| matches!(op.kind, Kind::AttentionForward | Kind::AttentionBackward);
        close(mflop(&ops, |op| op.part == Part::Block && op.kind == Kind::Product), 254.8, 0.05);
        close(mflop(&ops, is_attention), attention, 0.05);
        close(mflop(&ops, is_attention), 3.5 * 4.0 * length * 768.0 * 6.0 / 1e6, 1e-6);
        close(mflop(&ops, |op| op.part == Part::MlmHead), 21.6, 0.05);
    }
    close(mflop(&ops(&base(), Head::Mlm, &load(300.0), Mode::Training, BF16), |_| true), 295.8, 0.1);
    // A third of the encoder's, without a head over the vocabulary.
    close(mflop(&ops(&base(), CLASSIFIER, &load(300.0), Mode::Inference, BF16), |_| true), 254.8 / 3.0 + 5.53, 0.05);
}

#[test]
fn bytes_are_those_in_the_kernels_headers() {
    let ops = ops(&base(), Head::Mlm, &load(300.0), Mode::Training, BF16);
    let mb = |part, pass, name: &str| find(&ops, part, pass, name).cost.bytes / 1e6;
    for (name, wanted) in [("qkv", 406.0), ("out", 202.5), ("lin1, gelu", 911.0), ("lin2", 508.0)] {
        close(mb(Part::Block, Pass::Forward, name), wanted, 0.5);
    }
    close(mb(Part::Block, Pass::Backward, "lin2 d_x, gelu"), 911.0, 0.5);
    close(mb(Part::Block, Pass::Forward, "output_norm"), 403.0, 0.5);
    close(mb(Part::Embeddings, Pass::Forward, "embed"), 149.0, 0.5);
    close(mb(Part::Embeddings, Pass::Backward, "embed d_x"), 249.5, 0.8);
    close(mb(Part::Update, Pass::Update, "adamw"), 2010.0, 5.0);
    close(mb(Part::Update, Pass::Update, "grad_norm"), 268.0, 0.5);
    // 20 chunks: the gradient of the vocabulary's weights is read and written in each.
    let d_w = find(&ops, Part::MlmHead, Pass::Backward, "logits d_W");
    close(d_w.cost.bytes / 20.0 / 1e6, 188.0, 0.9);
    close(d_w.cost.cached_bytes / 1e6, 600.2, 0.1);
}

#[test]
fn bytes_of_small_shapes_by_hand() {
    // x [2, 3], W [4, 3], y [2, 4] in bf16; d_W in f32, twice.
    assert_eq!(BF16.product(2.0, 3.0, 4.0), Cost { flops: 48.0, bytes: 2.0 * 26.0, cached_bytes: 0.0 });
    assert_eq!(BF16.weight_gradient(2.0, 3.0, 4.0).bytes, 2.0 * 14.0 + 8.0 * 12.0);
    // One sequence of 5 tokens, C = 64 in two heads: q kᵀ and P v, 2 × 5 × 5 × 64 each.
    let attention = BF16.attention(5.0, 5.0, 64.0, 2.0);
    assert_eq!((attention.flops, attention.bytes), (2.0 * 3200.0, 2.0 * 5.0 * 256.0 + 4.0 * 10.0));
    let backward = BF16.attention_backward(5.0, 5.0, 64.0, 2.0);
    assert_eq!((backward.flops, backward.bytes), (5.0 * 3200.0, 2.0 * 5.0 * 512.0 + 4.0 * 10.0));
    assert_eq!(BF16.layernorm(4.0, 3.0, 64.0).bytes, 4.0 * 3.0 * 64.0 * 2.0 + 3.0 * 8.0);
}

#[test]
fn a_floor_is_the_longer_of_both_terms_and_a_step_their_sum() {
    let ops = ops(&base(), Head::Mlm, &load(300.0), Mode::Training, BF16);
    let time = |part, pass, name: &str| Time::of(find(&ops, part, pass, name), h200());
    let qkv = time(Part::Block, Pass::Forward, "qkv");
    close(qkv.by_flops * 1e3, 0.235, 0.001);
    close(qkv.by_bytes * 1e3, 0.085, 0.001);
    assert_eq!((qkv.floor(), qkv.bound()), (qkv.by_flops, Ceiling::MatrixRate));
    let adamw = time(Part::Update, Pass::Update, "adamw");
    close(adamw.floor() * 1e6, 419.0, 1.0);
    close(adamw.expected * 1e6, 490.0, 5.0);
    assert_eq!(adamw.bound(), Ceiling::Bandwidth);

    let products = ops.iter().filter(|op| op.part == Part::Block && op.kind == Kind::Product);
    close(Total::of(products, h200()).floor * 1e3, 16.9, 0.05);
    let all = Total::of(&ops, h200());
    let sum: f64 = ops.iter().map(|op| op.times as f64 * Time::of(op, h200()).floor()).sum();
    close(all.floor, sum, 1e-12);
    assert!(all.expected > all.floor);
    close(all.utilisation(all.floor, h200()), all.flops / 989e12 / all.floor, 1e-12);
}

#[test]
fn nothing_is_expected_faster_than_its_floor_or_a_launch() {
    for gpu in &super::gpu::GPUS {
        for (head, mode) in [(Head::Mlm, Mode::Training), (Head::Mlm, Mode::Inference), (CLASSIFIER, Mode::Training)] {
            for op in ops(&base(), head, &load(300.0), mode, BF16) {
                let time = Time::of(&op, gpu);
                assert!(time.expected >= time.floor() && time.expected >= 3e-6, "{}: {op:?}", gpu.id);
            }
        }
    }
}

#[test]
fn forward_passes_have_no_backward_and_no_update() {
    for head in [Head::Mlm, CLASSIFIER] {
        let forward = ops(&base(), head, &load(300.0), Mode::Inference, BF16);
        assert!(forward.iter().all(|op| op.pass == Pass::Forward));
        let step = ops(&base(), head, &load(300.0), Mode::Training, BF16);
        let shared = step.iter().filter(|op| op.pass == Pass::Forward && op.part == Part::Block);
        assert!(shared.eq(forward.iter().filter(|op| op.part == Part::Block)));
    }
}

#[test]
fn memory_by_hand() {
    let capacity = Capacity { tokens: 65_536, sequences: 8_192, masked: 10_000 };
    let memory = Memory::of(&base(), Head::Mlm, capacity, Mode::Training);
    // 66,985,530 parameters and the gap behind the vocabulary's bias.
    assert_eq!(memory.master_weights, 4 * 66_985_536);
    assert_eq!((memory.compute_copy, memory.gradients), (2 * 66_985_536, 4 * 66_985_536));
    assert_eq!((memory.first_moment, memory.second_moment), (memory.gradients, memory.gradients));
    // A token: per block 8 C + 2 F and H + 4 statistics; 7 hidden states; 6 C + F of gradients; the embeddings' statistics.
    let token = 2 * (6 * (8 * 768 + 2 * 3072) + 7 * 768 + 6 * 768 + 3072) + 4 * (6 * 16 + 2);
    let masked = 2 * 7 * 768 + 4 * 2;
    assert_eq!(memory.activations, 65_536 * token + 10_000 * masked + 256 - 10_000 * 8 % 256);
    // Evaluation: one block, two hidden states, the same head; and a batch of its own.
    let inference = Memory::of(&base(), Head::Mlm, capacity, Mode::Inference);
    assert_eq!(memory.evaluation, inference.activations + memory.batch);
    assert_eq!((inference.gradients, inference.first_moment, inference.evaluation), (0, 0, 0));
    // 4 arrays of N or M, 3 of B; tiles; twice order, pieces and sums, each within 256 bytes.
    let arrays = 8 * 65_536 + 8 * 10_000 + 12 * 8_192 + 16 * (1_024 + 8_192) + 2 * 65_536 * 20 + 2 * 2_048 * 16;
    assert!(memory.batch >= arrays && memory.batch < arrays + 14 * 256, "{} is not {arrays}", memory.batch);
    assert_eq!(memory.total(), memory.by_kind().iter().map(|(_, bytes)| bytes).sum::<u64>());
}

#[test]
fn the_largest_configuration_overflows_nothing() {
    let giant = config(json!({
        "vocab_size": 1 << 24, "max_position_embeddings": 1 << 24, "n_layers": 1000, "n_heads": 1024, "dim": 1 << 15,
        "hidden_dim": 1 << 18,
    }));
    let capacity = Capacity { tokens: 1 << 24, sequences: 1 << 21, masked: 1 << 24 };
    let load = Load::uniform(1 << 24, 3.0, 1 << 24);
    for mode in [Mode::Training, Mode::Inference] {
        assert!(Memory::of(&giant, Head::Mlm, capacity, mode).total() > 1 << 40);
        assert!(Total::of(&ops(&giant, Head::Mlm, &load, mode, BF16), h200()).floor.is_finite());
    }
}
