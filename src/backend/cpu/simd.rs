//! Vector arithmetic without intrinsics: code generic over [`Simd`], compiled once for each
//! instruction set (AVX-512, AVX2, NEON, the baseline) and chosen at run time by [`dispatch`].
//!
//! Everything called from inside a dispatched operation is `#[inline(always)]`, closures too: a
//! function that is not inlined is compiled for the baseline and reaches vector instructions by a
//! call each, fifty times slower.

use std::sync::OnceLock;

use pulp::{Arch, Simd, WithSimd};

/// Runs `op` compiled for the best instruction set of this machine.
#[inline(always)]
pub fn dispatch<Op: WithSimd>(op: Op) -> Op::Output {
    static ARCH: OnceLock<Arch> = OnceLock::new();
    ARCH.get_or_init(choose).dispatch(op)
}

/// The best instruction set there is, or what the environment asks for: `HANDBERT_SIMD=avx2` and `=none`
/// test on one machine what others run.
fn choose() -> Arch {
    match std::env::var("HANDBERT_SIMD").as_deref() {
        Ok("none") => Arch::Scalar,
        #[cfg(target_arch = "x86_64")]
        Ok("avx2") => pulp::x86::V3::try_new().map_or(Arch::Scalar, Arch::V3),
        _ => Arch::new(),
    }
}

/// The vectors of an instruction set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Vectors {
    /// f32 values in a register.
    pub lanes: usize,
    /// Registers.
    pub registers: usize,
}

impl Vectors {
    /// Those of this machine.
    pub fn detect() -> Self {
        struct Probe;
        impl WithSimd for Probe {
            type Output = Vectors;
            #[inline(always)]
            fn with_simd<S: Simd>(self, _: S) -> Vectors {
                Vectors { lanes: S::F32_LANES, registers: S::REGISTER_COUNT }
            }
        }
        dispatch(Probe)
    }

    /// Name of the instruction set.
    pub fn name(&self) -> &'static str {
        match self.lanes {
            16 => "AVX-512",
            8 => "AVX2",
            4 => "128-bit vectors",
            _ => "no vectors",
        }
    }
}

/// Vector by vector: `outs` = f(`outs`, `ins`), all of one length.
#[inline(always)]
pub fn update<S: Simd, const O: usize, const I: usize>(
    simd: S, outs: [&mut [f32]; O], ins: [&[f32]; I], mut f: impl FnMut([S::f32s; O], [S::f32s; I]) -> [S::f32s; O],
) {
    let len = outs[0].len();
    let mut outs = outs.map(|o| S::as_mut_simd_f32s(&mut o[..len]));
    let ins = ins.map(|i| S::as_simd_f32s(&i[..len]));
    for v in 0..len / S::F32_LANES {
        let results = f(std::array::from_fn(|o| outs[o].0[v]), std::array::from_fn(|i| ins[i].0[v]));
        for (out, result) in outs.iter_mut().zip(results) {
            out.0[v] = result;
        }
    }
    if !len.is_multiple_of(S::F32_LANES) {
        let (mut old, mut tails) = ([simd.splat_f32s(0.0); O], [simd.splat_f32s(0.0); I]);
        for (old, out) in old.iter_mut().zip(&outs) {
            *old = simd.partial_load_f32s(out.1);
        }
        load_tails(simd, &mut tails, &ins);
        let results = f(old, tails);
        for (out, result) in outs.iter_mut().zip(results) {
            simd.partial_store_f32s(out.1, result);
        }
    }
}

/// What is left of each slice after its whole vectors, as vectors filled up with zeros.
#[inline(always)]
fn load_tails<S: Simd, const I: usize>(simd: S, tails: &mut [S::f32s; I], ins: &[(&[S::f32s], &[f32]); I]) {
    for (tail, input) in tails.iter_mut().zip(ins) {
        *tail = simd.partial_load_f32s(input.1);
    }
}

