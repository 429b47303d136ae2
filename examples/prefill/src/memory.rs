//! Whether a run fits this machine: asked before it starts, since Linux promises memory that it does not have.

use crate::failure::Failure;

/// Refuses a run that needs more memory than there is.
pub fn check(needed_bytes: u128) -> Result<(), Failure> {
    match available_bytes() {
        Some(available) if needed_bytes > u128::from(available) => Err(Failure::new(format_args!(
            "this run needs about {}, but only {} of memory are available; use a shorter sequence or fewer heads",
            gibibytes(needed_bytes),
            gibibytes(u128::from(available)),
        ))),
        _ => Ok(()),
    }
}

fn gibibytes(bytes: u128) -> String {
    format!("{:.1} GiB", bytes as f64 / f64::from(1 << 30))
}

/// Memory that this process may still take, where the system says so.
fn available_bytes() -> Option<u64> {
    [machine_bytes(), container_bytes(), address_space_bytes()]
        .into_iter()
        .flatten()
        .min()
}

fn machine_bytes() -> Option<u64> {
    kibibytes("/proc/meminfo", "MemAvailable:")
}

/// What `ulimit -v` leaves.
fn address_space_bytes() -> Option<u64> {
    let limits = std::fs::read_to_string("/proc/self/limits").ok()?;
    let line = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max address space"))?;
    let limit: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(limit.saturating_sub(kibibytes("/proc/self/status", "VmSize:")?))
}

/// A line of a file of the kernel's, in bytes.
fn kibibytes(file: &str, name: &str) -> Option<u64> {
    let text = std::fs::read_to_string(file).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let kibibytes: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kibibytes.saturating_mul(1024))
}

/// What a container's limit leaves.
fn container_bytes() -> Option<u64> {
    let number = |file: &str| -> Option<u64> {
        let text = std::fs::read_to_string(format!("/sys/fs/cgroup/{file}")).ok()?;
        text.trim().parse().ok()
    };
    let limit = number("memory.max")?;
    Some(limit.saturating_sub(number("memory.current")?))
}
