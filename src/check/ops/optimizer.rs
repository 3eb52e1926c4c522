//! grad_norm and adamw.

use super::linear::rows_only;
use crate::backend::{
    AdamW, Backend, Capacity, Linear, Precision, Result, Rows, Span, Tally, UpdateLimits, UpdateSpan,
};
use crate::check::batches::TestBatch;
use crate::check::harness::{OpCase, Outputs, Suite, Values};
use crate::check::params::Params;
use crate::check::random::Random;
use crate::check::reference::optimizer::{State, adamw, grad_norm};
use crate::check::reference::{Scalar, cast, rounded, widen};
use crate::check::room::Room;

const HYPER: AdamW = AdamW {
    learning_rate: 3e-3,
    beta1: 0.9,
    beta2: 0.999,
    epsilon: 1e-8,
    weight_decay: 0.01,
    max_norm: 1.0,
    step: 1,
    limits: UpdateLimits::NONE,
};

/// Bits that no arithmetic leaves as they are by chance.
const CANARY: f32 = 12_345.678;

struct Norm {
    grads: Vec<f32>,
}

impl OpCase for Norm {
    fn op(&self) -> &'static str {
        "grad_norm"
    }

    fn shape(&self) -> String {
        format!("{} elements", self.grads.len())
    }

    fn counts(&self) -> Capacity {
        rows_only(1)
    }

    fn reference<T: Scalar>(&self) -> Values {
        vec![("norm", vec![grad_norm::<T>(&cast(&self.grads)).to_f64()])]
    }

    fn run<B: Backend>(&self, room: &mut Room<'_, B>) -> Result<Outputs> {
        let (be, mut tally) = (room.be, room.be.tally()?);
        let mut flat = room.flat(&self.grads)?;
        be.grad_norm(&flat, &mut tally)?;
        be.grad_norm(&flat, &mut tally)?;
        let norm = be.take_tally(&mut tally)?.grad_norm;
        let mut outputs = Outputs::from(vec![("norm", vec![norm])]);
        let after = be.take_tally(&mut tally)?;
        outputs.promise(after == Tally::default(), || format!("the tally is {after:?} after it was taken"));
        let mut copied = be.flat(self.grads.len())?;
        be.copy(&flat, &mut copied)?;
        outputs.promise(bits(&be.read_flat(&copied)?) == bits(&self.grads), || "a copy has other bits".into());
        be.zero(&mut flat)?;
        be.grad_norm(&flat, &mut tally)?;
        let of_zeros = be.take_tally(&mut tally)?.grad_norm;
        outputs.promise(of_zeros == 0.0, || format!("the norm of zeros is {of_zeros}"));
        Ok(outputs)
    }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

/// Ten updates of parameters in spans, with gaps between the spans.
#[derive(Clone)]
struct Updates {
    hyper: AdamW,
    spans: Vec<UpdateSpan>,
    /// All of it as one layer: spans and gaps are its weight, zeros at the end its bias.
    w: Vec<f32>,
    m: Vec<f32>,
    v: Vec<f32>,
    /// Of each step.
    grads: Vec<Vec<f32>>,
}

const STEPS: usize = 10;

/// Columns of the layer that the parameters are.
const INPUTS: usize = 64;

fn updates(lens: &[usize], hyper: AdamW, scale: f32) -> Updates {
    let mut random = Random::new(lens.len() as u32);
    let (mut spans, mut end) = (Vec::new(), 64);
    for (i, &len) in lens.iter().enumerate() {
        spans.push(UpdateSpan { span: Span { offset: end, len }, decay: i % 2 == 0 });
        end = (end + len + 1usize).next_multiple_of(64);
    }
    // Products come in tiles of 64 columns.
    let weight = end.next_multiple_of(64 * INPUTS);
    end = weight + weight / INPUTS;
    let inside = |values: Vec<f32>, gap: f32| {
        let within = |i: usize| spans.iter().any(|s| s.span.range().contains(&i));
        values.into_iter().enumerate().map(|(i, x)| if within(i) { x } else { gap }).collect::<Vec<f32>>()
    };
    let mut w = inside(random.normals(end, 1.0), CANARY);
    w[weight..].fill(0.0);
    // A run that goes on: moments are not zero.
    let m = inside(random.normals(end, 0.1 * scale), CANARY);
    let v = inside(random.normals(end, 0.1 * scale).into_iter().map(|x| x * x).collect(), CANARY);
    let grads = (0..STEPS).map(|_| inside(random.normals(end, scale), 0.0)).collect();
    Updates { hyper, spans, w, m, v, grads }
}

