//! Products of the simulated GPU's library, and the rows that are cleared for them.

use half::bf16;
use handbert::backend::cuda::CudaBackend;
use handbert::backend::cuda::device::{Device, Form, Gemm, GemmWay, LiveRows, Rectangle, Region, Sums};
use handbert::backend::cuda::ops::rows::zero_dead_rows;

use crate::sim_device::{SimBuffer, SimDevice};
use handbert::check::random::Random;

/// With a library; `None` where there is no C++ compiler.
fn device() -> Option<SimDevice> {
    let mut device = SimDevice::new(1)?;
    device.library = Some("cuBLASLt 13.1.0".into());
    Some(device)
}

fn bytes(values: &[f32], element: usize) -> Vec<u8> {
    let one = |&value: &f32| match element {
        2 => bf16::from_f32(value).to_le_bytes().to_vec(),
        _ => value.to_le_bytes().to_vec(),
    };
    values.iter().flat_map(one).collect()
}

/// A matrix of which the first rows are written, with a gap behind each.
struct Matrix<'a> {
    device: &'a SimDevice,
    values: Vec<f32>,
    cols: usize,
    element: usize,
    buffer: SimBuffer,
}

impl<'a> Matrix<'a> {
    const GAP: usize = 3;

    fn new(device: &'a SimDevice, [rows, cols]: [usize; 2], written: usize, element: usize) -> Matrix<'a> {
        let lead = cols + Self::GAP;
        let values = Random::new((rows * cols) as u32).normals(rows * cols, 1.0);
        let values: Vec<f32> = values.into_iter().map(|value| bf16::from_f32(value).to_f32()).collect();
        let buffer = device.alloc(rows * lead * element, "a matrix").unwrap();
        let matrix = Matrix { device, values, cols, element, buffer };
        for row in 0..written {
            device.upload(&bytes(matrix.row(row), element), matrix.row_region(row)).unwrap();
        }
        matrix
    }

    fn row(&self, row: usize) -> &[f32] {
        &self.values[row * self.cols..][..self.cols]
    }

    fn at(&self) -> Rectangle {
        Rectangle { region: self.device.region(&self.buffer), lead: self.cols + Self::GAP }
    }

    fn row_region(&self, row: usize) -> Region {
        let lead = self.cols + Self::GAP;
        self.at().region.part(row * lead * self.element, self.cols * self.element)
    }

    fn read(&self, row: usize) -> Result<Vec<u8>, String> {
        let mut bytes = vec![0; self.cols * self.element];
        self.device.download(self.row_region(row), &mut bytes).map_err(|error| error.to_string())?;
        Ok(bytes)
    }
}

/// Rows of A and D that were written when a product begins.
struct Written {
    a: usize,
    d: usize,
}

struct Product<'a> {
    gemm: Gemm,
    a: Matrix<'a>,
    b: Matrix<'a>,
    d: Matrix<'a>,
    bias: Matrix<'a>,
}

const ROWS: usize = 6;
const COLS: usize = 10;
const DEPTH: usize = 7;

