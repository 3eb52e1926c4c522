//! Which values dropout drops: a pure function of (seed, step, site, packed row, column).
//!
//! One Philox draw decides eight neighbouring columns, 16 bits each. A value is dropped when its
//! 16 bits are below a threshold of 65,536 × drop_prob, rounded; kept values are multiplied by the
//! inverse of the true keep rate, so the expectation is exact.

use pulp::Simd;

use crate::philox::{Purpose, key, philox4x32, philox4x32_vectors};

/// f32 lanes of the longest vectors there are.
const MAX_LANES: usize = 16;

/// Dropout at one place of the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dropout {
    /// Values below it are dropped; 0 = no dropout.
    threshold: u16,
    /// Which place: no two places of the model share one.
    site: u32,
    key: [u32; 2],
}

impl Dropout {
    /// No dropout: evaluation.
    pub const NONE: Dropout = Dropout { threshold: 0, site: 0, key: [0, 0] };

    /// Dropout with probability `drop_prob` in 0..1 of dropping, at `site` (below 65,536), under the run's `seed`.
    pub fn new(drop_prob: f32, site: u32, seed: u64) -> Self {
        debug_assert!((0.0..1.0).contains(&drop_prob) && site < 1 << 16);
        Dropout {
            threshold: (drop_prob * 65_536.0).round().min(65_535.0) as u16,
            site,
            key: key(seed, Purpose::Dropout),
        }
    }

    /// Whether anything is dropped.
    pub fn is_active(&self) -> bool {
        self.threshold > 0
    }

    /// What kept values are multiplied by: 1 / (1 - drop probability).
    pub fn keep_scale(&self) -> f32 {
        (65_536.0 / (65_536.0 - f64::from(self.threshold))) as f32
    }

    /// Values whose 16 bits are below it are dropped.
    pub fn threshold(&self) -> u16 {
        self.threshold
    }

    /// Which place of the model.
    pub fn site(&self) -> u32 {
        self.site
    }

    /// Philox's key.
    pub fn key(&self) -> [u32; 2] {
        self.key
    }

    /// The multipliers, 0 or [`Dropout::keep_scale`], of columns 8·block .. 8·block+8 of a packed row.
    #[inline(always)]
    pub fn keep8(&self, step: u32, row: u32, block: u32) -> [f32; 8] {
        self.keep8_at(step, row, block, self.site)
    }

    /// Like [`Dropout::keep8`] for attention: `row` is the query's packed row, the columns are key
    /// positions within the sequence, and each head draws of its own.
    #[inline(always)]
    pub fn keep8_head(&self, step: u32, head: u32, row: u32, block: u32) -> [f32; 8] {
        self.keep8_at(step, row, block, self.site | (head << 16))
    }

    /// [`Dropout::keep8`] of columns 0 .. `out.len()`, a vector of blocks at a time.
    #[inline(always)]
    pub fn keep_row<S: Simd>(&self, simd: S, step: u32, row: u32, out: &mut [f32]) {
        self.keep_row_at(simd, step, row, self.site, out);
    }

    /// [`Dropout::keep8_head`] of key positions 0 .. `out.len()`.
    #[inline(always)]
    pub fn keep_row_head<S: Simd>(&self, simd: S, step: u32, head: u32, row: u32, out: &mut [f32]) {
        self.keep_row_at(simd, step, row, self.site | (head << 16), out);
    }

    #[inline(always)]
    fn keep_row_at<S: Simd>(&self, simd: S, step: u32, row: u32, site: u32, out: &mut [f32]) {
        if !self.is_active() {
            return out.fill(1.0);
        }
        let splat = |x: u32| simd.splat_u32s(x);
        let ramp: [u32; MAX_LANES] = std::array::from_fn(|i| i as u32);
        let ramp = S::as_simd_u32s(&ramp[..S::U32_LANES]).0[0];
        let mut masks = [0u32; MAX_LANES];
        for (group, out) in out.chunks_mut(8 * S::U32_LANES).enumerate() {
            let block = simd.add_u32s(splat((group * S::U32_LANES) as u32), ramp);
            let words = philox4x32_vectors(simd, [block, splat(row), splat(site), splat(step)], self.key);
            let mut mask = splat(0);
            for (w, &word) in words.iter().enumerate() {
                let low = simd.less_than_u32s(simd.and_u32s(word, splat(0xffff)), splat(self.threshold.into()));
                let high = simd.less_than_u32s(word, splat(u32::from(self.threshold) << 16));
                mask = simd.or_u32s(mask, simd.select_u32s(low, splat(0), splat(1 << (2 * w))));
                mask = simd.or_u32s(mask, simd.select_u32s(high, splat(0), splat(2 << (2 * w))));
            }
            S::as_mut_simd_u32s(&mut masks[..S::U32_LANES]).0[0] = mask;
            self.spread(simd, &masks, out);
        }
    }

