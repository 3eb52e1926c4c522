//! Products of large matrices on all threads.

use rayon::prelude::*;

use crate::check::reference::{MATRIX_UNIT_DEPTH, Scalar};

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

/// start + d_yᵀ x.  d_y [R, out], x [R, in], start [out, in]. The sums are deep, so how a matrix unit adds tells: see
/// [`Scalar::add_products`].
pub fn weight_gradient<T: Scalar>(start: Vec<T>, d_y: &[T], x: &[T], inputs: usize) -> Vec<T> {
    let outputs = start.len() / inputs;
    let mut d_weight = start;
    d_weight.par_chunks_mut(inputs).enumerate().for_each(|(o, d_weight)| {
        let blocks = d_y.chunks(MATRIX_UNIT_DEPTH * outputs).zip(x.chunks(MATRIX_UNIT_DEPTH * inputs));
        blocks.for_each(|(d_y, x)| {
            T::add_products(d_weight, d_y.iter().skip(o).step_by(outputs).copied(), x.chunks(inputs));
        });
    });
    d_weight
}

#[cfg(test)]
mod tests {
    use crate::check::random::Random;
    use crate::check::reference::linear as plain;
    use crate::check::reference::{Mixed, Scalar};

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

    /// Ones from 2^24 on, where f32 has even numbers only: each eight and what was there are added, then cut.
    #[test]
    fn deep_sums_in_bf16_are_cut_as_a_matrix_unit_does() {
        let sum = |start: f64, x: f64| {
            let (start, x) = (vec![Mixed::of(start)], vec![Mixed::of(x); 19]);
            super::weight_gradient(start, &[Mixed::of(1.0); 19], &x, 1)[0].to_f64()
        };
        assert_eq!(sum(16_777_216.0, 1.0), 16_777_234.0);
        assert_eq!(sum(-16_777_216.0, -1.125), -16_777_234.0);
        assert_eq!(sum(0.0, 1.125), 21.375);
    }
}
