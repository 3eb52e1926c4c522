//! FLOPs and bytes of an op, by hand. Activations and the weights that products read are as wide as the backend keeps them
//! ([`Precision`]), gradients, statistics and master weights f32.
//!
//! An op reads each of its inputs from memory once and writes each of its outputs once. Left out are biases, gammas and betas
//! (a row each) and the partial sums on their way to their gradients: below 3 % of the bytes of any op but two. In bf16 a
//! LayerNorm's backward pass writes and reads partials of 5 to 6 % of its bytes, most of them by way of the cache. The loss
//! over the vocabulary reads and writes V sums for its bias with each chunk of rows: 0.24 MB beside 94 of logits in the cache.

use crate::backend::Precision;

/// Bytes of an activation on a GPU.
pub const BF16: f64 = 2.0;
/// Bytes of a statistic, of a gradient, of a master weight.
pub const F32: f64 = 4.0;
/// Bytes of a token id, a position, a row number.
pub const INDEX: f64 = 4.0;

/// What an op costs, each time it is run.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Cost {
    /// Of matrix products, a multiplication and an addition each counting one.
    pub flops: f64,
    /// To and from memory.
    pub bytes: f64,
    /// Between kernels, by way of the L2 cache: no part of a floor.
    pub cached_bytes: f64,
}

impl Cost {
    /// Bytes alone.
    pub fn bytes(bytes: f64) -> Cost {
        Cost { bytes, ..Cost::default() }
    }

    /// More bytes.
    pub fn and(self, bytes: f64) -> Cost {
        Cost { bytes: self.bytes + bytes, ..self }
    }

    /// More bytes by way of the cache.
    pub fn and_cached(self, bytes: f64) -> Cost {
        Cost { cached_bytes: self.cached_bytes + bytes, ..self }
    }
}

/// Ops on activations of one width.
impl Precision {
    /// Bytes of an activation.
    pub fn bytes(self) -> f64 {
        match self {
            Precision::F32 => F32,
            Precision::Bf16 => BF16,
        }
    }

    /// So many matrices of [rows, cols], each read or written once.
    pub fn matrices(self, count: f64, rows: f64, cols: f64) -> Cost {
        Cost::bytes(count * rows * cols * self.bytes())
    }

    /// y = x Wᵀ, of x [rows, inputs], W [outputs, inputs], y [rows, outputs]; just as well d_x = d_y W.
    pub fn product(self, rows: f64, inputs: f64, outputs: f64) -> Cost {
        let bytes = self.bytes() * (rows * inputs + inputs * outputs + rows * outputs);
        Cost { flops: 2.0 * rows * inputs * outputs, bytes, cached_bytes: 0.0 }
    }

    /// d_W += d_yᵀ x, of x [rows, inputs], d_y [rows, outputs]; d_W [outputs, inputs] is f32, read and written.
    pub fn weight_gradient(self, rows: f64, inputs: f64, outputs: f64) -> Cost {
        let bytes = self.bytes() * rows * (inputs + outputs) + 2.0 * F32 * inputs * outputs;
        Cost { flops: 2.0 * rows * inputs * outputs, bytes, cached_bytes: 0.0 }
    }

    /// Forward: q kᵀ and the product with v, 2 FLOP each for every pair of tokens and column of a sequence; `attended` is
    /// the length of the sequence that a token is in, on average. In qkv [N, 3C]; out ctx [N, C], lse [N, H].
    pub fn attention(self, tokens: f64, attended: f64, width: f64, heads: f64) -> Cost {
        let bytes = tokens * (self.bytes() * 4.0 * width + F32 * heads);
        Cost { flops: 4.0 * tokens * attended * width, bytes, cached_bytes: 0.0 }
    }

    /// Backward: the scores once more, and the gradients of probabilities, v, q and k: five products for the two of the
    /// forward pass. In qkv [N, 3C], ctx and d_ctx [N, C], lse [N, H]; out d_qkv [N, 3C].
    pub fn attention_backward(self, tokens: f64, attended: f64, width: f64, heads: f64) -> Cost {
        let bytes = tokens * (self.bytes() * 8.0 * width + F32 * heads);
        Cost { flops: 10.0 * tokens * attended * width, bytes, cached_bytes: 0.0 }
    }

    /// So many matrices of [rows, cols], and the mean and reciprocal standard deviation of each row.
    pub fn layernorm(self, count: f64, rows: f64, cols: f64) -> Cost {
        self.matrices(count, rows, cols).and(2.0 * F32 * rows)
    }
}
