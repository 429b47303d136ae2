//! Who a thread is: indices in the CTA and in the grid.

#[cfg(all(not(target_arch = "nvptx64"), feature = "emulator"))]
use super::emu::thread as emu;

/// Functions that read a special register.
macro_rules! special_registers {
    ($($(#[$doc:meta])* $name:ident = $register:literal, $emulated:expr;)*) => {$(
        $(#[$doc])*
        ///
        /// # PTX
        #[doc = concat!("`mov.u32 r, %", $register, ";`")]
        /// # Hardware support
        /// All.
        #[track_caller]
        #[inline(always)]
        pub fn $name() -> u32 {
            on! {
                gpu => {
                    let value: u32;
                    // SAFETY: reads a register that is constant for the thread.
                    unsafe {
                        core::arch::asm!(concat!("mov.u32 {v}, %", $register, ";"), v = out(reg32) value,
                            options(pure, nomem, nostack));
                    }
                    value
                }
                emulator => { $emulated }
            }
        }
    )*};
}

special_registers! {
    /// The thread's index in its CTA, first dimension.
    tid_x = "tid.x", emu::tid()[0];
    /// The thread's index in its CTA, second dimension.
    tid_y = "tid.y", emu::tid()[1];
    /// The thread's index in its CTA, third dimension.
    tid_z = "tid.z", emu::tid()[2];
    /// Threads of a CTA, first dimension.
    ntid_x = "ntid.x", emu::ntid()[0];
    /// Threads of a CTA, second dimension.
    ntid_y = "ntid.y", emu::ntid()[1];
    /// Threads of a CTA, third dimension.
    ntid_z = "ntid.z", emu::ntid()[2];
    /// The CTA's index in the grid, first dimension.
    ctaid_x = "ctaid.x", emu::ctaid()[0];
    /// The CTA's index in the grid, second dimension.
    ctaid_y = "ctaid.y", emu::ctaid()[1];
    /// The CTA's index in the grid, third dimension.
    ctaid_z = "ctaid.z", emu::ctaid()[2];
    /// CTAs of the grid, first dimension.
    nctaid_x = "nctaid.x", emu::nctaid()[0];
    /// CTAs of the grid, second dimension.
    nctaid_y = "nctaid.y", emu::nctaid()[1];
    /// CTAs of the grid, third dimension.
    nctaid_z = "nctaid.z", emu::nctaid()[2];
    /// The thread's lane in its warp: the linear index modulo 32.
    laneid = "laneid", emu::laneid();
    /// The bytes of dynamic shared memory of the launch.
    dynamic_smem_size = "dynamic_smem_size", emu::dynamic_smem_size();
}
