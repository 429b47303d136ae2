//! Errors of tensors, outputs and workspaces: what brings each about, that its text names the remedy, and that nothing
//! was written.

use half::{bf16, f16};
use sample_attention::{
    Dtype, Error, Fallback, Inputs, Outputs, Plan, Policy, Problem, Result, Selection, TensorView,
    TensorViewMut,
};
use testkit::refused;

fn problem() -> Problem {
    Problem::causal(100, 16, Dtype::F32).with_heads(4, 2)
}

/// A dense plan and one that selects.
fn plans() -> [Plan; 2] {
    let policy = Policy::default().with_fallback(Fallback::Never);
    [
        Plan::dense(problem()).unwrap(),
        Plan::new(problem(), policy).unwrap(),
    ]
}

fn inputs(data: &[f32]) -> Inputs<'_> {
    let kv = TensorView::bhsd(data, problem().kv_shape()).unwrap();
    Inputs::new(TensorView::bhsd(data, problem().q_shape()).unwrap(), kv, kv)
}

/// What a call brings besides its inputs.
struct Rest {
    o_shape: [usize; 4],
    lse_len: usize,
    workspace_bytes: usize,
}

impl Rest {
    fn of(plan: &Plan) -> Self {
        Rest {
            o_shape: problem().q_shape(),
            lse_len: problem().lse_len(),
            workspace_bytes: plan.workspace_bytes(),
        }
    }

    /// Runs the plan; where it refuses, O and LSE must be as they were.
    fn run(self, plan: &Plan, inputs: &Inputs<'_>) -> Result<()> {
        let mut o = vec![7f32; self.o_shape.iter().product()];
        let mut lse = vec![7f32; self.lse_len];
        let mut workspace = vec![0; self.workspace_bytes];
        let outputs = Outputs::new(TensorViewMut::bhsd(&mut o, self.o_shape)?).with_lse(&mut lse);
        let result = plan.run(inputs, outputs, &mut workspace).map(|_| ());
        let untouched = o.iter().chain(&lse).all(|&x| x == 7.0);
        assert_eq!(
            untouched,
            result.is_err(),
            "O and LSE are written exactly by calls that succeed"
        );
        result
    }
}

#[test]
fn views_with_gaps_inside_a_row() {
    let data = vec![0f32; 1000];
    for inner in [0, 2, usize::MAX] {
        let view = TensorView::new(&data, [1, 2, 10, 8], [160, 80, 8, inner]);
        refused!(
            view,
            Error::InnerStride { .. },
            &inner.to_string(),
            "stride 1",
            "copy"
        );
    }
}

#[test]
fn views_that_do_not_fit_their_buffer() {
    let data = vec![0f32; 160];
    let mut out = vec![0f32; 160];
    let shape = [1, 2, 10, 8];
    let strides = [160, 80, 8, 1];
    assert!(TensorView::new(&data, shape, strides).is_ok());
    let short = TensorView::new(&data[1..], shape, strides);
    refused!(
        short,
        Error::OutOfBounds {
            last: 159,
            len: 159,
            ..
        },
        "159",
        "strides",
        "longer slice"
    );
    let short = TensorView::bhsd(&data[1..], shape);
    refused!(short, Error::OutOfBounds { .. }, "longer slice");
    let short = TensorView::bshd(&data[1..], [1, 10, 2, 8]);
    refused!(short, Error::OutOfBounds { .. }, "longer slice");
    let short = TensorViewMut::bhsd(&mut out[1..], shape);
    refused!(short, Error::OutOfBounds { .. }, "longer slice");
    let short = TensorViewMut::bshd(&mut out[1..], [1, 10, 2, 8]);
    refused!(short, Error::OutOfBounds { .. }, "longer slice");
}

#[test]
fn views_beyond_the_address_space() {
    let data = vec![0f32; 100];
    let mut out = vec![0f32; 100];
    let far = usize::MAX / 2;
    for strides in [[0, usize::MAX, 8, 1], [0, far, far, 1]] {
        let view = TensorView::new(&data, [1, 3, 3, 8], strides);
        refused!(view, Error::ViewOverflow { .. }, "overflows");
    }
    let view = TensorView::bhsd(&data, [1, 1 << 40, 1 << 40, 8]);
    refused!(view, Error::SizeOverflow { .. }, "overflows");
    let view = TensorViewMut::bshd(&mut out, [1, 1 << 40, 1 << 40, 8]);
    refused!(view, Error::SizeOverflow { .. }, "overflows");
}

