//! Packed sequences, one after the other, their keys side by side or in pages.

use candle_core::{Error, Result, bail};
use sample_attention::{BlockTable, Outputs, SeqLens, VarlenBounds, VarlenInputs};

use super::lengths::Integers;
use super::plans::{Key, Sizes};
use super::run::{Computed, Run, dtype};
use super::scalar::{Scalar, input};
use crate::call::Packed;

pub(super) fn run<T: Scalar>(run: &Run<'_, T>, packed: &Packed) -> Result<Computed<T>> {
    let q = &run.views.q;
    let (heads, tokens, head_dim) = (q.heads(), q.len(), q.head_dim());
    let seqlens_q = Integers::new("seqlens_q", &packed.seqlens_q)?;
    let seqlens_k = Integers::new("seqlens_k", &packed.seqlens_k)?;
    let sequences = seqlens_q.cumulative()?.saturating_sub(1);
    seqlens_k.cumulative()?;
    let table = packed
        .pages
        .as_ref()
        .map(|pages| Integers::new("block_table", &pages.block_table))
        .transpose()?;
    let table = match &table {
        Some(table) => Some((table, table.row_of(sequences)?)),
        None => None,
    };

    let bounds = VarlenBounds::causal(sequences, packed.max_seqlen_k, head_dim, dtype::<T>())
        .with_heads(heads, run.views.k.heads())
        .with_max_seqlen_q(packed.max_seqlen_q)
        // A tensor with room for more holds no more than this.
        .with_total_q(tokens.min(sequences.saturating_mul(packed.max_seqlen_q)))
        .with_softmax_scale(run.attention.softmax_scale)
        .with_causal(run.attention.visible.is_causal());
    let key = Key::new(Sizes::Packed(bounds), &run.attention.visible);
    let plan = run.workspace.plan(&key)?;
    let mut inputs = VarlenInputs::new(
        input(run.q, q).map_err(Error::wrap)?,
        input(run.k, &run.views.k).map_err(Error::wrap)?,
        input(run.v, &run.views.v).map_err(Error::wrap)?,
        SeqLens::cumulative(seqlens_q.indices()),
        SeqLens::cumulative(seqlens_k.indices()),
    );
    if let Some((table, row)) = table {
        inputs = inputs.with_block_table(BlockTable::new(table.indices(), row));
    }

    let elements = tokens * heads * head_dim;
    let mut o = Vec::<T>::with_capacity(elements);
    let mut lse = run.wants_lse.then(|| vec![0.0; tokens * heads]);
    let memory = &mut o.spare_capacity_mut()[..elements];
    let view = T::output(memory, q.shape, [0, head_dim, heads * head_dim, 1]);
    let mut outputs = Outputs::new(view.map_err(Error::wrap)?);
    if let Some(lse) = &mut lse {
        outputs = outputs.with_lse(lse);
    }
    let report = run.workspace.with_bytes(plan.workspace_bytes(), |bytes| {
        plan.run_packed(&inputs, outputs, bytes)
    })?;
    // SAFETY: the run has written every element of a contiguous view of all of them.
    unsafe { o.set_len(elements) };
    Ok(Computed {
        o,
        lse,
        report: Some(report),
    })
}

impl Integers {
    /// Entries of cumulative lengths, of which there is one more than there are sequences.
    fn cumulative(&self) -> Result<usize> {
        match *self.dims() {
            [entries] if entries >= 2 => Ok(entries),
            ref dims => bail!(
                "{} has shape {dims:?}: it must be cumulative lengths, [sequences + 1]",
                self.name()
            ),
        }
    }

    /// Entries of a sequence in a block table for so many of them.
    fn row_of(&self, sequences: usize) -> Result<usize> {
        match *self.dims() {
            [rows, row] if rows == sequences => Ok(row),
            ref dims => bail!(
                "{} has shape {dims:?}: it must be [sequences, most pages of one], and there are {sequences} sequences",
                self.name()
            ),
        }
    }
}
