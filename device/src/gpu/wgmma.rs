//! The warpgroup's matrix product, m64nNk16, with 16-bit operands and `f32` accumulators.
//!
//! One function issues a whole product: `wgmma.fence`, its k-steps, `wgmma.commit_group`, in one
//! piece of assembly, so that nothing comes between. It returns at once; accumulators are undefined
//! until [`wgmma_wait_group`] has got them, and A operands in registers must not change before.
//!
//! Operands in shared memory are tiles of 16-bit elements in 128-byte swizzled rows, 1024-byte
//! aligned, as bulk tensor copies with boxes of 64 elements lay them down; a tile of 128 columns is
//! two halves of 64, one behind the other. [`KMajor`] and [`MnMajor`] say how a product walks one.
//! Which element a register holds: [`fragment::WgmmaM64K16`](super::fragment::WgmmaM64K16).

use super::address::Shared;
#[cfg(all(not(target_arch = "nvptx64"), feature = "emulator"))]
use super::emu::{matrix::Half, wgmma as emu};
use super::tensor_map::Swizzle;

/// A matrix descriptor (PTX ISA, "Matrix Descriptor Format").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(transparent)]
pub struct MatrixDescriptor(u64);

impl MatrixDescriptor {
    /// A matrix at `start`, with the leading- and stride-dimension byte offsets.
    #[inline(always)]
    pub const fn new<T>(
        start: Shared<T>,
        leading_bytes: u32,
        stride_bytes: u32,
        swizzle: Swizzle,
    ) -> Self {
        let mode = match swizzle {
            Swizzle::None => 0,
            Swizzle::Bytes128 => 1,
            Swizzle::Bytes64 => 2,
            Swizzle::Bytes32 => 3,
        };
        const fn field(bytes: u32) -> u64 {
            ((bytes & 0x3ffff) >> 4) as u64
        }
        Self(
            field(start.address())
                | field(leading_bytes) << 16
                | field(stride_bytes) << 32
                | mode << 62,
        )
    }

    /// The encoding.
    #[inline(always)]
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// The half that holds the address, to which k-steps add: they never carry, as shared memory ends below 2^18 bytes.
    #[cfg(target_arch = "nvptx64")]
    #[inline(always)]
    const fn low(self) -> u32 {
        self.0 as u32
    }

    /// The half that is the same for all tiles of a shape.
    #[cfg(target_arch = "nvptx64")]
    #[inline(always)]
    const fn high(self) -> u32 {
        (self.0 >> 32) as u32
    }
}

/// How a product walks an operand in shared memory.
pub trait Walk {
    /// What each k-step of 16 adds to the descriptor, in units of 16 bytes.
    const OFFSETS: [u64; 8];
    /// The transpose flag: whether consecutive elements run along m or n.
    const MN_MAJOR: u32;
    /// The descriptor of a tile at `start`.
    fn descriptor<T>(start: Shared<T>) -> MatrixDescriptor;
}

/// Rows are m or n, and k runs along them: Q and K in Q·Kᵀ. `ROWS` is a half's rows.
pub struct KMajor<const ROWS: u32>;

impl<const ROWS: u32> Walk for KMajor<ROWS> {
    const OFFSETS: [u64; 8] = {
        let half = ROWS as u64 * 128 / 16;
        [0, 2, 4, 6, half, half + 2, half + 4, half + 6]
    };
    const MN_MAJOR: u32 = 0;

    #[inline(always)]
    fn descriptor<T>(start: Shared<T>) -> MatrixDescriptor {
        // The leading offset is ignored in swizzled K-major tiles.
        MatrixDescriptor::new(start, 16, 1024, Swizzle::Bytes128)
    }
}

/// Rows are k, and n runs along them: V in P·V. `ROWS` is a half's rows.
pub struct MnMajor<const ROWS: u32>;

impl<const ROWS: u32> Walk for MnMajor<ROWS> {
    const OFFSETS: [u64; 8] = [0, 128, 256, 384, 512, 640, 768, 896];
    const MN_MAJOR: u32 = 1;

    #[inline(always)]
    fn descriptor<T>(start: Shared<T>) -> MatrixDescriptor {
        MatrixDescriptor::new(start, ROWS * 128, 1024, Swizzle::Bytes128)
    }
}

mod sealed {
    pub trait Sealed {}
}

/// The accumulators of a product, or `()` for a wait that needs none.
pub trait Accumulators: sealed::Sealed {
    #[doc(hidden)]
    fn wait<const PENDING: u32>(&mut self);
}

