//! Graphs of what a stream is given, which cust has no way to.

use sample_attention::cuda::Stream;
use sample_attention::cuda::cust::sys;

/// A captured graph, ready to be launched.
pub struct Graph {
    executable: sys::CUgraphExec,
    graph: sys::CUgraph,
}

fn assert_ok(call: &str, code: sys::CUresult) {
    assert_eq!(code, sys::CUresult::CUDA_SUCCESS, "{call}");
}

impl Graph {
    /// Captures what `enqueue` puts into the stream, which runs none of it. Whatever allocates, waits or copies on the way
    /// makes it fail.
    pub fn capture(stream: &Stream<'_>, enqueue: impl FnOnce()) -> Self {
        let raw = stream.as_raw().cast();
        let mut context = std::ptr::null_mut();
        // SAFETY: the stream is alive; the pointer is to live memory.
        assert_ok("context", unsafe {
            sys::cuStreamGetCtx(raw, &raw mut context)
        });
        // Graphs are made in the thread's current context. The library leaves that as it was.
        // SAFETY: the context lives as long as the device.
        assert_ok("current", unsafe { sys::cuCtxSetCurrent(context) });
        // The global mode would fail on what tests on other threads do meanwhile.
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream is alive, and nobody else captures it.
        assert_ok("begin", unsafe { sys::cuStreamBeginCapture_v2(raw, mode) });
        enqueue();
        let mut graph = std::ptr::null_mut();
        // SAFETY: the capture was begun above; the pointer is to live memory.
        assert_ok("end", unsafe {
            sys::cuStreamEndCapture(raw, &raw mut graph)
        });
        let mut executable = std::ptr::null_mut();
        // SAFETY: the graph was just made; no log is wanted.
        assert_ok("instantiate", unsafe {
            sys::cuGraphInstantiate_v2(
                &raw mut executable,
                graph,
                std::ptr::null_mut(),
                std::ptr::null_mut(),
                0,
            )
        });
        Graph { executable, graph }
    }

    /// How many launches it holds.
    pub fn nodes(&self) -> usize {
        let mut nodes = 0;
        // SAFETY: the graph is alive; a null list asks for the number alone.
        assert_ok("nodes", unsafe {
            sys::cuGraphGetNodes(self.graph, std::ptr::null_mut(), &raw mut nodes)
        });
        nodes
    }

    /// Runs all of it, and waits.
    pub fn replay(&self, stream: &Stream<'_>) {
        // SAFETY: the graph is alive, and whoever captured it keeps its memory.
        assert_ok("launch", unsafe {
            sys::cuGraphLaunch(self.executable, stream.as_raw().cast())
        });
        stream.synchronize().unwrap();
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: both are this value's, and every replay has ended.
        unsafe {
            sys::cuGraphExecDestroy(self.executable);
            sys::cuGraphDestroy(self.graph);
        }
    }
}
