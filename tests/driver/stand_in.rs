//! The stand-in for libcuda, and kernels for it.

use std::ffi::{CStr, CString, c_char};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use handbert::backend::cuda::compile::{Arch, Compiled, Store, file_name};
use handbert::backend::cuda::kernel::{FAMILIES, ModuleSpec, families};
use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};

use crate::simulator::{Simulator, build};
use crate::skip::skipped;

/// The name under which the driver is looked for first.
pub const NAME: &str = "libcuda.so";

/// The library. Its state is the process's: one test at a time has it.
pub struct StandIn {
    at: &'static Place,
    _turn: MutexGuard<'static, ()>,
}

/// Where things are: good for any number of processes at once.
pub struct Place {
    /// Its file.
    pub file: PathBuf,
    /// A directory of kernels, as HANDBERT_KERNELS names it.
    pub kernels: PathBuf,
    library: Library,
}

impl StandIn {
    /// As it is at first, with HANDBERT_KERNELS set; `None`, and a line that says so, where there is no C++ compiler.
    pub fn take() -> Option<StandIn> {
        static TURN: Mutex<()> = Mutex::new(());
        let at = Place::find()?;
        // Another test's failure does no harm: everything is set anew.
        let stand_in = StandIn { at, _turn: TURN.lock().unwrap_or_else(PoisonError::into_inner) };
        stand_in.call("stand_in_reset");
        Some(stand_in)
    }

    /// Where it and its kernels are.
    pub fn place(&self) -> &'static Place {
        self.at
    }

    /// Sets something: see `Settings` of stand_in.h.
    pub fn set(&self, name: &str, value: i64) {
        let name = CString::new(name).expect("a name");
        // SAFETY: the type is that of stand_in.cpp.
        let set = unsafe { self.at.library.get::<extern "C" fn(*const c_char, i64) -> i32>(b"stand_in_set") };
        assert_eq!(set.expect("stand_in_set")(name.as_ptr(), value), 1, "{name:?} is no setting");
    }

    /// Objects, memory and contexts that have not been given back.
    pub fn alive(&self) -> usize {
        self.call("stand_in_alive")
    }

    /// Copies, launches and the like that it has performed.
    pub fn performed(&self) -> i64 {
        self.call("stand_in_performed") as i64
    }

    /// Calls that it refused.
    pub fn refusals(&self) -> usize {
        self.call("stand_in_refusals")
    }

    /// Why it refused the last call that it refused.
    pub fn refusal(&self) -> String {
        // SAFETY: the type is that of stand_in.cpp; the text ends in NUL and stays until the next refusal, which waits for its
        // test's turn.
        unsafe {
            let refusal = self.at.library.get::<extern "C" fn() -> *const c_char>(b"stand_in_refusal");
            CStr::from_ptr(refusal.expect("stand_in_refusal")()).to_string_lossy().into_owned()
        }
    }

    /// That nothing was refused, and everything given back.
    pub fn is_content(&self) {
        assert_eq!(self.refusals(), 0, "{}", self.refusal());
        assert_eq!(self.alive(), 0, "everything was given back");
    }

    fn call(&self, name: &str) -> usize {
        // SAFETY: functions of stand_in.cpp that take nothing, and return a size or nothing.
        unsafe { self.at.library.get::<extern "C" fn() -> usize>(name.as_bytes()).expect("it is there")() }
    }
}

