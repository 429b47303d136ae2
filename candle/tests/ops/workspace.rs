//! Memory and plans are made once.

use candle_core::{Device, Result, Tensor};
use candle_sample_attention::{Fallback, Policy, Workspace, flash_attn, sample_attn};

use crate::tensors::values;

#[test]
fn a_workspace_grows_to_the_largest_call_and_stays() -> Result<()> {
    let policy = Policy::default().with_fallback(Fallback::Never);
    let q = Tensor::randn(0f32, 1., (1, 600, 2, 32), &Device::Cpu)?;
    let short = q.narrow(1, 0, 200)?;
    let workspace = Workspace::new();
    assert_eq!(workspace.host_bytes(), 0);
    workspace.scope(|| {
        sample_attn(&short, &short, &short, 0.2, &policy)?;
        let small = workspace.host_bytes();
        let first = values(&sample_attn(&q, &q, &q, 0.2, &policy)?)?;
        let large = workspace.host_bytes();
        assert!(0 < small && small <= large);
        for _ in 0..3 {
            sample_attn(&short, &short, &short, 0.2, &policy)?;
            assert_eq!(values(&sample_attn(&q, &q, &q, 0.2, &policy)?)?, first);
            flash_attn(&q, &q, &q, 0.2, true)?;
        }
        assert_eq!(workspace.host_bytes(), large);
        Ok(())
    })
}

#[test]
fn scopes_nest_and_end() -> Result<()> {
    let q = Tensor::ones((1, 300, 2, 32), candle_core::DType::F32, &Device::Cpu)?;
    let (outer, inner) = (Workspace::new(), Workspace::new());
    outer.scope(|| {
        let panicked = std::panic::catch_unwind(|| inner.scope(|| panic!("inside")));
        assert!(panicked.is_err());
        flash_attn(&q, &q, &q, 0.2, true)
    })?;
    flash_attn(&q, &q, &q, 0.2, true)?;
    assert!(outer.take_report().is_some() && inner.take_report().is_none());
    assert!(outer.take_report().is_none());
    Ok(())
}

#[test]
fn threads_of_a_pool_may_share_a_workspace() -> Result<()> {
    use rayon::prelude::*;
    let q = Tensor::randn(0f32, 1., (1, 400, 2, 32), &Device::Cpu)?;
    let policy = Policy::default().with_fallback(Fallback::Never);
    let expected = values(&sample_attn(&q, &q, &q, 0.2, &policy)?)?;
    let workspace = Workspace::new();
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(3)
        .build()
        .unwrap();
    let all = pool.install(|| {
        (0..24)
            .into_par_iter()
            .map(|_| workspace.scope(|| values(&sample_attn(&q, &q, &q, 0.2, &policy)?)))
            .collect::<Result<Vec<_>>>()
    })?;
    assert!(all.iter().all(|one| *one == expected));
    Ok(())
}
