//! The one table of letters. Words in Rust, letters in kernels and formulas.
//!
//! | letter | word in Rust | meaning |
//! | --- | --- | --- |
//! | N | `tokens` | packed tokens in the batch |
//! | B | `sequences` | sequences in the batch |
//! | C | `width` | width of the hidden states |
//! | H | `heads` | attention heads |
//! | D | `head_size` | C / H: 32, 64 or 128 |
//! | F | `feed_forward` | width between the two linear layers of a block |
//! | V | `vocab` | vocabulary |
//! | P | `positions` | rows of the position table: the longest sequence a model can take |
//! | M | `masked` | masked positions in the batch |
//! | K | `classes` | classes |
//! | L | `max_length` | longest sequence in use |
//!
//! `d_x` is the gradient of the loss with respect to x. `drop_prob` is the probability of dropping.

/// What the activations are kept for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Every block keeps what its backward pass needs; dropout as configured.
    Training,
    /// One block's worth of memory serves all; no dropout.
    Inference,
}
