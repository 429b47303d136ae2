//! Compares what the kernels wrote with the definitions.

use sample_attention_device::tile::scale;

use crate::case::{Case, Inputs};
use crate::pipeline::{Budget, Outcome, Unit, units};
use crate::reference::{self, BLOCK, Head, ONE};

/// Log2-domain error of a normaliser: 64 products of size 16 or less, added in `f32`, and two approximate functions.
const LOG2_TOLERANCE: f64 = 1e-4;
/// Relative error of a normaliser: that of the scale in the log2 domain, and of its product.
const RELATIVE_TOLERANCE: f64 = 3e-7;
/// Keys whose share of their row is below 2 to the minus this may be off altogether: 2^-68 of the last bit of a mass.
const NOTHING_LOG2: f64 = 100.0;
/// Relative error of a mass, which is 2 to the power of the difference of two such numbers.
const MASS_TOLERANCE: f64 = 2e-4;

/// How far a number of the log2 domain may be from `x`.
fn tolerance(x: f64) -> f64 {
    LOG2_TOLERANCE + RELATIVE_TOLERANCE * x.abs()
}

/// Masses of one unit by definition, in rows.
struct Expected {
    mass: Vec<f64>,
    outside: Vec<f64>,
    covered: f64,
    rows: usize,
}

/// The sampled rows of some query blocks.
fn rows_of(head: &Head, unit: &Unit) -> Vec<usize> {
    (0..head.positions.len())
        .filter(|&row| unit.query_blocks.contains(&(head.positions[row] / BLOCK)))
        .collect()
}

fn is_covered(case: &Case, query_block: usize, key: usize) -> bool {
    key < case.sinks || key / BLOCK + case.window_blocks() > query_block
}

fn expected(case: &Case, budget: Budget, head: &Head, unit: &Unit, candidates: usize) -> Expected {
    let rows = rows_of(head, unit);
    let mut all = vec![0.0; candidates];
    let mut outside = vec![0.0; candidates];
    let mut covered = 0.0;
    for &row in &rows {
        let query_block = head.positions[row] / BLOCK;
        for key in 0..=head.positions[row] {
            let candidate = match budget {
                Budget::Rows | Budget::Blocks => {
                    (query_block - unit.query_blocks.start) * case.blocks() + key / BLOCK
                }
                Budget::Residual | Budget::Paper => key,
            };
            let share = head.share(row, key);
            all[candidate] += share;
            if is_covered(case, query_block, key) {
                covered += share;
            } else {
                outside[candidate] += share;
            }
        }
    }
    Expected {
        mass: if budget == Budget::Paper {
            all
        } else {
            outside.clone()
        },
        outside,
        covered,
        rows: rows.len(),
    }
}

fn assert_mass(got: u64, want: f64, what: impl Fn() -> String) {
    let got = got as f64 / ONE;
    let error = (got - want).abs();
    assert!(
        error <= MASS_TOLERANCE * want + 1e-6,
        "{}: {got}, not {want}",
        what()
    );
}

/// What turns scores into numbers of the log2 domain.
fn scale_magnitude(case: &Case) -> f64 {
    let scale_log2 = case.softmax_scale * std::f32::consts::LOG2_E;
    f64::from(scale::magnitude(scale_log2))
}

/// The log-sum-exp of the row at a place, in the log2 domain.
pub fn row_lse(case: &Case, outcome: &Outcome, place: usize) -> f64 {
    let [reference, log2_sum] =
        [0, 1].map(|part| f64::from(f32::from_bits(outcome.row_lse[2 * place + part])));
    reference * scale_magnitude(case) + log2_sum
}

