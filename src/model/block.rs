//! One transformer block, post-LayerNorm: attention, then feed-forward, each with its residual.

use super::params::BlockParams;
use crate::backend::{Arena, Backend, Dropout, Into, Result, Rows};

/// What a block's forward pass saves for its backward pass.
#[derive(Debug)]
pub struct BlockActs<M, S> {
    /// q, k, v. [N, 3C]
    pub qkv: M,
    /// Log-sum-exp of the attention scores. [N, H]
    pub lse: S,
    /// Attention's output, heads side by side. [N, C]
    pub ctx: M,
    /// Output projection, before the residual; then the second linear layer's output, before its own. [N, C]
    pub projected: M,
    /// x + projected. [N, C]
    pub attention_sum: M,
    /// Mean and reciprocal standard deviation of its rows. [N, 2]
    pub attention_stats: S,
    /// Its LayerNorm: the feed-forward's input. [N, C]
    pub middle: M,
    /// First linear layer, before the GELU. [N, F]
    pub pre: M,
    /// After it. [N, F]
    pub act: M,
    /// middle + dropout(second linear layer). [N, C]
    pub output_sum: M,
    /// Mean and reciprocal standard deviation of its rows. [N, 2]
    pub output_stats: S,
}

impl<M, S> BlockActs<M, S> {
    /// Room for one block of width C, feed-forward F and H heads.
    pub fn new(arena: &mut impl Arena<Mat = M, Stats = S>, width: usize, feed_forward: usize, heads: usize) -> Self {
        let rows = Rows::Tokens;
        BlockActs {
            qkv: arena.mat(rows, 3 * width),
            lse: arena.stats(rows, heads),
            ctx: arena.mat(rows, width),
            projected: arena.mat(rows, width),
            attention_sum: arena.mat(rows, width),
            attention_stats: arena.stats(rows, 2),
            middle: arena.mat(rows, width),
            pre: arena.mat(rows, feed_forward),
            act: arena.mat(rows, feed_forward),
            output_sum: arena.mat(rows, width),
            output_stats: arena.stats(rows, 2),
        }
    }
}

/// Gradients that live no longer than one block's backward pass; all blocks share them.
#[derive(Debug)]
pub struct BlockScratch<M> {
    /// [N, 3C]
    pub d_qkv: M,
    /// [N, C]
    pub d_ctx: M,
    /// Gradient of the branch that joins a residual. [N, C]
    pub d_branch: M,
    /// [N, F]
    pub d_pre: M,
}

impl<M> BlockScratch<M> {
    /// Room for the gradients of one block.
    pub fn new<S>(arena: &mut impl Arena<Mat = M, Stats = S>, width: usize, feed_forward: usize) -> Self {
        let rows = Rows::Tokens;
        BlockScratch {
            d_qkv: arena.mat(rows, 3 * width),
            d_ctx: arena.mat(rows, width),
            d_branch: arena.mat(rows, width),
            d_pre: arena.mat(rows, feed_forward),
        }
    }
}

/// The two places of a block that drop.
#[derive(Debug, Clone, Copy)]
pub struct BlockDropout {
    /// On the attention probabilities.
    pub attention: Dropout,
    /// After the second linear layer.
    pub output: Dropout,
}

/// A block: its parameters, its heads, its dropout.
#[derive(Debug, Clone, Copy)]
pub struct Block<'a> {
    /// Where its parameters lie.
    pub params: &'a BlockParams,
    /// H
    pub heads: usize,
    /// What it drops.
    pub drop: BlockDropout,
}

impl Block<'_> {
    /// y = block(x).  x, y [N, C]. Steps are numbered; [`Block::backward`] undoes them in reverse.
    ///
    /// # Errors
    ///
    /// Those of the ops that it calls.
    pub fn forward<B: Backend>(
        &self, be: &B, w: &B::Weights, batch: &B::Batch, x: &B::Mat, a: &mut BlockActs<B::Mat, B::Stats>,
        y: &mut B::Mat,
    ) -> Result<()> {
        let p = self.params;
        be.linear(x, w, &p.qkv, &mut a.qkv)?; // 1  qkv = x Wqkvᵀ + b                        [N, 3C]
        be.attention(&a.qkv, batch, self.heads, &self.drop.attention, &mut a.lse, &mut a.ctx)?; // 2  ctx = attention(qkv)  [N, C]
        be.linear(&a.ctx, w, &p.out, &mut a.projected)?; // 3  projected = ctx Woutᵀ + b            [N, C]
        be.add_layernorm(
            &a.projected,
            Some(x),
            batch,
            w,
            &p.attention_norm,
            &Dropout::NONE,
            &mut a.attention_sum,
            &mut a.attention_stats,
            &mut a.middle,
        )?; // 4  middle = LN(x + projected)              [N, C]
        be.linear_gelu(&a.middle, w, &p.lin1, &mut a.pre, &mut a.act)?; // 5  act = gelu(middle W1ᵀ + b)  [N, F]
        be.linear(&a.act, w, &p.lin2, &mut a.projected)?; // 6  projected = act W2ᵀ + b               [N, C]
        be.add_layernorm(
            &a.projected,
            Some(&a.middle),
            batch,
            w,
            &p.output_norm,
            &self.drop.output,
            &mut a.output_sum,
            &mut a.output_stats,
            y,
        ) // 7  y = LN(middle + dropout(projected))     [N, C]
    }

    /// `d` comes in as d_y and goes out as d_x. [N, C]
    ///
    /// # Errors
    ///
    /// Those of the ops that it calls.
    #[allow(clippy::too_many_arguments)]
    pub fn backward<B: Backend>(
        &self, be: &B, w: &B::Weights, batch: &B::Batch, x: &B::Mat, a: &BlockActs<B::Mat, B::Stats>,
        s: &mut BlockScratch<B::Mat>, grads: &mut B::Flat, d: &mut B::Mat,
    ) -> Result<()> {
        let p = self.params;
        be.add_layernorm_backward(
            d,
            &a.output_sum,
            &a.output_stats,
            batch,
            w,
            &p.output_norm,
            &self.drop.output,
            Some(p.lin2.bias),
            grads,
            Some(&mut s.d_branch),
        )?; // 7  d = d_middle so far, d_branch = d_projected
        be.linear_backward_gelu(&s.d_branch, &a.act, &a.pre, w, &p.lin2, p.lin1.bias, grads, &mut s.d_pre)?; // 6, and 5's GELU
        be.linear_backward(&s.d_pre, &a.middle, w, &p.lin1, grads, Into::Add(d))?; // 5  d = d_middle
        be.add_layernorm_backward(
            d,
            &a.attention_sum,
            &a.attention_stats,
            batch,
            w,
            &p.attention_norm,
            &Dropout::NONE,
            Some(p.out.bias),
            grads,
            None,
        )?; // 4  d = d_x so far = d_projected (nothing is dropped here)
        be.linear_backward(d, &a.ctx, w, &p.out, grads, Into::Write(&mut s.d_ctx))?; // 3
        be.attention_backward(
            &a.qkv,
            batch,
            self.heads,
            &self.drop.attention,
            &a.lse,
            &a.ctx,
            &s.d_ctx,
            p.qkv.bias,
            grads,
            &mut s.d_qkv,
        )?; // 2
        be.linear_backward(&s.d_qkv, x, w, &p.qkv, grads, Into::Add(d)) // 1  d = d_x
    }
}
