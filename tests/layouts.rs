//! Strides: any order of the outer dimensions, gaps, broadcasts and addresses beyond 2^31 elements.

use std::mem::MaybeUninit;

use half::bf16;
use half::slice::HalfBitsSliceExt;
use sample_attention::{
    Budget, Dtype, Element, Fallback, Inputs, OutputElement, Outputs, Plan, Policy, Problem,
    Selection, TensorView, TensorViewMut,
};
use testkit::random::Random;
use testkit::runner::{Attend, Case, Cpu, Data, Layout, run_with};
use testkit::tensor::Tensor;

/// Runs into memory that holds nothing, with gaps after the rows, and reads what a run promises to have written.
fn into_uninitialised<T: Element>(problem: Problem, policy: Policy, data: &[T]) -> Vec<T>
where
    MaybeUninit<T>: OutputElement,
{
    let plan = Plan::auto(problem, policy).unwrap();
    let [q, kv] =
        [problem.q_shape(), problem.kv_shape()].map(|shape| TensorView::bhsd(data, shape).unwrap());
    let [_, heads, len, dim] = problem.q_shape();
    let stride = dim + 3;
    let mut memory = Vec::<T>::with_capacity(heads * len * stride);
    let strides = [heads * len * stride, len * stride, stride, 1];
    let o = TensorViewMut::new(memory.spare_capacity_mut(), problem.q_shape(), strides).unwrap();
    let mut workspace = vec![0xff; plan.workspace_bytes()];
    plan.run(&Inputs::new(q, kv, kv), Outputs::new(o), &mut workspace)
        .unwrap();
    let rows = memory.spare_capacity_mut().chunks(stride);
    // SAFETY: the run has written every element of the view.
    rows.flat_map(|row| row[..dim].iter().map(|x| unsafe { x.assume_init() }))
        .collect()
}

#[test]
fn outputs_need_not_hold_values() {
    let mut random = Random::new(5);
    let normal: Vec<f32> = (0..4 * 300 * 16).map(|_| random.normal() as f32).collect();
    let bits: Vec<bf16> = normal.iter().map(|&x| bf16::from_f32(x)).collect();
    let policy = Policy::default().with_fallback(Fallback::Never);
    // Rows that see no key are written too.
    for (q_len, k_len, causal) in [(300, 300, true), (300, 100, true), (100, 300, false)] {
        let problem = Problem::causal(k_len, 16, Dtype::F32)
            .with_heads(4, 2)
            .with_q_len(q_len)
            .with_causal(causal);
        let plan = Plan::auto(problem, policy).unwrap();
        let [q, kv] = [problem.q_shape(), problem.kv_shape()]
            .map(|shape| TensorView::bhsd(&normal, shape).unwrap());
        let mut o = vec![f32::NAN; 4 * q_len * 16];
        let outputs = Outputs::new(TensorViewMut::bhsd(&mut o, problem.q_shape()).unwrap());
        let mut workspace = vec![0xff; plan.workspace_bytes()];
        plan.run(&Inputs::new(q, kv, kv), outputs, &mut workspace)
            .unwrap();
        assert_eq!(into_uninitialised(problem, policy, &normal), o);
        let halves = into_uninitialised(problem.with_dtype(Dtype::Bf16), policy, &bits);
        assert!(halves.iter().all(|x| x.is_finite()));
    }
    // Bytes of a buffer that holds nothing are zeros.
    let mut memory = Vec::<f32>::with_capacity(64);
    let mut view = TensorViewMut::bhsd(memory.spare_capacity_mut(), [1, 1, 8, 8]).unwrap();
    assert!(view.as_bytes_mut().iter().all(|&byte| byte == 0));
}

