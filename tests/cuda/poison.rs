//! NaN and infinity where they must not matter: keys that the mask drops, and whatever lies between and after the rows.

use sample_attention::pipeline::GpuPlan;
use sample_attention::{Budget, Dtype, Fallback, Policy, Problem};
use testkit::random::Random;
use testkit::runner::{
    Attend, Case, Cuda, Data, assert_dropped_poison_is_not_seen,
    assert_poison_stays_where_it_is_seen, assert_what_a_policy_drops_may_be_poisoned, loose_lists,
};

use crate::support::run::Run;
use crate::support::spread::{self, Places};
use crate::support::{every_target, tell};

const KERNELS: [(Dtype, usize); 2] = [(Dtype::Bf16, 128), (Dtype::F16, 64)];

fn problem(q_len: usize, k_len: usize, (dtype, head_dim): (Dtype, usize)) -> Problem {
    Problem::causal(k_len, head_dim, dtype)
        .with_heads(2, 1)
        .with_q_len(q_len)
}

#[test]
fn keys_after_a_row_do_not_reach_it() {
    for device in every_target() {
        tell(format_args!("poisoned keys, {:?}", device.target()));
        for kernel in KERNELS {
            for (q_len, k_len) in [(300, 300), (100, 300), (300, 100), (40, 129usize)] {
                for key in [k_len - 1, k_len - 30, k_len - 38] {
                    let case = Case::new(problem(q_len, k_len, kernel), Attend::Dense);
                    let backend = Cuda::new(device);
                    assert_poison_stays_where_it_is_seen(&backend, &case, &[key], f32::NAN);
                }
            }
        }
    }
}

#[test]
fn every_key_that_the_mask_drops_may_be_poisoned() {
    let mut random = Random::new(7);
    for device in every_target() {
        for causal in [true, false] {
            for (q_len, k_len) in [(300, 300), (260, 290)] {
                let kernel = KERNELS[usize::from(causal)];
                let problem = problem(q_len, k_len, kernel).with_causal(causal);
                let (case, keys) = loose_lists(problem, &mut random);
                for poison in [f32::NAN, f32::INFINITY] {
                    let backend = Cuda::new(device);
                    // Infinite keys may give a score of −∞ and so no weight: then only the rows that drop them tell.
                    if poison.is_nan() {
                        assert_poison_stays_where_it_is_seen(&backend, &case, &keys, poison);
                    } else {
                        assert_dropped_poison_is_not_seen(&backend, &case, &keys, poison);
                    }
                }
            }
        }
    }
}

#[test]
fn what_a_policy_drops_may_be_poisoned_afterwards() {
    for device in every_target() {
        let problem = problem(1600, 1600, (Dtype::Bf16, 64));
        // Below the GPU's break-even.
        assert_what_a_policy_drops_may_be_poisoned(&Cuda::new(device), problem, Fallback::Never);
    }
}

/// A cache with room for more tokens than there are, as engines have them, full of NaN.
#[test]
fn what_lies_between_and_after_the_rows_is_not_read() {
    for device in every_target() {
        tell(format_args!("tensors with gaps, {:?}", device.target()));
        let stream = device.stream().unwrap();
        for (budget, kernel) in [Budget::Blocks, Budget::Paper].into_iter().zip(KERNELS) {
            let problem = problem(700, 700, kernel).with_batch(2).with_heads(2, 2);
            let policy = Policy::of(Budget::Blocks)
                .with_budget(budget)
                .with_coverage(0.9)
                .with_fallback(Fallback::Never);
            let plan = GpuPlan::new(problem, policy).unwrap();
            let case = Case {
                data: Data::Structured,
                ..Case::new(problem, Attend::Dense)
            };
            let qkv = case.inputs();
            let mut packed = Run::new(device, plan.clone());
            packed.write(&qkv);
            packed.execute(&stream);
            let (capacity, row) = (1000, kernel.1 + 8);
            let tensor = 4 * capacity * row;
            let places = Places {
                strides: [2 * capacity * row, capacity * row, row],
                first: [0, 1, 2, 3].map(|which| which * tensor + 64),
                len: 4 * tensor + 64,
            };
            let spread = spread::run(device, &stream, &plan, &qkv, &places).unwrap();
            assert!(spread == packed.bits(), "{budget:?}, {:?}", device.target());
        }
    }
}
