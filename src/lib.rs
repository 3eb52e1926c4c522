//! HandBERT: DistilBERT by hand. Every forward and backward pass is written out; there is no
//! autograd and no framework underneath.
//!
//! The map of the house, in reading order:
//!
//! | room | what it holds | knows of |
//! | --- | --- | --- |
//! | [`philox`] | the counter-based random numbers behind dropout, masks, order and initial weights | nothing |
//! | [`disk`] | files that are whole or as they were | nothing |
//! | [`data`] | text → token ids → token set (memory-mapped) → packed batches → masks | `philox`, `disk` |
//! | [`backend`] | how an op is computed: the [`backend::Backend`] trait, and the CPU's and the GPU's answers to it | `philox` |
//! | [`check`] | is a backend right? every op against an f64 reference, on many shapes | `backend`, `philox` |
//! | [`model`] | what DistilBERT is: config, parameter table, forward and backward, once, over `Backend` | `backend` |
//! | [`train`] | step, optimizer, schedule, policy, checkpoint, metrics, report | `model`, `data` |
//! | [`predict`] | streaming inference over files | `model`, `data` |
//! | [`bench`] | what a pass costs before it is run, op by op, and what it takes when it is | `train`, `predict`, `model` |
//! | [`cli`] | one command, one file: typed arguments → validated plan → run | all of them |
//!
//! Data flows one way:
//! `Record → TokenSet (on disk) → PackedBatch → MaskedBatch → Backend → loss or logits`.
//! There is no padding anywhere: a batch is a flat row of N tokens with `cu_seqlens`, the B+1
//! prefix sums of the sequence lengths.

pub mod backend;
pub mod bench;
pub mod check;
pub mod cli;
pub mod data;
pub mod disk;
pub mod model;
pub mod philox;
pub mod predict;
pub mod train;

/// The line of a test that cannot run here, as in tests/.
#[cfg(test)]
#[path = "../tests/support/skip.rs"]
mod skip;