/// Everything that one run wrote.
pub fn check(case: &Case, budget: Budget, inputs: &Inputs, outcome: &Outcome) {
    let heads: Vec<Head> = (0..case.heads())
        .map(|head| Head::new(case, budget, inputs, head))
        .collect();
    for unit in units(case, budget) {
        let head = &heads[unit.head];
        check_sampling(case, budget, outcome, &unit, head);
        if budget == Budget::Rows {
            check_rows(case, outcome, &unit, head);
        } else {
            let masses = UnitMasses::new(case, budget, outcome, &unit);
            let expected = expected(case, budget, head, &unit, masses.mass.len());
            check_masses(case, &masses, &unit, &expected);
            check_selection(case, budget, outcome, &unit, &masses, &expected);
        }
    }
    let first_block = outcome.shape.first_block;
    for head in 0..case.heads() {
        let lists = lists_of(case, outcome, head);
        for (query_block, list) in lists.iter().enumerate().skip(first_block) {
            assert!(list.is_sorted_by(|x, y| x < y), "{case:?}: {list:?}");
            let first = (query_block + 1).saturating_sub(case.window_blocks());
            let window: Vec<u32> = (first as u32..=query_block as u32).collect();
            assert!(list.ends_with(&window), "{case:?}: {list:?}");
        }
        if budget != Budget::Rows {
            let dense = reference::is_dense(case, &lists, &outcome.stripes[head]);
            assert_eq!(
                outcome.dense[head],
                u32::from(dense),
                "{case:?}: head {head}"
            );
        }
    }
    for batch in 0..case.batch {
        for place in 0..outcome.shape.masked {
            let tile = batch * outcome.shape.of_sequence + place;
            for q_head in 0..case.q_heads {
                assert!(outcome.lists[q_head * outcome.shape.tiles + tile].is_empty());
            }
        }
    }
}

/// The lists of a head by query block; empty before the first that holds a row.
pub fn lists_of(case: &Case, outcome: &Outcome, head: usize) -> Vec<Vec<u32>> {
    let shape = &outcome.shape;
    (0..case.blocks())
        .map(|query_block| {
            if query_block < shape.first_block {
                return Vec::new();
            }
            outcome.lists[shape.tile_row(head, query_block)].clone()
        })
        .collect()
}

fn check_sampling(case: &Case, budget: Budget, outcome: &Outcome, unit: &Unit, head: &Head) {
    let shape = &outcome.shape;
    let float = |bits: u32| f64::from(f32::from_bits(bits));
    let same_mass = |got: f64, want: f64, what: &str, row: usize| {
        assert!(
            got == want || (got - want).abs() <= tolerance(want),
            "{case:?}: {what} of {unit:?}, row {row}: {got}, not {want}"
        );
    };
    let mut of_block = (0, 0);
    for row in rows_of(head, unit) {
        let query_block = head.positions[row] / BLOCK;
        let rank = if of_block.0 == query_block {
            of_block.1
        } else {
            0
        };
        of_block = (query_block, rank + 1);
        assert!(rank < shape.row_capacity);
        let place = shape.tile_row(unit.head, query_block) * shape.row_capacity + rank;
        if budget != Budget::Blocks {
            same_mass(row_lse(case, outcome, place), head.lse[row], "row_lse", row);
        }
        if !budget.is_of_blocks() {
            continue;
        }
        let scores = &head.scores[row];
        let check_stat = |statistic: u32, split: usize, of_keys: &[f64], what: &str| {
            let base = float(outcome.bases[place * shape.splits + split]) * scale_magnitude(case);
            let maximum = reference::maximum(scores);
            assert!(
                base <= maximum + tolerance(maximum),
                "{case:?}: the base of {what} of {unit:?}, row {row} is {base}"
            );
            let got = float(statistic) + if base == f64::NEG_INFINITY { 0.0 } else { base };
            let want = reference::log2_sum_exp2(of_keys);
            if want > head.lse[row] - NOTHING_LOG2 {
                same_mass(got, want, what, row);
            } else {
                assert!(
                    got <= head.lse[row] - NOTHING_LOG2 + tolerance(got),
                    "{case:?}: {what} of {unit:?}, row {row}: {got}, not {want}"
                );
            }
        };
        for key_block in 0..=query_block {
            let end = ((key_block + 1) * BLOCK).min(scores.len());
            let first = (key_block * BLOCK).max(case.sinks).min(end);
            let what = format!("key block {key_block}");
            let statistic = outcome.stats[place * shape.block_capacity + key_block];
            check_stat(
                statistic,
                key_block / shape.split_blocks,
                &scores[first..end],
                &what,
            );
        }
        if case.sinks > 0 {
            let scores = &scores[..case.sinks.min(scores.len())];
            check_stat(outcome.sink_stats[place], 0, scores, "sinks");
        }
    }
}

