//! What can go wrong in an op.

/// Result of the backend room.
pub type Result<T> = std::result::Result<T, Error>;

/// What can go wrong in an op: what, with which shapes, what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A matrix does not have the shape the op needs.
    #[error("{op}: {what} is {got}, expected {expected}")]
    Shape {
        /// The op.
        op: &'static str,
        /// Which of its arguments.
        what: &'static str,
        /// The shape it has, as `[4096, 768]`.
        got: String,
        /// The shape it should have, with names, as `[N=4096, 3C=2304]`.
        expected: String,
    },
    /// A batch breaks a rule of its own making.
    #[error("batch: {0}")]
    Batch(String),
    /// A batch holds more than the arena was planned for.
    #[error("batch: {got} {what}, planned for {capacity}; raise --batch-tokens")]
    Capacity {
        /// tokens, sequences or masked positions.
        what: &'static str,
        /// How many there are.
        got: usize,
        /// How many there is room for.
        capacity: usize,
    },
    /// Memory ran out.
    #[error("out of memory for {what}: needs {needed} bytes; lower --batch-tokens")]
    OutOfMemory {
        /// What it was for.
        what: &'static str,
        /// Bytes asked for.
        needed: usize,
    },
}
