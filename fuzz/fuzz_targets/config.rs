//! config.json, and the loading of a model.

#![no_main]

handbert_fuzz::target!(ModelConfig, "config");