/// What updates work on.
struct Held<B: Backend> {
    w: B::Weights,
    m: B::Flat,
    v: B::Flat,
    grads: B::Flat,
    tally: B::Tally,
    hyper: B::Hyper,
}

impl Updates {
    fn start<B: Backend>(&self, room: &Room<'_, B>) -> Result<Held<B>> {
        let be = room.be;
        let (w, tally, hyper) = (be.weights(&self.w)?, be.tally()?, be.hyper()?);
        let (m, v, grads) = (room.flat(&self.m)?, room.flat(&self.v)?, be.flat(self.w.len())?);
        Ok(Held { w, m, v, grads, tally, hyper })
    }

    fn step<B: Backend>(&self, room: &Room<'_, B>, held: &mut Held<B>, hyper: &AdamW) -> Result<()> {
        let Held { w, m, v, grads, tally, hyper: on_device } = held;
        room.be.set_hyper(on_device, hyper)?;
        room.be.adamw(w, grads, m, v, &self.spans, on_device, tally)
    }

    /// Values in the spans. Those between must be as they were, and products must read what is kept of the weights.
    fn outputs<B: Backend>(&self, room: &Room<'_, B>, held: &Held<B>) -> Result<Outputs> {
        let (be, mut outputs) = (room.be, Outputs::default());
        let (w, m, v) = (be.read_weights(&held.w)?, be.read_flat(&held.m)?, be.read_flat(&held.v)?);
        for (name, values, before) in [("w", &w, &self.w), ("m", &m, &self.m), ("v", &v, &self.v)] {
            if !outputs.has_length(name, values.len(), before.len()) {
                return Ok(outputs);
            }
            let inside = |i: usize| self.spans.iter().any(|s| s.span.range().contains(&i));
            let strayed = (0..values.len()).find(|&i| values[i].to_bits() != before[i].to_bits() && !inside(i));
            outputs.promise(strayed.is_none(), || format!("{name} was written between the spans, at {strayed:?}"));
            outputs.push(name, self.spans.iter().flat_map(|s| widen(&values[s.span.range()])).collect());
        }
        let columns = self.products(room, &held.w)?;
        if outputs.has_length("w as products read it", columns.len(), w.len() / (INPUTS + 1) * INPUTS) {
            let kept = |w: f32| if be.precision() == Precision::Bf16 { rounded(w) } else { w };
            let stale = columns.iter().zip(&w).position(|(&read, &w)| read != kept(w));
            let said = |i: usize| format!("products read {} where w[{i}] is {}", columns[i], w[i]);
            outputs.promise(stale.is_none(), || stale.map(said).unwrap_or_default());
        }
        Ok(outputs)
    }

    /// What there is if no update is made.
    fn before<T: Scalar>(&self) -> Values {
        Updates { grads: Vec::new(), ..self.clone() }.reference::<T>()
    }

    /// Bit for bit.
    fn promise_nothing_changed(&self, outputs: &mut Outputs) {
        let bits = |values: &[f64]| values.iter().map(|x| x.to_bits()).collect::<Vec<u64>>();
        let changed = |((_, after), (_, before)): &(&(_, Vec<f64>), &(_, Vec<f64>))| bits(after) != bits(before);
        let before = self.before::<f32>();
        let names: Vec<&str> = outputs.values.iter().zip(&before).filter(changed).map(|(&(name, _), _)| name).collect();
        outputs.promise(names.is_empty(), || format!("changed: {}", names.join(", ")));
    }

