//! What attention over an index gives, beside attention over the same keys in f64.

use sample_attention::squeeze::{Centroids, IndexOptions, Keep, Squeeze, Workspace};
use sample_attention::{Dtype, Inputs, Outputs, Problem, TensorViewMut};
use testkit::capture::Tensor;

use crate::support::{Text, attend};

#[test]
fn attention_over_all_clusters_is_dense_attention() {
    for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
        for dim in [8, 64, 128] {
            let text = Text::small(dtype, dim);
            let index = text.index(IndexOptions::default());
            for block in [1, 16, 64] {
                let rule = Centroids::default()
                    .with_keep(Keep::Share(1.0))
                    .with_block(block);
                let scale = text.problem().softmax_scale;
                let squeeze = Squeeze::new(&index, rule, 4, scale).unwrap();
                let attended = text.attend(&squeeze);
                for head in &attended.report.heads {
                    assert_eq!((head.share, head.fixed_share), (1.0, 1.0));
                    assert!((head.coverage - 1.0).abs() < 1e-4, "{}", head.coverage);
                }
                text.check(&index, &squeeze, &attended);
            }
        }
    }
}

#[test]
fn attention_runs_over_exactly_what_the_report_says() {
    let text = Text::small(Dtype::Bf16, 64);
    let index = text.index(IndexOptions::default());
    let scale = text.problem().softmax_scale;
    for keep in [
        Keep::Threshold(1e-3),
        Keep::Share(0.1),
        Keep::Coverage(0.9),
        Keep::Threshold(2.0),
    ] {
        for block in [1, 16] {
            let rule = Centroids::default().with_keep(keep).with_block(block);
            let squeeze = Squeeze::new(&index, rule, 4, scale).unwrap();
            let attended = text.attend(&squeeze);
            let share = attended.report.mean_share();
            match keep {
                Keep::Threshold(2.0) => assert_eq!(share, 0.0),
                Keep::Share(_) => assert!((0.1..0.2).contains(&share), "{share}"),
                _ => assert!(share > 0.0 && share < 0.9, "{share}"),
            }
            text.check(&index, &squeeze, &attended);
        }
    }
}

#[test]
fn an_estimated_coverage_is_near_the_true_one() {
    let text = Text::small(Dtype::F32, 64);
    let index = text.index(IndexOptions::default());
    let scale = text.problem().softmax_scale;
    let of = |keep| {
        let rule = Centroids::default().with_keep(keep);
        text.attend(&Squeeze::new(&index, rule, 4, scale).unwrap())
    };
    let (kept, all) = (of(Keep::Coverage(0.95)), of(Keep::Share(1.0)));
    let true_coverage = kept
        .lse
        .iter()
        .zip(&all.lse)
        .map(|(kept, all)| f64::from(kept - all).exp())
        .sum::<f64>()
        / kept.lse.len() as f64;
    let estimated = kept.report.mean_coverage();
    assert!(estimated >= 0.95);
    // Single keys that stand out of their cluster are what an estimate does not see.
    assert!(
        (true_coverage - estimated).abs() < 0.03,
        "{true_coverage} {estimated}"
    );
}

#[test]
fn a_token_has_the_same_bits_alone_as_among_others() {
    let text = Text::small(Dtype::Bf16, 64);
    let index = text.index(IndexOptions::default());
    let rule = Centroids::default().with_keep(Keep::Threshold(1e-3));
    let squeeze = Squeeze::new(&index, rule, 4, text.problem().softmax_scale).unwrap();
    let Tensor::Bf16(q) = &text.capture.q else {
        unreachable!()
    };
    let (dim, q_len) = (64, 12);
    // The first twelve queries at once, then each with the tokens up to itself.
    let queries = |rows: std::ops::Range<usize>| {
        let shape = [1, 4, rows.len(), dim];
        let strides = [4 * 40 * dim, 40 * dim, dim, 1];
        sample_attention::TensorView::new(&q[rows.start * dim..], shape, strides).unwrap()
    };
    let inputs = |rows: std::ops::Range<usize>| {
        let own = text.fixed..text.fixed + rows.end;
        Inputs::new(queries(rows), text.keys(own.clone()), text.values(own))
    };
    let together = attend(&squeeze, &inputs(0..q_len));
    for row in 0..q_len {
        let alone = attend(&squeeze, &inputs(row..row + 1));
        for head in 0..4 {
            let at = (head * q_len + row) * dim;
            assert_eq!(alone.o[head * dim..][..dim], together.o[at..][..dim]);
            assert_eq!(alone.lse[head], together.lse[head * q_len + row]);
        }
        for kv_head in 0..2 {
            let kept = &together.report.heads[kv_head].kept[row];
            assert_eq!(&alone.report.heads[kv_head].kept[0], kept);
        }
    }
}

