//! That the stand-in is strict: what the driver API's manual does not promise to work does not, and says why.

use std::ffi::{CString, c_void};
use std::fmt::Debug;

use cudarc::driver::sys::{self, CUresult};
use cudarc::driver::{DriverError, result};
use handbert::backend::cuda::compile::{Arch, Found, Store, file_name};
use handbert::backend::cuda::kernel::ModuleSpec;
use handbert::backend::cuda::ops::gelu;

use crate::stand_in::StandIn;

type Answer<T = ()> = Result<T, DriverError>;

/// A context that is current, and a stream in it.
struct Started<'a> {
    stand_in: &'a StandIn,
    device: sys::CUdevice,
    stream: sys::CUstream,
}

impl Started<'_> {
    fn new(stand_in: &StandIn) -> Started<'_> {
        result::init().expect("it starts");
        let device = result::device::get(0).expect("a device");
        // SAFETY: the device is there; the context is released by `end`.
        unsafe { result::ctx::set_current(result::primary_ctx::retain(device).expect("a context")) }.expect("current");
        let stream = result::stream::create(result::stream::StreamKind::NonBlocking).expect("a stream");
        Started { stand_in, device, stream }
    }

    /// Memory of so many bytes, all of them zero.
    fn memory(&self, bytes: usize) -> u64 {
        // SAFETY: the stream is alive, and what is filled was just allocated.
        unsafe {
            let address = result::malloc_async(self.stream, bytes).expect("memory");
            result::memset_d8_async(address, 0, bytes, self.stream).expect("filled");
            address
        }
    }

    fn free(&self, address: u64) -> Answer {
        // SAFETY: the stand-in looks up what it is given.
        unsafe { result::free_async(address, self.stream) }
    }

    fn synchronize(&self) -> Answer {
        // SAFETY: as above.
        unsafe { result::stream::synchronize(self.stream) }
    }

    fn refused<T: Debug>(&self, answer: Answer<T>, status: CUresult, why: &str) {
        refused(self.stand_in, answer, status, why);
    }

    /// Gives everything back but what a test has kept.
    fn end(self) {
        // SAFETY: both are alive, and given back once.
        unsafe {
            result::stream::destroy(self.stream).expect("destroyed");
            result::primary_ctx::release(self.device).expect("released");
        }
        assert_eq!(self.stand_in.alive(), 0);
    }
}

fn refused<T: Debug>(stand_in: &StandIn, answer: Answer<T>, status: CUresult, why: &str) {
    assert_eq!(answer.expect_err(why).0, status, "{why}");
    let refusal = stand_in.refusal();
    assert!(refusal.contains(why), "{refusal:?}, not {why:?}");
}

#[test]
fn calls_need_a_driver_that_was_started_and_a_context() {
    let Some(stand_in) = StandIn::take() else { return };
    refused(&stand_in, result::device::get(0), CUresult::CUDA_ERROR_NOT_INITIALIZED, "before cuInit");
    let started = Started::new(&stand_in);
    let elsewhere =
        |call: &(dyn Fn() -> Answer + Sync)| std::thread::scope(|scope| scope.spawn(call).join().expect("no panic"));
    let none = |call: &(dyn Fn() -> Answer + Sync)| {
        started.refused(elsewhere(call), CUresult::CUDA_ERROR_INVALID_CONTEXT, "without a current context");
    };
    none(&|| result::mem_get_info().map(drop));
    none(&|| result::event::create(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING).map(drop));
    // SAFETY: it is refused.
    none(&|| unsafe { result::malloc_host(64, 0) }.map(drop));
    // SAFETY: it is retained once, by `started`.
    unsafe { result::primary_ctx::retain(started.device) }.expect("retained");
    started.end_twice();
    refused(&stand_in, result::mem_get_info(), CUresult::CUDA_ERROR_CONTEXT_IS_DESTROYED, "released");
}

impl Started<'_> {
    /// The same for a context that was retained twice.
    fn end_twice(self) {
        // SAFETY: the context is retained twice.
        unsafe { result::primary_ctx::release(self.device) }.expect("released");
        self.end();
    }
}

