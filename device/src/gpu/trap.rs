//! The end of a kernel that cannot go on.

/// Stops the launch with an error.
///
/// # PTX
/// `trap;`
/// # Hardware support
/// All.
#[track_caller]
#[inline(always)]
pub fn trap() -> ! {
    on! {
        gpu => {
            // SAFETY: `trap` does not return, as `noreturn` says.
            unsafe { core::arch::asm!("trap;", options(noreturn, nostack)) }
        }
        emulator => { super::emu::trap::trap() }
    }
}

// `cuda_std` has a panic handler of its own.
#[cfg(all(target_arch = "nvptx64", not(feature = "rust-cuda")))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    trap()
}
