//! Every error: what brings it about, that it names the remedy, and that nothing was written.

use sample_attention::{
    Dtype, Error, Fallback, Inputs, Outputs, Plan, Policy, Problem, Result, Selection, TensorView,
    TensorViewMut, Window,
};

fn problem() -> Problem {
    Problem {
        q_heads: 4,
        kv_heads: 2,
        ..Problem::causal(100, 16, Dtype::F32)
    }
}

/// The error must be the expected one and its text hold all the words, which name what is wrong and what to do.
fn assert_refused<T>(result: Result<T>, is_expected: impl Fn(&Error) -> bool, words: &[&str]) {
    let error = match result {
        Ok(_) => panic!("accepted what should be refused with {words:?}"),
        Err(error) => error,
    };
    assert!(is_expected(&error), "{error:?}");
    let text = error.to_string();
    for word in words {
        assert!(text.contains(word), "`{text}` does not say `{word}`");
    }
    assert!(!text.contains('\n') && text.len() > 20, "{text}");
}

macro_rules! refused {
    ($result:expr, $pattern:pat, $($word:expr),+) => {
        assert_refused($result, |error| matches!(error, $pattern), &[$($word),+])
    };
}

#[test]
fn sizes_of_zero() {
    let zeros: [(&str, fn(&mut Problem)); 6] = [
        ("batch", |p| p.batch = 0),
        ("q_heads", |p| p.q_heads = 0),
        ("kv_heads", |p| p.kv_heads = 0),
        ("q_len", |p| p.q_len = 0),
        ("k_len", |p| p.k_len = 0),
        ("head_dim", |p| p.head_dim = 0),
    ];
    for (name, zero) in zeros {
        let mut problem = problem();
        zero(&mut problem);
        refused!(
            Plan::dense(problem),
            Error::ZeroSize { .. },
            name,
            "at least 1"
        );
        refused!(
            Plan::new(problem, Policy::default()),
            Error::ZeroSize { .. },
            name
        );
        refused!(Selection::new(&problem), Error::ZeroSize { .. }, name);
        refused!(Selection::dense(&problem), Error::ZeroSize { .. }, name);
    }
}

#[test]
fn problems_without_a_kernel() {
    refused!(
        Plan::dense(Problem {
            kv_heads: 3,
            ..problem()
        }),
        Error::HeadsNotDivisible {
            q_heads: 4,
            kv_heads: 3
        },
        "4",
        "3",
        "multiple"
    );
    refused!(
        Plan::dense(Problem {
            kv_heads: 8,
            ..problem()
        }),
        Error::HeadsNotDivisible { .. },
        "8"
    );
    for head_dim in [1, 7, 12, 100, 257, 264, 512, usize::MAX] {
        refused!(
            Plan::dense(Problem {
                head_dim,
                ..problem()
            }),
            Error::HeadDim { .. },
            &head_dim.to_string(),
            "multiple of 8",
            "256",
            "padding"
        );
    }
    for softmax_scale in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        refused!(
            Plan::dense(Problem {
                softmax_scale,
                ..problem()
            }),
            Error::Scale { .. },
            "finite",
            "1/sqrt"
        );
    }
    for len in [(1 << 30) + 1, usize::MAX] {
        refused!(
            Plan::dense(Problem {
                q_len: len,
                ..problem()
            }),
            Error::TooLong { name: "q_len", .. },
            "chunks"
        );
        refused!(
            Plan::dense(Problem {
                k_len: len,
                ..problem()
            }),
            Error::TooLong { name: "k_len", .. },
            "chunks"
        );
    }
    for batch in [1 << 60, usize::MAX] {
        refused!(
            Plan::dense(Problem { batch, ..problem() }),
            Error::SizeOverflow { .. },
            "split"
        );
    }
    refused!(
        Plan::new(
            Problem {
                causal: false,
                ..problem()
            },
            Policy::default()
        ),
        Error::SparseNeedsCausal,
        "Plan::dense",
        "Selection"
    );
}

