//! A launch put together argument by argument.

use std::ffi::c_void;

use bytemuck::{NoUninit, Pod, Zeroable};
use half::bf16;

pub use crate::simulator::tensor_map::{Swizzle, Tensor};
use crate::simulator::{Access, Launch, Module, Region, Simulator};

/// One argument's bytes; as large and as aligned as a TensorMap.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Arg([u64; 16]);

pub struct Case {
    simulator: Simulator,
    args: Vec<Arg>,
    regions: Vec<Region>,
}

impl Case {
    /// `None` where there is no C++ compiler.
    pub fn new(seed: u64) -> Option<Case> {
        Some(Case { simulator: Simulator::new(seed)?, args: Vec::new(), regions: Vec::new() })
    }

    fn memory(&mut self, bytes: usize, access: Access, name: &str) -> u64 {
        let address = self.simulator.alloc(bytes);
        assert_ne!(address, 0, "{bytes} bytes");
        self.regions.push(Region { address, bytes: bytes as u64, access, name: name.to_owned() });
        address
    }

    /// Memory that holds `values` and is only read.
    pub fn input<T: NoUninit>(&mut self, name: &str, values: &[T]) -> u64 {
        let bytes = bytemuck::cast_slice(values);
        let address = self.memory(bytes.len(), Access::Read, name);
        self.simulator.write(address, bytes).unwrap();
        address
    }

    /// Memory that holds `values` and is read and written.
    pub fn update<T: NoUninit>(&mut self, name: &str, values: &[T]) -> u64 {
        let bytes = bytemuck::cast_slice(values);
        let address = self.memory(bytes.len(), Access::Update, name);
        self.simulator.write(address, bytes).unwrap();
        address
    }

    /// Memory for `count` values that nobody has written.
    pub fn output<T>(&mut self, name: &str, count: usize) -> u64 {
        self.memory(count * size_of::<T>(), Access::Write, name)
    }

    /// A scalar, a pointer, or a struct of 64-bit words.
    pub fn arg(&mut self, words: &[u64]) {
        let mut arg = Arg([0; 16]);
        arg.0[..words.len()].copy_from_slice(words);
        self.args.push(arg);
    }

    /// A TensorMap.
    pub fn map(&mut self, tensor: &Tensor) {
        self.try_map(tensor, 2 * tensor.columns).unwrap();
    }

    /// The same with `row_bytes` from row to row, or why not.
    pub fn try_map(&mut self, tensor: &Tensor, row_bytes: usize) -> Result<(), String> {
        self.args.push(Arg(self.simulator.encode_tensor_map(tensor, row_bytes)?));
        Ok(())
    }

    /// A file of kernels; its path is relative to the repository.
    pub fn load(&self, file: &str, defines: &[(&str, u32)]) -> Module {
        self.simulator.load(file, defines).unwrap_or_else(|why| panic!("{why}"))
    }

    pub fn run(
        &self, module: &Module, kernel: &str, blocks: u32, threads: u32, shared_bytes: usize,
    ) -> Result<(), String> {
        let args: Vec<*const c_void> = self.args.iter().map(|arg| arg.0.as_ptr().cast()).collect();
        let shared_bytes = shared_bytes as u32;
        let (grid, block) = ([blocks, 1, 1], [threads, 1, 1]);
        self.simulator
            .launch(module, &Launch { kernel, grid, block, shared_bytes, args: &args, regions: &self.regions })
    }

    pub fn read<T: Pod + Zeroable>(&self, address: u64, count: usize) -> Vec<T> {
        let mut values = vec![T::zeroed(); count];
        self.simulator.read(address, bytemuck::cast_slice_mut(&mut values)).unwrap_or_else(|why| panic!("{why}"));
        values
    }
}

impl Drop for Case {
    fn drop(&mut self) {
        for region in &self.regions {
            self.simulator.free(region.address);
        }
    }
}

/// Draws: splitmix64 of Steele, Lea and Flood.
pub struct Draws(pub u64);

impl Draws {
    pub fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// `count` bf16 between -1 and 1, as bits.
    pub fn bf16s(&mut self, count: usize) -> Vec<u16> {
        (0..count).map(|_| bf16::from_f64(self.word() as i64 as f64 / 2f64.powi(63)).to_bits()).collect()
    }
}

pub fn value(bits: u16) -> f64 {
    bf16::from_bits(bits).to_f64()
}
