//! What Hopper's instructions do to layouts, one instruction at a time, against the manual's tables.

use super::case::{Case, Draws, Swizzle, Tensor, value};
use super::tables::{A_FIGURE, Canonical, D_FIGURE, Held, K_MAJOR, MN_MAJOR, chunk_place, holder_of_a, holder_of_d};

const FILE: &str = "tests/simulator/kernels/hopper_layouts.cu";

#[test]
fn formulas_of_fragments_agree_with_the_manuals_figures() {
    for (row, column, thread, register) in D_FIGURE {
        assert_eq!(holder_of_d(row, column), Held { thread, register }, "D({row}, {column})");
    }
    for (row, k, thread, register) in A_FIGURE {
        assert_eq!(holder_of_a(row, k), Held { thread, register }, "A({row}, {k})");
    }
}

/// A box of 16 rows as it lies in shared memory, with what lies outside of the tensor as zeros.
fn box_image(matrix: &[u16], rows: usize, columns: usize, at: (usize, usize), swizzle: Swizzle) -> Vec<u16> {
    let wide = swizzle.width() / 2;
    let mut image = vec![0; 16 * wide];
    for row in 0..16 {
        for column in 0..wide {
            let (y, x) = (at.0 + row, at.1 + column);
            if y < rows && x < columns {
                image[chunk_place(swizzle, row, column / 8, wide / 8) / 2 + column % 8] = matrix[y * columns + x];
            }
        }
    }
    image
}

#[test]
fn tensor_copies_swizzle_and_fill_with_zeros() {
    let (rows, columns) = (40, 200);
    let matrix = Draws(1).bf16s(rows * columns);
    for swizzle in Swizzle::ALL {
        for at in [(0, 0), (3, 8), (30, 180), (39, 199), (24, 100)] {
            let image = box_image(&matrix, rows, columns, at, swizzle);
            let bytes = 2 * image.len();
            let Some(mut case) = Case::new(2) else { return };
            let address = case.input("matrix", &matrix);
            let of_box = [swizzle.width() as u32 / 2, 16];
            case.map(&Tensor { address, rows, columns, of_box, swizzle });
            case.arg(&[at.1 as u64]);
            case.arg(&[at.0 as u64]);
            case.arg(&[bytes as u64]);
            let out = case.output::<u16>("image", image.len());
            case.arg(&[out]);
            let module = case.load(FILE, &[]);
            case.run(&module, "box_in", 1, 128, bytes + 8).unwrap();
            assert_eq!(case.read::<u16>(out, image.len()), image, "{swizzle:?} at {at:?}");
        }
    }
}

#[test]
fn tensor_copies_out_leave_what_is_outside() {
    let (rows, columns) = (40, 200);
    let (matrix, before) = (Draws(3).bf16s(rows * columns), Draws(4).bf16s(rows * columns));
    for swizzle in Swizzle::ALL {
        for at in [(0, 0), (3, 8), (30, 180), (39, 192)] {
            let image = box_image(&matrix, rows, columns, at, swizzle);
            let Some(mut case) = Case::new(5) else { return };
            let address = case.update("matrix", &before);
            let of_box = [swizzle.width() as u32 / 2, 16];
            case.map(&Tensor { address, rows, columns, of_box, swizzle });
            case.arg(&[at.1 as u64]);
            case.arg(&[at.0 as u64]);
            case.arg(&[2 * image.len() as u64]);
            let input = case.input("image", &image);
            case.arg(&[input]);
            let module = case.load(FILE, &[]);
            case.run(&module, "box_out", 1, 128, 2 * image.len()).unwrap();
            let inside =
                |y: usize, x: usize| (at.0..at.0 + 16).contains(&y) && (at.1..at.1 + of_box[0] as usize).contains(&x);
            for (i, got) in case.read::<u16>(address, rows * columns).into_iter().enumerate() {
                let wanted = if inside(i / columns, i % columns) { matrix[i] } else { before[i] };
                assert_eq!(got, wanted, "{swizzle:?} at {at:?}: row {}, column {}", i / columns, i % columns);
            }
        }
    }
}

