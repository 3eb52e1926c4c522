//! The calls into cuBLASLt, against a stand-in for the library that needs no GPU: stand_in.cpp, built with the C++ compiler
//! at hand.
//!
//! It is loaded before anything asks for cuBLASLt, under the name that is looked for first, so the loader takes it. Memory is
//! the host's. What the stand-in does and refuses is written from NVIDIA's manual, not from the bindings.

#[path = "../support/simulator.rs"]
mod simulator;
#[path = "../support/skip.rs"]
mod skip;
mod stand_in;

use half::bf16;
use handbert::backend::cuda::cublaslt::CublasLt;
use handbert::backend::cuda::device::{Form, Gemm, GemmWay, Rectangle, Region, Sums};
use handbert::philox::philox4x32;

use stand_in::StandIn;

const FORMS: [Form; 3] = [Form::Nt, Form::Nn, Form::Tn];
const WORKSPACE: usize = 4096;

/// Memory that lies as a GPU's does: 256-byte aligned.
struct Memory(Vec<Line>);

#[derive(Clone, Copy)]
#[repr(align(256))]
struct Line([u8; 256]);

impl Memory {
    /// Matrices begin here: no better aligned than the library is told.
    const START: usize = Gemm::ALIGNMENT;

    fn new(bytes: &[u8]) -> Memory {
        let padded = [&[0; Self::START], bytes].concat();
        let line = |chunk: &[u8]| Line(std::array::from_fn(|i| chunk.get(i).copied().unwrap_or(0)));
        Memory(padded.chunks(256).map(line).collect())
    }

    fn whole(&self) -> Region {
        Region::new(self.0.as_ptr() as u64, self.0.len() * 256)
    }

    fn region(&self, bytes: usize) -> Region {
        self.whole().part(Self::START, bytes)
    }

    fn bytes(&self, count: usize) -> Vec<u8> {
        self.0.iter().flat_map(|line| line.0).skip(Self::START).take(count).collect()
    }
}

/// A product and the memory that it works on. All values are small whole numbers: their sums are exact in f32, in any order.
struct Product {
    gemm: Gemm,
    a: Matrix,
    b: Matrix,
    d: Matrix,
    bias: Vec<f32>,
    _bias: Memory,
}

/// Row-major, with a gap behind each row.
struct Matrix {
    values: Vec<f32>,
    memory: Memory,
    at: Rectangle,
    bytes: usize,
}

/// Whole numbers of -16 to 16, another row of them for each `stream`.
fn numbers(len: usize, stream: u32) -> Vec<f32> {
    let number = |i| (philox4x32([i, stream, 0, 0], [0, 0])[0] % 33) as f32 - 16.0;
    (0..len as u32).map(number).collect()
}

fn stored(value: f32, bytes: usize) -> Vec<u8> {
    if bytes == 2 { bf16::from_f32(value).to_le_bytes().to_vec() } else { value.to_le_bytes().to_vec() }
}

impl Matrix {
    fn new(size: [usize; 2], gap: usize, bytes: usize, stream: u32) -> Matrix {
        let lead = size[1] + gap;
        let values = numbers(size[0] * lead, stream);
        let memory = Memory::new(&values.iter().flat_map(|&value| stored(value, bytes)).collect::<Vec<_>>());
        let at = Rectangle { region: memory.region(values.len() * bytes), lead };
        Matrix { values, memory, at, bytes }
    }

    fn at(&self, row: usize, col: usize) -> f32 {
        self.values[row * self.at.lead + col]
    }
}

impl Product {
    fn new(form: Form, [rows, cols, depth]: [usize; 3], gap: usize, sums: fn(Region) -> Sums) -> Product {
        let bias = numbers(cols, 0);
        let memory = Memory::new(&bias.iter().flat_map(|&value| stored(value, 2)).collect::<Vec<_>>());
        let sums = sums(memory.region(cols * 2));
        let (in_a, in_b) = match form {
            Form::Nt => ([rows, depth], [cols, depth]),
            Form::Nn => ([rows, depth], [depth, cols]),
            Form::Tn => ([depth, rows], [depth, cols]),
        };
        let a = Matrix::new(in_a, gap, 2, 1);
        let b = Matrix::new(in_b, 2 * gap, 2, 2);
        let d = Matrix::new([rows, cols], 3 * gap, if sums == Sums::AddToF32 { 4 } else { 2 }, 3);
        let gemm = Gemm { form, rows, cols, depth, a: a.at, b: b.at, d: d.at, sums };
        Product { gemm, a, b, d, bias, _bias: memory }
    }

