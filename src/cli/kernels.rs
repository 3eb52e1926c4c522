//! `handbert kernels list|check|compile`.

mod check;

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::figures::grouped;
use super::{Common, Outcome};
use crate::backend::cuda::compile::{Arch, Compiled, Compiler, Nvrtc, Usage, losses, usages};
use crate::backend::cuda::kernel::{FAMILIES, Family, ModuleSpec, families};

#[derive(Debug, clap::Subcommand)]
pub enum Task {
    /// What each kernel computes, and what it takes: registers, shared memory, spills
    List(ListArgs),
    /// Every op of the device at hand against an f64 reference: a table of errors, and an exit code
    Check(check::Args),
    /// Compile all kernels ahead of time, without a GPU, for machines without NVRTC (they set HANDBERT_KERNELS=DIR)
    Compile(CompileArgs),
}

#[derive(Debug, clap::Args)]
pub struct ListArgs {
    /// Architecture to compile for
    #[arg(long, default_value = "sm_90a", value_name = "ARCH")]
    arch: Arch,
}

#[derive(Debug, clap::Args)]
pub struct CompileArgs {
    /// Architectures to compile for
    #[arg(long, value_delimiter = ',', default_values = Arch::ALL.map(Arch::name), value_name = "ARCHS")]
    arch: Vec<Arch>,
    /// Directory for the compiled kernels
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// One more size of model to compile for, as in WIDTH=512 or HEAD_SIZE=32
    #[arg(long, value_parser = size, value_name = "NAME=N")]
    size: Vec<(String, u32)>,
}

fn size(text: &str) -> Result<(String, u32), String> {
    let (name, value) = text.split_once('=').ok_or("expected NAME=N, as in WIDTH=512")?;
    let names: Vec<&str> = FAMILIES.iter().flat_map(|family| family.constants).map(|&(name, _)| name).collect();
    if !names.contains(&name) {
        return Err(format!("{name:?} is not one of {}", names.join(", ")));
    }
    let wrong = |error: std::num::ParseIntError| format!("{value:?}: {error}");
    Ok((name.to_owned(), value.parse().map_err(wrong)?))
}

pub fn run(task: &Task, common: &Common) -> Result<Outcome> {
    let (json, text) = match task {
        Task::Check(args) => return check::run(args, common),
        Task::List(args) => list(args.arch)?,
        Task::Compile(args) => compile(args)?,
    };
    common.print(&json, &text)?;
    Ok(Outcome::Done)
}

/// A family at the sizes of the base model, which stand first in its table.
fn base_sizes(family: &'static Family) -> ModuleSpec {
    let sizes: Vec<u32> = family.constants.iter().map(|(_, values)| values[0]).collect();
    ModuleSpec::new(family, &sizes)
}

fn list(arch: Arch) -> Result<(Value, String)> {
    let compiler = Compiler::from_environment(arch, None);
    let (mut rows, mut text) = (Vec::new(), String::new());
    for family in families(arch) {
        let spec = base_sizes(family);
        let module = compiler.module(&spec).with_context(|| format!("kernels list --arch {arch}"))?;
        let used = usages(&module.log);
        text.push_str(&format!("{spec}\n"));
        for kernel in family.kernels {
            let usage = usage_of(&used, kernel.name)?;
            text.push_str(&format!(
                "  {:<32} {:>4} threads {:>4} registers {:>8} B shared {:>3} B spilled  {}\n",
                kernel.name,
                kernel.threads,
                usage.registers,
                grouped(kernel.shared_bytes.into()),
                usage.spilled_bytes,
                kernel.computes,
            ));
            rows.push(json!({
                "family": family.name,
                "kernel": kernel.name,
                "computes": kernel.computes,
                "threads": kernel.threads,
                "registers": usage.registers,
                "register_limit": kernel.limits.registers,
                "shared_bytes": kernel.shared_bytes,
                "stack_bytes": usage.stack_bytes,
                "spilled_bytes": usage.spilled_bytes,
            }));
        }
    }
    Ok((json!({ "arch": arch.name(), "kernels": rows }), text))
}

