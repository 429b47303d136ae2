//! What a look-up keeps, beside the formulas in f64.

use sample_attention::Dtype;
use sample_attention::squeeze::{
    Centroids, Denominator, Error, Index, IndexOptions, Keep, Score, Squeeze, Variance,
};
use testkit::oracle::squeeze::{Clusters, Estimate, known, threshold};

use crate::support::{Text, outside};

fn clusters(text: &Text, index: &Index, kv_head: usize) -> Clusters {
    let positions: Vec<Vec<u32>> = (0..index.clusters(kv_head))
        .map(|cluster| index.positions(kv_head, cluster).to_vec())
        .collect();
    Clusters::new(&text.qkv(), kv_head, &positions)
}

/// Compares the clusters that every query keeps with those whose score, by the formula, is above the threshold. Scores that lie on it, within
/// f32's rounding, may fall on either side.
fn check_kept(text: &Text, index: &Index, rule: Centroids, estimate: Estimate) {
    let Keep::Threshold(threshold) = rule.keep else {
        panic!("a threshold is compared");
    };
    let (problem, qkv) = (text.problem(), text.qkv());
    let squeeze = Squeeze::new(index, rule, problem.q_heads, problem.softmax_scale).unwrap();
    let report = text.attend(&squeeze).report;
    let group = problem.group_size();
    let mut kept_somewhere = 0;
    for kv_head in 0..problem.kv_heads {
        let clusters = clusters(text, index, kv_head);
        for row in 0..problem.q_len {
            let of_head = |head: usize| {
                let own = text.fixed..=text.fixed + row;
                let known = match rule.denominator {
                    Denominator::Clusters => f64::NEG_INFINITY,
                    _ => known(problem, &qkv, head, row, outside(index).chain(own)),
                };
                clusters.scores(problem, qkv.q.row(0, head, row), estimate, known)
            };
            let scores: Vec<Vec<f64>> = (kv_head * group..(kv_head + 1) * group)
                .map(of_head)
                .collect();
            let kept = &report.heads[kv_head].kept[row];
            kept_somewhere += kept.len();
            for cluster in 0..index.clusters(kv_head) {
                let score = scores.iter().map(|of| of[cluster]).fold(0.0, f64::max);
                let is_kept = kept.binary_search(&(cluster as u32)).is_ok();
                let ratio = score / f64::from(threshold);
                if (ratio - 1.0).abs() > 1e-4 {
                    assert_eq!(is_kept, ratio > 1.0, "cluster {cluster}: {score:e}");
                }
            }
        }
    }
    assert!(kept_somewhere > 0);
}

#[test]
fn published_keeps_what_the_paper_says() {
    for dtype in [Dtype::F32, Dtype::Bf16] {
        let text = Text::small(dtype, 64);
        let index = text.index(IndexOptions::published());
        assert_eq!((index.outside(), index.window()), (100, 100));
        for threshold in [1e-2, 1e-3, 1e-4] {
            let rule = Centroids::published().with_keep(Keep::Threshold(threshold));
            check_kept(&text, &index, rule, Estimate::Mean);
        }
    }
}

#[test]
fn scores_are_those_of_the_formulas() {
    let text = Text::small(Dtype::F16, 64);
    let options = IndexOptions::default();
    let profile = text.index(options);
    let each = text.index(options.with_variance(Variance::PerDimension));
    let rule = Centroids::default().with_keep(Keep::Threshold(3e-4));
    for (index, score, estimate) in [
        (&profile, Score::Mean, Estimate::Mean),
        (&profile, Score::SecondOrder, Estimate::Profile),
        (&profile, Score::Isotropic, Estimate::Isotropic),
        (&each, Score::SecondOrder, Estimate::SecondOrder),
        (&each, Score::Isotropic, Estimate::Isotropic),
    ] {
        check_kept(&text, index, rule.with_score(score), estimate);
    }
}

#[test]
fn published_thresholds_are_the_quantile_of_the_window_s_scores() {
    let text = Text::small(Dtype::F32, 64);
    let index = text.index(IndexOptions::published().with_outside(0, 40));
    let (problem, qkv) = (text.problem(), text.qkv());
    let squeeze = Squeeze::new(&index, Centroids::published(), 4, problem.softmax_scale).unwrap();
    let q = text.capture.q.view(problem.q_shape()).unwrap();
    let observed = squeeze.observe(&q).unwrap();
    for share in [0.05, 0.1, 0.5] {
        // One list for the group: a cluster has the larger score of its two heads.
        let mut scores = Vec::new();
        for kv_head in 0..2 {
            let clusters = clusters(&text, &index, kv_head);
            for row in 0..problem.q_len {
                let of_head = |head: usize| {
                    let query = qkv.q.row(0, head, row);
                    clusters.scores(problem, query, Estimate::Mean, f64::NEG_INFINITY)
                };
                let (a, b) = (of_head(2 * kv_head), of_head(2 * kv_head + 1));
                let larger = a.iter().zip(&b).map(|(a, b)| a.max(*b));
                scores.extend(larger.zip(clusters.counts().iter().copied()));
            }
        }
        let expected = threshold(scores, f64::from(share));
        let found = f64::from(observed.threshold_for_share(share).unwrap());
        let ratio = found / expected;
        assert!((0.97..=1.001).contains(&ratio), "{found:e} {expected:e}");
    }
}

