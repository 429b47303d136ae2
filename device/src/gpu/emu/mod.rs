//! An emulator of the hardware that kernels run on: the same source, on any CPU.
//!
//! The threads of a CTA are stackful coroutines that switch where the hardware would wait: at
//! barriers, warp-collective instructions, `mbarrier` waits. The last lane to arrive at a
//! collective executes it for all. CTAs run in parallel with rayon.
//!
//! ```
//! use sample_attention_device::gpu::{self, Global, emu};
//!
//! #[repr(C)]
//! struct Params { x: Global<f32>, len: u32 }
//!
//! fn double(p: &Params) {
//!     let i = gpu::ctaid_x() * gpu::ntid_x() + gpu::tid_x();
//!     if i < p.len {
//!         let x = p.x.add(i.into());
//!         gpu::st_global(x, 2.0 * gpu::ld_global(x));
//!     }
//! }
//!
//! let mut device = emu::Gpu::new();
//! let x = device.upload("x", &[1.0f32, 2.0, 3.0]);
//! let kernel = emu::Kernel::new("double", double);
//! let shape = emu::Launch::new([1, 1, 1], [32, 1, 1]);
//! device.launch(kernel, &shape, &Params { x: x.address(), len: 3 })?;
//! assert_eq!(device.read(&x), [2.0, 4.0, 6.0]);
//! # Ok::<(), emu::Fault>(())
//! ```
//!
//! It is compiled with the feature `emulator` alone, and so are `corosensei`, `half` and `rayon`. Without it a host has the kernels'
//! names ([`Kernel`]) and shapes of launches, and intrinsics have no body.
//!
//! # What it finds
//! Each of these ends the launch with a [`Fault`] whose text names the thread, the source line and
//! the seed:
//! * accesses out of bounds or misaligned, in global and shared memory; every global buffer lies
//!   terabytes from its neighbours, so no overrun can reach another;
//! * deadlock: which threads wait where, for which barrier, and which are missing;
//! * livelock: a CTA whose threads run or poll without end, with the place of each. The emulator counts its calls between two
//!   steps of progress (a thread exits; a line of global memory is written for the first time) and allows 2^24 of them, and 64
//!   more for each byte of global memory: some 60 times what any kernel of this crate takes in its tests;
//! * divergence: lanes of a warp at different `.aligned` instructions, or at different
//!   instructions for one `.sync` mask, and exited lanes that a collective needs;
//! * barriers whose participants disagree on the thread count, or arrive twice;
//! * `mbarrier` misuse: not initialised, too many arrivals, a phase that ran past a waiter so that
//!   its parity bit is ambiguous, transaction bytes that do not add up;
//! * malformed bulk copies, tensor maps and `wgmma` descriptors; asynchronous work never waited for;
//! * in [`Mode::Checked`], data races in shared memory, by happens-before: between threads, with
//!   asynchronous copies still in flight, and across a missing `fence.proxy.async`.
//!
//! Others show in the data: uninitialised memory reads as all ones, which is a NaN in every
//! float format; so does the target of a copy that was not waited for, and a `wgmma` accumulator in
//! flight.
//!
//! # Two speeds
//! [`Mode::Fast`] runs threads in their natural order and detects no races. [`Mode::Checked`] adds
//! race detection and a seeded order of threads and CTAs, and runs CTAs one after another, so
//! that a seed replays exactly. Both give the same results for a correct kernel (sums by atomics on
//! floats aside).
//!
//! # Speed
//! A switch of threads costs tens of nanoseconds, and every collective costs one for each lane; an
//! `mma` with the `ldmatrix` that feeds it takes some 6 µs in fast mode, optimised, on a slow server
//! core, and four to seven times that in checked mode. Use an optimised build for more than a few
//! tiles.
//!
//! # Limits
//! It finds these classes of bug; a passing run does not prove a kernel correct on hardware:
//! * A loop of nothing but arithmetic (`fma`, `ex2`, conversions) is not counted: an endless one hangs the launch.
//! * A thread runs alone until it waits. Races on *global* memory are not detected, and only the
//!   orders that the seeds try are seen.
//! * A CTA runs to its end before the next begins on the same CPU: a CTA that spins for a later
//!   one is diagnosed as spinning, though a GPU may run both. A persistent kernel's first CTA may
//!   take all the work.
//! * A call site is a source line and column, of the caller where helpers are `#[track_caller]`: an
//!   `.aligned` instruction that both sides of a divergent branch reach through another helper is
//!   not seen as divergence, nor is one in different iterations of a loop.
//! * Relaxed atomics on shared memory do not order other accesses, and only the last one on a byte
//!   is remembered. `fence.acq_rel.cta` and flags in shared memory are not understood: hand data
//!   over by barriers or mbarriers.
//! * `mma` and `wgmma` add their products in `f32`, in ascending k. Hardware keeps other
//!   intermediate bits; `ex2.approx` and its kin are here rounded to `f32`, or nearly so.
//! * Asynchronous copies read their source when they land, not before.
//! * Writes to the registers of a `wgmma` in flight, a missing `wgmma.fence` or
//!   `fence.mbarrier_init`, and the compiler's own mistakes are invisible. Accumulators in flight are
//!   NaNs with a payload; a kernel that computes with them may carry the payload on.
//! * Clusters are of one CTA. There are no caches, no bank conflicts, no clock. Only dynamic
//!   shared memory is there, and `setmaxnreg` is checked but without effect.
//!
//! Some rules are stricter than the hardware's, because what they forbid is nearly always a
//! mistake: exited lanes may not be named in a mask, exited warps do not count as arrived at a
//! barrier, a thread may not wait twice for one phase of an mbarrier, two lanes may not store to
//! one place even if they store the same, and no asynchronous work may be left when a thread exits.

pub(super) mod barrier;
pub(super) mod bulk;
mod collective;
pub(super) mod cp_async;
mod deadlock;
mod descriptor;
mod launch;
pub(super) mod math;
pub(super) mod matrix;
pub(super) mod mbarrier;
pub(super) mod memory;
mod order;
mod phase;
mod run;
mod scheduler;
mod state;
mod tensor;
pub(super) mod thread;
pub(super) mod trap;
pub(super) mod warp;
pub(super) mod wgmma;

pub use crate::gpu::Kernel;
pub use launch::{Buffer, Gpu, Launch};
pub use state::{Fault, FaultKind, Mode};
pub use tensor::tensor_map;
