//! Each mistake that the emulator promises to find, in a kernel small enough to see it.

use sample_attention_device::gpu::emu::{Fault, FaultKind, Gpu, Kernel, Launch, Mode};
use sample_attention_device::gpu::{self, FULL_MASK, Global, KMajor, Shared, TensorMap, Walk};

mod asynchronous;
mod barriers;
mod launches;
mod livelock;
mod mbarriers;
mod memory;
mod races;
mod warps;
mod wgmma;

const CHECKED: Mode = Mode::Checked { seed: 7 };
const SHARED_BYTES: u32 = 32 * 1024;

/// `x` is the buffer "x" of four zero words, `y` the buffer "y" of 64 words that nobody wrote.
#[derive(Clone, Copy)]
struct Params {
    x: Global<u32>,
    y: Global<u32>,
}

fn run(threads: u32, mode: Mode, kernel: fn(&Params)) -> (Result<(), Fault>, Vec<u32>) {
    let mut device = Gpu::new();
    let x = device.upload("x", &[0u32; 4]);
    let y = device.alloc::<u32>("y", 64);
    let params = Params {
        x: x.address(),
        y: y.address(),
    };
    let shape = Launch::new([1, 1, 1], [threads, 1, 1])
        .shared_bytes(SHARED_BYTES)
        .mode(mode);
    let result = device.launch(Kernel::new("faulty", kernel), &shape, &params);
    (result, device.read(&y))
}

/// The fault of the kernel; its text has all of `words`.
#[track_caller]
fn assert_fault(
    threads: u32,
    mode: Mode,
    kind: FaultKind,
    words: &[&str],
    kernel: fn(&Params),
) -> String {
    let fault = run(threads, mode, kernel).0.expect_err("a fault");
    let text = fault.to_string();
    assert_eq!(fault.kind(), kind, "{text}");
    for word in words {
        assert!(text.contains(word), "{word:?} is missing in:\n{text}");
    }
    text
}

fn shared<T>(byte: u32) -> Shared<T> {
    gpu::dynamic_shared().byte_add(byte).cast()
}
