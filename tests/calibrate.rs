//! Calibration on models that are formulas: it finds what it should, resumes, and refuses what it must.

use std::path::PathBuf;

use sample_attention::calibrate::{
    CalibrateError, Engine, HeadErrors, Measured, Memo, MemoError, Run, Search, Step,
    default_candidates,
};
use sample_attention::{HeadPolicy, Policy, Window};

const LAYERS: usize = 3;
const HEADS: usize = 2;

/// A model whose divergence grows with what its heads drop: by `need[layer][head]` for each part that is dropped.
struct Model {
    need: [[f64; HEADS]; LAYERS],
    runs: usize,
    fail_after: usize,
}

impl Model {
    fn new() -> Self {
        Model {
            need: [[0.0, 0.2], [1e-6, 0.5], [0.05, 3.0]],
            runs: 0,
            fail_after: usize::MAX,
        }
    }

    fn cost(head: &HeadPolicy) -> f64 {
        match head {
            HeadPolicy::Dense => 1.0,
            HeadPolicy::Local {
                window: Window::Tokens(tokens),
                ..
            } => *tokens as f64 / 8192.0,
            HeadPolicy::Selected(policy) => {
                f64::from(policy.coverage).powi(4) * 0.5 + 0.65 / policy.row_stride as f64
            }
            _ => unreachable!("no candidate has that"),
        }
    }

    /// What a head adds to the logit of the second outcome.
    fn shift(&self, layer: usize, head: usize, policy: &HeadPolicy) -> f64 {
        self.need[layer][head] * (1.0 - Model::cost(policy)).powi(2)
    }
}

impl Engine for Model {
    type Error = String;

    fn layers(&self) -> usize {
        LAYERS
    }

    fn q_heads(&self) -> usize {
        HEADS
    }

    fn texts(&self) -> usize {
        2
    }

    fn run(&mut self, heads: &[Vec<HeadPolicy>], text: usize) -> Result<Run, String> {
        if self.runs == self.fail_after {
            return Err("out of memory".into());
        }
        self.runs += 1;
        let (mut shift, mut cost) = (0.0, 0.0);
        for (layer, of_layer) in heads.iter().enumerate() {
            for (head, policy) in of_layer.iter().enumerate() {
                shift += self.shift(layer, head, policy) * (1.0 + 0.1 * text as f64);
                cost += Model::cost(policy) / (LAYERS * HEADS) as f64;
            }
        }
        let q = 1.0 / (1.0 + shift.exp());
        Ok(Run::new(
            vec![(q as f32).ln(), (1.0 - q as f32).ln()],
            2,
            cost,
        ))
    }
}

impl HeadErrors for Model {
    type Error = String;

    fn layers(&self) -> usize {
        LAYERS
    }

    fn q_heads(&self) -> usize {
        HEADS
    }

    fn texts(&self) -> usize {
        2
    }

    fn layer_errors(
        &mut self,
        _: usize,
        layer: usize,
        policy: &HeadPolicy,
    ) -> Result<Vec<Measured>, String> {
        let of = |head| Measured::new(self.shift(layer, head, policy).powi(2), Model::cost(policy));
        Ok((0..HEADS).map(of).collect())
    }
}

fn state(name: &str) -> PathBuf {
    let name = format!("calibrate-{name}-{}.state", std::process::id());
    std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(name)
}

fn divergence(dense: &Run, run: &Run) -> f64 {
    let pairs = dense.log_probabilities.iter().zip(&run.log_probabilities);
    let terms = pairs.map(|(&p, &q)| f64::from(p).exp() * (f64::from(p) - f64::from(q)));
    terms.sum::<f64>() / std::f64::consts::LN_2
}

fn objective(measured: Measured, price: f64) -> f64 {
    measured.divergence + price * (LAYERS * HEADS) as f64 * measured.cost
}

