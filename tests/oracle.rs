//! The oracle itself, on examples worked by hand.

use sample_attention::{Budget, Dtype, Policy, Problem, Window};
use testkit::oracle::{
    HeadMask, Mask, attention_row, position, query_block, sampled_rows, smallest_set, units,
};
use testkit::tensor::{Qkv, Tensor, round, rounding_error};

fn problem(q_len: usize, k_len: usize) -> Problem {
    Problem::causal(k_len, 8, Dtype::F32)
        .with_q_len(q_len)
        .with_softmax_scale(1.0)
}

fn zeros(problem: &Problem) -> Qkv {
    Qkv {
        q: Tensor::filled(problem.q_shape(), 0.0),
        k: Tensor::filled(problem.kv_shape(), 0.0),
        v: Tensor::filled(problem.kv_shape(), 0.0),
    }
}

#[test]
fn two_keys_share_a_row_as_their_exponentials() {
    let problem = problem(1, 2);
    let mut qkv = zeros(&problem);
    qkv.q.row_mut(0, 0, 0)[3] = 1.0;
    qkv.k.row_mut(0, 0, 0)[3] = 2f32.ln();
    qkv.k.row_mut(0, 0, 1)[3] = 3f32.ln();
    qkv.v.row_mut(0, 0, 0)[5] = 10.0;
    qkv.v.row_mut(0, 0, 1)[5] = -5.0;
    let row = attention_row(&problem, &qkv, 0, 0, &[0, 1]);
    // P = (2/5, 3/5), O = 4 − 3.
    assert!((row.lse - 5f64.ln()).abs() < 1e-7);
    assert!((row.o[5] - 1.0).abs() < 1e-6 && row.o[4] == 0.0);
    assert!((row.o_magnitude[5] - 7.0).abs() < 1e-6);
    let alone = attention_row(&problem, &qkv, 0, 0, &[1]);
    assert!((alone.lse - 3f64.ln()).abs() < 1e-7 && (alone.o[5] + 5.0).abs() < 1e-12);
    let nothing = attention_row(&problem, &qkv, 0, 0, &[]);
    assert_eq!((nothing.lse, nothing.o), (f64::NEG_INFINITY, vec![0.0; 8]));
}

#[test]
fn the_last_query_stands_at_the_last_key() {
    assert_eq!(position(&problem(3, 300), 2), 299);
    assert_eq!(position(&problem(3, 300), 0), 297);
    assert_eq!(position(&problem(300, 3), 0), -297);
    assert_eq!(query_block(&problem(300, 300), 127), 0);
    assert_eq!(query_block(&problem(300, 301), 127), 1);
}

#[test]
fn a_key_is_kept_for_its_block_its_stripe_or_as_a_sink() {
    let problem = problem(2, 400);
    let mut head = HeadMask {
        dense: false,
        sinks: 2,
        blocks: vec![vec![false; 4]; 4],
        stripes: vec![false; 400],
    };
    head.blocks[3][1] = true;
    head.stripes[10] = true;
    head.stripes[398] = true;
    let mask = Mask::Heads(vec![head]);
    let mut expected: Vec<usize> = vec![0, 1, 10];
    expected.extend(128..256);
    expected.push(398);
    assert_eq!(mask.kept_keys(&problem, 0, 0), expected);
    assert_eq!(mask.kept_keys(&problem, 0, 1), expected);
    assert_eq!(mask.density(&problem, 0), 264.0 / 799.0);
    let shorter = problem.with_k_len(399);
    // Now the first row stands at 397 and does not see the last stripe.
    assert!(!mask.kept_keys(&shorter, 0, 0).contains(&398));
}

#[test]
fn sampled_rows_are_multiples_by_position_and_the_last() {
    let sampled = |problem, row_stride| {
        let policy = Policy::of(Budget::Blocks).with_row_stride(row_stride);
        sampled_rows(&problem, &policy, 0)
    };
    assert_eq!(sampled(problem(5, 40), 7), [4]);
    assert_eq!(sampled(problem(5, 40), 4), [0, 4]);
    assert_eq!(sampled(problem(40, 5), 2), [36, 38, 39]);
    assert_eq!(sampled(problem(4, 4), 100), [3]);
}