    /// The parameters as products read them: a row of the identity times the layer is a column of its weight.
    fn products<B: Backend>(&self, room: &Room<'_, B>, w: &B::Weights) -> Result<Vec<f32>> {
        let outputs = self.w.len() / (INPUTS + 1);
        let weight = Span { offset: 0, len: outputs * INPUTS };
        let bias = Span { offset: weight.len, len: outputs };
        let mut identity = vec![0.0; INPUTS * INPUTS];
        identity.iter_mut().step_by(INPUTS + 1).for_each(|x| *x = 1.0);
        let (x, mut y) = (room.mat(Rows::Tokens, INPUTS, &identity)?, room.empty(Rows::Tokens, outputs)?);
        room.be.linear(&x, w, &Linear { weight, bias, inputs: INPUTS, outputs }, &mut y)?;
        let y = room.be.read_mat(&y)?;
        Ok((0..y.len()).map(|i| y[i % INPUTS * (y.len() / INPUTS) + i / INPUTS]).collect())
    }
}

impl OpCase for Updates {
    fn op(&self) -> &'static str {
        "adamw"
    }

    fn shape(&self) -> String {
        let lens: Vec<usize> = self.spans.iter().map(|s| s.span.len).collect();
        let AdamW { step, weight_decay, max_norm, .. } = self.hyper;
        let steps = self.grads.len();
        format!("{steps} steps from {step}, spans of {lens:?}, weight_decay={weight_decay}, max_norm={max_norm}")
    }

    fn counts(&self) -> Capacity {
        rows_only(INPUTS)
    }

    fn reference<T: Scalar>(&self) -> Values {
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
        let (be, mut held) = (room.be, self.start(room)?);
        for (i, values) in self.grads.iter().enumerate() {
            be.write_flat(&mut held.grads, values)?;
            be.grad_norm(&held.grads, &mut held.tally)?;
            self.step(room, &mut held, &AdamW { step: self.hyper.step + i as u32, ..self.hyper })?;
        }
        self.outputs(room, &held)
    }
}

/// A norm that is not finite leaves weights and moments as they were, bit for bit.
struct NotFinite {
    update: Updates,
    poison: f32,
}

fn not_finite(poison: f32, max_norm: f32) -> NotFinite {
    let mut update = updates(&[64, 5, 130], AdamW { max_norm, ..HYPER }, 1.0);
    update.grads.truncate(1);
    update.grads[0][update.spans[1].span.offset + 3] = poison;
    NotFinite { update, poison }
}

impl OpCase for NotFinite {
    fn op(&self) -> &'static str {
        "adamw, not finite"
    }

    fn shape(&self) -> String {
        format!("a gradient of {}, {}", self.poison, self.update.shape())
    }

    fn counts(&self) -> Capacity {
        self.update.counts()
    }

    fn reference<T: Scalar>(&self) -> Values {
        self.update.before::<T>()
    }

    fn run<B: Backend>(&self, room: &mut Room<'_, B>) -> Result<Outputs> {
        let mut outputs = self.update.run(room)?;
        self.update.promise_nothing_changed(&mut outputs);
        let (be, mut tally) = (room.be, room.be.tally()?);
        be.grad_norm(&room.flat(&self.update.grads[0])?, &mut tally)?;
        let norm = be.take_tally(&mut tally)?.grad_norm;
        outputs.promise(!norm.is_finite(), || format!("the norm is {norm}"));
        Ok(outputs)
    }
}

/// A loss or a norm beyond its limit, or a loss that is no number, is withheld; one at the limit is not.
struct Limited {
    update: Updates,
    what: &'static str,
    batch: TestBatch,
    /// Of the loss. [B, K]
    logits: Vec<f32>,
    limits: fn(&Tally) -> UpdateLimits,
    allowed: bool,
}

/// K of the loss, which is ln K for each label.
const CLASSES: usize = 4;

fn limited(what: &'static str, allowed: bool, limits: fn(&Tally) -> UpdateLimits) -> Limited {
    let mut update = updates(&[200, 7], HYPER, 1.0);
    update.grads.truncate(1);
    let mut batch = TestBatch::new(&[2, 3, 1], 40, &mut Random::new(4));
    (batch.labels, batch.limits.classes) = (vec![0, 1, 3], CLASSES);
    let logits = vec![0.0; batch.sequences() * CLASSES];
    Limited { update, what, batch, logits, limits, allowed }
}

