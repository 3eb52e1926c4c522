//! The tests of the CPU once more under each instruction set that HANDBERT_SIMD asks for: a set is chosen once for a process.

use std::process::Command;

use handbert::backend::cpu::simd::Vectors;

use crate::skip::skipped;

/// Says what the process at hand computes with.
#[test]
fn what_computes() {
    println!("computes with {}", Vectors::detect().name());
}

/// Those of module `cpu`, by this very program.
#[test]
fn the_cpu_is_right_under_every_instruction_set() {
    #[cfg(target_arch = "x86_64")]
    {
        let (avx512, avx2) = (is_x86_feature_detected!("avx512f"), is_x86_feature_detected!("avx2"));
        if !avx512 {
            skipped("this machine has no AVX-512");
        }
        match (avx512, avx2) {
            // Where it is the best there is, all other tests run under it.
            (true, _) => pass("avx2", "AVX2"),
            (false, true) => {}
            (false, false) => skipped("this machine has no AVX2"),
        }
    }
    pass("none", "no vectors");
}

fn pass(set: &str, name: &str) {
    let program = std::env::current_exe().expect("a program");
    let mut tests = Command::new(program);
    tests.args(["cpu::", "what_computes", "--show-output"]).env("HANDBERT_SIMD", set);
    let output = tests.output().expect("it starts");
    let out = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "HANDBERT_SIMD={set}:\n{out}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(out.contains(&format!("computes with {name}\n")), "HANDBERT_SIMD={set}:\n{out}");
    let passed = out.lines().filter(|line| line.contains(" cpu::") && line.ends_with("... ok")).count();
    assert!(passed >= 5, "HANDBERT_SIMD={set}: {passed} tests of the CPU\n{out}");
}
