//! Ragged batches on the CPU, packed and in pages: each sequence has the bits that it has alone, and agrees with the oracle.

use half::{bf16, f16};
use sample_attention::{
    BlockTable, Budget, Dtype, Error, Fallback, HeadPlan, HeadPolicy, Inputs, Outputs, Plan,
    Policy, Problem, Report, SeqLens, TensorView, TensorViewMut, VarlenBounds, VarlenInputs,
    VarlenPlan, Window,
};
use testkit::oracle::attention_row;
use testkit::random::Random;
use testkit::tensor::{Qkv, Storage, Tensor};

trait Number: Storage + sample_attention::OutputElement {}
impl<T: Storage + sample_attention::OutputElement> Number for T {}

/// Queries and keys: more queries than keys, none of either, one query, whole blocks and not, few and many.
const LENGTHS: &[(usize, usize)] = &[
    (200, 200),
    (0, 77),
    (1, 300),
    (150, 40),
    (5, 0),
    (0, 0),
    (128, 256),
    (17, 54),
    (130, 389),
    (16, 16),
    (37, 97),
];

fn policy(budget: Budget) -> Policy {
    Policy::of(budget)
        .with_coverage(0.6)
        .with_row_stride(8)
        .with_window(Window::Tokens(1))
        .with_sinks(3)
        .with_fallback(Fallback::Never)
}

const BUDGETS: [Budget; 4] = [
    Budget::Rows,
    Budget::Blocks,
    Budget::Residual,
    Budget::Paper,
];

/// A batch as rows [token][head][dim], and the lengths of its sequences.
struct Batch<T> {
    lengths: Vec<(usize, usize)>,
    bounds: VarlenBounds,
    q: Vec<T>,
    k: Vec<T>,
    v: Vec<T>,
}

/// Bits of O [token, head, dim] and of the log-sum-exp [head, token].
type Bits = (Vec<u32>, Vec<u32>);

fn sums(lengths: impl Iterator<Item = usize>) -> Vec<u32> {
    let mut sums = vec![0];
    for len in lengths {
        sums.push(sums[sums.len() - 1] + len as u32);
    }
    sums
}

impl<T: Number> Batch<T> {
    fn new(seed: u64, lengths: &[(usize, usize)], heads: (usize, usize), dim: usize) -> Self {
        let mut random = Random::new(seed);
        let [total_q, total_k] = [
            lengths.iter().map(|l| l.0).sum::<usize>(),
            lengths.iter().map(|l| l.1).sum(),
        ];
        let mut numbers = |len: usize| -> Vec<T> {
            (0..len)
                .map(|_| T::from_f32(random.normal() as f32))
                .collect()
        };
        let (q, k, v) = (
            numbers(total_q * heads.0 * dim),
            numbers(total_k * heads.1 * dim),
            numbers(total_k * heads.1 * dim),
        );
        let batch = Batch {
            lengths: lengths.to_vec(),
            bounds: VarlenBounds::causal(lengths.len(), 0, dim, T::DTYPE)
                .with_heads(heads.0, heads.1)
                .with_softmax_scale(0.3),
            q,
            k,
            v,
        };
        let (cu_q, cu_k) = batch.cu_seqlens();
        let bounds = batch
            .bounds
            .within(SeqLens::cumulative(&cu_q), SeqLens::cumulative(&cu_k));
        Batch {
            bounds: bounds.unwrap(),
            ..batch
        }
    }

    fn cu_seqlens(&self) -> (Vec<u32>, Vec<u32>) {
        (
            sums(self.lengths.iter().map(|l| l.0)),
            sums(self.lengths.iter().map(|l| l.1)),
        )
    }

    fn total_q(&self) -> usize {
        self.bounds.total_q
    }

    /// [tokens, heads, dim] of the keys.
    fn kv_shape(&self) -> [usize; 3] {
        let VarlenBounds {
            kv_heads, head_dim, ..
        } = self.bounds;
        [self.k.len() / kv_heads / head_dim, kv_heads, head_dim]
    }

    fn run_with(&self, plan: &VarlenPlan, inputs: &VarlenInputs<'_>) -> Result<Bits, Error> {
        self.report_with(plan, inputs).map(|(bits, _)| bits)
    }