impl sealed::Sealed for () {}

impl Accumulators for () {
    #[track_caller]
    #[inline(always)]
    fn wait<const PENDING: u32>(&mut self) {
        on! {
            gpu => {
                // SAFETY: no operands but the constant.
                unsafe { core::arch::asm!("wgmma.wait_group.sync.aligned {n};", n = const PENDING, options(nostack)) }
            }
            emulator => { emu::wait_group(PENDING, &mut []) }
        }
    }
}

/// Waits until at most `PENDING` of the warpgroup's latest products are in flight. These
/// accumulators are then valid if theirs is among the finished; no use of them moves above.
///
/// # PTX
/// `wgmma.wait_group.sync.aligned PENDING;`
/// # Hardware support
/// sm_90a.
#[track_caller]
#[inline(always)]
pub fn wgmma_wait_group<const PENDING: u32, A: Accumulators>(accumulators: &mut A) {
    accumulators.wait::<PENDING>();
}

/// The braced list of accumulator operands, `{ {0}, {1}, … }`.
#[cfg(target_arch = "nvptx64")]
macro_rules! registers {
    ($first:literal $($rest:literal)*) => {
        concat!("{{{", $first, "}", $(", {", $rest, "}",)* "}}")
    };
}

/// The k-steps after the first: A and B from shared memory.
#[cfg(target_arch = "nvptx64")]
macro_rules! steps_ss {
    ($instruction:expr, $registers:tt, $(($a:literal, $b:literal)),*) => {
        concat!($(
            "add.u32 la, {a}, {", $a, "}; mov.b64 da, {{la, {ah}}}; add.u32 lb, {b}, {", $b, "}; mov.b64 db, {{lb, {bh}}};\n",
            $instruction, " ", registers! $registers, ", da, db, 1, 1, 1, {ta}, {tb};\n",
        )*)
    };
}

/// The k-steps after the first: A from registers, B from shared memory.
#[cfg(target_arch = "nvptx64")]
macro_rules! steps_rs {
    ($instruction:expr, $registers:tt, $(($x:literal, $y:literal, $z:literal, $w:literal, $b:literal)),*) => {
        concat!($(
            "add.u32 lb, {b}, {", $b, "}; mov.b64 db, {{lb, {bh}}};\n",
            $instruction, " ", registers! $registers, ", {{{", $x, "}, {", $y, "}, {", $z, "}, {", $w,
            "}}}, db, 1, 1, 1, {tb};\n",
        )*)
    };
}

/// One `asm!` of a product from shared memory, with the accumulators `$direction` (`out`, `inout`).
#[cfg(target_arch = "nvptx64")]
macro_rules! asm_ss {
    ($instruction:expr, $direction:ident, $scale:literal, $d:ident, [$($i:literal)*], $wa:ident, $wb:ident, $a:ident, $b:ident, 4) => {
        asm_ss!(@ $instruction, $direction, $scale, $d, [$($i)*], $wa, $wb, $a, $b,
            [("a1", "b1"), ("a2", "b2"), ("a3", "b3")], [a1 b1 1, a2 b2 2, a3 b3 3])
    };
    ($instruction:expr, $direction:ident, $scale:literal, $d:ident, [$($i:literal)*], $wa:ident, $wb:ident, $a:ident, $b:ident, 8) => {
        asm_ss!(@ $instruction, $direction, $scale, $d, [$($i)*], $wa, $wb, $a, $b,
            [("a1", "b1"), ("a2", "b2"), ("a3", "b3"), ("a4", "b4"), ("a5", "b5"), ("a6", "b6"), ("a7", "b7")],
            [a1 b1 1, a2 b2 2, a3 b3 3, a4 b4 4, a5 b5 5, a6 b6 6, a7 b7 7])
    };
    (@ $instruction:expr, $direction:ident, $scale:literal, $d:ident, [$($i:literal)*], $wa:ident, $wb:ident, $a:ident, $b:ident,
        [$($step:tt),*], [$($oa:ident $ob:ident $k:literal),*]) => {
        // SAFETY: the descriptors are valid by the launch's contract; the accumulators are this
        // statement's operands here and in the wait.
        unsafe {
            core::arch::asm!(
                concat!("{{ .reg .b64 da, db; .reg .b32 la, lb;\nmov.b64 da, {{{a}, {ah}}}; mov.b64 db, {{{b}, {bh}}};\n",
                    "wgmma.fence.sync.aligned;\n", $instruction, " ", registers!($($i)*), ", da, db, ", $scale, ", 1, 1, {ta}, {tb};\n",
                    steps_ss!($instruction, ($($i)*), $($step),*), "wgmma.commit_group.sync.aligned; }}"),
                $($direction(reg32) $d[$i],)*
                a = in(reg32) $a.low(), ah = in(reg32) $a.high(), b = in(reg32) $b.low(), bh = in(reg32) $b.high(), ta = const $wa::MN_MAJOR, tb = const $wb::MN_MAJOR,
                $($oa = const $wa::OFFSETS[$k], $ob = const $wb::OFFSETS[$k],)*
                options(nostack));
        }
    };
}

