//! Thousands of damaged files of each kind that comes from outside: each is refused with an error that names it, or
//! read; none costs a panic or memory that it only claims to need.

mod support {
    pub mod damage;
    pub mod hostile;
    pub mod skip;
}

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, PoisonError};

use support::damage::Damage;
use support::hostile::{ModelConfig, Outcome, Reader, Recipe, TokenSetHeader, Weights};
use support::skip::skipped;

const INPUTS: usize = 3000;

/// More address space than a test here takes, and less than what a lying number asks for.
const MOST_KIB: u64 = 1 << 20;

/// The most address space this process ever had, in KiB; none where the system does not say.
fn peak() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmPeak:"))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}

/// Opens files without a fault and [`INPUTS`] damaged ones.
fn survives<R: Reader>(name: &str, damaged: impl Fn(&mut Damage, &[u8]) -> Vec<u8>) {
    // One test at a time, and with all threads started: what is counted is the whole process's, and every thread has a
    // stack and reserves address space when it first allocates.
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    rayon::broadcast(|_| drop(std::hint::black_box(vec![1u8; 1000])));
    let reader = R::new();
    let valid = reader.valid();
    for bytes in &valid {
        assert_eq!(reader.open(bytes), Outcome::Opened, "{name}: {:?}", String::from_utf8_lossy(bytes));
    }
    let before = peak();
    let mut damage = Damage::new(7);
    let mut opened = 0;
    for input in 0..INPUTS {
        let bytes = damaged(&mut damage, &valid[input % valid.len()]);
        match catch_unwind(AssertUnwindSafe(|| reader.open(&bytes))) {
            Ok(Outcome::Opened) => opened += 1,
            Ok(Outcome::Refused) => {}
            Err(_) => {
                let shown: String = String::from_utf8_lossy(&bytes).chars().take(4000).collect();
                panic!("{name}: input {input} panicked, of {} bytes:\n{shown}", bytes.len());
            }
        }
    }
    println!("{name}: {INPUTS} damaged files, {opened} of them could be read");
    // Damage that is always or never seen would test little.
    assert!((10..INPUTS * 9 / 10).contains(&opened), "{name}: {opened} of {INPUTS} were opened");
    match before.zip(peak()) {
        None => skipped("this system does not say how much memory a process has"),
        Some((before, after)) => {
            assert!(after < before + MOST_KIB, "{name}: took {} MiB", (after - before) / 1024);
        }
    }
}

#[test]
fn token_set_headers() {
    survives::<TokenSetHeader>("meta.json", Damage::of);
}

#[test]
fn weights() {
    survives::<Weights>("model.safetensors", |damage, valid| match damage.index(4) {
        0 => damage.of(valid),
        _ => damage.of_header(valid),
    });
}

#[test]
fn model_configs() {
    survives::<ModelConfig>("config.json", Damage::of);
}

#[test]
fn recipes() {
    survives::<Recipe>("run.toml", Damage::of);
}