    fn report_with(
        &self,
        plan: &VarlenPlan,
        inputs: &VarlenInputs<'_>,
    ) -> Result<(Bits, Report), Error> {
        let VarlenBounds {
            q_heads, head_dim, ..
        } = self.bounds;
        let tokens = inputs.q.shape()[2];
        let mut o = vec![T::UNWRITTEN; tokens * q_heads * head_dim];
        let mut lse = vec![f32::NAN; tokens * q_heads];
        let outputs = Outputs::new(TensorViewMut::thd(&mut o, [tokens, q_heads, head_dim])?)
            .with_lse(&mut lse);
        let mut workspace = vec![0xa5; plan.workspace_bytes()];
        let report = plan.run(inputs, outputs, &mut workspace)?;
        let bits = (
            o.iter().map(|x| x.bits()).collect(),
            lse.iter().map(|x| x.to_bits()).collect(),
        );
        Ok((bits, report))
    }

    /// Packed, as it lies.
    fn packed(&self, plan: &VarlenPlan) -> Bits {
        let (cu_q, cu_k) = self.cu_seqlens();
        let inputs = self.packed_inputs(&cu_q, &cu_k);
        self.run_with(plan, &inputs).unwrap()
    }

    fn packed_inputs<'a>(&'a self, cu_q: &'a [u32], cu_k: &'a [u32]) -> VarlenInputs<'a> {
        let VarlenBounds {
            q_heads, head_dim, ..
        } = self.bounds;
        VarlenInputs::new(
            TensorView::thd(&self.q, [self.total_q(), q_heads, head_dim]).unwrap(),
            TensorView::thd(&self.k, self.kv_shape()).unwrap(),
            TensorView::thd(&self.v, self.kv_shape()).unwrap(),
            SeqLens::cumulative(cu_q),
            SeqLens::cumulative(cu_k),
        )
    }

    /// The problem and the tensors of a sequence.
    fn sequence(&self, sequence: usize) -> (Problem, [&[T]; 3]) {
        let (cu_q, cu_k) = self.cu_seqlens();
        let bounds = &self.bounds;
        let problem = Problem::causal(self.lengths[sequence].1, bounds.head_dim, bounds.dtype)
            .with_q_len(self.lengths[sequence].0)
            .with_heads(bounds.q_heads, bounds.kv_heads)
            .with_softmax_scale(bounds.softmax_scale)
            .with_causal(bounds.causal);
        let rows = |all: &'static str, cu: &[u32], width: usize| {
            let data: &[T] = match all {
                "q" => &self.q,
                "k" => &self.k,
                _ => &self.v,
            };
            &data[cu[sequence] as usize * width..cu[sequence + 1] as usize * width]
        };
        let (q_width, kv_width) = (
            bounds.q_heads * bounds.head_dim,
            bounds.kv_heads * bounds.head_dim,
        );
        let tensors = [
            rows("q", &cu_q, q_width),
            rows("k", &cu_k, kv_width),
            rows("v", &cu_k, kv_width),
        ];
        (problem, tensors)
    }

    /// What each sequence is alone, in the batch's place.
    fn each_alone(&self, run: impl Fn(Problem, &Inputs<'_>, Outputs<'_>)) -> Bits {
        let VarlenBounds {
            q_heads, head_dim, ..
        } = self.bounds;
        let total_q = self.total_q();
        let (cu_q, _) = self.cu_seqlens();
        let mut o = vec![T::from_f32(0.0).bits(); self.q.len()];
        let mut lse = vec![f32::NEG_INFINITY.to_bits(); q_heads * total_q];
        for (sequence, &(q_len, k_len)) in self.lengths.iter().enumerate() {
            if q_len == 0 || k_len == 0 {
                continue;
            }
            let (problem, [q, k, v]) = self.sequence(sequence);
            let inputs = Inputs::new(
                TensorView::bshd(q, problem.q_shape_bshd()).unwrap(),
                TensorView::bshd(k, problem.kv_shape_bshd()).unwrap(),
                TensorView::bshd(v, problem.kv_shape_bshd()).unwrap(),
            );
            let mut of_o = vec![T::UNWRITTEN; q.len()];
            let mut of_lse = vec![f32::NAN; problem.lse_len()];
            let view = TensorViewMut::bshd(&mut of_o, problem.q_shape_bshd()).unwrap();
            run(problem, &inputs, Outputs::new(view).with_lse(&mut of_lse));
            let first = cu_q[sequence] as usize;
            for (to, from) in o[first * q_heads * head_dim..].iter_mut().zip(&of_o) {
                *to = from.bits();
            }
            for head in 0..q_heads {
                for row in 0..q_len {
                    lse[head * total_q + first + row] = of_lse[head * q_len + row].to_bits();
                }
            }
        }
        (o, lse)
    }

    fn alone_by(&self, plan: impl Fn(Problem) -> Plan) -> Bits {
        self.each_alone(|problem, inputs, outputs| {
            let plan = plan(problem);
            let mut workspace = vec![0; plan.workspace_bytes()];
            plan.run(inputs, outputs, &mut workspace).unwrap();
        })
    }
}

