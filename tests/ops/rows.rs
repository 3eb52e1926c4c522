//! gather_rows and scatter_rows.

use handbert::backend::{Backend, Capacity, Pick, Result, Rows};

use crate::batches::{LENGTHS, Masks, TestBatch};
use crate::harness::{OpCase, Outputs, Room, Tested, check, check_after};
use crate::random::Random;
use crate::reference::rows::{gather, picked, scatter};
use crate::reference::{Scalar, cast, widen};

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
    fn describe(&self) -> String {
        format!("gather_rows {:?}, cu_seqlens={:?}, C={}", self.pick, self.batch.cu_seqlens, self.width)
    }

    fn counts(&self) -> Capacity {
        self.batch.counts()
    }

    fn inputs(&mut self) -> Vec<&mut [f32]> {
        vec![&mut self.x, &mut self.d_y]
    }

    fn reference<T: Scalar>(&self) -> Outputs {
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
        Ok(vec![("y", room.read(&y)?), ("d_x", room.read(&d_x)?)])
    }
}

pub fn suite<B: Tested>(be: &B) {
    for lengths in LENGTHS {
        for masks in [Masks::None, Masks::Some, Masks::All] {
            check(be, case(lengths, 64, Pick::Masked, masks));
        }
        if lengths.iter().all(|&n| n > 0) {
            check(be, case(lengths, 128, Pick::First, Masks::None));
        }
    }
    check(be, case(&[20, 30], 384, Pick::First, Masks::Some));
    let (big, small) = (&[200, 17, 1, 128], &[3, 8]);
    check_after(be, case(big, 64, Pick::Masked, Masks::All), case(small, 64, Pick::Masked, Masks::Some));
    check_after(be, case(big, 64, Pick::First, Masks::All), case(small, 64, Pick::First, Masks::Some));
}