#[test]
fn memory_is_used_within_its_bounds_and_its_life() {
    let Some(stand_in) = StandIn::take() else { return };
    let started = Started::new(&stand_in);
    let stream = started.stream;
    let (one, other) = (started.memory(256), started.memory(256));
    // SAFETY: the stand-in looks up the addresses that it is given.
    let fill = |address, bytes| unsafe { result::memset_d8_async(address, 1, bytes, stream) };
    // SAFETY: as above.
    let copy = |from, to, bytes| unsafe { result::memcpy_dtod_async(to, from, bytes, stream) };
    let invalid = |answer, why: &str| started.refused(answer, CUresult::CUDA_ERROR_INVALID_VALUE, why);
    // SAFETY: it is refused.
    invalid(unsafe { result::malloc_async(stream, 0) }.map(drop), "of no bytes");
    invalid(fill(one, 0), "of no bytes");
    invalid(fill(one, 257), "not within an allocation");
    invalid(fill(one - 1, 2), "not within an allocation");
    invalid(fill(one + 256, 1), "not within an allocation");
    invalid(fill(0x1000, 1), "not within an allocation");
    invalid(copy(one, other + 1, 256), "not within an allocation");
    invalid(copy(one, one + 255, 256), "not within an allocation");
    invalid(copy(one, one + 127, 128), "overlap");
    copy(one, one + 128, 128).expect("they do not overlap");
    started.free(one).expect("freed");
    // What is in the stream before still uses it; nothing may be put there now that does.
    invalid(fill(one, 1), "memory that was freed");
    invalid(copy(one, other, 1), "memory that was freed");
    invalid(started.free(one), "freed before");
    started.synchronize().expect("done");
    invalid(started.free(one), "not an allocation");
    invalid(started.free(other + 16), "not an allocation");
    started.free(other).expect("freed");
    started.end();
}

#[test]
fn what_nobody_wrote_is_not_copied() {
    let Some(stand_in) = StandIn::take() else { return };
    let started = Started::new(&stand_in);
    // SAFETY: the copy goes to live memory of as many bytes, and is waited for.
    unsafe {
        let address = result::malloc_async(started.stream, 64).expect("memory");
        let copied = result::memcpy_dtoh_async(&mut [0u8; 64], address, started.stream);
        started.refused(copied, CUresult::CUDA_ERROR_ILLEGAL_ADDRESS, "byte 0 of 64 was never written");
    }
    // And it stays so.
    started.refused(started.synchronize(), CUresult::CUDA_ERROR_ILLEGAL_ADDRESS, "never written");
}

/// Page-locked memory of 64 bytes.
fn locked<'a>() -> (*mut c_void, &'a mut [u8]) {
    // SAFETY: each test lets go of the slice before it frees the memory.
    unsafe {
        let memory = result::malloc_host(64, 0).expect("memory");
        (memory, std::slice::from_raw_parts_mut(memory.cast(), 64))
    }
}

#[test]
fn page_locked_memory_is_left_alone_while_copies_are_under_way() {
    let Some(stand_in) = StandIn::take() else { return };
    let started = Started::new(&stand_in);
    let (address, (memory, bytes)) = (started.memory(64), locked());
    let invalid = |answer, why: &str| started.refused(answer, CUresult::CUDA_ERROR_INVALID_VALUE, why);
    // SAFETY: the memory is alive; what is refused is not done.
    unsafe {
        invalid(result::malloc_host(0, 0).map(drop), "of no bytes");
        invalid(result::free_host(memory.byte_add(1)), "not page-locked");
        bytes.fill(3);
        result::memcpy_dtoh_async(bytes, address, started.stream).expect("under way");
        invalid(result::free_host(memory), "under way");
    }
    assert!(bytes.iter().all(|&byte| byte == 0xDB), "who looks too early sees nothing of it");
    started.synchronize().expect("done");
    assert_eq!(bytes, [0; 64]);
    // SAFETY: as above; the slice is of as many bytes, beyond the memory's end by one.
    unsafe {
        let beyond = std::slice::from_raw_parts(memory.byte_add(1).cast::<u8>(), 64);
        invalid(result::memcpy_htod_async(address, beyond, started.stream), "beyond page-locked memory");
        result::free_host(memory).expect("freed");
        invalid(result::free_host(memory), "not page-locked");
    }
    started.free(address).expect("freed");
    started.end();
}

#[test]
fn page_locked_memory_that_is_written_too_early_is_found() {
    for to_host in [true, false] {
        let Some(stand_in) = StandIn::take() else { return };
        let started = Started::new(&stand_in);
        let (address, (_, bytes)) = (started.memory(64), locked());
        bytes.fill(1);
        // SAFETY: both are alive and of 64 bytes.
        unsafe {
            match to_host {
                true => result::memcpy_dtoh_async(bytes, address, started.stream),
                false => result::memcpy_htod_async(address, bytes, started.stream),
            }
        }
        .expect("under way");
        bytes[63] = 2;
        let why = "page-locked memory was written while a copy";
        started.refused(started.synchronize(), CUresult::CUDA_ERROR_LAUNCH_FAILED, why);
    }
}