#[test]
fn outputs_that_overlap_themselves() {
    let mut out = vec![0f32; 1000];
    for strides in [
        [0, 80, 8, 1],
        [160, 0, 8, 1],
        [160, 80, 7, 1],
        [160, 72, 8, 1],
        [80, 80, 8, 1],
    ] {
        let view = TensorViewMut::new(&mut out, [2, 2, 10, 8], strides);
        refused!(view, Error::OverlappingOutput { .. }, "own address");
    }
    // Without elements nothing overlaps, whatever the strides.
    for shape in [[0, 3, 3, 8], [3, 3, 0, 8]] {
        assert!(TensorViewMut::new(&mut out, shape, [usize::MAX, usize::MAX / 2, 8, 1]).is_ok());
    }
    // The stride of a dimension of one element is never taken.
    assert!(TensorViewMut::new(&mut out, [1, 2, 10, 8], [0, 80, 8, 1]).is_ok());
    assert!(TensorViewMut::new(&mut out, [2, 2, 10, 8], [8, 16, 32, 1]).is_ok());
}

#[test]
fn inputs_of_another_shape_or_type() {
    let data = vec![0f32; 4 * 120 * 16];
    let half = vec![f16::ZERO; 4 * 100 * 16];
    let right = inputs(&data);
    let q = TensorView::bhsd(&data, [1, 4, 101, 16]).unwrap();
    let kv = TensorView::bhsd(&data, [1, 4, 100, 16]).unwrap();
    let half_q = TensorView::bhsd(&half, problem().q_shape()).unwrap();
    let half_kv = TensorView::bhsd(&half, problem().kv_shape()).unwrap();
    for plan in plans() {
        let run = |inputs| Rest::of(&plan).run(&plan, &inputs);
        run(right).unwrap();
        refused!(
            run(Inputs::new(q, right.k, right.v)),
            Error::Shape { .. },
            "q has shape",
            "101",
            "100"
        );
        refused!(
            run(Inputs::new(right.q, kv, right.v)),
            Error::Shape { .. },
            "k has shape",
            "needs"
        );
        refused!(
            run(Inputs::new(right.q, right.k, kv)),
            Error::Shape { .. },
            "v has shape",
            "needs"
        );
        let of_halves = [
            Inputs::new(half_q, right.k, right.v),
            Inputs::new(right.q, half_kv, right.v),
            Inputs::new(right.q, right.k, half_kv),
        ];
        for (inputs, name) in of_halves
            .into_iter()
            .zip(["q is f16", "k is f16", "v is f16"])
        {
            refused!(run(inputs), Error::Dtype { .. }, name, "f32", "convert");
        }
    }
}

#[test]
fn shapes_in_another_memory_order_are_named() {
    let data = vec![0f32; 4 * 100 * 16];
    let right = inputs(&data);
    let q = TensorView::bshd(&data, problem().q_shape()).unwrap();
    let plan = Plan::dense(problem()).unwrap();
    let result = Rest::of(&plan).run(&plan, &Inputs::new(q, right.k, right.v));
    refused!(
        result,
        Error::Shape { .. },
        "q has shape [1, 100, 4, 16]",
        "q_shape_bshd"
    );
    let q = TensorView::bshd(&data, problem().q_shape_bshd()).unwrap();
    let k = TensorView::bshd(&data, problem().kv_shape_bshd()).unwrap();
    let result = Rest::of(&plan).run(&plan, &Inputs::new(q, k, right.v));
    result.unwrap();
}

#[test]
fn views_are_printed_without_their_elements() {
    let data = vec![0f32; 4 * 100 * 16];
    let text = format!("{:?}", inputs(&data));
    assert!(
        text.len() < 500 && text.contains("shape: [1, 4, 100, 16]"),
        "{text}"
    );
    let plan = Plan::dense(problem()).unwrap();
    let (mut o, mut workspace) = (data.clone(), vec![0; plan.workspace_bytes()]);
    let stages = plan.stages(&inputs(&data), &mut workspace).unwrap();
    assert!(format!("{stages:?}").len() < 2000);
    let o = TensorViewMut::bhsd(&mut o, problem().q_shape()).unwrap();
    assert!(format!("{:?}", Outputs::new(o)).contains("dtype: F32"));
}

#[test]
fn outputs_of_another_shape_or_length() {
    let data = vec![0f32; 4 * 100 * 16];
    for plan in plans() {
        let mut rest = Rest::of(&plan);
        rest.o_shape[2] = 99;
        refused!(
            rest.run(&plan, &inputs(&data)),
            Error::Shape { .. },
            "o has shape",
            "99"
        );
        for lse_len in [0, 399, 401] {
            let rest = Rest {
                lse_len,
                ..Rest::of(&plan)
            };
            let result = rest.run(&plan, &inputs(&data));
            refused!(
                result,
                Error::LseLen { .. },
                "lse",
                "400",
                &lse_len.to_string()
            );
            let mut workspace = vec![0; plan.workspace_bytes()];
            let coverage = plan.true_coverage(&inputs(&data), &vec![0.0; lse_len], &mut workspace);
            refused!(
                coverage,
                Error::LseLen { .. },
                "lse",
                "400",
                &lse_len.to_string()
            );
        }
    }
}

