//! Embeddings and blocks.

use super::{Call, HIDDEN, HIDDEN_IN_PLACE, HIDDEN_OUT, INNER, INNER_OUT, LSE, MOMENTS, QKV, QKV_OUT, Run};
use crate::backend::{Backend, Dropout, Into};
use crate::bench::ops::{Part, Pass};

/// In the order of model/encoder.rs.
pub fn forward<B: Backend>() -> Vec<Call<B>> {
    let embed: Call<B> = Call {
        name: "embed",
        makes: &["embed"],
        formula: "e·N·C + e·(W + P)·C + 16 N bytes",
        mats: &[HIDDEN_OUT],
        stats: &[MOMENTS],
        run: |s, m| {
            let ([y], [stats]) = m.all();
            s.be.embed(&s.batch, &s.w, &s.table.embedding, &s.drop, stats, y)
        },
        ..Call::of(Part::Embeddings, Pass::Forward)
    };
    std::iter::once(embed).chain(block_forward()).collect()
}

/// In the order of model/encoder.rs.
pub fn backward<B: Backend>() -> Vec<Call<B>> {
    let embed: Call<B> = Call {
        name: "embed_backward",
        makes: &["embed d_x", "d_word", "d_position"],
        formula: "4 e·N·C + e·(W + P)·C + 8 (W + P)·C + 24 N bytes",
        mats: &[HIDDEN_IN_PLACE, HIDDEN_OUT],
        stats: &[MOMENTS],
        prepare: |s, m| {
            let ([_, y], [stats]) = m.all();
            s.be.embed(&s.batch, &s.w, &s.table.embedding, &s.drop, stats, y)
        },
        run: |s, m| {
            let ([d, _], [stats]) = m.all();
            s.be.embed_backward(&s.batch, &s.w, &s.table.embedding, &s.drop, stats, d, &mut s.grads)
        },
        ..Call::of(Part::Embeddings, Pass::Backward)
    };
    block_backward().into_iter().chain(std::iter::once(embed)).collect()
}

const ADD_LAYERNORM: &str = "4 e·N·C + 8 N bytes";

/// Steps 1 to 7 of model/block.rs.
fn block_forward<B: Backend>() -> [Call<B>; 7] {
    let step = || Call::of(Part::Block, Pass::Forward);
    [
        Call {
            name: "linear qkv",
            makes: &["qkv"],
            formula: "2 N·C·3C FLOP",
            mats: &[HIDDEN, QKV_OUT],
            run: |s, m| {
                let [x, y] = m.mats();
                s.be.linear(x, &s.w, &s.block().qkv, y)
            },
            ..step()
        },
        Call {
            name: "attention",
            makes: &["attention"],
            formula: "4 N·S·C FLOP",
            mats: &[QKV, HIDDEN_OUT],
            stats: &[LSE],
            run: |s, m| {
                let ([qkv, ctx], [lse]) = m.all();
                s.be.attention(qkv, &s.batch, s.config.n_heads, &s.attention_drop, lse, ctx)
            },
            ..step()
        },
        Call {
            name: "linear out",
            makes: &["out"],
            formula: "2 N·C·C FLOP",
            mats: &[HIDDEN, HIDDEN_OUT],
            run: |s, m| {
                let [x, y] = m.mats();
                s.be.linear(x, &s.w, &s.block().out, y)
            },
            ..step()
        },
        Call {
            name: "add_layernorm attention_norm",
            makes: &["attention_norm"],
            formula: ADD_LAYERNORM,
            mats: &[HIDDEN, HIDDEN, HIDDEN_OUT, HIDDEN_OUT],
            stats: &[MOMENTS],
            run: |s, m| {
                let ([x, residual, sum, y], [stats]) = m.all();
                let (norm, none) = (&s.block().attention_norm, &Dropout::NONE);
                s.be.add_layernorm(x, Some(residual), &s.batch, &s.w, norm, none, sum, stats, y)
            },
            ..step()
        },
        Call {
            name: "linear_gelu lin1",
            makes: &["lin1, gelu"],
            formula: "2 N·C·F FLOP",
            mats: &[HIDDEN, INNER_OUT, INNER_OUT],
            run: |s, m| {
                let [x, pre, y] = m.mats();
                s.be.linear_gelu(x, &s.w, &s.block().lin1, pre, y)
            },
            ..step()
        },
        Call {
            name: "linear lin2",
            makes: &["lin2"],
            formula: "2 N·F·C FLOP",
            mats: &[INNER, HIDDEN_OUT],
            run: |s, m| {
                let [x, y] = m.mats();
                s.be.linear(x, &s.w, &s.block().lin2, y)
            },
            ..step()
        },
        Call {
            name: "add_layernorm output_norm",
            makes: &["output_norm"],
            formula: ADD_LAYERNORM,
            mats: &[HIDDEN, HIDDEN, HIDDEN_OUT, HIDDEN_OUT],
            stats: &[MOMENTS],
            run: |s, m| {
                let ([x, residual, sum, y], [stats]) = m.all();
                let norm = &s.block().output_norm;
                s.be.add_layernorm(x, Some(residual), &s.batch, &s.w, norm, &s.drop, sum, stats, y)
            },
            ..step()
        },
    ]
}

/// Steps 7 to 1.
fn block_backward<B: Backend>() -> Vec<Call<B>> {
    norms_backward().into_iter().chain(products_backward()).chain([attention_backward()]).collect()
}

