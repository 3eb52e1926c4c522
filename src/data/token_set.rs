//! token_set
