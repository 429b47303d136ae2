//! What an index is.

use sample_attention::squeeze::{Index, IndexOptions};
use sample_attention::{Dtype, TensorView};
use testkit::random::Random;

use crate::support::{Text, outside};

/// Whether every position is in exactly one cluster of each level, or outside.
fn assert_partition(index: &Index) {
    for head in 0..index.kv_heads() {
        let fine: Vec<u32> = (0..index.clusters(head))
            .flat_map(|cluster| {
                let positions = index.positions(head, cluster);
                assert!(!positions.is_empty() && positions.is_sorted());
                positions
            })
            .copied()
            .collect();
        let coarse: Vec<u32> = (0..index.coarse_clusters(head))
            .flat_map(|cluster| index.coarse_positions(head, cluster))
            .copied()
            .collect();
        assert_eq!(fine, coarse, "coarse clusters are runs of fine ones");
        let mut all: Vec<u32> = fine;
        all.extend(outside(index).map(|position| position as u32));
        all.sort_unstable();
        assert!(all.into_iter().eq(0..index.len() as u32));
    }
}

#[test]
fn clusters_partition_the_context_and_have_the_means_of_their_keys() {
    for span in [usize::MAX, 256, 100] {
        let text = Text::small(Dtype::Bf16, 64);
        let index = text.index(IndexOptions::default().with_span(span));
        assert_partition(&index);
        assert!(
            (38..50).contains(&index.clusters(0)),
            "{}",
            index.clusters(0)
        );
        assert!(index.coarse_clusters(0) < index.clusters(0) / 3);
        let qkv = text.qkv();
        for cluster in 0..index.clusters(1) {
            let positions = index.positions(1, cluster);
            let count = positions.len() as f64;
            let (mean, spread) = index.mean(1, cluster);
            let mut variance = 0.0;
            for (d, &mean) in mean.iter().enumerate() {
                let along: Vec<f64> = positions
                    .iter()
                    .map(|&p| f64::from(qkv.k.row(0, 1, p as usize)[d]))
                    .collect();
                let expected = along.iter().sum::<f64>() / count;
                assert!((f64::from(mean) - expected).abs() < 1e-5);
                let squares = along.iter().map(|x| (x - expected).powi(2));
                variance += squares.sum::<f64>() / count;
            }
            assert!((f64::from(spread) - variance / 64.0).abs() < 1e-5 * (1.0 + variance));
        }
    }
}

/// Keys of `directions` directions, far apart, in an order that the seed shuffles; of lengths between 1 and 3.
fn directed(directions: usize, keys: usize, dim: usize) -> (Vec<f32>, Vec<usize>) {
    let mut random = Random::new(5);
    let labels: Vec<usize> = (0..keys).map(|_| random.below(directions)).collect();
    let data = labels
        .iter()
        .flat_map(|&label| {
            let length = 1.0 + 2.0 * random.uniform();
            let mut row: Vec<f32> = (0..dim).map(|_| 0.02 * random.normal() as f32).collect();
            row[label] += 1.0;
            row.iter_mut().for_each(|x| *x *= length as f32);
            row
        })
        .collect();
    (data, labels)
}

#[test]
fn keys_of_one_direction_end_in_one_cluster() {
    let (data, labels) = directed(8, 400, 32);
    let keys = TensorView::bhsd(&data, [1, 1, 400, 32]).unwrap();
    // More clusters than directions: none may mix two.
    let options = IndexOptions::default()
        .with_outside(0, 1)
        .with_cluster_ratio(0.1)
        .with_rounds(30);
    let index = Index::build(&keys, &keys, options).unwrap();
    assert!(index.clusters(0) == 40);
    for cluster in 0..index.clusters(0) {
        let positions = index.positions(0, cluster);
        let first = labels[positions[0] as usize];
        assert!(positions.iter().all(|&p| labels[p as usize] == first));
    }
}

