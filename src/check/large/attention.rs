//! Attention of a large batch: the first and the last head are worked out.

use rayon::prelude::*;

use super::Scale;
use super::sample::{Block, cast_block, thinned};
use crate::backend::{Backend, Capacity, Dropout, Result};
use crate::check::harness::{OpCase, Outputs, Values};
use crate::check::ops::attention::{Case, case};
use crate::check::ops::drop_prob;
use crate::check::reference::attention::{Attention, Place};
use crate::check::reference::{Scalar, add_rows, stored, widen};
use crate::check::room::Room;

/// [`Case`], by two of its heads.
pub struct TwoHeads {
    case: Case,
    heads: [usize; 2],
}

/// Under dropout.
pub fn of_a_batch(scale: &Scale, lengths: &[usize]) -> TwoHeads {
    let head_size = scale.width / scale.heads;
    let case = case(lengths, scale.heads, head_size, Dropout::new(0.1, 2, 7), 1.0);
    TwoHeads { case, heads: [0, scale.heads - 1] }
}

impl TwoHeads {
    fn head_size(&self) -> usize {
        self.case.width / self.case.heads
    }

    /// Columns of a head in a matrix of `parts` times C, one part after the other.
    fn columns(&self, head: usize, parts: usize) -> Vec<usize> {
        let (size, width) = (self.head_size(), self.case.width);
        (0..parts).flat_map(|part| (0..size).map(move |c| part * width + head * size + c)).collect()
    }

    fn block(&self, output: &str) -> Option<Block> {
        let both = |parts| self.heads.iter().flat_map(|&head| self.columns(head, parts)).collect::<Vec<_>>();
        let Case { width, heads, .. } = self.case;
        Some(match output {
            "ctx" => Block::columns(width, &both(1)),
            "lse" => Block::columns(heads, &self.heads),
            _ => Block::columns(3 * width, &both(3)),
        })
    }

    /// A head of each sequence on its own, with the head's columns of qkv and d_ctx; on all threads.
    fn sequences<T: Scalar, R: Send>(
        &self, head: usize, work: impl Fn(&Attention<'_>, &[T], &[T]) -> R + Sync,
    ) -> Vec<R> {
        let (case, size) = (&self.case, self.head_size());
        let qkv: Vec<T> = cast_block(&Block::columns(3 * case.width, &self.columns(head, 3)), &case.qkv);
        let d_ctx: Vec<T> = cast_block(&Block::columns(case.width, &self.columns(head, 1)), &case.d_ctx);
        let sequence = |ends: &[u32]| {
            let (from, to) = (ends[0] as usize, ends[1] as usize);
            let attention = Attention {
                cu_seqlens: &[0, ends[1] - ends[0]],
                heads: 1,
                width: size,
                drop: case.drop,
                step: case.batch.step,
                first: Place { row: ends[0], head: head as u32 },
            };
            work(&attention, &qkv[from * 3 * size..to * 3 * size], &d_ctx[from * size..to * size])
        };
        case.batch.cu_seqlens.par_windows(2).map(sequence).collect()
    }
}

/// Rows of the one beside those of the other.
fn beside<T: Copy>([one, other]: [Vec<T>; 2], cols: usize) -> Vec<T> {
    one.chunks(cols).zip(other.chunks(cols)).flat_map(|(a, b)| [a, b].concat()).collect()
}

impl OpCase for TwoHeads {
    fn op(&self) -> &'static str {
        self.case.op()
    }

    fn shape(&self) -> String {
        let Case { batch, heads, drop, .. } = &self.case;
        format!("N={}, B={}, H={heads}, D={}, {}", batch.tokens(), batch.sequences(), self.head_size(), drop_prob(drop))
    }

    fn counts(&self) -> Capacity {
        self.case.counts()
    }

    fn inputs(&mut self) -> Vec<&mut [f32]> {
        self.case.inputs()
    }

    fn terms(&self, output: &str) -> f64 {
        let largest = |head| {
            let terms = self.sequences::<f64, f64>(head, |attention, qkv, d_ctx| attention.largest_term(qkv, d_ctx));
            terms.into_iter().fold(0.0, f64::max)
        };
        match output {
            "d_qkv" | "d_bias" => self.heads.map(largest).into_iter().fold(0.0, f64::max),
            _ => 0.0,
        }
    }

    fn reference<T: Scalar>(&self) -> Values {
        let [mut ctx, mut lse, mut d_qkv, mut d_bias] = [(); 4].map(|()| [Vec::new(), Vec::new()]);
        for (i, &head) in self.heads.iter().enumerate() {
            for (forward, backward) in self.sequences::<T, _>(head, |attention, qkv, d_ctx| {
                (attention.forward(qkv), stored(attention.backward(qkv, d_ctx)))
            }) {
                ctx[i].extend(forward.0);
                lse[i].extend(forward.1);
                d_qkv[i].extend(backward);
            }
            d_bias[i] =
                Block::columns(3 * self.case.width, &self.columns(head, 3)).of(&self.case.params.grad(self.case.bias));
            add_rows(&d_qkv[i], &mut d_bias[i]);
        }
        let size = self.head_size();
        vec![
            ("ctx", widen(&beside(ctx, size))),
            ("lse", widen(&beside(lse, 1))),
            ("d_qkv", widen(&beside(d_qkv, 3 * size))),
            ("d_bias", widen(&beside(d_bias, 3 * size))),
        ]
    }

    fn run<B: Backend>(&self, room: &mut Room<'_, B>) -> Result<Outputs> {
        Ok(thinned(self.case.run(room)?, |output| self.block(output)))
    }
}