#[test]
fn heads_that_matter_little_become_cheap_and_the_descent_only_improves() {
    for fast in [false, true] {
        let mut model = Model::new();
        let mut search = Search::new(default_candidates(), Memo::in_memory());
        let table = if fast {
            let errors = search.heads_by_error(&mut model).unwrap();
            assert_eq!(model.runs, 0, "no run of the whole model");
            search.fit_heads(&mut model, &errors).unwrap()
        } else {
            search.heads_by_divergence(&mut model).unwrap()
        };
        let price = 0.002;
        let found = search.descend(&mut model, &table, price, 1000).unwrap();
        assert!(found.is_settled);
        assert!(objective(found.measured, price) <= objective(found.before, price));
        let local = HeadPolicy::Local {
            window: Window::Tokens(128),
            sinks: 16,
        };
        assert_eq!(found.heads[0][0], local, "fast: {fast}");
        assert!(Model::cost(&found.heads[2][1]) > 5.0 * Model::cost(&local));
        // What was found measures the same by runs outside of the search.
        let all_dense = vec![vec![HeadPolicy::Dense; HEADS]; LAYERS];
        let of_texts = [0, 1].map(|text| {
            let (dense, run) = (
                model.run(&all_dense, text).unwrap(),
                model.run(&found.heads, text).unwrap(),
            );
            Measured::new(divergence(&dense, &run), run.cost)
        });
        let mean = (of_texts[0].divergence + of_texts[1].divergence) / 2.0;
        assert!((mean - found.measured.divergence).abs() < 1e-9, "{mean}");
        assert_eq!(of_texts[0].cost, found.measured.cost);
    }
}

#[test]
fn a_higher_price_gives_a_cheaper_profile() {
    let mut model = Model::new();
    let mut search = Search::new(default_candidates(), Memo::in_memory());
    let table = search.heads_by_divergence(&mut model).unwrap();
    let mut costs = Vec::new();
    for price in [0.0, 0.001, 0.1, 10.0, 1e9] {
        costs.push(
            search
                .descend(&mut model, &table, price, 1000)
                .unwrap()
                .measured
                .cost,
        );
    }
    assert!(costs.is_sorted_by(|a, b| a >= b), "{costs:?}");
    assert!((costs[4] - 128.0 / 8192.0).abs() < 1e-12);
}

#[test]
fn a_search_that_was_cut_short_goes_on_to_the_same_result() {
    let path = state("resumed");
    let calibrate = |model: &mut Model, memo: Memo| {
        let mut search = Search::new(default_candidates(), memo);
        let table = search.heads_by_divergence(model)?;
        search.descend(model, &table, 0.01, 50)
    };
    let mut whole = Model::new();
    let expected = calibrate(&mut whole, Memo::in_memory()).unwrap();
    let mut runs = 0;
    let mut found = None;
    for _ in 0..20 {
        let mut model = Model {
            fail_after: 70,
            ..Model::new()
        };
        let memo = Memo::open(&path, "a model").unwrap();
        let ended = calibrate(&mut model, memo);
        runs += model.runs;
        match ended {
            Ok(ended) => {
                found = Some(ended);
                break;
            }
            Err(error) => assert_eq!(error, CalibrateError::Engine("out of memory".into())),
        }
    }
    assert_eq!(found, Some(expected));
    // Dense attention is run again each time, and nothing else twice.
    assert!(runs <= whole.runs + 20 * 2, "{runs} and {}", whole.runs);
    std::fs::remove_file(path).unwrap();
}

