//! The GPUs of this machine, and how to run on them.

pub mod graph;
pub mod run;
pub mod spread;

use std::io::Write;
use std::sync::OnceLock;

use sample_attention::Error;
use sample_attention::cuda::Device;
use sample_attention::pipeline::Target;

/// GPU 0 with the kernels that it gets by default; `None`, having said why, where there is none.
pub fn device() -> Option<&'static Device> {
    static DEVICE: OnceLock<Result<Device, Error>> = OnceLock::new();
    opened(&DEVICE, || Device::new(0))
}

/// GPU 0 with the portable kernels.
pub fn portable() -> Option<&'static Device> {
    static DEVICE: OnceLock<Result<Device, Error>> = OnceLock::new();
    opened(&DEVICE, || Device::with_target(0, Target::Sm80))
}

/// GPU 0 with each of the texts that run on it.
pub fn every_target() -> Vec<&'static Device> {
    let Some(device) = device() else {
        return Vec::new();
    };
    let others = (device.target() != Target::Sm80).then(portable);
    [device].into_iter().chain(others.flatten()).collect()
}

/// The device, opened once; `None` where there is no GPU at all.
///
/// # Panics
/// When there is one, but it cannot be used: that is no reason to skip.
fn opened(
    device: &'static OnceLock<Result<Device, Error>>,
    open: impl FnOnce() -> Result<Device, Error>,
) -> Option<&'static Device> {
    match device.get_or_init(open) {
        Ok(device) => Some(device),
        Err(error) => match Device::count() {
            Ok(1..) => panic!("{error}"),
            _ => {
                skip(error);
                None
            }
        },
    }
}

/// Says that a test does nothing, where libtest does not swallow it.
pub fn skip(reason: impl std::fmt::Display) {
    say(format_args!("\n*** SKIPPED {}: {reason} ***\n", test()));
}

/// Says what a test does, in the same place: a run takes minutes.
pub fn tell(what: impl std::fmt::Display) {
    say(format_args!("{}: {what}", test()));
}

/// libtest names threads after the tests that they run.
fn test() -> String {
    std::thread::current().name().unwrap_or("a test").to_owned()
}

fn say(line: impl std::fmt::Display) {
    let _ = writeln!(std::io::stderr(), "{line}");
}
