//! Some of the values of an output, and what is asked of the others.

use xxhash_rust::xxh3::xxh3_64;

use crate::check::Fault;
use crate::check::harness::Outputs;
use crate::check::reference::Scalar;

/// Rows or columns of a sample.
const MOST: usize = 64;

/// Some of `0..len`, the first and the last among them.
pub fn spread(len: usize) -> Vec<usize> {
    if len <= MOST { (0..len).collect() } else { (0..MOST).map(|i| i * (len - 1) / (MOST - 1)).collect() }
}

/// The values of a matrix of `cols` columns in some rows and columns.
#[derive(Debug)]
pub struct Block {
    /// Columns of the matrix.
    pub cols: usize,
    /// Which rows; `None` for all.
    pub rows: Option<Vec<usize>>,
    /// Which columns; `None` for all.
    pub columns: Option<Vec<usize>>,
}

impl Block {
    /// All columns of some rows.
    pub fn rows(cols: usize, rows: &[usize]) -> Block {
        Block { cols, rows: Some(rows.to_vec()), columns: None }
    }

    /// Some columns of all rows.
    pub fn columns(cols: usize, columns: &[usize]) -> Block {
        Block { cols, rows: None, columns: Some(columns.to_vec()) }
    }

    /// Some columns of some rows.
    pub fn crossing(cols: usize, rows: &[usize], columns: &[usize]) -> Block {
        Block { cols, rows: Some(rows.to_vec()), columns: Some(columns.to_vec()) }
    }

    /// Whether a matrix of so many values has these rows and columns.
    fn fits(&self, len: usize) -> bool {
        let last = |picked: &Option<Vec<usize>>| picked.iter().flatten().max().map_or(0, |last| last + 1);
        len.is_multiple_of(self.cols) && last(&self.rows) <= len / self.cols && last(&self.columns) <= self.cols
    }

    /// The sample of a matrix, row-major.
    pub fn of<T: Copy>(&self, matrix: &[T]) -> Vec<T> {
        let row = |row: usize| {
            let row = &matrix[row * self.cols..][..self.cols];
            self.columns.as_ref().map_or(row.to_vec(), |columns| columns.iter().map(|&c| row[c]).collect())
        };
        match &self.rows {
            Some(rows) => rows.iter().flat_map(|&r| row(r)).collect(),
            None => (0..matrix.len() / self.cols).flat_map(row).collect(),
        }
    }
}

/// [`Block::of`], in another precision.
pub fn cast_block<T: Scalar>(block: &Block, matrix: &[f32]) -> Vec<T> {
    crate::check::reference::cast(&block.of(matrix))
}

/// Keeps of each output what `block` says, `None` for all of it. What is left out must be numbers, and goes into a digest.
/// An output that is too short for its block stays as it is, for the comparison to say so.
pub fn thinned(mut outputs: Outputs, block: impl Fn(&str) -> Option<Block>) -> Outputs {
    for (name, values) in &mut outputs.values {
        let Some(block) = block(name).filter(|block| block.fits(values.len())) else { continue };
        outputs.digests.push((name, xxh3_64(bytemuck::cast_slice(values))));
        let wrong = values.iter().position(|x| !x.is_finite());
        if let Some(i) = wrong {
            let what = format!("{name}[{}, {}] is {}", i / block.cols, i % block.cols, values[i]);
            outputs.faults.push(Fault::Broken { what });
        }
        *values = block.of(values);
    }
    outputs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_sample_has_is_looked_at_too() {
        let thin = |values: Vec<f64>| {
            let outputs = Outputs::from(vec![("y", values)]);
            thinned(outputs, |_| Some(Block::crossing(3, &[0, 2], &[1])))
        };
        let values: Vec<f64> = (0..9).map(f64::from).collect();
        let (right, mut other, mut unwritten) = (thin(values.clone()), values.clone(), values.clone());
        assert_eq!(right.values, [("y", vec![1.0, 7.0])]);
        assert!(right.faults.is_empty());
        other[4] = 4.5;
        assert_ne!(thin(other).digests, right.digests);
        unwritten[5] = f64::NAN;
        let faults = thin(unwritten).faults;
        assert!(matches!(&faults[..], [Fault::Broken { what }] if what == "y[1, 2] is NaN"), "{faults:?}");
        assert_eq!(thin(values[..6].to_vec()).values, [("y", values[..6].to_vec())]);
    }

    #[test]
    fn samples_have_both_ends() {
        assert_eq!(spread(3), [0, 1, 2]);
        let many = spread(1000);
        assert_eq!((many.len(), many[0], many[MOST - 1]), (MOST, 0, 999));
        assert!(many.windows(2).all(|two| two[0] < two[1]));
    }
}