/// A query tile whose rows select by themselves.
fn check_rows(case: &Case, outcome: &Outcome, unit: &Unit, head: &Head) {
    let shape = &outcome.shape;
    let query_block = unit.query_blocks.start;
    let tile_row = shape.tile_row(unit.head, query_block);
    let list = &outcome.lists[tile_row];
    let window = (query_block + 1).saturating_sub(case.window_blocks());
    let rows = rows_of(head, unit);
    let mut union: Vec<u32> = (window as u32..=query_block as u32).collect();
    let mut kept = 0;
    for (rank, &row) in rows.iter().enumerate() {
        let place = tile_row * shape.row_capacity + rank;
        let masses = &outcome.row_mass[place * shape.block_capacity..][..=query_block];
        let mut of_blocks = vec![0.0; query_block + 1];
        let mut covered = 0.0;
        for key in 0..=head.positions[row] {
            let share = head.share(row, key);
            if key >= case.sinks {
                of_blocks[key / BLOCK] += share;
            }
            covered += if is_covered(case, query_block, key) {
                share
            } else {
                0.0
            };
        }
        for (block, (&got, &want)) in masses.iter().zip(&of_blocks).enumerate() {
            assert_mass(got.into(), want, || {
                format!("{case:?}: mass of key block {block} of {unit:?}, row {row}")
            });
        }

        // Exactly the set that a sort of the kernel's own masses gives.
        let sinks = f64::from(f32::from_bits(outcome.sink_stats[place]));
        let sinks = if case.sinks > 0 {
            let [reference, lse] =
                [0, 1].map(|part| f64::from(f32::from_bits(outcome.row_lse[2 * place + part])));
            let base = f64::from(f32::from_bits(outcome.bases[place * shape.splits]));
            let base = (base - reference) * scale_magnitude(case);
            ((sinks + base - lse).exp2() * ONE) as u64
        } else {
            0
        };
        let masses: Vec<u64> = masses.iter().map(|&mass| mass.into()).collect();
        let of_window: u64 = masses[window..].iter().sum();
        let whole = sinks + masses.iter().sum::<u64>();
        let need = (f64::from(case.coverage) * whole as f64).ceil() - (sinks + of_window) as f64;
        // The mass of the sinks is worked out anew here, and may be off by its error.
        let slack = 2.0 * MASS_TOLERANCE * sinks as f64 + 2.0;
        let [least, most] = [need - slack, need + slack]
            .map(|need| reference::top_k(&masses[..window], need.max(0.0) as u64));
        if case.sinks == 0 {
            let exact = reference::top_k(&masses[..window], need.max(0.0) as u64);
            union.extend(exact.iter().map(|&block| block as u32));
        } else {
            assert!(least.iter().all(|&block| list.contains(&(block as u32))));
            union.extend(
                list.iter()
                    .filter(|&&block| most.contains(&(block as usize))),
            );
        }
        kept += sinks + of_window;
        kept += list
            .iter()
            .filter(|&&block| (block as usize) < window)
            .map(|&block| masses[block as usize])
            .sum::<u64>();

        // Each row reaches its coverage by the definition, or keeps all.
        let reached = covered
            + list
                .iter()
                .filter(|&&block| (block as usize) < window)
                .map(|&block| of_blocks[block as usize])
                .sum::<f64>();
        assert!(
            reached >= f64::from(case.coverage) - 2.0 * MASS_TOLERANCE - 1e-6 * query_block as f64,
            "{case:?}: row {row} of {unit:?} reaches {reached}"
        );
    }
    union.sort_unstable();
    union.dedup();
    if rows.is_empty() {
        union = (0..=query_block as u32).collect();
    }
    assert_eq!(list, &union, "{case:?}: {unit:?}");
    let slack =
        2.0 * MASS_TOLERANCE * ONE * rows.len() as f64 * if case.sinks > 0 { 1.0 } else { 0.0 };
    let error = outcome.kept[tile_row].abs_diff(kept) as f64;
    assert!(
        error <= slack,
        "{case:?}: {unit:?} keeps {} not {kept}",
        outcome.kept[tile_row]
    );
}

/// What reduction wrote for one unit.
struct UnitMasses {
    mass: Vec<u64>,
    outside: Vec<u64>,
    covered: u64,
}