#[test]
fn a_threshold_for_a_coverage_covers_as_much_of_the_window_s_queries() {
    let text = Text::small(Dtype::F32, 64);
    // The queries stand at the end of the context that they are part of.
    let options = IndexOptions::default().with_outside(4, 40);
    let whole = 0..text.problem().k_len;
    let index = Index::build(&text.keys(whole.clone()), &text.values(whole), options).unwrap();
    let q = text.capture.q.view(text.problem().q_shape()).unwrap();
    let scale = text.problem().softmax_scale;
    let squeeze = Squeeze::new(&index, Centroids::default(), 4, scale).unwrap();
    let observed = squeeze.observe(&q).unwrap();
    let thresholds: Vec<f32> = [0.9, 0.97, 0.99]
        .map(|coverage| observed.threshold_for_coverage(coverage).unwrap())
        .to_vec();
    assert!(thresholds.is_sorted_by(|a, b| a > b), "{thresholds:?}");
    // The same queries over the context without the window, which is then their own tokens.
    let fixed = text.index(options.with_outside(4, 1));
    for (threshold, coverage) in thresholds.into_iter().zip([0.9, 0.97, 0.99]) {
        let rule = Centroids::default().with_keep(Keep::Threshold(threshold));
        let squeeze = Squeeze::new(&fixed, rule, 4, scale).unwrap();
        let reached = text.attend(&squeeze).report.mean_coverage();
        assert!((reached - coverage).abs() < 0.01, "{reached} {coverage}");
    }
}

#[test]
fn two_levels_keep_what_one_does_below_the_coarse_clusters_that_matter() {
    let text = Text::small(Dtype::F32, 64);
    let index = text.index(IndexOptions::default().with_coarse_ratio(Some(0.02)));
    let threshold = 1e-3;
    let one = Centroids::default().with_keep(Keep::Threshold(threshold));
    let scale = text.problem().softmax_scale;
    let run = |rule| {
        let squeeze = Squeeze::new(&index, rule, 4, scale).unwrap();
        text.attend(&squeeze)
    };
    let all = run(one);
    // Below any score: every cluster is looked at.
    let everything = run(one.with_coarse_threshold(Some(f32::MIN_POSITIVE)));
    assert_eq!(all.report.heads[0].kept, everything.report.heads[0].kept);
    assert_eq!(everything.report.heads[0].scored, 1.0);
    let some = run(one.with_coarse_threshold(Some(threshold / 10.0)));
    let (mut lost, mut kept) = (0, 0);
    for (head, of_all) in some.report.heads.iter().zip(&all.report.heads) {
        assert!(head.scored < 0.9, "{}", head.scored);
        for (some, all) in head.kept.iter().zip(&of_all.kept) {
            kept += all.len();
            lost += all
                .iter()
                .filter(|c| some.binary_search(c).is_err())
                .count();
        }
    }
    assert!(lost * 20 <= kept, "{lost} of {kept}");
    let none = run(one.with_coarse_threshold(Some(2.0)));
    assert_eq!(none.report.mean_share(), 0.0);
}

#[test]
fn rules_that_cannot_be_followed_are_refused() {
    let text = Text::small(Dtype::F32, 64);
    let index = text.index(IndexOptions::default().with_coarse_ratio(None));
    let refused = |rule: Centroids| Squeeze::new(&index, rule, 4, 0.125).err();
    let rule = Centroids::default();
    for (rule, name) in [
        (rule.with_keep(Keep::Threshold(0.0)), "threshold"),
        (rule.with_keep(Keep::Threshold(f32::NAN)), "threshold"),
        (rule.with_keep(Keep::Share(1.5)), "share"),
        (rule.with_keep(Keep::Coverage(-1.0)), "coverage"),
        (rule.with_block(0), "block"),
        (rule.with_coarse_threshold(Some(0.0)), "coarse_threshold"),
    ] {
        match refused(rule) {
            Some(Error::Rule { field, .. }) => assert_eq!(field, name),
            other => panic!("{other:?}"),
        }
    }
    let missing = refused(rule.with_coarse_threshold(Some(1e-5))).unwrap();
    assert!(matches!(missing, Error::Missing { .. }), "{missing}");
    assert!(missing.to_string().contains("coarse_ratio"));
}