impl Place {
    /// `None`, and a line that says so, where there is no C++ compiler.
    pub fn find() -> Option<&'static Place> {
        static PLACE: OnceLock<Option<Place>> = OnceLock::new();
        let place = PLACE.get_or_init(|| build::compiler().map(Place::make)).as_ref();
        if place.is_none() {
            skipped("no C++ compiler");
        }
        place
    }

    fn make(compiler: &'static build::Compiler) -> Place {
        let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/driver");
        let runtime = build::runtime(compiler).unwrap_or_else(|why| panic!("{why}"));
        let file = build::library(compiler, &sources, NAME, &[runtime]).unwrap_or_else(|why| panic!("{why}"));
        // SAFETY: loading it runs no code but constructors of its own and of the simulator.
        let library = unsafe { Library::open(Some(&file), RTLD_NOW | RTLD_GLOBAL) }.expect("the stand-in loads");
        let kernels = Path::new(env!("CARGO_TARGET_TMPDIR")).join("driver-kernels");
        put(&kernels, Arch::Sm80, &specs(Arch::Sm80));
        put(&kernels, Arch::Sm90a, &specs(Arch::Sm90a));
        // SAFETY: whoever else reads the environment in this process does so through std, which holds a lock meanwhile.
        unsafe { std::env::set_var("HANDBERT_KERNELS", &kernels) };
        Place { file, kernels, library }
    }

    /// Has the kernels that `kernels check --quick` takes, too.
    pub fn be_ready_for_check(&self) {
        put(&self.kernels, Arch::Sm80, &specs_of_check());
    }
}

/// A family in each of these sizes.
fn sized(name: &str, sizes: &[u32]) -> impl Iterator<Item = ModuleSpec> {
    let family = FAMILIES.into_iter().find(|family| family.name == name).expect("a family");
    sizes.iter().map(move |&size| ModuleSpec::new(family, &[size]))
}

/// What the tiny model of tests/support/training.rs takes.
fn specs(arch: Arch) -> Vec<ModuleSpec> {
    let vocab = crate::training::tokenizer().vocab_size() as u32;
    let sizeless = families(arch).filter(|family| family.constants.is_empty());
    let one = [("embedding", 64), ("layernorm", 64), ("attention_forward", 64), ("attention_backward", 64)];
    let other = [("gelu", 64), ("gelu", 128), ("cross_entropy", vocab)];
    let sized = one.into_iter().chain(other).flat_map(|(name, size)| sized(name, &[size]).collect::<Vec<_>>());
    sizeless.map(|family| ModuleSpec::new(family, &[])).chain(sized).collect()
}

/// What `kernels check --quick` takes beside these.
fn specs_of_check() -> Vec<ModuleSpec> {
    let widths = [128, 1024, 1792];
    let rows = sized("embedding", &widths).chain(sized("layernorm", &widths));
    rows.chain(sized("gelu", &[256])).chain(sized("cross_entropy", &[7, 1000])).collect()
}

/// Compiles families for the simulator, and puts images that name them where kernels compiled ahead of time are looked for.
fn put(kernels: &Path, arch: Arch, specs: &[ModuleSpec]) {
    let simulator = Simulator::new(1).expect("there is a compiler");
    let (store, next) = (Store::new(kernels), AtomicUsize::new(0));
    let put = |spec: &ModuleSpec| {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels").join(format!("{}.cu", spec.family.name));
        let compiled = simulator.compile(&source, &spec.defines().collect::<Vec<_>>());
        let (library, _) = compiled.unwrap_or_else(|why| panic!("{why}"));
        let image = Compiled { cubin: image(arch.name(), &library), log: String::new() };
        store.put(&file_name(spec, arch), &image).expect("written");
    };
    // Compilers take their time.
    let worker = || {
        while let Some(spec) = specs.get(next.fetch_add(1, Ordering::Relaxed)) {
            put(spec)
        }
    };
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| (0..workers).for_each(|_| drop(scope.spawn(worker))));
}

/// `Image` of launches.cpp.
pub fn image(arch: &str, library: &Path) -> Vec<u8> {
    let text = format!("{arch}\n{}\n", library.display());
    let checksum = text
        .bytes()
        .fold(14_695_981_039_346_656_037u64, |sum, byte| (sum ^ u64::from(byte)).wrapping_mul(1_099_511_628_211));
    [b"stand-in's cubin", &(text.len() as u64).to_le_bytes()[..], &checksum.to_le_bytes(), text.as_bytes()].concat()
}