#[test]
fn policies_out_of_range() {
    let with = |policy: Policy| Plan::new(problem(), policy);
    for coverage in [0.0, -0.1, 1.000_001, f32::NAN, f32::INFINITY] {
        refused!(
            with(Policy {
                coverage,
                ..Policy::default()
            }),
            Error::Coverage { .. },
            "above 0",
            "at most 1"
        );
    }
    refused!(
        with(Policy {
            row_stride: 0,
            ..Policy::default()
        }),
        Error::RowStride,
        "use 1",
        "16"
    );
    refused!(
        with(Policy {
            window: Window::Tokens(0),
            ..Policy::default()
        }),
        Error::WindowTokens,
        "at least 1"
    );
    for ratio in [0.0, -1.0, 1.5, f32::NAN] {
        refused!(
            with(Policy {
                window: Window::Ratio(ratio),
                ..Policy::default()
            }),
            Error::WindowRatio { .. },
            "above 0",
            "at most 1"
        );
    }
    // The limits themselves are fine, and so is more than there is.
    for policy in [
        Policy {
            coverage: 1.0,
            window: Window::Ratio(1.0),
            ..Policy::default()
        },
        Policy {
            coverage: f32::MIN_POSITIVE,
            row_stride: usize::MAX,
            ..Policy::default()
        },
        Policy {
            window: Window::Tokens(usize::MAX),
            sinks: usize::MAX,
            ..Policy::default()
        },
    ] {
        with(Policy {
            fallback: Fallback::Never,
            ..policy
        })
        .unwrap();
    }
    refused!(
        Plan::dense(problem()).unwrap().with_threads(0),
        Error::NoThreads,
        "at least 1 thread"
    );
}

#[test]
fn views_that_do_not_fit_their_buffer() {
    let data = vec![0f32; 1000];
    let mut out = vec![0f32; 1000];
    let shape = [1, 2, 10, 8];
    refused!(
        TensorView::new(&data, shape, [160, 80, 8, 2]),
        Error::InnerStride { stride: 2 },
        "stride 1",
        "copy"
    );
    refused!(
        TensorView::new(&data, shape, [160, 80, 8, 0]),
        Error::InnerStride { stride: 0 },
        "stride 1"
    );
    refused!(
        TensorView::new(&data[..159], shape, [160, 80, 8, 1]),
        Error::OutOfBounds {
            last: 159,
            len: 159,
            ..
        },
        "159",
        "strides",
        "longer slice"
    );
    assert!(TensorView::new(&data[..160], shape, [160, 80, 8, 1]).is_ok());
    refused!(
        TensorView::bhsd(&data[..159], shape),
        Error::OutOfBounds { .. },
        "longer slice"
    );
    refused!(
        TensorView::bshd(&data[..159], [1, 10, 2, 8]),
        Error::OutOfBounds { .. },
        "longer slice"
    );
    refused!(
        TensorViewMut::bhsd(&mut out[..159], shape),
        Error::OutOfBounds { .. },
        "longer slice"
    );
    refused!(
        TensorViewMut::bshd(&mut out[..159], [1, 10, 2, 8]),
        Error::OutOfBounds { .. },
        "longer slice"
    );
    for strides in [
        [0, usize::MAX, 8, 1],
        [0, usize::MAX / 2, usize::MAX / 2, 1],
    ] {
        refused!(
            TensorView::new(&data, [1, 3, 3, 8], strides),
            Error::ViewOverflow { .. },
            "overflows"
        );
    }
    refused!(
        TensorView::bhsd(&data, [1, 1 << 40, 1 << 40, 8]),
        Error::SizeOverflow { .. },
        "overflows"
    );
    refused!(
        TensorViewMut::bshd(&mut out, [1, 1 << 40, 1 << 40, 8]),
        Error::SizeOverflow { .. },
        "overflows"
    );
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
        refused!(
            TensorViewMut::new(&mut out, [2, 2, 10, 8], strides),
            Error::OverlappingOutput { .. },
            "own address"
        );
    }
    // A stride of a dimension of one element is never taken.
    assert!(TensorViewMut::new(&mut out, [1, 2, 10, 8], [0, 80, 8, 1]).is_ok());
    assert!(TensorViewMut::new(&mut out, [2, 2, 10, 8], [8, 16, 32, 1]).is_ok());
}

/// Runs dense attention with one thing wrong; O, LSE and workspace must stay as they were.
fn run_with_wrong(
    plan: &Plan,
    inputs: &Inputs<'_>,
    o_shape: [usize; 4],
    lse_len: usize,
    workspace_bytes: usize,
) -> Result<()> {
    let mut o = vec![7f32; 4 * 120 * 16];
    let mut lse = vec![7f32; lse_len];
    let mut workspace = vec![0x77; workspace_bytes];
    let outputs = Outputs {
        o: TensorViewMut::bhsd(&mut o, o_shape)?,
        lse: Some(&mut lse),
    };
    let result = plan.run(inputs, outputs, &mut workspace).map(|_| ());
    if result.is_err() {
        assert!(
            o.iter().chain(&lse).all(|&x| x == 7.0),
            "O or LSE was written"
        );
    }
    result
}