impl<'a> Product<'a> {
    fn new(device: &'a SimDevice, form: Form, sums: fn(Region) -> Sums, written: Written) -> Product<'a> {
        let (in_a, in_b) = match form {
            Form::Nt => ([ROWS, DEPTH], [COLS, DEPTH]),
            Form::Nn => ([ROWS, DEPTH], [DEPTH, COLS]),
            Form::Tn => ([DEPTH, ROWS], [DEPTH, COLS]),
        };
        let bias = Matrix::new(device, [1, COLS], 1, 2);
        let sums = sums(bias.row_region(0));
        let a = Matrix::new(device, in_a, written.a, 2);
        let b = Matrix::new(device, in_b, in_b[0], 2);
        let d = Matrix::new(device, [ROWS, COLS], written.d, if sums == Sums::AddToF32 { 4 } else { 2 });
        let gemm = Gemm { form, rows: ROWS, cols: COLS, depth: DEPTH, a: a.at(), b: b.at(), d: d.at(), sums };
        Product { gemm, a, b, d, bias }
    }

    /// Row `row` of D afterwards.
    fn expected(&self, row: usize) -> Vec<u8> {
        let value = |col: usize| {
            let term = |k: usize| match self.gemm.form {
                Form::Nt => self.a.row(row)[k] * self.b.row(col)[k],
                Form::Nn => self.a.row(row)[k] * self.b.row(k)[col],
                Form::Tn => self.a.row(k)[row] * self.b.row(k)[col],
            };
            let sum = (0..DEPTH).map(term).fold(0.0, |sum, term| sum + term);
            match self.gemm.sums {
                Sums::Write => sum,
                Sums::WriteWithBias(_) => sum + self.bias.row(0)[col],
                Sums::Add | Sums::AddToF32 => sum + self.d.row(row)[col],
            }
        };
        bytes(&(0..COLS).map(value).collect::<Vec<_>>(), self.d.element)
    }

    fn run(&self) -> Result<(), String> {
        let way = self.d.device.gemm_ways(&self.gemm).unwrap()[0];
        self.d.device.gemm(&self.gemm, &way).map_err(|error| error.to_string())
    }
}

const ALL_SUMS: [fn(Region) -> Sums; 4] = [|_| Sums::Write, Sums::WriteWithBias, |_| Sums::Add, |_| Sums::AddToF32];

#[test]
fn products_are_sums_in_ascending_order() {
    let Some(device) = device() else { return };
    for form in [Form::Nt, Form::Nn, Form::Tn] {
        for sums in ALL_SUMS {
            let a = if form == Form::Tn { DEPTH } else { ROWS };
            let product = Product::new(&device, form, sums, Written { a, d: ROWS });
            product.run().unwrap();
            for row in 0..ROWS {
                assert_eq!(product.d.read(row).unwrap(), product.expected(row), "{}, row {row}", product.gemm);
            }
        }
    }
}

#[test]
fn what_comes_of_rows_never_written_is_never_written() {
    let Some(device) = device() else { return };
    for form in [Form::Nt, Form::Nn] {
        for (sums, written) in
            [(0, Written { a: 4, d: ROWS }), (1, Written { a: 4, d: 0 }), (2, Written { a: ROWS, d: 4 })]
        {
            let product = Product::new(&device, form, ALL_SUMS[sums], written);
            product.run().unwrap();
            for row in 0..4 {
                assert_eq!(product.d.read(row).unwrap(), product.expected(row), "{}, row {row}", product.gemm);
            }
            for row in 4..ROWS {
                let error = product.d.read(row).unwrap_err();
                assert!(error.contains("gemm was to write it (d, from rows never written + 0)"), "{error}");
            }
        }
    }
}

#[test]
fn what_all_of_a_product_depends_on_must_be_written() {
    let Some(device) = device() else { return };
    let refused = |product: Product<'_>, why: &str| {
        let error = product.run().unwrap_err();
        assert!(error.contains(why) && error.contains("never written"), "{error}");
    };
    refused(Product::new(&device, Form::Tn, ALL_SUMS[3], Written { a: DEPTH - 1, d: ROWS }), "a, row 6");
    refused(Product::new(&device, Form::Tn, ALL_SUMS[3], Written { a: DEPTH, d: ROWS - 1 }), "d, row 5");
    let mut product = Product::new(&device, Form::Nt, ALL_SUMS[0], Written { a: ROWS, d: 0 });
    let b = Matrix::new(&device, [COLS, DEPTH], COLS - 1, 2);
    product.gemm.b = b.at();
    refused(product, "b, row 9");
    let mut product = Product::new(&device, Form::Nt, ALL_SUMS[1], Written { a: ROWS, d: 0 });
    let bias = Matrix::new(&device, [1, COLS], 0, 2);
    product.gemm.sums = Sums::WriteWithBias(bias.row_region(0));
    refused(product, "the bias");
}

