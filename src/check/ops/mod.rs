//! A file for each family of ops: how a case is run on a backend, how the reference computes the same, and which cases
//! there are.

pub mod attention;
pub mod classes;
pub mod embedding;
pub mod gelu;
pub mod layernorm;
pub mod linear;
pub mod optimizer;
pub mod rows;
pub mod top_k;
pub mod vocabulary;

use crate::backend::Dropout;

/// As cases name it.
pub fn drop_prob(drop: &Dropout) -> String {
    format!("drop_prob={:.2}", f64::from(drop.threshold()) / 65_536.0)
}
