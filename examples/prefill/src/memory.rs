//! Whether a run fits this machine: asked before it starts, since Linux promises memory that it does not have.

use crate::failure::Failure;

/// Refuses a run that needs more memory than there is.
pub fn check(needed_bytes: u128) -> Result<(), Failure> {
    match available_bytes() {
        Some(available) if needed_bytes > u128::from(available) => Err(Failure::new(format_args!(
            "this run needs about {}, but only {} of memory are available; use a shorter sequence or fewer heads",
            size(needed_bytes),
            size(u128::from(available)),
        ))),
        _ => Ok(()),
    }
}

/// Makes the most of a limited address space. To be called before threads start.
pub fn prepare() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    if address_space_limit().is_some() {
        // The C library reserves 64 MiB of addresses for each thread that allocates: more than a whole run may need.
        // SAFETY: it changes nothing but how many heaps later allocations are spread over.
        unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
    }
}

fn size(bytes: u128) -> String {
    let mebibytes = bytes as f64 / f64::from(1 << 20);
    if mebibytes < 1024.0 {
        format!("{mebibytes:.1} MiB")
    } else {
        format!("{:.1} GiB", mebibytes / 1024.0)
    }
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
    let limit = address_space_limit()?;
    Some(limit.saturating_sub(kibibytes("/proc/self/status", "VmSize:")?))
}

/// `ulimit -v` in bytes, where there is a limit.
fn address_space_limit() -> Option<u64> {
    let limits = std::fs::read_to_string("/proc/self/limits").ok()?;
    let line = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max address space"))?;
    line.split_whitespace().next()?.parse().ok()
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