#[test]
fn a_sequence_has_the_bits_that_it_has_alone() {
    let batch = Batch::<bf16>::new(1, LENGTHS, (4, 2), 64);
    for threads in [1, 2, 5] {
        let dense = VarlenPlan::dense(batch.bounds).unwrap();
        let dense = dense.with_threads(threads).unwrap();
        let alone = batch.alone_by(|problem| Plan::dense(problem).unwrap());
        assert_eq!(batch.packed(&dense), alone, "{threads} threads");
        for budget in BUDGETS {
            let policy = policy(budget);
            let plan = VarlenPlan::new(batch.bounds, policy).unwrap();
            let plan = plan.with_threads(threads).unwrap();
            let alone = batch.alone_by(|problem| Plan::new(problem, policy).unwrap());
            assert_eq!(batch.packed(&plan), alone, "{budget:?}, {threads} threads");
        }
    }
}

#[test]
fn without_causality_too() {
    let mut batch = Batch::<f32>::new(2, LENGTHS, (2, 1), 72);
    batch.bounds = batch.bounds.with_causal(false);
    let plan = VarlenPlan::dense(batch.bounds).unwrap();
    let alone = batch.alone_by(|problem| Plan::dense(problem).unwrap());
    assert_eq!(batch.packed(&plan), alone);
    let error = VarlenPlan::new(batch.bounds, Policy::default()).unwrap_err();
    assert_eq!(error, Error::SparseNeedsCausal);
}

#[test]
fn each_sequence_selects_where_that_pays() {
    let lengths = [(1500, 1500), (40, 1600), (1200, 1200), (3, 5), (700, 2100)];
    let batch = Batch::<bf16>::new(3, &lengths, (2, 1), 64);
    let (cu_q, cu_k) = batch.cu_seqlens();
    for budget in BUDGETS {
        let policy = policy(budget).with_fallback(Fallback::Auto);
        let plan = VarlenPlan::new(batch.bounds, policy).unwrap();
        let inputs = batch.packed_inputs(&cu_q, &cu_k);
        let (bits, report) = batch.report_with(&plan, &inputs).unwrap();
        let mut reports = std::sync::Mutex::new(Vec::new());
        let alone = batch.each_alone(|problem, inputs, outputs| {
            let plan = Plan::new(problem, policy).unwrap();
            let mut workspace = vec![0; plan.workspace_bytes()];
            let report = plan.run(inputs, outputs, &mut workspace).unwrap();
            reports.lock().unwrap().extend(report.heads);
        });
        assert_eq!(bits, alone, "{budget:?}");
        let reports = reports.get_mut().unwrap();
        for (index, (found, alone)) in report.heads.iter().zip(reports).enumerate() {
            assert_eq!((found.batch, found.q_head), (index / 2, index % 2));
            alone.batch = index / 2;
            assert_eq!(found, alone, "{budget:?}");
        }
    }
}

