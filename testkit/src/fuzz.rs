//! Random problems of every kind that the library accepts, judged by the oracle: one a seed, so that a failure can be replayed.
//!
//! ```text
//! problem(seed):
//!     shapes from 1 to a few blocks, grouped heads, causal or not, any layout, element type of inputs and of O
//!     magnitudes of q, k and v and the scale over many powers of ten, as far as f32 holds the scores
//!     dense, the caller's own lists, or a policy with any budget
//!     in some, NaN and infinities in single elements
//! where f32 leaves scores enough digits to hold the oracle against:
//!     everything that the runner checks
//! otherwise:
//!     rows are finite where the oracle's are, means lie among the values, shares add up to no more than 1
//! ```

use std::panic::{AssertUnwindSafe, catch_unwind};

use sample_attention::cpu::{InstructionSet, MASS_ONE};
use sample_attention::{Budget, Dtype, Fallback, Policy, Problem, Selection, Window};

use crate::oracle;
use crate::random::Random;
use crate::runner::{Attend, Case, Cpu, Data, Layout, Outcome, check_with, run_with};
use crate::tensor::{Qkv, Tensor, round};

/// Runs the problem of a seed.
///
/// # Errors
/// What is wrong, with the seed and the case.
pub fn check_seed(seed: u64) -> Result<(), String> {
    let mut random = Random::new(seed);
    let sets: Vec<_> = InstructionSet::available().collect();
    let cpu = Cpu {
        threads: 1 + random.below(4),
        workspace_fill: random.bits() as u8,
        instruction_set: sets[random.below(sets.len())],
        coverage: random.chance(0.3),
    };
    let (case, qkv) = problem(&mut random, seed);
    let judged = catch_unwind(AssertUnwindSafe(|| judge(&cpu, &case, &qkv)));
    judged.map_err(|panic| {
        let message = panic
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| panic.downcast_ref::<&str>().map(|&text| text.to_owned()));
        format!("seed {seed}: {}", message.unwrap_or_default())
    })
}

fn one_of<T: Copy>(random: &mut Random, values: &[T]) -> T {
    values[random.below(values.len())]
}

/// A length at a block's edge, or anywhere up to a few blocks.
fn length(random: &mut Random) -> usize {
    let edges = [1, 2, 31, 32, 33, 127, 128, 129, 255, 256, 257, 384];
    if random.chance(0.5) {
        one_of(random, &edges)
    } else {
        1 + random.below(450)
    }
}

/// Elements of products that the oracle multiplies, beyond which a problem is made smaller.
const MOST_PRODUCTS: usize = 3 << 20;

/// 10 to a power between both, or 1.
fn magnitude(random: &mut Random, lowest: f64, highest: f64) -> f64 {
    if random.chance(0.6) {
        1.0
    } else {
        10f64.powf(lowest + (highest - lowest) * random.uniform())
    }
}

