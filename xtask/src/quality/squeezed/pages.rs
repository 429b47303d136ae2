//! Pages in place of clusters, for comparison: as in Quest (Tang et al. 2024), each page's score is the largest that any key between its
//! minima and maxima could have. Sinks and the last window are kept as for clusters, and a group's heads share one choice.

use half::bf16;
use rayon::prelude::*;
use sample_attention::squeeze::IndexOptions;
use sample_attention::{Problem, TensorViewMut};

/// One layer's input over its fixed text; everything is [1, heads, tokens, head_dim].
pub struct Pages<'a> {
    pub problem: Problem,
    pub fixed: [&'a [bf16]; 2],
    pub own: [&'a [bf16]; 2],
    pub q: &'a [bf16],
    pub options: &'a IndexOptions,
    pub page: usize,
    pub share: f32,
}

/// Minima and maxima of the pages of one head.
struct Bounds {
    low: Vec<f32>,
    high: Vec<f32>,
}

/// Attends in f32, and returns the shares of the keys in pages and of all fixed keys that were kept.
pub fn attend(pages: &Pages<'_>, mut o: TensorViewMut<'_>) -> (f64, f64) {
    let problem = pages.problem;
    let (dim, q_len) = (problem.head_dim, problem.q_len);
    let fixed = pages.fixed[0].len() / problem.kv_heads / dim;
    let paged = pages.options.sinks..fixed - pages.options.window;
    let starts: Vec<usize> = paged.clone().step_by(pages.page).collect();
    let kept = (f64::from(pages.share) * starts.len() as f64).ceil() as usize;
    let bounds: Vec<Bounds> = (0..problem.kv_heads)
        .map(|head| bounds(pages, head, fixed, &starts, paged.end))
        .collect();
    let group = problem.group_size();
    let rows: Vec<Vec<f32>> = (0..problem.kv_heads * q_len)
        .into_par_iter()
        .map(|task| {
            let (kv_head, row) = (task / q_len, task % q_len);
            let queries: Vec<Vec<f32>> = (0..group)
                .map(|head| floats(pages.q, ((kv_head * group + head) * q_len + row) * dim, dim))
                .collect();
            let of_head = &bounds[kv_head];
            let mut ranked: Vec<(f32, usize)> = (0..starts.len())
                .map(|page| {
                    let best = queries.iter().map(|query| of_head.bound(query, page));
                    (best.fold(f32::NEG_INFINITY, f32::max), page)
                })
                .collect();
            ranked.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
            let mut keys: Vec<usize> = ranked[..kept]
                .iter()
                .flat_map(|&(_, page)| starts[page]..(starts[page] + pages.page).min(paged.end))
                .collect();
            keys.extend((0..paged.start).chain(paged.end..fixed));
            queries
                .iter()
                .flat_map(|query| row_of(pages, query, kv_head, fixed, &keys, row))
                .collect()
        })
        .collect();
    let [_, by_head, by_token, _] = o.strides();
    let to: &mut [f32] = bytemuck::cast_slice_mut(o.as_bytes_mut());
    for (task, values) in rows.into_iter().enumerate() {
        let (kv_head, row) = (task / q_len, task % q_len);
        for (head, values) in values.chunks_exact(dim).enumerate() {
            let start = (kv_head * group + head) * by_head + row * by_token;
            to[start..start + dim].copy_from_slice(values);
        }
    }
    let in_pages = (kept * pages.page).min(paged.len()) as f64;
    let outside = (fixed - paged.len()) as f64;
    (
        in_pages / paged.len() as f64,
        (in_pages + outside) / fixed as f64,
    )
}

fn floats(data: &[bf16], start: usize, len: usize) -> Vec<f32> {
    data[start..start + len]
        .iter()
        .map(|x| x.to_f32())
        .collect()
}

fn bounds(pages: &Pages<'_>, head: usize, fixed: usize, starts: &[usize], end: usize) -> Bounds {
    let dim = pages.problem.head_dim;
    let mut bounds = Bounds {
        low: vec![f32::INFINITY; starts.len() * dim],
        high: vec![f32::NEG_INFINITY; starts.len() * dim],
    };
    for (page, &start) in starts.iter().enumerate() {
        for key in start..(start + pages.page).min(end) {
            let key = floats(pages.fixed[0], (head * fixed + key) * dim, dim);
            for (d, x) in key.into_iter().enumerate() {
                let at = page * dim + d;
                bounds.low[at] = bounds.low[at].min(x);
                bounds.high[at] = bounds.high[at].max(x);
            }
        }
    }
    bounds
}

impl Bounds {
    fn bound(&self, query: &[f32], page: usize) -> f32 {
        let at = page * query.len()..(page + 1) * query.len();
        let sides = self.low[at.clone()].iter().zip(&self.high[at]);
        query
            .iter()
            .zip(sides)
            .map(|(q, (low, high))| (q * low).max(q * high))
            .sum()
    }
}

/// One row over some fixed keys and the own tokens up to itself.
fn row_of(
    pages: &Pages<'_>,
    query: &[f32],
    kv_head: usize,
    fixed: usize,
    keys: &[usize],
    row: usize,
) -> Vec<f32> {
    let dim = query.len();
    let own = pages.own[0].len() / pages.problem.kv_heads / dim;
    let row_at = |which: usize, key: usize| -> &[bf16] {
        let (data, start) = if key < fixed {
            (pages.fixed[which], (kv_head * fixed + key) * dim)
        } else {
            (pages.own[which], (kv_head * own + key - fixed) * dim)
        };
        &data[start..start + dim]
    };
    let keys = || keys.iter().copied().chain(fixed..=fixed + row);
    let scores: Vec<f32> = keys()
        .map(|key| {
            let products = row_at(0, key)
                .iter()
                .zip(query)
                .map(|(k, q)| k.to_f32() * q);
            products.sum::<f32>() * pages.problem.softmax_scale
        })
        .collect();
    let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut o = vec![0f32; dim];
    let mut sum = 0.0;
    for (key, score) in keys().zip(scores) {
        let weight = (score - max).exp();
        sum += weight;
        for (o, v) in o.iter_mut().zip(row_at(1, key)) {
            *o += weight * v.to_f32();
        }
    }
    o.iter_mut().for_each(|x| *x /= sum);
    o
}
