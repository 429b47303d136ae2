//! The engine against runs from the beginning, on a tiny model.

use sample_attention::calibrate::{Engine, HeadErrors, Memo, Search, default_candidates};
use sample_attention::{Fallback, HeadPolicy, Policy, Window};

use super::engine::ModelEngine;
use super::errors::ModelErrors;
use super::texts;
use crate::quality::whole_model::tiny_model;

fn text(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * i % 251) as u8).collect()
}

fn local(tokens: usize) -> HeadPolicy {
    HeadPolicy::Local {
        window: Window::Tokens(tokens),
        sinks: 4,
    }
}

#[test]
fn a_run_from_a_kept_layer_is_a_run_from_the_beginning() {
    let model = tiny_model();
    let texts = [text(700), text(400)];
    let rows = HeadPolicy::Selected(Policy::default().with_fallback(Fallback::Never));
    let base = vec![vec![HeadPolicy::Dense; 4]; 2];
    let mut last_layer = base.clone();
    last_layer[1][2] = local(1);
    let mut first_layer = last_layer.clone();
    first_layer[0][1] = rows;
    let mut engine = ModelEngine::new(&model, &texts);
    engine.adopt(&base);
    for heads in [&base, &last_layer, &first_layer, &base] {
        for text in 0..2 {
            let whole = ModelEngine::new(&model, &texts).run(heads, text).unwrap();
            assert_eq!(engine.run(heads, text).unwrap(), whole);
            let row = &whole.log_probabilities[..whole.outcomes];
            let sum: f64 = row.iter().map(|&log| f64::from(log).exp()).sum();
            assert!((sum - 1.0).abs() < 1e-5, "{sum}");
        }
        engine.adopt(heads);
    }
    let dense = engine.run(&base, 0).unwrap();
    assert_eq!(dense.cost, 1.0);
    assert!(engine.run(&first_layer, 0).unwrap().cost < 1.0);
}

#[test]
fn a_heads_error_is_nothing_where_all_is_kept_and_more_the_less_is() {
    let model = tiny_model();
    let texts = [text(700), text(400)];
    let mut errors = ModelErrors::new(&model, &texts);
    for (text, layer) in [(0, 0), (0, 1), (1, 1), (1, 0)] {
        let mut of = |policy: HeadPolicy| errors.layer_errors(text, layer, &policy).unwrap();
        let (dense, near, far) = (of(HeadPolicy::Dense), of(local(1)), of(local(256)));
        for head in 0..4 {
            assert_eq!((dense[head].divergence, dense[head].cost), (0.0, 1.0));
            assert!(
                near[head].divergence > 1.2 * far[head].divergence,
                "{near:?} {far:?}"
            );
            assert!(near[head].cost < far[head].cost);
        }
    }
}

#[test]
fn a_model_is_calibrated_by_errors_and_by_divergence() {
    let model = tiny_model();
    let texts = [text(600)];
    let mut search = Search::new(default_candidates(), Memo::in_memory());
    let errors = search
        .heads_by_error(&mut ModelErrors::new(&model, &texts))
        .unwrap();
    let mut engine = ModelEngine::new(&model, &texts);
    let table = search.fit_heads(&mut engine, &errors).unwrap();
    let found = search.descend(&mut engine, &table, 0.1, 20).unwrap();
    let whole = ModelEngine::new(&model, &texts)
        .run(&found.heads, 0)
        .unwrap();
    assert_eq!(whole.cost, found.measured.cost);
    let objective =
        |one: sample_attention::calibrate::Measured| one.divergence + 0.1 * 8.0 * one.cost;
    assert!(objective(found.measured) <= objective(found.before));
}

#[test]
fn calibration_and_check_share_no_byte() {
    let line = |index: usize| format!("let x{index:05} = {};\n", index * 7);
    let text: Vec<u8> = (0..2000)
        .flat_map(|index| line(index).into_bytes())
        .collect();
    let first_held_out = texts::held_out_from(&text);
    let held_out = std::str::from_utf8(&text[first_held_out..]).unwrap();
    for read in texts::with_questions(&text, 4096, 3).unwrap() {
        let read = String::from_utf8(read).unwrap();
        let own = read
            .lines()
            .filter(|line| line.starts_with("let ") && line.ends_with(';') && line.len() > 14);
        let own: Vec<&str> = own.collect();
        assert!(own.len() > 100);
        assert!(own.iter().all(|line| !held_out.contains(line)));
    }
}
