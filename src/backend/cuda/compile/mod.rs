//! Kernels to machine code: found where they were compiled before, else compiled now and kept.
//!
//! Looked for in this order: the directory that HANDBERT_KERNELS names (made by `handbert kernels compile`, on any machine),
//! the cache (`$HANDBERT_CACHE`, else `$XDG_CACHE_HOME/handbert`, else `~/.cache/handbert`; a directory for each version of
//! NVRTC), then NVRTC. A cache that cannot be written, or a damaged file in it, costs time, not the run.

mod nvrtc;
mod report;
mod store;

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use xxhash_rust::xxh3::xxh3_64;

pub use nvrtc::{Compiled, Nvrtc};
pub use report::{Usage, losses, usages};
pub use store::{Found, Store};

use super::kernel::{FAMILIES, HEADERS, ModuleSpec, families};
use crate::backend::{Error, Result};

/// An architecture that kernels are compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Arch {
    /// A100
    Sm80,
    /// RTX 30
    Sm86,
    /// L40S, RTX 40
    Sm89,
    /// H100, H200, with what is Hopper's own
    Sm90a,
    /// B200
    Sm100,
    /// RTX 50
    Sm120,
}

impl Arch {
    /// All of them.
    pub const ALL: [Arch; 6] = [Arch::Sm80, Arch::Sm86, Arch::Sm89, Arch::Sm90a, Arch::Sm100, Arch::Sm120];

    /// As the compiler calls it.
    pub fn name(self) -> &'static str {
        match self {
            Arch::Sm80 => "sm_80",
            Arch::Sm86 => "sm_86",
            Arch::Sm89 => "sm_89",
            Arch::Sm90a => "sm_90a",
            Arch::Sm100 => "sm_100",
            Arch::Sm120 => "sm_120",
        }
    }

    /// The one whose machine code runs on a device of this compute capability: that of the same major and at most the
    /// same minor number ("CUDA C++ Programming Guide", binary compatibility).
    pub fn of_capability(major: i32, minor: i32) -> Result<Arch> {
        match (major, minor) {
            (8, 0..=5) => Ok(Arch::Sm80),
            (8, 6..=8) => Ok(Arch::Sm86),
            (8, _) => Ok(Arch::Sm89),
            (9, 0) => Ok(Arch::Sm90a),
            (10, _) => Ok(Arch::Sm100),
            (12, _) => Ok(Arch::Sm120),
            _ => Err(Error::Gpu {
                what: "the GPU".into(),
                why: format!("its compute capability is {major}.{minor}; kernels exist for {}", list()),
                advice: "use another, or --device cpu".into(),
            }),
        }
    }
}

/// Their names, for messages.
fn list() -> String {
    Arch::ALL.map(Arch::name).join(", ")
}

impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Arch {
    type Err = String;

    fn from_str(name: &str) -> std::result::Result<Arch, String> {
        let found = Arch::ALL.into_iter().find(|arch| arch.name() == name);
        found.ok_or_else(|| format!("{name:?} is not one of {}", list()))
    }
}

/// NVRTC's options for a family; with the sources, they decide the machine code.
fn options(spec: &ModuleSpec, arch: Arch) -> Vec<String> {
    let fixed = ["--std=c++20", "--generate-line-info", "--ptxas-options=-v"].map(str::to_owned);
    let mut options = Vec::from(fixed);
    options.push(format!("--gpu-architecture={arch}"));
    options.extend(spec.defines().map(|(name, size)| format!("-D{name}={size}")));
    options
}

/// File of a family in a [`Store`]: readable, and different whenever sources or options are.
pub fn file_name(spec: &ModuleSpec, arch: Arch) -> String {
    let options = options(spec, arch).join(" ");
    let headers = HEADERS.iter().flat_map(|&(name, source)| [name, source]);
    let content = headers.chain([spec.family.source, &options]).collect::<Vec<&str>>().join("\0");
    format!("{}-{arch}-{:016x}.kernels", spec.to_string().replace(' ', "-"), xxh3_64(content.as_bytes()))
}

