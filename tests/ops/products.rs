//! Every product of a layer in every way there is, on the simulated GPU, against the f64 oracle; and the same bits whatever
//! the order of threads and however many multiprocessors share the tiles.

use half::bf16;
use handbert::backend::cuda::CudaBackend;
use handbert::backend::cuda::choice::{Choices, Origin};
use handbert::backend::cuda::device::{Device, LiveRows, Region};
use handbert::backend::cuda::memory::Allocation;
use handbert::backend::cuda::ops::product::{Bias, Onto, Product, Task, run};

use handbert::check::random::Random;
use handbert::check::reference::gelu::{gelu, gelu_backward};
use handbert::check::reference::linear::{linear, linear_backward};
use handbert::check::reference::{Mixed, Scalar, add_rows, cast, rounded, stored, widen};
use handbert::check::tolerance::{Unit, measure};

use crate::sim_device::SimDevice;

type Backend = CudaBackend<SimDevice>;

/// By name.
type Outputs = Vec<(&'static str, Vec<f64>)>;

/// Each output within the tolerance rule of `exact`, as the suite has it.
fn assert_close(what: &str, got: &Outputs, exact: &Outputs, naive: &Outputs) {
    assert_eq!(got.len(), exact.len(), "{what}: number of outputs");
    for ((got, exact), naive) in got.iter().zip(exact).zip(naive) {
        assert_eq!((got.0, exact.0), (exact.0, naive.0), "{what}: order of the outputs");
        let unit = if ["d_weight", "d_bias"].contains(&got.0) { Unit::F32 } else { Unit::Bf16 };
        assert_eq!(got.1.len(), exact.1.len(), "{what}: {}: number of elements", got.0);
        let verdict = measure(unit, &got.1, &exact.1, &naive.1, 0.0);
        assert!(verdict.passes(), "{what}: {}: {verdict:?}", got.0);
    }
}

fn assert_same_bits(what: &str, one: &Outputs, other: &Outputs) {
    for ((name, one), (_, other)) in one.iter().zip(other) {
        let bits = |values: &[f64]| values.iter().map(|value| value.to_bits()).collect::<Vec<u64>>();
        assert!(bits(one) == bits(other), "{what}: {name}");
    }
}

/// A layer, and how many of the rows that there is room for are live.
#[derive(Debug, Clone, Copy)]
struct Shape {
    capacity: usize,
    live: usize,
    inputs: usize,
    outputs: usize,
}

/// What runs a case, and in which way.
#[derive(Debug, Clone, Copy)]
struct Machine {
    origin: Origin,
    seed: u64,
    multiprocessors: u32,
}

impl Machine {
    fn backend(self) -> Option<Backend> {
        let mut device = SimDevice::new(self.seed)?;
        device.multiprocessors = self.multiprocessors;
        device.library = Some("a library".into());
        Some(CudaBackend::new(device).expect("a backend").choosing(Choices::first(self.origin)))
    }
}

const WAYS: [Origin; 3] = [Origin::Mma, Origin::Wgmma, Origin::Library];

/// A layer and what goes through it; all but `bias` and `d_weight` as bf16 holds it.
struct Case {
    shape: Shape,
    /// [live, inputs]
    x: Vec<f32>,
    /// [outputs, inputs]
    weight: Vec<f32>,
    bias: Vec<f32>,
    /// [live, outputs]
    d_y: Vec<f32>,
    /// [live, inputs]: what d_x holds where it is added to.
    d_x: Vec<f32>,
    /// [live, inputs]: the argument of the GELU before this layer.
    pre: Vec<f32>,
    /// [outputs, inputs]: the gradient that accumulation starts from.
    d_weight: Vec<f32>,
    /// [inputs]: likewise.
    d_bias: Vec<f32>,
}

fn case(shape: Shape) -> Case {
    let Shape { live, inputs, outputs, .. } = shape;
    let mut random = Random::new((inputs + outputs + live) as u32);
    let mut bf16s = |len, scale| random.normals(len, scale).into_iter().map(rounded).collect::<Vec<f32>>();
    let (x, weight) = (bf16s(live * inputs, 1.0), bf16s(outputs * inputs, 1.0 / (inputs as f32).sqrt()));
    let (d_y, d_x, pre) = (bf16s(live * outputs, 1.0), bf16s(live * inputs, 1.0), bf16s(live * inputs, 1.5));
    let mut f32s = |len, scale| random.normals(len, scale);
    let (bias, d_weight, d_bias) = (f32s(outputs, 0.3), f32s(outputs * inputs, 0.5), f32s(inputs, 0.5));
    Case { shape, x, weight, bias, d_y, d_x, pre, d_weight, d_bias }
}

/// Matrices of activations, then what is f32.
const NAMES: [&str; 9] = ["y", "pre", "act", "d_x", "d_x of many", "d_x added to", "d_pre", "d_bias", "d_weight"];

impl Case {
    fn reference<T: Scalar>(&self) -> Outputs {
        let (x, weight) = (cast::<T>(&self.x), cast::<T>(&self.weight));
        let y = stored(linear(&x, &weight, &cast(&self.bias)));
        let act: Vec<T> = stored(y.iter().map(|&pre| gelu(pre)).collect());
        let mut d_weight = cast(&self.d_weight);
        let d_x = linear_backward(&cast(&self.d_y), &x, &weight, self.shape.inputs, &mut d_weight);
        let added = stored(cast::<T>(&self.d_x).into_iter().zip(&d_x).map(|(before, &d)| before + d).collect());
        let d_pre = stored(gelu_backward(&cast(&self.pre), &d_x));
        let mut d_bias = cast(&self.d_bias);
        add_rows(&d_pre, &mut d_bias);
        let d_x = widen(&stored(d_x));
        let values =
            [widen(&y), widen(&y), widen(&act), d_x.clone(), d_x, widen(&added), widen(&d_pre), widen(&d_bias)];
        NAMES.into_iter().zip(values.into_iter().chain([widen(&d_weight)])).collect()
    }

    /// Every product.
    fn run(&self, be: &Backend) -> Outputs {
        let Shape { capacity, live, inputs, outputs } = self.shape;
        let count = upload(be, &[live as u32], 4);
        let rows = LiveRows { live: count.region(), first: 0, capacity: capacity as u32 };
        let product = Product { inputs, outputs, rows };
        let (narrow, wide) = ([capacity, inputs], [capacity, product.lead()]);
        let [x, pre_before, d_x_before] = [&self.x, &self.pre, &self.d_x].map(|values| rows_of(be, values, narrow));
        let d_y = rows_of(be, &padded(&self.d_y, outputs, product.lead()), wide);
        let weight = rows_of(be, &self.weight, [outputs, inputs]);
        let [bias, d_bias, d_weight] =
            [&self.bias, &self.d_bias, &self.d_weight].map(|values| upload(be, values, values.len() * 4));
        let rounded = rows_of(be, &self.bias, [1, outputs]);
        let [y, pre, act] = [0; 3].map(|_| fresh(be, wide[0] * wide[1] * 2));
        let [d_x, of_many, d_pre] = [0; 3].map(|_| fresh(be, capacity * inputs * 2));

        let bias = Bias { exact: bias.region(), rounded: rounded.region() };
        let (x, weight, d_y) = (x.region(), weight.region(), d_y.region());
        let (pre_before, d_bias_at) = (pre_before.region(), d_bias.region());
        for task in [
            Task::Bias { x, weight, bias, y: y.region() },
            Task::BiasGelu { x, weight, bias, pre: pre.region(), y: act.region() },
            Task::Dx { d_y, weight, d_x: Onto::Write(d_x.region()) },
            Task::DxOfMany { d_y, weight, d_x: of_many.region() },
            Task::Dx { d_y, weight, d_x: Onto::Add(d_x_before.region()) },
            Task::DxGelu { d_y, weight, pre: pre_before, d_pre: d_pre.region(), d_bias: d_bias_at },
            Task::Dw { d_y, x, d_weight: d_weight.region() },
        ] {
            run(be, &product, &task).unwrap_or_else(|error| panic!("{:?}: {task:?}: {error}", self.shape));
        }

        let of_layer = |mat: &Allocation| unpadded(&read_rows(be, mat.region(), live, wide), outputs, product.lead());
        let gradient = |mat: &Allocation| read_rows(be, mat.region(), live, narrow);
        let activations = [&y, &pre, &act].map(of_layer).into_iter();
        let gradients = [&d_x, &of_many, &d_x_before, &d_pre].map(gradient).into_iter();
        let sums = [&d_bias, &d_weight].map(|sums| read_f32(be, sums.region())).into_iter();
        NAMES.into_iter().zip(activations.chain(gradients).chain(sums)).collect()
    }

    fn check(&self) {
        let (exact, naive) = (self.reference::<f64>(), self.reference::<Mixed>());
        // That of mma.sync goes through the suite.
        for origin in [Origin::Wgmma, Origin::Library] {
            // Which writes nothing behind the last output; the backend's logits are zero there from the start.
            if origin == Origin::Library && !self.shape.outputs.is_multiple_of(64) {
                continue;
            }
            let Some(be) = (Machine { origin, seed: 1, multiprocessors: 3 }).backend() else { return };
            let what = format!("{origin:?}, {:?}", self.shape);
            assert_close(&what, &self.run(&be), &exact, &naive);
        }
    }
}

// ---- Memory --------------------------------------------------------------------------------------------------------------

fn fresh(be: &Backend, bytes: usize) -> Allocation {
    Allocation::new(be.device(), bytes, "an operand").expect("memory")
}

/// Memory of so many bytes that begins with `values`, and holds nothing behind them.
fn upload<T: bytemuck::NoUninit>(be: &Backend, values: &[T], bytes: usize) -> Allocation {
    let (memory, values) = (fresh(be, bytes), bytemuck::cast_slice::<T, u8>(values));
    be.device().upload(values, memory.region().part(0, values.len())).expect("uploaded");
    memory
}

/// A matrix of bf16 whose first rows are `values`.
fn rows_of(be: &Backend, values: &[f32], [capacity, cols]: [usize; 2]) -> Allocation {
    let bits: Vec<u16> = values.iter().map(|&value| bf16::from_f32(value).to_bits()).collect();
    upload(be, &bits, capacity * cols * 2)
}

fn download<T: bytemuck::AnyBitPattern + bytemuck::NoUninit>(be: &Backend, from: Region) -> Vec<T> {
    let mut values = vec![T::zeroed(); from.bytes() / size_of::<T>()];
    be.device().download(from, bytemuck::cast_slice_mut(&mut values)).expect("written");
    values
}

fn read_f32(be: &Backend, from: Region) -> Vec<f64> {
    download::<f32>(be, from).into_iter().map(f64::from).collect()
}

/// The live rows of a bf16 matrix, of which the others must not have been written.
fn read_rows(be: &Backend, from: Region, live: usize, [capacity, cols]: [usize; 2]) -> Vec<f64> {
    for dead in live..capacity {
        let mut row = vec![0; cols * 2];
        let read = be.device().download(from.part(dead * cols * 2, cols * 2), &mut row);
        assert!(
            read.is_err_and(|error| error.to_string().contains("never written")),
            "row {dead} of {live} is written"
        );
    }
    let bits = download::<u16>(be, from.part(0, live * cols * 2));
    bits.into_iter().map(|bits| bf16::from_bits(bits).to_f64()).collect()
}

/// Each row with zeros behind it.
fn padded(values: &[f32], cols: usize, lead: usize) -> Vec<f32> {
    let pads = vec![0.0; lead - cols];
    values.chunks(cols).flat_map(|row| [row, &pads].concat()).collect()
}

/// Each row without what lies behind it, which must be zeros.
fn unpadded(values: &[f64], cols: usize, lead: usize) -> Vec<f64> {
    let rows = values.chunks(lead);
    let row = |row: &[f64]| {
        assert!(row[cols..].iter().all(|&pad| pad == 0.0), "zeros behind the outputs");
        row[..cols].to_vec()
    };
    rows.flat_map(row).collect()
}

// ---- Cases ---------------------------------------------------------------------------------------------------------------

fn shape(live: usize, inputs: usize, outputs: usize) -> Shape {
    // Odd and even counts, with room to spare and without.
    Shape { capacity: live + live % 2 * 70, live, inputs, outputs }
}

#[test]
fn every_product_of_every_shape() {
    for shape in [
        shape(1, 64, 64),
        shape(65, 128, 320),
        // A row less than a box.
        shape(127, 64, 128),
        shape(128, 64, 128),
        shape(300, 128, 768),
        shape(65, 768, 128),
        // Outputs that fill no row, the last block of 64 with 44 of them.
        shape(129, 192, 300),
        shape(257, 320, 449),
    ] {
        case(shape).check();
    }
}

#[test]
fn depths_that_are_split() {
    // d_W over a few parts of the rows, the last of them short; d_x over a few of the outputs.
    case(Shape { capacity: 1200, live: 1091, inputs: 128, outputs: 128 }).check();
    case(Shape { capacity: 1300, live: 130, inputs: 64, outputs: 64 }).check();
    case(shape(65, 64, 1100)).check();
}

#[test]
fn a_layer_of_the_base_model() {
    case(shape(300, 768, 768)).check();
}

#[test]
fn no_rows_are_no_work() {
    let case = case(Shape { capacity: 128, live: 0, inputs: 64, outputs: 64 });
    for origin in WAYS {
        let Some(be) = (Machine { origin, seed: 1, multiprocessors: 3 }).backend() else { return };
        for (name, values) in case.run(&be) {
            match name {
                "d_weight" => assert_eq!(values, widen(&cast::<f64>(&case.d_weight)), "left as it was"),
                "d_bias" => assert_eq!(values, widen(&cast::<f64>(&case.d_bias)), "left as it was"),
                _ => assert!(values.is_empty(), "{name}"),
            }
        }
    }
}

#[test]
fn bits_depend_on_neither_threads_nor_multiprocessors() {
    for shape in [shape(300, 192, 512), Shape { capacity: 700, live: 545, inputs: 64, outputs: 64 }] {
        let case = case(shape);
        for origin in WAYS {
            let first = Machine { origin, seed: 1, multiprocessors: 1 };
            let Some(first) = first.backend().map(|be| case.run(&be)) else { return };
            for (seed, multiprocessors) in [(2, 1), (3, 3), (4, 132)] {
                let machine = Machine { origin, seed, multiprocessors };
                let again = case.run(&machine.backend().expect("there was one before"));
                assert_same_bits(&format!("{shape:?}, {machine:?}"), &first, &again);
            }
        }
    }
}

/// Ways are tried out on the operands at hand; nothing is added to twice by that, and what they leave is a product.
#[test]
fn trying_ways_out_changes_nothing() {
    let case = case(shape(130, 64, 128));
    let Some(device) = SimDevice::new(1) else { return };
    let choosing = CudaBackend::new(device).expect("a backend").choosing(Choices::quickest(&WAYS, None));
    let (exact, naive) = (case.reference::<f64>(), case.reference::<Mixed>());
    assert_close("the quickest way", &case.run(&choosing), &exact, &naive);
}
