//! Packed sequences, one after the other.

use candle_core::{Result, bail};
use sample_attention::{Report, StageTimes};

use super::batch::{Target, attend};
use super::lengths::{PageNumbers, cumulative};
use super::run::{Computed, Run};
use super::scalar::Scalar;
use crate::call::{Packed, Pages};
use crate::view::View;

/// Page sizes of the library, on every backend.
const PAGE_TOKENS: [usize; 4] = [16, 32, 64, 128];

pub(super) fn run<T: Scalar>(run: &Run<'_, T>, packed: &Packed) -> Result<Computed<T>> {
    let q = &run.views.q;
    let (heads, total_q, head_dim) = (q.heads(), q.len(), q.head_dim());
    let starts_q = cumulative(
        "seqlens_q",
        &packed.seqlens_q,
        ("max_seqlen_q", packed.max_seqlen_q),
    )?;
    let starts_k = cumulative(
        "seqlens_k",
        &packed.seqlens_k,
        ("max_seqlen_k", packed.max_seqlen_k),
    )?;
    if starts_q.len() != starts_k.len() {
        bail!(
            "seqlens_q is of {} sequences, seqlens_k of {}",
            starts_q.len() - 1,
            starts_k.len() - 1
        )
    }
    if starts_q[starts_q.len() - 1] > total_q {
        bail!(
            "seqlens_q ends at {}, but q has {total_q} tokens",
            starts_q[starts_q.len() - 1]
        )
    }
    let keys = Keys::new(run, packed, &starts_k)?;

    let row = heads * head_dim;
    let mut o = Vec::<T>::with_capacity(total_q * row);
    let mut lse = run
        .wants_lse
        .then(|| vec![f32::NEG_INFINITY; total_q * heads]);
    let mut report: Option<Report> = None;
    for sequence in 0..starts_q.len() - 1 {
        let (from, to) = (starts_q[sequence], starts_q[sequence + 1]);
        let (len, k_len) = (to - from, starts_k[sequence + 1] - starts_k[sequence]);
        // What lies before the first sequence, or sees no key.
        let unseen = if len == 0 || k_len == 0 { to } else { from };
        o.resize(o.len().max(unseen * row), T::NOUGHT);
        if len == 0 || k_len == 0 {
            continue;
        }
        let mut lse_of_sequence = lse.as_ref().map(|_| vec![0.0; heads * len]);
        let target = Target {
            o: &mut o.spare_capacity_mut()[..len * row],
            strides: [0, head_dim, row, 1],
            lse: lse_of_sequence.as_deref_mut(),
        };
        let found = keys.attend(run, &q.tokens(from, len), (sequence, k_len), target)?;
        // SAFETY: the run has written every element of a contiguous view of these tokens.
        unsafe { o.set_len(to * row) };
        if let (Some(lse), Some(of_sequence)) = (&mut lse, lse_of_sequence) {
            for (all, part) in lse
                .chunks_exact_mut(total_q)
                .zip(of_sequence.chunks_exact(len))
            {
                all[from..to].copy_from_slice(part);
            }
        }
        add(&mut report, sequence, found);
    }
    o.resize(total_q * row, T::NOUGHT);
    Ok(Computed { o, lse, report })
}

/// Where the keys of a sequence are.
struct Keys<'a> {
    starts: &'a [usize],
    pages: Option<(PageNumbers, &'a Pages)>,
}

impl<'a> Keys<'a> {
    fn new<T: Scalar>(run: &Run<'_, T>, packed: &'a Packed, starts: &'a [usize]) -> Result<Self> {
        let total_k = run.views.k.len();
        let Some(pages) = &packed.pages else {
            if starts[starts.len() - 1] > total_k {
                bail!(
                    "seqlens_k ends at {}, but k has {total_k} tokens",
                    starts[starts.len() - 1]
                )
            }
            return Ok(Keys {
                starts,
                pages: None,
            });
        };
        if !PAGE_TOKENS.contains(&pages.page_tokens) {
            bail!(
                "pages of {} tokens are not supported: use 16, 32, 64 or 128",
                pages.page_tokens
            )
        }
        let numbers = PageNumbers::new(&pages.block_table, starts.len() - 1)?;
        Ok(Keys {
            starts,
            pages: Some((numbers, pages)),
        })
    }

    fn attend<T: Scalar>(
        &self,
        run: &Run<'_, T>,
        q: &View,
        (sequence, k_len): (usize, usize),
        target: Target<'_, T>,
    ) -> Result<Report> {
        let views = run.views;
        let Some((numbers, pages)) = &self.pages else {
            let from = self.starts[sequence];
            let k = views.k.tokens(from, k_len);
            let v = views.v.tokens(from, k_len);
            return attend(run, q, (run.k, &k, run.v, &v), target);
        };
        let row = numbers.of_sequence(sequence, (k_len, pages.page_tokens, views.k.shape[0]))?;
        let (k, view) = gathered(run.k, &views.k, row, k_len);
        let (v, _) = gathered(run.v, &views.v, row, k_len);
        attend(run, q, (&k, &view, &v, &view), target)
    }
}

/// The first `len` tokens of some pages, side by side.
fn gathered<T: Scalar>(data: &[T], pages: &View, numbers: &[usize], len: usize) -> (Vec<T>, View) {
    let [_, heads, page_tokens, head_dim] = pages.shape;
    let [of_page, of_head, of_token, _] = pages.strides;
    let mut together = Vec::with_capacity(len * heads * head_dim);
    for token in 0..len {
        let page = numbers[token / page_tokens];
        for head in 0..heads {
            let from =
                pages.start + page * of_page + token % page_tokens * of_token + head * of_head;
            together.extend_from_slice(&data[from..from + head_dim]);
        }
    }
    let view = View {
        shape: [1, heads, len, head_dim],
        strides: [0, head_dim, heads * head_dim, 1],
        start: 0,
    };
    (together, view)
}

/// Adds what one sequence kept.
fn add(report: &mut Option<Report>, sequence: usize, mut found: Report) {
    for head in &mut found.heads {
        head.batch = sequence;
    }
    let Some(report) = report else {
        *report = Some(found);
        return;
    };
    report.heads.append(&mut found.heads);
    report.key_ranges = report.key_ranges.max(found.key_ranges);
    let StageTimes {
        sampling,
        reduction,
        top_k,
        sparse_flash,
        ..
    } = found.times;
    report.times.sampling += sampling;
    report.times.reduction += reduction;
    report.times.top_k += top_k;
    report.times.sparse_flash += sparse_flash;
}