#[test]
fn every_layout_gives_the_bits_of_the_contiguous_one() {
    for (dtype, output) in [
        (Dtype::F32, Dtype::F32),
        (Dtype::F16, Dtype::F32),
        (Dtype::Bf16, Dtype::Bf16),
    ] {
        let problem = Problem::causal(389, 40, dtype)
            .with_batch(2)
            .with_heads(4, 2)
            .with_q_len(270);
        let policy = |budget| {
            Attend::Policy(
                Policy::default()
                    .with_budget(budget)
                    .with_coverage(0.8)
                    .with_fallback(Fallback::Never),
            )
        };
        let mut selection = Selection::new(&problem).unwrap();
        selection.set_stripes(1, 2, &[3, 50, 100, 200]).unwrap();
        for attend in [
            Attend::Dense,
            Attend::Own(selection),
            policy(Budget::Blocks),
            policy(Budget::Residual),
            policy(Budget::Paper),
        ] {
            let case = Case {
                output,
                data: Data::Structured,
                ..Case::new(problem, attend)
            };
            let qkv = case.inputs();
            let contiguous = run_with(&Cpu::default(), &case, &qkv);
            for layout in Layout::ALL {
                let outcome = run_with(
                    &Cpu::default(),
                    &Case {
                        layout,
                        ..case.clone()
                    },
                    &qkv,
                );
                assert_eq!(outcome.bits(), contiguous.bits(), "{layout:?} {case:?}");
                assert_eq!(outcome.found.units, contiguous.found.units);
            }
        }
    }
}

/// Runs a dense plan on bf16 views and gives O as [batch, heads, length, head_dim] and LSE.
fn dense<'a>(problem: Problem, inputs: &Inputs<'_>, o: TensorViewMut<'a>) -> Vec<f32> {
    let plan = Plan::dense(problem).unwrap();
    let mut lse = vec![f32::NAN; problem.lse_len()];
    let mut workspace = vec![0xff; plan.workspace_bytes()];
    plan.run(inputs, Outputs::new(o).with_lse(&mut lse), &mut workspace)
        .unwrap();
    lse
}

fn random<T: Element>(len: usize, seed: u64, from: impl Fn(f32) -> T) -> Vec<T> {
    let mut random = Random::new(seed);
    (0..len).map(|_| from(random.normal() as f32)).collect()
}

#[test]
fn one_packed_buffer_may_hold_q_k_and_v() {
    // [batch, length, q_heads + 2 · kv_heads, head_dim], as a fused projection leaves it.
    let problem = Problem::causal(150, 16, Dtype::F32)
        .with_batch(2)
        .with_heads(4, 2);
    let (len, heads, dim) = (150, 8, 16);
    let packed = random(2 * len * heads * dim, 3, |x| x);
    let strides = [len * heads * dim, dim, heads * dim, 1];
    let view = |first_head: usize, shape| {
        TensorView::new(&packed[first_head * dim..], shape, strides).unwrap()
    };
    let inputs = Inputs::new(
        view(0, problem.q_shape()),
        view(4, problem.kv_shape()),
        view(6, problem.kv_shape()),
    );
    let unpack = |first_head: usize, [batch, heads_of_it, len, dim]: [usize; 4]| {
        let mut tensor = Tensor::filled([batch, heads_of_it, len, dim], 0.0);
        for b in 0..batch {
            for h in 0..heads_of_it {
                for t in 0..len {
                    let at = ((b * len + t) * heads + first_head + h) * dim;
                    tensor
                        .row_mut(b, h, t)
                        .copy_from_slice(&packed[at..at + dim]);
                }
            }
        }
        tensor
    };
    let [q, k, v] = [
        unpack(0, problem.q_shape()),
        unpack(4, problem.kv_shape()),
        unpack(6, problem.kv_shape()),
    ];
    let separate = Inputs::new(
        TensorView::bhsd(&q.values, q.shape).unwrap(),
        TensorView::bhsd(&k.values, k.shape).unwrap(),
        TensorView::bhsd(&v.values, v.shape).unwrap(),
    );
    let mut outputs = [vec![0f32; q.values.len()], vec![0f32; q.values.len()]];
    let lse = [inputs, separate]
        .iter()
        .zip(&mut outputs)
        .map(|(inputs, o)| {
            dense(
                problem,
                inputs,
                TensorViewMut::bhsd(o, problem.q_shape()).unwrap(),
            )
        })
        .collect::<Vec<_>>();
    assert_eq!(outputs[0], outputs[1]);
    assert_eq!(lse[0], lse[1]);
}

