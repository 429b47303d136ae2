//! What indices and calls over them refuse.

use sample_attention::squeeze::{
    Centroids, Error, Index, IndexOptions, Observed, Squeeze, Workspace,
};
use sample_attention::{Dtype, Inputs, Outputs, TensorView, TensorViewMut};
use testkit::capture::Tensor;

use crate::support::Text;

fn build(keys: &[f32], values: &[f32], len: usize) -> Result<Index, Error> {
    let shape = [1, 2, len, 8];
    let (keys, values) = (
        TensorView::bhsd(keys, shape)?,
        TensorView::bhsd(values, shape)?,
    );
    Index::build(&keys, &values, IndexOptions::default())
}

#[test]
fn keys_and_values_that_are_not_finite_are_named() {
    let clean = vec![0.5f32; 2 * 300 * 8];
    // In the sinks, among the clusters, in the window.
    for position in [3, 150, 299] {
        for poison in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut poisoned = clean.clone();
            poisoned[(300 + position) * 8 + 5] = poison;
            for (tensor, built) in [
                ("k", build(&poisoned, &clean, 300)),
                ("v", build(&clean, &poisoned, 300)),
            ] {
                let expected = Error::NonFinite {
                    tensor,
                    head: 1,
                    position,
                };
                assert_eq!(built.unwrap_err(), expected);
            }
        }
    }
    let mut index = build(&clean, &clean, 300).unwrap();
    let before = index.clone();
    let mut more = vec![0.5f32; 2 * 10 * 8];
    more[7] = f32::NAN;
    let more = TensorView::bhsd(&more, [1, 2, 10, 8]).unwrap();
    let refused = index.append(&more, &more).unwrap_err();
    let text = refused.to_string();
    assert!(text.contains("head 0 at position 300"), "{text}");
    assert!(index == before, "a refused text changes nothing");
}

#[test]
fn the_first_of_several_is_named_whatever_the_threads_did() {
    let mut keys = vec![0.5f32; 2 * 3000 * 8];
    for position in [500, 1500, 2500] {
        keys[position * 8] = f32::NAN;
        keys[(3000 + position) * 8] = f32::NAN;
    }
    let view = TensorView::bhsd(&keys, [1, 2, 3000, 8]).unwrap();
    let clean = vec![0.5f32; keys.len()];
    let values = TensorView::bhsd(&clean, [1, 2, 3000, 8]).unwrap();
    let options = IndexOptions::default().with_span(100);
    for _ in 0..5 {
        match Index::build(&view, &values, options).unwrap_err() {
            Error::NonFinite { head, position, .. } => assert_eq!((head, position), (0, 500)),
            other => panic!("{other}"),
        }
    }
}

#[test]
fn options_out_of_range_are_named() {
    let data = vec![0.5f32; 20 * 8];
    let keys = TensorView::bhsd(&data, [1, 1, 20, 8]).unwrap();
    let options = IndexOptions::default();
    for (options, name) in [
        (options.with_cluster_ratio(0.0), "cluster_ratio"),
        (options.with_cluster_ratio(f32::NAN), "cluster_ratio"),
        (options.with_coarse_ratio(Some(2.0)), "coarse_ratio"),
        (options.with_coarse_ratio(Some(0.5)), "coarse_ratio"),
        (options.with_outside(4, 0), "window"),
        (options.with_span(0), "span"),
        (options.with_rounds(0), "rounds"),
    ] {
        match Index::build(&keys, &keys, options).unwrap_err() {
            Error::Option { field, .. } => assert_eq!(field, name),
            other => panic!("{other}"),
        }
    }
}

#[test]
fn tensors_that_do_not_fit_are_named() {
    let text = Text::small(Dtype::F32, 64);
    let options = IndexOptions::default();
    let (keys, values) = (text.keys(0..200), text.values(0..200));
    let refused = Index::build(&keys, &text.values(0..199), options).unwrap_err();
    assert!(matches!(refused, Error::Shape { tensor: "v", .. }));
    let other = Text::small(Dtype::Bf16, 64);
    let refused = Index::build(&keys, &other.values(0..200), options).unwrap_err();
    assert!(matches!(refused, Error::Dtype { tensor: "v", .. }));
    let data = [0f32; 2 * 64];
    let two = TensorView::bhsd(&data, [2, 1, 1, 64]).unwrap();
    let refused = Index::build(&two, &two, options).unwrap_err();
    assert_eq!(refused, Error::Batch { given: 2 });
    let none = TensorView::bhsd(&data, [1, 1, 0, 64]).unwrap();
    let refused = Index::build(&none, &none, options).unwrap_err();
    assert!(matches!(refused, Error::Attention(_)), "{refused}");

    let mut index = Index::build(&keys, &values, options).unwrap();
    let narrow = Text::small(Dtype::F32, 8);
    let refused = index
        .append(&narrow.keys(0..5), &narrow.values(0..5))
        .unwrap_err();
    assert!(matches!(refused, Error::Shape { tensor: "k", .. }));
    let refused = index
        .append(&other.keys(0..5), &other.values(0..5))
        .unwrap_err();
    assert!(matches!(refused, Error::Dtype { tensor: "k", .. }));

    for heads in [0, 3, 5] {
        let squeeze = Squeeze::new(&index, Centroids::default(), heads, 0.125);
        assert!(matches!(squeeze, Err(Error::Attention(_))), "{heads}");
    }
    let squeeze = Squeeze::new(&index, Centroids::default(), 4, 0.125).unwrap();
    assert!(squeeze.observe(&keys).is_err());
    let mut o = vec![7f32; 4 * 40 * 64];
    let outputs = Outputs::new(TensorViewMut::bhsd(&mut o, [1, 4, 40, 64]).unwrap());
    let bad = Inputs::new(text.inputs().q, narrow.keys(0..40), narrow.values(0..40));
    let refused = squeeze.attend(&bad, outputs, &mut Workspace::new());
    assert!(matches!(refused, Err(Error::Attention(_))));
    assert!(o.iter().all(|&x| x == 7.0), "nothing was written");
}

#[test]
fn a_rule_without_a_threshold_is_refused_until_it_has_one() {
    let text = Text::small(Dtype::F32, 64);
    let index = text.index(IndexOptions::default());
    let squeeze = Squeeze::new(&index, Centroids::published(), 4, 0.125).unwrap();
    let mut o = vec![7f32; 4 * 40 * 64];
    let outputs = Outputs::new(TensorViewMut::bhsd(&mut o, [1, 4, 40, 64]).unwrap());
    let refused = squeeze.attend(&text.inputs(), outputs, &mut Workspace::new());
    let refused = refused.unwrap_err();
    assert_eq!(refused, Error::Uncalibrated);
    assert!(refused.to_string().contains("calibrate"));
    // An index without clusters shows nothing to calibrate on.
    let Tensor::F32(q) = &text.capture.q else {
        unreachable!()
    };
    let short = Index::build(
        &text.keys(0..30),
        &text.values(0..30),
        IndexOptions::default(),
    );
    let short = short.unwrap();
    let squeeze = Squeeze::new(&short, Centroids::published(), 4, 0.125).unwrap();
    let shape = [1, 4, short.window(), 64];
    let q = TensorView::bhsd(&q[..shape.iter().product()], shape).unwrap();
    let observed: Observed = squeeze.observe(&q).unwrap();
    assert_eq!(
        observed.threshold_for_share(0.1),
        Err(Error::NothingObserved)
    );
}
