//! The arithmetic of a tile on every instruction set that this machine has, against plain f64.

use super::super::simd::{Kernel, Lanes, PANEL, Simd, on_every_set};
use super::{KEY_GROUP, Rows, Stats, accumulate, lse, mask, online_softmax, scale, scores};

/// Head dimensions and keys of the tiles: the smallest, one that is no power of two, and the largest.
const SIZES: [(usize, usize); 4] = [(8, 8), (24, 40), (128, 128), (256, 120)];

/// Numbers in [-1, 1), the same for the same seed.
fn numbers(seed: u64, count: usize) -> Vec<f32> {
    let mut state = seed;
    (0..count)
        .map(|_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 40) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect()
}

fn lanes(seed: u64, count: usize) -> Vec<Lanes> {
    numbers(seed, count * PANEL)
        .chunks_exact(PANEL)
        .map(|chunk| Lanes(std::array::from_fn(|lane| chunk[lane])))
        .collect()
}

fn assert_close(set: &str, what: &str, got: f32, expected: f64, tolerance: f64) {
    let error = (f64::from(got) - expected).abs();
    assert!(
        error <= tolerance,
        "{set}, {what}: {got} instead of {expected}, off by {error:e}"
    );
}

struct Scores<'a>(&'a [Lanes], Rows<'a>, usize);

impl Kernel for Scores<'_> {
    type Output = Vec<Lanes>;
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> Vec<Lanes> {
        // Poisoned, so that every score has to be written.
        let mut out = vec![Lanes([f32::NAN; PANEL]); self.2];
        scores(simd, self.0, self.1, &mut out);
        out
    }
}

#[test]
fn scores_are_the_products_of_keys_and_queries() {
    for (head_dim, keys) in SIZES {
        let stride = head_dim + 5;
        let queries = lanes(1, head_dim);
        let data = numbers(2, keys * stride);
        let rows = Rows {
            data: &data,
            stride,
        };
        on_every_set(
            || Scores(&queries, rows, keys),
            |set, out| {
                for (key, score) in out.iter().enumerate() {
                    for (lane, &got) in score.0.iter().enumerate() {
                        let products = (0..head_dim).map(|d| {
                            f64::from(data[key * stride + d]) * f64::from(queries[d].0[lane])
                        });
                        assert_close(set, "score", got, products.sum(), 2e-7 * head_dim as f64);
                    }
                }
            },
        );
    }
}

struct Accumulate<'a>(&'a [Lanes], Rows<'a>, Vec<Lanes>, Lanes);

impl Kernel for Accumulate<'_> {
    type Output = Vec<Lanes>;
    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) -> Vec<Lanes> {
        accumulate(simd, self.0, self.1, &mut self.2, &self.3);
        self.2
    }
}

#[test]
fn outputs_are_scaled_and_gain_the_weighted_values_of_any_number_of_keys() {
    for (head_dim, most_keys) in SIZES {
        for keys in [0, 1, 7, most_keys - 1, most_keys] {
            let stride = head_dim + 3;
            let weights = lanes(3, keys);
            let data = numbers(4, keys * stride);
            let factor = if keys == 0 {
                Lanes([1.0; PANEL])
            } else {
                lanes(11, 1)[0]
            };
            let before = lanes(5, head_dim.next_multiple_of(KEY_GROUP));
            let rows = Rows {
                data: &data,
                stride,
            };
            on_every_set(
                || Accumulate(&weights, rows, before.clone(), factor),
                |set, out| {
                    for (d, output) in out.iter().enumerate() {
                        for (lane, &got) in output.0.iter().enumerate() {
                            let products = (0..keys).map(|key| {
                                f64::from(data[key * stride + d]) * f64::from(weights[key].0[lane])
                            });
                            let before = f64::from(before[d].0[lane]) * f64::from(factor.0[lane]);
                            let expected = before + products.sum::<f64>();
                            assert_close(set, "output", got, expected, 2e-7 * (keys + 1) as f64);
                        }
                    }
                },
            );
        }
    }
}

struct Mask<'a>(Vec<Lanes>, &'a Lanes, usize);

impl Kernel for Mask<'_> {
    type Output = Vec<Lanes>;
    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) -> Vec<Lanes> {
        mask(simd, &mut self.0, self.1, self.2);
        self.0
    }
}

#[test]
fn hidden_keys_become_minus_infinity_even_where_they_were_nan() {
    let visible = Lanes(std::array::from_fn(|lane| (lane * 3) as f32));
    let mut poisoned = lanes(6, 100);
    poisoned[50] = Lanes([f32::NAN; PANEL]);
    on_every_set(
        || Mask(poisoned.clone(), &visible, 0),
        |set, out| {
            for (key, score) in out.iter().enumerate() {
                for (lane, &got) in score.0.iter().enumerate() {
                    let expected = if key < lane * 3 {
                        poisoned[key].0[lane]
                    } else {
                        f32::NEG_INFINITY
                    };
                    assert_eq!(
                        got.to_bits(),
                        expected.to_bits(),
                        "{set}: key {key}, lane {lane}"
                    );
                }
            }
        },
    );
}

