//! gather_rows and scatter_rows.

use crate::backend::{Backend, Capacity, Pick, Result, Rows};
use crate::check::batches::{LENGTHS, Masks, TestBatch};
use crate::check::harness::{OpCase, Outputs, Suite, Values};
use crate::check::random::Random;
use crate::check::reference::rows::{gather, picked, scatter};
use crate::check::reference::{Scalar, cast, widen};
use crate::check::room::Room;

struct Case {
    batch: TestBatch,
    width: usize,
    pick: Pick,
    x: Vec<f32>,
    d_y: Vec<f32>,
}

fn case(lengths: &[usize], width: usize, pick: Pick, masks: Masks) -> Case {
    let mut random = Random::new(width as u32);
    let batch = TestBatch::new(lengths, 1000, &mut random).masked(masks, &mut random);
    let x = random.normals(batch.tokens() * width, 1.0);
    let d_y = random.normals(picked(&batch.view(), pick).len() * width, 1.0);
    Case { batch, width, pick, x, d_y }
}

impl OpCase for Case {
    fn op(&self) -> &'static str {
        "gather_rows"
    }

    fn shape(&self) -> String {
        format!("{:?}, cu_seqlens={:?}, C={}", self.pick, self.batch.cu_seqlens, self.width)
    }

    fn counts(&self) -> Capacity {
        self.batch.counts()
    }

    fn inputs(&mut self) -> Vec<&mut [f32]> {
        vec![&mut self.x, &mut self.d_y]
    }

    fn reference<T: Scalar>(&self) -> Values {
        let rows = picked(&self.batch.view(), self.pick);
        let y = gather::<T>(&cast(&self.x), &rows, self.width);
        let d_x = scatter::<T>(&cast(&self.d_y), &rows, self.batch.tokens(), self.width);
        vec![("y", widen(&y)), ("d_x", widen(&d_x))]
    }

    fn run<B: Backend>(&self, room: &mut Room<'_, B>) -> Result<Outputs> {
        let be = room.be;
        let batch = room.upload(&self.batch)?;
        let rows = match self.pick {
            Pick::Masked => Rows::Masked,
            Pick::First => Rows::Sequences,
        };
        let (x, mut y) = (room.mat(Rows::Tokens, self.width, &self.x)?, room.empty(rows, self.width)?);
        be.gather_rows(&x, &batch, self.pick, &mut y)?;
        let (d_y, mut d_x) = (room.mat(rows, self.width, &self.d_y)?, room.empty(Rows::Tokens, self.width)?);
        be.scatter_rows(&d_y, &batch, self.pick, &mut d_x)?;
        room.give_batch(batch);
        Ok(vec![("y", room.read(&y)?), ("d_x", room.read(&d_x)?)].into())
    }
}

/// On a large batch.
pub fn large(lengths: &[usize], width: usize) -> [impl OpCase; 2] {
    [case(lengths, width, Pick::Masked, Masks::Some), case(lengths, width, Pick::First, Masks::None)]
}

/// All cases.
pub fn suite<B: Backend + Sync>(suite: &mut Suite<'_, B>) {
    for lengths in LENGTHS {
        for masks in [Masks::None, Masks::Some, Masks::All] {
            suite.check(case(lengths, 64, Pick::Masked, masks));
        }
        suite.check(case(lengths, 128, Pick::First, Masks::None));
    }
    suite.check(case(&[20, 30], 384, Pick::First, Masks::Some));
    let (big, small) = (&[200, 17, 1, 128], &[3, 8]);
    suite.check_after(case(big, 64, Pick::Masked, Masks::All), case(small, 64, Pick::Masked, Masks::Some));
    suite.check_after(case(big, 64, Pick::First, Masks::All), case(small, 64, Pick::First, Masks::Some));
}