#[test]
fn segments_from_the_doubling_on_are_sampled_at_wider_strides() {
    let problem = problem(100, 16_384 + 50);
    let sampled = |row_stride, stride_doubles_from, budget| {
        let policy = Policy::of(Budget::Blocks)
            .with_budget(budget)
            .with_row_stride(row_stride)
            .with_stride_doubles_from(stride_doubles_from);
        sampled_rows(&problem, &policy, 0)
    };
    // Row 50 stands at position 16384, a segment's first. Positions 16339, 16359 and 16379 are multiples of 20, less one.
    let blocks = Budget::Blocks;
    assert_eq!(
        sampled(20, usize::MAX, blocks),
        [5, 25, 45, 65, 85, 99],
        "never"
    );
    // 16359 is one of 40; 16383 + 64 is beyond the last.
    assert_eq!(sampled(20, 8192, blocks), [25, 99]);
    // 16319 is the last of 80 before, but 80 is 64 here, and 16383 one of it.
    assert_eq!(sampled(20, 4096, blocks), [49, 99]);
    assert_eq!(sampled(20, 16_384, blocks), [5, 25, 45, 65, 99]);
    assert_eq!(
        sampled(20, 1, Budget::Residual),
        sampled(20, usize::MAX, blocks)
    );
    assert_eq!(sampled(100, 1, blocks), sampled(100, usize::MAX, blocks));
}

#[test]
fn masses_of_indifferent_rows_are_counts_of_keys() {
    let problem = problem(512, 512);
    let policy = Policy::of(Budget::Blocks)
        .with_coverage(0.75)
        .with_row_stride(128)
        .with_window(Window::Tokens(1))
        .with_sinks(0);
    let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-6, "{a} {b}");
    // One sampled row a query block b, the last: it gives each of its 128 · (b + 1) keys the same.
    let covered = 1.0 + 1.0 / 2.0 + 1.0 / 3.0 + 1.0 / 4.0;
    let blocks = &units(&problem, &policy, &zeros(&problem))[0];
    close(blocks.covered, covered);
    close(blocks.need, 3.0 - covered);
    close(blocks.mass[4], 0.5);
    close(blocks.mass[8], 1.0 / 3.0);
    close(blocks.mass[12 + 2], 0.25);
    assert_eq!((blocks.mass[0], blocks.mass[15]), (0.0, 0.0));

    let budget = Budget::Residual;
    let residual = &units(&problem, &policy.with_budget(budget), &zeros(&problem))[0];
    close(residual.need, 3.0 - covered);
    close(
        residual.mass[0],
        (1.0 / 2.0 + 1.0 / 3.0 + 1.0 / 4.0) / 128.0,
    );
    close(residual.mass[300], 1.0 / 4.0 / 128.0);
    assert_eq!(residual.mass[400], 0.0);

    let budget = Budget::Paper;
    let paper = &units(&problem, &policy.with_budget(budget), &zeros(&problem))[0];
    close(paper.need, 3.0);
    close(paper.mass[0], covered / 128.0);
    close(paper.mass[511], 1.0 / 4.0 / 128.0);
    close(paper.beyond[0], residual.mass[0]);

    // Sinks take the first two keys of every row away from the candidates.
    let with_sinks = &units(&problem, &policy.with_sinks(2), &zeros(&problem))[0];
    close(with_sinks.mass[4], 0.5 * 126.0 / 128.0);
    close(
        with_sinks.covered,
        covered + (0.5 + 1.0 / 3.0 + 0.25) * 2.0 / 128.0,
    );
}

#[test]
fn the_smallest_set_takes_the_heaviest_and_of_equals_the_first() {
    assert_eq!(smallest_set(&[5, 1, 5, 9, 0], 14), [0, 3]);
    assert_eq!(smallest_set(&[5, 1, 5, 9, 0], 15), [0, 2, 3]);
    assert_eq!(smallest_set(&[5, 1, 5, 9, 0], 0), [] as [usize; 0]);
    assert_eq!(smallest_set(&[5, 1, 5, 9, 0], 1000), [0, 1, 2, 3]);
}

#[test]
fn rounding_changes_no_more_than_it_says() {
    for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
        for x in [0.0, 1.0, 1.003, -0.3333, 700.7, 3e-5, 1e-7, 6.1e-5] {
            let error = (round(dtype, x) - x).abs();
            assert!(error <= rounding_error(dtype, x), "{dtype} {x}: {error:e}");
        }
    }
    assert_eq!(round(Dtype::Bf16, 1.0 + 1.0 / 256.0), 1.0);
    assert_eq!(rounding_error(Dtype::Bf16, 1.0), 1.0 / 256.0);
    assert_eq!(rounding_error(Dtype::F16, 1.5), 1.0 / 2048.0);
}