#[test]
fn each_head_has_the_bits_of_its_policy() {
    let batch = Batch::<f16>::new(4, LENGTHS, (6, 2), 64);
    let heads = [
        HeadPolicy::Selected(policy(Budget::Rows)),
        HeadPolicy::Dense,
        HeadPolicy::Local {
            window: Window::Tokens(100),
            sinks: 3,
        },
        HeadPolicy::Selected(policy(Budget::Blocks)),
        HeadPolicy::Selected(policy(Budget::Rows).with_row_stride(3)),
        HeadPolicy::Selected(policy(Budget::Residual)),
    ];
    let plan = VarlenPlan::per_head(batch.bounds, &heads).unwrap();
    let alone = batch.each_alone(|problem, inputs, outputs| {
        let plan = HeadPlan::new(problem, &heads).unwrap();
        let mut workspace = vec![0; plan.workspace_bytes()];
        plan.run(inputs, outputs, &mut workspace).unwrap();
    });
    assert_eq!(batch.packed(&plan), alone);
    let error = VarlenPlan::per_head(batch.bounds, &heads[1..]).unwrap_err();
    assert!(matches!(error, Error::HeadPolicies { .. }), "{error}");
}

/// How a pool holds its pages.
#[derive(Clone, Copy, Debug)]
enum Order {
    /// [blocks, page, heads, dim]
    Nhd,
    /// [blocks, heads, page, dim]
    Hnd,
    /// [blocks, layers, keys and values, page, heads, dim]: two layers, of which this is the second.
    AllLayers,
}

/// A pool with a sequence's pages anywhere in it, and NaN where no sequence has a token.
struct Pool<T> {
    k: Vec<T>,
    v: Vec<T>,
    strides: [usize; 4],
    shape: [usize; 4],
    /// [sequence][slot], −1 beyond the length.
    table: Vec<i32>,
    max_blocks: usize,
}

impl<T: Number> Pool<T> {
    fn new(batch: &Batch<T>, page: usize, order: Order) -> Self {
        let [_, heads, dim] = batch.kv_shape();
        let used: Vec<usize> = batch.lengths.iter().map(|l| l.1.div_ceil(page)).collect();
        let blocks = used.iter().sum::<usize>() + 3;
        let plane = page * heads * dim;
        let (strides, first, len) = match order {
            Order::Nhd => ([plane, dim, heads * dim, 1], 0, blocks * plane),
            Order::Hnd => ([plane, page * dim, dim, 1], 0, blocks * plane),
            Order::AllLayers => (
                [4 * plane, dim, heads * dim, 1],
                2 * plane,
                blocks * 4 * plane,
            ),
        };
        let max_blocks = used.iter().max().unwrap() + 2;
        let mut pool = Pool {
            k: vec![T::from_f32(f32::NAN); len],
            v: vec![T::from_f32(f32::NAN); len],
            strides,
            shape: [blocks, heads, page, dim],
            table: vec![-1; batch.lengths.len() * max_blocks],
            max_blocks,
        };
        // A step without a factor in common with the number of pages shuffles them.
        let step = (blocks / 2..).find(|step| gcd(*step, blocks) == 1).unwrap();
        let mut next = 0;
        let (_, cu_k) = batch.cu_seqlens();
        for (sequence, &(_, k_len)) in batch.lengths.iter().enumerate() {
            for token in 0..k_len {
                let slot = token / page;
                if token % page == 0 {
                    pool.table[sequence * max_blocks + slot] = ((next * step + 1) % blocks) as i32;
                    next += 1;
                }
                let block = pool.table[sequence * max_blocks + slot] as usize;
                for head in 0..heads {
                    let to =
                        first + block * strides[0] + head * strides[1] + token % page * strides[2];
                    let from = ((cu_k[sequence] as usize + token) * heads + head) * dim;
                    pool.k[to..to + dim].copy_from_slice(&batch.k[from..from + dim]);
                    pool.v[to..to + dim].copy_from_slice(&batch.v[from..from + dim]);
                }
            }
        }
        // The view begins at this layer.
        pool.k.drain(..first);
        pool.v.drain(..first);
        pool
    }

    fn view<'a>(&self, data: &'a [T]) -> TensorView<'a> {
        TensorView::new(data, self.shape, self.strides).unwrap()
    }

    fn inputs<'a>(
        &'a self,
        batch: &'a Batch<T>,
        cu_q: &'a [u32],
        seqlens_k: SeqLens<'a>,
        table: BlockTable<'a>,
    ) -> VarlenInputs<'a> {
        {
            let mut inputs = batch.packed_inputs(cu_q, cu_q);
            inputs.k = self.view(&self.k);
            inputs.v = self.view(&self.v);
            inputs.seqlens_k = seqlens_k;
            inputs.with_block_table(table)
        }
    }
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

