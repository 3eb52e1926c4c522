//! The heads of both tasks.

use super::{
    Call, FIRST, FIRST_IN_PLACE, FIRST_OUT, HIDDEN, HIDDEN_OUT, LOGITS, LOGITS_OUT, MASKED, MASKED_IN_PLACE,
    MASKED_MOMENTS, MASKED_OUT,
};
use crate::backend::{Backend, Dropout, Into, LossGrads, Pick};
use crate::bench::ops::{Part, Pass};

// ---- Masked-language modelling, in the order of model/mlm_head.rs ------------------------------------------------------

/// Steps 1 to 3, and the loss alone.
pub fn mlm_forward<B: Backend>() -> [Call<B>; 4] {
    let step = || Call::of(Part::MlmHead, Pass::Forward);
    [
        Call {
            name: "gather_rows masked",
            makes: &["gather"],
            formula: "2 e·M·C + 4 M bytes",
            mats: &[HIDDEN, MASKED_OUT],
            run: |s, m| {
                let [x, y] = m.mats();
                s.be.gather_rows(x, &s.batch, Pick::Masked, y)
            },
            ..step()
        },
        Call {
            name: "linear_gelu transform",
            makes: &["transform, gelu"],
            formula: "2 M·C·C FLOP",
            mats: &[MASKED, MASKED_OUT, MASKED_OUT],
            run: |s, m| {
                let [x, pre, y] = m.mats();
                s.be.linear_gelu(x, &s.w, &s.mlm_head().transform, pre, y)
            },
            ..step()
        },
        Call {
            name: "add_layernorm mlm",
            makes: &["norm"],
            formula: "3 e·M·C + 8 M bytes",
            mats: &[MASKED, MASKED_OUT, MASKED_OUT],
            stats: &[MASKED_MOMENTS],
            run: |s, m| {
                let ([x, sum, y], [stats]) = m.all();
                let (norm, none) = (&s.mlm_head().norm, &Dropout::NONE);
                s.be.add_layernorm(x, None, &s.batch, &s.w, norm, none, sum, stats, y)
            },
            ..step()
        },
        Call {
            name: "vocab_cross_entropy loss only",
            makes: &["logits", "loss"],
            formula: "2 M·C·V FLOP",
            mats: &[MASKED],
            run: |s, m| {
                let [x] = m.mats();
                let projection = s.mlm_head().projection;
                s.be.vocab_cross_entropy(x, &s.batch, &s.w, &projection, &mut s.tally, None)
            },
            ..step()
        },
    ]
}

/// Steps 4 to 1.
pub fn mlm_backward<B: Backend>() -> [Call<B>; 5] {
    let step = || Call::of(Part::MlmHead, Pass::Backward);
    [
        Call {
            name: "vocab_cross_entropy",
            makes: &["logits", "loss", "logits d_x", "logits d_W"],
            formula: "6 M·C·V FLOP",
            mats: &[MASKED, MASKED_OUT],
            run: |s, m| {
                let [x, d_x] = m.mats();
                let (projection, back) = (s.mlm_head().projection, LossGrads { d_x, grads: &mut s.grads });
                s.be.vocab_cross_entropy(x, &s.batch, &s.w, &projection, &mut s.tally, Some(back))
            },
            ..step()
        },
        Call {
            name: "add_layernorm_backward mlm",
            makes: &["norm"],
            formula: "3 e·M·C + 8 M bytes",
            // branch, sum; d; the forward pass's y
            mats: &[MASKED, MASKED_OUT, MASKED_IN_PLACE, MASKED_OUT],
            stats: &[MASKED_MOMENTS],
            prepare: |s, m| {
                let ([x, sum, _, y], [stats]) = m.all();
                let (norm, none) = (&s.mlm_head().norm, &Dropout::NONE);
                s.be.add_layernorm(x, None, &s.batch, &s.w, norm, none, sum, stats, y)
            },
            run: |s, m| {
                let ([_, sum, d, _], [stats]) = m.all();
                let (norm, none) = (&s.mlm_head().norm, &Dropout::NONE);
                s.be.add_layernorm_backward(d, sum, stats, &s.batch, &s.w, norm, none, None, &mut s.grads, None)
            },
            ..step()
        },
        Call {
            name: "gelu_backward",
            makes: &["gelu"],
            formula: "3 e·M·C bytes",
            mats: &[MASKED, MASKED_IN_PLACE],
            run: |s, m| {
                let [pre, d] = m.mats();
                let bias = s.mlm_head().transform.bias;
                s.be.gelu_backward(pre, bias, &mut s.grads, d)
            },
            ..step()
        },
        Call {
            name: "linear_backward transform",
            makes: &["transform d_W", "transform d_x"],
            formula: "4 M·C·C FLOP",
            mats: &[MASKED, MASKED, MASKED_OUT],
            run: |s, m| {
                let [d_y, x, d_x] = m.mats();
                let transform = s.mlm_head().transform;
                s.be.linear_backward(d_y, x, &s.w, &transform, &mut s.grads, Into::Write(d_x))
            },
            ..step()
        },
        Call {
            name: "scatter_rows masked",
            makes: &["scatter"],
            formula: "e·(N + M)·C + 4 M bytes",
            mats: &[MASKED, HIDDEN_OUT],
            run: |s, m| {
                let [d_y, d_x] = m.mats();
                s.be.scatter_rows(d_y, &s.batch, Pick::Masked, d_x)
            },
            ..step()
        },
    ]
}