/// Several tiles of scores, one after the other: weights of each, factors of each, and what is left in the end.
struct Softmax<'a, const KEEP: bool>(&'a [Vec<Lanes>]);

impl<const KEEP: bool> Kernel for Softmax<'_, KEEP> {
    type Output = (Vec<Vec<Lanes>>, Vec<Lanes>, Stats);
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> Self::Output {
        let mut stats = Stats::EMPTY;
        let mut tiles = self.0.to_vec();
        let factors = tiles
            .iter_mut()
            .map(|tile| online_softmax::<S, KEEP>(simd, tile, &mut stats))
            .collect();
        (tiles, factors, stats)
    }
}

#[test]
fn online_softmax_of_several_tiles_is_the_softmax_of_all_their_scores() {
    let mut tiles: Vec<Vec<Lanes>> = [5, 128, 1, 64]
        .map(|keys| lanes(keys as u64, keys))
        .to_vec();
    for (index, tile) in tiles.iter_mut().enumerate() {
        for scores in tile.iter_mut() {
            for (lane, x) in scores.0.iter_mut().enumerate() {
                // Growing and falling maxima; lane 3 sees nothing in the first tile, lane 4 nothing at all.
                *x = *x * 30.0
                    + if lane % 2 == 0 {
                        index as f32 * 20.0
                    } else {
                        index as f32 * -20.0
                    };
                if lane == 4 || (lane == 3 && index == 0) {
                    *x = f32::NEG_INFINITY;
                }
            }
        }
    }
    on_every_set(
        || Softmax::<true>(&tiles),
        |set, (weights, factors, stats)| {
            let lse = lse(&stats);
            for (lane, &lse) in lse.iter().enumerate() {
                let all = tiles
                    .iter()
                    .flatten()
                    .map(|scores| f64::from(scores.0[lane]));
                let max = all.clone().fold(f64::NEG_INFINITY, f64::max);
                if lane == 4 {
                    assert_eq!(lse, f64::NEG_INFINITY, "{set}");
                    assert_eq!(stats.sum.0[lane], 0.0, "{set}");
                    assert!(
                        weights.iter().flatten().all(|weight| weight.0[lane] == 0.0),
                        "{set}"
                    );
                    continue;
                }
                let expected = max + all.map(|x| (x - max).exp2()).sum::<f64>().log2();
                let expected = expected * std::f64::consts::LN_2;
                assert_close(
                    set,
                    "log-sum-exp",
                    lse as f32,
                    expected,
                    2e-6 * (1.0 + expected.abs()),
                );
                for (index, tile) in weights.iter().enumerate() {
                    // Later factors bring a tile's weights to the last maximum.
                    let later: f64 = factors[index + 1..]
                        .iter()
                        .map(|factor| f64::from(factor.0[lane]))
                        .product();
                    for (key, weight) in tile.iter().enumerate() {
                        let exponent = f64::from(tiles[index][key].0[lane]) - max;
                        let exact = exponent.exp2();
                        let got = f64::from(weight.0[lane]) * later;
                        // The difference to the maximum is rounded before it is raised.
                        let relative = 1e-6 + 1e-7 * exponent.abs().min(1e3);
                        assert!(
                            (got - exact).abs() <= relative * exact + 1e-30,
                            "{set}: {got} {exact}"
                        );
                    }
                }
            }
        },
    );
    // Without weights the statistics are the same.
    let with = std::cell::RefCell::new(Vec::new());
    on_every_set(
        || Softmax::<true>(&tiles),
        |_, (.., stats)| with.borrow_mut().push(stats),
    );
    let mut with = with.into_inner().into_iter();
    on_every_set(
        || Softmax::<false>(&tiles),
        |set, (scores, _, stats)| {
            let expected = with.next().expect("as many sets as before");
            assert_eq!(stats.max, expected.max, "{set}");
            assert_eq!(stats.sum, expected.sum, "{set}");
            assert_eq!(scores, tiles, "{set}: scores are left alone");
        },
    );
}

#[test]
fn a_nan_score_poisons_its_lane_alone() {
    let mut tile = lanes(7, 16);
    tile[9].0[5] = f32::NAN;
    let tiles = [tile, lanes(8, 16)];
    on_every_set(
        || Softmax::<true>(&tiles),
        |set, (.., stats)| {
            for lane in 0..PANEL {
                assert_eq!(stats.sum.0[lane].is_nan(), lane == 5, "{set}: lane {lane}");
                assert!(stats.max.0[lane].is_finite(), "{set}: lane {lane}");
            }
        },
    );
}

struct Scale<'a>(Vec<Lanes>, &'a Lanes);

impl Kernel for Scale<'_> {
    type Output = Vec<Lanes>;
    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) -> Vec<Lanes> {
        scale(simd, &mut self.0, self.1);
        self.0
    }
}

#[test]
fn every_lane_is_scaled_by_its_own_factor() {
    let rows = lanes(9, 24);
    let factor = lanes(10, 1)[0];
    on_every_set(
        || Scale(rows.clone(), &factor),
        |set, out| {
            for (row, before) in out.iter().zip(&rows) {
                for lane in 0..PANEL {
                    assert_eq!(row.0[lane], before.0[lane] * factor.0[lane], "{set}");
                }
            }
        },
    );
}
