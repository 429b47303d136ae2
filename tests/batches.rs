//! Batches of sequences of any lengths, packed or in pages, on the GPU kernels: each sequence has the bits that it has alone.

use half::bf16;
use sample_attention::emulator::{Emulator, Packed};
use sample_attention::pipeline::{GpuPlan, Target};
use sample_attention::{
    Budget, Dtype, Error, Fallback, HeadPolicy, Inputs, Outputs, Policy, Problem, TensorView,
    TensorViewMut, VarlenBounds, Window,
};
use testkit::random::Random;

const DIM: usize = 64;
const Q_HEADS: usize = 2;

/// Queries and keys of each sequence: more queries than keys, none of either, one query, whole blocks and not.
const LENGTHS: [(usize, usize); 7] = [
    (200, 200),
    (0, 77),
    (1, 300),
    (150, 40),
    (5, 0),
    (128, 256),
    (130, 389),
];

fn emulators() -> [Emulator; 2] {
    [Emulator::FAST, Emulator::FAST.with_target(Target::Sm90a)]
}

fn numbers(random: &mut Random, len: usize) -> Vec<bf16> {
    (0..len).map(|_| bf16::from_f64(random.normal())).collect()
}

fn view(data: &[bf16], shape: [usize; 4]) -> TensorView<'_> {
    TensorView::bshd(data, [shape[0], shape[2], shape[1], shape[3]]).unwrap()
}

fn policy(budget: Budget) -> Policy {
    Policy::of(budget)
        .with_coverage(0.6)
        .with_row_stride(8)
        .with_window(Window::Tokens(1))
        .with_sinks(3)
        .with_fallback(Fallback::Never)
}

/// The bits of O [token, head, dim] and of the log-sum-exp [head, token].
type Bits = (Vec<u16>, Vec<u32>);

fn bits(o: &[bf16], lse: &[f32]) -> Bits {
    (
        o.iter().map(|x| x.to_bits()).collect(),
        lse.iter().map(|x| x.to_bits()).collect(),
    )
}

/// One sequence by a plan of its own.
fn alone(emulator: Emulator, plan: &GpuPlan, q: &[bf16], k: &[bf16], v: &[bf16]) -> Bits {
    let problem = plan.problem();
    let mut o = vec![bf16::ZERO; q.len()];
    let mut lse = vec![0.0; Q_HEADS * problem.q_len];
    let shape = problem.q_shape();
    let memory_shape = [shape[0], shape[2], shape[1], shape[3]];
    let outputs =
        Outputs::new(TensorViewMut::bshd(&mut o, memory_shape).unwrap()).with_lse(&mut lse);
    let inputs = Inputs::new(
        view(q, shape),
        view(k, problem.kv_shape()),
        view(v, problem.kv_shape()),
    );
    emulator.run(plan, &inputs, outputs).unwrap();
    bits(&o, &lse)
}

struct Batch {
    q: Vec<bf16>,
    k: Vec<bf16>,
    v: Vec<bf16>,
    cu_q: Vec<u32>,
    cu_k: Vec<u32>,
}

