//! From files to masked batches: what is read, how it becomes tokens, and that every one of them is seen once.

mod corpus;
mod masking;
mod packing;
mod parquet;
mod readers;
#[path = "../support/skip.rs"]
mod skip;
mod synth;
mod token_set;
mod tokenize_command;
mod tokenizer_parity;
