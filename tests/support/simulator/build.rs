//! Builds the simulator's runtime and kernels with the C++ compiler at hand, once for each state of the sources.

use std::fs::{self, File};
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::thread::{self, available_parallelism};

use xxhash_rust::xxh3::Xxh3;

use super::source::Signature;

/// A C++ compiler.
pub struct Compiler {
    program: String,
    /// What `--version` prints.
    version: String,
}

const RUNTIME_FLAGS: [&str; 5] = ["-std=c++20", "-O3", "-g1", "-fPIC", "-c"];

// The hooks that -fsanitize=thread calls are the runtime's own: nothing of ThreadSanitizer is linked.
// -fstack-clash-protection: a frame larger than the stack's guard must not jump over it.
#[rustfmt::skip]
const KERNEL_FLAGS: [&str; 9] = [
    "-std=c++20", "-O2", "-g1", "-fPIC", "-fvisibility=hidden", "-DHANDBERT_SIM", "-fsanitize=thread", "-fstack-clash-protection", "-c",
];
// No hooks where functions begin and end. Without -fno-tree-sra GCC would split a load of a struct into loads of the members
// that are used.
const GCC_FLAGS: &[&str] = &["--param", "tsan-instrument-func-entry-exit=0", "-fno-tree-sra"];
// clang puts its hooks in last, when loads of structs have been split for good; what is vectorized it has no hooks for.
const CLANG_FLAGS: &[&str] = &["-mllvm", "-tsan-instrument-func-entry-exit=0", "-fno-vectorize", "-fno-slp-vectorize"];

impl Compiler {
    pub fn is_clang(&self) -> bool {
        self.version.contains("clang")
    }
}

/// $CXX, or else g++; None if it does not start.
pub fn compiler() -> Option<&'static Compiler> {
    static COMPILER: OnceLock<Option<Compiler>> = OnceLock::new();
    let found = COMPILER.get_or_init(|| {
        let program = std::env::var("CXX").unwrap_or_else(|_| "g++".into());
        let output = Command::new(&program).arg("--version").output().ok()?;
        let version = String::from_utf8_lossy(&output.stdout).into_owned();
        output.status.success().then_some(Compiler { program, version })
    });
    found.as_ref()
}

/// The runtime as a shared library.
pub fn runtime(compiler: &Compiler) -> Result<PathBuf, String> {
    let sources = files(&kernels().join("sim"), &["cpp"]);
    let mut key = Key::new(compiler, &RUNTIME_FLAGS);
    key.files(&sources);
    key.files(&files(&kernels().join("sim"), &["h"]));
    built("runtime", &key, |work, out| shared(compiler, &sources, &[], work, out))
}

/// A .cu file as a shared library, with entry points for its kernels.
pub fn module(
    compiler: &Compiler, file: &Path, defines: &[(&str, u32)], kernels_of_file: &[Signature],
) -> Result<PathBuf, String> {
    let flags = if compiler.is_clang() { CLANG_FLAGS } else { GCC_FLAGS };
    let defines: Vec<_> = defines.iter().map(|(name, value)| format!("-D{name}={value}")).collect();
    let mut key = Key::new(compiler, &KERNEL_FLAGS);
    flags.iter().for_each(|flag| key.text(flag));
    defines.iter().for_each(|define| key.text(define));
    let beside = file.parent().expect("a file lies in a directory");
    key.text(&file.to_string_lossy());
    key.files(&[file.to_owned()]);
    for dir in [beside, &kernels(), &kernels().join("sim")] {
        key.files(&files(dir, &["cuh", "h"]));
    }
    let name = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    built(&name, &key, |work, out| {
        let entries: String = kernels_of_file.iter().map(entry).collect();
        let unit = work.join(format!("{name}.cpp"));
        fs::write(&unit, format!("#include \"{}\"\n{entries}", file.display())).map_err(|e| e.to_string())?;
        let object = work.join("kernels.o");
        let mut compile = Command::new(&compiler.program);
        compile
            .args(KERNEL_FLAGS)
            .args(flags)
            .args(&defines)
            .arg("-I")
            .arg(kernels())
            .arg(&unit)
            .arg("-o")
            .arg(&object);
        run(compile)?;
        let mut link = Command::new(&compiler.program);
        link.arg("-shared").arg(&object).arg("-o").arg(out);
        run(link)
    })
}

