//! Launches recorded once as a CUDA graph and made again with one call.

use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::{CudaStream, DriverError, result, sys};

/// An instantiated graph; destroyed when dropped.
#[derive(Debug)]
pub struct Recording {
    /// Graphs are not synchronised by the driver: one thread at a time.
    graph: Mutex<Executable>,
}

#[derive(Debug)]
struct Executable {
    raw: sys::CUgraphExec,
    /// Keeps the context that it is of.
    _stream: Arc<CudaStream>,
}

// SAFETY: a handle that any thread may use, one at a time; the mutex around it sees to that.
unsafe impl Send for Executable {}

impl Drop for Executable {
    fn drop(&mut self) {
        // SAFETY: it was instantiated and is destroyed once. The driver waits for a launch of it that still runs.
        let _ = unsafe { result::graph::exec_destroy(self.raw) };
    }
}

/// A stream that records. Ended when dropped, since a stream left recording is of no more use.
#[derive(Debug)]
pub struct Capture<'a> {
    stream: &'a Arc<CudaStream>,
    open: bool,
}

impl<'a> Capture<'a> {
    /// What is launched on the stream from here on is recorded, not run. Other threads may call the driver meanwhile.
    pub fn begin(stream: &'a Arc<CudaStream>) -> Result<Self, DriverError> {
        stream.begin_capture(sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)?;
        Ok(Capture { stream, open: true })
    }

    /// What was recorded.
    pub fn end(mut self) -> Result<Recording, DriverError> {
        self.open = false;
        // SAFETY: the stream is alive and recording, since `begin`.
        let graph = unsafe { result::stream::end_capture(self.stream.cu_stream()) }?;
        // SAFETY: the graph was made just now; the executable does not need it, so it is destroyed in any case.
        let executable = unsafe {
            let executable = result::graph::instantiate(graph, sys::CUgraphInstantiate_flags(0));
            result::graph::destroy(graph)?;
            executable?
        };
        let graph = Executable { raw: executable, _stream: self.stream.clone() };
        Ok(Recording { graph: Mutex::new(graph) })
    }
}

impl Drop for Capture<'_> {
    fn drop(&mut self) {
        if !self.open {
            return;
        }
        // SAFETY: the stream is alive and recording. What it had recorded is thrown away.
        unsafe {
            if let Ok(graph) = result::stream::end_capture(self.stream.cu_stream()) {
                let _ = result::graph::destroy(graph);
            }
        }
    }
}

impl Recording {
    /// Starts everything that was recorded.
    pub fn launch(&self, stream: &CudaStream) -> Result<(), DriverError> {
        let graph = self.graph.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: the executable is alive. Whoever recorded it keeps alive what it works on (see Device::Recording).
        unsafe { result::graph::launch(graph.raw, stream.cu_stream()) }
    }
}
