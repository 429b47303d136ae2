//! Packed sequences, their keys side by side or in pages.

use candle_core::{DType, Device, IndexOp, Result, Tensor};
use candle_sample_attention::{
    Fallback, Policy, flash_attn, flash_attn_varlen, flash_attn_varlen_paged_windowed,
    flash_attn_varlen_windowed, flash_attn_with_lse, sample_attn, sample_attn_varlen,
    sample_attn_varlen_paged_with_lse, sample_attn_varlen_with_lse, sample_attn_with_lse,
};

use crate::tensors::values;

const HEADS: (usize, usize) = (4, 2);
const HEAD_DIM: usize = 32;
const SCALE: f32 = 0.18;

/// Lengths (queries, keys) of sequences: decoding, empty ones, chunks over a longer past, whole prompts.
const SEQUENCES: [(usize, usize); 7] = [
    (1, 300),
    (0, 40),
    (300, 300),
    (17, 0),
    (128, 513),
    (0, 0),
    (33, 33),
];

struct Batch {
    q: Tensor,
    k: Tensor,
    v: Tensor,
    seqlens_q: Tensor,
    seqlens_k: Tensor,
}

fn cumulative(lengths: impl Iterator<Item = usize>) -> Vec<u32> {
    let mut ends = vec![0];
    for len in lengths {
        ends.push(ends[ends.len() - 1] + len as u32);
    }
    ends
}

impl Batch {
    /// With two tokens that belong to no sequence at the end.
    fn new(dtype: DType) -> Result<Self> {
        let ends_q = cumulative(SEQUENCES.iter().map(|&(q_len, _)| q_len));
        let ends_k = cumulative(SEQUENCES.iter().map(|&(_, k_len)| k_len));
        let random = |ends: &[u32], heads| {
            let tokens = ends[ends.len() - 1] as usize + 2;
            Tensor::randn(0f32, 1., (tokens, heads, HEAD_DIM), &Device::Cpu)?.to_dtype(dtype)
        };
        Ok(Batch {
            q: random(&ends_q, HEADS.0)?,
            k: random(&ends_k, HEADS.1)?,
            v: random(&ends_k, HEADS.1)?,
            seqlens_q: Tensor::new(ends_q, &Device::Cpu)?,
            seqlens_k: Tensor::new(ends_k, &Device::Cpu)?,
        })
    }

    /// What each sequence gives by itself, one after the other, by `attend(q, k, v)`.
    fn one_by_one(
        &self,
        attend: impl Fn(&Tensor, &Tensor, &Tensor) -> Result<(Tensor, Tensor)>,
    ) -> Result<(Vec<f32>, Vec<f32>)> {
        let (mut from_q, mut from_k) = (0, 0);
        let (mut o, mut lse) = (Vec::new(), Vec::new());
        for (q_len, k_len) in SEQUENCES {
            let of = |t: &Tensor, from, len| t.narrow(0, from, len)?.unsqueeze(0);
            let found = attend(
                &of(&self.q, from_q, q_len)?,
                &of(&self.k, from_k, k_len)?,
                &of(&self.v, from_k, k_len)?,
            )?;
            o.extend(values(&found.0)?);
            lse.push(found.1.i(0)?);
            (from_q, from_k) = (from_q + q_len, from_k + k_len);
        }
        let nowhere = Tensor::full(f32::NEG_INFINITY, (HEADS.0, 2), &Device::Cpu)?;
        lse.push(nowhere);
        o.extend(vec![0.0; 2 * HEADS.0 * HEAD_DIM]);
        Ok((o, values(&Tensor::cat(&lse, 1)?)?))
    }

    /// Keys and values in shuffled pages, NaN wherever no token lies, and the table.
    fn paged(&self, page: usize) -> Result<(Tensor, Tensor, Tensor)> {
        let of_each: Vec<usize> = SEQUENCES
            .iter()
            .map(|&(_, k_len)| k_len.div_ceil(page))
            .collect();
        let (total, most) = (
            of_each.iter().sum::<usize>(),
            of_each.iter().copied().max().unwrap_or(0),
        );
        // 5 divides no number of pages here, so this is a permutation of all pages but the unused last one.
        assert!(total % 5 != 0);
        let place = |at: usize| at * 5 % total;
        let mut table = vec![u32::MAX; SEQUENCES.len() * most];
        let mut from_k = 0;
        let mut at = 0;
        let nan = vec![f32::NAN; HEADS.1 * HEAD_DIM];
        let mut pools = [0, 1].map(|_| vec![nan.clone(); (total + 1) * page]);
        let rows = [&self.k, &self.v].map(|tensor| {
            let tokens = tensor.dim(0)?;
            tensor
                .to_dtype(DType::F32)?
                .reshape((tokens, HEADS.1 * HEAD_DIM))?
                .to_vec2::<f32>()
        });
        let [k, v] = rows;
        let rows = [k?, v?];
        for (sequence, (_, k_len)) in SEQUENCES.into_iter().enumerate() {
            for token in 0..k_len {
                let number = place(at + token / page);
                table[sequence * most + token / page] = number as u32;
                for (pool, rows) in pools.iter_mut().zip(&rows) {
                    pool[number * page + token % page] = rows[from_k + token].clone();
                }
            }
            from_k += k_len;
            at += of_each[sequence];
        }
        let pool = |pool: Vec<Vec<f32>>| {
            Tensor::new(pool.concat(), &Device::Cpu)?
                .reshape((total + 1, page, HEADS.1, HEAD_DIM))?
                .to_dtype(self.k.dtype())
        };
        let [k, v] = pools;
        let table = Tensor::from_vec(table, (SEQUENCES.len(), most), &Device::Cpu)?;
        Ok((pool(k)?, pool(v)?, table))
    }
}

