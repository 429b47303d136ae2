//! The warp's matrix product, m16n8k16, with 16-bit operands and `f32` accumulators.
//!
//! Which element a register holds: [`fragment::MmaM16N8K16`](super::fragment::MmaM16N8K16).

#[cfg(all(not(target_arch = "nvptx64"), feature = "emulator"))]
use super::emu::matrix as emu;

/// A · B + C with `bf16` operands.
///
/// # PTX
/// `mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 d, a, b, c;`
/// # Hardware support
/// sm_80 and later.
#[track_caller]
#[inline(always)]
pub fn mma_m16n8k16_f32_bf16(a: [u32; 4], b: [u32; 2], c: [f32; 4]) -> [f32; 4] {
    on! {
        gpu => {
            let mut d = c;
            // SAFETY: computes on registers.
            unsafe {
                core::arch::asm!(
                    "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {{{d0}, {d1}, {d2}, {d3}}}, {{{a0}, {a1}, {a2}, {a3}}}, {{{b0}, {b1}}}, {{{d0}, {d1}, {d2}, {d3}}};",
                    d0 = inout(reg32) d[0], d1 = inout(reg32) d[1], d2 = inout(reg32) d[2], d3 = inout(reg32) d[3],
                    a0 = in(reg32) a[0], a1 = in(reg32) a[1], a2 = in(reg32) a[2], a3 = in(reg32) a[3],
                    b0 = in(reg32) b[0], b1 = in(reg32) b[1], options(nomem, nostack));
            }
            d
        }
        emulator => { emu::mma_m16n8k16("mma.sync.m16n8k16.bf16", emu::Half::Bf16, a, b, c) }
    }
}

/// A · B + C with `f16` operands.
///
/// # PTX
/// `mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 d, a, b, c;`
/// # Hardware support
/// sm_80 and later.
#[track_caller]
#[inline(always)]
pub fn mma_m16n8k16_f32_f16(a: [u32; 4], b: [u32; 2], c: [f32; 4]) -> [f32; 4] {
    on! {
        gpu => {
            let mut d = c;
            // SAFETY: computes on registers.
            unsafe {
                core::arch::asm!(
                    "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {{{d0}, {d1}, {d2}, {d3}}}, {{{a0}, {a1}, {a2}, {a3}}}, {{{b0}, {b1}}}, {{{d0}, {d1}, {d2}, {d3}}};",
                    d0 = inout(reg32) d[0], d1 = inout(reg32) d[1], d2 = inout(reg32) d[2], d3 = inout(reg32) d[3],
                    a0 = in(reg32) a[0], a1 = in(reg32) a[1], a2 = in(reg32) a[2], a3 = in(reg32) a[3],
                    b0 = in(reg32) b[0], b1 = in(reg32) b[1], options(nomem, nostack));
            }
            d
        }
        emulator => { emu::mma_m16n8k16("mma.sync.m16n8k16.f16", emu::Half::F16, a, b, c) }
    }
}
