//! Plans, made once for all layers and calls of the same bounds.

use candle_core::{Error, Result, bail};
use sample_attention::pipeline::GpuPlan;
use sample_attention::{Dtype, Problem, VarlenBounds};

use crate::call::{Attention, Views};
use crate::policies::Visible;

/// What a plan is of.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Key {
    sizes: Sizes,
    visible: Visible,
}

#[derive(Clone, Debug, PartialEq)]
enum Sizes {
    Batch(Problem),
    Packed(VarlenBounds),
}

impl Key {
    pub(super) fn new(attention: &Attention, views: &Views, dtype: Dtype) -> Result<Self> {
        let [batch, heads, tokens, head_dim] = views.q.shape;
        let causal = attention.visible.is_causal();
        let sizes = match &attention.packed {
            None => Sizes::Batch(
                Problem::causal(views.k.len(), head_dim, dtype)
                    .with_batch(batch)
                    .with_heads(heads, views.k.heads())
                    .with_q_len(tokens)
                    .with_causal(causal)
                    .with_softmax_scale(attention.softmax_scale),
            ),
            Some(packed) => {
                let ends = packed.seqlens_q.dims1()?;
                if ends < 2 || packed.seqlens_k.dims1()? != ends {
                    bail!(
                        "seqlens_q and seqlens_k must both have one more entry than there are sequences: they have {:?} and {:?}",
                        packed.seqlens_q.dims(),
                        packed.seqlens_k.dims()
                    )
                }
                let sequences = ends - 1;
                if let Some(pages) = &packed.pages
                    && pages.block_table.dims2()?.0 != sequences
                {
                    bail!(
                        "block_table has {} rows for {sequences} sequences",
                        pages.block_table.dims2()?.0
                    )
                }
                Sizes::Packed(
                    VarlenBounds::causal(sequences, packed.max_seqlen_k, head_dim, dtype)
                        .with_heads(heads, views.k.heads())
                        .with_max_seqlen_q(packed.max_seqlen_q)
                        // A tensor with room for more holds no more than this.
                        .with_total_q(tokens.min(sequences.saturating_mul(packed.max_seqlen_q)))
                        .with_softmax_scale(attention.softmax_scale)
                        .with_causal(causal),
                )
            }
        };
        Ok(Key {
            sizes,
            visible: attention.visible.clone(),
        })
    }

    pub(super) fn plan(&self) -> Result<GpuPlan> {
        match (&self.sizes, &self.visible) {
            (&Sizes::Batch(problem), Visible::Dense { .. }) => GpuPlan::dense(problem),
            (&Sizes::Batch(problem), Visible::Same(policy)) => GpuPlan::new(problem, *policy),
            (&Sizes::Batch(problem), Visible::PerHead(heads)) => GpuPlan::per_head(problem, heads),
            (&Sizes::Packed(bounds), Visible::Dense { .. }) => GpuPlan::for_bounds(bounds, None),
            (&Sizes::Packed(bounds), Visible::Same(policy)) => {
                GpuPlan::for_bounds(bounds, Some(*policy))
            }
            (Sizes::Packed(_), Visible::PerHead(_)) => bail!(
                "a policy for each head of packed sequences is not there yet on CUDA devices: use one policy, or a batch of equal lengths"
            ),
        }
        .map_err(Error::wrap)
    }
}
