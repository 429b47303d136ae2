//! Attention over the caller's own lists: key blocks, stripes and sinks in any combination.

use sample_attention::{Dtype, Problem, Selection};
use testkit::lists::{query_blocks, random_selection};
use testkit::runner::{Attend, Case, Cpu, Layout, check, run_with};

fn problem(q_len: usize, k_len: usize, causal: bool) -> Problem {
    Problem::causal(k_len, 32, Dtype::F32)
        .with_heads(2, 1)
        .with_q_len(q_len)
        .with_causal(causal)
}

fn own(problem: Problem, selection: Selection) -> Case {
    Case::new(problem, Attend::Own(selection))
}

#[test]
fn random_lists_of_every_head_are_the_mask() {
    let shapes = [
        (1, 1),
        (1, 700),
        (113, 203),
        (300, 129),
        (512, 256),
        (641, 641),
        (129, 1000),
    ];
    for (seed, (q_len, k_len)) in shapes.into_iter().enumerate() {
        for causal in [true, false] {
            for (dtype, output) in [
                (Dtype::F32, Dtype::F32),
                (Dtype::F16, Dtype::F16),
                (Dtype::Bf16, Dtype::F32),
            ] {
                let problem = problem(q_len, k_len, causal)
                    .with_batch(2)
                    .with_heads(4, 2)
                    .with_dtype(dtype);
                let case = Case {
                    output,
                    layout: Layout::ALL[seed % 4],
                    ..own(problem, random_selection(&problem, seed as u64))
                };
                check(&Cpu::default(), &case);
            }
        }
    }
}

#[test]
fn a_selections_own_answers_are_those_of_its_lists() {
    for causal in [true, false] {
        let problem = problem(350, 500, causal);
        let selection = random_selection(&problem, 3);
        let mask = testkit::oracle::Mask::of(&problem, &selection);
        for head in 0..2 {
            let lists = selection.head(0, head);
            let mut pairs = 0;
            for row in 0..problem.q_len {
                for key in 0..problem.k_len {
                    let kept = mask.keeps(&problem, head, row, key);
                    assert_eq!(lists.keeps(row, key), kept, "{head} {row} {key}");
                    pairs += u64::from(kept);
                }
            }
            assert_eq!(lists.pairs(), pairs);
            assert!((lists.density() - mask.density(&problem, head)).abs() < 1e-12);
        }
    }
}

#[test]
fn stripes_may_be_none_all_or_at_the_windows_edge() {
    let problem = problem(400, 400, true);
    let lists: [Vec<u32>; 7] = [
        vec![],
        (0..400).collect(),
        vec![127, 128, 255, 256],
        vec![126, 129, 254, 257, 383, 384],
        vec![0],
        vec![399],
        (0..400).step_by(3).collect(),
    ];
    for stripes in lists {
        for sinks in [0, 5] {
            let mut selection = Selection::new(&problem).unwrap();
            selection.set_sinks(sinks);
            selection.set_stripes(0, 1, &stripes).unwrap();
            for query_block in 1..4 {
                let window = [query_block - 1, query_block];
                selection.set_blocks(0, 1, query_block, &window).unwrap();
            }
            check(&Cpu::default(), &own(problem, selection));
        }
    }
}

#[test]
fn sinks_may_fill_tiles_and_exceed_the_keys() {
    for causal in [true, false] {
        let problem = problem(300, 290, causal);
        for sinks in [0, 1, 8, 128, 129, 200, 289, 290, 100_000] {
            let mut selection = Selection::new(&problem).unwrap();
            selection.set_sinks(sinks);
            check(&Cpu::default(), &own(problem, selection));
        }
    }
}

#[test]
fn keys_kept_twice_count_once() {
    let problem = problem(500, 500, true);
    let mut selection = Selection::dense(&problem).unwrap();
    for head in 0..2 {
        selection.set_dense(0, head, false).unwrap();
        selection
            .set_stripes(0, head, &(0..500).collect::<Vec<_>>())
            .unwrap();
        for query_block in 0..4 {
            selection
                .set_blocks(0, head, query_block, &[0, 0, 1, 2, 3, 1])
                .unwrap();
        }
    }
    selection.set_sinks(500);
    check(&Cpu::default(), &own(problem, selection));
}

#[test]
fn a_window_alone_is_local_attention() {
    for (q_len, k_len) in [(600, 600), (200, 600), (600, 200)] {
        let problem = problem(q_len, k_len, true);
        check(
            &Cpu::default(),
            &own(problem, Selection::new(&problem).unwrap()),
        );
    }
}

#[test]
fn all_blocks_are_dense_to_the_bit() {
    for causal in [true, false] {
        let problem = problem(300, 420, causal);
        let mut selection = Selection::new(&problem).unwrap();
        for head in 0..2 {
            for query_block in 0..query_blocks(&problem) {
                selection
                    .set_blocks(0, head, query_block, &[0, 1, 2, 3])
                    .unwrap();
            }
        }
        let case = Case::new(problem, Attend::Dense);
        let dense = run_with(&Cpu::default(), &case, &case.inputs());
        let listed = run_with(&Cpu::default(), &own(problem, selection), &case.inputs());
        let flagged = own(problem, Selection::dense(&problem).unwrap());
        let flagged = run_with(&Cpu::default(), &flagged, &case.inputs());
        assert_eq!(dense.bits(), listed.bits());
        assert_eq!(dense.bits(), flagged.bits());
    }
}

#[test]
fn dense_and_sparse_heads_live_side_by_side() {
    let problem = problem(300, 300, true);
    let mut selection = random_selection(&problem, 5);
    selection.set_dense(0, 1, true).unwrap();
    check(&Cpu::default(), &own(problem, selection));
}

#[test]
fn rows_whose_lists_are_empty_are_zero_with_lse_minus_infinity() {
    let problem = problem(300, 300, false);
    let mut selection = Selection::new(&problem).unwrap();
    selection.set_blocks(0, 0, 1, &[2]).unwrap();
    let outcome = check(&Cpu::default(), &own(problem, selection));
    for row in 0..300 {
        let empty = row / 128 != 1;
        assert_eq!(outcome.lse[row] == f32::NEG_INFINITY, empty);
        assert_eq!(
            outcome.o.row(0, 0, row).iter().all(|x| x.to_bits() == 0),
            empty
        );
    }
    assert!(
        outcome.lse[300..]
            .iter()
            .all(|&lse| lse == f32::NEG_INFINITY)
    );
}

#[test]
fn blocks_after_the_query_are_ignored_and_its_own_is_kept() {
    let problem = problem(400, 400, true);
    let mut selection = Selection::new(&problem).unwrap();
    for query_block in 0..4 {
        selection.set_blocks(0, 0, query_block, &[3]).unwrap();
    }
    for query_block in 0..3 {
        assert_eq!(
            selection.head(0, 0).blocks(query_block).collect::<Vec<_>>(),
            [query_block]
        );
    }
    check(&Cpu::default(), &own(problem, selection));
}
