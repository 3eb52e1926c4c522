//! adamw's limits: a loss or a norm beyond its limit is withheld, one at the limit is not.

use handbert::backend::cpu::Cpu;
use handbert::backend::{AdamW, Backend, Result, Rows, Span, Tally, UpdateLimits, UpdateSpan};
use handbert::check::batches::TestBatch;
use handbert::check::params::Params;
use handbert::check::random::Random;
use handbert::check::room::Room;

use crate::sim_device;

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

/// Elements of the one span.
const LEN: usize = 200;

/// Limits for what a tally holds.
type Wanted<'a> = &'a dyn Fn(&Tally) -> UpdateLimits;

fn withholds_what_is_beyond_the_limits<B: Backend>(be: &B) {
    let mut random = Random::new(4);
    let (values, gradients) = (random.normals(LEN, 1.0), random.normals(LEN, 1.0));
    let spans = [UpdateSpan { span: Span { offset: 0, len: LEN }, decay: true }];
    let mut batch = TestBatch::new(&[2, 3, 1], 40, &mut random);
    (batch.labels, batch.limits.classes) = (vec![0, 1, 3], 4);
    let mut params = Params::default();
    let bias = params.add(vec![0.0; 4], &mut random);
    let room = &mut Room::new(be, batch.counts(), batch.counts());
    let mut changes = |wanted: Wanted<'_>| -> Result<bool> {
        let (mut w, mut tally) = (be.weights(&values)?, be.tally()?);
        let [mut m, mut v, mut grads] = [be.flat(LEN)?, be.flat(LEN)?, be.flat(LEN)?];
        be.write_flat(&mut grads, &gradients)?;
        let (uploaded, logits) = (room.upload(&batch)?, room.mat(Rows::Sequences, 4, &[0.0; 12])?);
        let measure = |tally: &mut B::Tally| {
            be.class_cross_entropy(&logits, &uploaded, bias, 0.0, tally, None)?;
            be.grad_norm(&grads, tally)
        };
        measure(&mut tally)?;
        let sums = be.take_tally(&mut tally)?;
        assert!(sums.loss > 1.0 && sums.weight > 1.0 && sums.grad_norm > 1.0, "{sums:?}");
        measure(&mut tally)?;
        let (limits, mut hyper) = (wanted(&sums), be.hyper()?);
        be.set_hyper(&mut hyper, &AdamW { limits, ..HYPER })?;
        be.adamw(&mut w, &grads, &mut m, &mut v, &spans, &hyper, &tally)?;
        room.give_batch(uploaded);
        let changed = be.read_weights(&w)? != values;
        assert_eq!(changed, limits.allow(&sums), "{limits:?} of {sums:?}");
        assert_eq!(be.read_flat(&m)?.iter().any(|&x| x != 0.0), changed);
        assert_eq!(be.read_flat(&v)?.iter().any(|&x| x != 0.0), changed);
        Ok(changed)
    };
    let norm = |tally: &Tally| tally.grad_norm as f32;
    let loss = |tally: &Tally| (tally.loss / tally.weight) as f32;
    let cases: [(bool, Wanted<'_>); 5] = [
        (true, &|_| UpdateLimits::NONE),
        (true, &|t| UpdateLimits { grad_norm: norm(t), ..UpdateLimits::NONE }),
        (false, &|t| UpdateLimits { grad_norm: norm(t).next_down(), ..UpdateLimits::NONE }),
        (true, &|t| UpdateLimits { loss: loss(t).next_up(), ..UpdateLimits::NONE }),
        (false, &|t| UpdateLimits { loss: loss(t).next_down(), ..UpdateLimits::NONE }),
    ];
    for (i, (expected, limits)) in cases.into_iter().enumerate() {
        let changed = changes(limits).unwrap_or_else(|e| panic!("adamw with limits: {e}"));
        assert_eq!(changed, expected, "case {i}");
    }
}

#[test]
fn on_the_cpu() {
    withholds_what_is_beyond_the_limits(&Cpu::new());
}

#[test]
fn on_the_simulated_gpu() {
    let Some(be) = sim_device::backend() else { return };
    withholds_what_is_beyond_the_limits(&be);
}