#[test]
fn the_state_of_another_search_is_refused() {
    let path = state("other");
    let mut search = Search::new(default_candidates(), Memo::open(&path, "a model").unwrap());
    search.heads_by_error(&mut Model::new()).unwrap();
    let error = Memo::open(&path, "another").unwrap_err();
    assert!(matches!(
        error,
        MemoError::OtherSearch {
            field: "subject",
            ..
        }
    ));
    let memo = Memo::open(&path, "a model").unwrap();
    assert!(!memo.is_empty());
    let mut fewer = Search::new([HeadPolicy::Selected(Policy::default())], memo);
    let error = fewer.heads_by_error(&mut Model::new()).unwrap_err();
    let is_other = |error: &MemoError| {
        matches!(
            error,
            MemoError::OtherSearch {
                field: "candidates",
                ..
            }
        )
    };
    assert!(matches!(&error, CalibrateError::Memo(error) if is_other(error)));
    for text in [
        "",
        "{}",
        "{\"format\": \"sample-attention calibration state\"}",
        "[[[[",
    ] {
        std::fs::write(&path, text).unwrap();
        assert!(
            matches!(
                Memo::open(&path, "a model"),
                Err(MemoError::NotAState { .. })
            ),
            "{text}"
        );
    }
    std::fs::remove_file(path).unwrap();
}

/// Gives what no engine should.
struct Odd {
    texts: usize,
    probabilities: Vec<f32>,
}

impl Engine for Odd {
    type Error = String;

    fn layers(&self) -> usize {
        1
    }

    fn q_heads(&self) -> usize {
        1
    }

    fn texts(&self) -> usize {
        self.texts
    }

    fn run(&mut self, heads: &[Vec<HeadPolicy>], _: usize) -> Result<Run, String> {
        let whole = vec![0.5f32.ln(); 2];
        let is_dense = heads[0][0] == HeadPolicy::Dense;
        let given = if is_dense {
            whole
        } else {
            self.probabilities.clone()
        };
        Ok(Run::new(given, 2, 0.5))
    }
}

#[test]
fn answers_that_make_no_sense_are_refused() {
    let mut search = Search::new(default_candidates(), Memo::in_memory());
    for (texts, probabilities) in [(0, vec![]), (1, vec![]), (1, vec![0.0; 4]), (1, vec![0.0])] {
        let mut odd = Odd {
            texts,
            probabilities,
        };
        let error = search.heads_by_divergence(&mut odd).unwrap_err();
        assert!(matches!(error, CalibrateError::Answers(_)), "{error}");
    }
    let bad = HeadPolicy::Selected(Policy::default().with_coverage(f32::NAN));
    let error = Search::new([bad], Memo::in_memory())
        .heads_by_error(&mut Model::new())
        .unwrap_err();
    assert!(matches!(error, CalibrateError::Candidate { index: 1, .. }));
    let table = search.heads_by_error(&mut Model::new()).unwrap();
    for price in [-1.0, f64::NAN, f64::INFINITY] {
        let error = search
            .descend(&mut Model::new(), &table, price, 9)
            .unwrap_err();
        assert!(matches!(error, CalibrateError::Price { .. }));
    }
}

#[test]
fn divergences_that_are_not_numbers_are_never_chosen() {
    let mut odd = Odd {
        texts: 1,
        probabilities: vec![f32::NAN; 2],
    };
    let mut search = Search::new(default_candidates(), Memo::in_memory());
    let table = search.heads_by_divergence(&mut odd).unwrap();
    assert_eq!(table.choose(1e9), [[HeadPolicy::Dense]]);
}

#[test]
fn progress_counts_to_its_total() {
    let mut steps = Vec::new();
    {
        let mut search =
            Search::new(default_candidates(), Memo::in_memory()).watched(|step| steps.push(step));
        let table = search.heads_by_error(&mut Model::new()).unwrap();
        search.descend(&mut Model::new(), &table, 0.01, 5).unwrap();
    }
    let alone = steps
        .iter()
        .filter(|step| matches!(step, Step::Alone { .. }))
        .count();
    assert!(
        matches!(steps[alone - 1], Step::Alone { done, total } if done == total && total == alone)
    );
    let Some(Step::Descent { trials, most, .. }) = steps.last() else {
        panic!("{steps:?}");
    };
    assert!(trials <= most);
}
