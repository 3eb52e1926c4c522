//! kernels/matmul_hopper.cu: y = x W^T + b, and its GELU, against f64.

use super::case::{Case, Draws, Swizzle, Tensor, value};

const FILE: &str = "kernels/matmul_hopper.cu";
/// Ring, staging, barriers.
const SHARED_BYTES: usize = 4 * 48 * 1024 + 8 * 2048 + 64;
/// What rows that are not live hold before and after.
const DEAD: u16 = 7;

#[derive(Debug, Clone, Copy)]
struct Shape {
    capacity: usize,
    live: usize,
    inputs: usize,
    outputs: usize,
    blocks: u32,
    gelu: bool,
}

impl Shape {
    fn lead(&self) -> usize {
        self.outputs.next_multiple_of(64)
    }
}

struct Data {
    x: Vec<u16>,
    w: Vec<u16>,
    bias: Vec<f32>,
}

impl Data {
    fn new(shape: &Shape) -> Data {
        let mut draws = Draws(41);
        let x = draws.bf16s(shape.capacity * shape.inputs);
        let w = draws.bf16s(shape.outputs * shape.inputs);
        let bias = draws.bf16s(shape.outputs).into_iter().map(|bits| value(bits) as f32).collect();
        Data { x, w, bias }
    }
}

/// pre (empty without GELU) and y, all rows.
fn run(shape: &Shape, data: &Data, seed: u64) -> Option<(Vec<u16>, Vec<u16>)> {
    let &Shape { capacity, live, inputs, outputs, blocks, gelu } = shape;
    let size = capacity * shape.lead();
    let mut case = Case::new(seed)?;
    // Rows that are not live are not even there: memory that was never written, behind what was.
    let x = case.input("x", &data.x[..live.max(1) * inputs]);
    let w = case.input("w", &data.w);
    let bias = case.input("bias", &data.bias);
    let count = case.input("live", &[live as u32]);
    for (address, rows, box_rows) in [(x, live.max(1), 128), (w, outputs, 256)] {
        case.map(&Tensor { address, rows, columns: inputs, of_box: [64, box_rows], swizzle: Swizzle::Bytes128 });
    }
    case.arg(&[x]);
    case.arg(&[bias]);
    let dead = vec![DEAD; size];
    let pre = if gelu { Some(case.update("pre", &dead)) } else { None };
    let y = case.update("y", &dead);
    for address in pre.into_iter().chain([y]) {
        case.arg(&[address]);
    }
    for scalar in [inputs, outputs, shape.lead()] {
        case.arg(&[scalar as u64]);
    }
    case.arg(&[count, (capacity as u64) << 32]);
    let module = case.load(FILE, &[]);
    let kernel = if gelu { "matmul_hopper_nt_bias_gelu" } else { "matmul_hopper_nt_bias" };
    case.run(&module, kernel, blocks, 384, SHARED_BYTES).unwrap();
    Some((pre.map(|pre| case.read(pre, size)).unwrap_or_default(), case.read(y, size)))
}

/// 1 + erf(x / sqrt 2) over 2, by the midpoint rule on the density: good to 1e-9 here.
fn normal_distribution(x: f64) -> f64 {
    const STEPS: usize = 4000;
    let step = x / STEPS as f64;
    let density = |t: f64| (-0.5 * t * t).exp() / std::f64::consts::TAU.sqrt();
    0.5 + (0..STEPS).map(|i| density((i as f64 + 0.5) * step)).sum::<f64>() * step
}

fn check(shape: &Shape) {
    let data = Data::new(shape);
    let Some((pre, y)) = run(shape, &data, 42) else { return };
    let linear = if shape.gelu { &pre } else { &y };
    let (lead, inputs) = (shape.lead(), shape.inputs);
    for (row, column) in (0..shape.capacity * lead).map(|i| (i / lead, i % lead)) {
        let at = row * lead + column;
        if row >= shape.live {
            assert!(y[at] == DEAD && linear[at] == DEAD, "{shape:?}: dead row {row} was written");
            continue;
        }
        if column >= shape.outputs {
            assert!(y[at] == 0 && linear[at] == 0, "{shape:?}: [{row}, {column}] is not zero");
            continue;
        }
        let bias = f64::from(data.bias[column]);
        let terms = (0..inputs).map(|k| value(data.x[row * inputs + k]) * value(data.w[column * inputs + k]));
        let (sum, size) = terms.fold((bias, bias.abs()), |(sum, size), term| (sum + term, size + term.abs()));
        let got = value(linear[at]);
        // One rounding to bf16, and those of the sums.
        let allowed = sum.abs() * 2f64.powi(-8) + (inputs + 1) as f64 * size * 2f64.powi(-24);
        assert!((got - sum).abs() <= allowed, "{shape:?}: [{row}, {column}] {got}, not {sum}");
        if shape.gelu && (row * 31 + column) % 97 == 0 {
            let wanted = got * normal_distribution(got);
            let error = (value(y[at]) - wanted).abs();
            // One rounding, and what gelu.cuh says of itself.
            assert!(
                error <= wanted.abs() * 2f64.powi(-8) + 1e-6,
                "{shape:?}: gelu({got}) {}, not {wanted}",
                value(y[at])
            );
        }
    }
}

#[test]
fn products_of_many_shapes() {
    let shape =
        |capacity, live, inputs, outputs, blocks| Shape { capacity, live, inputs, outputs, blocks, gelu: false };
    for plain in [
        shape(128, 128, 64, 256, 1),
        shape(300, 300, 128, 320, 2),
        shape(200, 113, 384, 192, 3),
        shape(130, 1, 64, 64, 1),
        shape(300, 257, 448, 300, 2),
        shape(64, 0, 64, 64, 2),
    ] {
        check(&plain);
        check(&Shape { gelu: true, ..plain });
    }
}

#[test]
fn bits_depend_on_neither_the_grid_nor_the_order_of_threads() {
    let shape = Shape { capacity: 300, live: 290, inputs: 192, outputs: 512, blocks: 1, gelu: false };
    let data = Data::new(&shape);
    let Some(first) = run(&shape, &data, 1) else { return };
    for (blocks, seed) in [(1, 2), (2, 3), (5, 4), (7, 5)] {
        assert_eq!(run(&Shape { blocks, ..shape }, &data, seed), Some(first.clone()), "{blocks} blocks, seed {seed}");
    }
}