fn pages_are_packed_keys<T: Number>(heads: (usize, usize), dim: usize, seed: u64) {
    let batch = Batch::<T>::new(seed, LENGTHS, heads, dim);
    let (cu_q, cu_k) = batch.cu_seqlens();
    let each: Vec<i32> = batch.lengths.iter().map(|l| l.1 as i32).collect();
    let plans = [
        VarlenPlan::dense(batch.bounds).unwrap(),
        VarlenPlan::new(batch.bounds, policy(Budget::Rows)).unwrap(),
        VarlenPlan::new(batch.bounds, policy(Budget::Residual)).unwrap(),
        VarlenPlan::per_head(batch.bounds, &vec![HeadPolicy::Dense; heads.0]).unwrap(),
    ];
    for plan in &plans {
        let packed = batch.packed(plan);
        for (page, order) in [
            (16, Order::Nhd),
            (32, Order::AllLayers),
            (64, Order::Hnd),
            (128, Order::Nhd),
        ] {
            let pool = Pool::new(&batch, page, order);
            let table = BlockTable::new(&pool.table, pool.max_blocks);
            let cumulative = pool.inputs(&batch, &cu_q, SeqLens::cumulative(&cu_k), table);
            let paged = batch.run_with(plan, &cumulative).unwrap();
            assert!(packed == paged, "page {page} {order:?}");
            // The same as FlashInfer has it.
            let counts = batch.lengths.iter().map(|l| l.1.div_ceil(page));
            let indptr = sums(counts);
            let used = pool.table.iter().filter(|&&block| block >= 0);
            let indices: Vec<u32> = used.map(|&block| block as u32).collect();
            let table = BlockTable::csr(&indptr, &indices);
            let csr = pool.inputs(&batch, &cu_q, SeqLens::each(&each), table);
            assert!(
                packed == batch.run_with(plan, &csr).unwrap(),
                "page {page} {order:?}, CSR"
            );
        }
    }
}

#[test]
fn pages_have_the_bits_of_packed_keys_in_bf16() {
    pages_are_packed_keys::<bf16>((4, 4), 64, 5);
}

#[test]
fn pages_have_the_bits_of_packed_keys_in_f32() {
    pages_are_packed_keys::<f32>((8, 1), 128, 6);
}

#[test]
fn pages_have_the_bits_of_packed_keys_in_f16() {
    pages_are_packed_keys::<f16>((2, 2), 256, 7);
}

/// Rows at any strides, the packed tensors interleaved head by head as one product of a model writes them.
#[test]
fn strides_of_packed_tensors_do_not_change_a_bit() {
    let batch = Batch::<bf16>::new(8, LENGTHS, (4, 2), 64);
    let (cu_q, cu_k) = batch.cu_seqlens();
    let plan = VarlenPlan::new(batch.bounds, policy(Budget::Rows)).unwrap();
    let mut kv = vec![bf16::NAN; 2 * batch.k.len() + 64];
    for (row, (k, v)) in batch.k.chunks(64).zip(batch.v.chunks(64)).enumerate() {
        kv[row * 128..][..64].copy_from_slice(k);
        kv[row * 128 + 64..][..64].copy_from_slice(v);
    }
    let [tokens, heads, dim] = batch.kv_shape();
    let view = |data| TensorView::new(data, [1, heads, tokens, dim], [0, 128, 256, 1]).unwrap();
    let inputs = {
        let mut inputs = batch.packed_inputs(&cu_q, &cu_k);
        inputs.k = view(&kv);
        inputs.v = view(&kv[64..]);
        inputs
    };
    assert_eq!(batch.run_with(&plan, &inputs).unwrap(), batch.packed(&plan));
}

#[test]
fn neighbours_that_are_not_numbers_do_not_leak() {
    let batch = Batch::<bf16>::new(9, &[(130, 140), (70, 201), (90, 90)], (2, 1), 64);
    let mut poisoned = Batch::<bf16>::new(9, &[(130, 140), (70, 201), (90, 90)], (2, 1), 64);
    for (index, x) in poisoned.k.iter_mut().chain(&mut poisoned.v).enumerate() {
        let token = index % (431 * 64) / 64;
        if !(140..341).contains(&token) {
            *x = if index % 3 == 0 {
                bf16::INFINITY
            } else {
                bf16::NAN
            };
        }
    }
    for plan in [
        VarlenPlan::dense(batch.bounds),
        VarlenPlan::dense(batch.bounds.with_causal(false)),
        VarlenPlan::new(batch.bounds, policy(Budget::Rows)),
    ] {
        let plan = plan.unwrap();
        let (clean, dirty) = (batch.packed(&plan), poisoned.packed(&plan));
        let rows = 130 * 2 * 64..200 * 2 * 64;
        assert_eq!(clean.0[rows.clone()], dirty.0[rows]);
        assert_eq!(clean.1[130..200], dirty.1[130..200]);
    }
}

