//! ldmatrix and mma.sync, element by element, against the manual's figures.

use half::{bf16, f16};

use super::tables;
use super::trial::{Trial, input, output, update, values};

fn warp(kernel: &'static str, args: Vec<super::trial::Arg>) -> Trial {
    Trial { file: "layouts.cu", kernel, blocks: 1, threads: 32, shared_bytes: 512, args }
}

/// Element (row, column) of matrix i; all different.
fn element(i: usize, row: usize, column: usize) -> u16 {
    (i * 64 + row * 8 + column) as u16
}

#[test]
fn ldmatrix_spreads_matrices_as_the_figure_shows() {
    let x: Vec<u16> = (0..256).collect();
    for (kernel, transposed) in [("load_four", false), ("load_four_transposed", true)] {
        let Some(outputs) = warp(kernel, vec![input(&x), output::<u32>(128)]).passes() else { return };
        let found = values::<u32>(&outputs[0]);
        for i in 0..4 {
            for (row, lanes) in tables::MATRIX.iter().enumerate() {
                for (pair, &lane) in lanes.iter().enumerate() {
                    let at = |column| if transposed { element(i, column, row) } else { element(i, row, column) };
                    let expected = u32::from(at(2 * pair)) | u32::from(at(2 * pair + 1)) << 16;
                    assert_eq!(
                        found[4 * usize::from(lane) + i],
                        expected,
                        "{kernel}: matrix {i}, row {row}, pair {pair}"
                    );
                }
            }
        }
    }
    warp("load_misaligned", vec![input(&x), output::<u32>(32)])
        .is_caught("ldmatrix reads 16 bytes at shared memory + ");
}

struct Product {
    a: [[f32; 16]; 16],
    b: [[f32; 8]; 16],
    c: [[f32; 8]; 16],
}

impl Product {
    /// Spread over registers by the figures; the result gathered by them.
    fn run(&self) -> Option<[[f32; 8]; 16]> {
        let pair = |low: f32, high: f32| {
            u32::from(bf16::from_f32(low).to_bits()) | u32::from(bf16::from_f32(high).to_bits()) << 16
        };
        let (mut a, mut b, mut c) = ([[0u32; 4]; 32], [[0u32; 2]; 32], [[0f32; 4]; 32]);
        for (row, places) in tables::A.iter().enumerate() {
            for (i, &(lane, register)) in places.iter().enumerate() {
                a[usize::from(lane)][usize::from(register)] = pair(self.a[row][2 * i], self.a[row][2 * i + 1]);
            }
        }
        for (i, places) in tables::B.iter().enumerate() {
            for (column, &(lane, register)) in places.iter().enumerate() {
                b[usize::from(lane)][usize::from(register)] = pair(self.b[2 * i][column], self.b[2 * i + 1][column]);
            }
        }
        for (row, places) in tables::D.iter().enumerate() {
            for (column, &(lane, register)) in places.iter().enumerate() {
                c[usize::from(lane)][usize::from(register)] = self.c[row][column];
            }
        }
        let args = vec![input(a.as_flattened()), input(b.as_flattened()), update(c.as_flattened())];
        let found = values::<f32>(&warp("multiply", args).passes()?[0]);
        Some(
            tables::D.map(|places| places.map(|(lane, register)| found[4 * usize::from(lane) + usize::from(register)])),
        )
    }
}

/// Each element of A against each of B alone: every product must land in its place, and nowhere else.
#[test]
fn mma_multiplies_what_the_figures_show() {
    // Small whole numbers: all sums are exact, in any order.
    let a: [[f32; 16]; 16] =
        std::array::from_fn(|i| std::array::from_fn(|k| ((7 * i + 3 * k + i * k) % 13) as f32 - 6.0));
    let b: [[f32; 8]; 16] =
        std::array::from_fn(|k| std::array::from_fn(|j| ((5 * k + 11 * j + k * j) % 17) as f32 - 8.0));
    let c: [[f32; 8]; 16] = std::array::from_fn(|i| std::array::from_fn(|j| (i * 8 + j) as f32));
    let Some(found) = (Product { a, b, c }).run() else { return };
    let expected: [[f32; 8]; 16] = std::array::from_fn(|i| {
        std::array::from_fn(|j| a[i].iter().zip(&b).fold(c[i][j], |sum, (a, row)| sum + a * row[j]))
    });
    assert_eq!(found, expected);
}

