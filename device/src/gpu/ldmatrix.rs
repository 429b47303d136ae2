//! Moves 8 × 8 matrices of 16-bit elements between shared memory and the fragments of `mma`.
//!
//! Lane `8·m + r` gives the address of row `r` of matrix `m`, 16 bytes, aligned to 16. Afterwards
//! lane `l` holds of each matrix row `l / 4`, columns `2·(l % 4)` and the next, in one register;
//! `.trans` exchanges rows and columns.

use super::address::Shared;
#[cfg(all(not(target_arch = "nvptx64"), feature = "emulator"))]
use super::emu::matrix as emu;

/// Loads 1 matrix.
///
/// # PTX
/// `ldmatrix.sync.aligned.m8n8.x1.shared.b16 {r…}, [row];`
/// # Hardware support
/// sm_75 and later.
#[track_caller]
#[inline(always)]
pub fn ldmatrix_x1<T>(row: Shared<T>) -> [u32; 1] {
    on! {
        gpu => {
            let (x,): (u32,);
            // SAFETY: the address is valid by the launch's contract.
            unsafe {
                core::arch::asm!("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {{{x}}}, [{a}];",
                    x = out(reg32) x, a = in(reg32) row.address(), options(readonly, nostack));
            }
            [x]
        }
        emulator => { emu::ldmatrix("ldmatrix.x1", row.address(), false) }
    }
}

/// Loads 1 matrix, transposed.
///
/// # PTX
/// `ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {r…}, [row];`
/// # Hardware support
/// sm_75 and later.
#[track_caller]
#[inline(always)]
pub fn ldmatrix_x1_trans<T>(row: Shared<T>) -> [u32; 1] {
    on! {
        gpu => {
            let (x,): (u32,);
            // SAFETY: the address is valid by the launch's contract.
            unsafe {
                core::arch::asm!("ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {{{x}}}, [{a}];",
                    x = out(reg32) x, a = in(reg32) row.address(), options(readonly, nostack));
            }
            [x]
        }
        emulator => { emu::ldmatrix("ldmatrix.x1.trans", row.address(), true) }
    }
}

/// Loads 2 matrices.
///
/// # PTX
/// `ldmatrix.sync.aligned.m8n8.x2.shared.b16 {r…}, [row];`
/// # Hardware support
/// sm_75 and later.
#[track_caller]
#[inline(always)]
pub fn ldmatrix_x2<T>(row: Shared<T>) -> [u32; 2] {
    on! {
        gpu => {
            let (x, y): (u32, u32);
            // SAFETY: the address is valid by the launch's contract.
            unsafe {
                core::arch::asm!("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {{{x}, {y}}}, [{a}];",
                    x = out(reg32) x, y = out(reg32) y, a = in(reg32) row.address(), options(readonly, nostack));
            }
            [x, y]
        }
        emulator => { emu::ldmatrix("ldmatrix.x2", row.address(), false) }
    }
}

/// Loads 2 matrices, transposed.
///
/// # PTX
/// `ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {r…}, [row];`
/// # Hardware support
/// sm_75 and later.
#[track_caller]
#[inline(always)]
pub fn ldmatrix_x2_trans<T>(row: Shared<T>) -> [u32; 2] {
    on! {
        gpu => {
            let (x, y): (u32, u32);
            // SAFETY: the address is valid by the launch's contract.
            unsafe {
                core::arch::asm!("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {{{x}, {y}}}, [{a}];",
                    x = out(reg32) x, y = out(reg32) y, a = in(reg32) row.address(), options(readonly, nostack));
            }
            [x, y]
        }
        emulator => { emu::ldmatrix("ldmatrix.x2.trans", row.address(), true) }
    }
}

/// Loads 4 matrices.
///
/// # PTX
/// `ldmatrix.sync.aligned.m8n8.x4.shared.b16 {r…}, [row];`
/// # Hardware support
/// sm_75 and later.
#[track_caller]
#[inline(always)]
pub fn ldmatrix_x4<T>(row: Shared<T>) -> [u32; 4] {
    on! {
        gpu => {
            let (x, y, z, w): (u32, u32, u32, u32);
            // SAFETY: the address is valid by the launch's contract.
            unsafe {
                core::arch::asm!("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {{{x}, {y}, {z}, {w}}}, [{a}];",
                    x = out(reg32) x, y = out(reg32) y, z = out(reg32) z, w = out(reg32) w, a = in(reg32) row.address(), options(readonly, nostack));
            }
            [x, y, z, w]
        }
        emulator => { emu::ldmatrix("ldmatrix.x4", row.address(), false) }
    }
}

/// Loads 4 matrices, transposed.
///
/// # PTX
/// `ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {r…}, [row];`
/// # Hardware support
/// sm_75 and later.
#[track_caller]
#[inline(always)]
pub fn ldmatrix_x4_trans<T>(row: Shared<T>) -> [u32; 4] {
    on! {
        gpu => {
            let (x, y, z, w): (u32, u32, u32, u32);
            // SAFETY: the address is valid by the launch's contract.
            unsafe {
                core::arch::asm!("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {{{x}, {y}, {z}, {w}}}, [{a}];",
                    x = out(reg32) x, y = out(reg32) y, z = out(reg32) z, w = out(reg32) w, a = in(reg32) row.address(), options(readonly, nostack));
            }
            [x, y, z, w]
        }
        emulator => { emu::ldmatrix("ldmatrix.x4.trans", row.address(), true) }
    }
}

