//! y = x Wᵀ + b.

use super::{Scalar, dot};

/// x [R, in], weight [out, in], bias [out] -> y [R, out]
pub fn linear<T: Scalar>(x: &[T], weight: &[T], bias: &[T]) -> Vec<T> {
    let inputs = weight.len() / bias.len();
    let row = |x: &[T]| weight.chunks(inputs).zip(bias).map(|(w, &b)| dot(x, w) + b).collect::<Vec<T>>();
    x.chunks(inputs).flat_map(row).collect()
}

/// d_W += d_yᵀ x; gives d_x = d_y W.  d_y [R, out], d_x [R, in]
pub fn linear_backward<T: Scalar>(d_y: &[T], x: &[T], weight: &[T], inputs: usize, d_weight: &mut [T]) -> Vec<T> {
    let outputs = weight.len() / inputs;
    let mut d_x = vec![T::default(); x.len()];
    for ((d_y, x), d_x) in d_y.chunks(outputs).zip(x.chunks(inputs)).zip(d_x.chunks_mut(inputs)) {
        for (o, &d) in d_y.iter().enumerate() {
            for i in 0..inputs {
                d_weight[o * inputs + i] += d * x[i];
                d_x[i] += d * weight[o * inputs + i];
            }
        }
    }
    d_x
}
