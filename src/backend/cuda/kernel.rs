//! The kernels there are: families of source files, what each kernel computes, what it may use.

use std::fmt;

use super::compile::Arch;

/// A `__global__` function of a family's source.
#[derive(Debug)]
pub struct Kernel {
    /// Its name in the source.
    pub name: &'static str,
    /// One line of maths.
    pub computes: &'static str,
    /// Threads of a block: the most that its `__launch_bounds__` say, where they depend on sizes.
    pub threads: u32,
    /// Dynamic shared memory of a block in bytes: the most that a launch asks for.
    pub shared_bytes: u32,
    /// What it may use, on every architecture.
    pub limits: Limits,
}

/// What a kernel may use. A test holds the compiler's report against it.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Registers a thread.
    pub registers: u32,
    /// Bytes spilled to local memory, stores and loads together.
    pub spilled_bytes: u32,
}

impl Limits {
    /// So many registers, and nothing spilled.
    pub const fn registers(registers: u32) -> Limits {
        Limits { registers, spilled_bytes: 0 }
    }
}

/// A source file and its kernels.
#[derive(Debug)]
pub struct Family {
    /// Name of the file, without `.cu`.
    pub name: &'static str,
    /// Its text.
    pub source: &'static str,
    /// The one architecture it exists on; `None`: all of them.
    pub only: Option<Arch>,
    /// Sizes that it wants as constants, and values of each that are worth compiling ahead of time.
    pub constants: &'static [(&'static str, &'static [u32])],
    /// In the order of the file.
    pub kernels: &'static [Kernel],
}

impl Family {
    /// Whether there are such kernels for an architecture.
    pub fn exists_on(&self, arch: Arch) -> bool {
        self.only.is_none_or(|only| only == arch)
    }

    /// The kernel of this name.
    ///
    /// # Panics
    ///
    /// If there is none: names are written in the launcher beside the table.
    pub fn kernel(&self, name: &str) -> &'static Kernel {
        let found = self.kernels.iter().find(|kernel| kernel.name == name);
        found.unwrap_or_else(|| panic!("no kernel {name} in {}", self.name))
    }
}

/// A family compiled for certain sizes.
#[derive(Clone, Copy)]
pub struct ModuleSpec {
    /// Which.
    pub family: &'static Family,
    /// One for each of the family's constants, in their order.
    pub sizes: [u32; ModuleSpec::MOST_SIZES],
}

impl ModuleSpec {
    /// The most constants that a family has.
    pub const MOST_SIZES: usize = 2;

    /// `sizes` in the order of the family's constants.
    pub fn new(family: &'static Family, sizes: &[u32]) -> ModuleSpec {
        assert_eq!(sizes.len(), family.constants.len(), "sizes of {}", family.name);
        let mut all = [0; ModuleSpec::MOST_SIZES];
        all[..sizes.len()].copy_from_slice(sizes);
        ModuleSpec { family, sizes: all }
    }

    /// Each constant and its value.
    pub fn defines(&self) -> impl Iterator<Item = (&'static str, u32)> + '_ {
        self.family.constants.iter().zip(self.sizes).map(|(&(name, _), size)| (name, size))
    }
}

impl fmt::Display for ModuleSpec {
    /// As in `layernorm WIDTH=768`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.family.name)?;
        self.defines().try_for_each(|(name, size)| write!(f, " {name}={size}"))
    }
}

impl fmt::Debug for ModuleSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Headers that every family may include, by the name it includes them under.
pub const HEADERS: [(&str, &str); 9] = [
    ("ptx.cuh", include_str!("../../../kernels/ptx.cuh")),
    ("ptx_hopper.cuh", include_str!("../../../kernels/ptx_hopper.cuh")),
    ("common.cuh", include_str!("../../../kernels/common.cuh")),
    ("gelu.cuh", include_str!("../../../kernels/gelu.cuh")),
    ("layernorm.cuh", include_str!("../../../kernels/layernorm.cuh")),
    ("attention.cuh", include_str!("../../../kernels/attention.cuh")),
    ("products.cuh", include_str!("../../../kernels/products.cuh")),
    ("matmul.cuh", include_str!("../../../kernels/matmul.cuh")),
    ("matmul_hopper.cuh", include_str!("../../../kernels/matmul_hopper.cuh")),
];

/// The families that there are for an architecture.
pub fn families(arch: Arch) -> impl Iterator<Item = &'static Family> {
    FAMILIES.into_iter().filter(move |family| family.exists_on(arch))
}

/// Every family there is, in the order of kernels/README.md.
pub static FAMILIES: [&Family; 11] = [
    &super::ops::embedding::FAMILY,
    &super::ops::layernorm::FAMILY,
    &super::ops::gelu::FAMILY,
    &super::ops::attention::FAMILY,
    &super::ops::attention::BACKWARD,
    &super::ops::matmul::FAMILY,
    &super::ops::matmul_hopper::FAMILY,
    &super::ops::cross_entropy::FAMILY,
    &super::ops::classifier::FAMILY,
    &super::ops::rows::FAMILY,
    &super::ops::adamw::FAMILY,
];
