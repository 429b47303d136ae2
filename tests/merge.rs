//! The merge of attention over two sets of keys is attention over both.

use half::{bf16, f16};
use sample_attention::{
    Dtype, Error, Inputs, OutputElement, Outputs, Plan, Problem, TensorView, TensorViewMut, merge,
};
use testkit::random::Random;
use testkit::tensor::Storage;

const DIM: usize = 64;

/// O and log-sum-exp of f32 inputs over some of the keys.
fn attention(problem: Problem, q: &[f32], k: &[f32], v: &[f32]) -> (Vec<f32>, Vec<f32>) {
    let plan = Plan::dense(problem).unwrap();
    let mut o = vec![0f32; q.len()];
    let mut lse = vec![0f32; problem.lse_len()];
    let inputs = Inputs::new(
        TensorView::bhsd(q, problem.q_shape()).unwrap(),
        TensorView::bhsd(k, problem.kv_shape()).unwrap(),
        TensorView::bhsd(v, problem.kv_shape()).unwrap(),
    );
    let outputs =
        Outputs::new(TensorViewMut::bhsd(&mut o, problem.q_shape()).unwrap()).with_lse(&mut lse);
    let mut workspace = vec![0; plan.workspace_bytes()];
    plan.run(&inputs, outputs, &mut workspace).unwrap();
    (o, lse)
}

/// A prefix that every query sees and the queries' own keys, of which the first queries see none.
fn merged_is_the_union<T: Storage + OutputElement>(tolerance: f32) {
    const PREFIX: usize = 200;
    let (q_len, own) = (90, 60);
    let whole = Problem::causal(PREFIX + own, DIM, Dtype::F32)
        .with_q_len(q_len)
        .with_softmax_scale(0.3);
    let mut random = Random::new(7);
    let mut numbers = |len: usize| -> Vec<f32> {
        let numbers = (0..len).map(|_| random.normal() as f32);
        numbers.map(|x| T::from_f32(x).to_f32()).collect()
    };
    let (q, k, v) = (
        numbers(q_len * DIM),
        numbers((PREFIX + own) * DIM),
        numbers((PREFIX + own) * DIM),
    );
    let (expected, expected_lse) = attention(whole, &q, &k, &v);
    // The last rows of the prefix are masked from the first queries: those see fewer keys than the prefix has.
    let visible = PREFIX + own - q_len + 1;
    let prefix = whole.with_k_len(visible).with_causal(false);
    let (o_a, lse_a) = attention(prefix, &q, &k[..visible * DIM], &v[..visible * DIM]);
    let rest = whole.with_k_len(q_len - 1);
    let (o_b, lse_b) = attention(rest, &q, &k[visible * DIM..], &v[visible * DIM..]);
    assert_eq!(lse_b[0], f32::NEG_INFINITY);

    // In the type, with gaps between the rows, and NaN where a part has no key.
    let shape = [1, 1, q_len, DIM];
    let strides = [0, 0, DIM + 3, 1];
    let strided = |o: &[f32]| -> Vec<T> {
        let mut rows = vec![T::UNWRITTEN; q_len * (DIM + 3)];
        for (to, from) in rows.chunks_mut(DIM + 3).zip(o.chunks(DIM)) {
            for (to, &from) in to.iter_mut().zip(from) {
                *to = T::from_f32(from);
            }
        }
        rows
    };
    let (o_a, mut o_b) = (strided(&o_a), strided(&o_b));
    o_b[..DIM].fill(T::from_f32(f32::NAN));
    let view = |data| TensorView::new(data, shape, strides).unwrap();
    for swapped in [false, true] {
        let (a, b) = ((&view(&o_a), &lse_a[..]), (&view(&o_b), &lse_b[..]));
        let (a, b) = if swapped { (b, a) } else { (a, b) };
        let mut o = vec![T::UNWRITTEN; q_len * DIM];
        let mut lse = vec![0f32; q_len];
        let outputs = Outputs::new(TensorViewMut::bhsd(&mut o, shape).unwrap()).with_lse(&mut lse);
        merge(a, b, outputs).unwrap();
        for (got, expected) in o.iter().zip(&expected) {
            assert!((got.to_f32() - expected).abs() <= tolerance, "{expected}");
        }
        for (got, expected) in lse.iter().zip(&expected_lse) {
            assert!((got - expected).abs() < 2e-6, "{got} {expected}");
        }
    }
}

#[test]
fn a_prefix_and_the_rest_are_the_whole() {
    merged_is_the_union::<f32>(2e-6);
    // Each part is rounded, and the result.
    merged_is_the_union::<f16>(3.0 / 2048.0);
    merged_is_the_union::<bf16>(3.0 / 256.0);
}

#[test]
fn rows_without_keys_on_both_sides_are_zero_and_nan_goes_through() {
    let shape = [2, 1, 2, 8];
    let (o_a, o_b) = ([f32::NAN; 32], [3f32; 32]);
    let (a, b) = (
        TensorView::bhsd(&o_a, shape).unwrap(),
        TensorView::bhsd(&o_b, shape).unwrap(),
    );
    let none = f32::NEG_INFINITY;
    let mut o = [9f32; 32];
    let mut lse = [9f32; 4];
    let outputs = Outputs::new(TensorViewMut::bhsd(&mut o, shape).unwrap()).with_lse(&mut lse);
    let (lse_a, lse_b) = ([none, none, f32::NAN, 1.0], [none, 5.0, 0.0, none]);
    merge((&a, &lse_a), (&b, &lse_b), outputs).unwrap();
    assert_eq!(o[..8], [0.0; 8]);
    assert_eq!(o[8..16], [3.0; 8]);
    assert!(o[16..].iter().all(|x| x.is_nan()));
    assert_eq!(lse[..2], [none, 5.0]);
    assert!(lse[2].is_nan() && lse[3] == 1.0);
}

#[test]
fn magnitudes_that_f32_cannot_add_are_averaged() {
    let shape = [1, 1, 1, 8];
    let (o_a, o_b) = ([f32::MAX; 8], [f32::MAX; 8]);
    let (a, b) = (
        TensorView::bhsd(&o_a, shape).unwrap(),
        TensorView::bhsd(&o_b, shape).unwrap(),
    );
    let mut o = [0f32; 8];
    let outputs = Outputs::new(TensorViewMut::bhsd(&mut o, shape).unwrap());
    merge((&a, &[-3e38]), (&b, &[-3e38]), outputs).unwrap();
    assert_eq!(o, [f32::MAX; 8]);
}

#[test]
fn parts_of_other_shapes_are_refused() {
    let data = [0f32; 64];
    let (a, b) = (
        TensorView::bhsd(&data, [1, 1, 2, 8]).unwrap(),
        TensorView::bhsd(&data, [1, 1, 3, 8]).unwrap(),
    );
    let mut o = [7f32; 16];
    fn outputs(o: &mut [f32]) -> Outputs<'_> {
        Outputs::new(TensorViewMut::bhsd(o, [1, 1, 2, 8]).unwrap())
    }
    let error = merge((&a, &[0.0; 2]), (&b, &[0.0; 2]), outputs(&mut o)).unwrap_err();
    assert!(
        matches!(error, Error::Shape { tensor: "o_b", .. }),
        "{error}"
    );
    let error = merge((&a, &[0.0; 2]), (&a, &[0.0; 3]), outputs(&mut o)).unwrap_err();
    assert!(matches!(error, Error::LseLen { .. }), "{error}");
    assert_eq!(o, [7.0; 16]);
}
