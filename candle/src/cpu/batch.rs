//! A batch of equal lengths, and the part of a call that every kind of batch has.

use std::mem::MaybeUninit;

use candle_core::{Error, Result};
use sample_attention::{Inputs, Outputs, Problem, Report};

use super::plans::{CpuPlan, Key};
use super::run::{Computed, Run, dtype};
use super::scalar::{Scalar, input};
use crate::view::View;

/// What one run of a plan writes.
pub(super) struct Target<'a, T> {
    pub(super) o: &'a mut [MaybeUninit<T>],
    /// In elements, of [batch, heads, tokens, head_dim].
    pub(super) strides: [usize; 4],
    /// Contiguous [batch, heads, tokens].
    pub(super) lse: Option<&'a mut [f32]>,
}

pub(super) fn run<T: Scalar>(run: &Run<'_, T>) -> Result<Computed<T>> {
    let q = &run.views.q;
    let [batch, heads, tokens, head_dim] = q.shape;
    let elements = batch * heads * tokens * head_dim;
    let mut o = Vec::<T>::with_capacity(elements);
    let mut lse = run
        .wants_lse
        .then(|| vec![f32::NEG_INFINITY; batch * heads * tokens]);
    if elements == 0 || run.views.k.len() == 0 {
        o.resize(elements, T::NOUGHT);
        return Ok(Computed {
            o,
            lse,
            report: None,
        });
    }
    let target = Target {
        o: &mut o.spare_capacity_mut()[..elements],
        strides: [tokens * heads * head_dim, head_dim, heads * head_dim, 1],
        lse: lse.as_deref_mut(),
    };
    let keys = (run.k, &run.views.k, run.v, &run.views.v);
    let report = attend(run, q, keys, target)?;
    // SAFETY: the run has written every element of a contiguous view of all of them.
    unsafe { o.set_len(elements) };
    Ok(Computed {
        o,
        lse,
        report: Some(report),
    })
}

/// One run of a plan: the queries of `q` over keys and values in the given storage. An error leaves the target as it was.
pub(super) fn attend<T: Scalar>(
    run: &Run<'_, T>,
    q: &View,
    (k_data, k, v_data, v): (&[T], &View, &[T], &View),
    target: Target<'_, T>,
) -> Result<Report> {
    let [batch, heads, tokens, head_dim] = q.shape;
    let problem = Problem::causal(k.len(), head_dim, dtype::<T>())
        .with_batch(batch)
        .with_heads(heads, k.heads())
        .with_q_len(tokens)
        .with_causal(run.attention.visible.is_causal())
        .with_softmax_scale(run.attention.softmax_scale);
    let key = Key {
        problem,
        visible: run.attention.visible.clone(),
        threads: rayon::current_num_threads(),
    };
    let plan = run.workspace.plan(&key, || CpuPlan::new(&key))?;
    let inputs = Inputs::new(
        input(run.q, q).map_err(Error::wrap)?,
        input(k_data, k).map_err(Error::wrap)?,
        input(v_data, v).map_err(Error::wrap)?,
    );
    let o = T::output(target.o, q.shape, target.strides).map_err(Error::wrap)?;
    let outputs = match target.lse {
        Some(lse) => Outputs::new(o).with_lse(lse),
        None => Outputs::new(o),
    };
    run.workspace.with_bytes(plan.workspace_bytes(), |bytes| {
        plan.run(&inputs, outputs, bytes)
    })
}
