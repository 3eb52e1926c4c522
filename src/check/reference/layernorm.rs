//! LayerNorm over rows of C, and the sum that goes into it.

use super::{Scalar, sum};

/// (y [R, C], stats [R, 2]), y = (x - mean) · rstd · γ + β, the variance divided by C.
pub fn layernorm<T: Scalar>(x: &[T], gamma: &[T], beta: &[T], epsilon: T) -> (Vec<T>, Vec<T>) {
    let width = T::of(gamma.len() as f64);
    let (mut y, mut stats) = (Vec::new(), Vec::new());
    for row in x.chunks(gamma.len()) {
        let mean = sum(row.iter().copied()) / width;
        let variance = sum(row.iter().map(|&x| (x - mean) * (x - mean))) / width;
        let rstd = T::of(1.0) / (variance + epsilon).sqrt();
        y.extend(row.iter().zip(gamma.iter().zip(beta)).map(|(&x, (&g, &b))| (x - mean) * rstd * g + b));
        stats.extend([mean, rstd]);
    }
    (y, stats)
}

/// d_γ += Σ_rows d_y ∘ x̂, d_β += Σ_rows d_y; gives d_x = rstd (g - mean(g) - x̂ mean(g ∘ x̂)), g = d_y ∘ γ.
pub fn layernorm_backward<T: Scalar>(
    d_y: &[T], x: &[T], stats: &[T], gamma: &[T], d_gamma: &mut [T], d_beta: &mut [T],
) -> Vec<T> {
    let width = gamma.len();
    let mean_of = |values: &mut dyn Iterator<Item = T>| sum(values) / T::of(width as f64);
    let mut d_x = Vec::new();
    for ((d_y, x), stats) in d_y.chunks(width).zip(x.chunks(width)).zip(stats.chunks(2)) {
        let hat: Vec<T> = x.iter().map(|&x| (x - stats[0]) * stats[1]).collect();
        let g: Vec<T> = d_y.iter().zip(gamma).map(|(&d, &gamma)| d * gamma).collect();
        let mean_g = mean_of(&mut g.iter().copied());
        let mean_g_hat = mean_of(&mut g.iter().zip(&hat).map(|(&g, &h)| g * h));
        for c in 0..width {
            d_gamma[c] += d_y[c] * hat[c];
            d_beta[c] += d_y[c];
            d_x.push(stats[1] * (g[c] - mean_g - hat[c] * mean_g_hat));
        }
    }
    d_x
}

/// sum = residual + keep ∘ branch
pub fn residual_sum<T: Scalar>(branch: &[T], residual: Option<&[T]>, keep: &[T]) -> Vec<T> {
    let at = |i: usize| residual.map_or(T::default(), |r| r[i]);
    (0..branch.len()).map(|i| at(i) + keep[i] * branch[i]).collect()
}
