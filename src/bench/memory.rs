//! What is kept on a card, by kind.

use super::cost::{BF16, F32};
use crate::backend::Capacity;
use crate::backend::cpu::Cpu;
use crate::backend::cuda::batch::Batch;
use crate::backend::cuda::memory::CudaArena;
use crate::model::{Config, DistilBert, Head, Mode, ParamTable};

/// Bytes on the card. What the driver keeps for itself, some hundred megabytes, is not in it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Memory {
    /// f32 master weights; biases and LayerNorms are read from them too.
    pub master_weights: u64,
    /// bf16 copy of the weights, which products read.
    pub compute_copy: u64,
    /// f32 gradients.
    pub gradients: u64,
    /// First moment of AdamW, f32.
    pub first_moment: u64,
    /// Second moment of AdamW, f32.
    pub second_moment: u64,
    /// What the forward pass leaves for the backward pass, and gradients on their way down.
    pub activations: u64,
    /// Activations and batch of the evaluation that a training run makes between steps.
    pub evaluation: u64,
    /// Ids, positions, sequences, targets, and the lists that kernels go by.
    pub batch: u64,
    /// What ops need beside their arguments; an estimate.
    pub working: u64,
}

impl Memory {
    /// That of a run with batches up to `capacity`.
    pub fn of(config: &Config, head: Head, capacity: Capacity, mode: Mode) -> Memory {
        let len = ParamTable::new(config, head).flat_len as u64;
        let flat = len * F32 as u64;
        let activations = |mode| CudaArena::bytes(&DistilBert::<Cpu>::plan(config, head, capacity, mode)) as u64;
        let batch = Batch::bytes(capacity) as u64;
        let inference = Memory {
            master_weights: flat,
            compute_copy: len * BF16 as u64,
            activations: activations(mode),
            batch,
            working: working(config, head, capacity, mode),
            ..Memory::default()
        };
        match mode {
            Mode::Inference => inference,
            Mode::Training => Memory {
                gradients: flat,
                first_moment: flat,
                second_moment: flat,
                evaluation: activations(Mode::Inference) + batch,
                ..inference
            },
        }
    }

    /// Each kind with its name, for people.
    pub fn by_kind(&self) -> [(&'static str, u64); 9] {
        [
            ("master weights", self.master_weights),
            ("compute copy", self.compute_copy),
            ("gradients", self.gradients),
            ("first moment", self.first_moment),
            ("second moment", self.second_moment),
            ("activations", self.activations),
            ("evaluation", self.evaluation),
            ("batch", self.batch),
            ("working, about", self.working),
        ]
    }

    /// All of it.
    pub fn total(&self) -> u64 {
        self.by_kind().iter().map(|(_, bytes)| bytes).sum()
    }
}

/// Parts of a weight gradient take at most this much at base size, as a test of the CUDA backend's matmul.rs says.
const SPLITS: usize = 128 << 20;

/// What cuBLASLt works in.
const LIBRARY: usize = 32 << 20;

/// Each kind of the CUDA backend's working memory is one buffer, as large as its largest use.
fn working(config: &Config, head: Head, capacity: Capacity, mode: Mode) -> u64 {
    let Capacity { tokens, masked, .. } = capacity;
    let (width, inner) = (config.dim, config.hidden_dim);
    // A chunk of logits in bf16, loss and hit of each row.
    let loss = match head {
        Head::Mlm => masked.min(512) * config.vocab_size.next_multiple_of(64) * 2 + 2 * masked * 4,
        Head::Classifier { .. } => 0,
    };
    if mode == Mode::Inference {
        return loss as u64;
    }
    // Of a weight that is cut into parts at all, no less than two.
    let splits = SPLITS.max(2 * width * inner.max(3 * width) * 4);
    let norms = tokens.div_ceil(64) * 3 * width * 4;
    let gelu = tokens.div_ceil(128) * inner * 4;
    let tables = tokens.div_ceil(16) * width * 4;
    // A value for each row and head, in attention's backward pass.
    let rows = tokens * config.n_heads * 4;
    // What is put back after ways to add to it were tried out: a gradient of weights, of hidden states.
    let largest = if head == Head::Mlm { config.vocab_size } else { inner };
    let kept = (largest * width * 4).max(tokens * width * 2);
    (loss + splits + norms.max(gelu).max(tables) + rows + kept + LIBRARY) as u64
}
