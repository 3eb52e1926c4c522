//! A product that sums over as many rows as a large batch has.

use super::Scale;
use super::product::{linear, product, weight_gradient};
use super::sample::{Block, cast_block, spread, thinned};
use crate::backend::{Backend, Capacity, Result, Rows};
use crate::check::harness::{OpCase, Outputs, Values};
use crate::check::ops::linear::{Case, Want, case};
use crate::check::reference::{Scalar, stored, widen};
use crate::check::room::Room;

/// [`Case`], by a sample of rows of y and d_x, and of rows and columns of d_weight.
pub struct SummedOverRows {
    case: Case,
    rows: Vec<usize>,
}

/// At C to C.
pub fn summed_over_rows(scale: &Scale) -> SummedOverRows {
    let case = case(scale.rows, scale.width, scale.width, Rows::Tokens, Want::Add);
    SummedOverRows { case, rows: spread(scale.rows) }
}

impl SummedOverRows {
    fn block(&self, output: &str) -> Option<Block> {
        let (inputs, outputs) = (self.case.layer.inputs, self.case.layer.outputs);
        Some(match output {
            "y" => Block::rows(outputs, &self.rows),
            "d_x" => Block::rows(inputs, &self.rows),
            _ => Block::crossing(inputs, &spread(outputs), &spread(inputs)),
        })
    }
}

impl OpCase for SummedOverRows {
    fn op(&self) -> &'static str {
        self.case.op()
    }

    fn shape(&self) -> String {
        self.case.shape()
    }

    fn counts(&self) -> Capacity {
        self.case.counts()
    }

    fn inputs(&mut self) -> Vec<&mut [f32]> {
        self.case.inputs()
    }

    fn reference<T: Scalar>(&self) -> Values {
        let Case { params: p, layer, x, d_y, d_x, .. } = &self.case;
        let of_inputs = Block::rows(layer.inputs, &self.rows);
        let weight = p.get::<T>(layer.weight);
        let y = linear(&cast_block(&of_inputs, x), &weight, &p.get(layer.bias));
        let d = product(&cast_block(&Block::rows(layer.outputs, &self.rows), d_y), &weight, layer.inputs);
        let before = cast_block::<T>(&of_inputs, d_x);
        let added = before.into_iter().zip(d).map(|(before, d)| before + d).collect();
        let (rows, columns) = (spread(layer.outputs), spread(layer.inputs));
        let start = Block::crossing(layer.inputs, &rows, &columns).of(&p.grad::<T>(layer.weight));
        let d_weight = weight_gradient(
            start,
            &cast_block(&Block::columns(layer.outputs, &rows), d_y),
            &cast_block(&Block::columns(layer.inputs, &columns), x),
            columns.len(),
        );
        vec![("y", widen(&stored(y))), ("d_x", widen(&stored(added))), ("d_weight", widen(&d_weight))]
    }

    fn run<B: Backend>(&self, room: &mut Room<'_, B>) -> Result<Outputs> {
        Ok(thinned(self.case.run(room)?, |output| self.block(output)))
    }
}
