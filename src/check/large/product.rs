//! Products of large matrices on all threads.

use rayon::prelude::*;

use crate::check::reference::Scalar;

/// Rows that go through the other matrix together.
const ROWS: usize = 8;
/// Columns that stay in a cache meanwhile.
const COLUMNS: usize = 512;

/// x m.  x [R, inner], m [inner, cols]. Each sum goes from first to last, so the bits are those of the plain lines in
/// [`crate::check::reference::linear`].
pub fn product<T: Scalar>(x: &[T], m: &[T], cols: usize) -> Vec<T> {
    let inner = m.len() / cols;
    let mut y = vec![T::default(); x.len() / inner * cols];
    y.par_chunks_mut(ROWS * cols).zip(x.par_chunks(ROWS * inner)).for_each(|(y, x)| {
        for from in (0..cols).step_by(COLUMNS) {
            let to = cols.min(from + COLUMNS);
            for (k, m) in m.chunks(cols).enumerate() {
                for (y, x) in y.chunks_mut(cols).zip(x.chunks(inner)) {
                    let x = x[k];
                    y[from..to].iter_mut().zip(&m[from..to]).for_each(|(y, &m)| *y += x * m);
                }
            }
        }
    });
    y
}

/// [rows, cols] to [cols, rows]
pub fn transposed<T: Scalar>(m: &[T], cols: usize) -> Vec<T> {
    (0..cols).into_par_iter().flat_map_iter(|c| m.iter().skip(c).step_by(cols).copied()).collect()
}

/// x Wᵀ + b.  x [R, in], weight [out, in], bias [out]
pub fn linear<T: Scalar>(x: &[T], weight: &[T], bias: &[T]) -> Vec<T> {
    plus_bias(x, &transposed(weight, weight.len() / bias.len()), bias)
}

/// x m + b.  x [R, in], m [in, out], bias [out]
pub fn plus_bias<T: Scalar>(x: &[T], m: &[T], bias: &[T]) -> Vec<T> {
    let mut y = product(x, m, bias.len());
    y.par_chunks_mut(bias.len()).for_each(|y| y.iter_mut().zip(bias).for_each(|(y, &b)| *y += b));
    y
}

/// start + d_yᵀ x.  d_y [R, out], x [R, in], start [out, in]
pub fn weight_gradient<T: Scalar>(start: Vec<T>, d_y: &[T], x: &[T], inputs: usize) -> Vec<T> {
    let outputs = start.len() / inputs;
    let mut d_weight = start;
    d_weight.par_chunks_mut(inputs).enumerate().for_each(|(o, d_weight)| {
        for (d_y, x) in d_y.chunks(outputs).zip(x.chunks(inputs)) {
            d_weight.iter_mut().zip(x).for_each(|(d_weight, &x)| *d_weight += d_y[o] * x);
        }
    });
    d_weight
}

#[cfg(test)]
mod tests {
    use crate::check::random::Random;
    use crate::check::reference::linear as plain;

    /// f32, where another order would show.
    #[test]
    fn bits_are_those_of_the_plain_lines() {
        let (rows, inputs, outputs) = (21, 70, 1100);
        let mut random = Random::new(1);
        let [x, weight, bias, d_y] =
            [rows * inputs, outputs * inputs, outputs, rows * outputs].map(|len| random.normals(len, 1.0));
        assert_eq!(super::linear(&x, &weight, &bias), plain::linear(&x, &weight, &bias));
        let mut d_weight = weight.clone();
        let d_x = plain::linear_backward(&d_y, &x, &weight, inputs, &mut d_weight);
        assert_eq!(super::product(&d_y, &weight, inputs), d_x);
        assert_eq!(super::weight_gradient(weight, &d_y, &x, inputs), d_weight);
    }
}
