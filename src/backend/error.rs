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
    /// An op was called before something it goes by was set.
    #[error("{op}: {what} were not set")]
    Unset {
        /// The op.
        op: &'static str,
        /// What is missing.
        what: &'static str,
    },
    /// Memory ran out.
    #[error("out of memory for {what}: needs {needed} bytes; lower --batch-tokens")]
    OutOfMemory {
        /// What it was for.
        what: &'static str,
        /// Bytes asked for.
        needed: usize,
    },
    /// A GPU does not have what a matrix or buffer needs.
    #[error("out of GPU memory for {what}: needs {needed} bytes, {free} free; lower --batch-tokens")]
    GpuMemory {
        /// What it was for.
        what: &'static str,
        /// Bytes asked for.
        needed: usize,
        /// Bytes there were.
        free: usize,
    },
    /// Something that running on a GPU takes is missing or does not work.
    #[error("{what}: {why}; {advice}")]
    Gpu {
        /// Driver, NVRTC, a device.
        what: String,
        /// What was looked for, or what it answered.
        why: String,
        /// What to do.
        advice: String,
    },
    /// A kernel does not compile, or does not load.
    #[error("{module} for {arch}: {why}")]
    Module {
        /// The family and its sizes.
        module: String,
        /// The architecture.
        arch: String,
        /// The compiler's log, with file and line of the kernel; or the driver's answer.
        why: String,
    },
    /// A kernel does not start, or stopped.
    #[error("{kernel} <<<{grid:?}, {threads}>>> on {args}: {why}")]
    Launch {
        /// Which.
        kernel: &'static str,
        /// Blocks along x, y and z.
        grid: [u32; 3],
        /// Threads of a block.
        threads: u32,
        /// Bytes of each pointer and values of the rest.
        args: String,
        /// The driver's, or the simulator's, answer.
        why: String,
    },
}
