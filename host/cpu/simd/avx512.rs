//! AVX-512F and VL: 16 lanes, 32 registers.

use std::arch::x86_64::*;

use half::{bf16, f16};

use super::{Kernel, Lanes, PANEL, Simd};

/// Proof that the machine has AVX-512F and VL.
#[derive(Clone, Copy)]
pub(super) struct Avx512(());

impl Avx512 {
    pub(super) fn new() -> Option<Self> {
        // FMA and AVX2 come with every AVX-512F machine, but the compiler wants to be told.
        // VL, which all machines with AVX-512 but Xeon Phi have, lets halves of the upper 16 registers be taken, for sums of lanes.
        let all = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma");
        all.then_some(Avx512(()))
    }
}

#[target_feature(enable = "avx512f,avx512vl,avx2,fma")]
fn compiled<K: Kernel>(simd: Avx512, kernel: K) -> K::Output {
    kernel.run(simd)
}

// SAFETY for every block below: `self` proves that the machine has AVX-512F and VL.
impl Simd for Avx512 {
    type F32 = __m512;
    const LANES: usize = 16;

    #[inline(always)]
    fn vectorize<K: Kernel>(self, kernel: K) -> K::Output {
        // SAFETY: see above.
        unsafe { compiled(self, kernel) }
    }
    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_set1_ps(x) }
    }
    #[inline(always)]
    fn load(self, from: &Lanes, at: usize) -> __m512 {
        debug_assert!(at.is_multiple_of(16) && at < PANEL);
        // SAFETY: as above; callers step by LANES through PANEL, and `Lanes` is 64-byte aligned.
        unsafe { _mm512_load_ps(from.0.as_ptr().add(at)) }
    }
    #[inline(always)]
    fn store(self, to: &mut Lanes, at: usize, x: __m512) {
        debug_assert!(at.is_multiple_of(16) && at < PANEL);
        // SAFETY: as for `load`.
        unsafe { _mm512_store_ps(to.0.as_mut_ptr().add(at), x) }
    }
    #[inline(always)]
    fn load_f32(self, from: &[f32]) -> __m512 {
        let from = &from[..Self::LANES];
        // SAFETY: as above; `from` holds 16 elements.
        unsafe { _mm512_loadu_ps(from.as_ptr()) }
    }
    #[inline(always)]
    fn load_f16(self, from: &[f16]) -> __m512 {
        let from = &from[..Self::LANES];
        // SAFETY: as above; `from` holds 16 elements of 16 bits.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.as_ptr().cast())) }
    }
    #[inline(always)]
    fn load_bf16(self, from: &[bf16]) -> __m512 {
        let from = &from[..Self::LANES];
        // SAFETY: as above; `from` holds 16 elements of 16 bits. A bf16 is the upper half of an f32.
        unsafe {
            let bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.as_ptr().cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(bits))
        }
    }
    #[inline(always)]
    fn store_f32(self, to: &mut [f32], x: __m512) {
        let to = &mut to[..Self::LANES];
        // SAFETY: as above; `to` holds 16 elements.
        unsafe { _mm512_storeu_ps(to.as_mut_ptr(), x) }
    }
    #[inline(always)]
    fn prefetch<T>(self, from: &[T]) {
        // SAFETY: a hint, which reads nothing. To the second-level cache: the first is too small for what is asked for so early.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(from.as_ptr().cast()) }
    }
    #[inline(always)]
    fn sum_of_lanes(self, x: __m512) -> f32 {
        // SAFETY: see above. Written out, since the order of `_mm512_reduce_add_ps` is the compiler's.
        unsafe {
            let upper = _mm256_castpd_ps(_mm512_extractf64x4_pd::<1>(_mm512_castps_pd(x)));
            let eight = _mm256_add_ps(_mm512_castps512_ps256(x), upper);
            let four = _mm_add_ps(
                _mm256_castps256_ps128(eight),
                _mm256_extractf128_ps::<1>(eight),
            );
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
        }
    }
    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_sub_ps(a, b) }
    }
    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    fn mul_add(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_max_ps(a, b) }
    }
    #[inline(always)]
    fn select_lt(self, a: __m512, b: __m512, yes: __m512, no: __m512) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b), no, yes) }
    }
    #[inline(always)]
    fn exp2_of_rounded(self, n_plus_magic: __m512) -> __m512 {
        // SAFETY: see above.
        unsafe {
            let biased =
                _mm512_add_epi32(_mm512_castps_si512(n_plus_magic), _mm512_set1_epi32(127));
            _mm512_castsi512_ps(_mm512_slli_epi32::<23>(biased))
        }
    }
}