/// The path in an environment variable that is set.
fn named(variable: &str) -> Option<PathBuf> {
    std::env::var_os(variable).filter(|value| !value.is_empty()).map(PathBuf::from)
}

/// Where what was compiled and chosen is kept; `None` where the environment names no place.
pub fn cache_dir() -> Option<PathBuf> {
    named("HANDBERT_CACHE")
        .or_else(|| named("XDG_CACHE_HOME").map(|dir| dir.join("handbert")))
        .or_else(|| named("HOME").map(|dir| dir.join(".cache/handbert")))
}

/// A hash of every kernel's source.
pub fn sources_hash() -> u64 {
    let headers = HEADERS.iter().map(|&(_, source)| source);
    let sources = headers.chain(FAMILIES.iter().map(|family| family.source)).collect::<Vec<&str>>();
    xxh3_64(sources.join("\0").as_bytes())
}

/// Finds or makes machine code for one architecture.
#[derive(Debug)]
pub struct Compiler {
    arch: Arch,
    /// The driver that is to load the code, as [`Nvrtc::fits`] takes it, where there is one.
    driver: Option<i32>,
    precompiled: Option<Store>,
    cache: Option<PathBuf>,
}

impl Compiler {
    /// With the places that the environment names; for a driver of this version, or for none.
    pub fn from_environment(arch: Arch, driver: Option<i32>) -> Compiler {
        Compiler { driver, ..Compiler::new(arch, named("HANDBERT_KERNELS"), cache_dir()) }
    }

    /// For one architecture, with these places instead of those that the environment names.
    pub fn new(arch: Arch, precompiled: Option<PathBuf>, cache: Option<PathBuf>) -> Compiler {
        Compiler { arch, driver: None, precompiled: precompiled.map(Store::new), cache }
    }

    fn nvrtc(&self) -> Result<Nvrtc> {
        let nvrtc = Nvrtc::load()?;
        self.driver.map_or(Ok(nvrtc), |driver| nvrtc.fits(driver))
    }

    /// What it compiles for.
    pub fn arch(&self) -> Arch {
        self.arch
    }

    /// That machine code can be had: compiled ahead of time, or by NVRTC. Of families with sizes nothing is asked, as those of
    /// the model are not known here; where they were not compiled ahead of time, it takes NVRTC all the same.
    pub fn check(&self) -> Result<()> {
        let Some(store) = &self.precompiled else { return self.nvrtc().map(drop) };
        let mut sizeless = families(self.arch).filter(|family| family.constants.is_empty());
        if sizeless.all(|family| store.path(&file_name(&ModuleSpec::new(family, &[]), self.arch)).is_file()) {
            return Ok(());
        }
        self.nvrtc().map(drop).map_err(|error| match error {
            Error::Gpu { what, why, advice } => {
                let dir = store.path("");
                let none = format!("HANDBERT_KERNELS={} holds none of this version for {}", dir.display(), self.arch);
                Error::Gpu { what, why: format!("{none}, and {why}"), advice }
            }
            error => error,
        })
    }

    /// A family's machine code and the compiler's log.
    pub fn module(&self, spec: &ModuleSpec) -> Result<Compiled> {
        let name = file_name(spec, self.arch);
        if let Some(compiled) = self.precompiled.as_ref().and_then(|store| look_up(store, &name)) {
            return Ok(compiled);
        }
        let nvrtc = self.nvrtc()?;
        let cache = self.cache.as_ref().map(|dir| Store::new(dir.join(format!("nvrtc-{}", nvrtc.version()))));
        if let Some(compiled) = cache.as_ref().and_then(|store| look_up(store, &name)) {
            return Ok(compiled);
        }
        let compiled = nvrtc.compile(spec, self.arch)?;
        if let Some(store) = cache
            && let Err(error) = store.put(&name, &compiled)
        {
            let path = store.path(&name);
            tracing::warn!(
                "{}: {error}; kernels are compiled anew in each run (HANDBERT_CACHE names another place)",
                path.display()
            );
        }
        Ok(compiled)
    }