fn policy() -> Policy {
    Policy::default().with_fallback(Fallback::Never)
}

const MAX: (usize, usize) = (300, 513);

#[test]
fn packed_sequences_have_the_bits_that_each_has_alone() -> Result<()> {
    for dtype in [DType::F32, DType::BF16] {
        let batch = Batch::new(dtype)?;
        let Batch {
            q,
            k,
            v,
            seqlens_q,
            seqlens_k,
        } = &batch;
        for causal in [true, false] {
            let (o, _) = batch.one_by_one(|q, k, v| flash_attn_with_lse(q, k, v, SCALE, causal))?;
            let (max_q, max_k) = MAX;
            let got =
                flash_attn_varlen(q, k, v, seqlens_q, seqlens_k, max_q, max_k, SCALE, causal)?;
            assert_eq!(values(&got)?, o);
            let right = causal.then_some(0);
            let got = flash_attn_varlen_windowed(
                q, k, v, seqlens_q, seqlens_k, max_q, max_k, SCALE, None, right,
            )?;
            assert_eq!(values(&got)?, o);
        }
        let (o, lse) =
            batch.one_by_one(|q, k, v| sample_attn_with_lse(q, k, v, SCALE, &policy()))?;
        let got = sample_attn_varlen_with_lse(
            q,
            k,
            v,
            seqlens_q,
            seqlens_k,
            MAX.0,
            MAX.1,
            SCALE,
            &policy(),
        )?;
        assert_eq!(values(&got.0)?, o);
        assert_eq!(values(&got.1)?, lse);
    }
    Ok(())
}

#[test]
fn pages_have_the_bits_of_keys_side_by_side() -> Result<()> {
    let batch = Batch::new(DType::BF16)?;
    let Batch { q, seqlens_q, .. } = &batch;
    let (o, lse) = batch.one_by_one(|q, k, v| sample_attn_with_lse(q, k, v, SCALE, &policy()))?;
    let (dense, _) = batch.one_by_one(|q, k, v| flash_attn_with_lse(q, k, v, SCALE, true))?;
    for page in [16, 32, 64, 128] {
        let (k, v, table) = batch.paged(page)?;
        let got = sample_attn_varlen_paged_with_lse(
            q,
            &k,
            &v,
            seqlens_q,
            &batch.seqlens_k,
            &table,
            MAX.0,
            MAX.1,
            SCALE,
            page,
            &policy(),
        )?;
        assert_eq!(values(&got.0)?, o, "page {page}");
        assert_eq!(values(&got.1)?, lse, "page {page}");
        // [pages, heads, tokens, head_dim] in memory, i32 numbers.
        let [k, v] = [k, v].map(|t| t.transpose(1, 2)?.contiguous()?.transpose(1, 2));
        let table = table
            .to_dtype(DType::I64)?
            .clamp(0i64, 1 << 20)?
            .to_dtype(DType::I32)?;
        let got = flash_attn_varlen_paged_windowed(
            q,
            &k?,
            &v?,
            seqlens_q,
            &batch.seqlens_k,
            &table,
            None,
            MAX.0,
            MAX.1,
            SCALE,
            None,
            Some(0),
            page,
            None,
        )?;
        assert_eq!(values(&got)?, dense, "page {page}");
    }
    Ok(())
}

#[test]
fn sequences_may_share_pages() -> Result<()> {
    let k = Tensor::randn(0f32, 1., (3, 32, HEADS.1, HEAD_DIM), &Device::Cpu)?;
    let q = Tensor::randn(0f32, 1., (2, HEADS.0, HEAD_DIM), &Device::Cpu)?;
    let seqlens = |ends: [u32; 3]| Tensor::new(&ends, &Device::Cpu);
    let table = Tensor::new(&[[2u32, 0], [2, 1]], &Device::Cpu)?;
    let got = flash_attn_varlen_paged_windowed(
        &q,
        &k,
        &k,
        &seqlens([0, 1, 2])?,
        &seqlens([0, 50, 114])?,
        &table,
        None,
        1,
        64,
        SCALE,
        None,
        Some(0),
        32,
        None,
    )?;
    for (sequence, (second, len)) in [(0, 50), (1, 64)].into_iter().enumerate() {
        let keys = Tensor::cat(&[k.i(2)?, k.i(second)?], 0)?
            .narrow(0, 0, len)?
            .unsqueeze(0)?;
        let alone = flash_attn(
            &q.narrow(0, sequence, 1)?.unsqueeze(0)?,
            &keys,
            &keys,
            SCALE,
            true,
        )?;
        assert_eq!(values(&got.i(sequence)?)?, values(&alone)?);
    }
    Ok(())
}

#[test]
fn a_batch_of_one_is_the_sequence_itself() -> Result<()> {
    let q = Tensor::randn(0f32, 1., (600, HEADS.0, HEAD_DIM), &Device::Cpu)?;
    let k = Tensor::randn(0f32, 1., (600, HEADS.1, HEAD_DIM), &Device::Cpu)?;
    let ends = Tensor::new(&[0u32, 600], &Device::Cpu)?;
    let packed = sample_attn_varlen(&q, &k, &k, &ends, &ends, 600, 600, SCALE, &policy())?;
    let [q, k] = [q, k].map(|t| t.unsqueeze(0));
    let (q, k) = (q?, k?);
    let alone = sample_attn(&q, &k, &k, SCALE, &policy())?;
    assert_eq!(values(&packed)?, values(&alone)?);
    Ok(())
}
