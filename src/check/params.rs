//! Parameters of one op in a flat buffer, with gaps between them that nobody may touch.

use super::harness::Outputs;
use super::random::Random;
use super::reference::{Scalar, cast, widen};
use crate::backend::{Backend, Linear, Norm, Result, Span};

/// As in the model's parameter table.
const ALIGNMENT: usize = 64;

/// Values and the gradients that accumulation starts from; not-a-number in the gaps.
#[derive(Debug, Clone, Default)]
pub struct Params {
    /// Of the whole flat buffer.
    pub values: Vec<f32>,
    /// Of the whole flat buffer.
    pub grads: Vec<f32>,
}

impl Params {
    /// Appends a tensor after a gap, its gradient random.
    pub fn add(&mut self, values: Vec<f32>, random: &mut Random) -> Span {
        let offset = (self.values.len() + 1).next_multiple_of(ALIGNMENT);
        self.values.resize(offset, f32::NAN);
        self.grads.resize(offset, f32::NAN);
        self.grads.extend(random.normals(values.len(), 0.5));
        self.values.extend(values);
        let span = Span { offset, len: self.values.len() - offset };
        self.values.push(f32::NAN);
        self.grads.push(f32::NAN);
        span
    }

    /// A linear layer with weights of the size that keeps its outputs near 1.
    pub fn linear(&mut self, inputs: usize, outputs: usize, random: &mut Random) -> Linear {
        let weight = random.normals(inputs * outputs, 1.0 / (inputs as f32).sqrt());
        let bias = random.normals(outputs, 0.3);
        Linear { weight: self.add(weight, random), bias: self.add(bias, random), inputs, outputs }
    }

    /// A LayerNorm that is not the identity.
    pub fn norm(&mut self, width: usize, random: &mut Random) -> Norm {
        let gamma = random.normals(width, 0.3).into_iter().map(|g| 1.0 + g).collect();
        let beta = random.normals(width, 0.3);
        Norm { gamma: self.add(gamma, random), beta: self.add(beta, random), epsilon: 1e-12 }
    }

    /// A tensor's values.
    pub fn get<T: Scalar>(&self, span: Span) -> Vec<T> {
        cast(&self.values[span.range()])
    }

    /// The gradient it starts from.
    pub fn grad<T: Scalar>(&self, span: Span) -> Vec<T> {
        cast(&self.grads[span.range()])
    }

    /// Appends the gradients of `spans` to an op's outputs; all others must be as they were.
    pub fn read_grads<B: Backend>(
        &self, be: &B, flat: &B::Flat, spans: &[(&'static str, Span)], outputs: &mut Outputs,
    ) -> Result<()> {
        let flat = be.read_flat(flat)?;
        if !outputs.has_length("gradients", flat.len(), self.grads.len()) {
            return Ok(());
        }
        let touched = |i: usize| spans.iter().any(|(_, span)| span.range().contains(&i));
        let strayed = (0..flat.len()).find(|&i| flat[i].to_bits() != self.grads[i].to_bits() && !touched(i));
        outputs.promise(strayed.is_none(), || format!("a gradient was written outside {spans:?}, at {strayed:?}"));
        outputs.values.extend(spans.iter().map(|&(name, span)| (name, widen(&flat[span.range()]))));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Memory;
    use crate::backend::cpu::Cpu;
    use crate::check::Fault;

    #[test]
    fn gradients_of_another_length_are_a_fault() {
        let (be, mut params, mut random) = (Cpu::new(), Params::default(), Random::new(1));
        let span = params.add(vec![1.0; 5], &mut random);
        for len in [0, span.offset + 2, params.grads.len() + 1] {
            let (flat, mut outputs) = (be.flat(len).unwrap(), Outputs::default());
            params.read_grads(&be, &flat, &[("d_bias", span)], &mut outputs).unwrap();
            let [Fault::Length { output: "gradients", got, expected }] = outputs.faults[..] else {
                panic!("{outputs:?}")
            };
            assert_eq!((got, expected), (len, params.grads.len()));
        }
    }
}
