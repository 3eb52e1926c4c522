//! Models as transformers writes and reads them: configurations, weights, directories and hub ids.

mod config;
mod files;
mod fill_mask;
mod hub;
mod model_dir;
mod saving;