impl OpCase for Limited {
    fn op(&self) -> &'static str {
        "adamw, limits"
    }

    fn shape(&self) -> String {
        format!("{}, {}", self.what, self.update.shape())
    }

    fn counts(&self) -> Capacity {
        Capacity { sequences: self.batch.sequences(), ..self.update.counts() }
    }

    fn reference<T: Scalar>(&self) -> Values {
        if self.allowed { self.update.reference::<T>() } else { self.update.before::<T>() }
    }

    fn run<B: Backend>(&self, room: &mut Room<'_, B>) -> Result<Outputs> {
        let (be, update) = (room.be, &self.update);
        let (mut held, mut params) = (update.start(room)?, Params::default());
        let bias = params.add(vec![0.0; CLASSES], &mut Random::new(5));
        be.write_flat(&mut held.grads, &update.grads[0])?;
        let (batch, logits) = (room.upload(&self.batch)?, room.mat(Rows::Sequences, CLASSES, &self.logits)?);
        let measure = |held: &mut Held<B>| {
            be.class_cross_entropy(&logits, &batch, bias, 0.0, &mut held.tally, None)?;
            be.grad_norm(&held.grads, &mut held.tally)
        };
        measure(&mut held)?;
        let tally = be.take_tally(&mut held.tally)?;
        measure(&mut held)?;
        room.give_batch(batch);
        let limits = (self.limits)(&tally);
        update.step(room, &mut held, &AdamW { limits, ..update.hyper })?;
        let mut outputs = update.outputs(room, &held)?;
        outputs.promise(limits.allow(&tally) == self.allowed, || format!("{limits:?} of {tally:?}"));
        if !self.allowed {
            update.promise_nothing_changed(&mut outputs);
        }
        Ok(outputs)
    }
}

fn limits() -> [Limited; 6] {
    const NONE: UpdateLimits = UpdateLimits::NONE;
    fn norm(tally: &Tally) -> f32 {
        tally.grad_norm as f32
    }
    fn loss(tally: &Tally) -> f32 {
        (tally.loss / tally.weight) as f32
    }
    let mut no_number = limited("a loss that is no number", false, |_| NONE);
    no_number.logits.fill(f32::NAN);
    [
        limited("no limits", true, |_| NONE),
        limited("a norm at its limit", true, |t| UpdateLimits { grad_norm: norm(t), ..NONE }),
        limited("a norm beyond its limit", false, |t| UpdateLimits { grad_norm: norm(t).next_down(), ..NONE }),
        limited("a loss within its limit", true, |t| UpdateLimits { loss: loss(t).next_up(), ..NONE }),
        limited("a loss beyond its limit", false, |t| UpdateLimits { loss: loss(t).next_down(), ..NONE }),
        no_number,
    ]
}

/// The norm of many gradients, up to ten million: of 1 and ½, whose squares f32 adds up exactly, as otherwise the naive norm
/// would be too far off to tell a block that is missing.
pub fn large_norm(len: usize) -> impl OpCase {
    let half_or_one = |x: f32| if x.abs() < 0.1 { 1.0f32 } else { 0.5 }.copysign(x);
    Norm { grads: Random::new(1).normals(len, 1.0).into_iter().map(half_or_one).collect() }
}

/// Two updates of long spans, unclipped: the naive norm of so many gradients is too far off to clip by.
pub fn large_update(lens: &[usize]) -> impl OpCase {
    let mut case = updates(lens, AdamW { max_norm: 0.0, ..HYPER }, 1.0);
    case.grads.truncate(2);
    case
}

/// All cases.
pub fn suite<B: Backend + Sync>(suite: &mut Suite<'_, B>) {
    let mut random = Random::new(1);
    for len in [1, 3, 64, 1000, 200_003] {
        suite.check(Norm { grads: random.normals(len, 0.1) });
    }
    let lens = [64, 1, 130, 5, 40_000, 768];
    // A norm of about 200 is clipped to 1; one of about 0.02 is not.
    suite.check(updates(&lens, HYPER, 1.0));
    suite.check(updates(&lens, HYPER, 1e-4));
    suite.check(updates(&lens, AdamW { max_norm: 0.0, ..HYPER }, 1.0));
    suite.check(updates(&lens, AdamW { step: 1000, weight_decay: 0.0, ..HYPER }, 1.0));
    for poison in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for max_norm in [1.0, 0.0] {
            suite.check(not_finite(poison, max_norm));
        }
    }
    limits().into_iter().for_each(|case| suite.check(case));
}
