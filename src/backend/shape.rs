//! Shapes as ops check them and as their errors name them.

use super::{Error, Result, Span};

/// A dimension and its letter.
#[derive(Debug, Clone, Copy)]
pub struct Dim {
    /// As in the table of letters, model/shapes.rs.
    pub name: &'static str,
    /// How many.
    pub size: usize,
}

/// A dimension and its letter.
pub fn dim(name: &'static str, size: usize) -> Dim {
    Dim { name, size }
}

/// A matrix is not as wanted, each dimension under its name.
pub fn misfit(op: &'static str, what: &'static str, got: [usize; 2], expected: [Dim; 2]) -> Error {
    let [rows, cols] = expected;
    Error::Shape {
        op,
        what,
        got: format!("[{}, {}]", got[0], got[1]),
        expected: format!("[{}={}, {}={}]", rows.name, rows.size, cols.name, cols.size),
    }
}

/// A span must hold `len` elements and lie within a buffer of `total`.
///
/// # Errors
///
/// [`Error::Shape`]
pub fn check_span(op: &'static str, what: &'static str, span: Span, len: Dim, total: usize) -> Result<()> {
    let fits = span.offset.checked_add(span.len).is_some_and(|end| end <= total);
    if fits && span.len == len.size {
        return Ok(());
    }
    Err(Error::Shape {
        op,
        what,
        got: format!("[{}] at {} of {total}", span.len, span.offset),
        expected: format!("[{}={}]", len.name, len.size),
    })
}

/// Two flat buffers must be equally long.
///
/// # Errors
///
/// [`Error::Shape`]
pub fn check_same_len(op: &'static str, what: &'static str, got: usize, expected: usize) -> Result<()> {
    if got == expected {
        return Ok(());
    }
    Err(Error::Shape { op, what, got: format!("[{got}]"), expected: format!("[{expected}]") })
}