/// Products are exact; eight of them and what was there are added as one sum, which is cut to f32.
#[test]
fn mma_cuts_the_sum_of_eight_products() {
    let mut a = [[0.0; 16]; 16];
    let b = [[1.0; 8]; 16];
    // From 2^24 on, f32 has even numbers only. After the first half: 7 more, so 6; then 8 more.
    a[0][0] = 16_777_216.0;
    a[0][1..].fill(1.0);
    // Rounded to nearest it would be 4 more.
    (a[2][0], a[2][1]) = (-16_777_216.0, -3.0);
    a[1][0] = 1.0078125;
    let b_fine = std::array::from_fn(|k| if k == 0 { [1.0078125; 8] } else { b[k] });
    let Some(found) = (Product { a, b, c: [[0.0; 8]; 16] }).run() else { return };
    assert_eq!((found[0][0], found[2][7]), (16_777_230.0, -16_777_218.0));
    let found = Product { a, b: b_fine, c: [[0.0; 8]; 16] }.run().unwrap();
    assert_eq!(found[1][3], 1.0078125f32 * 1.0078125, "a product of two bf16 has sixteen bits");
}

#[test]
fn numbers_convert_as_the_manual_says() {
    let subnormal = f32::from_bits(0x007f_ffff);
    let ties = [f32::from_bits(0x3f80_8000), f32::from_bits(0x3f81_8000), f32::from_bits(0x3f80_8001)];
    let mut x = vec![0.0, -0.0, 1.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, subnormal, -200.0, -126.0, f32::MAX];
    x.extend(ties);
    // Of f16: ties among normal numbers, the largest, what rounds beyond it, subnormals and ties among them.
    let f16_ties = [0x3f80_1000, 0x3f80_3000, 0x3f80_1001, 0x477f_e000, 0x477f_efff, 0x477f_f000].map(f32::from_bits);
    x.extend(f16_ties);
    x.extend([0.7, 2f32.powi(-14), 2f32.powi(-24), 2f32.powi(-25), 3.0 * 2f32.powi(-25), 0.999_99 * 2f32.powi(-14)]);
    x.resize(32, 0.5);
    let to = [output::<u32>(32), output::<f32>(32), output::<u32>(32), output::<f32>(64)];
    let Some(outputs) = warp("numbers", [vec![input(&x)], to.into()].concat()).passes() else { return };
    let bits = |x: f32| if x.is_nan() { 0x7fff } else { u32::from(bf16::from_f32(x).to_bits()) };
    let expected: Vec<u32> = x.iter().map(|&x| bits(x) | bits(-x) << 16).collect();
    assert_eq!(values::<u32>(&outputs[0]), expected);
    let power = values::<f32>(&outputs[1]);
    assert_eq!(power[..5], [1.0, 1.0, 2.0, f32::INFINITY, 0.0]);
    assert!(power[5].is_nan());
    assert_eq!(power[6..9], [1.0, 0.0, f32::MIN_POSITIVE]);
    let half_bits = |x: f32| if x.is_nan() { 0x7fff } else { u32::from(f16::from_f32(x).to_bits()) };
    let expected: Vec<u32> = x.iter().map(|&x| half_bits(x) | half_bits(-x) << 16).collect();
    assert_eq!(values::<u32>(&outputs[2]), expected);
    let back = values::<f32>(&outputs[3]);
    for (pair, x) in back.chunks(2).zip(&x) {
        for (got, x) in pair.iter().zip([*x, -*x]) {
            assert!(got.to_bits() == f16::from_f32(x).to_f32().to_bits() || (got.is_nan() && x.is_nan()), "{x}: {got}");
        }
    }
}
