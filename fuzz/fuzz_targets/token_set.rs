//! meta.json, and the opening and reading of a token set.

#![no_main]

handbert_fuzz::target!(TokenSetHeader, "token_set");
