//! Host memory that the GPU copies from and to by itself, so that no copy waits for the host or the host for it.

use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::{CudaContext, CudaEvent, CudaStream, DriverError, result};

use crate::backend::cuda::device::Region;

/// Copies of more bytes go straight from pageable memory: weights, once.
const MOST_PINNED: usize = 8 << 20;

/// Smallest buffer that is worth keeping.
const SMALLEST: usize = 4 << 10;

/// Page-locked memory, and the event after which nobody copies from or to it.
#[derive(Debug)]
struct Buffer {
    memory: *mut u8,
    bytes: usize,
    free: CudaEvent,
}

// SAFETY: plain memory that any thread may use, and a handle that the driver allows any thread to use.
unsafe impl Send for Buffer {}

impl Buffer {
    fn new(context: &Arc<CudaContext>, bytes: usize) -> Result<Buffer, DriverError> {
        let free = context.new_event(None)?;
        // SAFETY: the context is bound to this thread; the memory is owned by the buffer and freed once.
        let memory = unsafe { result::malloc_host(bytes, 0) }?.cast();
        Ok(Buffer { memory, bytes, free })
    }

    fn holds(&mut self, bytes: &[u8]) {
        assert!(bytes.len() <= self.bytes, "{} bytes into a buffer of {}", bytes.len(), self.bytes);
        // SAFETY: there is room for them; the buffer is ours alone, and no copy is under way once `free` has passed, as
        // whoever took it from the pool has seen.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.memory, bytes.len()) };
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // A copy may still be under way: it is waited for. Failures mean that the context is lost, and the copy with it.
        let _ = self.free.synchronize();
        // SAFETY: it came from malloc_host and is freed once.
        let _ = unsafe { result::free_host(self.memory.cast()) };
    }
}

/// Buffers to copy through, used again and again.
#[derive(Debug)]
pub struct Pool {
    context: Arc<CudaContext>,
    buffers: Mutex<Vec<Buffer>>,
}

/// Bytes on their way to the host.
#[derive(Debug)]
pub struct Fetch {
    buffer: Buffer,
    bytes: usize,
}

impl Fetch {
    /// Whether they have arrived.
    pub fn is_ready(&self) -> Result<bool, DriverError> {
        self.buffer.free.try_is_complete()
    }
}

impl Pool {
    /// Without buffers as yet.
    pub fn new(context: &Arc<CudaContext>) -> Pool {
        Pool { context: context.clone(), buffers: Mutex::default() }
    }

    /// A buffer for so many bytes that no copy uses any more.
    fn take(&self, bytes: usize) -> Result<Buffer, DriverError> {
        {
            // A poisoned lock: whoever panicked held no buffer of the list.
            let mut buffers = self.buffers.lock().unwrap_or_else(PoisonError::into_inner);
            for i in 0..buffers.len() {
                if buffers[i].bytes >= bytes && buffers[i].free.try_is_complete()? {
                    return Ok(buffers.swap_remove(i));
                }
            }
        }
        Buffer::new(&self.context, bytes.next_power_of_two().max(SMALLEST))
    }

    fn give_back(&self, buffer: Buffer) {
        self.buffers.lock().unwrap_or_else(PoisonError::into_inner).push(buffer);
    }

    /// Host to device, in the stream's order, without waiting for it.
    pub fn upload(&self, stream: &CudaStream, from: &[u8], to: Region) -> Result<(), DriverError> {
        if from.len() > MOST_PINNED {
            // SAFETY: `to` lies within an allocation (see Region) and has as many bytes. `from` is pageable: the driver has
            // copied it to memory of its own when the call returns ("API synchronization behavior").
            return unsafe { result::memcpy_htod_async(to.address(), from, stream.cu_stream()) };
        }
        let mut buffer = self.take(from.len())?;
        buffer.holds(from);
        // SAFETY: `to` lies within an allocation and has as many bytes, the buffer at least as many. It is not written again
        // before the event recorded behind the copy has passed.
        unsafe {
            let bytes = std::slice::from_raw_parts(buffer.memory, from.len());
            result::memcpy_htod_async(to.address(), bytes, stream.cu_stream())?;
        }
        buffer.free.record(stream)?;
        self.give_back(buffer);
        Ok(())
    }

    /// Device to host, in the stream's order, without waiting for it.
    pub fn fetch(&self, stream: &CudaStream, from: Region) -> Result<Fetch, DriverError> {
        let buffer = self.take(from.bytes())?;
        if from.bytes() == 0 {
            // The event recorded last has passed: nothing has arrived already.
            return Ok(Fetch { buffer, bytes: 0 });
        }
        // SAFETY: `from` lies within an allocation, the buffer has at least as many bytes, and nobody looks at them before
        // the event recorded behind the copy has passed.
        unsafe {
            let bytes = std::slice::from_raw_parts_mut(buffer.memory, from.bytes());
            result::memcpy_dtoh_async(bytes, from.address(), stream.cu_stream())?;
        }
        buffer.free.record(stream)?;
        Ok(Fetch { buffer, bytes: from.bytes() })
    }

    /// Waits for fetched bytes.
    pub fn wait(&self, fetch: Fetch) -> Result<Vec<u8>, DriverError> {
        fetch.buffer.free.synchronize()?;
        // SAFETY: the copy that wrote so many bytes there is done.
        let bytes = unsafe { std::slice::from_raw_parts(fetch.buffer.memory, fetch.bytes) }.to_vec();
        self.give_back(fetch.buffer);
        Ok(bytes)
    }
}
