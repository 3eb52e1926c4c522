//! Model directories as `transformers` reads and writes them, and the hub's cache.
