//! Memory, copies, launches, recordings: what goes to the device comes back, and what fails says why.

use handbert::backend::cuda::device::{Arg, Block, Device, Features, Launch, LiveRows, Region};
use handbert::backend::cuda::driver::{Fetch, Gpu, GpuBuffer, GpuModule};
use handbert::backend::cuda::kernel::ModuleSpec;
use handbert::backend::cuda::ops::gelu;
use handbert::backend::{Error, Result};
use handbert::philox::philox4x32;

use crate::stand_in::{StandIn, image};

/// Another row of bytes for each `stream`.
fn noise(len: usize, stream: u32) -> Vec<u8> {
    let four = |i| philox4x32([i, stream, 0, 0], [0, 0]).into_iter().flat_map(u32::to_le_bytes);
    (0..len.div_ceil(16) as u32).flat_map(four).take(len).collect()
}

fn gpu() -> Gpu {
    Gpu::new(0).expect("the stand-in")
}

/// Memory with these bytes in it.
fn filled(gpu: &Gpu, bytes: &[u8]) -> GpuBuffer {
    let buffer = gpu.alloc(bytes.len(), "a test").expect("memory");
    gpu.upload(bytes, gpu.region(&buffer)).expect("uploaded");
    buffer
}

fn bytes_of(gpu: &Gpu, region: Region) -> Vec<u8> {
    let mut bytes = vec![0; region.bytes()];
    gpu.download(region, &mut bytes).expect("downloaded");
    bytes
}

#[test]
fn a_device_is_described() {
    let Some(stand_in) = StandIn::take() else { return };
    let all = [(80, "sm_80", false), (86, "sm_86", false), (90, "sm_90a", true), (120, "sm_120", false)];
    for (capability, arch, wgmma) in all {
        stand_in.set("capability", capability);
        let gpu = gpu();
        assert_eq!(gpu.describe(), format!("Stand-in GPU 0 ({arch})"));
        let Features { library, .. } = gpu.features();
        assert_eq!(gpu.features(), Features { wgmma, multiprocessors: 3, library });
    }
    stand_in.set("capability", 80);
    gpu().check_kernels().expect("they were compiled ahead of time");
    stand_in.is_content();
}

#[test]
fn what_is_uploaded_comes_back() {
    let Some(stand_in) = StandIn::take() else { return };
    let gpu = gpu();
    // Through page-locked memory, and beyond what goes through it.
    for len in [1, 15, 4096, 4097, 100_000, (8 << 20) + 5] {
        let bytes = noise(len, 1);
        let (one, other) = (filled(&gpu, &bytes), gpu.alloc(len, "a test").expect("memory"));
        let [one, other] = [&one, &other].map(|buffer| gpu.region(buffer));
        assert_eq!((one.bytes(), one.address() % 256), (len, 0));
        gpu.copy(one, other).expect("copied");
        let fetched = gpu.fetch(other).expect("fetched");
        gpu.fill(other.part(len / 2, 1), 7).expect("filled");
        assert!(bytes_of(&gpu, one) == bytes);
        assert!(gpu.wait(fetched).expect("arrived") == bytes, "as it was when it was asked for");
        let mut changed = bytes;
        changed[len / 2] = 7;
        assert!(bytes_of(&gpu, other) == changed);
    }
    drop(gpu);
    stand_in.is_content();
}

#[test]
fn copies_that_nobody_waited_for_do_not_meet() {
    let Some(stand_in) = StandIn::take() else { return };
    let gpu = gpu();
    let (buffer, sent): (_, Vec<_>) =
        (gpu.alloc(64 * 5000, "a test").expect("memory"), (0..64).map(|i| noise(5000, i)).collect());
    let part = |i: usize| gpu.region(&buffer).part(5000 * i, 5000);
    let fetched: Vec<_> = (0..64)
        .map(|i| {
            gpu.upload(&sent[i], part(i)).expect("uploaded");
            gpu.fetch(part(i)).expect("fetched")
        })
        .collect();
    gpu.fill(gpu.region(&buffer), 0).expect("filled");
    for (bytes, fetched) in sent.into_iter().zip(fetched) {
        assert!(gpu.wait(fetched).expect("arrived") == bytes);
    }
    drop((buffer, gpu));
    stand_in.is_content();
}