/// The sums over all elements of each value of f(`ins`), all of one length.
#[inline(always)]
pub fn sums<S: Simd, const N: usize, const I: usize>(
    simd: S, ins: [&[f32]; I], f: impl Fn([S::f32s; I]) -> [S::f32s; N],
) -> [f32; N] {
    /// Chains of additions that run side by side.
    const CHAINS: usize = 4;
    let len = ins[0].len();
    let ins = ins.map(|i| S::as_simd_f32s(&i[..len]));
    let zero = simd.splat_f32s(0.0);
    let mut totals = [[zero; N]; CHAINS];
    let vectors = len / S::F32_LANES;
    let whole = vectors / CHAINS * CHAINS;
    for v in (0..whole).step_by(CHAINS) {
        for (c, total) in totals.iter_mut().enumerate() {
            let terms = f(std::array::from_fn(|i| ins[i].0[v + c]));
            add_each(simd, total, terms);
        }
    }
    for v in whole..vectors {
        let terms = f(std::array::from_fn(|i| ins[i].0[v]));
        add_each(simd, &mut totals[0], terms);
    }
    let tail = len % S::F32_LANES;
    if tail > 0 {
        let mut tails = [simd.splat_f32s(0.0); I];
        load_tails(simd, &mut tails, &ins);
        let terms = f(tails);
        // Lanes beyond the tail hold f(0), which need not be 0.
        for (total, term) in totals[0].iter_mut().zip(terms) {
            *total = simd.add_f32s(*total, simd.partial_load_f32s(&bytemuck::cast_slice(&[term])[..tail]));
        }
    }
    let [mut a, b, mut c, d] = totals;
    add_each(simd, &mut a, b);
    add_each(simd, &mut c, d);
    add_each(simd, &mut a, c);
    let mut sums = [0.0; N];
    for (sum, a) in sums.iter_mut().zip(a) {
        *sum = simd.reduce_sum_f32s(a);
    }
    sums
}

#[inline(always)]
fn add_each<S: Simd, const N: usize>(simd: S, totals: &mut [S::f32s; N], terms: [S::f32s; N]) {
    for (total, term) in totals.iter_mut().zip(terms) {
        *total = simd.add_f32s(*total, term);
    }
}

/// The largest value, -∞ of none; a NaN is passed over.
#[inline(always)]
pub fn max<S: Simd>(simd: S, xs: &[f32]) -> f32 {
    let (full, tail) = S::as_simd_f32s(xs);
    let mut largest = simd.splat_f32s(f32::NEG_INFINITY);
    for &x in full {
        largest = simd.select_f32s(simd.greater_than_f32s(x, largest), x, largest);
    }
    tail.iter().fold(simd.reduce_max_f32s(largest), |a, &b| if b > a { b } else { a })
}

/// ys += xs
#[inline(always)]
pub fn add<S: Simd>(simd: S, ys: &mut [f32], xs: &[f32]) {
    update(
        simd,
        [ys],
        [xs],
        #[inline(always)]
        |[y], [x]| [simd.add_f32s(y, x)],
    );
}

/// ys += x
#[inline(always)]
pub fn add_value<S: Simd>(simd: S, ys: &mut [f32], x: f32) {
    let x = simd.splat_f32s(x);
    update(
        simd,
        [ys],
        [],
        #[inline(always)]
        |[y], []| [simd.add_f32s(y, x)],
    );
}

/// ys *= x
#[inline(always)]
pub fn scale<S: Simd>(simd: S, ys: &mut [f32], x: f32) {
    let x = simd.splat_f32s(x);
    update(
        simd,
        [ys],
        [],
        #[inline(always)]
        |[y], []| [simd.mul_f32s(y, x)],
    );
}

/// c[0] + c[1]·x + c[2]·x² + …
#[inline(always)]
pub fn horner<S: Simd, const N: usize>(simd: S, c: [f32; N], x: S::f32s) -> S::f32s {
    let mut y = simd.splat_f32s(c[N - 1]);
    for i in (0..N - 1).rev() {
        y = simd.mul_add_e_f32s(y, x, simd.splat_f32s(c[i]));
    }
    y
}

/// Below it, e^x is taken as 0: the smallest normal number is e^-87.34.
const EXP_LOWEST: f32 = -87.3;
/// Above it, e^x is taken as e^88, 1.65e38: it is made for softmax, whose arguments are not positive.
const EXP_HIGHEST: f32 = 88.0;
/// Adding it rounds to an integer, which then stands in the low bits.
const ROUND: f32 = 12_582_912.0;
/// ln 2 in two parts; n × the first is exact for |n| < 2^9.
const LN_2: [f32; 2] = [0.693_145_75, 1.428_606_8e-6];
/// (e^r - 1 - r) / r² on ±ln 2 / 2: minimax of degree 4, relative error 3.1e-9, fitted for this file.
const EXP: [f32; 5] = [0.499_999_94, 0.166_665_21, 0.041_668_39, 0.008_368_71, 0.001_381_461_3];

