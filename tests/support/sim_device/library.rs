//! Products of the vendor's library on the simulated GPU: in f32, in ascending order of the depth.
//!
//! The library computes all rows, live or not, and rows that are not live may never have been written. A row of D that comes
//! of such a row of A (or of D, where sums are added) is good for nothing: it counts as never written itself, so that
//! whoever reads it is found. B, a bias, and everything in a product over the rows (Form::Tn), must have been written.

use half::bf16;
use handbert::backend::cuda::device::{Form, Gemm, GemmWay, Operand, Region, Sums};

use crate::simulator::Simulator;

/// Two, each good for products of this form, size and sums alone.
pub fn ways(gemm: &Gemm) -> Vec<GemmWay> {
    if gemm.is_empty() {
        return Vec::new();
    }
    let sums = match gemm.sums {
        Sums::Write => 0,
        Sums::WriteWithBias(_) => 1,
        Sums::Add => 2,
        Sums::AddToF32 => 3,
    };
    let [rows, cols, depth] = [gemm.rows, gemm.cols, gemm.depth].map(|size| size as u64);
    let [a, b, d] = [gemm.a, gemm.b, gemm.d].map(|at| at.lead as u64);
    (1..=2).map(|way| GemmWay([way << 8 | (gemm.form as u64) << 4 | sums, rows, cols, depth, a, b, d, 0])).collect()
}

/// A row as f32, or which byte of it was never written.
type Row = Result<Vec<f32>, String>;

fn read(simulator: &Simulator, region: Region, element: usize) -> Row {
    let mut bytes = vec![0; region.bytes()];
    simulator.read(region.address(), &mut bytes)?;
    Ok(match element {
        2 => bytes.chunks_exact(2).map(|two| bf16::from_le_bytes([two[0], two[1]]).to_f32()).collect(),
        _ => bytes.chunks_exact(4).map(|four| f32::from_le_bytes([four[0], four[1], four[2], four[3]])).collect(),
    })
}

fn rows(simulator: &Simulator, operand: &Operand) -> Vec<Row> {
    let row = |row| {
        let why = |why| format!("{}, row {row}: {why}", operand.name);
        read(simulator, operand.row(row), operand.element).map_err(why)
    };
    (0..operand.size[0]).map(row).collect()
}

fn transposed(rows: &[Vec<f32>], cols: usize) -> Vec<Vec<f32>> {
    (0..cols).map(|col| rows.iter().map(|row| row[col]).collect()).collect()
}

/// Computes a product from and to the simulated GPU's memory. It lies within that, as [`Gemm::check`] finds.
pub fn compute(simulator: &Simulator, gemm: &Gemm) -> Result<(), String> {
    let [a, b, d] = gemm.operands();
    let all = |operand: &Operand| rows(simulator, operand).into_iter().collect::<Result<Vec<_>, _>>();
    let of_a: Vec<Row> = match gemm.form {
        Form::Nt | Form::Nn => rows(simulator, &a),
        Form::Tn => transposed(&all(&a)?, gemm.rows).into_iter().map(Ok).collect(),
    };
    let of_b = match gemm.form {
        Form::Nt => transposed(&all(&b)?, gemm.depth),
        Form::Nn | Form::Tn => all(&b)?,
    };
    let bias = match gemm.sums {
        Sums::WriteWithBias(bias) => read(simulator, bias, 2).map_err(|why| format!("the bias: {why}"))?,
        _ => vec![0.0; gemm.cols],
    };
    let before: Vec<Row> = match gemm.sums {
        Sums::Write | Sums::WriteWithBias(_) => vec![Ok(bias); gemm.rows],
        Sums::Add | Sums::AddToF32 if gemm.form == Form::Tn => all(&d)?.into_iter().map(Ok).collect(),
        Sums::Add | Sums::AddToF32 => rows(simulator, &d),
    };
    for (row, (of_a, before)) in of_a.into_iter().zip(before).enumerate() {
        let to = d.row(row);
        let (Ok(of_a), Ok(before)) = (of_a, before) else {
            simulator.promise(to.address(), to.bytes(), "gemm", "d, from rows never written")?;
            continue;
        };
        let mut sums = vec![0.0f32; gemm.cols];
        for (&factor, of_b) in of_a.iter().zip(&of_b) {
            sums.iter_mut().zip(of_b).for_each(|(sum, &value)| *sum += factor * value);
        }
        let values = sums.iter().zip(&before).map(|(sum, before)| sum + before);
        let bytes: Vec<u8> = match d.element {
            2 => values.flat_map(|value| bf16::from_f32(value).to_le_bytes()).collect(),
            _ => values.flat_map(f32::to_le_bytes).collect(),
        };
        simulator.write(to.address(), &bytes)?;
    }
    Ok(())
}
