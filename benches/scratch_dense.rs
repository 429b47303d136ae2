use sample_attention::*;
use std::time::Instant;
fn rnd(n: usize, seed: u64) -> Vec<f32> {
    let mut s = seed;
    (0..n)
        .map(|_| {
            s = s
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            ((s >> 33) as f32 / (1u64 << 31) as f32) - 0.5
        })
        .collect()
}
fn main() {
    let n: usize = std::env::args()
        .skip(1)
        .find_map(|a| a.parse().ok())
        .unwrap_or(8192);
    let d = 128;
    println!(
        "{} threads {}",
        cpu::instruction_set(),
        rayon::current_num_threads()
    );
    let m = 4096;
    let a = rnd(m * m, 1);
    let b = rnd(m * m, 2);
    let mut c = vec![0f32; m * m];
    let g = |c: &mut Vec<f32>| unsafe {
        gemm::gemm(
            m,
            m,
            m,
            c.as_mut_ptr(),
            1,
            m as isize,
            false,
            a.as_ptr(),
            1,
            m as isize,
            b.as_ptr(),
            1,
            m as isize,
            0.0,
            1.0,
            false,
            false,
            false,
            gemm::Parallelism::Rayon(0),
        )
    };
    g(&mut c);
    let q = rnd(n * d * 2, 3);
    let k = rnd(n * d, 4);
    let v = rnd(n * d, 5);
    let qb: Vec<half::bf16> = q.iter().map(|&x| half::bf16::from_f32(x)).collect();
    let kb: Vec<half::bf16> = k.iter().map(|&x| half::bf16::from_f32(x)).collect();
    let vb: Vec<half::bf16> = v.iter().map(|&x| half::bf16::from_f32(x)).collect();
    for _ in 0..3 {
        let t = Instant::now();
        g(&mut c);
        let gf = 2.0 * (m as f64).powi(3) / t.elapsed().as_secs_f64() / 1e9;
        let problem = Problem {
            q_heads: 2,
            ..Problem::causal(n, d, Dtype::F32)
        };
        let fl = 4.0 * (n as f64).powi(2) / 2.0 * d as f64 * 2.0;
        let plan = Plan::dense(problem).unwrap();
        let mut ws = vec![0; plan.workspace_bytes()];
        let mut o = vec![0f32; n * d * 2];
        let t = Instant::now();
        plan.run(
            &Inputs {
                q: TensorView::bhsd(&q, problem.q_shape()).unwrap(),
                k: TensorView::bhsd(&k, problem.kv_shape()).unwrap(),
                v: TensorView::bhsd(&v, problem.kv_shape()).unwrap(),
            },
            Outputs {
                o: TensorViewMut::bhsd(&mut o, problem.q_shape()).unwrap(),
                lse: None,
            },
            &mut ws,
        )
        .unwrap();
        let df = fl / t.elapsed().as_secs_f64() / 1e9;
        let problem = Problem {
            dtype: Dtype::Bf16,
            ..problem
        };
        let plan = Plan::dense(problem).unwrap();
        let mut ob = vec![half::bf16::ZERO; n * d * 2];
        let t = Instant::now();
        plan.run(
            &Inputs {
                q: TensorView::bhsd(&qb, problem.q_shape()).unwrap(),
                k: TensorView::bhsd(&kb, problem.kv_shape()).unwrap(),
                v: TensorView::bhsd(&vb, problem.kv_shape()).unwrap(),
            },
            Outputs {
                o: TensorViewMut::bhsd(&mut ob, problem.q_shape()).unwrap(),
                lse: None,
            },
            &mut ws,
        )
        .unwrap();
        let bt = t.elapsed().as_secs_f64();
        let bf = fl / bt / 1e9;
        let plan = Plan::new(
            problem,
            Policy {
                fallback: Fallback::Never,
                ..Policy::default()
            },
        )
        .unwrap();
        let mut ws = vec![0; plan.workspace_bytes()];
        let r = plan
            .run(
                &Inputs {
                    q: TensorView::bhsd(&qb, problem.q_shape()).unwrap(),
                    k: TensorView::bhsd(&kb, problem.kv_shape()).unwrap(),
                    v: TensorView::bhsd(&vb, problem.kv_shape()).unwrap(),
                },
                Outputs {
                    o: TensorViewMut::bhsd(&mut ob, problem.q_shape()).unwrap(),
                    lse: None,
                },
                &mut ws,
            )
            .unwrap();
        println!(
            "gemm {gf:.0} dense {df:.0} ({:.2}) bf16 {bf:.0} ({:.2})  sel {:?} = {:.1}% of dense  density {:.3} ws {}KB",
            df / gf,
            bf / df,
            r.times,
            r.times.selection().as_secs_f64() / bt * 100.,
            r.mean_density(),
            ws.len() / 1024
        );
    }
}