#[test]
fn maps_that_the_driver_would_refuse() {
    let Some(mut case) = Case::new(6) else { return };
    let address = case.output::<u16>("matrix", 64 * 64);
    let good = || Tensor { address, rows: 64, columns: 64, of_box: [64, 8], swizzle: Swizzle::Bytes128 };
    case.try_map(&good(), 128).unwrap();
    let bad = [
        (Tensor { address: address + 8, ..good() }, 128, "globalAddress"),
        (good(), 120, "globalStrides"),
        (good(), 112, "less than a row"),
        (Tensor { of_box: [64, 257], ..good() }, 128, "boxDim must be"),
        (Tensor { of_box: [4, 8], swizzle: Swizzle::None, ..good() }, 128, "multiple of 16"),
        (Tensor { of_box: [128, 8], ..good() }, 128, "fit the swizzle"),
        (Tensor { rows: 0, ..good() }, 128, "globalDim"),
    ];
    for (tensor, row_bytes, why) in bad {
        let error = case.try_map(&tensor, row_bytes).unwrap_err();
        assert!(error.contains(why), "{error}");
    }
}

#[test]
fn plain_bulk_copies() {
    let values = Draws(7).bf16s(512);
    let Some(mut case) = Case::new(8) else { return };
    let from = case.input("from", &values);
    let out = case.output::<u16>("image", values.len());
    for arg in [from, 1024, out] {
        case.arg(&[arg]);
    }
    let module = case.load(FILE, &[]);
    case.run(&module, "bulk_in", 1, 128, 1032).unwrap();
    assert_eq!(case.read::<u16>(out, values.len()), values);
}

/// "stmatrix", figure of the 8x8 fragment: thread t holds elements (t / 4, 2 (t % 4)) and its right neighbour.
#[test]
fn stmatrix_stores_fragments_as_rows() {
    let fragments = Draws(9).bf16s(32 * 8);
    for (kernel, transposed) in [("store_matrices", false), ("store_matrices_trans", true)] {
        let Some(mut case) = Case::new(10) else { return };
        let from = case.input("fragments", &fragments);
        let out = case.output::<u16>("image", 256);
        case.arg(&[from]);
        case.arg(&[out]);
        let module = case.load(FILE, &[]);
        case.run(&module, kernel, 1, 32, 512).unwrap();
        let image = case.read::<u16>(out, 256);
        for matrix in 0..4 {
            for (thread, half) in (0..32).flat_map(|thread| [(thread, 0), (thread, 1)]) {
                let (row, column) = (thread / 4, thread % 4 * 2 + half);
                let at = if transposed { column * 8 + row } else { row * 8 + column };
                let held = fragments[thread * 8 + matrix * 2 + half];
                assert_eq!(image[matrix * 64 + at], held, "{kernel}: matrix {matrix}, thread {thread}");
            }
        }
    }
}

#[test]
fn one_lane_is_elected() {
    let mut lanes = Vec::new();
    for seed in 0..8 {
        let Some(mut case) = Case::new(seed) else { return };
        let out = case.output::<u32>("elected", 32);
        case.arg(&[out]);
        let module = case.load(FILE, &[]);
        case.run(&module, "elect", 1, 32, 0).unwrap();
        let elected = case.read::<u32>(out, 32);
        assert_eq!(elected.iter().sum::<u32>(), 1);
        lanes.extend(elected.iter().position(|&one| one == 1));
    }
    lanes.dedup();
    assert!(lanes.len() > 1, "which one it is must not be something to rely on");
}

// ---- wgmma on images of shared memory ----------------------------------------------------------------------------------

/// A matrix of `mn` by `k`, laid out canonically in shared memory.
struct Image {
    swizzle: Swizzle,
    matrix: Vec<u16>,
    bytes: Vec<u16>,
    descriptor: u64,
    /// From one k16 to the next.
    step: u64,
}

