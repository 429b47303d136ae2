//! A tiny model's loss, in f64 and from the formulas.

use crate::folder::{EPS, HEAD_DIM, HEADS, KV_HEADS, LAYERS, THETA, Tiny};

type Rows = Vec<Vec<f64>>;

/// Mean −log2 of the probability of each next byte.
pub fn loss(model: &Tiny, bytes: &[u8]) -> f64 {
    let embedding = &model.tensors["model.embed_tokens.weight"];
    let width = embedding.0[1];
    let mut x: Rows = bytes
        .iter()
        .map(|&byte| {
            let row = &embedding.1[usize::from(byte) * width..][..width];
            row.iter().map(|&x| f64::from(x)).collect()
        })
        .collect();
    for layer in 0..LAYERS {
        let name = |part: &str| format!("model.layers.{layer}.{part}");
        let h = norm(model, &name("input_layernorm"), &x);
        let o = attend(model, &name("self_attn"), &h);
        add(&mut x, &o);
        let h = norm(model, &name("post_attention_layernorm"), &x);
        let mut gated = linear(model, &name("mlp.gate_proj"), &h);
        let up = linear(model, &name("mlp.up_proj"), &h);
        for (gated, up) in gated.iter_mut().flatten().zip(up.iter().flatten()) {
            *gated = *gated / (1.0 + (-*gated).exp()) * up;
        }
        add(&mut x, &linear(model, &name("mlp.down_proj"), &gated));
    }
    let x = norm(model, "model.norm", &x);
    let head = match model.tensors.contains_key("lm_head.weight") {
        true => "lm_head",
        false => "model.embed_tokens",
    };
    let logits = linear(model, head, &x);
    let bits = logits.iter().zip(&bytes[1..]).map(|(row, &next)| {
        let max = row.iter().copied().fold(f64::MIN, f64::max);
        let sum: f64 = row.iter().map(|x| (x - max).exp()).sum();
        -(row[usize::from(next)] - max - sum.ln()) / std::f64::consts::LN_2
    });
    bits.sum::<f64>() / (bytes.len() - 1) as f64
}

fn attend(model: &Tiny, name: &str, h: &Rows) -> Rows {
    let heads = |part: &str, norm_name: &str| -> Vec<Rows> {
        let rows = linear(model, &format!("{name}.{part}"), h);
        let norm_name = format!("{name}.{norm_name}");
        rows.iter()
            .enumerate()
            .map(|(position, row)| {
                let heads = row.chunks(HEAD_DIM).map(<[f64]>::to_vec).collect();
                let mut heads = match model.tensors.contains_key(&format!("{norm_name}.weight")) {
                    true => norm(model, &norm_name, &heads),
                    false => heads,
                };
                if part != "v_proj" {
                    heads.iter_mut().for_each(|head| rotate(head, position));
                }
                heads
            })
            .collect()
    };
    let (q, k, v) = (
        heads("q_proj", "q_norm"),
        heads("k_proj", "k_norm"),
        heads("v_proj", "-"),
    );
    let mut o = Vec::new();
    for (row, q) in q.iter().enumerate() {
        let mut joined = Vec::new();
        for (head, query) in q.iter().enumerate() {
            let kv_head = head / (HEADS / KV_HEADS);
            let weights: Vec<f64> = (0..=row)
                .map(|key| (dot(query, &k[key][kv_head]) / (HEAD_DIM as f64).sqrt()).exp())
                .collect();
            let sum: f64 = weights.iter().sum();
            joined.extend((0..HEAD_DIM).map(|d| {
                let values = weights.iter().zip(&v).map(|(w, v)| w * v[kv_head][d]);
                values.sum::<f64>() / sum
            }));
        }
        o.push(joined);
    }
    linear(model, &format!("{name}.o_proj"), &o)
}

fn rotate(head: &mut [f64], position: usize) {
    let half = HEAD_DIM / 2;
    for pair in 0..half {
        let angle = position as f64 * THETA.powf(-(pair as f64) / half as f64);
        let (a, b) = (head[pair], head[pair + half]);
        head[pair] = a * angle.cos() - b * angle.sin();
        head[pair + half] = b * angle.cos() + a * angle.sin();
    }
}

fn norm(model: &Tiny, name: &str, rows: &Rows) -> Rows {
    let weight = &model.tensors[&format!("{name}.weight")].1;
    let normed = |row: &Vec<f64>| {
        let mean = row.iter().map(|x| x * x).sum::<f64>() / row.len() as f64;
        let scale = (mean + EPS).sqrt();
        row.iter()
            .zip(weight)
            .map(|(x, &w)| x / scale * f64::from(w))
            .collect()
    };
    rows.iter().map(normed).collect()
}

fn linear(model: &Tiny, name: &str, rows: &Rows) -> Rows {
    let (shape, weight) = &model.tensors[&format!("{name}.weight")];
    let bias = model.tensors.get(&format!("{name}.bias"));
    let output = |row: &Vec<f64>| {
        let output = weight.chunks(shape[1]).enumerate().map(|(at, weights)| {
            let product: f64 = weights
                .iter()
                .zip(row)
                .map(|(&w, x)| f64::from(w) * x)
                .sum();
            product + bias.map_or(0.0, |(_, bias)| f64::from(bias[at]))
        });
        output.collect()
    };
    rows.iter().map(output).collect()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn add(x: &mut Rows, y: &Rows) {
    for (x, y) in x.iter_mut().flatten().zip(y.iter().flatten()) {
        *x += y;
    }
}