#[test]
fn tensors_that_do_not_fit_the_problem() {
    let problem = problem();
    let data = vec![0f32; 4 * 120 * 16];
    let bits = vec![half::f16::ZERO; 4 * 120 * 16];
    let right = Inputs {
        q: TensorView::bhsd(&data, problem.q_shape()).unwrap(),
        k: TensorView::bhsd(&data, problem.kv_shape()).unwrap(),
        v: TensorView::bhsd(&data, problem.kv_shape()).unwrap(),
    };
    for plan in [
        Plan::dense(problem).unwrap(),
        Plan::new(
            problem,
            Policy {
                fallback: Fallback::Never,
                ..Policy::default()
            },
        )
        .unwrap(),
    ] {
        let bytes = plan.workspace_bytes();
        let run =
            |inputs| run_with_wrong(&plan, &inputs, problem.q_shape(), problem.lse_len(), bytes);
        run(right).unwrap();
        let wrong_q = TensorView::bhsd(&data, [1, 4, 101, 16]).unwrap();
        let wrong_kv = TensorView::bhsd(&data, [1, 4, 100, 16]).unwrap();
        refused!(
            run(Inputs {
                q: wrong_q,
                ..right
            }),
            Error::Shape { tensor: "q", .. },
            "q has shape",
            "101",
            "100"
        );
        refused!(
            run(Inputs {
                k: wrong_kv,
                ..right
            }),
            Error::Shape { tensor: "k", .. },
            "k has shape",
            "needs"
        );
        refused!(
            run(Inputs {
                v: wrong_kv,
                ..right
            }),
            Error::Shape { tensor: "v", .. },
            "v has shape",
            "needs"
        );
        let half_kv = TensorView::bhsd(&bits, problem.kv_shape()).unwrap();
        let half_q = TensorView::bhsd(&bits, problem.q_shape()).unwrap();
        for inputs in [
            Inputs { q: half_q, ..right },
            Inputs {
                k: half_kv,
                ..right
            },
            Inputs {
                v: half_kv,
                ..right
            },
        ] {
            refused!(run(inputs), Error::Dtype { .. }, "f16", "f32", "convert");
        }
        let wrong_o = run_with_wrong(&plan, &right, [1, 4, 99, 16], problem.lse_len(), bytes);
        refused!(wrong_o, Error::Shape { tensor: "o", .. }, "o has shape");
        for lse_len in [0, problem.lse_len() - 1, problem.lse_len() + 1] {
            let wrong_lse = run_with_wrong(&plan, &right, problem.q_shape(), lse_len, bytes);
            refused!(wrong_lse, Error::LseLen { expected: 400, .. }, "lse", "400");
            let mut workspace = vec![0; bytes];
            let coverage = plan.true_coverage(&right, &vec![0.0; lse_len], &mut workspace);
            refused!(coverage, Error::LseLen { expected: 400, .. }, "lse", "400");
        }
    }
}

#[test]
fn outputs_in_a_type_that_nobody_asked_for() {
    let problem = problem();
    let data = vec![0f32; 4 * 100 * 16];
    let input = TensorView::bhsd(&data, problem.kv_shape()).unwrap();
    let inputs = Inputs {
        q: TensorView::bhsd(&data, problem.q_shape()).unwrap(),
        k: input,
        v: input,
    };
    let plan = Plan::dense(problem).unwrap();
    let mut o = vec![half::bf16::ONE; 4 * 100 * 16];
    let outputs = Outputs {
        o: TensorViewMut::bhsd(&mut o, problem.q_shape()).unwrap(),
        lse: None,
    };
    let mut workspace = vec![0; plan.workspace_bytes()];
    let result = plan.run(&inputs, outputs, &mut workspace);
    refused!(result, Error::Dtype { tensor: "o", .. }, "o is bf16", "f32");
    assert!(o.iter().all(|&x| x == half::bf16::ONE));
}

