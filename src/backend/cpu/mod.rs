//! The CPU backend: f32, `gemm` + rayon, fused row loops.

/// Computes on rayon's current thread pool.
#[derive(Debug, Default)]
pub struct Cpu {}

impl Cpu {
    /// A backend on rayon's global pool.
    pub fn new() -> Self {
        Cpu {}
    }
}