impl Batch {
    fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let sums = |of: fn(&(usize, usize)) -> usize| {
            let mut sums = vec![0];
            for lengths in &LENGTHS {
                sums.push(sums[sums.len() - 1] + of(lengths) as u32);
            }
            sums
        };
        let (cu_q, cu_k) = (sums(|lengths| lengths.0), sums(|lengths| lengths.1));
        let [total_q, total_k] = [&cu_q, &cu_k].map(|sums| sums[LENGTHS.len()] as usize);
        Batch {
            q: numbers(&mut random, total_q * Q_HEADS * DIM),
            k: numbers(&mut random, total_k * DIM),
            v: numbers(&mut random, total_k * DIM),
            cu_q,
            cu_k,
        }
    }

    fn total_q(&self) -> usize {
        self.q.len() / Q_HEADS / DIM
    }

    fn bounds(&self) -> VarlenBounds {
        VarlenBounds::causal(LENGTHS.len(), 389, DIM, Dtype::Bf16)
            .with_heads(Q_HEADS, 1)
            .with_max_seqlen_q(200)
            .with_total_q(self.total_q())
            .with_softmax_scale(0.3)
    }

    /// What each sequence is alone, in the batch's place.
    fn each_alone(&self, emulator: Emulator, plan: impl Fn(Problem) -> GpuPlan) -> Bits {
        let total_q = self.total_q();
        let mut o = vec![0; self.q.len()];
        let mut lse = vec![f32::NEG_INFINITY.to_bits(); Q_HEADS * total_q];
        for (sequence, &(q_len, k_len)) in LENGTHS.iter().enumerate() {
            if q_len == 0 || k_len == 0 {
                continue;
            }
            let problem = Problem::causal(k_len, DIM, Dtype::Bf16)
                .with_heads(Q_HEADS, 1)
                .with_q_len(q_len)
                .with_softmax_scale(0.3);
            let [first_q, first_k] = [&self.cu_q, &self.cu_k].map(|sums| sums[sequence] as usize);
            let q = &self.q[first_q * Q_HEADS * DIM..][..q_len * Q_HEADS * DIM];
            let [k, v] = [&self.k, &self.v].map(|all| &all[first_k * DIM..][..k_len * DIM]);
            let (of_o, of_lse) = alone(emulator, &plan(problem), q, k, v);
            o[first_q * Q_HEADS * DIM..][..of_o.len()].copy_from_slice(&of_o);
            for head in 0..Q_HEADS {
                lse[head * total_q + first_q..][..q_len]
                    .copy_from_slice(&of_lse[head * q_len..][..q_len]);
            }
        }
        (o, lse)
    }

    fn run(
        &self,
        emulator: Emulator,
        plan: &GpuPlan,
        (k, v, kv_shape): (&[bf16], &[bf16], [usize; 4]),
        packed: &Packed<'_>,
    ) -> Result<Bits, Error> {
        let total_q = self.total_q();
        let shape = [1, Q_HEADS, total_q, DIM];
        let mut o = vec![bf16::ONE; self.q.len()];
        let mut lse = vec![0.0; Q_HEADS * total_q];
        let memory_shape = [1, total_q, Q_HEADS, DIM];
        let outputs =
            Outputs::new(TensorViewMut::bshd(&mut o, memory_shape).unwrap()).with_lse(&mut lse);
        let inputs = Inputs::new(view(&self.q, shape), view(k, kv_shape), view(v, kv_shape));
        emulator.run_packed(plan, packed, &inputs, outputs)?;
        Ok(bits(&o, &lse))
    }

    fn packed(&self) -> Packed<'_> {
        Packed {
            cu_q: &self.cu_q,
            cu_k: &self.cu_k,
            k_lens_each: false,
            pages: None,
        }
    }
}

#[test]
fn a_packed_batch_gives_each_sequence_the_bits_that_it_has_alone() {
    let batch = Batch::new(1);
    let kv_shape = [1, 1, batch.k.len() / DIM, DIM];
    for emulator in emulators() {
        for budget in [
            Budget::Rows,
            Budget::Blocks,
            Budget::Residual,
            Budget::Paper,
        ] {
            let plan = GpuPlan::for_bounds(batch.bounds(), Some(policy(budget))).unwrap();
            let keys = (&batch.k[..], &batch.v[..], kv_shape);
            let together = batch.run(emulator, &plan, keys, &batch.packed()).unwrap();
            let apart = batch.each_alone(emulator, |problem| {
                GpuPlan::new(problem, policy(budget)).unwrap()
            });
            assert_eq!(together, apart, "{emulator:?} {budget:?}");
        }
    }
}

