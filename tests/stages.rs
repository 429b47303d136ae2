//! Stages that are called out of order are refused: the wave buffers hold whatever the caller's bytes held, or another wave.

use sample_attention::{
    Budget, Dtype, Error, Fallback, Inputs, Outputs, Plan, Policy, Problem, TensorView,
    TensorViewMut,
};

fn out_of_order<T: std::fmt::Debug>(result: Result<T, Error>, needed: &str) {
    let error = result.expect_err("out of order");
    assert!(matches!(error, Error::StageOrder { .. }), "{error}");
    assert!(error.to_string().contains(needed), "{error}");
}

fn outputs<'a>(o: &'a mut [f32], problem: &Problem) -> Outputs<'a> {
    Outputs::new(TensorViewMut::bhsd(o, problem.q_shape()).unwrap())
}

#[test]
fn stages_out_of_order_are_refused_and_in_order_go_on() {
    for budget in [
        Budget::Rows,
        Budget::Blocks,
        Budget::Residual,
        Budget::Paper,
    ] {
        let problem = Problem::causal(700, 8, Dtype::F32);
        let policy = Policy::default()
            .with_budget(budget)
            .with_fallback(Fallback::Never);
        let plan = Plan::new(problem, policy).unwrap();
        let data: Vec<f32> = (0..700 * 8).map(|x| (x % 17) as f32 / 8.0).collect();
        let view = TensorView::bhsd(&data, problem.q_shape()).unwrap();
        let inputs = Inputs::new(view, view, view);
        let mut o = vec![0f32; 700 * 8];
        let mut workspace = vec![0xff; plan.workspace_bytes()];
        let mut stages = plan.stages(&inputs, &mut workspace).unwrap();
        out_of_order(stages.reduction(0), "sampling");
        out_of_order(stages.top_k(0), "reduction");
        out_of_order(stages.sampled_rows(0), "sampling");
        out_of_order(stages.masses(0), "reduction");
        out_of_order(stages.sparse_flash(outputs(&mut o, &problem)), "top_k");
        let missing = stages.masses(9).unwrap_err();
        assert!(matches!(missing, Error::NoSuchWave { .. }), "{missing}");
        stages.sampling(0).unwrap();
        out_of_order(stages.top_k(0), "reduction");
        stages.reduction(0).unwrap();
        stages.top_k(0).unwrap();
        let once = stages.report().heads;
        // Again, as benchmarks do: the same rows count once.
        stages.top_k(0).unwrap();
        assert_eq!(stages.report().heads, once);
        stages.sparse_flash(outputs(&mut o, &problem)).unwrap();
        // A new sampling makes older masses those of another pass.
        stages.sampling(0).unwrap();
        out_of_order(stages.top_k(0), "reduction");
    }
}