/// e^x. Relative error below 1e-7, or 1.5e-7 without fused multiply-add, from -87.3 to 88 (tested on a dense grid); 0 below;
/// NaN stays NaN.
#[inline(always)]
pub fn exp<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    // Comparisons rather than min and max, which would swallow a NaN.
    let too_low = simd.less_than_f32s(x, simd.splat_f32s(EXP_LOWEST));
    let x = simd.select_f32s(too_low, simd.splat_f32s(EXP_LOWEST), x);
    let x = simd.select_f32s(simd.greater_than_f32s(x, simd.splat_f32s(EXP_HIGHEST)), simd.splat_f32s(EXP_HIGHEST), x);
    // x = n ln 2 + r
    let shifted = simd.mul_add_e_f32s(x, simd.splat_f32s(std::f32::consts::LOG2_E), simd.splat_f32s(ROUND));
    let n = simd.sub_f32s(shifted, simd.splat_f32s(ROUND));
    let r = simd.mul_add_e_f32s(n, simd.splat_f32s(-LN_2[0]), x);
    let r = simd.mul_add_e_f32s(n, simd.splat_f32s(-LN_2[1]), r);
    // e^r = 1 + (r + r² p(r))
    let mantissa = simd.mul_add_e_f32s(horner(simd, EXP, r), simd.mul_f32s(r, r), r);
    let mantissa = simd.add_f32s(mantissa, simd.splat_f32s(1.0));
    // 2^n: n moved into the exponent. The high bits of `shifted` fall off the left end.
    let exponent = simd.wrapping_dyn_shl_u32s(simd.transmute_u32s_f32s(shifted), simd.splat_u32s(23));
    let power = simd.transmute_f32s_u32s(simd.add_u32s(exponent, simd.splat_u32s(127 << 23)));
    simd.select_f32s(too_low, simd.splat_f32s(0.0), simd.mul_f32s(mantissa, power))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// y = e^x
    struct Exp<'a>(&'a [f32], &'a mut [f32]);

    impl WithSimd for Exp<'_> {
        type Output = ();
        fn with_simd<S: Simd>(self, simd: S) {
            update(
                simd,
                [self.1],
                [self.0],
                #[inline(always)]
                |_, [x]| [exp(simd, x)],
            );
        }
    }

    #[test]
    fn exp_is_within_a_rounding_error_or_two() {
        let xs: Vec<f32> = (0..1_750_001).map(|i| -87.2 + i as f32 * 1e-4).collect();
        for arch in [Arch::new(), Arch::Scalar] {
            let mut ys = vec![0.0; xs.len()];
            arch.dispatch(Exp(&xs, &mut ys));
            let worst = xs.iter().zip(&ys).map(|(&x, &y)| (f64::from(y) / f64::from(x).exp() - 1.0).abs());
            // A NaN is the largest of them.
            let worst = worst.max_by(f64::total_cmp).unwrap();
            // Without fused multiply-add the reduction of x rounds once more.
            assert!(worst < if arch_is_scalar(arch) { 1.5e-7 } else { 1e-7 }, "{worst:e}");
        }
    }

    fn arch_is_scalar(arch: Arch) -> bool {
        matches!(arch, Arch::Scalar)
    }

    #[test]
    fn exp_at_the_ends() {
        let xs = [f32::NEG_INFINITY, -1e30, -87.4, 0.0, -0.0, f32::NAN];
        let mut ys = [9.0; 6];
        dispatch(Exp(&xs, &mut ys));
        assert_eq!(ys[..5], [0.0, 0.0, 0.0, 1.0, 1.0]);
        assert!(ys[5].is_nan());
    }

    /// Σ (x + 1), Σ x², max x
    struct Reductions<'a>(&'a [f32]);

    impl WithSimd for Reductions<'_> {
        type Output = ([f32; 2], f32);
        fn with_simd<S: Simd>(self, simd: S) -> Self::Output {
            let one = simd.splat_f32s(1.0);
            (
                sums(
                    simd,
                    [self.0],
                    #[inline(always)]
                    |[x]| [simd.add_f32s(x, one), simd.mul_f32s(x, x)],
                ),
                max(simd, self.0),
            )
        }
    }

    #[test]
    fn reductions_count_every_element_once() {
        for len in [0, 1, 7, 16, 63, 64, 200] {
            let xs: Vec<f32> = (0..len).map(|i| -((i * 7 % 11) as f32) - 1.0).collect();
            let (sums, max) = dispatch(Reductions(&xs));
            assert_eq!(sums, [xs.iter().map(|x| x + 1.0).sum::<f32>(), xs.iter().map(|x| x * x).sum()]);
            assert_eq!(max, xs.iter().copied().fold(f32::NEG_INFINITY, f32::max));
        }
    }
}