/// Pages of 32 tokens in a shuffled order; what no sequence owns is NaN.
#[test]
fn pages_give_the_bits_of_packed_keys() {
    const PAGE: usize = 32;
    const STRIDE: usize = 14;
    let batch = Batch::new(2);
    let used: Vec<usize> = LENGTHS.iter().map(|&(_, k)| k.div_ceil(PAGE)).collect();
    let pages = used.iter().sum::<usize>() + 3;
    let mut table = vec![u32::MAX; LENGTHS.len() * STRIDE];
    let [mut k, mut v] = [(); 2].map(|()| vec![bf16::NAN; pages * PAGE * DIM]);
    let mut next = 0;
    for (sequence, &(_, k_len)) in LENGTHS.iter().enumerate() {
        for entry in 0..used[sequence] {
            // 7 and the number of pages have no common factor.
            let page = (next * 7 + 2) % pages;
            next += 1;
            table[sequence * STRIDE + entry] = page as u32;
            let first = batch.cu_k[sequence] as usize + entry * PAGE;
            let len = PAGE.min(k_len - entry * PAGE) * DIM;
            let to = page * PAGE * DIM;
            k[to..to + len].copy_from_slice(&batch.k[first * DIM..][..len]);
            v[to..to + len].copy_from_slice(&batch.v[first * DIM..][..len]);
        }
    }
    let each: Vec<u32> = LENGTHS.iter().map(|&(_, k_len)| k_len as u32).collect();
    let packed_shape = [1, 1, batch.k.len() / DIM, DIM];
    for emulator in emulators() {
        for budget in [Budget::Rows, Budget::Residual] {
            let plan = GpuPlan::for_bounds(batch.bounds(), Some(policy(budget))).unwrap();
            let keys = (&batch.k[..], &batch.v[..], packed_shape);
            let packed = batch.run(emulator, &plan, keys, &batch.packed()).unwrap();
            let paged = Packed {
                cu_k: &each,
                k_lens_each: true,
                pages: Some((&table, STRIDE as u32)),
                ..batch.packed()
            };
            let keys = (&k[..], &v[..], [pages, 1, PAGE, DIM]);
            let in_pages = batch.run(emulator, &plan, keys, &paged).unwrap();
            assert_eq!(packed, in_pages, "{emulator:?} {budget:?}");
        }
    }
    let mut wrong = table.clone();
    wrong[0] = pages as u32;
    let plan = GpuPlan::for_bounds(batch.bounds(), Some(policy(Budget::Rows))).unwrap();
    let paged = Packed {
        cu_k: &each,
        k_lens_each: true,
        pages: Some((&wrong, STRIDE as u32)),
        ..batch.packed()
    };
    let keys = (&k[..], &v[..], [pages, 1, PAGE, DIM]);
    let error = batch.run(Emulator::FAST, &plan, keys, &paged).unwrap_err();
    assert!(matches!(error, Error::PageNumber { .. }), "{error}");
}

#[test]
fn each_head_has_the_bits_that_its_policy_gives_it_alone() {
    const LEN: usize = 500;
    let mut random = Random::new(3);
    let heads = [
        HeadPolicy::Selected(policy(Budget::Rows)),
        HeadPolicy::Dense,
        HeadPolicy::Local {
            window: Window::Tokens(100),
            sinks: 3,
        },
        HeadPolicy::Selected(policy(Budget::Blocks)),
        HeadPolicy::Selected(policy(Budget::Residual)),
        HeadPolicy::Selected(policy(Budget::Rows).with_coverage(0.9).with_tail(100, 4)),
        HeadPolicy::Selected(policy(Budget::Paper)),
        HeadPolicy::Selected(policy(Budget::Rows)),
    ];
    let problem = Problem::causal(LEN, DIM, Dtype::Bf16).with_heads(heads.len(), 1);
    let q = numbers(&mut random, LEN * heads.len() * DIM);
    let [k, v] = [(); 2].map(|()| numbers(&mut random, LEN * DIM));
    let kv_shape = problem.kv_shape();
    let run = |emulator: Emulator, plan: &GpuPlan| {
        let mut o = vec![bf16::ZERO; q.len()];
        let mut lse = vec![0.0; heads.len() * LEN];
        let outputs = Outputs::new(TensorViewMut::bhsd(&mut o, problem.q_shape()).unwrap())
            .with_lse(&mut lse);
        let inputs = Inputs::new(
            TensorView::bhsd(&q, problem.q_shape()).unwrap(),
            view(&k, kv_shape),
            view(&v, kv_shape),
        );
        emulator.run(plan, &inputs, outputs).unwrap();
        bits(&o, &lse)
    };
    for emulator in emulators() {
        let together = run(emulator, &GpuPlan::per_head(problem, &heads).unwrap());
        for (head, policy) in heads.iter().enumerate() {
            let alike = GpuPlan::per_head(problem, &vec![*policy; heads.len()]).unwrap();
            let alike = run(emulator, &alike);
            let of_head = LEN * DIM;
            assert_eq!(
                together.0[head * of_head..][..of_head],
                alike.0[head * of_head..][..of_head],
                "{emulator:?} head {head}"
            );
            assert_eq!(
                together.1[head * LEN..][..LEN],
                alike.1[head * LEN..][..LEN]
            );
        }
    }
}