/// As `asm_ss`, with A in registers.
#[cfg(target_arch = "nvptx64")]
macro_rules! asm_rs {
    ($instruction:expr, $direction:ident, $scale:literal, $d:ident, [$($i:literal)*], $wb:ident, $a:ident, $b:ident, 4) => {
        asm_rs!(@ $instruction, $direction, $scale, $d, [$($i)*], $wb, $a, $b,
            [("x1", "y1", "z1", "w1", "b1"), ("x2", "y2", "z2", "w2", "b2"), ("x3", "y3", "z3", "w3", "b3")],
            [x0 y0 z0 w0 0, x1 y1 z1 w1 1, x2 y2 z2 w2 2, x3 y3 z3 w3 3], [b1 1, b2 2, b3 3])
    };
    ($instruction:expr, $direction:ident, $scale:literal, $d:ident, [$($i:literal)*], $wb:ident, $a:ident, $b:ident, 8) => {
        asm_rs!(@ $instruction, $direction, $scale, $d, [$($i)*], $wb, $a, $b,
            [("x1", "y1", "z1", "w1", "b1"), ("x2", "y2", "z2", "w2", "b2"), ("x3", "y3", "z3", "w3", "b3"),
             ("x4", "y4", "z4", "w4", "b4"), ("x5", "y5", "z5", "w5", "b5"), ("x6", "y6", "z6", "w6", "b6"),
             ("x7", "y7", "z7", "w7", "b7")],
            [x0 y0 z0 w0 0, x1 y1 z1 w1 1, x2 y2 z2 w2 2, x3 y3 z3 w3 3, x4 y4 z4 w4 4, x5 y5 z5 w5 5, x6 y6 z6 w6 6,
             x7 y7 z7 w7 7],
            [b1 1, b2 2, b3 3, b4 4, b5 5, b6 6, b7 7])
    };
    (@ $instruction:expr, $direction:ident, $scale:literal, $d:ident, [$($i:literal)*], $wb:ident, $a:ident, $b:ident,
        [$($step:tt),*], [$($x:ident $y:ident $z:ident $w:ident $r:literal),*], [$($ob:ident $k:literal),*]) => {
        // SAFETY: as in `asm_ss`; A's registers do not change before the wait, by the contract.
        unsafe {
            core::arch::asm!(
                concat!("{{ .reg .b64 db; .reg .b32 lb;\nmov.b64 db, {{{b}, {bh}}};\nwgmma.fence.sync.aligned;\n",
                    $instruction, " ", registers!($($i)*), ", {{{x0}, {y0}, {z0}, {w0}}}, db, ", $scale, ", 1, 1, {tb};\n",
                    steps_rs!($instruction, ($($i)*), $($step),*), "wgmma.commit_group.sync.aligned; }}"),
                $($direction(reg32) $d[$i],)*
                $($x = in(reg32) $a[$r][0], $y = in(reg32) $a[$r][1], $z = in(reg32) $a[$r][2], $w = in(reg32) $a[$r][3],)*
                b = in(reg32) $b.low(), bh = in(reg32) $b.high(), tb = const $wb::MN_MAJOR,
                $($ob = const $wb::OFFSETS[$k],)*
                options(nostack));
        }
    };
}

/// One `asm!` of a wait, with every accumulator an operand.
#[cfg(target_arch = "nvptx64")]
macro_rules! wait_asm {
    ($d:ident, $pending:ident, [$($i:literal)*]) => {
        // SAFETY: the accumulators are operands only so that no use of them moves above the wait.
        unsafe {
            core::arch::asm!(concat!("wgmma.wait_group.sync.aligned {n}; //", $(" {", $i, "}",)*),
                $(inout(reg32) $d[$i],)* n = const $pending, options(nostack));
        }
    };
}

