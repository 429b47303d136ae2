//! Dense attention under `candle-flash-attn`'s names.

use candle_core::{Result, Tensor, bail};

use crate::call::{Attention, Packed};
use crate::policies::Visible;
use crate::windows;

fn dense(softmax_scale: f32, causal: bool, packed: Option<Packed>) -> Attention {
    Attention {
        softmax_scale,
        visible: Visible::Dense { causal },
        packed,
    }
}

/// Dense attention: softmax(q · kᵀ · `softmax_scale`) · v.
///
/// `q` is [batch, tokens, q_heads, head_dim], `k` and `v` are [batch, key tokens, kv_heads, head_dim]; `kv_heads` divides `q_heads`.
/// With `causal`, query `i` sees the keys up to `i + key tokens - tokens`. The result is as `q`, contiguous; rows that see no key are 0.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use candle_sample_attention::flash_attn;
/// # fn main() -> candle_core::Result<()> {
/// let q = Tensor::randn(0f32, 1., (1, 300, 8, 64), &Device::Cpu)?;
/// let k = Tensor::randn(0f32, 1., (1, 2, 300, 64), &Device::Cpu)?.transpose(1, 2)?; // no copy
/// let v = Tensor::randn(0f32, 1., (1, 300, 2, 64), &Device::Cpu)?;
/// let o = flash_attn(&q, &k, &v, 1. / 64f32.sqrt(), true)?;
/// assert_eq!(o.dims(), [1, 300, 8, 64]);
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// Shapes that do not fit, element types and head dimensions without a kernel, and a last dimension that is not contiguous.
pub fn flash_attn(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    softmax_scale: f32,
    causal: bool,
) -> Result<Tensor> {
    dense(softmax_scale, causal, None).run(q, k, v)
}

/// As [`flash_attn`], and the natural log-sum-exp of each row: f32, [batch, q_heads, tokens]; −∞ where a row sees no key. Two results over
/// disjoint keys merge by it. `candle-flash-attn` has no such function.
///
/// # Errors
/// As [`flash_attn`].
pub fn flash_attn_with_lse(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    softmax_scale: f32,
    causal: bool,
) -> Result<(Tensor, Tensor)> {
    dense(softmax_scale, causal, None).run_with_lse(q, k, v)
}

/// As [`flash_attn`]; `window_size_right` of `Some(0)` is the causal mask.
///
/// # Errors
/// As [`flash_attn`], and any other window that would hide keys.
pub fn flash_attn_windowed(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    softmax_scale: f32,
    window_size_left: Option<usize>,
    window_size_right: Option<usize>,
) -> Result<Tensor> {
    let (max_q, max_k) = (q.dim(1)?, k.dim(1)?);
    let causal = windows::causal(window_size_left, window_size_right, max_q, max_k)?;
    dense(softmax_scale, causal, None).run(q, k, v)
}

/// As [`flash_attn`], of packed sequences: `q` is [total queries, q_heads, head_dim], `k` and `v` are [total keys, kv_heads, head_dim].
///
/// `seqlens_q` and `seqlens_k` are cumulative, u32 or i32, \[sequences + 1\], on the device of the other tensors. No sequence is longer
/// than `max_seqlen_q` and `max_seqlen_k`; on CUDA devices lengths beyond them are cut, as nobody waits for the device to tell. Rows
/// that belong to no sequence are 0.
///
/// # Errors
/// As [`flash_attn`]; on the CPU also lengths that do not ascend or that leave the tensors.
#[expect(clippy::too_many_arguments, reason = "candle-flash-attn's signature")]
pub fn flash_attn_varlen(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    seqlens_q: &Tensor,
    seqlens_k: &Tensor,
    max_seqlen_q: usize,
    max_seqlen_k: usize,
    softmax_scale: f32,
    causal: bool,
) -> Result<Tensor> {
    let packed = Packed::new(seqlens_q, seqlens_k, max_seqlen_q, max_seqlen_k);
    dense(softmax_scale, causal, Some(packed)).run(q, k, v)
}

/// As [`flash_attn_varlen`], with the windows of [`flash_attn_windowed`].
///
/// # Errors
/// As both.
#[expect(clippy::too_many_arguments, reason = "candle-flash-attn's signature")]
pub fn flash_attn_varlen_windowed(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    seqlens_q: &Tensor,
    seqlens_k: &Tensor,
    max_seqlen_q: usize,
    max_seqlen_k: usize,
    softmax_scale: f32,
    window_size_left: Option<usize>,
    window_size_right: Option<usize>,
) -> Result<Tensor> {
    let causal = windows::causal(
        window_size_left,
        window_size_right,
        max_seqlen_q,
        max_seqlen_k,
    )?;
    flash_attn_varlen(
        q,
        k,
        v,
        seqlens_q,
        seqlens_k,
        max_seqlen_q,
        max_seqlen_k,
        softmax_scale,
        causal,
    )
}

/// As [`flash_attn_varlen_windowed`], with keys and values in pages: `k` and `v` are [pages, `page_block_size`, kv_heads, head_dim], and
/// `block_table` [sequences, most pages of one], u32 or i32, names the pages of each sequence in order. `page_block_size` is 16, 32,
/// 64 or 128. `seqlens_k` is cumulative here too.
///
/// # Errors
/// As [`flash_attn_varlen_windowed`]; `mm_prefix_ranges` and `softcap`, which are not supported; on the CPU also pages that are not there.
#[expect(clippy::too_many_arguments, reason = "candle-flash-attn's signature")]
pub fn flash_attn_varlen_paged_windowed(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    seqlens_q: &Tensor,
    seqlens_k: &Tensor,
    block_table: &Tensor,
    mm_prefix_ranges: Option<&Tensor>,
    max_seqlen_q: usize,
    max_seqlen_k: usize,
    softmax_scale: f32,
    window_size_left: Option<usize>,
    window_size_right: Option<usize>,
    page_block_size: usize,
    softcap: Option<f32>,
) -> Result<Tensor> {
    if mm_prefix_ranges.is_some() {
        bail!(
            "mm_prefix_ranges is not supported: use candle-flash-attn where images attend to what follows them"
        )
    }
    if let Some(softcap) = softcap.filter(|&softcap| softcap != 0.0) {
        bail!("softcap = {softcap} is not supported: use candle-flash-attn for such models")
    }
    let causal = windows::causal(
        window_size_left,
        window_size_right,
        max_seqlen_q,
        max_seqlen_k,
    )?;
    let packed = Packed::new(seqlens_q, seqlens_k, max_seqlen_q, max_seqlen_k)
        .in_pages(block_table, page_block_size);
    dense(softmax_scale, causal, Some(packed)).run(q, k, v)
}