#[test]
fn whether_bytes_have_arrived_is_told_without_waiting() {
    let Some(stand_in) = StandIn::take() else { return };
    stand_in.set("polls", 3);
    let gpu = gpu();
    let buffer = filled(&gpu, &noise(100, 1));
    let fetched = gpu.fetch(gpu.region(&buffer)).expect("fetched");
    let ready = &|fetched: &Fetch| gpu.is_ready(fetched).expect("told");
    assert!(!ready(&fetched) && !ready(&fetched));
    // Whoever asks may be another thread, which has called the driver for nothing else.
    let elsewhere = move || {
        assert_eq!([ready(&fetched), ready(&fetched), ready(&fetched)], [false, true, true]);
        fetched
    };
    let fetched = std::thread::scope(|scope| scope.spawn(elsewhere).join().expect("no panic"));
    assert!(gpu.wait(fetched).expect("arrived") == noise(100, 1));
    drop((buffer, gpu));
    stand_in.is_content();
}

#[test]
fn nothing_is_memory_too() {
    let Some(stand_in) = StandIn::take() else { return };
    let gpu = gpu();
    let buffers = [(); 2].map(|()| filled(&gpu, &[]));
    let [one, other] = [0, 1].map(|i| gpu.region(&buffers[i]));
    gpu.fill(one, 1).expect("filled");
    gpu.copy(one, other).expect("copied");
    assert!(bytes_of(&gpu, other).is_empty());
    let fetched = gpu.fetch(one).expect("fetched");
    while !gpu.is_ready(&fetched).expect("told") {}
    assert!(gpu.wait(fetched).expect("arrived").is_empty());
    drop((buffers, gpu));
    stand_in.is_content();
}

#[test]
fn a_driver_or_a_device_that_will_not_do_is_told() {
    let Some(stand_in) = StandIn::take() else { return };
    let refused = |ordinal: usize, parts: &[&str]| {
        let error = Gpu::new(ordinal).expect_err("refused").to_string();
        assert!(parts.iter().all(|part| error.contains(part)), "{error}");
    };
    stand_in.set("driver_version", 11080);
    refused(0, &["the CUDA driver: it is for CUDA 11.8, 12.0 is needed", "update it", "--device cpu"]);
    stand_in.set("driver_version", 12000);
    drop(gpu());
    refused(1, &["GPU 1: ", "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal", "--device cuda:N"]);
    stand_in.set("devices", 0);
    refused(0, &["GPU 0: ", "CUDA_ERROR_INVALID_DEVICE"]);
    stand_in.set("devices", 1);
    stand_in.set("capability", 75);
    refused(0, &["compute capability is 7.5", "sm_80", "--device cpu"]);
    assert_eq!(stand_in.alive(), 0);
}

#[test]
fn memory_that_is_not_there_is_told_and_the_rest_can_still_be_had() {
    let Some(stand_in) = StandIn::take() else { return };
    stand_in.set("memory", 1 << 20);
    let gpu = gpu();
    let first = gpu.alloc(600_000, "weights").expect("memory");
    assert_eq!(gpu.free_bytes().expect("told"), Some((1 << 20) - 600_000));
    let Err(Error::GpuMemory { what, needed, free }) = gpu.alloc(500_000, "activations") else { panic!("it fits") };
    assert_eq!((what, needed, free), ("activations", 500_000, (1 << 20) - 600_000));
    // What was freed can be had again, and is told to be free, whether or not anyone waited.
    drop(first);
    assert_eq!(gpu.free_bytes().expect("told"), Some(1 << 20));
    let all = gpu.alloc(1 << 20, "activations").expect("memory");
    gpu.fill(gpu.region(&all), 1).expect("filled");
    drop((all, gpu));
    assert_eq!((stand_in.refusals(), stand_in.alive()), (1, 0));
}

/// gelu_forward of one row of 64.
fn launch(gpu: &Gpu, module: &GpuModule, buffers: &[GpuBuffer; 3], block: Block) -> Result<()> {
    let [x, y, live] = [0, 1, 2].map(|i| gpu.region(&buffers[i]));
    let args = [Arg::Read(x), Arg::Write(y), Arg::Rows(LiveRows { live, first: 0, capacity: 1 })];
    gpu.launch(module, &Launch { kernel: gelu::FAMILY.kernel("gelu_forward"), grid: [1, 1, 1], block, args: &args })
}

const BLOCK: Block = Block { threads: 256, shared_bytes: 0 };