#[test]
fn products_are_recorded_and_made_again() {
    let Some(device) = device() else { return };
    let product = Product::new(&device, Form::Nn, ALL_SUMS[0], Written { a: ROWS, d: 0 });
    let way = device.gemm_ways(&product.gemm).unwrap()[1];
    let recording = device.record(&mut || device.gemm(&product.gemm, &way)).unwrap();
    product.d.read(0).unwrap_err();
    device.replay(&recording).unwrap();
    assert_eq!(product.d.read(ROWS - 1).unwrap(), product.expected(ROWS - 1));
    let asking = device.record(&mut || device.gemm_ways(&product.gemm).map(|_| ()));
    assert!(asking.is_err(), "the real library is asked before a step is recorded");
}

#[test]
fn a_way_is_good_for_its_product_where_there_is_a_library() {
    let Some(mut device) = device() else { return };
    let product = Product::new(&device, Form::Nn, ALL_SUMS[0], Written { a: ROWS, d: 0 });
    let (gemm, added) = (product.gemm, Gemm { sums: Sums::Add, ..product.gemm });
    let ways = device.gemm_ways(&gemm).unwrap();
    let refused = |device: &SimDevice, gemm: &Gemm, way: &GemmWay| {
        let error = device.gemm(gemm, way).unwrap_err().to_string();
        assert!(error.contains("in a way that was not offered for it"), "{error}");
    };
    refused(&device, &added, &ways[0]);
    let past = Gemm { d: Rectangle { region: gemm.d.region.part(0, 8), ..gemm.d }, ..gemm };
    let error = device.gemm_ways(&past).unwrap_err().to_string();
    assert!(error.contains("d is [6, 10], 13 from row to row, in a region of 8 bytes"), "{error}");
    drop(product);
    assert!(device.features().library.is_some());
    device.library = None;
    assert_eq!(device.gemm_ways(&gemm).unwrap(), []);
    refused(&device, &gemm, &ways[0]);
}

#[test]
fn rows_that_are_not_live_are_cleared() {
    let Some(device) = SimDevice::new(1) else { return };
    let be = CudaBackend::new(device).unwrap();
    let device = be.device();
    let (capacity, count) = (70, device.alloc(4, "a count").unwrap());
    let live = device.region(&count);
    // [capacity, 768] takes all blocks more than one round.
    for (cols, first, all) in
        [(8, 0, 0u32), (72, 0, 3), (768, 0, 69), (768, 0, 1), (64, 30, 50), (64, 30, 12), (64, 0, 70), (64, 0, 99)]
    {
        let alive = (all.saturating_sub(first) as usize).min(capacity);
        let buffer = device.alloc(capacity * cols * 2, "a matrix").unwrap();
        let matrix = device.region(&buffer);
        device.upload(&all.to_le_bytes(), live).unwrap();
        let kept: Vec<u8> = (0..alive * cols * 2).map(|i| i as u8 | 1).collect();
        device.upload(&kept, matrix.part(0, kept.len())).unwrap();
        zero_dead_rows(&be, matrix, cols, LiveRows { live, first, capacity: capacity as u32 }).unwrap();
        let mut after = vec![1; matrix.bytes()];
        device.download(matrix, &mut after).unwrap();
        assert!(after[..kept.len()] == kept, "{alive} live rows of {cols} columns");
        assert!(after[kept.len()..].iter().all(|&byte| byte == 0), "{alive} live rows of {cols} columns");
    }
    let error = zero_dead_rows(&be, live, 12, LiveRows { live, first: 0, capacity: 0 }).unwrap_err().to_string();
    assert_eq!(error, "zero_dead_rows: matrix is [0, 12], expected columns in multiples of 8");
}