// ---- Classification, in the order of model/class_head.rs ---------------------------------------------------------------

/// Steps 1 to 4.
pub fn class_forward<B: Backend>() -> [Call<B>; 4] {
    let step = || Call::of(Part::ClassHead, Pass::Forward);
    [
        Call {
            name: "gather_rows first",
            makes: &["gather"],
            formula: "2 e·B·C + 4 B bytes",
            mats: &[HIDDEN, FIRST_OUT],
            run: |s, m| {
                let [x, y] = m.mats();
                s.be.gather_rows(x, &s.batch, Pick::First, y)
            },
            ..step()
        },
        Call {
            name: "linear pre_classifier",
            makes: &["pre_classifier"],
            formula: "2 B·C·C FLOP",
            mats: &[FIRST, FIRST_OUT],
            run: |s, m| {
                let [x, y] = m.mats();
                s.be.linear(x, &s.w, &s.class_head().pre_classifier, y)
            },
            ..step()
        },
        Call {
            name: "relu_dropout",
            makes: &["relu"],
            formula: "2 e·B·C bytes",
            mats: &[FIRST, FIRST_OUT],
            run: |s, m| {
                let [x, y] = m.mats();
                s.be.relu_dropout(x, &s.batch, &s.class_drop, y)
            },
            ..step()
        },
        Call {
            name: "linear classifier",
            makes: &["classifier"],
            formula: "2 B·C·K FLOP",
            mats: &[FIRST, LOGITS_OUT],
            run: |s, m| {
                let [x, y] = m.mats();
                s.be.linear(x, &s.w, &s.class_head().classifier, y)
            },
            ..step()
        },
    ]
}

/// Steps 5 to 1.
pub fn class_backward<B: Backend>() -> [Call<B>; 5] {
    let step = || Call::of(Part::ClassHead, Pass::Backward);
    [
        Call {
            name: "class_cross_entropy",
            makes: &["loss"],
            formula: "8 B·K + 8 B bytes",
            mats: &[LOGITS, LOGITS_OUT],
            run: |s, m| {
                let [logits, d_x] = m.mats();
                let (bias, back) = (s.class_head().classifier.bias, LossGrads { d_x, grads: &mut s.grads });
                s.be.class_cross_entropy(logits, &s.batch, bias, 0.0, &mut s.tally, Some(back))
            },
            ..step()
        },
        Call {
            name: "linear_backward classifier",
            makes: &["classifier d_W", "classifier d_x"],
            formula: "4 B·C·K FLOP",
            mats: &[LOGITS, FIRST, FIRST_OUT],
            run: |s, m| {
                let [d_y, x, d_x] = m.mats();
                let classifier = s.class_head().classifier;
                s.be.linear_backward(d_y, x, &s.w, &classifier, &mut s.grads, Into::Write(d_x))
            },
            ..step()
        },
        Call {
            name: "relu_dropout_backward",
            makes: &["relu"],
            formula: "3 e·B·C bytes",
            mats: &[FIRST, FIRST_IN_PLACE],
            run: |s, m| {
                let [x, d] = m.mats();
                let bias = s.class_head().pre_classifier.bias;
                s.be.relu_dropout_backward(x, &s.batch, &s.class_drop, bias, &mut s.grads, d)
            },
            ..step()
        },
        Call {
            name: "linear_backward pre_classifier",
            makes: &["pre_classifier d_W", "pre_classifier d_x"],
            formula: "4 B·C·C FLOP",
            mats: &[FIRST, FIRST, FIRST_OUT],
            run: |s, m| {
                let [d_y, x, d_x] = m.mats();
                let pre_classifier = s.class_head().pre_classifier;
                s.be.linear_backward(d_y, x, &s.w, &pre_classifier, &mut s.grads, Into::Write(d_x))
            },
            ..step()
        },
        Call {
            name: "scatter_rows first",
            makes: &["scatter"],
            formula: "e·(N + B)·C + 4 B bytes",
            mats: &[FIRST, HIDDEN_OUT],
            run: |s, m| {
                let [d_y, d_x] = m.mats();
                s.be.scatter_rows(d_y, &s.batch, Pick::First, d_x)
            },
            ..step()
        },
    ]
}
