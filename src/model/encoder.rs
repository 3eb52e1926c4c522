//! The encoder: embeddings, then blocks.

use super::block::{Block, BlockActs, BlockDropout, BlockScratch};
use super::config::Config;
use super::params::ParamTable;
use super::shapes::Mode;
use crate::backend::{Arena, Backend, Dropout, Result, Rows};

/// What the encoder's forward pass leaves behind.
#[derive(Debug)]
pub struct EncoderActs<M, S> {
    /// Mean and reciprocal standard deviation of the embeddings' rows. [N, 2]
    pub embedding_stats: S,
    /// Hidden states before the first block and after each; in inference, two that take turns. [N, C]
    pub hidden: Vec<M>,
    /// What each block saves; in inference, one that serves all.
    pub blocks: Vec<BlockActs<M, S>>,
}

/// Gradients of the encoder's backward pass.
#[derive(Debug)]
pub struct EncoderScratch<M> {
    /// Gradient of the hidden states, carried from the last block to the embeddings. [N, C]
    pub d_hidden: M,
    /// Shared by all blocks.
    pub block: BlockScratch<M>,
}

impl<M, S> EncoderActs<M, S> {
    /// Room for a whole encoder.
    pub fn new(arena: &mut impl Arena<Mat = M, Stats = S>, config: &Config, mode: Mode) -> Self {
        let (kept, states) = match mode {
            Mode::Training => (config.n_layers, config.n_layers + 1),
            Mode::Inference => (1, 2),
        };
        EncoderActs {
            embedding_stats: arena.stats(Rows::Tokens, 2),
            hidden: (0..states).map(|_| arena.mat(Rows::Tokens, config.dim)).collect(),
            blocks: (0..kept).map(|_| BlockActs::new(arena, config.dim, config.hidden_dim, config.n_heads)).collect(),
        }
    }

    /// The encoder's output. [N, C]
    pub fn last_hidden(&self, layers: usize) -> &M {
        &self.hidden[layers % self.hidden.len()]
    }
}

impl<M> EncoderScratch<M> {
    /// Room for the backward pass.
    pub fn new<S>(arena: &mut impl Arena<Mat = M, Stats = S>, config: &Config) -> Self {
        EncoderScratch {
            d_hidden: arena.mat(Rows::Tokens, config.dim),
            block: BlockScratch::new(arena, config.dim, config.hidden_dim),
        }
    }
}

/// The places of the model that drop. Site 0 is the embeddings', 1 the classifier's, block i has 2i + 2 and 2i + 3.
#[derive(Debug, Clone)]
pub struct EncoderDropout {
    embedding: Dropout,
    blocks: Vec<BlockDropout>,
}

impl EncoderDropout {
    /// As configured, under the run's seed; nothing in inference.
    pub fn new(config: &Config, mode: Mode, seed: u64) -> Self {
        let drop = |prob: f32, site: usize| match mode {
            Mode::Training => Dropout::new(prob, site as u32, seed),
            Mode::Inference => Dropout::NONE,
        };
        EncoderDropout {
            embedding: drop(config.dropout, 0),
            blocks: (0..config.n_layers)
                .map(|i| BlockDropout {
                    attention: drop(config.attention_dropout, 2 * i + 2),
                    output: drop(config.dropout, 2 * i + 3),
                })
                .collect(),
        }
    }
}

/// The encoder of a model, for one pass.
#[derive(Debug, Clone, Copy)]
pub struct Encoder<'a> {
    /// Where the parameters lie.
    pub table: &'a ParamTable,
    /// H
    pub heads: usize,
    /// What is dropped.
    pub drop: &'a EncoderDropout,
}

impl Encoder<'_> {
    fn block(&self, i: usize) -> Block<'_> {
        Block { params: &self.table.blocks[i], heads: self.heads, drop: self.drop.blocks[i] }
    }

    /// Fills `acts` from the batch's ids; the result is [`EncoderActs::last_hidden`].
    ///
    /// # Errors
    ///
    /// Those of the ops that it calls.
    pub fn forward<B: Backend>(
        &self, be: &B, w: &B::Weights, batch: &B::Batch, acts: &mut EncoderActs<B::Mat, B::Stats>,
    ) -> Result<()> {
        be.embed(
            batch,
            w,
            &self.table.embedding,
            &self.drop.embedding,
            &mut acts.embedding_stats,
            &mut acts.hidden[0],
        )?; // 1
        let (states, kept) = (acts.hidden.len(), acts.blocks.len());
        for i in 0..self.table.blocks.len() {
            let [x, y] = acts.hidden.get_disjoint_mut([i % states, (i + 1) % states]).expect("at least two states");
            self.block(i).forward(be, w, batch, x, &mut acts.blocks[i % kept], y)?; // 2 + i
        }
        Ok(())
    }

    /// Takes the gradient of the last hidden state in `s.d_hidden` down to the embedding tables.
    ///
    /// # Errors
    ///
    /// Those of the ops that it calls.
    pub fn backward<B: Backend>(
        &self, be: &B, w: &B::Weights, batch: &B::Batch, acts: &EncoderActs<B::Mat, B::Stats>,
        s: &mut EncoderScratch<B::Mat>, grads: &mut B::Flat,
    ) -> Result<()> {
        for i in (0..self.table.blocks.len()).rev() {
            self.block(i).backward(
                be,
                w,
                batch,
                &acts.hidden[i],
                &acts.blocks[i],
                &mut s.block,
                grads,
                &mut s.d_hidden,
            )?; // 2 + i
        }
        be.embed_backward(
            batch,
            w,
            &self.table.embedding,
            &self.drop.embedding,
            &acts.embedding_stats,
            &mut s.d_hidden,
            grads,
        ) // 1
    }
}