/// One `asm!` of a product, from the parts of its name.
#[cfg(target_arch = "nvptx64")]
macro_rules! product_asm {
    (ss $n:literal, $format:literal, $($rest:tt)*) => {
        asm_ss!(concat!("wgmma.mma_async.sync.aligned.m64n", $n, "k16.f32.", $format, ".", $format), $($rest)*)
    };
    (rs $n:literal, $format:literal, $($rest:tt)*) => {
        asm_rs!(concat!("wgmma.mma_async.sync.aligned.m64n", $n, "k16.f32.", $format, ".", $format), $($rest)*)
    };
}

/// The waits and products of one tile width.
macro_rules! width {
    ($n:literal, $count:literal, $indices:tt,
        $(($format:literal, $half:ident, $steps:tt, $ss:ident, $ss_zero:ident, $rs:ident, $rs_zero:ident)),*) => {
        impl sealed::Sealed for [f32; $count] {}

        impl Accumulators for [f32; $count] {
            #[track_caller]
            #[inline(always)]
            fn wait<const PENDING: u32>(&mut self) {
                on! {
                    gpu => { wait_asm!(self, PENDING, $indices) }
                    emulator => { emu::wait_group(PENDING, self) }
                }
            }
        }

        $(
            /// D += A · B with A and B in shared memory.
            ///
            /// # PTX
            #[doc = concat!("`wgmma.mma_async.sync.aligned.m64n", $n, "k16.f32.", $format, ".", $format,
                "` for ", $steps, " k-steps, after `wgmma.fence` and before `wgmma.commit_group`.")]
            /// # Hardware support
            /// sm_90a.
            #[track_caller]
            #[inline(always)]
            pub fn $ss<A: Walk, B: Walk>(d: &mut [f32; $count], a: MatrixDescriptor, b: MatrixDescriptor) {
                on! {
                    gpu => {
                        product_asm!(ss $n, $format, inout, "1", d, $indices, A, B, a, b, $steps)
                    }
                    emulator => { emu::multiply(product::<A, B>(stringify!($ss), Half::$half, Some(a), &[], b, $steps, false), d) }
                }
            }

            /// A · B with A and B in shared memory.
            ///
            /// # PTX
            #[doc = concat!("`wgmma.mma_async.sync.aligned.m64n", $n, "k16.f32.", $format, ".", $format,
                "` for ", $steps, " k-steps, the first with scale-d 0, after `wgmma.fence` and before `wgmma.commit_group`.")]
            /// # Hardware support
            /// sm_90a.
            #[track_caller]
            #[inline(always)]
            pub fn $ss_zero<A: Walk, B: Walk>(a: MatrixDescriptor, b: MatrixDescriptor) -> [f32; $count] {
                on! {
                    gpu => {
                        // SAFETY: zero bits are an `f32`. An array expression would become a loop.
                        let mut d: [f32; $count] = unsafe { core::mem::zeroed() };
                        product_asm!(ss $n, $format, out, "0", d, $indices, A, B, a, b, $steps);
                        d
                    }
                    emulator => {
                        let mut d = [0.0; $count];
                        emu::multiply(product::<A, B>(stringify!($ss_zero), Half::$half, Some(a), &[], b, $steps, true), &mut d);
                        d
                    }
                }
            }

            /// D += A · B with A in registers, four a k-step, and B in shared memory.
            ///
            /// # PTX
            #[doc = concat!("`wgmma.mma_async.sync.aligned.m64n", $n, "k16.f32.", $format, ".", $format,
                "` for ", $steps, " k-steps, after `wgmma.fence` and before `wgmma.commit_group`.")]
            /// # Hardware support
            /// sm_90a.
            #[track_caller]
            #[inline(always)]
            pub fn $rs<B: Walk>(d: &mut [f32; $count], a: &[[u32; 4]; $steps], b: MatrixDescriptor) {
                on! {
                    gpu => {
                        product_asm!(rs $n, $format, inout, "1", d, $indices, B, a, b, $steps)
                    }
                    emulator => { emu::multiply(product::<B, B>(stringify!($rs), Half::$half, None, a, b, $steps, false), d) }
                }
            }

            /// A · B with A in registers, four a k-step, and B in shared memory.
            ///
            /// # PTX
            #[doc = concat!("`wgmma.mma_async.sync.aligned.m64n", $n, "k16.f32.", $format, ".", $format,
                "` for ", $steps, " k-steps, the first with scale-d 0, after `wgmma.fence` and before `wgmma.commit_group`.")]
            /// # Hardware support
            /// sm_90a.
            #[track_caller]
            #[inline(always)]
            pub fn $rs_zero<B: Walk>(a: &[[u32; 4]; $steps], b: MatrixDescriptor) -> [f32; $count] {
                on! {
                    gpu => {
                        // SAFETY: as above.
                        let mut d: [f32; $count] = unsafe { core::mem::zeroed() };
                        product_asm!(rs $n, $format, out, "0", d, $indices, B, a, b, $steps);
                        d
                    }
                    emulator => {
                        let mut d = [0.0; $count];
                        emu::multiply(product::<B, B>(stringify!($rs_zero), Half::$half, None, a, b, $steps, true), &mut d);
                        d
                    }
                }
            }
        )*
    };
}

