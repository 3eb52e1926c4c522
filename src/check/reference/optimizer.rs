//! Gradient norm and AdamW, as PyTorch's documentation of `torch.optim.AdamW` writes it.

use crate::backend::AdamW;

use super::{Scalar, sum};

/// √ Σ g²
pub fn grad_norm<T: Scalar>(grads: &[T]) -> T {
    sum(grads.iter().map(|&g| g * g)).sqrt()
}

/// A parameter, with its moments.
#[derive(Debug, Clone)]
pub struct State<T> {
    /// The weights.
    pub w: Vec<T>,
    /// First moment.
    pub m: Vec<T>,
    /// Second moment.
    pub v: Vec<T>,
}

/// One update of a parameter that decays by `decay`; `norm` is that of all gradients.
pub fn adamw<T: Scalar>(state: &mut State<T>, grads: &[T], decay: f32, norm: T, hyper: &AdamW) {
    let of = |x: f32| T::of(f64::from(x));
    let one = T::of(1.0);
    let (beta1, beta2, rate) = (of(hyper.beta1), of(hyper.beta2), of(hyper.learning_rate));
    let clip = of(hyper.max_norm) / (norm + T::of(1e-6));
    let clip = if hyper.max_norm > 0.0 && clip < one { clip } else { one };
    let (scale1, scale2) = (one - beta1.powi(hyper.step as i32), one - beta2.powi(hyper.step as i32));
    for (i, &g) in grads.iter().enumerate() {
        let g = clip * g;
        state.m[i] = beta1 * state.m[i] + (one - beta1) * g;
        state.v[i] = beta2 * state.v[i] + (one - beta2) * g * g;
        let direction = (state.m[i] / scale1) / ((state.v[i] / scale2).sqrt() + of(hyper.epsilon));
        state.w[i] = state.w[i] - rate * (of(decay) * state.w[i] + direction);
    }
}
