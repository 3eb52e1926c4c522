//! grad_norm and adamw.

use handbert::backend::{AdamW, Backend, Capacity, Result, Span, Tally, UpdateSpan};

use crate::harness::{OpCase, Outputs, Room, Tested, check, widen};
use crate::linear::rows_only;
use crate::random::Random;
use crate::reference::optimizer::{State, adamw, grad_norm};
use crate::reference::{Scalar, cast};

const HYPER: AdamW =
    AdamW { learning_rate: 3e-3, beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.01, max_norm: 1.0, step: 1 };

/// Bits that no arithmetic leaves as they are by chance.
const CANARY: f32 = 12_345.678;

struct Norm {
    grads: Vec<f32>,
}

impl OpCase for Norm {
    fn describe(&self) -> String {
        format!("grad_norm of {} elements", self.grads.len())
    }

    fn counts(&self) -> Capacity {
        rows_only(1)
    }

    fn reference<T: Scalar>(&self) -> Outputs {
        vec![("norm", vec![grad_norm::<T>(&cast(&self.grads)).to_f64()])]
    }

    fn run<B: Backend>(&self, room: &mut Room<'_, B>) -> Result<Outputs> {
        let (be, mut tally) = (room.be, room.be.tally()?);
        let mut flat = be.flat(self.grads.len())?;
        be.write_flat(&mut flat, &self.grads)?;
        be.grad_norm(&flat, &mut tally)?;
        be.grad_norm(&flat, &mut tally)?;
        let norm = be.take_tally(&mut tally)?.grad_norm;
        assert_eq!(be.take_tally(&mut tally)?, Tally::default());
        let mut copied = be.flat(self.grads.len())?;
        be.copy(&flat, &mut copied)?;
        assert_eq!(be.read_flat(&copied)?, self.grads);
        be.zero(&mut flat)?;
        be.grad_norm(&flat, &mut tally)?;
        assert_eq!(be.take_tally(&mut tally)?.grad_norm, 0.0);
        Ok(vec![("norm", vec![norm])])
    }
}

/// Ten updates of parameters in spans, with gaps between the spans.
struct Updates {
    hyper: AdamW,
    spans: Vec<UpdateSpan>,
    w: Vec<f32>,
    m: Vec<f32>,
    v: Vec<f32>,
    /// Of each step.
    grads: Vec<Vec<f32>>,
}

const STEPS: usize = 10;

fn updates(lens: &[usize], hyper: AdamW, scale: f32) -> Updates {
    let mut random = Random::new(lens.len() as u32);
    let (mut spans, mut end) = (Vec::new(), 64);
    for (i, &len) in lens.iter().enumerate() {
        spans.push(UpdateSpan { span: Span { offset: end, len }, decay: i % 2 == 0 });
        end = (end + len + 1usize).next_multiple_of(64);
    }
    let inside = |values: Vec<f32>, gap: f32| {
        let within = |i: usize| spans.iter().any(|s| s.span.range().contains(&i));
        values.into_iter().enumerate().map(|(i, x)| if within(i) { x } else { gap }).collect::<Vec<f32>>()
    };
    let w = inside(random.normals(end, 1.0), CANARY);
    // A run that goes on: moments are not zero.
    let m = inside(random.normals(end, 0.1 * scale), CANARY);
    let v = inside(random.normals(end, 0.1 * scale).into_iter().map(|x| x * x).collect(), CANARY);
    let grads = (0..STEPS).map(|_| inside(random.normals(end, scale), 0.0)).collect();
    Updates { hyper, spans, w, m, v, grads }
}

impl OpCase for Updates {
    fn describe(&self) -> String {
        let lens: Vec<usize> = self.spans.iter().map(|s| s.span.len).collect();
        format!("{STEPS} steps of adamw, spans of {lens:?}, {:?}", self.hyper)
    }

    fn counts(&self) -> Capacity {
        rows_only(1)
    }

    fn reference<T: Scalar>(&self) -> Outputs {
        let mut all = State::<T> { w: cast(&self.w), m: cast(&self.m), v: cast(&self.v) };
        for (i, grads) in self.grads.iter().enumerate() {
            let hyper = AdamW { step: self.hyper.step + i as u32, ..self.hyper };
            let grads = cast::<T>(grads);
            let norm = grad_norm(&grads);
            for UpdateSpan { span, decay } in &self.spans {
                let of = |values: &[T]| values[span.range()].to_vec();
                let mut state = State { w: of(&all.w), m: of(&all.m), v: of(&all.v) };
                let decay = if *decay { hyper.weight_decay } else { 0.0 };
                adamw(&mut state, &grads[span.range()], decay, norm, &hyper);
                all.w[span.range()].copy_from_slice(&state.w);
                all.m[span.range()].copy_from_slice(&state.m);
                all.v[span.range()].copy_from_slice(&state.v);
            }
        }
        let within = |values: &[T]| -> Vec<f64> {
            self.spans.iter().flat_map(|s| &values[s.span.range()]).map(|x| x.to_f64()).collect()
        };
        vec![("w", within(&all.w)), ("m", within(&all.m)), ("v", within(&all.v))]
    }