#[test]
fn bits_do_not_depend_on_threads() {
    let text = Text::small(Dtype::Bf16, 64);
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
        pool.build().unwrap().install(|| {
            let index = text.index(IndexOptions::default().with_span(256));
            let whole = text.index(IndexOptions::default());
            let rule = Centroids::default().with_block(8);
            let squeeze = Squeeze::new(&index, rule, 4, 0.125).unwrap();
            let observed = squeeze
                .observe(&text.capture.q.view([1, 4, 40, 64]).unwrap())
                .err();
            let attended = text.attend(&squeeze);
            (index.clone(), whole, observed, attended.bits())
        })
    };
    let one = run(1);
    for threads in [2, 5] {
        let more = run(threads);
        assert!(one.0 == more.0 && one.1 == more.1, "indices differ");
        assert!(one.2 == more.2 && one.3 == more.3, "attention differs");
    }
}

#[test]
fn requests_of_other_lengths_share_an_index() {
    let text = Text::small(Dtype::F32, 64);
    let index = text.index(IndexOptions::default());
    let squeeze = Squeeze::new(&index, Centroids::default(), 4, 0.125).unwrap();
    let all = text.inputs();
    let own = text.fixed..text.fixed + 7;
    let Tensor::F32(q) = &text.capture.q else {
        unreachable!()
    };
    let short_q = q[..4 * 3 * 64].to_vec();
    let short = Inputs::new(
        sample_attention::TensorView::bhsd(&short_q, [1, 4, 3, 64]).unwrap(),
        text.keys(own.clone()),
        text.values(own),
    );
    let alone = [attend(&squeeze, &all), attend(&squeeze, &short)];
    let mut long_o = vec![0f32; 4 * 40 * 64];
    let mut short_o = vec![0f32; 4 * 3 * 64];
    let requests = [
        (
            all,
            Outputs::new(TensorViewMut::bhsd(&mut long_o, [1, 4, 40, 64]).unwrap()),
        ),
        (
            short,
            Outputs::new(TensorViewMut::bhsd(&mut short_o, [1, 4, 3, 64]).unwrap()),
        ),
    ];
    let reports = squeeze
        .attend_ragged(requests, &mut Workspace::new())
        .unwrap();
    assert_eq!(reports.len(), 2);
    assert_eq!([long_o, short_o], alone.map(|attended| attended.o));
}

#[test]
fn sequences_of_a_batch_share_an_index() {
    let text = Text::small(Dtype::F32, 64);
    let index = text.index(IndexOptions::default());
    let squeeze = Squeeze::new(&index, Centroids::default(), 4, 0.125).unwrap();
    let alone = text.attend(&squeeze);
    let twice = |view: &sample_attention::TensorView<'_>| -> Vec<f32> {
        let [_, heads, len, dim] = view.shape();
        let strides = view.strides();
        let data: &[f32] = bytemuck::cast_slice(view.as_bytes());
        let one: Vec<f32> = (0..heads * len)
            .flat_map(|row| {
                let start = row / len * strides[1] + row % len * strides[2];
                &data[start..start + dim]
            })
            .copied()
            .collect();
        [one.clone(), one].concat()
    };
    let inputs = text.inputs();
    let [q, k, v] = [&inputs.q, &inputs.k, &inputs.v].map(twice);
    let view =
        |data, heads| sample_attention::TensorView::bhsd::<f32>(data, [2, heads, 40, 64]).unwrap();
    let both = attend(
        &squeeze,
        &Inputs::new(view(&q, 4), view(&k, 2), view(&v, 2)),
    );
    let (first, second) = both.o.split_at(alone.o.len());
    assert_eq!((first, second), (&alone.o[..], &alone.o[..]));
    assert_eq!(both.report.heads[2].kept, alone.report.heads[0].kept);
}

#[test]
fn a_query_that_is_not_finite_spoils_its_own_row_alone() {
    let mut text = Text::small(Dtype::F32, 64);
    let index = text.index(IndexOptions::default());
    let squeeze = Squeeze::new(&index, Centroids::default(), 4, 0.125).unwrap();
    let before = text.attend(&squeeze);
    for poison in [f32::NAN, f32::INFINITY] {
        let Tensor::F32(q) = &mut text.capture.q else {
            unreachable!()
        };
        // Query head 1, row 5.
        let at = (40 + 5) * 64;
        let clean = std::mem::replace(&mut q[at + 3], poison);
        let after = text.attend(&squeeze);
        let Tensor::F32(q) = &mut text.capture.q else {
            unreachable!()
        };
        q[at + 3] = clean;
        assert!(after.o[at..at + 64].iter().all(|x| x.is_nan()), "{poison}");
        // Head 0 shares the list with head 1.
        let others = |o: &[f32]| [&o[..5 * 64], &o[6 * 64..at], &o[at + 64..]].concat();
        assert_eq!(others(&before.o), others(&after.o));
    }
}

#[test]
fn contexts_without_clusters_are_attended_to_densely() {
    for fixed in [1, 16, 100, 144, 145, 150] {
        let problem = Problem::causal(fixed + 5, 64, Dtype::F32)
            .with_heads(2, 1)
            .with_q_len(5);
        let text = Text::new(problem, fixed);
        let index = text.index(IndexOptions::default());
        assert_eq!(index.clusters(0) == 0, fixed <= 144);
        let rule = Centroids::default().with_keep(Keep::Share(1.0));
        let squeeze = Squeeze::new(&index, rule, 2, problem.softmax_scale).unwrap();
        text.check(&index, &squeeze, &text.attend(&squeeze));
    }
}