/// `k` is 32, or what one row of a K-major swizzle holds.
fn image(draws: &mut Draws, layout: &Canonical, k_major: bool, mn: usize, k: usize) -> Image {
    let width = layout.swizzle.width();
    let plain = layout.swizzle == Swizzle::None;
    // Groups of eight rows follow each other; so do the pieces that the leading dimension counts.
    let (leading, stride, step) = match (k_major, plain) {
        (true, true) => (mn * 16, 128, 2 * mn * 16),
        (true, false) => (16, 8 * width, 32),
        (false, true) => (128, k * 16, 256),
        (false, false) => (k * width, 8 * width, 16 * width),
    };
    let matrix = draws.bf16s(mn * k);
    let mut bytes = vec![0; mn * k];
    let mut taken = vec![false; mn * k];
    for (i, &element) in matrix.iter().enumerate() {
        let at = layout.place(i / k, i % k, leading, stride) / 2;
        assert!(!std::mem::replace(&mut taken[at], true), "two elements in one place");
        bytes[at] = element;
    }
    let field = |bytes: usize, bit: u32| (bytes as u64 >> 4) << bit;
    let descriptor = field(leading, 16) | field(stride, 32) | u64::from(layout.swizzle.in_descriptor()) << 62;
    Image { swizzle: layout.swizzle, matrix, bytes, descriptor, step: step as u64 }
}

/// How much of k a K-major swizzle has in one row; 32 elsewhere.
fn depth(layout: &Canonical, k_major: bool) -> usize {
    if k_major && layout.swizzle != Swizzle::None { layout.swizzle.width() / 2 } else { 32 }
}

fn product_of_images(kernel: &str, n: usize, a: &Image, b: &Image, k: usize) {
    let what = format!("{kernel}, A {:?}, B {:?}", a.swizzle, b.swizzle);
    let Some(mut case) = Case::new(11) else { return };
    let (from_a, from_b) = (case.input("a", &a.bytes), case.input("b", &b.bytes));
    let layouts = case.input("layouts", &[a.descriptor, b.descriptor]);
    let two = |low: u64, high: u64| low | high << 32;
    let (a_bytes, b_bytes) = (2 * a.bytes.len() as u64, 2 * b.bytes.len() as u64);
    case.arg(&[from_a, from_b, layouts, two(a_bytes, b_bytes), two(a.step, b.step), k as u64 / 16]);
    let out = case.output::<f32>("result", 64 * n);
    case.arg(&[out]);
    let module = case.load(FILE, &[]);
    case.run(&module, kernel, 1, 128, a_bytes.next_multiple_of(1024) as usize + b_bytes as usize).unwrap();
    let d = case.read::<f32>(out, 64 * n);
    let (a_depth, b_depth) = (a.matrix.len() / 64, b.matrix.len() / n);
    for (row, column) in (0..64 * n).map(|i| (i / n, i % n)) {
        let terms = (0..k).map(|k| value(a.matrix[row * a_depth + k]) * value(b.matrix[column * b_depth + k]));
        let (sum, size) = terms.fold((0.0, 0.0), |(sum, size), term| (sum + term, size + term.abs()));
        let Held { thread, register } = holder_of_d(row, column);
        let got = f64::from(d[thread * (n / 2) + register]);
        // Products are exact; each of the k sums may be off by half a unit of its size.
        assert!((got - sum).abs() <= k as f64 * size * 2f64.powi(-24), "{what}: D({row}, {column}) {got}, not {sum}");
    }
}

#[test]
fn wgmma_reads_every_canonical_layout() {
    let mut draws = Draws(12);
    let majors = [(true, &K_MAJOR, "k"), (false, &MN_MAJOR, "mn")];
    for (a_k_major, a_layouts, a_name) in majors {
        for (b_k_major, b_layouts, b_name) in majors {
            for (a_layout, b_layout) in a_layouts.iter().flat_map(|a| b_layouts.iter().map(move |b| (a, b))) {
                let (a_k, b_k) = (depth(a_layout, a_k_major), depth(b_layout, b_k_major));
                let a = image(&mut draws, a_layout, a_k_major, 64, a_k);
                let b = image(&mut draws, b_layout, b_k_major, 64, b_k);
                product_of_images(&format!("product_n64_{a_name}_{b_name}"), 64, &a, &b, a_k.min(b_k));
            }
        }
    }
}

