//! model.safetensors, and the loading of a model.

#![no_main]

handbert_fuzz::target!(Weights, "weights");