    /// The bytes of D as they should be afterwards, gaps included.
    fn expected(&self) -> Vec<u8> {
        let Gemm { form, rows, cols, depth, sums, .. } = self.gemm;
        let mut values = self.d.values.clone();
        for (row, col) in (0..rows).flat_map(|row| (0..cols).map(move |col| (row, col))) {
            let term = |k| match form {
                Form::Nt => self.a.at(row, k) * self.b.at(col, k),
                Form::Nn => self.a.at(row, k) * self.b.at(k, col),
                Form::Tn => self.a.at(k, row) * self.b.at(k, col),
            };
            // Not `sum`, which begins with -0.
            let sum = (0..depth).map(term).fold(0.0, |sum, term| sum + term);
            let to = &mut values[row * self.d.at.lead + col];
            *to = match sums {
                Sums::Write => sum,
                Sums::WriteWithBias(_) => sum + self.bias[col],
                Sums::Add | Sums::AddToF32 => sum + *to,
            };
        }
        values.iter().flat_map(|&value| stored(value, self.d.bytes)).collect()
    }

    fn bytes_of_d(&self) -> Vec<u8> {
        self.d.memory.bytes(self.d.values.len() * self.d.bytes)
    }
}

/// No stream, but the stand-in does not use it.
const STREAM: usize = 0x57_0000;

fn run(library: &CublasLt, gemm: &Gemm, way: &GemmWay, workspace_bytes: usize) -> handbert::backend::Result<()> {
    let workspace = Memory::new(&vec![0; WORKSPACE]);
    // SAFETY: the stand-in does nothing with a stream but tell it. The workspace is aligned, nothing else uses it; where it is
    // shorter than the ways were told, the stand-in refuses before it writes.
    unsafe { library.run(gemm, way, workspace.whole().part(0, workspace_bytes), STREAM as *mut _) }
}

#[test]
fn products_of_every_form_and_sum_are_right() {
    let Some(stand_in) = StandIn::take() else { return };
    let library = CublasLt::find().expect("the stand-in");
    assert_eq!(library.name(), "cuBLASLt 13.1.0");
    let all_sums: [fn(Region) -> Sums; 4] = [|_| Sums::Write, Sums::WriteWithBias, |_| Sums::Add, |_| Sums::AddToF32];
    let sizes = [([1, 1, 1], 0), ([3, 5, 7], 0), ([17, 8, 300], 8), ([64, 33, 129], 5), ([40, 72, 16], 0)];
    for (form, (size, gap)) in FORMS.into_iter().flat_map(|form| sizes.map(|size| (form, size))) {
        for (sums, way) in all_sums.into_iter().flat_map(|sums| [(sums, 0), (sums, 1)]) {
            let product = Product::new(form, size, gap, sums);
            let failed = |error| format!("{error} ({})", stand_in.refusal());
            let ways = library.ways(&product.gemm, WORKSPACE).map_err(failed).unwrap();
            assert_eq!(ways.len(), 2, "one of three is none");
            run(&library, &product.gemm, &ways[way], WORKSPACE).map_err(failed).unwrap();
            assert!(product.bytes_of_d() == product.expected(), "{}, gap {gap}, way {way}", product.gemm);
            assert_eq!(stand_in.stream(), STREAM);
        }
    }
    drop(library);
    assert_eq!(stand_in.alive(), 0, "everything was given back");
}

#[test]
fn a_way_is_good_for_a_bias_that_lies_elsewhere() {
    let Some(stand_in) = StandIn::take() else { return };
    let library = CublasLt::find().expect("the stand-in");
    let product = Product::new(Form::Nt, [8, 16, 32], 0, Sums::WriteWithBias);
    let elsewhere = Memory::new(&[0; 256]);
    let well_aligned = Gemm { sums: Sums::WriteWithBias(elsewhere.whole().part(0, 32)), ..product.gemm };
    let way = library.ways(&well_aligned, WORKSPACE).unwrap()[0];
    run(&library, &product.gemm, &way, WORKSPACE).map_err(|error| format!("{error} ({})", stand_in.refusal())).unwrap();
    assert!(product.bytes_of_d() == product.expected());
}