/// Its matrices, x being ones in bf16, and the number of rows.
fn row_of_ones(gpu: &Gpu) -> [GpuBuffer; 3] {
    [[0x80, 0x3f].repeat(64), vec![0; 128], 1u32.to_le_bytes().to_vec()].map(|bytes| filled(gpu, &bytes))
}

/// gelu(1) in bf16
const GELU_OF_ONE: [u8; 2] = [0x57, 0x3f];

fn load(gpu: &Gpu) -> Result<GpuModule> {
    gpu.load(&ModuleSpec::new(&gelu::FAMILY, &[64]))
}

#[test]
fn a_kernel_runs_though_its_module_is_dropped_at_once() {
    let Some(stand_in) = StandIn::take() else { return };
    let gpu = gpu();
    let buffers = row_of_ones(&gpu);
    let module = load(&gpu).expect("loaded");
    launch(&gpu, &module, &buffers, BLOCK).expect("launched");
    drop(module);
    assert_eq!(bytes_of(&gpu, gpu.region(&buffers[1])), GELU_OF_ONE.repeat(64));
    drop((buffers, gpu));
    stand_in.is_content();
}

#[test]
fn what_a_launch_may_not_have_is_told_with_the_launch() {
    let Some(stand_in) = StandIn::take() else { return };
    let gpu = gpu();
    let buffers = row_of_ones(&gpu);
    let module = load(&gpu).expect("loaded");
    let refused = |block: Block, why: &str| {
        let error = launch(&gpu, &module, &buffers, block).expect_err("refused").to_string();
        let told = ["gelu_forward <<<", "[128 B], [128 B], rows 0..1", why];
        assert!(told.iter().all(|part| error.contains(part)), "{error}");
    };
    refused(Block { threads: 288, ..BLOCK }, "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES");
    refused(Block { shared_bytes: (48 << 10) + 1, ..BLOCK }, "CUDA_ERROR_INVALID_VALUE");
    stand_in.set("fail_launch", 0);
    refused(BLOCK, "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES");
    // None of that does harm to what comes after.
    launch(&gpu, &module, &buffers, BLOCK).expect("launched");
    assert_eq!(bytes_of(&gpu, gpu.region(&buffers[1])), GELU_OF_ONE.repeat(64));
    drop((module, buffers, gpu));
    assert_eq!((stand_in.refusals(), stand_in.alive()), (3, 0));
}

#[test]
fn kernels_that_cannot_be_loaded_are_told() {
    use handbert::backend::cuda::compile::{Arch, Compiled, Store, file_name};
    let Some(stand_in) = StandIn::take() else { return };
    let gpu = gpu();
    // Of a size that no test asks for, so that it is nobody else's.
    let spec = ModuleSpec::new(&gelu::FAMILY, &[192]);
    let store = Store::new(&stand_in.place().kernels);
    let name = file_name(&spec, Arch::Sm80);
    let refused = |cubin: Vec<u8>, parts: &[&str]| {
        store.put(&name, &Compiled { cubin, log: String::new() }).expect("written");
        let error = gpu.load(&spec).expect_err("refused").to_string();
        assert!(parts.iter().all(|part| error.contains(part)), "{error}");
    };
    let of_stand_in = image("sm_80", &stand_in.place().file);
    let mut damaged = of_stand_in.clone();
    damaged[40] ^= 1;
    refused(vec![0; 64], &["gelu WIDTH=192 for sm_80", "CUDA_ERROR_INVALID_IMAGE"]);
    refused(damaged, &["CUDA_ERROR_INVALID_IMAGE"]);
    refused(image("sm_90a", &stand_in.place().file), &["CUDA_ERROR_NO_BINARY_FOR_GPU"]);
    refused(of_stand_in, &["gelu_backward: ", "CUDA_ERROR_NOT_FOUND"]);
    std::fs::remove_file(store.path(&name)).expect("removed");
    drop(gpu);
    assert_eq!((stand_in.refusals(), stand_in.alive()), (4, 0));
}