fn problem(random: &mut Random, seed: u64) -> (Case, Qkv) {
    let kv_heads = 1 + random.below(2);
    let head_dim = one_of(random, &[8, 16, 24, 64, 128, 256]);
    let usual = 1.0 / (head_dim as f32).sqrt();
    let scale = match random.below(10) {
        0 => 0.0,
        1 => -usual,
        2 => (magnitude(random, -44.0, 0.0) as f32) * usual,
        3 => 10f64.powf(20.0 * random.uniform()) as f32,
        _ => usual,
    };
    let dtype = one_of(random, &[Dtype::F32, Dtype::F16, Dtype::Bf16]);
    let mut problem = Problem::causal(1, head_dim, dtype)
        .with_batch(1 + random.below(2))
        .with_heads(kv_heads * (1 + random.below(3)), kv_heads)
        .with_q_len(length(random))
        .with_k_len(length(random))
        .with_softmax_scale(scale)
        .with_causal(random.chance(0.7));
    if random.chance(0.2) {
        // Few queries over so many keys that they are cut into ranges.
        problem.q_len = 1 + random.below(17);
        problem.k_len = 1 + random.below(5000);
    }
    // The oracle is slow, and many small problems find more than a few large ones.
    let products = problem.batch * problem.q_heads * problem.q_len * problem.k_len;
    if products * head_dim > MOST_PRODUCTS {
        problem.head_dim = 8;
    }
    if products * 8 > MOST_PRODUCTS {
        problem.batch = 1;
        problem.q_heads = problem.kv_heads;
    }
    let problem = problem;
    let head_dim = problem.head_dim;
    let case = Case {
        output: one_of(random, &[problem.dtype, Dtype::F32]),
        layout: one_of(random, &Layout::ALL),
        data: one_of(
            random,
            &[Data::Normal, Data::Structured, Data::Flat, Data::Spiky],
        ),
        seed,
        ..Case::new(problem, attend(random, &problem))
    };
    let mut qkv = case.inputs();
    // No further than f32 holds sums of products, and f16 single elements.
    let most = if problem.dtype == Dtype::F16 {
        2.0
    } else {
        12.0
    };
    let lowest = if problem.dtype == Dtype::F16 {
        -2.0
    } else {
        -8.0
    };
    let largest_value = if problem.dtype == Dtype::F16 {
        1.0
    } else {
        33.0
    };
    let factors = [
        magnitude(random, lowest, most / 2.0),
        magnitude(random, lowest, most / 2.0),
        magnitude(random, lowest, largest_value),
    ];
    for (tensor, factor) in [&mut qkv.q, &mut qkv.k, &mut qkv.v]
        .into_iter()
        .zip(factors)
    {
        for x in &mut tensor.values {
            *x = round(problem.dtype, f64::from(*x) * factor) as f32;
        }
    }
    if random.chance(0.3) {
        for _ in 0..1 + random.below(4) {
            let poison = one_of(random, &[f32::NAN, f32::INFINITY, f32::NEG_INFINITY]);
            let tensor = match random.below(3) {
                0 => &mut qkv.q,
                1 => &mut qkv.k,
                _ => &mut qkv.v,
            };
            let at = random.below(tensor.values.len());
            if random.chance(0.2) {
                // A whole row: scores of −∞ from end to end, if infinite.
                let row = at / head_dim * head_dim;
                tensor.values[row..row + head_dim].fill(poison);
            } else {
                tensor.values[at] = poison;
            }
        }
    }
    (case, qkv)
}

fn attend(random: &mut Random, problem: &Problem) -> Attend {
    match random.below(3) {
        0 => Attend::Dense,
        1 if problem.causal => {
            let window = match random.below(3) {
                0 => Window::Tokens(1 + random.below(600)),
                1 => Window::Tokens(usize::MAX),
                _ => Window::Ratio((0.001 + 0.999 * random.uniform()) as f32),
            };
            let budgets = [
                Budget::Rows,
                Budget::Blocks,
                Budget::Residual,
                Budget::Paper,
            ];
            Attend::Policy(
                Policy::default()
                    .with_budget(one_of(random, &budgets))
                    .with_coverage(one_of(random, &[1e-6, 0.3, 0.9, 0.97, 1.0]))
                    .with_row_stride(one_of(random, &[1, 3, 8, 16, 200, usize::MAX / 2]))
                    .with_stride_doubles_from(one_of(random, &[1, 8192, usize::MAX]))
                    .with_tail(
                        one_of(random, &[0, 1, 200, usize::MAX]),
                        one_of(random, &[1, 4, 300]),
                    )
                    .with_window(window)
                    .with_sinks(one_of(random, &[0, 1, 16, 130, usize::MAX]))
                    .with_fallback(Fallback::Never),
            )
        }
        _ => Attend::Own(lists(random, problem)),
    }
}

