//! What is measured.

use sample_attention::squeeze::{Centroids, IndexOptions, Keep, Score, Variance};

/// A rule by name.
pub struct Spec {
    pub name: String,
    pub options: IndexOptions,
    pub method: Method,
    pub scope: Scope,
    /// The coarse level's threshold, as a multiple of the threshold.
    pub coarse: Option<f32>,
}

/// How keys are chosen.
#[derive(Clone, Copy)]
pub enum Method {
    Squeeze {
        rule: Centroids,
        target: Target,
    },
    /// Pages of so many positions by the bound over their keys' minima and maxima, as in Quest: the best share of the keys.
    Pages {
        page: usize,
        share: f32,
    },
}

/// Where the threshold comes from.
#[derive(Clone, Copy)]
pub enum Target {
    /// The rule says what it keeps.
    Given,
    /// This share of keys, on the observation window.
    Share(f32),
    /// This coverage, on the observation window.
    Coverage(f32),
}

/// What one threshold is for.
#[derive(Clone, Copy, PartialEq)]
pub enum Scope {
    Model,
    Layer,
}

fn spec(name: impl Into<String>, rule: Centroids, target: Target) -> Spec {
    Spec {
        name: name.into(),
        options: IndexOptions::default().with_span(usize::MAX),
        method: Method::Squeeze { rule, target },
        scope: Scope::Model,
        coarse: None,
    }
}

/// Every rule of the table.
pub fn all() -> Vec<Spec> {
    let second = Centroids::default();
    let mean = second.with_score(Score::Mean);
    let mut specs = Vec::new();
    for share in [0.1, 0.05] {
        specs.push(Spec {
            options: IndexOptions::published(),
            ..spec(
                format!("published, T for {share} of the keys"),
                Centroids::published(),
                Target::Share(share),
            )
        });
    }
    for coverage in [0.96, 0.98, 0.99] {
        let target = Target::Coverage(coverage);
        specs.push(spec(
            format!("second order, T for {coverage}"),
            second,
            target,
        ));
        specs.push(Spec {
            scope: Scope::Layer,
            ..spec(
                format!("second order, T by layer for {coverage}"),
                second,
                target,
            )
        });
        specs.push(Spec {
            coarse: Some(0.1),
            ..spec(
                format!("second order, two levels, T for {coverage}"),
                second,
                target,
            )
        });
    }
    let target = Target::Coverage(0.98);
    specs.push(spec("mean, T for 0.98", mean, target));
    specs.push(spec(
        "isotropic, T for 0.98",
        second.with_score(Score::Isotropic),
        target,
    ));
    let by_dimension = IndexOptions::default()
        .with_span(usize::MAX)
        .with_variance(Variance::PerDimension);
    for coverage in [0.96, 0.98, 0.99] {
        specs.push(Spec {
            options: by_dimension,
            ..spec(
                format!("variances by dimension, T for {coverage}"),
                second,
                Target::Coverage(coverage),
            )
        });
    }
    specs.push(Spec {
        options: IndexOptions::default()
            .with_span(usize::MAX)
            .with_cluster_ratio(0.1),
        ..spec("second order, 10 % clusters, T for 0.98", second, target)
    });
    specs.push(Spec {
        options: IndexOptions::default().with_span(1024),
        ..spec("second order, spans of 1024, T for 0.98", second, target)
    });
    for coverage in [0.97, 0.98] {
        let rule = second.with_keep(Keep::Coverage(coverage));
        let name = format!("second order, each query covers {coverage}");
        specs.push(spec(name, rule, Target::Given));
    }
    for share in [0.05, 0.1] {
        specs.push(Spec {
            method: Method::Pages { page: 16, share },
            ..spec(
                format!("pages of 16 by their bounds (Quest), {share} kept"),
                second,
                Target::Given,
            )
        });
    }
    for block in [64, 128] {
        let rule = second.with_block(block);
        for coverage in [0.98, 0.985, 0.99] {
            specs.push(spec(
                format!("blocks of {block}, T for {coverage}"),
                rule,
                Target::Coverage(coverage),
            ));
            specs.push(spec(
                format!("blocks of {block}, each covers {coverage}"),
                rule.with_keep(Keep::Coverage(coverage)),
                Target::Given,
            ));
            specs.push(Spec {
                options: by_dimension,
                ..spec(
                    format!("variances by dimension, blocks of {block}, T for {coverage}"),
                    rule,
                    Target::Coverage(coverage),
                )
            });
        }
    }
    specs
}
