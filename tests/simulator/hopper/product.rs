//! Tensor copies feeding wgmma: a small product, in every swizzle and with both operands by rows of k or across them.

use super::case::{Case, Draws, Swizzle, Tensor, value};

const FILE: &str = "tests/simulator/kernels/hopper_product.cu";
const K: usize = 64;

#[derive(Debug, Clone, Copy)]
struct Shape {
    swizzle: Swizzle,
    a_mn_major: bool,
    b_mn_major: bool,
    n: usize,
}

/// Element (mn, k) of an operand.
fn at(matrix: &[u16], mn_major: bool, mn: usize, of: usize, k: usize) -> f64 {
    value(if mn_major { matrix[k * of + mn] } else { matrix[mn * K + k] })
}

fn check(shape: Shape) {
    let Shape { swizzle, a_mn_major, b_mn_major, n } = shape;
    let mut draws = Draws(21);
    let (a, b) = (draws.bf16s(64 * K), draws.bf16s(n * K));
    let Some(mut case) = Case::new(22) else { return };
    for (matrix, mn_major, mn) in [(&a, a_mn_major, 64), (&b, b_mn_major, n)] {
        let address = case.input("operand", matrix);
        let (rows, columns) = if mn_major { (K, mn) } else { (mn, K) };
        let of_box = [swizzle.width() as u32 / 2, rows as u32];
        case.map(&Tensor { address, rows, columns, of_box, swizzle });
    }
    let out = case.output::<f32>("y", 64 * n);
    case.arg(&[out]);
    let defines = [
        ("SWIZZLE", swizzle.in_descriptor()),
        ("A_MAJOR", a_mn_major.into()),
        ("B_MAJOR", b_mn_major.into()),
        ("N", n as u32),
    ];
    let module = case.load(FILE, &defines);
    case.run(&module, "product", 1, 128, (64 + n) * K * 2 + 8).unwrap();
    let y = case.read::<f32>(out, 64 * n);
    for (row, column) in (0..64 * n).map(|i| (i / n, i % n)) {
        let terms = (0..K).map(|k| at(&a, a_mn_major, row, 64, k) * at(&b, b_mn_major, column, n, k));
        let (sum, size) = terms.fold((0.0, 0.0), |(sum, size), term| (sum + term, size + term.abs()));
        let got = f64::from(y[row * n + column]);
        assert!(
            (got - sum).abs() <= K as f64 * size * 2f64.powi(-24),
            "{shape:?}: y[{row}, {column}] {got}, not {sum}"
        );
    }
}

#[test]
fn every_swizzle_and_both_majors() {
    for swizzle in Swizzle::ALL {
        for (a_mn_major, b_mn_major) in [(false, false), (false, true), (true, false), (true, true)] {
            check(Shape { swizzle, a_mn_major, b_mn_major, n: 64 });
        }
    }
}

#[test]
fn every_width() {
    for (n, swizzle, b_mn_major) in
        [(128, Swizzle::Bytes64, true), (192, Swizzle::Bytes128, true), (256, Swizzle::Bytes128, false)]
    {
        check(Shape { swizzle, a_mn_major: false, b_mn_major, n });
    }
}