#[test]
fn what_was_recorded_is_made_each_time_it_is_replayed() {
    let Some(stand_in) = StandIn::take() else { return };
    let gpu = gpu();
    let (buffers, module) = (row_of_ones(&gpu), load(&gpu).expect("loaded"));
    let [x, y] = [0, 1].map(|i| gpu.region(&buffers[i]));
    let record = |back: &dyn Fn() -> Result<()>| {
        gpu.record(&mut || {
            launch(&gpu, &module, &buffers, BLOCK)?;
            gpu.copy(y, x)?;
            back()
        })
    };
    let recording = record(&|| gpu.fill(y.part(0, 2), 0)).expect("recorded");
    assert!(bytes_of(&gpu, y) == vec![0; 128], "nothing was made yet");
    gpu.replay(&recording).expect("replayed");
    assert_eq!(bytes_of(&gpu, y)[..4], [0, 0, 0x57, 0x3f]);
    gpu.replay(&recording).expect("replayed");
    // gelu(gelu(1)): what the first replay left in x.
    assert_eq!(bytes_of(&gpu, y)[..4], [0, 0, 0x2c, 0x3f]);
    // A recording may be dropped while it runs, and may come to nothing.
    gpu.replay(&recording).expect("replayed");
    drop(recording);
    let failing = || Err(Error::Gpu { what: "a test".into(), why: "it fails".into(), advice: "none".into() });
    assert!(record(&failing).expect_err("it fails").to_string().contains("it fails"));
    gpu.fill(y, 3).expect("filled, not recorded");
    assert!(bytes_of(&gpu, y) == vec![3; 128]);
    drop((module, buffers, gpu));
    stand_in.is_content();
}

#[test]
fn what_cannot_be_recorded_is_an_error_and_does_no_harm() {
    let Some(stand_in) = StandIn::take() else { return };
    let gpu = gpu();
    let buffer = filled(&gpu, &noise(64, 1));
    let region = gpu.region(&buffer);
    let fetched = gpu.fetch(region).expect("fetched");
    let calls: [(&str, &dyn Fn() -> Result<()>); 6] = [
        ("upload", &|| gpu.upload(&noise(64, 2), region)),
        ("download", &|| gpu.download(region, &mut [0; 64])),
        ("fetch", &|| gpu.fetch(region).map(drop)),
        ("is_ready", &|| gpu.is_ready(&fetched).map(drop)),
        ("alloc", &|| gpu.alloc(64, "a test").map(drop)),
        ("load", &|| load(&gpu).map(drop)),
    ];
    for (name, call) in calls {
        let error = gpu.record(&mut || call()).expect_err(name).to_string();
        assert!(error.contains("CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"), "{name}: {error}");
        // Also where the error is not heeded.
        let error = gpu.record(&mut || call().or(Ok(()))).expect_err(name).to_string();
        assert!(error.contains("CUDA_ERROR_STREAM_CAPTURE_INVALIDATED"), "{name}: {error}");
    }
    assert!(gpu.wait(fetched).expect("arrived") == noise(64, 1));
    assert!(bytes_of(&gpu, region) == noise(64, 1), "nothing of it was made");
    drop((buffer, gpu));
    assert_eq!(stand_in.alive(), 0);
}

#[test]
fn other_threads_may_use_the_device_while_one_records() {
    let Some(stand_in) = StandIn::take() else { return };
    let gpu = gpu();
    let buffer = filled(&gpu, &noise(64, 1));
    let region = gpu.region(&buffer);
    let recording = gpu.record(&mut || {
        // By a stream of its own, since the one of `gpu` is recorded.
        std::thread::scope(|scope| scope.spawn(|| drop(Gpu::new(0).expect("another"))).join().expect("no panic"));
        gpu.fill(region, 5)
    });
    gpu.replay(&recording.expect("recorded")).expect("replayed");
    assert_eq!(bytes_of(&gpu, region), [5; 64]);
    drop((buffer, gpu));
    stand_in.is_content();
}

#[test]
fn things_may_be_dropped_in_any_order_on_any_thread() {
    let Some(stand_in) = StandIn::take() else { return };
    let gpu = gpu();
    let (buffers, module) = (row_of_ones(&gpu), load(&gpu).expect("loaded"));
    let fetched = gpu.fetch(gpu.region(&buffers[0])).expect("fetched");
    let recording = gpu.record(&mut || launch(&gpu, &module, &buffers, BLOCK)).expect("recorded");
    gpu.replay(&recording).expect("replayed");
    let elsewhere = |thing: Box<dyn FnOnce() + Send>| std::thread::spawn(thing).join().expect("no panic");
    elsewhere(Box::new(move || drop(gpu)));
    elsewhere(Box::new(move || drop(buffers)));
    elsewhere(Box::new(move || drop(module)));
    elsewhere(Box::new(move || drop(fetched)));
    elsewhere(Box::new(move || drop(recording)));
    stand_in.is_content();
}

