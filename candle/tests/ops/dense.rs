//! candle-flash-attn's names.

use candle_core::{DType, Device, Tensor};
use candle_nn::attention::{AttnMask, flash_attn as candle_nn_attention};
use candle_sample_attention::{
    HeadPolicy, flash_attn, flash_attn_windowed, flash_attn_with_lse, sample_attn_with_lse,
};
use sample_attention::{Dtype, Problem};
use testkit::runner::{Attend, Case, check};

use crate::tensors::{Memory, Ops, by_heads, qkv, values};

const DTYPES: [Dtype; 3] = [Dtype::F32, Dtype::F16, Dtype::Bf16];

/// Of each: fewer, as many and more queries than keys, around the edges of tiles, GQA, a batch.
fn problems() -> impl Iterator<Item = Problem> {
    let lengths = [(1, 1), (1, 300), (33, 129), (257, 257), (130, 70)];
    lengths
        .into_iter()
        .enumerate()
        .map(|(index, (q_len, k_len))| {
            let (q_heads, kv_heads) = [(4, 2), (3, 3), (8, 1)][index % 3];
            Problem::causal(k_len, [64, 40, 128][index % 3], DTYPES[index % 3])
                .with_q_len(q_len)
                .with_heads(q_heads, kv_heads)
                .with_batch(1 + index % 2)
        })
}

#[test]
fn dense_attention_is_within_a_16_bit_references_error_in_every_layout() {
    for memory in Memory::ALL {
        for (index, problem) in problems().enumerate() {
            for causal in [true, false] {
                let case = Case {
                    seed: index as u64,
                    row_step: 7,
                    ..Case::new(problem.with_causal(causal), Attend::Dense)
                };
                check(&Ops(memory), &case);
            }
        }
    }
}

#[test]
fn strided_inputs_give_the_bits_of_contiguous_ones() -> candle_core::Result<()> {
    let problem = Problem::causal(200, 64, Dtype::Bf16)
        .with_heads(4, 2)
        .with_batch(2);
    let inputs = Case::new(problem, Attend::Dense).inputs();
    let run = |memory| {
        let [q, k, v] = qkv(&inputs, memory, problem.dtype)?;
        by_heads(&flash_attn(&q, &k, &v, problem.softmax_scale, true)?)
    };
    let expected = run(Memory::Tokens)?;
    for memory in Memory::ALL {
        assert_eq!(run(memory)?, expected, "{memory:?}");
    }
    Ok(())
}

#[test]
fn causal_attention_agrees_with_candle_nn() -> candle_core::Result<()> {
    let (q_len, k_len, head_dim) = (96, 160, 64);
    let problem = Problem::causal(k_len, head_dim, Dtype::F32)
        .with_q_len(q_len)
        .with_heads(4, 2);
    let inputs = Case::new(problem, Attend::Dense).inputs();
    let [q, k, v] = qkv(&inputs, Memory::Tokens, Dtype::F32)?;
    let scale = problem.softmax_scale;
    let mask = AttnMask::causal_with_offset(k_len - q_len);
    // It returns [batch, heads, tokens, head_dim].
    let expected = values(&candle_nn_attention::<f32>(
        &q, &k, &v, scale, mask, None, None,
    )?)?;
    let got = by_heads(&flash_attn(&q, &k, &v, scale, true)?)?;
    assert!(worst(&got, &expected) < 2e-6, "{}", worst(&got, &expected));
    Ok(())
}

#[test]
fn attention_without_a_mask_agrees_with_matmul_and_softmax() -> candle_core::Result<()> {
    let problem = Problem::causal(70, 32, Dtype::F32).with_heads(2, 2);
    let inputs = Case::new(problem, Attend::Dense).inputs();
    let [q, k, v] = qkv(&inputs, Memory::Heads, Dtype::F32)?;
    let scale = problem.softmax_scale;
    let [qt, kt, vt] = [&q, &k, &v].map(|t| t.transpose(1, 2).and_then(|t| t.contiguous()));
    let scores = (qt?.matmul(&kt?.t()?)? * f64::from(scale))?;
    let expected = candle_nn::ops::softmax_last_dim(&scores)?.matmul(&vt?)?;
    let got = by_heads(&flash_attn(&q, &k, &v, scale, false)?)?;
    let worst = worst(&got, &values(&expected)?);
    assert!(worst < 2e-6, "{worst}");
    Ok(())
}

fn worst(got: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(got.len(), expected.len());
    let pairs = got.iter().zip(expected);
    pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn a_right_window_of_0_is_the_causal_mask() -> candle_core::Result<()> {
    let q = Tensor::randn(0f32, 1., (1, 50, 2, 16), &Device::Cpu)?;
    let causal = values(&flash_attn(&q, &q, &q, 0.25, true)?)?;
    let windowed = flash_attn_windowed(&q, &q, &q, 0.25, Some(49), Some(0))?;
    assert_eq!(values(&windowed)?, causal);
    let full = values(&flash_attn(&q, &q, &q, 0.25, false)?)?;
    let windowed = flash_attn_windowed(&q, &q, &q, 0.25, None, Some(49))?;
    assert_eq!(values(&windowed)?, full);
    Ok(())
}

#[test]
fn dense_heads_have_the_output_and_log_sum_exp_of_dense_attention() -> candle_core::Result<()> {
    let q = Tensor::randn(0f32, 1., (2, 150, 2, 16), &Device::Cpu)?;
    let (o, lse) = flash_attn_with_lse(&q, &q, &q, 0.25, true)?;
    let (by_head, lse_by_head) =
        sample_attn_with_lse(&q, &q, &q, 0.25, &vec![HeadPolicy::Dense; 2])?;
    assert_eq!(values(&by_head)?, values(&o)?);
    assert_eq!(lse.dims(), [2, 2, 150]);
    assert_eq!(values(&lse_by_head)?, values(&lse)?);
    Ok(())
}

#[test]
fn nothing_to_attend_to_gives_zeros_and_minus_infinity() -> candle_core::Result<()> {
    let q = Tensor::ones((1, 3, 2, 16), DType::BF16, &Device::Cpu)?;
    let no_keys = Tensor::ones((1, 0, 2, 16), DType::BF16, &Device::Cpu)?;
    let (o, lse) = flash_attn_with_lse(&q, &no_keys, &no_keys, 1., true)?;
    assert!(values(&o)?.iter().all(|&x| x == 0.0));
    assert!(values(&lse)?.iter().all(|&x| x == f32::NEG_INFINITY));
    let no_queries = Tensor::ones((1, 0, 2, 16), DType::BF16, &Device::Cpu)?;
    assert_eq!(
        flash_attn(&no_queries, &q, &q, 1., true)?.dims(),
        [1, 0, 2, 16]
    );
    Ok(())
}