/// Whole blocks of a prompt as sequences of one batch, which share the pages of its keys.
#[test]
fn chunks_that_share_pages_are_the_whole_prompt() {
    let batch = Batch::<bf16>::new(10, &[(640, 640)], (2, 1), 64);
    let pool = Pool::new(&batch, 32, Order::Nhd);
    let bounds = batch.bounds;
    let chunks = VarlenBounds::causal(3, 640, 64, Dtype::Bf16)
        .with_heads(2, 1)
        .with_max_seqlen_q(256)
        .with_total_q(640)
        .with_softmax_scale(0.3);
    let cu_q = [0u32, 256, 384, 640];
    let each = [256u32, 384, 640];
    let shared: Vec<i32> = (0..3).flat_map(|_| pool.table.clone()).collect();
    for (whole, in_chunks) in [
        (VarlenPlan::dense(bounds), VarlenPlan::dense(chunks)),
        (
            VarlenPlan::new(bounds, policy(Budget::Rows)),
            VarlenPlan::new(chunks, policy(Budget::Rows)),
        ),
    ] {
        let table = BlockTable::new(&shared, pool.max_blocks);
        let inputs = pool.inputs(&batch, &cu_q, SeqLens::each(&each), table);
        let in_chunks = batch.run_with(&in_chunks.unwrap(), &inputs).unwrap();
        assert_eq!(batch.packed(&whole.unwrap()), in_chunks);
    }
}

#[test]
fn tokens_of_no_sequence_become_zero() {
    let batch = Batch::<f32>::new(11, &[(30, 30), (9, 4)], (2, 2), 64);
    let plan = VarlenPlan::dense(batch.bounds.with_total_q(39 + 12)).err();
    assert!(plan.is_none(), "{plan:?}");
    let bounds = batch
        .bounds
        .with_max_seqlen_q(30)
        .with_total_q(30 + 9 + 5 + 7);
    let plan = VarlenPlan::dense(bounds).unwrap();
    let mut q = vec![f32::NAN; (5 + 39 + 7) * 2 * 64];
    q[5 * 128..44 * 128].copy_from_slice(&batch.q);
    let inputs = {
        let mut inputs = batch.packed_inputs(&[5, 35, 44], &[0, 30, 34]);
        inputs.q = TensorView::thd(&q, [51, 2, 64]).unwrap();
        inputs
    };
    let (o, lse) = batch.run_with(&plan, &inputs).unwrap();
    let (inside, of_lse) = batch.packed(&VarlenPlan::dense(batch.bounds).unwrap());
    assert_eq!(o[5 * 128..44 * 128], inside);
    assert!(o[..5 * 128].iter().chain(&o[44 * 128..]).all(|&x| x == 0));
    for head in 0..2 {
        assert_eq!(lse[head * 51 + 5..][..39], of_lse[head * 39..][..39]);
        let outside = lse[head * 51..][..5]
            .iter()
            .chain(&lse[head * 51 + 44..][..7]);
        assert!(outside.clone().all(|&x| x == f32::NEG_INFINITY.to_bits()));
    }
}

