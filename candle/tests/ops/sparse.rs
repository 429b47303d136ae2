//! What policies keep: the bits of the library's own plans, whole or in chunks.

use candle_core::{DType, Tensor};
use candle_sample_attention::{
    Budget, Fallback, HeadPolicy, Policies, Policy, Window, Workspace, flash_attn, sample_attn,
    sample_attn_with_lse,
};
use sample_attention::{
    Dtype, HeadPlan, Inputs, Outputs, Plan, Problem, TensorView, TensorViewMut,
};
use testkit::runner::{Attend, Case, Data};
use testkit::tensor::Qkv;

use crate::tensors::{Memory, by_heads, qkv, values};

fn never() -> Policy {
    Policy::default().with_fallback(Fallback::Never)
}

fn inputs(problem: Problem) -> Qkv {
    Case {
        data: Data::Structured,
        ..Case::new(problem, Attend::Dense)
    }
    .inputs()
}

/// The library's own result, in f32.
fn by_plan(problem: Problem, inputs: &Qkv, policies: Policies<'_>) -> (Vec<f32>, Vec<f32>) {
    let mut o = vec![0f32; problem.q_shape().iter().product()];
    let mut lse = vec![0f32; problem.lse_len()];
    let views = Inputs::new(
        TensorView::bhsd(&inputs.q.values, problem.q_shape()).unwrap(),
        TensorView::bhsd(&inputs.k.values, problem.kv_shape()).unwrap(),
        TensorView::bhsd(&inputs.v.values, problem.kv_shape()).unwrap(),
    );
    let outputs = Outputs::new(TensorViewMut::bhsd(&mut o, problem.q_shape()).unwrap());
    let outputs = outputs.with_lse(&mut lse);
    match policies {
        Policies::Same(policy) => {
            let plan = Plan::new(problem, *policy).unwrap();
            let mut workspace = vec![0; plan.workspace_bytes()];
            plan.run(&views, outputs, &mut workspace).unwrap();
        }
        Policies::PerHead(heads) => {
            let plan = HeadPlan::new(problem, heads).unwrap();
            let mut workspace = vec![0; plan.workspace_bytes()];
            plan.run(&views, outputs, &mut workspace).unwrap();
        }
        other => unimplemented!("{other:?}"),
    }
    (o, lse)
}

#[test]
fn policies_give_the_bits_of_the_librarys_plan_in_every_layout() -> candle_core::Result<()> {
    let problem = Problem::causal(700, 32, Dtype::F32)
        .with_heads(4, 2)
        .with_q_len(520)
        .with_batch(2);
    let inputs = inputs(problem);
    let local = HeadPolicy::Local {
        window: Window::Tokens(128),
        sinks: 16,
    };
    let alike = [
        never(),
        Policy::of(Budget::Blocks).with_fallback(Fallback::Never),
    ];
    let heads = [
        HeadPolicy::Dense,
        local,
        HeadPolicy::Selected(never()),
        HeadPolicy::Selected(never()),
    ];
    let policies = [
        Policies::Same(&alike[0]),
        Policies::Same(&alike[1]),
        Policies::PerHead(&heads),
    ];
    for policies in policies {
        let (o, lse) = by_plan(problem, &inputs, policies);
        for memory in Memory::ALL {
            let [q, k, v] = qkv(&inputs, memory, problem.dtype)?;
            let got = sample_attn_with_lse(&q, &k, &v, problem.softmax_scale, policies)?;
            assert_eq!(by_heads(&got.0)?, o, "{memory:?} {policies:?}");
            assert_eq!(values(&got.1)?, lse, "{memory:?} {policies:?}");
            let alone = sample_attn(&q, &k, &v, problem.softmax_scale, policies)?;
            assert_eq!(by_heads(&alone)?, o);
        }
    }
    Ok(())
}

#[test]
fn a_prompt_in_chunks_of_whole_blocks_gives_the_bits_of_the_whole() -> candle_core::Result<()> {
    let problem = Problem::causal(1024, 32, Dtype::Bf16).with_heads(4, 2);
    let inputs = inputs(problem);
    let [q, k, v] = qkv(&inputs, Memory::Cache, problem.dtype)?;
    let scale = problem.softmax_scale;
    let policy = never();
    let whole = sample_attn(&q, &k, &v, scale, &policy)?;
    let chunks = (0..4).map(|chunk| {
        let (from, to) = (chunk * 256, (chunk + 1) * 256);
        sample_attn(
            &q.narrow(1, from, 256)?,
            &k.narrow(1, 0, to)?,
            &v.narrow(1, 0, to)?,
            scale,
            &policy,
        )
    });
    let chunks = Tensor::cat(&chunks.collect::<candle_core::Result<Vec<_>>>()?, 1)?;
    assert_eq!(values(&chunks)?, values(&whole)?);
    Ok(())
}

#[test]
fn what_is_kept_is_close_to_dense_and_the_report_says_how_much() -> candle_core::Result<()> {
    let problem = Problem::causal(2048, 64, Dtype::Bf16).with_heads(2, 1);
    let [q, k, v] = qkv(&inputs(problem), Memory::Heads, problem.dtype)?;
    let scale = problem.softmax_scale;
    let workspace = Workspace::new();
    let sparse = workspace.scope(|| sample_attn(&q, &k, &v, scale, &Policy::default()))?;
    let report = workspace.take_report().unwrap();
    assert!(report.mean_density() < 0.9, "{}", report.mean_density());
    let dense = flash_attn(&q, &k, &v, scale, true)?;
    let (sparse, dense) = (values(&sparse)?, values(&dense)?);
    let error = testkit::tensor::relative_error(&sparse, &dense);
    assert!(error < 0.25, "{error}");
    Ok(())
}

#[test]
fn short_prompts_and_single_queries_are_dense() -> candle_core::Result<()> {
    for (q_len, k_len) in [(100, 100), (1, 3000)] {
        let problem = Problem::causal(k_len, 32, Dtype::F32)
            .with_q_len(q_len)
            .with_heads(2, 1);
        let [q, k, v] = qkv(&inputs(problem), Memory::Tokens, problem.dtype)?;
        let sparse = sample_attn(&q, &k, &v, 0.2, &Policy::default())?;
        let dense = flash_attn(&q, &k, &v, 0.2, true)?;
        assert_eq!(values(&sparse)?, values(&dense)?);
        assert_eq!(sparse.dtype(), DType::F32);
    }
    Ok(())
}
