//! Random inputs: the same on every machine, for a seed.

use rayon::prelude::*;

use crate::philox::{below, philox4x32};

/// A stream of draws that no dropout or mask of the library shares: its key's high word is its own.
#[derive(Debug, Clone)]
pub struct Random {
    seed: u32,
    drawn: u32,
}

impl Random {
    /// The stream of a seed.
    pub fn new(seed: u32) -> Self {
        Random { seed, drawn: 0 }
    }

    fn words(&mut self) -> [u32; 4] {
        self.drawn += 1;
        words(self.seed, self.drawn)
    }

    /// `len` normal numbers times `scale`, by Box and Muller's transform; drawn on all threads.
    pub fn normals(&mut self, len: usize, scale: f32) -> Vec<f32> {
        let (seed, first) = (self.seed, self.drawn + 1);
        self.drawn += len as u32;
        let normal = |i: usize| {
            let words = words(seed, first + i as u32);
            let unit = |w: u32| (f64::from(w) + 0.5) / 4_294_967_296.0;
            let radius = (-2.0 * unit(words[0]).ln()).sqrt();
            (f64::from(scale) * radius * (std::f64::consts::TAU * unit(words[1])).cos()) as f32
        };
        (0..len).into_par_iter().with_min_len(4096).map(normal).collect()
    }

    /// An integer in 0..n.
    pub fn below(&mut self, n: u32) -> u32 {
        below(self.words()[0], n)
    }
}

fn words(seed: u32, number: u32) -> [u32; 4] {
    philox4x32([number, 0, 0, 0], [seed, 0x7e57_1e57])
}