#[test]
fn outputs_in_a_type_that_nobody_asked_for() {
    let data = vec![0f32; 4 * 100 * 16];
    let mut o = vec![bf16::ONE; 4 * 100 * 16];
    for plan in plans() {
        let outputs = Outputs::new(TensorViewMut::bhsd(&mut o, problem().q_shape()).unwrap());
        let mut workspace = vec![0; plan.workspace_bytes()];
        let result = plan.run(&inputs(&data), outputs, &mut workspace);
        refused!(result, Error::Dtype { tensor: "o", .. }, "o is bf16", "f32");
        assert!(o.iter().all(|&x| x == bf16::ONE));
    }
}

#[test]
fn workspaces_of_a_byte_less_or_none() {
    let data = vec![0f32; 4 * 100 * 16];
    for plan in plans() {
        let needed = plan.workspace_bytes();
        for given in [0, 1, needed / 2, needed - 1] {
            let rest = Rest {
                workspace_bytes: given,
                ..Rest::of(&plan)
            };
            let result = rest.run(&plan, &inputs(&data));
            let sizes = [needed.to_string(), given.to_string()];
            refused!(
                result,
                Error::WorkspaceTooSmall { .. },
                &sizes[0],
                &sizes[1],
                "workspace_bytes"
            );
        }
    }
}

#[test]
fn workspaces_that_are_too_small_for_own_lists_and_coverage() {
    let data = vec![0f32; 4 * 100 * 16];
    let selection = Selection::new(&problem()).unwrap();
    for plan in plans() {
        let mut o = vec![7f32; 4 * 100 * 16];
        let outputs = Outputs::new(TensorViewMut::bhsd(&mut o, problem().q_shape()).unwrap());
        let result = plan.attend(&inputs(&data), &selection, outputs, &mut [0; 8]);
        refused!(
            result,
            Error::WorkspaceTooSmall { given: 8, .. },
            "workspace_bytes"
        );
        assert!(o.iter().all(|&x| x == 7.0));
        let lse = vec![0.0; problem().lse_len()];
        let result = plan.true_coverage(&inputs(&data), &lse, &mut [0; 8]);
        refused!(
            result,
            Error::WorkspaceTooSmall { given: 8, .. },
            "workspace_bytes"
        );
    }
}

#[test]
fn a_byte_less_is_too_little_wherever_the_workspace_starts() {
    let data = vec![0f32; 4 * 100 * 16];
    let plan = Plan::dense(problem()).unwrap();
    let selection = Selection::new(&problem()).unwrap();
    let needed = plan.workspace_bytes();
    let mut memory = vec![0u8; needed + 64];
    let lse = vec![0.0; problem().lse_len()];
    let mut o = vec![0f32; 4 * 100 * 16];
    for start in 0..64 {
        for (len, is_enough) in [(needed - 1, false), (needed, true)] {
            let outputs = Outputs::new(TensorViewMut::bhsd(&mut o, problem().q_shape()).unwrap());
            let workspace = &mut memory[start..start + len];
            let attended = plan.attend(&inputs(&data), &selection, outputs, workspace);
            assert_eq!(attended.is_ok(), is_enough, "attend, start {start}");
            let coverage = plan.true_coverage(&inputs(&data), &lse, workspace);
            assert_eq!(coverage.is_ok(), is_enough, "coverage, start {start}");
        }
    }
}

#[test]
fn waves_that_a_run_does_not_have() {
    let data = vec![0f32; 4 * 100 * 16];
    for plan in plans() {
        let mut workspace = vec![0; plan.workspace_bytes()];
        let mut stages = plan.stages(&inputs(&data), &mut workspace).unwrap();
        let waves = stages.waves();
        assert_eq!(waves > 0, plan.policy().is_some());
        let given = waves.to_string();
        refused!(
            stages.sampling(waves),
            Error::NoSuchWave { .. },
            &given,
            "Fallback::Never"
        );
        refused!(
            stages.reduction(waves),
            Error::NoSuchWave { .. },
            &given,
            "Fallback::Never"
        );
        refused!(
            stages.top_k(usize::MAX),
            Error::NoSuchWave { .. },
            "Fallback::Never"
        );
    }
}
