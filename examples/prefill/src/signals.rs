//! Signals that end the process: what it was writing goes first.

use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use signal_hook::iterator::Signals;
use signal_hook::low_level::{emulate_default_handler, exit};

use crate::failure::Failure;

/// Runs `clean_up` when a signal is about to end the process, which then ends by that signal.
pub fn on_termination(clean_up: impl Fn() + Send + 'static) -> Result<(), Failure> {
    let ignored = ignored_signals();
    // `nohup` and shells without job control have signals ignored for their children, and that stands.
    let handled = [SIGHUP, SIGINT, SIGQUIT, SIGTERM]
        .into_iter()
        .filter(|signal| ignored & (1 << (signal - 1)) == 0);
    let mut signals = Signals::new(handled).map_err(|error| Failure::of("signals", error))?;
    std::thread::Builder::new()
        .name("signals".to_owned())
        .stack_size(128 << 10)
        .spawn(move || {
            for signal in signals.forever() {
                clean_up();
                // For these signals the default is to end the process.
                if emulate_default_handler(signal).is_err() {
                    exit(128 + signal);
                }
            }
        })
        .map_err(|error| Failure::of("signals", error))?;
    Ok(())
}

/// Bit `n - 1` stands for signal `n`, where the system says so.
fn ignored_signals() -> u64 {
    let Ok(status) = std::fs::read_to_string("/proc/self/status") else {
        return 0;
    };
    status
        .lines()
        .find_map(|line| line.strip_prefix("SigIgn:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or(0)
}