#[test]
fn what_the_library_refuses_is_an_error_that_says_what_to_do() {
    let Some(stand_in) = StandIn::take() else { return };
    let library = CublasLt::find().expect("the stand-in");
    let product = Product::new(Form::Nt, [8, 16, 32], 0, |_| Sums::Add);
    let other = Product::new(Form::Nn, [8, 16, 32], 0, |_| Sums::Add);
    let way = library.ways(&product.gemm, WORKSPACE).unwrap()[0];
    let refused = |gemm: &Gemm, way: &GemmWay, workspace_bytes: usize, why: &str| {
        let error = run(&library, gemm, way, workspace_bytes).unwrap_err().to_string();
        let told = ["cuBLASLt 13.1.0", "[8, 16], depth 32", "CUBLAS_STATUS_INVALID_VALUE", "--matmul own"];
        assert!(told.iter().all(|part| error.contains(part)), "{error}");
        assert_eq!(stand_in.refusal(), why);
    };
    refused(&other.gemm, &way, WORKSPACE, "a way for another product");
    refused(&product.gemm, &GemmWay([7; 8]), WORKSPACE, "a way that was not offered");
    refused(&product.gemm, &way, WORKSPACE / 2, "too small a workspace");
    stand_in.is(13_02_00);
    refused(&product.gemm, &way, WORKSPACE, "a way of another version");
    assert!(
        product.bytes_of_d() == Product::new(Form::Nt, [8, 16, 32], 0, |_| Sums::Add).bytes_of_d(),
        "nothing was written"
    );
    drop(library);
    assert_eq!(stand_in.alive(), 0, "everything was given back");
}

#[test]
fn a_product_that_does_not_lie_within_its_memory_does_not_reach_the_library() {
    let Some(_stand_in) = StandIn::take() else { return };
    let library = CublasLt::find().expect("the stand-in");
    let product = Product::new(Form::Nt, [8, 16, 32], 0, Sums::WriteWithBias);
    let way = library.ways(&product.gemm, WORKSPACE).unwrap()[0];
    let (gemm, Rectangle { region, lead }) = (product.gemm, product.gemm.b);
    let refused = |gemm: Gemm, why: &str| {
        let error = run(&library, &gemm, &way, WORKSPACE).unwrap_err().to_string();
        assert!(error.contains(why) && !error.contains("CUBLAS_STATUS"), "{error}");
    };
    let shorter = Rectangle { region: region.part(0, region.bytes() - 2), lead };
    refused(Gemm { b: shorter, ..gemm }, "b is [16, 32], 32 from row to row, in a region of 1022 bytes");
    refused(Gemm { b: Rectangle { region, lead: 31 }, ..gemm }, "b is [16, 32], 31 from row to row");
    let late = Rectangle { region: region.part(8, region.bytes() - 8), lead };
    refused(Gemm { b: late, rows: 8, cols: 15, sums: Sums::Write, ..gemm }, "b begins at ");
    refused(
        Gemm { sums: Sums::WriteWithBias(region.part(0, 30)), ..gemm },
        "the bias is [1, 16], 16 from row to row, in a region of 30 bytes",
    );
    refused(Gemm { d: gemm.a, ..gemm }, "d overlaps a");
}

#[test]
fn there_may_be_no_way() {
    let Some(stand_in) = StandIn::take() else { return };
    let library = CublasLt::find().expect("the stand-in");
    let product = Product::new(Form::Tn, [8, 16, 32], 0, |_| Sums::AddToF32);
    let empty = Gemm { rows: 0, ..product.gemm };
    assert_eq!(library.ways(&empty, WORKSPACE).unwrap(), []);
    run(&library, &empty, &GemmWay([0; 8]), WORKSPACE).unwrap();
    stand_in.offers(0);
    assert_eq!(library.ways(&product.gemm, WORKSPACE).unwrap(), []);
    assert_eq!(stand_in.refusal(), "there is no way");
}

#[test]
fn a_library_that_is_too_old_is_left_alone() {
    let Some(stand_in) = StandIn::take() else { return };
    stand_in.is(11_11_03);
    assert!(CublasLt::find().is_none());
    stand_in.is(12_00_00);
    assert_eq!(CublasLt::find().expect("the stand-in").name(), "cuBLASLt 12.0.0");
}
