//! A first check against the formula.
use sample_attention::*;
#[test]
fn dense_matches_formula() {
    for (q_len, k_len) in [
        (1, 1),
        (5, 5),
        (40, 40),
        (130, 130),
        (65, 300),
        (300, 65),
        (257, 257),
    ] {
        let d = 64;
        let problem = Problem {
            q_heads: 2,
            ..Problem::causal(1, d, Dtype::F32)
        };
        let problem = Problem {
            q_len,
            k_len,
            ..problem
        };
        let mut s = 12345u64;
        let mut r = || {
            s = s
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            ((s >> 33) as f32 / (1u64 << 31) as f32) - 0.5
        };
        let q: Vec<f32> = (0..2 * q_len * d).map(|_| r() * 4.0).collect();
        let k: Vec<f32> = (0..k_len * d).map(|_| r() * 4.0).collect();
        let v: Vec<f32> = (0..k_len * d).map(|_| r()).collect();
        for plan in [
            Plan::dense(problem).unwrap(),
            Plan::new(
                problem,
                Policy {
                    fallback: Fallback::Never,
                    coverage: 1.0,
                    ..Policy::default()
                },
            )
            .unwrap(),
        ] {
            let mut o = vec![f32::NAN; q.len()];
            let mut lse = vec![f32::NAN; 2 * q_len];
            let mut ws = vec![0xffu8; plan.workspace_bytes()];
            plan.run(
                &Inputs {
                    q: TensorView::bhsd(&q, problem.q_shape()).unwrap(),
                    k: TensorView::bhsd(&k, problem.kv_shape()).unwrap(),
                    v: TensorView::bhsd(&v, problem.kv_shape()).unwrap(),
                },
                Outputs {
                    o: TensorViewMut::bhsd(&mut o, problem.q_shape()).unwrap(),
                    lse: Some(&mut lse),
                },
                &mut ws,
            )
            .unwrap();
            let mut worst = 0f64;
            for h in 0..2 {
                for i in 0..q_len {
                    let vis = (i + k_len + 1).saturating_sub(q_len);
                    let sc: Vec<f64> = (0..vis)
                        .map(|j| {
                            (0..d)
                                .map(|x| q[(h * q_len + i) * d + x] as f64 * k[j * d + x] as f64)
                                .sum::<f64>()
                                * problem.softmax_scale as f64
                        })
                        .collect();
                    let m = sc.iter().cloned().fold(f64::NEG_INFINITY, f64::max);
                    let l: f64 = sc.iter().map(|x| (x - m).exp()).sum();
                    if vis == 0 {
                        assert_eq!(lse[h * q_len + i], f32::NEG_INFINITY);
                    } else {
                        worst = worst.max((lse[h * q_len + i] as f64 - (m + l.ln())).abs());
                    }
                    for x in 0..d {
                        let e: f64 = sc
                            .iter()
                            .enumerate()
                            .map(|(j, s)| (s - m).exp() / l * v[j * d + x] as f64)
                            .sum();
                        worst = worst.max((e - o[(h * q_len + i) * d + x] as f64).abs());
                    }
                }
            }
            assert!(worst < 1e-5, "{q_len} {k_len} {worst}");
        }
    }
}