/// What the emulator needs to know of a product; `a` is `None` when A is in `registers`.
#[cfg(all(not(target_arch = "nvptx64"), feature = "emulator"))]
fn product<'a, A: Walk, B: Walk>(
    op: &'static str,
    format: Half,
    a: Option<MatrixDescriptor>,
    registers: &'a [[u32; 4]],
    b: MatrixDescriptor,
    steps: usize,
    zero: bool,
) -> emu::Product<'a> {
    let operand = |descriptor: MatrixDescriptor, offsets, mn_major| emu::Operand {
        descriptor: descriptor.bits(),
        mn_major: mn_major == 1,
        offsets,
    };
    emu::Product {
        op,
        format,
        a: match a {
            Some(a) => emu::Left::Shared(operand(a, A::OFFSETS, A::MN_MAJOR)),
            None => emu::Left::Registers(registers),
        },
        b: operand(b, B::OFFSETS, B::MN_MAJOR),
        steps,
        zero,
    }
}

width!(64, 32, [0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31],
    ("bf16", Bf16, 4, wgmma_m64n64k16x4_f32_bf16_ss, wgmma_m64n64k16x4_f32_bf16_ss_zero, wgmma_m64n64k16x4_f32_bf16_rs, wgmma_m64n64k16x4_f32_bf16_rs_zero),
    ("bf16", Bf16, 8, wgmma_m64n64k16x8_f32_bf16_ss, wgmma_m64n64k16x8_f32_bf16_ss_zero, wgmma_m64n64k16x8_f32_bf16_rs, wgmma_m64n64k16x8_f32_bf16_rs_zero),
    ("f16", F16, 4, wgmma_m64n64k16x4_f32_f16_ss, wgmma_m64n64k16x4_f32_f16_ss_zero, wgmma_m64n64k16x4_f32_f16_rs, wgmma_m64n64k16x4_f32_f16_rs_zero),
    ("f16", F16, 8, wgmma_m64n64k16x8_f32_f16_ss, wgmma_m64n64k16x8_f32_f16_ss_zero, wgmma_m64n64k16x8_f32_f16_rs, wgmma_m64n64k16x8_f32_f16_rs_zero));

width!(128, 64, [0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31 32 33 34 35 36 37 38 39 40 41 42 43 44 45 46 47 48 49 50 51 52 53 54 55 56 57 58 59 60 61 62 63],
    ("bf16", Bf16, 4, wgmma_m64n128k16x4_f32_bf16_ss, wgmma_m64n128k16x4_f32_bf16_ss_zero, wgmma_m64n128k16x4_f32_bf16_rs, wgmma_m64n128k16x4_f32_bf16_rs_zero),
    ("bf16", Bf16, 8, wgmma_m64n128k16x8_f32_bf16_ss, wgmma_m64n128k16x8_f32_bf16_ss_zero, wgmma_m64n128k16x8_f32_bf16_rs, wgmma_m64n128k16x8_f32_bf16_rs_zero),
    ("f16", F16, 4, wgmma_m64n128k16x4_f32_f16_ss, wgmma_m64n128k16x4_f32_f16_ss_zero, wgmma_m64n128k16x4_f32_f16_rs, wgmma_m64n128k16x4_f32_f16_rs_zero),
    ("f16", F16, 8, wgmma_m64n128k16x8_f32_f16_ss, wgmma_m64n128k16x8_f32_f16_ss_zero, wgmma_m64n128k16x8_f32_f16_rs, wgmma_m64n128k16x8_f32_f16_rs_zero));
