//! A prompt prefilled in chunks of whole segments, which are 64 blocks of 128 tokens.

use sample_attention::{Budget, Dtype, Fallback, Policy, Problem, Window};
use testkit::runner::{Attend, Backend, Case, Cpu, Data, Emulator, Outcome, run_with};
use testkit::tensor::{Qkv, Tensor};

const SEGMENT: usize = 8192;

fn slice(tensor: &Tensor, start: usize, end: usize) -> Tensor {
    let [batch, heads, _, dim] = tensor.shape;
    let mut slice = Tensor::filled([batch, heads, end - start, dim], 0.0);
    for b in 0..batch {
        for h in 0..heads {
            for token in start..end {
                slice
                    .row_mut(b, h, token - start)
                    .copy_from_slice(tensor.row(b, h, token));
            }
        }
    }
    slice
}

fn assert_rows_agree(whole: &Outcome, chunk: &Outcome, start: usize, len: usize) {
    for head in 0..2 {
        for row in 0..len {
            assert_eq!(
                whole.o.row(0, head, start + row),
                chunk.o.row(0, head, row),
                "row {row} of the chunk at {start}, head {head}"
            );
        }
        let whole_len = whole.o.shape[2];
        let expected = &whole.lse[head * whole_len + start..][..len];
        assert_eq!(expected, &chunk.lse[head * len..][..len]);
        if let (Some(whole), Some(chunk)) = (&whole.found.selection, &chunk.found.selection) {
            for block in start / 128..(start + len).div_ceil(128) {
                let listed: Vec<usize> = chunk.head(0, head).blocks(block).collect();
                assert_eq!(
                    whole.head(0, head).blocks(block).collect::<Vec<_>>(),
                    listed
                );
            }
        }
    }
}

#[test]
fn whole_segments_select_and_compute_what_the_whole_prompt_does() {
    let len = 3 * SEGMENT + 700;
    let problem = Problem::causal(len, 8, Dtype::Bf16).with_heads(2, 1);
    // Every stride that divides a segment samples the same rows of a chunk and of the whole.
    for (row_stride, stride_doubles_from, sampled) in [
        (16, usize::MAX, 512 * 3 + 44),
        (64, usize::MAX, 128 * 3 + 11),
        // Strides 16, 32, 64 and 64.
        (16, SEGMENT, 512 + 256 + 128 + 11),
        // The position that a segment begins at decides: 8, 8, 16 and 32.
        (8, SEGMENT + 1, 1024 * 2 + 512 + 22),
    ] {
        let policy = Policy::of(Budget::Blocks)
            .with_budget(Budget::Blocks)
            .with_coverage(0.8)
            .with_row_stride(row_stride)
            .with_stride_doubles_from(stride_doubles_from)
            .with_fallback(Fallback::Never);
        let case = Case {
            data: Data::Structured,
            ..Case::new(problem, Attend::Policy(policy))
        };
        let qkv = case.inputs();
        let whole = run_with(&Cpu::default(), &case, &qkv);
        let density = whole.found.report.as_ref().unwrap().mean_density();
        assert!(density < 0.9, "nothing was left out: {density}");
        assert_eq!(whole.found.sampled.len(), problem.q_heads * sampled);
        for (start, end) in [
            (0, SEGMENT),
            (SEGMENT, 2 * SEGMENT),
            (0, 2 * SEGMENT),
            (2 * SEGMENT, len),
            (SEGMENT, len),
        ] {
            let chunk = Case {
                problem: problem.with_q_len(end - start).with_k_len(end),
                ..case.clone()
            };
            let inputs = Qkv {
                q: slice(&qkv.q, start, end),
                k: slice(&qkv.k, 0, end),
                v: slice(&qkv.v, 0, end),
            };
            let chunk = run_with(
                &Cpu {
                    threads: 1,
                    ..Cpu::default()
                },
                &chunk,
                &inputs,
            );
            assert_rows_agree(&whole, &chunk, start, end - start);
        }
    }
}

#[test]
fn dense_chunks_of_more_than_sixteen_queries_are_the_whole_to_the_bit() {
    let problem = Problem::causal(900, 16, Dtype::F32).with_heads(2, 1);
    let case = Case::new(problem, Attend::Dense);
    let qkv = case.inputs();
    let whole = run_with(&Cpu::default(), &case, &qkv);
    for (start, end) in [(0, 128), (128, 500), (384, 900), (512, 529)] {
        let chunk = Case {
            problem: problem.with_q_len(end - start).with_k_len(end),
            ..case.clone()
        };
        let inputs = Qkv {
            q: slice(&qkv.q, start, end),
            k: slice(&qkv.k, 0, end),
            v: slice(&qkv.v, 0, end),
        };
        assert_rows_agree(
            &whole,
            &run_with(&Cpu::default(), &chunk, &inputs),
            start,
            end - start,
        );
    }
}

/// What a query block keeps hangs on its own rows alone: any whole blocks do, on the GPU kernels too.
#[test]
fn whole_blocks_by_rows_select_and_compute_what_the_whole_prompt_does() {
    let problem = Problem::causal(900, 64, Dtype::Bf16).with_heads(2, 1);
    let policy = Policy::of(Budget::Rows)
        .with_coverage(0.7)
        .with_window(Window::Tokens(1))
        .with_fallback(Fallback::Never);
    let case = Case {
        data: Data::Structured,
        ..Case::new(problem, Attend::Policy(policy))
    };
    let qkv = case.inputs();
    let backends: [&dyn Backend; 3] = [&Cpu::default(), &Emulator::default(), &Emulator::hopper()];
    for backend in backends {
        let whole = run_with(backend, &case, &qkv);
        let density = whole.found.report.as_ref().unwrap().mean_density();
        assert!(density < 0.9, "nothing was left out: {density}");
        for (start, end) in [(0, 256), (256, 384), (256, 900)] {
            let chunk = Case {
                problem: problem.with_q_len(end - start).with_k_len(end),
                ..case.clone()
            };
            let inputs = Qkv {
                q: slice(&qkv.q, start, end),
                k: slice(&qkv.k, 0, end),
                v: slice(&qkv.v, 0, end),
            };
            let chunk = run_with(backend, &chunk, &inputs);
            assert_rows_agree(&whole, &chunk, start, end - start);
        }
    }
}