impl UnitMasses {
    fn new(case: &Case, budget: Budget, outcome: &Outcome, unit: &Unit) -> Self {
        let shape = &outcome.shape;
        if budget == Budget::Blocks {
            let first = shape.tile_row(unit.head, unit.query_blocks.start);
            let blocks = shape.block_capacity;
            assert_eq!(blocks, case.blocks());
            let range = first..first + unit.query_blocks.len();
            return UnitMasses {
                mass: outcome.mass[range.start * blocks..range.end * blocks].to_vec(),
                outside: Vec::new(),
                covered: outcome.covered[range].iter().sum(),
            };
        }
        let of_head = |all: &[u64], len: usize| {
            all.get(unit.head * len..(unit.head + 1) * len)
                .map_or(Vec::new(), <[u64]>::to_vec)
        };
        UnitMasses {
            mass: of_head(&outcome.mass, case.blocks() * BLOCK),
            outside: of_head(&outcome.outside, case.blocks() * BLOCK),
            covered: of_head(&outcome.covered, case.blocks()).iter().sum(),
        }
    }
}

fn check_masses(case: &Case, masses: &UnitMasses, unit: &Unit, expected: &Expected) {
    for (candidate, (&got, &want)) in masses.mass.iter().zip(&expected.mass).enumerate() {
        assert_mass(got, want, || {
            format!("{case:?}: mass of candidate {candidate} of {unit:?}")
        });
    }
    for (candidate, (&got, &want)) in masses.outside.iter().zip(&expected.outside).enumerate() {
        assert_mass(got, want, || {
            format!("outside of candidate {candidate} of {unit:?}")
        });
    }
    assert_mass(masses.covered, expected.covered, || {
        format!("covered of {unit:?}")
    });
}

/// The selected candidates of a unit.
fn selected(case: &Case, budget: Budget, outcome: &Outcome, unit: &Unit) -> Vec<usize> {
    if budget != Budget::Blocks {
        let stripes = &outcome.stripes[unit.head];
        return stripes.iter().map(|&key| key as usize).collect();
    }
    unit.query_blocks
        .clone()
        .flat_map(|query_block| {
            let window = (query_block + 1).min(case.window_blocks());
            let list = &outcome.lists[outcome.shape.tile_row(unit.head, query_block)];
            let row = (query_block - unit.query_blocks.start) * case.blocks();
            list[..list.len() - window]
                .iter()
                .map(move |&block| row + block as usize)
        })
        .collect()
}

/// What a unit must reach, in fixed point.
fn need(case: &Case, budget: Budget, rows: usize, covered: u64) -> u64 {
    let goal = (f64::from(case.coverage) * rows as f64 * ONE).ceil() as u64;
    match budget {
        Budget::Paper => goal,
        _ => goal.saturating_sub(covered),
    }
}

fn check_selection(
    case: &Case,
    budget: Budget,
    outcome: &Outcome,
    unit: &Unit,
    masses: &UnitMasses,
    expected: &Expected,
) {
    let selected = selected(case, budget, outcome, unit);
    if budget == Budget::Blocks {
        assert!(outcome.stripes[unit.head].is_empty());
    }

    // Exactly the set that a sort of the kernels' own masses gives.
    let need_of_unit = need(case, budget, expected.rows, masses.covered);
    assert_eq!(
        selected,
        reference::top_k(&masses.mass, need_of_unit),
        "{case:?}: {unit:?}"
    );
    let worth = match budget {
        Budget::Paper => &masses.outside,
        _ => &masses.mass,
    };
    let kept = masses.covered + selected.iter().map(|&i| worth[i]).sum::<u64>();
    let of_tiles: u64 = unit
        .query_blocks
        .clone()
        .map(|block| outcome.kept[outcome.shape.tile_row(unit.head, block)])
        .sum();
    if outcome.shape.masked == 0 {
        assert_eq!(of_tiles, kept, "{case:?}: {unit:?}");
    }

    // And as large as the exact masses ask for, give or take their error.
    let need = f64::from(case.coverage) * expected.rows as f64;
    let need = match budget {
        Budget::Paper => need,
        _ => need - expected.covered,
    };
    let error = 2.0 * MASS_TOLERANCE * expected.rows as f64;
    let fewest = reference::top_k(&expected.mass, need - error).len();
    let most = reference::top_k(&expected.mass, need + error).len();
    assert!(
        (fewest..=most).contains(&selected.len()),
        "{case:?}: {unit:?} selects {}, not {fewest} to {most}",
        selected.len()
    );
    let reached: f64 = selected
        .iter()
        .map(|&candidate| expected.mass[candidate])
        .sum();
    let all: f64 = expected.mass.iter().sum();
    assert!(reached + error >= need.min(all), "{case:?}: {unit:?}");
}
