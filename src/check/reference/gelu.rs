//! gelu(x) = x Φ(x), with Φ the normal distribution's cumulative function.

use super::{Scalar, erf};

/// Φ(x) = (1 + erf(x / √2)) / 2. In f32 the erf is the exact one, rounded: as good as f32 can have it.
fn cumulative<T: Scalar>(x: T) -> T {
    let erf_x = T::of(erf((x / T::of(std::f64::consts::SQRT_2)).to_f64()));
    T::of(0.5) * (T::of(1.0) + erf_x)
}

/// x Φ(x)
pub fn gelu<T: Scalar>(x: T) -> T {
    x * cumulative(x)
}

/// Φ(x) + x φ(x)
pub fn gelu_derivative<T: Scalar>(x: T) -> T {
    let density =
        (-(x * x) * T::of(0.5)).exp() * T::of(0.5 * std::f64::consts::FRAC_2_SQRT_PI / std::f64::consts::SQRT_2);
    cumulative(x) + x * density
}

/// d ∘ gelu'(pre)
pub fn gelu_backward<T: Scalar>(pre: &[T], d: &[T]) -> Vec<T> {
    pre.iter().zip(d).map(|(&x, &d)| d * gelu_derivative(x)).collect()
}
