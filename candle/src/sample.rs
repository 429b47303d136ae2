//! Attention to what a policy keeps.

use candle_core::{Result, Tensor};

use crate::call::{Attention, Packed};
use crate::policies::Policies;

/// Sparse causal attention over the keys that `policies` select.
///
/// `q` is [batch, tokens, q_heads, head_dim], `k` and `v` are [batch, key tokens, kv_heads, head_dim]; `kv_heads` divides `q_heads`.
/// Query `i` sees keys up to `i + key tokens - tokens`: a chunk of a prompt over the cache so far is the same call as a whole prompt.
/// `policies` is a [`Policy`](crate::Policy) for all heads, or one [`HeadPolicy`](crate::HeadPolicy) for each. Where a selection cannot
/// pay (few keys, few queries), a policy with [`Fallback::Auto`](crate::Fallback::Auto) attends to everything. The result is as `q`,
/// contiguous; rows that see no key are 0.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use candle_sample_attention::{Policy, sample_attn};
/// # fn main() -> candle_core::Result<()> {
/// let q = Tensor::randn(0f32, 1., (1, 2048, 4, 64), &Device::Cpu)?;
/// let kv = Tensor::randn(0f32, 1., (1, 2048, 2, 64), &Device::Cpu)?;
/// let o = sample_attn(&q, &kv, &kv, 1. / 64f32.sqrt(), &Policy::default())?;
/// assert_eq!(o.dims(), q.dims());
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// Shapes that do not fit, policies out of range, element types and head dimensions without a kernel, and a last dimension that is not
/// contiguous.
pub fn sample_attn<'p>(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    softmax_scale: f32,
    policies: impl Into<Policies<'p>>,
) -> Result<Tensor> {
    attention(softmax_scale, policies.into(), None).run(q, k, v)
}

/// As [`sample_attn`], and the natural log-sum-exp of each row over the keys that it kept: f32, [batch, q_heads, tokens]; −∞ where a row
/// sees no key.
///
/// # Errors
/// As [`sample_attn`].
pub fn sample_attn_with_lse<'p>(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    softmax_scale: f32,
    policies: impl Into<Policies<'p>>,
) -> Result<(Tensor, Tensor)> {
    attention(softmax_scale, policies.into(), None).run_with_lse(q, k, v)
}

/// As [`sample_attn`], of packed sequences, whose tensors and lengths are those of [`flash_attn_varlen`](crate::flash_attn_varlen).
///
/// # Errors
/// As both.
#[expect(clippy::too_many_arguments, reason = "candle-flash-attn's order")]
pub fn sample_attn_varlen<'p>(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    seqlens_q: &Tensor,
    seqlens_k: &Tensor,
    max_seqlen_q: usize,
    max_seqlen_k: usize,
    softmax_scale: f32,
    policies: impl Into<Policies<'p>>,
) -> Result<Tensor> {
    let packed = Packed::new(seqlens_q, seqlens_k, max_seqlen_q, max_seqlen_k);
    attention(softmax_scale, policies.into(), Some(packed)).run(q, k, v)
}

/// As [`sample_attn_varlen`], and the natural log-sum-exp: f32, [q_heads, total queries].
///
/// # Errors
/// As [`sample_attn_varlen`].
#[expect(clippy::too_many_arguments, reason = "candle-flash-attn's order")]
pub fn sample_attn_varlen_with_lse<'p>(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    seqlens_q: &Tensor,
    seqlens_k: &Tensor,
    max_seqlen_q: usize,
    max_seqlen_k: usize,
    softmax_scale: f32,
    policies: impl Into<Policies<'p>>,
) -> Result<(Tensor, Tensor)> {
    let packed = Packed::new(seqlens_q, seqlens_k, max_seqlen_q, max_seqlen_k);
    attention(softmax_scale, policies.into(), Some(packed)).run_with_lse(q, k, v)
}

/// As [`sample_attn_varlen`], with keys and values in pages, as
/// [`flash_attn_varlen_paged_windowed`](crate::flash_attn_varlen_paged_windowed) takes them.
///
/// # Errors
/// As both.
#[expect(clippy::too_many_arguments, reason = "candle-flash-attn's order")]
pub fn sample_attn_varlen_paged<'p>(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    seqlens_q: &Tensor,
    seqlens_k: &Tensor,
    block_table: &Tensor,
    max_seqlen_q: usize,
    max_seqlen_k: usize,
    softmax_scale: f32,
    page_block_size: usize,
    policies: impl Into<Policies<'p>>,
) -> Result<Tensor> {
    let packed = Packed::new(seqlens_q, seqlens_k, max_seqlen_q, max_seqlen_k)
        .in_pages(block_table, page_block_size);
    attention(softmax_scale, policies.into(), Some(packed)).run(q, k, v)
}

/// As [`sample_attn_varlen_paged`], and the natural log-sum-exp: f32, [q_heads, total queries].
///
/// # Errors
/// As [`sample_attn_varlen_paged`].
#[expect(clippy::too_many_arguments, reason = "candle-flash-attn's order")]
pub fn sample_attn_varlen_paged_with_lse<'p>(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    seqlens_q: &Tensor,
    seqlens_k: &Tensor,
    block_table: &Tensor,
    max_seqlen_q: usize,
    max_seqlen_k: usize,
    softmax_scale: f32,
    page_block_size: usize,
    policies: impl Into<Policies<'p>>,
) -> Result<(Tensor, Tensor)> {
    let packed = Packed::new(seqlens_q, seqlens_k, max_seqlen_q, max_seqlen_k)
        .in_pages(block_table, page_block_size);
    attention(softmax_scale, policies.into(), Some(packed)).run_with_lse(q, k, v)
}

fn attention(softmax_scale: f32, policies: Policies<'_>, packed: Option<Packed>) -> Attention {
    Attention {
        softmax_scale,
        visible: policies.into(),
        packed,
    }
}