#[test]
fn wgmma_of_every_width() {
    let mut draws = Draws(13);
    for (kernel, n, b_layout, b_k_major) in [
        ("product_n128_k_k", 128, &K_MAJOR[3], true),
        ("product_n192_k_mn", 192, &MN_MAJOR[3], false),
        ("product_n256_k_k", 256, &K_MAJOR[2], true),
    ] {
        let a = image(&mut draws, &K_MAJOR[3], true, 64, 64);
        let b_k = depth(b_layout, b_k_major);
        let b = image(&mut draws, b_layout, b_k_major, n, b_k);
        product_of_images(kernel, n, &a, &b, b_k);
    }
}

#[test]
fn wgmma_with_a_in_registers() {
    let mut draws = Draws(14);
    let a = draws.bf16s(64 * 16);
    let b = image(&mut draws, &K_MAJOR[1], true, 64, 16);
    let before: Vec<f32> = draws.bf16s(128 * 32).into_iter().map(|bits| value(bits) as f32).collect();
    let mut fragments = vec![0u16; 128 * 8];
    for (i, &element) in a.iter().enumerate() {
        let Held { thread, register } = holder_of_a(i / 16, i % 16);
        fragments[thread * 8 + register] = element;
    }
    let Some(mut case) = Case::new(15) else { return };
    let (from_a, from_b) = (case.input("fragments", &fragments), case.input("b", &b.bytes));
    let layouts = case.input("layouts", &[b.descriptor]);
    let out = case.update("result", &before);
    for arg in [from_a, from_b, layouts, 2 * b.bytes.len() as u64, out] {
        case.arg(&[arg]);
    }
    let module = case.load(FILE, &[]);
    case.run(&module, "product_from_registers", 1, 128, 2 * b.bytes.len()).unwrap();
    let d = case.read::<f32>(out, 128 * 32);
    for (row, column) in (0..64 * 64).map(|i| (i / 64, i % 64)) {
        let Held { thread, register } = holder_of_d(row, column);
        let start = f64::from(before[thread * 32 + register]);
        let terms = (0..16).map(|k| value(a[row * 16 + k]) * value(b.matrix[column * 16 + k]));
        let (sum, size) = terms.fold((start, start.abs()), |(sum, size), term| (sum + term, size + term.abs()));
        let got = f64::from(d[thread * 32 + register]);
        assert!((got - sum).abs() <= 16.0 * size * 2f64.powi(-24), "D({row}, {column}) {got}, not {sum}");
    }
}

#[test]
fn accumulators_are_not_numbers_until_they_are_waited_for() {
    let mut draws = Draws(16);
    let (a, b) = (image(&mut draws, &K_MAJOR[1], true, 64, 16), image(&mut draws, &K_MAJOR[1], true, 64, 16));
    let Some(mut case) = Case::new(17) else { return };
    let (from_a, from_b) = (case.input("a", &a.bytes), case.input("b", &b.bytes));
    let layouts = case.input("layouts", &[a.descriptor, b.descriptor]);
    let bytes = 2 * a.bytes.len() as u64;
    case.arg(&[from_a, from_b, layouts, bytes | bytes << 32, 0, 1]);
    let (early, late) = (case.output::<f32>("early", 128 * 32), case.output::<f32>("late", 128 * 32));
    case.arg(&[early]);
    case.arg(&[late]);
    let module = case.load(FILE, &[]);
    case.run(&module, "read_early", 1, 128, 2 * bytes as usize).unwrap();
    assert!(case.read::<f32>(early, 128 * 32).iter().all(|d| d.is_nan()));
    assert!(case.read::<f32>(late, 128 * 32).iter().all(|d| d.is_finite()));
}