    /// out[c] = the multiplier that bit c % 8 of masks[c / 8] stands for.
    #[inline(always)]
    fn spread<S: Simd>(&self, simd: S, masks: &[u32; MAX_LANES], out: &mut [f32]) {
        let lanes = S::F32_LANES;
        let bits: [u32; MAX_LANES] = std::array::from_fn(|i| 1 << i);
        let bits = S::as_simd_u32s(&bits[..lanes]).0[0];
        let (zero, scale) = (simd.splat_f32s(0.0), simd.splat_f32s(self.keep_scale()));
        let (full, tail) = S::as_mut_simd_f32s(out);
        let tail_column = full.len() * lanes;
        for (i, out) in full.iter_mut().enumerate() {
            // The bits of this vector's columns: two masks fill 16 lanes, half a mask 4.
            let (block, shift) = (i * lanes / 8, i * lanes % 8);
            let next = if lanes > 8 { masks[block + 1] << 8 } else { 0 };
            let here = simd.splat_u32s((masks[block] | next) >> shift);
            *out = simd.select_f32s(simd.equal_u32s(simd.and_u32s(here, bits), bits), scale, zero);
        }
        for (c, out) in (tail_column..).zip(tail) {
            *out = if masks[c / 8] >> (c % 8) & 1 == 1 { self.keep_scale() } else { 0.0 };
        }
    }

    #[inline(always)]
    fn keep8_at(&self, step: u32, row: u32, block: u32, site: u32) -> [f32; 8] {
        let words = philox4x32([block, row, site, step], self.key);
        let scale = self.keep_scale();
        std::array::from_fn(|i| {
            let bits = (words[i / 2] >> (16 * (i % 2))) as u16;
            if bits < self.threshold { 0.0 } else { scale }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drops_at_the_rate_asked_for_and_keeps_the_expectation() {
        for drop_prob in [0.1, 0.2, 0.5] {
            let drop = Dropout::new(drop_prob, 3, 7);
            let (mut kept, mut total, mut sum) = (0usize, 0usize, 0.0f64);
            for row in 0..500 {
                for block in 0..96 {
                    for keep in drop.keep8(1, row, block) {
                        total += 1;
                        kept += usize::from(keep > 0.0);
                        sum += f64::from(keep);
                    }
                }
            }
            let rate = 1.0 - kept as f64 / total as f64;
            // Six standard deviations of a binomial of 384,000 draws.
            let sigma = (f64::from(drop_prob) * (1.0 - f64::from(drop_prob)) / total as f64).sqrt();
            assert!((rate - f64::from(drop_prob)).abs() < 6.0 * sigma + 1.0 / 65_536.0, "{rate} for {drop_prob}");
            assert!((sum / total as f64 - 1.0).abs() < 12.0 * sigma);
        }
    }

    #[test]
    fn steps_sites_rows_heads_and_seeds_draw_differently() {
        let base = Dropout::new(0.5, 1, 7);
        let draw = |d: &Dropout, step, row| (0..16).flat_map(|b| d.keep8(step, row, b)).collect::<Vec<_>>();
        let one = draw(&base, 0, 0);
        assert_eq!(one, draw(&base, 0, 0));
        assert_ne!(one, draw(&base, 1, 0));
        assert_ne!(one, draw(&base, 0, 1));
        assert_ne!(one, draw(&Dropout::new(0.5, 2, 7), 0, 0));
        assert_ne!(one, draw(&Dropout::new(0.5, 1, 8), 0, 0));
        assert_ne!(base.keep8_head(0, 0, 0, 0), base.keep8_head(0, 1, 0, 0));
    }

    struct Rows<'a>(&'a Dropout, &'a mut [f32], &'a mut [f32]);

    impl pulp::WithSimd for Rows<'_> {
        type Output = ();
        fn with_simd<S: Simd>(self, simd: S) {
            self.0.keep_row(simd, 5, 11, self.1);
            self.0.keep_row_head(simd, 5, 2, 11, self.2);
        }
    }

    #[test]
    fn a_row_is_its_blocks() {
        #[cfg(target_arch = "x86_64")]
        if pulp::x86::V3::try_new().is_none() {
            crate::skip::skipped("this machine has no AVX2");
        }
        for drop in [Dropout::NONE, Dropout::new(0.1, 3, 7)] {
            for columns in [1, 8, 100, 128, 768] {
                let same = |row: &[f32], head: &[f32]| {
                    for c in 0..columns {
                        assert_eq!(row[c], drop.keep8(5, 11, c as u32 / 8)[c % 8]);
                        assert_eq!(head[c], drop.keep8_head(5, 2, 11, c as u32 / 8)[c % 8]);
                    }
                };
                let (mut row, mut head) = (vec![9.0; columns], vec![9.0; columns]);
                pulp::Arch::new().dispatch(Rows(&drop, &mut row, &mut head));
                same(&row, &head);
                pulp::Arch::Scalar.dispatch(Rows(&drop, &mut row, &mut head));
                same(&row, &head);
                #[cfg(target_arch = "x86_64")]
                if let Some(v3) = pulp::x86::V3::try_new() {
                    Simd::vectorize(v3, Rows(&drop, &mut row, &mut head));
                    same(&row, &head);
                }
            }
        }
    }

    #[test]
    fn no_dropout_keeps_everything_as_it_is() {
        assert!(!Dropout::NONE.is_active());
        assert_eq!(Dropout::NONE.keep_scale(), 1.0);
        assert!(Dropout::NONE.keep8(5, 5, 5).iter().all(|&k| k == 1.0));
    }
}