fn norms_backward<B: Backend>() -> [Call<B>; 2] {
    let step = || Call::of(Part::Block, Pass::Backward);
    [
        Call {
            name: "add_layernorm_backward output_norm",
            makes: &["output_norm"],
            formula: ADD_LAYERNORM,
            // branch, residual, sum; d; d_branch
            mats: &[HIDDEN, HIDDEN, HIDDEN_OUT, HIDDEN_IN_PLACE, HIDDEN_OUT],
            stats: &[MOMENTS],
            prepare: |s, m| {
                let ([x, residual, sum, _, y], [stats]) = m.all();
                let norm = &s.block().output_norm;
                s.be.add_layernorm(x, Some(residual), &s.batch, &s.w, norm, &s.drop, sum, stats, y)
            },
            run: |s, m| {
                let ([_, _, sum, d, d_branch], [stats]) = m.all();
                let p = *s.block();
                let (norm, bias) = (&p.output_norm, Some(p.lin2.bias));
                let (grads, d_branch) = (&mut s.grads, Some(d_branch));
                s.be.add_layernorm_backward(d, sum, stats, &s.batch, &s.w, norm, &s.drop, bias, grads, d_branch)
            },
            ..step()
        },
        Call {
            name: "add_layernorm_backward attention_norm",
            makes: &["attention_norm"],
            formula: "3 e·N·C + 8 N bytes",
            // branch, residual, sum; d; the forward pass's y
            mats: &[HIDDEN, HIDDEN, HIDDEN_OUT, HIDDEN_IN_PLACE, HIDDEN_OUT],
            stats: &[MOMENTS],
            prepare: |s, m| {
                let ([x, residual, sum, _, y], [stats]) = m.all();
                let (norm, none) = (&s.block().attention_norm, &Dropout::NONE);
                s.be.add_layernorm(x, Some(residual), &s.batch, &s.w, norm, none, sum, stats, y)
            },
            run: |s, m| {
                let ([_, _, sum, d, _], [stats]) = m.all();
                let p = *s.block();
                let (norm, bias, none) = (&p.attention_norm, Some(p.out.bias), &Dropout::NONE);
                s.be.add_layernorm_backward(d, sum, stats, &s.batch, &s.w, norm, none, bias, &mut s.grads, None)
            },
            ..step()
        },
    ]
}

fn products_backward<B: Backend>() -> [Call<B>; 4] {
    let step = || Call::of(Part::Block, Pass::Backward);
    [
        Call {
            name: "linear_backward_gelu lin2",
            makes: &["lin2 d_W", "lin2 d_x, gelu"],
            formula: "4 N·F·C FLOP",
            mats: &[HIDDEN, INNER, INNER, INNER_OUT],
            run: |s, m| {
                let [d_y, x, pre, d_pre] = m.mats();
                let p = *s.block();
                s.be.linear_backward_gelu(d_y, x, pre, &s.w, &p.lin2, p.lin1.bias, &mut s.grads, d_pre)
            },
            ..step()
        },
        Call {
            name: "linear_backward lin1",
            makes: &["lin1 d_W", "lin1 d_x"],
            formula: "4 N·C·F FLOP",
            mats: &[INNER, HIDDEN, HIDDEN],
            run: |s, m| {
                let [d_y, x, d] = m.mats();
                let lin1 = s.block().lin1;
                s.be.linear_backward(d_y, x, &s.w, &lin1, &mut s.grads, Into::Add(d))
            },
            ..step()
        },
        Call {
            name: "linear_backward out",
            makes: &["out d_W", "out d_x"],
            formula: "4 N·C·C FLOP",
            mats: &[HIDDEN, HIDDEN, HIDDEN_OUT],
            run: |s, m| {
                let [d_y, x, d_x] = m.mats();
                let out = s.block().out;
                s.be.linear_backward(d_y, x, &s.w, &out, &mut s.grads, Into::Write(d_x))
            },
            ..step()
        },
        Call {
            name: "linear_backward qkv",
            makes: &["qkv d_W", "qkv d_x"],
            formula: "4 N·C·3C FLOP",
            mats: &[QKV, HIDDEN, HIDDEN],
            run: |s, m| {
                let [d_y, x, d] = m.mats();
                let qkv = s.block().qkv;
                s.be.linear_backward(d_y, x, &s.w, &qkv, &mut s.grads, Into::Add(d))
            },
            ..step()
        },
    ]
}

fn attention_backward<B: Backend>() -> Call<B> {
    let forward: Run<B> = |s, m| {
        let ([qkv, ctx, ..], [lse]) = m.all::<4, 1>();
        s.be.attention(qkv, &s.batch, s.config.n_heads, &s.attention_drop, lse, ctx)
    };
    Call {
        name: "attention_backward",
        makes: &["attention"],
        formula: "10 N·S·C FLOP",
        mats: &[QKV, HIDDEN_OUT, HIDDEN, QKV_OUT],
        stats: &[LSE],
        prepare: forward,
        run: |s, m| {
            let ([qkv, ctx, d_ctx, d_qkv], [lse]) = m.all();
            let (heads, drop, bias) = (s.config.n_heads, &s.attention_drop, s.block().qkv.bias);
            s.be.attention_backward(qkv, &s.batch, heads, drop, lse, ctx, d_ctx, bias, &mut s.grads, d_qkv)
        },
        ..Call::of(Part::Block, Pass::Backward)
    }
}