    /// Compiles a family into a directory that HANDBERT_KERNELS may then name; gives the file and what is in it.
    pub fn precompile(spec: &ModuleSpec, arch: Arch, dir: &std::path::Path) -> Result<(PathBuf, Compiled)> {
        let (store, name) = (Store::new(dir), file_name(spec, arch));
        let compiled = Nvrtc::load()?.compile(spec, arch)?;
        let path = store.path(&name);
        let fail = |error: std::io::Error| Error::Gpu {
            what: path.display().to_string(),
            why: error.to_string(),
            advice: "choose a directory that can be written".into(),
        };
        store.put(&name, &compiled).map_err(fail)?;
        Ok((path, compiled))
    }
}

fn look_up(store: &Store, name: &str) -> Option<Compiled> {
    match store.get(name) {
        Found::Whole(compiled) => Some(compiled),
        Found::Missing => None,
        Found::Damaged => {
            tracing::warn!("{}: damaged, so its kernels are compiled anew", store.path(name).display());
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cuda::ops::{gelu, layernorm};
    use crate::skip::skipped;

    #[test]
    fn an_architecture_has_its_name_and_its_devices() {
        for arch in Arch::ALL {
            assert_eq!(arch.name().parse(), Ok(arch));
        }
        assert!("sm_75".parse::<Arch>().is_err_and(|why| why.contains("sm_75") && why.contains("sm_90a")));
        let of = |major, minor| Arch::of_capability(major, minor).ok();
        assert_eq!([of(8, 0), of(8, 7), of(8, 9)], [Some(Arch::Sm80), Some(Arch::Sm86), Some(Arch::Sm89)]);
        assert_eq!([of(9, 0), of(10, 3), of(12, 1)], [Some(Arch::Sm90a), Some(Arch::Sm100), Some(Arch::Sm120)]);
        assert_eq!([of(7, 5), of(11, 0)], [None, None]);
    }

    #[test]
    fn file_names_differ_when_anything_that_decides_does() {
        let of = |family, sizes: &[u32], arch| file_name(&ModuleSpec::new(family, sizes), arch);
        let names = [
            of(&layernorm::FAMILY, &[768], Arch::Sm90a),
            of(&layernorm::FAMILY, &[384], Arch::Sm90a),
            of(&layernorm::FAMILY, &[768], Arch::Sm80),
            of(&gelu::FAMILY, &[768], Arch::Sm80),
        ];
        for (i, name) in names.iter().enumerate() {
            assert!(names.iter().skip(i + 1).all(|other| other != name));
        }
        assert!(names[0].starts_with("layernorm-WIDTH=768-sm_90a-"), "{}", names[0]);
    }

    #[test]
    fn kernels_compiled_ahead_of_time_do_without_a_compiler() {
        let dir = tempfile::tempdir().unwrap();
        let compiler = Compiler::new(Arch::Sm90a, Some(dir.path().to_owned()), None);
        if Nvrtc::load().is_ok() {
            skipped("this machine has NVRTC, so nothing is missing without kernels compiled ahead of time");
        }
        for family in families(Arch::Sm90a).filter(|family| family.constants.is_empty()) {
            match (compiler.check(), Nvrtc::load()) {
                (Ok(()), Ok(_)) => {}
                (Err(error), Err(_)) => {
                    let error = error.to_string();
                    assert!(error.contains("HANDBERT_KERNELS=") && error.contains("libnvrtc.so"), "{error}");
                }
                (checked, _) => panic!("{checked:?}"),
            }
            let name = file_name(&ModuleSpec::new(family, &[]), Arch::Sm90a);
            std::fs::write(dir.path().join(name), "").unwrap();
        }
        compiler.check().unwrap();
        let other = Compiler::new(Arch::Sm80, Some(dir.path().to_owned()), None);
        assert_eq!(other.check().is_ok(), Nvrtc::load().is_ok());
    }
}
