//! A batch of equal lengths.

use candle_core::{Error, Result};
use sample_attention::{Inputs, Outputs, Problem};

use super::plans::{Key, Sizes};
use super::run::{Computed, Run, dtype};
use super::scalar::{Scalar, input};

pub(super) fn run<T: Scalar>(run: &Run<'_, T>) -> Result<Computed<T>> {
    let (q, k) = (&run.views.q, &run.views.k);
    let [batch, heads, tokens, head_dim] = q.shape;
    let elements = batch * heads * tokens * head_dim;
    let mut o = Vec::<T>::with_capacity(elements);
    let mut lse = run
        .wants_lse
        .then(|| vec![f32::NEG_INFINITY; batch * heads * tokens]);
    if elements == 0 || k.len() == 0 {
        o.resize(elements, T::NOUGHT);
        return Ok(Computed {
            o,
            lse,
            report: None,
        });
    }
    let problem = Problem::causal(k.len(), head_dim, dtype::<T>())
        .with_batch(batch)
        .with_heads(heads, k.heads())
        .with_q_len(tokens)
        .with_causal(run.attention.visible.is_causal())
        .with_softmax_scale(run.attention.softmax_scale);
    let key = Key::new(Sizes::Batch(problem), &run.attention.visible);
    let plan = run.workspace.plan(&key)?;
    let inputs = Inputs::new(
        input(run.q, q).map_err(Error::wrap)?,
        input(run.k, k).map_err(Error::wrap)?,
        input(run.v, &run.views.v).map_err(Error::wrap)?,
    );
    let memory = &mut o.spare_capacity_mut()[..elements];
    let strides = [tokens * heads * head_dim, head_dim, heads * head_dim, 1];
    let view = T::output(memory, q.shape, strides).map_err(Error::wrap)?;
    let mut outputs = Outputs::new(view);
    if let Some(lse) = &mut lse {
        outputs = outputs.with_lse(lse);
    }
    let report = run.workspace.with_bytes(plan.workspace_bytes(), |bytes| {
        plan.run(&inputs, outputs, bytes)
    })?;
    // SAFETY: the run has written every element of a contiguous view of all of them.
    unsafe { o.set_len(elements) };
    Ok(Computed {
        o,
        lse,
        report: Some(report),
    })
}