/// O and log-sum-exp of f32 inputs, to f32's accuracy.
#[test]
fn every_row_is_the_oracles() {
    for (heads, dim) in [((4, 4), 64), ((8, 2), 128), ((2, 1), 256)] {
        let batch = Batch::<f32>::new(12, LENGTHS, heads, dim);
        let pool = Pool::new(&batch, 16, Order::Hnd);
        let (cu_q, cu_k) = batch.cu_seqlens();
        let table = BlockTable::new(&pool.table, pool.max_blocks);
        let inputs = pool.inputs(&batch, &cu_q, SeqLens::cumulative(&cu_k), table);
        let plan = VarlenPlan::dense(batch.bounds).unwrap();
        let (o, lse) = batch.run_with(&plan, &inputs).unwrap();
        for (sequence, &(q_len, k_len)) in batch.lengths.iter().enumerate() {
            if q_len == 0 || k_len == 0 {
                continue;
            }
            let (problem, tensors) = batch.sequence(sequence);
            let [q, k, v] = tensors;
            let tensor = |data: &[f32], [_, heads, len, dim]: [usize; 4]| {
                let mut tensor = Tensor::filled([1, heads, len, dim], 0.0);
                for (row, values) in data.chunks(dim).enumerate() {
                    let to = tensor.row_mut(0, row % heads, row / heads);
                    to.copy_from_slice(values);
                }
                tensor
            };
            let (q, kv) = (tensor(q, problem.q_shape()), problem.kv_shape());
            let qkv = Qkv::rounded(&problem, q, tensor(k, kv), tensor(v, kv));
            for head in 0..heads.0 {
                for row in (0..q_len).step_by(7).chain([q_len - 1]) {
                    let keys: Vec<usize> = (0..(row + 1 + k_len).saturating_sub(q_len)).collect();
                    let expected = attention_row(&problem, &qkv, head, row, &keys);
                    let token = cu_q[sequence] as usize + row;
                    let got = f32::from_bits(lse[head * batch.total_q() + token]);
                    let close = |got: f32, expected: f64| {
                        f64::from(got) == expected || (f64::from(got) - expected).abs() < 2e-5
                    };
                    assert!(close(got, expected.lse), "{sequence} {head} {row}");
                    let got = &o[(token * heads.0 + head) * dim..][..dim];
                    for (&got, &expected) in got.iter().zip(&expected.o) {
                        let got = f32::from_bits(got);
                        assert!(close(got, expected), "{sequence} {head} {row}");
                    }
                }
            }
        }
    }
}

/// More selections than a pass has room for, and sequences of many waves.
#[test]
fn a_small_workspace_takes_more_passes_and_gives_the_same_bits() {
    let lengths: Vec<(usize, usize)> = (0..20).map(|i| (100 + 9 * i, 2000 + 9 * i)).collect();
    let batch = Batch::<bf16>::new(13, &lengths, (32, 32), 8);
    let policy = policy(Budget::Paper);
    let plan = |sequences, threads| {
        let mut bounds = batch.bounds;
        bounds.sequences = sequences;
        let bounds = bounds.with_max_seqlen_q(bounds.max_seqlen_q);
        let plan = VarlenPlan::new(bounds, policy).unwrap();
        plan.with_threads(threads).unwrap()
    };
    // One thread's pass has 16 MiB: less than the selections of all sequences.
    let [of_one, of_all] = [1, 20].map(|sequences| plan(sequences, 1).workspace_bytes());
    assert!(
        of_all < 20 << 20 && of_one * 20 > 20 << 20,
        "{of_one} {of_all}"
    );
    assert!(batch.packed(&plan(20, 1)) == batch.packed(&plan(20, 16)));
}

#[test]
fn the_workspace_is_stated_for_the_bounds_and_needed_to_the_last_byte() {
    let bounds = VarlenBounds::causal(8, 1 << 17, 128, Dtype::Bf16).with_heads(32, 8);
    let decode = VarlenPlan::new(bounds.with_max_seqlen_q(1), Policy::default()).unwrap();
    let decode = decode.with_threads(1).unwrap();
    assert!(
        decode.workspace_bytes() < 12 << 20,
        "{}",
        decode.workspace_bytes()
    );
    let batch = Batch::<bf16>::new(14, LENGTHS, (2, 1), 64);
    let (cu_q, cu_k) = batch.cu_seqlens();
    let inputs = batch.packed_inputs(&cu_q, &cu_k);
    // The bounds are those of longer sequences than there are.
    let bounds = batch.bounds.with_max_seqlen_k(5000).with_max_seqlen_q(1000);
    let plan = VarlenPlan::new(bounds, policy(Budget::Blocks)).unwrap();
    assert_eq!(
        batch.run_with(&plan, &inputs).unwrap(),
        batch.packed(&VarlenPlan::new(batch.bounds, policy(Budget::Blocks)).unwrap())
    );
    let mut o = vec![bf16::ONE; batch.q.len()];
    let outputs = Outputs::new(TensorViewMut::thd(&mut o, [batch.total_q(), 2, 64]).unwrap());
    let mut workspace = vec![0; plan.workspace_bytes() - 1];
    let error = plan.run(&inputs, outputs, &mut workspace).unwrap_err();
    assert!(matches!(error, Error::WorkspaceTooSmall { .. }), "{error}");
    assert!(o.iter().all(|&x| x == bf16::ONE));
}

