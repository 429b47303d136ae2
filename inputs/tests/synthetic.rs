//! The generator: same bits from the same seed, and the structure that it promises.

use sample_attention::{
    Dtype, Fallback, Inputs, Plan, Policy, Problem, Report, TensorView, TensorViewMut,
};
use sample_attention_inputs::capture::{Capture, CaptureError};
use sample_attention_inputs::synthetic::{Structure, Synthetic};

fn recipe(len: usize, structure: Structure) -> Synthetic {
    Synthetic {
        problem: Problem::causal(len, 128, Dtype::Bf16).with_heads(4, 2),
        structure,
        seed: 1,
    }
}

/// FNV-1a.
fn digest(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// Recorded once; another platform that gives other bits fails here.
#[test]
fn bits_are_the_same_on_every_platform() {
    let capture = recipe(300, Structure::EASY).generate().unwrap();
    let file = capture.to_bytes().unwrap();
    let body_bytes = 2 * (capture.q.len() + capture.k.len() + capture.v.len());
    assert_eq!(digest(&file[file.len() - body_bytes..]), DIGEST);
}
const DIGEST: u64 = 0xfc2f_bad5_aea4_5690;

#[test]
fn seeds_heads_and_positions_differ() {
    let one = recipe(64, Structure::EASY);
    let two = Synthetic { seed: 2, ..one };
    assert_ne!(one.generate().unwrap().q, two.generate().unwrap().q);
    let q = one.generate().unwrap().q.to_f32();
    let rows: Vec<&[f32]> = q.chunks(128).collect();
    for (at, row) in rows.iter().enumerate() {
        assert!(!rows[..at].contains(row), "row {at} repeats");
    }
}

/// The queries of a chunk are the last ones of the whole sequence, so chunked prefill can be tested with it.
#[test]
fn a_chunk_has_the_last_queries_of_the_whole() {
    let whole = recipe(500, Structure::HARD);
    let chunk = Synthetic {
        problem: whole.problem.with_q_len(100),
        ..whole
    };
    let (whole, chunk) = (whole.generate().unwrap(), chunk.generate().unwrap());
    assert_eq!(whole.k, chunk.k);
    assert_eq!(whole.v, chunk.v);
    let (whole, chunk) = (whole.q.to_f32(), chunk.q.to_f32());
    for head in 0..4 {
        let last = &whole[(head * 500 + 400) * 128..(head + 1) * 500 * 128];
        let rows = &chunk[head * 100 * 128..(head + 1) * 100 * 128];
        assert_eq!(rows.len(), last.len());
        // Slashes lie at distances that depend on the keys alone.
        assert!(rows == last, "head {head}");
    }
}

fn select(capture: &Capture) -> Report {
    let policy = Policy::default().with_fallback(Fallback::Never);
    let plan = Plan::new(capture.problem, policy).unwrap();
    let mut workspace = vec![0; plan.workspace_bytes()];
    let inputs = capture.inputs().unwrap();
    let mut stages = plan.stages(&inputs, &mut workspace).unwrap();
    for wave in 0..stages.waves() {
        stages.sampling(wave).unwrap();
        stages.reduction(wave).unwrap();
        stages.top_k(wave).unwrap();
    }
    stages.report()
}

#[test]
fn easy_is_sparse_hard_is_less_and_uniform_is_dense() {
    let density = |structure| {
        let capture = recipe(4096, structure).generate().unwrap();
        select(&capture).mean_density()
    };
    let easy = density(Structure::EASY);
    let hard = density(Structure::HARD);
    let uniform = density(Structure::UNIFORM);
    assert!((0.05..0.30).contains(&easy), "{easy}");
    assert!((0.40..0.75).contains(&hard), "{hard}");
    assert!(uniform > 0.90, "{uniform}");
}

/// Logits in nats of one query against all keys.
fn logits(capture: &Capture, query: usize) -> Vec<f32> {
    let head_dim = capture.problem.head_dim;
    let (q, k) = (capture.q.to_f32(), capture.k.to_f32());
    let q = &q[query * head_dim..(query + 1) * head_dim];
    k.chunks(head_dim)
        .take(capture.problem.k_len)
        .map(|k| q.iter().zip(k).map(|(q, k)| q * k).sum::<f32>() * capture.problem.softmax_scale)
        .collect()
}

#[test]
fn strengths_are_nats_of_logit() {
    let silent = Structure {
        slashes: 0,
        stripes_per_1000: 0.0,
        ..Structure::UNIFORM
    };
    let quiet = |structure| Structure {
        noise: 0.0,
        ..structure
    };
    let sink = recipe(
        2000,
        quiet(Structure {
            sink: 10.0,
            ..silent
        }),
    );
    let logits_of = |recipe: Synthetic| logits(&recipe.generate().unwrap(), 1500);
    let found = logits_of(sink);
    assert!((7.0..13.0).contains(&found[0]), "{}", found[0]);
    assert!(found[4..].iter().all(|x| x.abs() < 0.1));

    let local = recipe(
        2000,
        quiet(Structure {
            local: 10.0,
            ..silent
        }),
    );
    let found = logits_of(local);
    assert!((8.0..12.0).contains(&found[1500]), "{}", found[1500]);
    let mean = |keys: &[f32]| keys.iter().sum::<f32>() / keys.len() as f32;
    assert!(mean(&found[1480..1500]) > mean(&found[1300..1400]) + 1.0);
    assert!(mean(&found[1300..1400]) > mean(&found[..500]));

    let slash = recipe(
        2000,
        quiet(Structure {
            slash: 10.0,
            slashes: 1,
            ..silent
        }),
    );
    let strongest = |query: usize| {
        let found = logits(&slash.generate().unwrap(), query);
        let top = (0..=query)
            .max_by(|&a, &b| found[a].total_cmp(&found[b]))
            .unwrap();
        (query - top, found[top])
    };
    let (distance, nats) = strongest(1999);
    assert!((9.0..11.0).contains(&nats), "{nats}");
    assert_eq!(strongest(1500).0, distance);
    assert!(distance > 0);
}

#[test]
fn odd_scales_and_small_heads_are_finite() {
    for (head_dim, softmax_scale) in [(8, 0.35), (8, 0.0), (16, -1.0), (24, 1e-30), (256, 1.0)] {
        let problem = Problem::causal(40, head_dim, Dtype::F32).with_softmax_scale(softmax_scale);
        let recipe = Synthetic {
            problem,
            ..recipe(40, Structure::EASY)
        };
        let capture = recipe.generate().unwrap();
        for tensor in [&capture.q, &capture.k, &capture.v] {
            assert!(tensor.to_f32().iter().all(|x| x.is_finite()), "{problem:?}");
        }
    }
}

#[test]
fn invalid_problems_are_refused() {
    let recipe = recipe(0, Structure::EASY);
    assert!(matches!(recipe.generate(), Err(CaptureError::Problem(_))));
}

/// What is generated runs.
#[test]
fn a_generated_capture_runs() {
    let capture = recipe(700, Structure::HARD).generate().unwrap();
    let plan = Plan::new(capture.problem, Policy::default()).unwrap();
    let mut o = vec![f32::NAN; capture.q.len()];
    let mut workspace = vec![0; plan.workspace_bytes()];
    let inputs: Inputs<'_> = capture.inputs().unwrap();
    assert_eq!(TensorView::shape(&inputs.q), [1, 4, 700, 128]);
    let o_view = TensorViewMut::bhsd(&mut o, capture.problem.q_shape()).unwrap();
    plan.run(
        &inputs,
        sample_attention::Outputs::new(o_view),
        &mut workspace,
    )
    .unwrap();
    assert!(o.iter().all(|x| x.is_finite()));
}