/// What the compiler says of a kernel; that it says nothing is an error of ours.
fn usage_of<'a>(used: &'a [Usage], kernel: &str) -> Result<&'a Usage> {
    used.iter()
        .find(|usage| usage.kernel == kernel)
        .with_context(|| format!("{kernel}: the compiler does not report it"))
}

fn compile(args: &CompileArgs) -> Result<(Value, String)> {
    let nvrtc = Nvrtc::load()?;
    let (mut files, mut text, mut too_much) = (Vec::new(), String::new(), Vec::new());
    for &arch in &args.arch {
        for spec in families(arch).flat_map(|family| specs(family, &args.size)) {
            let (path, compiled) = Compiler::precompile(&spec, arch, &args.out)?;
            too_much.extend(beyond_limits(&spec, arch, &compiled)?);
            too_much.extend(losses(&compiled.log).map(|line| format!("{spec} for {arch}: {line}")));
            text.push_str(&format!("{}\n", path.display()));
            files.push(json!({ "file": path, "module": spec.to_string(), "arch": arch.name() }));
        }
    }
    if !too_much.is_empty() {
        bail!("beyond the limits in the kernels' tables, or not compiled as written:\n{}", too_much.join("\n"));
    }
    text.push_str(&format!("{} modules, compiled by NVRTC {}\n", files.len(), nvrtc.version()));
    Ok((json!({ "nvrtc": nvrtc.version(), "modules": files }), text))
}

/// A family for every size in its table and each one more asked for.
fn specs(family: &'static Family, more: &[(String, u32)]) -> Vec<ModuleSpec> {
    let mut sizes = vec![Vec::new()];
    for &(name, values) in family.constants {
        let more = more.iter().filter(|(wanted, _)| wanted == name).map(|&(_, value)| value);
        let mut values: Vec<u32> = values.iter().copied().chain(more).collect();
        values.sort_unstable();
        values.dedup();
        let with = |value| sizes.iter().map(move |head: &Vec<u32>| [head.as_slice(), &[value]].concat());
        sizes = values.into_iter().flat_map(with).collect();
    }
    sizes.into_iter().map(|sizes| ModuleSpec::new(family, &sizes)).collect()
}

/// Kernels that use more than their table allows.
fn beyond_limits(spec: &ModuleSpec, arch: Arch, compiled: &Compiled) -> Result<Vec<String>> {
    let used = usages(&compiled.log);
    let mut too_much = Vec::new();
    for kernel in spec.family.kernels {
        let usage = usage_of(&used, kernel.name)?;
        let limits = kernel.limits;
        if usage.registers > limits.registers || usage.spilled_bytes > limits.spilled_bytes || usage.stack_bytes > 0 {
            too_much.push(format!(
                "{} of {spec} for {arch}: {} registers (limit {}), {} bytes spilled (limit {}), {} of stack (limit 0)",
                kernel.name,
                usage.registers,
                limits.registers,
                usage.spilled_bytes,
                limits.spilled_bytes,
                usage.stack_bytes,
            ));
        }
    }
    Ok(too_much)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_by_name() {
        assert_eq!(size("WIDTH=512"), Ok(("WIDTH".to_owned(), 512)));
        assert!(size("WIDTH").is_err() && size("WIDTH=wide").is_err());
        assert!(size("DEPTH=3").is_err_and(|why| why.contains("WIDTH")));
    }

    #[test]
    fn every_family_is_compiled_for_every_size_once() {
        let layernorm = FAMILIES.into_iter().find(|family| family.name == "layernorm").unwrap();
        let all =
            specs(layernorm, &[("WIDTH".to_owned(), 320), ("WIDTH".to_owned(), 768), ("HEAD_SIZE".to_owned(), 32)]);
        let names: Vec<String> = all.iter().map(ToString::to_string).collect();
        assert!(names.contains(&"layernorm WIDTH=320".to_owned()), "{names:?}");
        assert_eq!(names.iter().filter(|name| name.ends_with("=768")).count(), 1);
        assert_eq!(names.len(), layernorm.constants[0].1.len() + 1);
    }
}