#[test]
fn handles_are_of_things_in_use() {
    let Some(stand_in) = StandIn::take() else { return };
    let started = Started::new(&stand_in);
    let event = result::event::create(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING).expect("an event");
    let other = result::stream::create(result::stream::StreamKind::NonBlocking).expect("a stream");
    let wrong = |answer| started.refused(answer, CUresult::CUDA_ERROR_INVALID_HANDLE, "not in use");
    // SAFETY: the stand-in looks up what it is given, and uses it if it is in use and of the right kind.
    unsafe {
        wrong(result::stream::synchronize(event.cast()));
        wrong(result::event::record(other.cast(), started.stream));
        result::stream::destroy(other).expect("destroyed");
        wrong(result::stream::destroy(other));
        wrong(result::event::record(event, other));
        let of_other = result::malloc_async(started.stream, 4).expect("memory");
        wrong(result::free_async(of_other, other));
        result::free_async(of_other, started.stream).expect("freed");
        result::event::destroy(event).expect("destroyed");
        wrong(result::event::destroy(event));
        wrong(result::event::query(event));
        let default = result::stream::synchronize(result::stream::null());
        started.refused(default, CUresult::CUDA_ERROR_INVALID_HANDLE, "the default stream");
    }
    started.end();
}

#[test]
fn streams_do_not_share_memory() {
    let Some(stand_in) = StandIn::take() else { return };
    let started = Started::new(&stand_in);
    let address = started.memory(64);
    let other = result::stream::create(result::stream::StreamKind::NonBlocking).expect("a stream");
    let invalid = |answer, why: &str| started.refused(answer, CUresult::CUDA_ERROR_INVALID_VALUE, why);
    // SAFETY: the streams and the memory are alive.
    unsafe {
        invalid(result::memset_d8_async(address, 1, 64, other), "memory of another stream");
        invalid(result::free_async(address, other), "memory of another stream");
        result::stream::destroy(other).expect("destroyed");
    }
    started.free(address).expect("freed");
    started.end();
}

/// gelu_backward, loaded: it wants 8 KiB of shared memory.
fn load(stand_in: &StandIn) -> (sys::CUmodule, sys::CUfunction) {
    let name = file_name(&ModuleSpec::new(&gelu::FAMILY, &[64]), Arch::Sm80);
    let Found::Whole(compiled) = Store::new(&stand_in.place().kernels).get(&name) else { panic!("{name}") };
    // SAFETY: the image is whole.
    unsafe {
        let module = result::module::load_data(compiled.cubin.as_ptr().cast()).expect("loaded");
        let name = CString::new("gelu_backward").expect("a name");
        (module, result::module::get_function(module, name).expect("a function"))
    }
}

#[test]
fn launches_keep_to_the_limits_and_modules_stay_until_they_are_done() {
    let Some(stand_in) = StandIn::take() else { return };
    let started = Started::new(&stand_in);
    let (module, function) = load(&stand_in);
    let address = started.memory(64);
    let (null, rows) = (0u64, [address, 1 << 32]);
    let mut params: [*mut c_void; 4] =
        [&null, &null, &null, &rows[0]].map(|arg| std::ptr::from_ref(arg).cast_mut().cast());
    // SAFETY: four parameters, as many as the kernel has; of no live rows, it uses no other memory. What is refused is not
    // done.
    let mut launch = |grid, block, shared| unsafe {
        result::launch_kernel(function, grid, block, shared, started.stream, &mut params)
    };
    let invalid = |answer, why: &str| started.refused(answer, CUresult::CUDA_ERROR_INVALID_VALUE, why);
    invalid(launch((0, 1, 1), (256, 1, 1), 0), "the grid");
    invalid(launch((1, 65536, 1), (256, 1, 1), 0), "the grid");
    invalid(launch((1, 1, 1), (0, 1, 1), 0), "the block");
    invalid(launch((1, 1, 1), (1024, 2, 1), 0), "the block");
    invalid(launch((1, 1, 1), (256, 1, 1), (48 << 10) + 1), "more shared memory than was asked for");
    let bounds = launch((1, 1, 1), (512, 1, 1), 0);
    started.refused(bounds, CUresult::CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES, "launch bounds");
    let shared = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
    // SAFETY: the function is alive.
    let ask = |bytes| unsafe { result::function::set_function_attribute(function, shared, bytes) };
    invalid(ask((163 << 10) + 1), "more shared memory than a block may have");
    ask(64 << 10).expect("so much it may have");
    launch((1, 1, 1), (256, 1, 1), 64 << 10).expect("launched");
    // SAFETY: it is refused while the kernel is still to run, then done.
    let unload = || unsafe { result::module::unload(module) };
    started.refused(unload(), CUresult::CUDA_ERROR_ILLEGAL_STATE, "still to run");
    started.synchronize().expect("done");
    unload().expect("unloaded");
    started.refused(unload(), CUresult::CUDA_ERROR_INVALID_HANDLE, "not in use");
    started.refused(launch((1, 1, 1), (256, 1, 1), 0), CUresult::CUDA_ERROR_INVALID_HANDLE, "not in use");
    started.free(address).expect("freed");
    started.end();
}

