//! What a device reaches: a large copy, and a large product by our own matmul.

use super::measure::{Effort, Subject, Timing, time};
use super::operands::Values;
use super::roofline::Ceilings;
use crate::backend::{Arena, Backend, Capacity, Linear, Planner, Result, Rows, Span};

/// What was measured.
#[derive(Debug, Clone, PartialEq)]
pub struct Measured {
    /// What a copy of a buffer took.
    pub copy: Timing,
    /// Bytes that it read and wrote.
    pub copy_bytes: f64,
    /// What a product took.
    pub product: Timing,
    /// Its rows, inputs and outputs.
    pub product_shape: [usize; 3],
}

impl Measured {
    /// Measures both.
    ///
    /// # Errors
    ///
    /// Those of the backend: no memory for the buffers, or a device that fails.
    pub fn new<B: Backend>(be: &B, effort: &Effort) -> Result<Measured> {
        let values = Values::new();
        let copy = time(be, effort, &mut Copy::new(be, effort.copy_values, &values)?)?;
        let product = time(be, effort, &mut Product::new(be, effort.product, &values)?)?;
        let copy_bytes = 2.0 * 4.0 * effort.copy_values as f64;
        Ok(Measured { copy, copy_bytes, product, product_shape: effort.product })
    }

    /// 2 · rows · inputs · outputs
    pub fn product_flops(&self) -> f64 {
        2.0 * self.product_shape.map(|size| size as f64).iter().product::<f64>()
    }

    /// As rates, by the quickest run of each: what it reached once is not beyond the device.
    pub fn ceilings(&self) -> Ceilings {
        Ceilings { matrix_rate: self.product_flops() / self.product.best, bandwidth: self.copy_bytes / self.copy.best }
    }

    /// The quicker of each, of two measurements of the same.
    pub fn or(self, other: Measured) -> Measured {
        let quicker = |a: Timing, b: Timing| if b.best < a.best { b } else { a };
        Measured {
            copy: quicker(self.copy, other.copy),
            product: quicker(self.product, other.product),
            copy_bytes: self.copy_bytes,
            product_shape: self.product_shape,
        }
    }
}

struct Copy<'a, B: Backend> {
    be: &'a B,
    from: B::Flat,
    to: B::Flat,
}

impl<'a, B: Backend> Copy<'a, B> {
    fn new(be: &'a B, len: usize, values: &Values) -> Result<Self> {
        let mut from = be.flat(len)?;
        be.write_flat(&mut from, &values.take(len, 0))?;
        Ok(Copy { be, from, to: be.flat(len)? })
    }
}

impl<B: Backend> Subject<B> for Copy<'_, B> {
    fn sets(&self) -> usize {
        1
    }
    fn most_calls(&self) -> usize {
        usize::MAX
    }
    fn call(&mut self, _: usize) -> Result<()> {
        self.be.copy(&self.from, &mut self.to)
    }
    fn refresh(&mut self) -> Result<()> {
        Ok(())
    }
}

/// y = x Wᵀ + b
struct Product<'a, B: Backend> {
    be: &'a B,
    layer: Linear,
    w: B::Weights,
    x: B::Mat,
    y: B::Mat,
}

impl<'a, B: Backend> Product<'a, B> {
    fn new(be: &'a B, [rows, inputs, outputs]: [usize; 3], values: &Values) -> Result<Self> {
        let len = outputs * inputs;
        let (weight, bias) = (Span { offset: 0, len }, Span { offset: len, len: outputs });
        let mut plan = Planner::new(Capacity { tokens: rows, sequences: 0, masked: 0 });
        plan.mats.extend([(Rows::Tokens, inputs), (Rows::Tokens, outputs)]);
        let mut arena = be.arena(&plan)?;
        let (mut x, y) = (arena.mat(Rows::Tokens, inputs), arena.mat(Rows::Tokens, outputs));
        be.write_mat(&mut x, rows, &values.take(rows * inputs, 1))?;
        let w = be.weights(&values.take(len + outputs, 2))?;
        Ok(Product { be, layer: Linear { weight, bias, inputs, outputs }, w, x, y })
    }
}

impl<B: Backend> Subject<B> for Product<'_, B> {
    fn sets(&self) -> usize {
        1
    }
    fn most_calls(&self) -> usize {
        usize::MAX
    }
    fn call(&mut self, _: usize) -> Result<()> {
        self.be.linear(&self.x, &self.w, &self.layer, &mut self.y)
    }
    fn refresh(&mut self) -> Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cpu::Cpu;

    #[test]
    fn rates_are_work_over_time() {
        let timing = |median| Timing { median, best: median, worst: median, runs: 1, calls: 1, sets: 1 };
        let measured = |copy, product| Measured {
            copy: timing(copy),
            copy_bytes: 8e9,
            product: timing(product),
            product_shape: [1000; 3],
        };
        assert_eq!(measured(0.5, 2.0).ceilings(), Ceilings { matrix_rate: 1e9, bandwidth: 16e9 });
        assert_eq!(measured(0.5, 2.0).or(measured(0.25, 4.0)), measured(0.25, 2.0));
    }

    #[test]
    fn both_are_measured() {
        let measured = Measured::new(&Cpu::new(), &Effort::quick()).unwrap();
        let Ceilings { matrix_rate, bandwidth } = measured.ceilings();
        assert!(matrix_rate > 0.0 && bandwidth > 0.0, "{measured:?}");
        assert_eq!(measured.copy_bytes, 8.0 * 65_536.0);
    }
}
