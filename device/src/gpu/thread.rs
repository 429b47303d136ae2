//! Who a thread is: indices in the block and in the grid.

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
    /// The thread's index in its block, first dimension.
    tid_x = "tid.x", emu::tid()[0];
    /// The thread's index in its block, second dimension.
    tid_y = "tid.y", emu::tid()[1];
    /// The thread's index in its block, third dimension.
    tid_z = "tid.z", emu::tid()[2];
    /// Threads of a block, first dimension.
    ntid_x = "ntid.x", emu::ntid()[0];
    /// Threads of a block, second dimension.
    ntid_y = "ntid.y", emu::ntid()[1];
    /// Threads of a block, third dimension.
    ntid_z = "ntid.z", emu::ntid()[2];
    /// The block's index in the grid, first dimension.
    ctaid_x = "ctaid.x", emu::ctaid()[0];
    /// The block's index in the grid, second dimension.
    ctaid_y = "ctaid.y", emu::ctaid()[1];
    /// The block's index in the grid, third dimension.
    ctaid_z = "ctaid.z", emu::ctaid()[2];
    /// Blocks of the grid, first dimension.
    nctaid_x = "nctaid.x", emu::nctaid()[0];
    /// Blocks of the grid, second dimension.
    nctaid_y = "nctaid.y", emu::nctaid()[1];
    /// Blocks of the grid, third dimension.
    nctaid_z = "nctaid.z", emu::nctaid()[2];
    /// The thread's lane in its warp: the linear index modulo 32.
    laneid = "laneid", emu::laneid();
    /// The bytes of dynamic shared memory of the launch.
    dynamic_smem_size = "dynamic_smem_size", emu::dynamic_smem_size();
}