#[test]
fn an_empty_batch_is_no_work() {
    let batch = Batch::<f32>::new(15, &[(0, 0), (0, 3)], (2, 1), 64);
    let plan = VarlenPlan::new(batch.bounds, Policy::default()).unwrap();
    assert_eq!(batch.packed(&plan), (vec![], vec![]));
}

#[test]
fn what_is_wrong_with_lengths_and_tables_is_told() {
    let batch = Batch::<bf16>::new(16, &[(20, 40), (10, 33)], (2, 1), 64);
    let pool = Pool::new(&batch, 16, Order::Nhd);
    let plan = VarlenPlan::dense(batch.bounds).unwrap();
    let cu_q = [0u32, 20, 30];
    let packed = |cu_q: &[u32], cu_k: &[u32]| {
        batch
            .run_with(&plan, &batch.packed_inputs(cu_q, cu_k))
            .unwrap_err()
            .to_string()
    };
    assert!(
        packed(&[0, 30], &[0, 40, 73]).contains("seqlens_q has 2 entries, but the plan needs 3")
    );
    assert!(
        packed(&[0, 20, 19], &[0, 40, 73]).contains("seqlens_q goes from 20 to 19 at sequence 1")
    );
    assert!(packed(&[0, 21, 30], &[0, 40, 73]).contains("plan was made for max_seqlen_q = 20"));
    assert!(packed(&[0, 20, 31], &[0, 40, 73]).contains("seqlens_q ends at token 31"));
    assert!(packed(&cu_q, &[0, 40, 74]).contains("seqlens_k ends at token 74"));
    let negative = {
        let mut inputs = batch.packed_inputs(&cu_q, &[0, 40, 73]);
        inputs.seqlens_k = SeqLens::each(&[40, -1]);
        inputs
    };
    let error = batch.run_with(&plan, &negative).unwrap_err();
    assert!(matches!(error, Error::SeqlensFall { .. }), "{error}");

    let paged = |table: BlockTable<'_>| {
        let inputs = pool.inputs(&batch, &cu_q, SeqLens::each(&[40u32, 33]), table);
        batch.run_with(&plan, &inputs).unwrap_err()
    };
    let blocks = pool.shape[0];
    for wrong in [blocks as i32, -1, i32::MAX, i32::MIN] {
        let mut table = pool.table.clone();
        table[pool.max_blocks + 2] = wrong;
        let error = paged(BlockTable::new(&table, pool.max_blocks));
        let expected = Error::PageNumber {
            sequence: 1,
            slot: 2,
            page: wrong.into(),
            pages: blocks,
        };
        assert_eq!(error, expected);
    }
    let short = paged(BlockTable::new(&pool.table, 2));
    assert!(
        matches!(short, Error::BlockTableShort { sequence: 0, .. }),
        "{short}"
    );
    let short = paged(BlockTable::csr(&[0u32, 3], &pool.table));
    assert!(
        matches!(short, Error::BlockTableShort { sequence: 1, .. }),
        "{short}"
    );
    let data = vec![bf16::ONE; 24 * 64 * 8];
    let pages_of_24 = {
        let mut inputs = batch.packed_inputs(&cu_q, &[0, 40, 73]);
        inputs.k = TensorView::bshd(&data, [8, 24, 1, 64]).unwrap();
        inputs.v = TensorView::bshd(&data, [8, 24, 1, 64]).unwrap();
        inputs.with_block_table(BlockTable::new(&[0u32; 8], 4))
    };
    let error = batch.run_with(&plan, &pages_of_24).unwrap_err();
    assert_eq!(error, Error::PageTokens { given: 24 });
    let bounds = batch.bounds.with_total_q(41);
    assert!(matches!(
        VarlenPlan::dense(bounds),
        Err(Error::TooLong { .. })
    ));
}
