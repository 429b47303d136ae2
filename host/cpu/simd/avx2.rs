//! AVX2 with FMA and F16C, which every machine with AVX2 has: 8 lanes, 16 registers.

use std::arch::x86_64::*;

use half::{bf16, f16};

use super::{Kernel, Lanes, PANEL, Simd};

/// Proof that the machine has AVX2, FMA and F16C.
#[derive(Clone, Copy)]
pub(super) struct Avx2(());

impl Avx2 {
    pub(super) fn new() -> Option<Self> {
        let all = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c");
        all.then_some(Avx2(()))
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn compiled<K: Kernel>(simd: Avx2, kernel: K) -> K::Output {
    kernel.run(simd)
}

// SAFETY for every block below: `self` proves that the machine has AVX2, FMA and F16C.
impl Simd for Avx2 {
    type F32 = __m256;
    const LANES: usize = 8;

    #[inline(always)]
    fn vectorize<K: Kernel>(self, kernel: K) -> K::Output {
        // SAFETY: see above.
        unsafe { compiled(self, kernel) }
    }
    #[inline(always)]
    fn splat(self, x: f32) -> __m256 {
        // SAFETY: see above.
        unsafe { _mm256_set1_ps(x) }
    }
    #[inline(always)]
    fn load(self, from: &Lanes, at: usize) -> __m256 {
        debug_assert!(at.is_multiple_of(8) && at < PANEL);
        // SAFETY: as above; callers step by LANES through PANEL, and `Lanes` is 64-byte aligned.
        unsafe { _mm256_load_ps(from.0.as_ptr().add(at)) }
    }
    #[inline(always)]
    fn store(self, to: &mut Lanes, at: usize, x: __m256) {
        debug_assert!(at.is_multiple_of(8) && at < PANEL);
        // SAFETY: as for `load`.
        unsafe { _mm256_store_ps(to.0.as_mut_ptr().add(at), x) }
    }
    #[inline(always)]
    fn load_f32(self, from: &[f32]) -> __m256 {
        let from = &from[..Self::LANES];
        // SAFETY: as above; `from` holds 8 elements.
        unsafe { _mm256_loadu_ps(from.as_ptr()) }
    }
    #[inline(always)]
    fn load_f16(self, from: &[f16]) -> __m256 {
        let from = &from[..Self::LANES];
        // SAFETY: as above; `from` holds 8 elements of 16 bits.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(from.as_ptr().cast())) }
    }
    #[inline(always)]
    fn load_bf16(self, from: &[bf16]) -> __m256 {
        let from = &from[..Self::LANES];
        // SAFETY: as above; `from` holds 8 elements of 16 bits. A bf16 is the upper half of an f32.
        unsafe {
            let bits = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.as_ptr().cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(bits))
        }
    }
    #[inline(always)]
    fn store_f32(self, to: &mut [f32], x: __m256) {
        let to = &mut to[..Self::LANES];
        // SAFETY: as above; `to` holds 8 elements.
        unsafe { _mm256_storeu_ps(to.as_mut_ptr(), x) }
    }
    #[inline(always)]
    fn prefetch<T>(self, from: &[T]) {
        // SAFETY: a hint, which reads nothing. To the second-level cache: the first is too small for what is asked for so early.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(from.as_ptr().cast()) }
    }
    #[inline(always)]
    fn sum_of_lanes(self, x: __m256) -> f32 {
        // SAFETY: see above.
        unsafe {
            let half = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
            let quarter = _mm_add_ps(half, _mm_movehl_ps(half, half));
            _mm_cvtss_f32(_mm_add_ss(quarter, _mm_movehdup_ps(quarter)))
        }
    }
    #[inline(always)]
    fn add(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: see above.
        unsafe { _mm256_add_ps(a, b) }
    }
    #[inline(always)]
    fn sub(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: see above.
        unsafe { _mm256_sub_ps(a, b) }
    }
    #[inline(always)]
    fn mul(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: see above.
        unsafe { _mm256_mul_ps(a, b) }
    }
    #[inline(always)]
    fn mul_add(self, a: __m256, b: __m256, c: __m256) -> __m256 {
        // SAFETY: see above.
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    fn max(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: see above.
        unsafe { _mm256_max_ps(a, b) }
    }
    #[inline(always)]
    fn select_lt(self, a: __m256, b: __m256, yes: __m256, no: __m256) -> __m256 {
        // SAFETY: see above.
        unsafe { _mm256_blendv_ps(no, yes, _mm256_cmp_ps::<_CMP_LT_OQ>(a, b)) }
    }
    #[inline(always)]
    fn exp2_of_rounded(self, n_plus_magic: __m256) -> __m256 {
        // SAFETY: see above.
        unsafe {
            let biased =
                _mm256_add_epi32(_mm256_castps_si256(n_plus_magic), _mm256_set1_epi32(127));
            _mm256_castsi256_ps(_mm256_slli_epi32::<23>(biased))
        }
    }
}