#[test]
fn two_devices_are_kept_apart() {
    let Some(stand_in) = StandIn::take() else { return };
    stand_in.set("devices", 2);
    let gpus = [0, 1].map(|ordinal| Gpu::new(ordinal).expect("the stand-in"));
    assert_eq!(gpus[1].describe(), "Stand-in GPU 1 (sm_80)");
    let buffers = [0, 1].map(|i| filled(&gpus[i], &noise(1000, i as u32)));
    let regions = [0, 1].map(|i| gpus[i].region(&buffers[i]));
    let modules = [0, 1].map(|i| load(&gpus[i]).expect("loaded"));
    let fetched = [0, 1].map(|i| gpus[i].fetch(regions[i]).expect("fetched"));
    let recordings = [0, 1].map(|i| gpus[i].record(&mut || gpus[i].fill(regions[i], 1)).expect("recorded"));
    for (i, fetched) in fetched.into_iter().enumerate() {
        assert!(gpus[i].wait(fetched).expect("arrived") == noise(1000, i as u32));
        gpus[i].replay(&recordings[i]).expect("replayed");
    }
    assert_eq!([0, 1].map(|i| bytes_of(&gpus[i], regions[i])), [vec![1; 1000], vec![1; 1000]]);
    let [first, second] = gpus;
    drop((first, buffers, modules, recordings, second));
    stand_in.is_content();
}

#[test]
fn a_device_that_is_lost_says_so_from_then_on() {
    let Some(stand_in) = StandIn::take() else { return };
    let gpu = gpu();
    let (buffers, module) = (row_of_ones(&gpu), load(&gpu).expect("loaded"));
    let region = gpu.region(&buffers[0]);
    let recording = gpu.record(&mut || gpu.fill(region, 1)).expect("recorded");
    let fetched = gpu.fetch(region).expect("fetched");
    stand_in.set("lose_device", 0);
    assert!(gpu.wait(fetched).is_err());
    let calls: [(&str, Result<()>); 11] = [
        ("alloc", gpu.alloc(1, "a test").map(drop)),
        ("upload", gpu.upload(&[0; 128], region)),
        ("download", gpu.download(region, &mut [0; 128])),
        ("fetch", gpu.fetch(region).map(drop)),
        ("fill", gpu.fill(region, 0)),
        ("copy", gpu.copy(region, gpu.region(&buffers[1]))),
        ("launch", launch(&gpu, &module, &buffers, BLOCK)),
        ("replay", gpu.replay(&recording)),
        ("record", gpu.record(&mut || Ok(())).map(drop)),
        ("load", load(&gpu).map(drop)),
        ("free_bytes", gpu.free_bytes().map(drop)),
    ];
    for (name, call) in calls {
        let error = call.expect_err(name).to_string();
        let told = ["CUDA_ERROR_ILLEGAL_ADDRESS", "the run cannot go on; the last checkpoint is whole"];
        assert!(told.iter().all(|part| error.contains(part)), "{name}: {error}");
        assert!(error.starts_with("Stand-in GPU 0: "), "no launch made now is to blame: {name}: {error}");
    }
    drop((recording, module, buffers, gpu));
}

#[test]
fn a_kernel_that_goes_astray_loses_the_device() {
    let Some(stand_in) = StandIn::take() else { return };
    let gpu = gpu();
    let (buffers, module) = (row_of_ones(&gpu), load(&gpu).expect("loaded"));
    // More rows than there are: y, and then x, end before.
    gpu.upload(&9u32.to_le_bytes(), gpu.region(&buffers[2])).expect("uploaded");
    let [x, y, live] = [0, 1, 2].map(|i| gpu.region(&buffers[i]));
    let args = [Arg::Read(x), Arg::Write(y), Arg::Rows(LiveRows { live, first: 0, capacity: 9 })];
    let kernel = gelu::FAMILY.kernel("gelu_forward");
    gpu.launch(&module, &Launch { kernel, grid: [1, 1, 1], block: BLOCK, args: &args }).expect("launched");
    let error = gpu.download(y, &mut [0; 128]).expect_err("it went astray").to_string();
    assert!(error.contains("CUDA_ERROR_ILLEGAL_ADDRESS") && error.contains("checkpoint is whole"), "{error}");
    let why = stand_in.refusal();
    assert!(why.contains("gelu_forward: block (0, 0, 0)") && why.contains("past its end"), "{why}");
    drop((module, buffers, gpu));
}