/// The C++ files of a directory as a shared library that the loader knows by `name`. They may use the functions of `needed`,
/// libraries that are loaded with it, and the simulator's headers.
pub fn library(compiler: &Compiler, dir: &Path, name: &str, needed: &[PathBuf]) -> Result<PathBuf, String> {
    let sources = files(dir, &["cpp"]);
    let mut key = Key::new(compiler, &RUNTIME_FLAGS);
    key.text(name);
    key.files(&sources);
    key.files(&files(dir, &["h"]));
    key.files(&files(&kernels().join("sim"), &["h"]));
    // Their names hold digests of what is in them.
    needed.iter().for_each(|library| key.text(&library.to_string_lossy()));
    built(name, &key, |work, out| {
        let mut linked = vec![format!("-Wl,-soname,{name}").into()];
        linked.extend_from_slice(needed);
        shared(compiler, &sources, &linked, work, out)
    })
}

/// C++ files as a shared library, compiled on all cores, and linked with what else the linker is given.
fn shared(compiler: &Compiler, sources: &[PathBuf], linked: &[PathBuf], work: &Path, out: &Path) -> Result<(), String> {
    let cores = available_parallelism().map_or(1, NonZero::get);
    thread::scope(|scope| {
        let compile = |part| {
            let mut compile = Command::new(&compiler.program);
            compile.current_dir(work).args(RUNTIME_FLAGS).arg("-I").arg(kernels().join("sim")).args(part);
            run(compile)
        };
        let parts: Vec<_> =
            sources.chunks(sources.len().div_ceil(cores)).map(|part| scope.spawn(move || compile(part))).collect();
        parts.into_iter().try_for_each(|part| part.join().expect("a compiler that fails is no panic"))
    })?;
    let mut link = Command::new(&compiler.program);
    link.arg("-shared").args(files(work, &["o"])).args(linked).arg("-o").arg(out);
    run(link)
}

/// What stands in the unit beside the source, for one kernel.
fn entry(kernel: &Signature) -> String {
    let name = &kernel.name;
    let bounds = kernel.bounds.as_ref().map(|bounds| format!("SIM_BOUNDS({name}, {bounds});\n"));
    format!("SIM_ENTRY({name});\n{}", bounds.unwrap_or_default())
}

fn kernels() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels")
}

/// Files of a directory with one of these extensions, by name.
fn files(dir: &Path, extensions: &[&str]) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
    let paths = entries.map(|entry| entry.expect("a readable directory").path());
    let wanted = |path: &PathBuf| path.extension().is_some_and(|has| extensions.iter().any(|want| has == *want));
    let mut found: Vec<_> = paths.filter(wanted).collect();
    found.sort();
    found
}

/// Everything that decides what a build gives.
struct Key(Xxh3);

impl Key {
    fn new(compiler: &Compiler, flags: &[&str]) -> Key {
        let mut key = Key(Xxh3::new());
        key.text(&compiler.program);
        key.text(&compiler.version);
        flags.iter().for_each(|flag| key.text(flag));
        key
    }

    fn text(&mut self, text: &str) {
        self.0.update(&(text.len() as u64).to_le_bytes());
        self.0.update(text.as_bytes());
    }

    fn files(&mut self, paths: &[PathBuf]) {
        for path in paths {
            self.text(&path.to_string_lossy());
            self.text(&fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display())));
        }
    }
}

/// The result of `build` for this key: found in the cache, or made there. Tests that want the same one wait for each
/// other, in this process and in others.
fn built(name: &str, key: &Key, build: impl FnOnce(&Path, &Path) -> Result<(), String>) -> Result<PathBuf, String> {
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("simulator");
    let digest = format!("{:032x}", key.0.digest128());
    let out = cache.join(format!("{name}-{digest}.so"));
    let failed = |e: std::io::Error| format!("{}: {e}", out.display());
    fs::create_dir_all(&cache).map_err(failed)?;
    let lock = File::create(out.with_extension("lock")).map_err(failed)?;
    lock.lock().map_err(failed)?;
    if !out.exists() {
        let work = tempfile::tempdir_in(&cache).map_err(failed)?;
        let fresh = work.path().join("out.so");
        build(work.path(), &fresh)?;
        fs::rename(&fresh, &out).map_err(failed)?;
    }
    Ok(out)
}

fn run(mut command: Command) -> Result<(), String> {
    let output = command.output().map_err(|e| format!("{command:?}: {e}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{command:?}: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr)))
}