    fn run<B: Backend>(&self, room: &mut Room<'_, B>) -> Result<Outputs> {
        let be = room.be;
        let (mut w, mut tally) = (be.weights(&self.w)?, be.tally()?);
        let flat = |values: &[f32]| {
            let mut flat = be.flat(values.len())?;
            be.write_flat(&mut flat, values)?;
            Result::Ok(flat)
        };
        let (mut m, mut v, mut grads) = (flat(&self.m)?, flat(&self.v)?, be.flat(self.w.len())?);
        let mut hyper = be.hyper()?;
        for (i, values) in self.grads.iter().enumerate() {
            be.write_flat(&mut grads, values)?;
            be.grad_norm(&grads, &mut tally)?;
            be.set_hyper(&mut hyper, &AdamW { step: self.hyper.step + i as u32, ..self.hyper })?;
            be.adamw(&mut w, &grads, &mut m, &mut v, &self.spans, &hyper, &tally)?;
        }
        let within = |name: &'static str, values: Vec<f32>| {
            let inside = |i: usize| self.spans.iter().any(|s| s.span.range().contains(&i));
            let strayed = (0..values.len()).find(|&i| !inside(i) && values[i].to_bits() != CANARY.to_bits());
            assert_eq!(strayed, None, "adamw wrote {name} between the spans");
            (name, self.spans.iter().flat_map(|s| widen(&values[s.span.range()])).collect::<Vec<f64>>())
        };
        Ok(vec![within("w", be.read_weights(&w)?), within("m", be.read_flat(&m)?), within("v", be.read_flat(&v)?)])
    }
}

/// A norm that is not finite leaves weights and moments as they were, bit for bit.
fn refuses_what_is_not_finite<B: Backend>(be: &B, poison: f32, max_norm: f32) {
    let case = updates(&[64, 5, 130], HYPER, 1.0);
    let run = || -> Result<()> {
        let (mut w, mut tally) = (be.weights(&case.w)?, be.tally()?);
        let [mut m, mut v, mut grads] = [be.flat(case.w.len())?, be.flat(case.w.len())?, be.flat(case.w.len())?];
        be.write_flat(&mut m, &case.m)?;
        be.write_flat(&mut v, &case.v)?;
        let mut values = case.grads[0].clone();
        values[case.spans[1].span.offset + 3] = poison;
        be.write_flat(&mut grads, &values)?;
        be.grad_norm(&grads, &mut tally)?;
        let mut hyper = be.hyper()?;
        be.set_hyper(&mut hyper, &AdamW { max_norm, ..HYPER })?;
        be.adamw(&mut w, &grads, &mut m, &mut v, &case.spans, &hyper, &tally)?;
        let bits = |values: &[f32]| values.iter().map(|x| x.to_bits()).collect::<Vec<u32>>();
        assert_eq!(bits(&be.read_weights(&w)?), bits(&case.w), "weights after a gradient of {poison}");
        assert_eq!(bits(&be.read_flat(&m)?), bits(&case.m), "first moment after a gradient of {poison}");
        assert_eq!(bits(&be.read_flat(&v)?), bits(&case.v), "second moment after a gradient of {poison}");
        assert!(!be.take_tally(&mut tally)?.grad_norm.is_finite(), "the norm tells of it");
        Ok(())
    };
    run().unwrap_or_else(|e| panic!("adamw with a gradient of {poison}: {e}"));
}

pub fn suite<B: Tested>(be: &B) {
    let mut random = Random::new(1);
    for len in [1, 3, 64, 1000, 200_003] {
        check(be, Norm { grads: random.normals(len, 0.1) });
    }
    let lens = [64, 1, 130, 5, 40_000, 768];
    // A norm of about 200 is clipped to 1; one of about 0.02 is not.
    check(be, updates(&lens, HYPER, 1.0));
    check(be, updates(&lens, HYPER, 1e-4));
    check(be, updates(&lens, AdamW { max_norm: 0.0, ..HYPER }, 1.0));
    check(be, updates(&lens, AdamW { step: 1000, weight_decay: 0.0, ..HYPER }, 1.0));
    for poison in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for max_norm in [1.0, 0.0] {
            refuses_what_is_not_finite(be, poison, max_norm);
        }
    }
}