/// Stores 1 matrix.
///
/// # PTX
/// `stmatrix.sync.aligned.m8n8.x1.shared.b16 [row], {r…};`
/// # Hardware support
/// sm_90 and later.
#[track_caller]
#[inline(always)]
pub fn stmatrix_x1<T>(row: Shared<T>, registers: [u32; 1]) {
    on! {
        gpu => {
            let [x] = registers;
            // SAFETY: the address is valid by the launch's contract.
            unsafe {
                core::arch::asm!("stmatrix.sync.aligned.m8n8.x1.shared.b16 [{a}], {{{x}}};",
                    a = in(reg32) row.address(), x = in(reg32) x, options(nostack));
            }
        }
        emulator => { emu::stmatrix("stmatrix.x1", row.address(), false, registers) }
    }
}

/// Stores 1 matrix, transposed.
///
/// # PTX
/// `stmatrix.sync.aligned.m8n8.x1.trans.shared.b16 [row], {r…};`
/// # Hardware support
/// sm_90 and later.
#[track_caller]
#[inline(always)]
pub fn stmatrix_x1_trans<T>(row: Shared<T>, registers: [u32; 1]) {
    on! {
        gpu => {
            let [x] = registers;
            // SAFETY: the address is valid by the launch's contract.
            unsafe {
                core::arch::asm!("stmatrix.sync.aligned.m8n8.x1.trans.shared.b16 [{a}], {{{x}}};",
                    a = in(reg32) row.address(), x = in(reg32) x, options(nostack));
            }
        }
        emulator => { emu::stmatrix("stmatrix.x1.trans", row.address(), true, registers) }
    }
}

/// Stores 2 matrices.
///
/// # PTX
/// `stmatrix.sync.aligned.m8n8.x2.shared.b16 [row], {r…};`
/// # Hardware support
/// sm_90 and later.
#[track_caller]
#[inline(always)]
pub fn stmatrix_x2<T>(row: Shared<T>, registers: [u32; 2]) {
    on! {
        gpu => {
            let [x, y] = registers;
            // SAFETY: the address is valid by the launch's contract.
            unsafe {
                core::arch::asm!("stmatrix.sync.aligned.m8n8.x2.shared.b16 [{a}], {{{x}, {y}}};",
                    a = in(reg32) row.address(), x = in(reg32) x, y = in(reg32) y, options(nostack));
            }
        }
        emulator => { emu::stmatrix("stmatrix.x2", row.address(), false, registers) }
    }
}

/// Stores 2 matrices, transposed.
///
/// # PTX
/// `stmatrix.sync.aligned.m8n8.x2.trans.shared.b16 [row], {r…};`
/// # Hardware support
/// sm_90 and later.
#[track_caller]
#[inline(always)]
pub fn stmatrix_x2_trans<T>(row: Shared<T>, registers: [u32; 2]) {
    on! {
        gpu => {
            let [x, y] = registers;
            // SAFETY: the address is valid by the launch's contract.
            unsafe {
                core::arch::asm!("stmatrix.sync.aligned.m8n8.x2.trans.shared.b16 [{a}], {{{x}, {y}}};",
                    a = in(reg32) row.address(), x = in(reg32) x, y = in(reg32) y, options(nostack));
            }
        }
        emulator => { emu::stmatrix("stmatrix.x2.trans", row.address(), true, registers) }
    }
}

/// Stores 4 matrices.
///
/// # PTX
/// `stmatrix.sync.aligned.m8n8.x4.shared.b16 [row], {r…};`
/// # Hardware support
/// sm_90 and later.
#[track_caller]
#[inline(always)]
pub fn stmatrix_x4<T>(row: Shared<T>, registers: [u32; 4]) {
    on! {
        gpu => {
            let [x, y, z, w] = registers;
            // SAFETY: the address is valid by the launch's contract.
            unsafe {
                core::arch::asm!("stmatrix.sync.aligned.m8n8.x4.shared.b16 [{a}], {{{x}, {y}, {z}, {w}}};",
                    a = in(reg32) row.address(), x = in(reg32) x, y = in(reg32) y, z = in(reg32) z, w = in(reg32) w, options(nostack));
            }
        }
        emulator => { emu::stmatrix("stmatrix.x4", row.address(), false, registers) }
    }
}

/// Stores 4 matrices, transposed.
///
/// # PTX
/// `stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [row], {r…};`
/// # Hardware support
/// sm_90 and later.
#[track_caller]
#[inline(always)]
pub fn stmatrix_x4_trans<T>(row: Shared<T>, registers: [u32; 4]) {
    on! {
        gpu => {
            let [x, y, z, w] = registers;
            // SAFETY: the address is valid by the launch's contract.
            unsafe {
                core::arch::asm!("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [{a}], {{{x}, {y}, {z}, {w}}};",
                    a = in(reg32) row.address(), x = in(reg32) x, y = in(reg32) y, z = in(reg32) z, w = in(reg32) w, options(nostack));
            }
        }
        emulator => { emu::stmatrix("stmatrix.x4.trans", row.address(), true, registers) }
    }
}
