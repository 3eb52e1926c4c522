//! Fuzz targets for the files that come from outside. What a target does with its bytes is what `cargo test` does with
//! damaged files, from the same source: `tests/support/hostile.rs`.
//!
//! ```text
//! cargo +nightly fuzz run token_set      # or weights, config, recipe; from the repository's root
//! ```

use std::path::Path;

#[path = "../../tests/support/hostile.rs"]
pub mod hostile;

use hostile::Reader;

/// A reader, and files without a fault in the corpus of its target, for the fuzzer to start from.
///
/// # Panics
/// Where they cannot be written.
pub fn seeded<R: Reader>(target: &str) -> R {
    let reader = R::new();
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
    std::fs::create_dir_all(&corpus).expect("made");
    for (i, bytes) in reader.valid().iter().enumerate() {
        std::fs::write(corpus.join(format!("valid-{i}")), bytes).expect("written");
    }
    reader
}

/// The fuzz target of a kind of file: its reader, and its name.
#[macro_export]
macro_rules! target {
    ($reader:ident, $name:literal) => {
        static READER: std::sync::LazyLock<$crate::hostile::$reader> =
            std::sync::LazyLock::new(|| $crate::seeded($name));

        libfuzzer_sys::fuzz_target!(
            init: {
                std::sync::LazyLock::force(&READER);
            },
            |bytes: &[u8]| {
                $crate::hostile::Reader::open(&*READER, bytes);
            }
        );
    };
}