#[test]
fn equal_keys_share_a_cluster_however_many_are_asked_for() {
    let data = vec![0.5f32; 300 * 16];
    let keys = TensorView::bhsd(&data, [1, 1, 300, 16]).unwrap();
    let options = IndexOptions::default().with_outside(0, 10);
    let index = Index::build(&keys, &keys, options).unwrap();
    assert_eq!((index.clusters(0), index.coarse_clusters(0)), (1, 1));
    assert_eq!(index.mean(0, 0), (&[0.5; 16][..], 0.0));
    let zeros = vec![0f32; 300 * 16];
    let keys = TensorView::bhsd(&zeros, [1, 1, 300, 16]).unwrap();
    let index = Index::build(&keys, &keys, options).unwrap();
    assert_partition(&index);
}

#[test]
fn empty_clusters_take_the_farthest_keys() {
    // Nine keys along one axis, and one along another in the first half, where the start may miss it.
    let mut data = vec![0f32; 20 * 8];
    for (key, row) in data.chunks_exact_mut(8).enumerate() {
        row[usize::from(key == 3)] = 1.0;
    }
    let keys = TensorView::bhsd(&data, [1, 1, 20, 8]).unwrap();
    for seed in 0..20 {
        let options = IndexOptions::default()
            .with_outside(0, 1)
            .with_cluster_ratio(0.11)
            .with_coarse_ratio(None)
            .with_seed(seed);
        let index = Index::build(&keys, &keys, options).unwrap();
        let alone = (0..index.clusters(0)).any(|cluster| index.positions(0, cluster) == [3]);
        assert!(alone, "seed {seed}");
    }
}

#[test]
fn appended_text_is_clustered_where_the_window_was() {
    let text = Text::small(Dtype::Bf16, 64);
    let len = text.problem().k_len;
    for options in [
        IndexOptions::default(),
        IndexOptions::default().with_outside(0, 30).with_span(100),
        IndexOptions::default().with_coarse_ratio(None),
    ] {
        for cuts in [vec![600], vec![5, 20, 300, 301, 700], vec![150, 160]] {
            let mut at = cuts[0];
            let mut index = Index::build(&text.keys(0..at), &text.values(0..at), options).unwrap();
            for next in cuts[1..].iter().copied().chain([len]) {
                index
                    .append(&text.keys(at..next), &text.values(at..next))
                    .unwrap();
                at = next;
                assert_eq!(index.len(), at);
                if options.coarse_ratio.is_some() {
                    assert_partition(&index);
                }
                assert!(index.holds(&text.keys(0..at), &text.values(0..at)));
            }
            let whole = Index::build(&text.keys(0..len), &text.values(0..len), options).unwrap();
            assert_eq!(index.outside(), whole.outside());
        }
    }
}

#[test]
fn text_appended_at_the_end_of_a_span_gives_the_index_of_the_whole() {
    let text = Text::small(Dtype::Bf16, 64);
    // Spans of 100 from position 16 on; the window begins at 316.
    let options = IndexOptions::default().with_span(100).with_outside(16, 40);
    let mut index = Index::build(&text.keys(0..356), &text.values(0..356), options).unwrap();
    index
        .append(&text.keys(356..900), &text.values(356..900))
        .unwrap();
    let whole = text.index(options);
    assert!(index == whole);
}

#[test]
fn an_index_holds_what_it_says() {
    let text = Text::small(Dtype::Bf16, 128);
    let index = text.index(IndexOptions::default());
    let keys_and_values = 2 * 2 * 900 * 128 * 2;
    let ratio = index.bytes() as f64 / keys_and_values as f64;
    assert!((1.03..1.25).contains(&ratio), "{ratio}");
    let keys = text.keys(0..900);
    assert!(index.holds(&keys, &text.values(0..900)));
    assert!(!index.holds(&keys, &keys));
    assert!(!index.holds(&text.keys(1..901), &text.values(1..901)));
    assert!(!index.holds(&text.keys(0..899), &text.values(0..899)));
}

#[test]
fn progress_counts_every_span_once() {
    let text = Text::small(Dtype::F32, 8);
    let told = std::sync::Mutex::new(Vec::new());
    let options = IndexOptions::default().with_span(100);
    Index::build_watched(
        &text.keys(0..900),
        &text.values(0..900),
        options,
        &|done, total| told.lock().unwrap().push((done, total)),
    )
    .unwrap();
    let mut told = told.into_inner().unwrap();
    told.sort_unstable();
    // 756 clustered positions of two heads.
    let expected: Vec<(usize, usize)> = (1..=16).map(|done| (done, 16)).collect();
    assert_eq!(told, expected);
}
