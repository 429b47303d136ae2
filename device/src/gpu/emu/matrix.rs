//! `ldmatrix`, `stmatrix` and `mma.sync`, executed once a warp.

use std::panic::Location;

use super::collective::{ALL_LANES, Lanes, Op, Then, collective};
pub(in super::super) use super::state::half::Half;
use super::state::memory::Access;
use super::state::{At, Cta, FaultKind};
use crate::gpu::fragment::MmaM16N8K16;

struct Matrices<const N: usize> {
    row: u32,
    registers: [u32; N],
}

/// The 8 × 8 matrix `m`: its row `r` at the address that lane `8·m + r` holds.
fn read_rows(cta: &mut Cta, row: impl Fn(u32) -> u32, op: &'static str, at: At) -> [[u16; 8]; 8] {
    std::array::from_fn(|r| {
        let host = cta.shared(row(r as u32), 16, 16, op, at);
        // SAFETY: `shared` checked 16 aligned bytes.
        unsafe { host.cast::<[u16; 8]>().read() }
    })
}

#[track_caller]
pub(in super::super) fn ldmatrix<const N: usize>(
    op: &'static str,
    row: u32,
    transposed: bool,
) -> [u32; N] {
    let at = Location::caller();
    let mut slot = Matrices {
        row,
        registers: [0; N],
    };
    let execute = |cta: &mut Cta, mut lanes: Lanes<'_, Matrices<N>>| {
        for matrix in 0..N as u32 {
            for r in 0..8 {
                let lane = matrix * 8 + r;
                let address = lanes.get(lane).row;
                cta.shared(address, 16, 16, op, at);
                cta.note_lane_access(lane, address, 16, Access::Read, op, at);
            }
            let rows = read_rows(cta, |r| lanes.get(matrix * 8 + r).row, op, at);
            for lane in 0..32u32 {
                let (r, c) = (lane as usize / 4, lane as usize % 4 * 2);
                let (low, high) = if transposed {
                    (rows[c][r], rows[c + 1][r])
                } else {
                    (rows[r][c], rows[r][c + 1])
                };
                lanes.get_mut(lane).registers[matrix as usize] =
                    u32::from(low) | u32::from(high) << 16;
            }
        }
        Then::GoOn
    };
    collective(Op::aligned(op), at, &mut slot, whole_warp(op, at, execute));
    slot.registers
}

#[track_caller]
pub(in super::super) fn stmatrix<const N: usize>(
    op: &'static str,
    row: u32,
    transposed: bool,
    registers: [u32; N],
) {
    let at = Location::caller();
    let mut slot = Matrices { row, registers };
    let execute = |cta: &mut Cta, lanes: Lanes<'_, Matrices<N>>| {
        for matrix in 0..N as u32 {
            let mut rows = [[0u16; 8]; 8];
            for lane in 0..32u32 {
                let (r, c) = (lane as usize / 4, lane as usize % 4 * 2);
                let pair = lanes.get(lane).registers[matrix as usize];
                let (low, high) = (pair as u16, (pair >> 16) as u16);
                if transposed {
                    (rows[c][r], rows[c + 1][r]) = (low, high);
                } else {
                    (rows[r][c], rows[r][c + 1]) = (low, high);
                }
            }
            for (r, row) in rows.into_iter().enumerate() {
                let lane = matrix * 8 + r as u32;
                let address = lanes.get(lane).row;
                let host = cta.shared(address, 16, 16, op, at);
                cta.note_lane_access(lane, address, 16, Access::Write, op, at);
                // SAFETY: `shared` checked 16 aligned bytes.
                unsafe { host.cast::<[u16; 8]>().write(row) };
            }
        }
        Then::GoOn
    };
    collective(Op::aligned(op), at, &mut slot, whole_warp(op, at, execute));
}

/// Matrix instructions need all 32 lanes. The last warp of a CTA may have fewer.
fn whole_warp<A>(
    op: &'static str,
    at: At,
    execute: impl FnOnce(&mut Cta, Lanes<'_, A>) -> Then,
) -> impl FnOnce(&mut Cta, Lanes<'_, A>) -> Then {
    move |cta, lanes| {
        if lanes.mask != ALL_LANES {
            cta.fail(
                FaultKind::Divergence,
                at,
                format!("`{op}` needs a warp of 32 threads, but the CTA's last warp has fewer"),
            );
        }
        execute(cta, lanes)
    }
}

struct Mma {
    a: [u32; 4],
    b: [u32; 2],
    c: [f32; 4],
}

/// D = A·B + C for m16n8k16, with products added in `f32` in ascending k.
#[track_caller]
pub(in super::super) fn mma_m16n8k16(
    op: &'static str,
    format: Half,
    a: [u32; 4],
    b: [u32; 2],
    c: [f32; 4],
) -> [f32; 4] {
    let at = Location::caller();
    let mut slot = Mma { a, b, c };
    let execute = |_: &mut Cta, mut lanes: Lanes<'_, Mma>| {
        match format {
            Half::Bf16 => multiply(&mut lanes, |bits| Half::Bf16.to_f32(bits)),
            Half::F16 => multiply(&mut lanes, |bits| Half::F16.to_f32(bits)),
        }
        Then::GoOn
    };
    collective(Op::aligned(op), at, &mut slot, whole_warp(op, at, execute));
    slot.c
}

fn multiply(lanes: &mut Lanes<'_, Mma>, to_f32: impl Fn(u16) -> f32) {
    let mut a = [[0f32; 16]; 16];
    let mut b = [[0f32; 8]; 16];
    let mut c = [[0f32; 8]; 16];
    let pair = |register: u32| (to_f32(register as u16), to_f32((register >> 16) as u16));
    for lane in 0..32 {
        let Mma {
            a: a_registers,
            b: b_registers,
            c: accumulators,
        } = *lanes.get(lane);
        for (i, register) in a_registers.into_iter().enumerate() {
            let [row, k] = MmaM16N8K16::a(lane, i as u32 * 2);
            (a[row][k], a[row][k + 1]) = pair(register);
        }
        for (i, register) in b_registers.into_iter().enumerate() {
            let [k, column] = MmaM16N8K16::b(lane, i as u32 * 2);
            (b[k][column], b[k + 1][column]) = pair(register);
        }
        for (i, value) in accumulators.into_iter().enumerate() {
            let [row, column] = MmaM16N8K16::c(lane, i as u32);
            c[row][column] = value;
        }
    }
    for (a, c) in a.iter().zip(&mut c) {
        for (a, b) in a.iter().zip(&b) {
            for (c, b) in c.iter_mut().zip(b) {
                *c += a * b;
            }
        }
    }
    for lane in 0..32 {
        let accumulators = &mut lanes.get_mut(lane).c;
        for (i, value) in accumulators.iter_mut().enumerate() {
            let [row, column] = MmaM16N8K16::c(lane, i as u32);
            *value = c[row][column];
        }
    }
}