impl Started<'_> {
    fn begin(&self) {
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream is alive.
        unsafe { result::stream::begin_capture(self.stream, mode) }.expect("begun");
    }

    fn end_capture(&self) -> Answer<sys::CUgraph> {
        // SAFETY: the stream is alive.
        unsafe { result::stream::end_capture(self.stream) }
    }
}

#[test]
fn a_capture_is_invalidated_by_what_it_cannot_hold() {
    let Some(stand_in) = StandIn::take() else { return };
    let started = Started::new(&stand_in);
    let (address, (memory, bytes)) = (started.memory(64), locked());
    let event = result::event::create(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING).expect("an event");
    let stream = started.stream;
    // SAFETY: everything is alive, and refused.
    let calls: [&dyn Fn() -> Answer; 7] = unsafe {
        [
            &|| result::stream::synchronize(stream),
            &|| result::event::query(event),
            &|| result::event::synchronize(event),
            &|| result::malloc_async(stream, 64).map(drop),
            &|| result::free_async(address, stream),
            &|| result::memcpy_htod_async(address, bytes, stream),
            &|| result::mem_get_info().map(drop),
        ]
    };
    for call in calls {
        started.begin();
        started.refused(call(), CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "while a stream is captured");
        // SAFETY: the memory is alive.
        let after = unsafe { result::memset_d8_async(address, 1, 64, stream) };
        started.refused(after, CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, "worth nothing any more");
        started.refused(started.end_capture(), CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, "worth nothing");
    }
    started.refused(started.end_capture(), CUresult::CUDA_ERROR_ILLEGAL_STATE, "not captured");
    // SAFETY: all of them are alive and given back once.
    unsafe {
        result::event::destroy(event).expect("destroyed");
        started.synchronize().expect("done");
        result::free_host(memory).expect("freed");
    }
    started.free(address).expect("freed");
    started.end();
}

#[test]
fn an_event_of_a_capture_tells_nothing_and_a_capture_ends_where_it_began() {
    let Some(stand_in) = StandIn::take() else { return };
    let started = Started::new(&stand_in);
    let event = result::event::create(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING).expect("an event");
    started.begin();
    // SAFETY: the event and the stream are alive.
    unsafe { result::event::record(event, started.stream) }.expect("recorded");
    let stream = started.stream as usize;
    // SAFETY: it is refused.
    let elsewhere = || unsafe { result::stream::end_capture(stream as sys::CUstream) }.map(drop);
    let answer = std::thread::scope(|scope| scope.spawn(elsewhere).join().expect("no panic"));
    started.refused(answer, CUresult::CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD, "another thread");
    let graph = started.end_capture().expect("an empty graph");
    // SAFETY: all of them are alive and given back once.
    unsafe {
        started.refused(result::event::query(event), CUresult::CUDA_ERROR_CAPTURED_EVENT, "recorded in a capture");
        result::graph::destroy(graph).expect("destroyed");
        result::event::destroy(event).expect("destroyed");
    }
    started.end();
}

#[test]
fn a_graph_is_not_launched_when_its_memory_is_gone() {
    let Some(stand_in) = StandIn::take() else { return };
    let started = Started::new(&stand_in);
    let address = started.memory(64);
    started.begin();
    // SAFETY: everything is alive when it is used, but for what is refused.
    unsafe {
        result::memset_d8_async(address, 1, 64, started.stream).expect("captured");
        let graph = started.end_capture().expect("a graph");
        let executable = result::graph::instantiate(graph, sys::CUgraphInstantiate_flags(0)).expect("instantiated");
        result::graph::destroy(graph).expect("destroyed");
        let gone = result::graph::instantiate(graph, sys::CUgraphInstantiate_flags(0)).map(drop);
        started.refused(gone, CUresult::CUDA_ERROR_INVALID_HANDLE, "not in use");
        result::graph::launch(executable, started.stream).expect("launched");
        started.free(address).expect("freed behind it");
        let launched = result::graph::launch(executable, started.stream);
        started.refused(launched, CUresult::CUDA_ERROR_INVALID_VALUE, "memory that was freed");
        result::graph::exec_destroy(executable).expect("destroyed, though it is still to run");
        let gone = result::graph::exec_destroy(executable);
        started.refused(gone, CUresult::CUDA_ERROR_INVALID_HANDLE, "not in use");
    }
    started.end();
}
