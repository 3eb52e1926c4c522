//! The oracle: every op of [`crate::backend::Backend`] in a few plain lines.
//!
//! Run in f64 it says what is right; the same lines in f32, or in [`Mixed`], are the naive computation that the
//! tolerance rule measures against ([`super::tolerance`]). Matrices are row-major slices, sums go from first to
//! last, nothing is fused.

pub mod attention;
pub mod cross_entropy;
pub mod embedding;
mod erf;
pub mod gelu;
pub mod layernorm;
pub mod linear;
pub mod optimizer;
pub mod rows;

pub use erf::erf;

use std::fmt::Debug;
use std::ops::{Add, AddAssign, Div, Mul, Neg, Sub};

use crate::backend::Dropout;

/// f64, f32 or [`Mixed`].
pub trait Scalar:
    Copy
    + Send
    + Sync
    + Debug
    + Default
    + PartialOrd
    + Add<Output = Self>
    + AddAssign
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
{
    /// The number nearest to `x`.
    fn of(x: f64) -> Self;
    /// Itself, exactly.
    fn to_f64(self) -> f64;
    /// e to this power.
    fn exp(self) -> Self;
    /// Natural logarithm.
    fn ln(self) -> Self;
    /// Square root.
    fn sqrt(self) -> Self;
    /// Integer power.
    fn powi(self, n: i32) -> Self;
    /// As a matrix of activations holds it, or a matrix unit takes it in.
    fn stored(self) -> Self {
        self
    }
    /// sums += Σ_k factors[k] rows[k], of at most [`MATRIX_UNIT_DEPTH`] rows: one after the other, or as a matrix unit adds.
    fn add_products<'a>(sums: &mut [Self], factors: impl Iterator<Item = Self>, rows: impl Iterator<Item = &'a [Self]>)
    where
        Self: 'a,
    {
        for (factor, row) in factors.zip(rows) {
            sums.iter_mut().zip(row).for_each(|(sum, &x)| *sum += factor * x);
        }
    }
}

/// Products that the matrix units of sm_80 add at once; those of sm_90 add sixteen (kernels/sim/matrix_unit.h names the
/// sources).
pub const MATRIX_UNIT_DEPTH: usize = 8;

macro_rules! scalar {
    ($float:ty) => {
        impl Scalar for $float {
            fn of(x: f64) -> Self {
                x as $float
            }
            fn to_f64(self) -> f64 {
                f64::from(self)
            }
            fn exp(self) -> Self {
                <$float>::exp(self)
            }
            fn ln(self) -> Self {
                <$float>::ln(self)
            }
            fn sqrt(self) -> Self {
                <$float>::sqrt(self)
            }
            fn powi(self, n: i32) -> Self {
                <$float>::powi(self, n)
            }
        }
    };
}
scalar!(f32);
scalar!(f64);

/// f32 arithmetic on activations stored in bf16.
#[derive(Debug, Clone, Copy, Default, PartialEq, PartialOrd)]
pub struct Mixed(f32);

macro_rules! arithmetic {
    ($($operator:ident $method:ident)*) => {
        $(
            impl $operator for Mixed {
                type Output = Mixed;
                fn $method(self, other: Mixed) -> Mixed {
                    Mixed($operator::$method(self.0, other.0))
                }
            }
        )*
    };
}
arithmetic!(Add add Sub sub Mul mul Div div);

impl AddAssign for Mixed {
    fn add_assign(&mut self, other: Mixed) {
        self.0 += other.0;
    }
}

impl Neg for Mixed {
    type Output = Mixed;
    fn neg(self) -> Mixed {
        Mixed(-self.0)
    }
}

impl Scalar for Mixed {
    fn of(x: f64) -> Mixed {
        Mixed(x as f32)
    }
    fn to_f64(self) -> f64 {
        f64::from(self.0)
    }
    fn exp(self) -> Mixed {
        Mixed(self.0.exp())
    }
    fn ln(self) -> Mixed {
        Mixed(self.0.ln())
    }
    fn sqrt(self) -> Mixed {
        Mixed(self.0.sqrt())
    }
    fn powi(self, n: i32) -> Mixed {
        Mixed(self.0.powi(n))
    }
    fn stored(self) -> Mixed {
        Mixed(rounded(self.0))
    }
    /// The sum of all is cut to f32 and not rounded, so that the errors of a deep sum do not cancel.
    fn add_products<'a>(
        sums: &mut [Mixed], factors: impl Iterator<Item = Mixed>, rows: impl Iterator<Item = &'a [Mixed]>,
    ) {
        let mut exact: Vec<f64> = sums.iter().map(|sum| sum.to_f64()).collect();
        for (factor, row) in factors.zip(rows) {
            exact.iter_mut().zip(row).for_each(|(sum, x)| *sum += factor.to_f64() * x.to_f64());
        }
        sums.iter_mut().zip(exact).for_each(|(sum, exact)| *sum = Mixed(cut(exact)));
    }
}

/// f32, the excess bits dropped.
fn cut(x: f64) -> f32 {
    let nearest = x as f32;
    if f64::from(nearest).abs() > x.abs() { f32::from_bits(nearest.to_bits() - 1) } else { nearest }
}

/// The bf16 nearest to `x`, as f32.
pub fn rounded(x: f32) -> f32 {
    half::bf16::from_f32(x).to_f32()
}

/// Each as [`Scalar::stored`].
pub fn stored<T: Scalar>(values: Vec<T>) -> Vec<T> {
    values.into_iter().map(T::stored).collect()
}

/// Inputs in the precision at hand; exact, both ways.
pub fn cast<T: Scalar>(values: &[f32]) -> Vec<T> {
    values.iter().map(|&x| T::of(f64::from(x))).collect()
}

/// Results in f64, exactly.
pub fn widen<T: Scalar>(values: &[T]) -> Vec<f64> {
    values.iter().map(|x| x.to_f64()).collect()
}

/// Σ, first to last.
pub fn sum<T: Scalar>(values: impl Iterator<Item = T>) -> T {
    values.fold(T::default(), |total, x| total + x)
}

/// a · b
pub fn dot<T: Scalar>(a: &[T], b: &[T]) -> T {
    sum(a.iter().zip(b).map(|(&a, &b)| a * b))
}

/// into += Σ_rows m.  m [R, cols], into [cols]
pub fn add_rows<T: Scalar>(m: &[T], into: &mut [T]) {
    for row in m.chunks(into.len()) {
        row.iter().zip(into.iter_mut()).for_each(|(&x, total)| *total += x);
    }
}

/// a ∘ b
pub fn hadamard<T: Scalar>(a: &[T], b: &[T]) -> Vec<T> {
    a.iter().zip(b).map(|(&a, &b)| a * b).collect()
}

/// The multipliers of a [rows, cols] matrix.
pub fn keep<T: Scalar>(drop: &Dropout, step: u32, rows: usize, cols: usize) -> Vec<T> {
    let at = |i: usize| drop.keep8(step, (i / cols) as u32, (i % cols / 8) as u32)[i % cols % 8];
    (0..rows * cols).map(|i| T::of(f64::from(at(i)))).collect()
}
