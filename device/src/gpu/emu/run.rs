//! Running a launch: its CTAs, each to its end.

use rayon::prelude::*;

use super::launch::{Gpu, Launch};
use super::scheduler::{self, Grid};
use super::state::rng::Rng;
use super::state::{Fault, FaultKind, Mode};
use crate::gpu::Kernel;

/// Shared memory that a CTA can have on sm_90.
const MAX_SHARED_BYTES: u32 = 227 * 1024;

impl Gpu {
    /// Runs the kernel to its end.
    ///
    /// # Errors
    /// The first [`Fault`] that a thread ran into. The device stays usable; buffers keep what was
    /// written until then.
    pub fn launch<P: Sync>(
        &mut self,
        kernel: Kernel<P>,
        launch: &Launch,
        params: &P,
    ) -> Result<(), Fault> {
        let malformed = |message: String| Fault {
            kind: FaultKind::Launch,
            message,
            kernel: kernel.name(),
            cta: None,
            thread: None,
            at: None,
            mode: launch.mode,
        };
        let threads: u64 = launch.block.iter().map(|&n| u64::from(n)).product();
        if !(1..=1024).contains(&threads) {
            return Err(malformed(format!(
                "a CTA of {:?} has {threads} threads; it may have 1 to 1024",
                launch.block
            )));
        }
        if launch.grid.contains(&0) || launch.grid[1] > 65535 || launch.grid[2] > 65535 {
            return Err(malformed(format!(
                "a grid of {:?} CTAs: each dimension is at least 1, the second and third at most 65535",
                launch.grid
            )));
        }
        if launch.shared_bytes > MAX_SHARED_BYTES {
            return Err(malformed(format!(
                "{} bytes of shared memory; a CTA may have {MAX_SHARED_BYTES}",
                launch.shared_bytes
            )));
        }
        let body = |params: *const ()| {
            // SAFETY: the pointer is `params` below, which outlives the launch.
            (kernel.body())(unsafe { &*params.cast::<P>() });
        };
        let grid = Grid {
            kernel: kernel.name(),
            body: &body,
            params: std::ptr::from_ref(params).cast(),
            memory: &self.memory,
            nctaid: launch.grid,
            ntid: launch.block,
            shared_bytes: launch.shared_bytes,
            mode: launch.mode,
        };
        let ctas: u64 = launch.grid.iter().map(|&n| u64::from(n)).product();
        let ctaid = |linear: u64| {
            let [x, y, _] = launch.grid.map(u64::from);
            [linear % x, linear / x % y, linear / (x * y)].map(|n| n as u32)
        };
        match launch.mode {
            Mode::Fast => (0..ctas)
                .into_par_iter()
                .try_for_each(|linear| scheduler::run(&grid, ctaid(linear))),
            Mode::Checked { seed } => {
                let mut rng = Rng::new(seed);
                let mut order: Vec<u64> = (0..ctas).collect();
                for last in (1..order.len()).rev() {
                    order.swap(last, rng.below(last + 1));
                }
                order
                    .into_iter()
                    .try_for_each(|linear| scheduler::run(&grid, ctaid(linear)))
            }
        }
    }
}
