//! Recipes and run.toml, up to the plan of a run.

#![no_main]

handbert_fuzz::target!(Recipe, "recipe");