#[test]
fn workspaces_of_a_byte_less_or_none() {
    let problem = problem();
    let data = vec![0f32; 4 * 120 * 16];
    let inputs = Inputs {
        q: TensorView::bhsd(&data, problem.q_shape()).unwrap(),
        k: TensorView::bhsd(&data, problem.kv_shape()).unwrap(),
        v: TensorView::bhsd(&data, problem.kv_shape()).unwrap(),
    };
    for plan in [
        Plan::dense(problem).unwrap(),
        Plan::new(
            problem,
            Policy {
                fallback: Fallback::Never,
                ..Policy::default()
            },
        )
        .unwrap(),
    ] {
        let needed = plan.workspace_bytes();
        for given in [0, 1, needed / 2, needed - 1] {
            let result =
                run_with_wrong(&plan, &inputs, problem.q_shape(), problem.lse_len(), given);
            refused!(
                result,
                Error::WorkspaceTooSmall { .. },
                &needed.to_string(),
                &given.to_string(),
                "Plan::workspace_bytes"
            );
        }
        let mut o = vec![7f32; 4 * 100 * 16];
        let outputs = Outputs {
            o: TensorViewMut::bhsd(&mut o, problem.q_shape()).unwrap(),
            lse: None,
        };
        let selection = Selection::new(&problem).unwrap();
        let result = plan.attend(&inputs, &selection, outputs, &mut [0; 8]);
        refused!(
            result,
            Error::WorkspaceTooSmall { given: 8, .. },
            "Plan::workspace_bytes"
        );
        assert!(o.iter().all(|&x| x == 7.0));
        let result = plan.true_coverage(&inputs, &vec![0.0; problem.lse_len()], &mut [0; 8]);
        refused!(
            result,
            Error::WorkspaceTooSmall { given: 8, .. },
            "Plan::workspace_bytes"
        );
    }
}

#[test]
fn selections_out_of_range() {
    let problem = problem();
    let mut selection = Selection::new(&problem).unwrap();
    refused!(
        selection.set_stripes(1, 0, &[1]),
        Error::SelectionIndex {
            what: "batch",
            index: 1,
            count: 1
        },
        "batch 1"
    );
    refused!(
        selection.set_stripes(0, 4, &[1]),
        Error::SelectionIndex {
            index: 4,
            count: 4,
            ..
        },
        "query head 4"
    );
    refused!(
        selection.set_stripes(0, 0, &[5, 100]),
        Error::SelectionIndex { index: 100, .. },
        "stripe 100",
        "100"
    );
    refused!(
        selection.set_blocks(0, 0, 1, &[0]),
        Error::SelectionIndex { index: 1, .. },
        "query block 1"
    );
    refused!(
        selection.set_blocks(0, 0, 0, &[0, 1]),
        Error::SelectionIndex { index: 1, .. },
        "key block 1"
    );
    refused!(
        selection.set_dense(0, 9, true),
        Error::SelectionIndex { .. },
        "query head 9"
    );
    for stripes in [[5, 5], [6, 5]] {
        refused!(
            selection.set_stripes(0, 0, &stripes),
            Error::StripesNotAscending { next: 5, .. },
            "ascend",
            "sort and deduplicate"
        );
    }
    assert_eq!(
        selection,
        Selection::new(&problem).unwrap(),
        "a refused call changed the selection"
    );
}

#[test]
fn selections_of_another_problem() {
    let problem = problem();
    let data = vec![0f32; 4 * 100 * 16];
    let kv = TensorView::bhsd(&data, problem.kv_shape()).unwrap();
    let inputs = Inputs {
        q: TensorView::bhsd(&data, problem.q_shape()).unwrap(),
        k: kv,
        v: kv,
    };
    let plan = Plan::dense(problem).unwrap();
    let mut workspace = vec![0; plan.workspace_bytes()];
    for other in [
        Problem {
            q_len: 99,
            ..problem
        },
        Problem {
            k_len: 101,
            ..problem
        },
        Problem {
            q_heads: 2,
            ..problem
        },
        Problem {
            batch: 2,
            ..problem
        },
        Problem {
            causal: false,
            ..problem
        },
    ] {
        let mut o = vec![7f32; 4 * 100 * 16];
        let outputs = Outputs {
            o: TensorViewMut::bhsd(&mut o, problem.q_shape()).unwrap(),
            lse: None,
        };
        let selection = Selection::new(&other).unwrap();
        let result = plan.attend(&inputs, &selection, outputs, &mut workspace);
        refused!(
            result,
            Error::SelectionShape { .. },
            "selection is for",
            "the problem has"
        );
        assert!(o.iter().all(|&x| x == 7.0));
    }
}