#[test]
fn inputs_may_be_broadcast_with_stride_zero() {
    let problem = Problem::causal(140, 8, Dtype::F32)
        .with_batch(3)
        .with_heads(2, 2);
    let data = random(140 * 8, 9, |x| x);
    let broadcast = TensorView::new(&data, [3, 2, 140, 8], [0, 0, 8, 1]).unwrap();
    let inputs = Inputs::new(broadcast, broadcast, broadcast);
    let mut o = vec![0f32; 6 * 140 * 8];
    let lse = dense(
        problem,
        &inputs,
        TensorViewMut::bhsd(&mut o, problem.q_shape()).unwrap(),
    );
    assert!(o.chunks(140 * 8).all(|head| head == &o[..140 * 8]));
    assert!(lse.chunks(140).all(|head| head == &lse[..140]));
}

#[test]
fn addresses_beyond_two_to_the_31_elements_are_reached() {
    // Zeroed pages cost nothing until they are touched: 9 GiB of addresses, a few hundred pages of memory.
    let (len, dim) = (70, 8);
    let problem = Problem::causal(len, dim, Dtype::Bf16).with_heads(2, 2);
    let shape = problem.q_shape();
    // Tokens lie so far apart that the last one's offset exceeds 2^31; heads lie between them.
    let token = (1usize << 31) / (len - 1) + 4 * dim;
    let strides = [0, dim, token, 1];
    let reach = (len - 1) * token + 6 * dim;
    assert!((len - 1) * token > 1 << 31);
    let mut input_bits = vec![0u16; reach];
    let mut output_bits = vec![0u16; reach];
    let values = random(3 * 2 * len * dim, 4, bf16::from_f32);
    // q, k and v share the buffer: two heads each, side by side.
    for (index, x) in values.iter().enumerate() {
        let (row, d) = (index / dim, index % dim);
        let (tensor, head, t) = (row / (2 * len), row / len % 2, row % len);
        input_bits[t * token + (2 * tensor + head) * dim + d] = x.to_bits();
    }
    let data: &[bf16] = input_bits.reinterpret_cast();
    let view = |tensor: usize| TensorView::new(&data[2 * tensor * dim..], shape, strides).unwrap();
    let inputs = Inputs::new(view(0), view(1), view(2));
    let far_o: &mut [bf16] = output_bits.reinterpret_cast_mut();
    let far_lse = dense(
        problem,
        &inputs,
        TensorViewMut::new(far_o, shape, strides).unwrap(),
    );

    let [q, k, v] =
        [0, 1, 2].map(|tensor| &values[tensor * 2 * len * dim..(tensor + 1) * 2 * len * dim]);
    let inputs = Inputs::new(
        TensorView::bhsd(q, shape).unwrap(),
        TensorView::bhsd(k, shape).unwrap(),
        TensorView::bhsd(v, shape).unwrap(),
    );
    let mut o = vec![bf16::ZERO; 2 * len * dim];
    let lse = dense(
        problem,
        &inputs,
        TensorViewMut::bhsd(&mut o, shape).unwrap(),
    );
    assert_eq!(far_lse, lse);
    for (index, x) in o.iter().enumerate() {
        let (row, d) = (index / dim, index % dim);
        let (head, t) = (row / len, row % len);
        assert_eq!(
            far_o[t * token + head * dim + d].to_bits(),
            x.to_bits(),
            "{head} {t} {d}"
        );
    }
}
