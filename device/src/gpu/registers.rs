//! Moving registers between warpgroups.

/// Raises the warpgroup's registers a thread to `COUNT`, a multiple of 8 from 24 to 256; waits until
/// they are free.
///
/// # PTX
/// `setmaxnreg.inc.sync.aligned.u32 COUNT;`
/// # Hardware support
/// sm_90a. The kernel needs a register cap at launch, or the instruction is ignored.
#[track_caller]
#[inline(always)]
pub fn setmaxnreg_inc<const COUNT: u32>() {
    on! {
        gpu => {
            // SAFETY: changes how many registers exist; the compiler keeps within the lower count.
            unsafe { core::arch::asm!("setmaxnreg.inc.sync.aligned.u32 {n};", n = const COUNT, options(nostack)) }
        }
        emulator => { super::emu::wgmma::set_max_registers("setmaxnreg.inc", COUNT) }
    }
}

/// Lowers the warpgroup's registers a thread to `COUNT`, a multiple of 8 from 24 to 256.
///
/// # PTX
/// `setmaxnreg.dec.sync.aligned.u32 COUNT;`
/// # Hardware support
/// sm_90a. The kernel needs a register cap at launch, or the instruction is ignored.
#[track_caller]
#[inline(always)]
pub fn setmaxnreg_dec<const COUNT: u32>() {
    on! {
        gpu => {
            // SAFETY: as in `setmaxnreg_inc`.
            unsafe { core::arch::asm!("setmaxnreg.dec.sync.aligned.u32 {n};", n = const COUNT, options(nostack)) }
        }
        emulator => { super::emu::wgmma::set_max_registers("setmaxnreg.dec", COUNT) }
    }
}

/// The value, hidden from the compiler: what follows from it is computed where it is used, not ahead of the loop around it, where it
/// would hold registers.
///
/// # PTX
/// A comment.
#[inline(always)]
pub fn opaque(value: u64) -> u64 {
    on! {
        gpu => {
            let mut value = value;
            // SAFETY: no instruction.
            unsafe { core::arch::asm!("// {0}", inout(reg64) value, options(nostack)) }
            value
        }
        emulator => { value }
    }
}