fn lists(random: &mut Random, problem: &Problem) -> Selection {
    let mut selection = Selection::new(problem).expect("a valid problem");
    selection.set_sinks(one_of(random, &[0, 3, 140]));
    let key_blocks = problem.k_len.div_ceil(128);
    let query_blocks = if problem.causal {
        key_blocks
    } else {
        problem.q_len.div_ceil(128)
    };
    let density = random.uniform();
    for batch in 0..problem.batch {
        for head in 0..problem.q_heads {
            for block in 0..query_blocks {
                let listed: Vec<usize> =
                    (0..key_blocks).filter(|_| random.chance(density)).collect();
                let set = selection.set_blocks(batch, head, block, &listed);
                set.expect("blocks of the problem");
            }
            let stripes: Vec<u32> = (0..problem.k_len as u32)
                .filter(|_| random.chance(0.1 * density))
                .collect();
            let set = selection.set_stripes(batch, head, &stripes);
            set.expect("stripes of the problem");
            let set = selection.set_dense(batch, head, random.chance(0.1));
            set.expect("a head of the problem");
        }
    }
    selection
}

fn judge(cpu: &Cpu, case: &Case, qkv: &Qkv) {
    let problem = &case.problem;
    let largest = |tensor: &Tensor| {
        let finite = tensor.values.iter().filter(|x| x.is_finite());
        finite.fold(0f64, |max, &x| max.max(f64::from(x.abs())))
    };
    let scaled_query = largest(&qkv.q) * f64::from(problem.softmax_scale.abs());
    let score = scaled_query * largest(&qkv.k) * problem.head_dim as f64;
    if scaled_query > 1e37 || score > 1e37 {
        // Beyond f32: such scores are infinite, and the oracle's are not.
        return;
    }
    // Beyond this the roundings of scores show in the first digits of weights.
    if score < 1e3 {
        check_with(cpu, case, qkv);
    } else {
        check_loosely(case, qkv, &run_with(cpu, case, qkv));
    }
}

/// What holds whatever the roundings of scores.
fn check_loosely(case: &Case, qkv: &Qkv, outcome: &Outcome) {
    let problem = &case.problem;
    for row in oracle::attention(problem, qkv, &outcome.mask, case.row_step) {
        let (batch, head) = (row.head / problem.q_heads, row.head % problem.q_heads);
        let lse = outcome.lse[row.head * problem.q_len + row.row];
        let place = [batch, head, row.row];
        assert!(
            row.lse.is_finite() == lse.is_finite(),
            "LSE at {place:?}: {lse}, expected {}\n{case:#?}",
            row.lse
        );
        if !row.lse.is_finite() {
            continue;
        }
        let kv_head = head / problem.group_size();
        let kept = outcome.mask.kept_keys(problem, row.head, row.row);
        for (d, &o) in outcome.o.row(batch, head, row.row).iter().enumerate() {
            let values = kept.iter().map(|&j| qkv.v.row(batch, kv_head, j)[d]);
            let (low, high) = values
                .clone()
                .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), x| {
                    (low.min(x.into()), high.max(x.into()))
                });
            if values.clone().any(|x| !x.is_finite()) {
                assert!(!o.is_finite(), "O at {place:?}, {d}: {o}\n{case:#?}");
                continue;
            }
            let slack = 4e-6 * low.abs().max(high.abs()) + f64::from(f32::MIN_POSITIVE);
            let [low, high] = [low - slack, high + slack].map(|x| round(case.output, x));
            assert!(
                (low..=high).contains(&f64::from(o)),
                "O at {place:?}, {d}: {o} outside {low}..={high}\n{case:#?}"
            );
        }
    }
    for unit in &outcome.found.units {
        let paper =
            matches!(&case.attend, Attend::Policy(policy) if policy.budget == Budget::Paper);
        let covered = if paper { 0 } else { unit.covered };
        let all = unit.mass.iter().sum::<u64>() + covered;
        assert!(
            all <= unit.rows as u64 * MASS_ONE,
            "shares of {} rows add up to {all}\n{case:#?}",
            unit.rows
        );
    }
    for head in outcome.found.report.iter().flat_map(|report| &report.heads) {
        let least = head.least_covered_row.map(|row| row.coverage);
        let coverages = [head.sampled_coverage, least, head.last_row_coverage];
        for coverage in coverages.into_iter().flatten() {
            assert!((0.0..=1.0).contains(&coverage), "{head:?}\n{case:#?}");
        }
    }
}
