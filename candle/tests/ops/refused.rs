//! What cannot be computed is refused in words that name the remedy.

use candle_core::{DType, Device, Result, Tensor};
use candle_sample_attention::{
    HeadPolicy, Policy, flash_attn, flash_attn_varlen, flash_attn_varlen_paged_windowed,
    flash_attn_windowed, sample_attn,
};

fn refusal<T: std::fmt::Debug>(result: Result<T>) -> String {
    result.unwrap_err().to_string()
}

fn ones(shape: &[usize]) -> Tensor {
    Tensor::ones(shape, DType::F32, &Device::Cpu).unwrap()
}

#[test]
fn tensors_that_do_not_fit() {
    let q = ones(&[1, 20, 4, 16]);
    for (k, v, words) in [
        (
            ones(&[1, 20, 4, 16]),
            ones(&[1, 21, 4, 16]),
            "k and v differ in shape",
        ),
        (
            ones(&[2, 20, 4, 16]),
            ones(&[2, 20, 4, 16]),
            "q has a batch of 1",
        ),
        (
            ones(&[1, 20, 4, 8]),
            ones(&[1, 20, 4, 8]),
            "differ in head_dim",
        ),
        (
            ones(&[1, 20, 3, 16]),
            ones(&[1, 20, 3, 16]),
            "not a multiple of kv_heads",
        ),
        (
            ones(&[20, 4, 16]),
            ones(&[20, 4, 16]),
            "must be [batch, tokens, heads, head_dim]",
        ),
    ] {
        let line = refusal(flash_attn(&q, &k, &v, 1., true));
        assert!(line.contains(words), "{line}");
    }
    let odd = ones(&[1, 20, 4, 12]);
    let line = refusal(flash_attn(&odd, &odd, &odd, 1., true));
    assert!(line.contains("head_dim 12 is not supported"), "{line}");
    let turned = ones(&[1, 20, 16, 4]).transpose(2, 3).unwrap();
    let line = refusal(flash_attn(&turned, &q, &q, 1., true));
    assert!(
        line.contains("the last dimension of q must be contiguous"),
        "{line}"
    );
    let f64 = q.to_dtype(DType::F64).unwrap();
    let line = refusal(flash_attn(&f64, &f64, &f64, 1., true));
    assert!(line.contains("f32, f16 and bf16"), "{line}");
    let f16 = q.to_dtype(DType::F16).unwrap();
    assert!(flash_attn(&q, &f16, &f16, 1., true).is_err());
}

#[test]
fn policies_out_of_range() {
    let q = ones(&[1, 20, 4, 16]);
    let line = refusal(sample_attn(
        &q,
        &q,
        &q,
        1.,
        &Policy::default().with_coverage(1.5),
    ));
    assert!(line.contains("coverage is 1.5"), "{line}");
    let line = refusal(sample_attn(&q, &q, &q, 1., &vec![HeadPolicy::Dense; 3]));
    assert!(line.contains("3 head policies for 4 query heads"), "{line}");
    let line = refusal(sample_attn(&q, &q, &q, f32::NAN, &Policy::default()));
    assert!(line.contains("softmax_scale"), "{line}");
}

#[test]
fn windows_softcap_and_ranges() {
    let q = ones(&[1, 20, 4, 16]);
    let line = refusal(flash_attn_windowed(&q, &q, &q, 1., Some(5), Some(0)));
    assert!(line.contains("window_size_left = 5"), "{line}");
    let packed = ones(&[20, 4, 16]);
    let pages = ones(&[2, 16, 4, 16]);
    let ends = Tensor::new(&[0u32, 20], &Device::Cpu).unwrap();
    let table = Tensor::new(&[[0u32, 1]], &Device::Cpu).unwrap();
    let paged = |ranges, page, softcap| {
        let right = Some(0);
        refusal(flash_attn_varlen_paged_windowed(
            &packed, &pages, &pages, &ends, &ends, &table, ranges, 20, 20, 1., None, right, page,
            softcap,
        ))
    };
    let line = paged(None, 16, Some(30.0));
    assert!(line.contains("softcap = 30 is not supported"), "{line}");
    let line = paged(Some(&table), 16, None);
    assert!(line.contains("mm_prefix_ranges"), "{line}");
    let line = paged(None, 32, None);
    assert!(
        line.contains("page_block_size is 32, but k has pages of 16"),
        "{line}"
    );
}

#[test]
fn lengths_and_pages_that_are_not_there() {
    let q = ones(&[20, 4, 16]);
    let ends = |ends: &[u32]| Tensor::new(ends, &Device::Cpu).unwrap();
    let varlen = |seqlens_q: &[u32], seqlens_k: &[u32], max| {
        let (seqlens_q, seqlens_k) = (ends(seqlens_q), ends(seqlens_k));
        refusal(flash_attn_varlen(
            &q, &q, &q, &seqlens_q, &seqlens_k, max, max, 1., true,
        ))
    };
    for (line, words) in [
        (
            varlen(&[0, 12, 8], &[0, 12, 20], 20),
            "goes from 12 to 8 at sequence 1",
        ),
        (varlen(&[0, 21], &[0, 20], 21), "seqlens_q ends at token 21"),
        (varlen(&[0, 20], &[0, 21], 21), "seqlens_k ends at token 21"),
        (varlen(&[0, 20], &[0, 20], 19), "made for max_seqlen_q = 19"),
        (
            varlen(&[0, 20], &[0, 10, 20], 20),
            "seqlens_k has 3 entries",
        ),
        (
            varlen(&[20], &[20], 20),
            "must be cumulative lengths, [sequences + 1]",
        ),
    ] {
        assert!(line.contains(words), "{line}");
    }
    let pages = ones(&[2, 16, 4, 16]);
    let paged = |table: Tensor, k_len: u32| {
        refusal(flash_attn_varlen_paged_windowed(
            &q,
            &pages,
            &pages,
            &ends(&[0, 20]),
            &ends(&[0, k_len]),
            &table,
            None,
            20,
            40,
            1.,
            None,
            Some(0),
            16,
            None,
        ))
    };
    let table = |pages: &[u32]| {
        Tensor::new(pages, &Device::Cpu)
            .unwrap()
            .unsqueeze(0)
            .unwrap()
    };
    let line = paged(table(&[0, 2]), 20);
    assert!(line.contains("is 2, but there are 2 pages"), "{line}");
    let line = paged(table(&[0, 1]), 33);
    assert!(
        line.contains("lies in 3 pages, but its row of the block table has 2 entries"),
        "{line}"
    );
    let negative = Tensor::new(&[[0i32, -1]], &Device::Cpu).unwrap();
    let line = paged(negative, 20);
    assert!(line.contains("is -1, but there are 2 pages"), "{line}");
    let line = paged(Tensor::new(&[[0i64, 1]], &Device::Cpu).unwrap(), 20);
    assert!(line.contains("must be u32 or i32"), "{line}");
}

#[test]
fn gradients() -> Result<()> {
    let q = candle_core::Var::from_tensor(&ones(&[1, 20, 4, 16]))?;
    let o = flash_attn(&q, &q, &q, 1., true)?;
    let line = refusal(o.sum_all()?.backward().map(|_| ()));
    assert!(line.contains("flash-attn"), "{line}");
    Ok(())
}
