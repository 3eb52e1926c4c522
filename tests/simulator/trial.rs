//! One launch of a test kernel: arguments in, outputs out.

use std::ffi::c_void;

use bytemuck::{NoUninit, Pod};

use crate::simulator::{Access, Launch, Region, Simulator};

/// Orders of threads and blocks that each trial is run in.
pub const SEEDS: [u64; 5] = [1, 2, 3, 4, 5];

/// An argument of a kernel.
#[derive(Debug, Clone)]
pub enum Arg {
    /// A pointer to these bytes, only read.
    Input(Vec<u8>),
    /// A pointer to these bytes, read and written.
    Update(Vec<u8>),
    /// A pointer to so many bytes that nobody has written.
    Output(usize),
    /// A pointer to nothing.
    Null,
    /// A number.
    U32(u32),
}

pub fn input<T: NoUninit>(values: &[T]) -> Arg {
    Arg::Input(bytemuck::cast_slice(values).to_vec())
}

pub fn update<T: NoUninit>(values: &[T]) -> Arg {
    Arg::Update(bytemuck::cast_slice(values).to_vec())
}

/// `count` values.
pub fn output<T>(count: usize) -> Arg {
    Arg::Output(count * size_of::<T>())
}

/// A launch: a kernel of tests/simulator/kernels with all it needs.
#[derive(Debug, Clone)]
pub struct Trial {
    pub file: &'static str,
    pub kernel: &'static str,
    pub blocks: u32,
    pub threads: u32,
    pub shared_bytes: u32,
    pub args: Vec<Arg>,
}

/// What a launch gave: the bytes behind each Update and Output, in their order, or the simulator's error.
pub type Outcome = Result<Vec<Vec<u8>>, String>;

impl Trial {
    /// None where there is no C++ compiler.
    pub fn run(&self, seed: u64) -> Option<Outcome> {
        let simulator = Simulator::new(seed)?;
        let file = format!("tests/simulator/kernels/{}", self.file);
        let module = simulator.load(file, &[]).unwrap_or_else(|why| panic!("{why}"));
        let memory: Vec<_> = self.args.iter().map(|arg| Memory::of(&simulator, arg)).collect();
        let words: Vec<_> = self.args.iter().zip(&memory).map(|(arg, memory)| word(arg, memory.address)).collect();
        let args: Vec<_> = words.iter().map(|word| std::ptr::from_ref(word).cast::<c_void>()).collect();
        let regions = memory.iter().enumerate().filter_map(|(i, memory)| {
            let name = module.parameter(self.kernel, i).to_owned();
            memory.access.map(|access| Region { address: memory.address, bytes: memory.bytes as u64, access, name })
        });
        let regions: Vec<_> = regions.collect();
        let launch = Launch {
            kernel: self.kernel,
            grid: [self.blocks, 1, 1],
            block: [self.threads, 1, 1],
            shared_bytes: self.shared_bytes,
            args: &args,
            regions: &regions,
        };
        let done = simulator.launch(&module, &launch).and_then(|()| {
            let written = memory.iter().filter(|memory| matches!(memory.access, Some(Access::Write | Access::Update)));
            written.map(Memory::read).collect()
        });
        Some(done)
    }

    /// All seeds stop the launch, naming the kernel, a block, a thread, and what it did.
    pub fn is_caught(&self, fault: &str) {
        for seed in SEEDS {
            let Some(outcome) = self.run(seed) else { return };
            let error = outcome.expect_err(&format!("{} is not caught", self.kernel));
            let line = error.lines().next().unwrap_or_default();
            assert!(line.starts_with(&format!("{}: block (", self.kernel)), "{line}");
            assert!(line.contains(") thread ("), "{line}");
            assert!(line.contains(fault), "{line}\ndoes not say: {fault}");
        }
    }

    /// All seeds stop the launch with exactly this line: kernel, block, thread and all.
    pub fn is_caught_with(&self, line: &str) {
        for seed in SEEDS {
            let Some(outcome) = self.run(seed) else { return };
            assert_eq!(outcome.unwrap_err().lines().next(), Some(line));
        }
    }

    /// All seeds give the same; that is returned.
    pub fn passes(&self) -> Option<Vec<Vec<u8>>> {
        let mut first = None;
        for seed in SEEDS {
            let outputs = self.run(seed)?.unwrap_or_else(|why| panic!("{why}"));
            assert_eq!(first.get_or_insert_with(|| outputs.clone()), &outputs, "seed {seed}");
        }
        first
    }
}

/// Bytes as values.
pub fn values<T: Pod>(bytes: &[u8]) -> Vec<T> {
    bytes.chunks_exact(size_of::<T>()).map(bytemuck::pod_read_unaligned).collect()
}

fn word(arg: &Arg, address: u64) -> u64 {
    match arg {
        Arg::U32(value) => u64::from(*value),
        _ => address,
    }
}

/// What an argument points to; freed when dropped.
struct Memory<'a> {
    simulator: &'a Simulator,
    address: u64,
    bytes: usize,
    access: Option<Access>,
}

impl Memory<'_> {
    fn of<'a>(simulator: &'a Simulator, arg: &Arg) -> Memory<'a> {
        let (access, bytes) = match arg {
            Arg::Input(bytes) => (Access::Read, bytes.len()),
            Arg::Update(bytes) => (Access::Update, bytes.len()),
            Arg::Output(bytes) => (Access::Write, *bytes),
            Arg::Null | Arg::U32(_) => return Memory { simulator, address: 0, bytes: 0, access: None },
        };
        let memory = Memory { simulator, address: simulator.alloc(bytes), bytes, access: Some(access) };
        if let Arg::Input(bytes) | Arg::Update(bytes) = arg {
            simulator.write(memory.address, bytes).unwrap();
        }
        memory
    }

    fn read(&self) -> Result<Vec<u8>, String> {
        let mut bytes = vec![0; self.bytes];
        self.simulator.read(self.address, &mut bytes)?;
        Ok(bytes)
    }
}

impl Drop for Memory<'_> {
    fn drop(&mut self) {
        if self.access.is_some() {
            self.simulator.free(self.address);
        }
    }
}
