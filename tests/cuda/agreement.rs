//! The same selection on every backend.

use sample_attention::{Budget, Dtype, Fallback, Policy, Problem, Window};
use testkit::capture::Capture;
use testkit::runner::{Attend, Case, Cpu, Cuda, Data, Emulator, check_with, run_with};

use crate::support::every_target;

const BUDGETS: [Budget; 4] = [
    Budget::Rows,
    Budget::Blocks,
    Budget::Residual,
    Budget::Paper,
];

#[test]
fn the_selection_is_the_emulators() {
    for device in every_target() {
        for (index, budget) in BUDGETS.into_iter().enumerate() {
            let dtype = [Dtype::Bf16, Dtype::F16][index % 2];
            let head_dim = [64, 128][index % 2];
            let problem = Problem::causal(700, head_dim, dtype)
                .with_heads(4, 2)
                .with_q_len(600);
            let policy = Policy::of(Budget::Blocks)
                .with_budget(budget)
                .with_coverage(0.9)
                .with_window(Window::Tokens(100))
                .with_fallback(Fallback::Never);
            let case = Case {
                data: Data::Structured,
                seed: 21,
                ..Case::new(problem, Attend::Policy(policy))
            };
            let qkv = case.inputs();
            let cuda = check_with(&Cuda::new(device), &case, &qkv);
            let emulator = run_with(&Emulator::default(), &case, &qkv);
            assert_eq!(cuda.found.selection, emulator.found.selection, "{budget:?}");
        }
    }
}

#[test]
fn a_captured_input_is_selected_from_as_on_the_cpu() {
    let devices = every_target();
    if devices.is_empty() {
        return;
    }
    let (case, qkv) = Case::of_capture(&Capture::carried());
    for budget in BUDGETS {
        let policy = match budget {
            Budget::Paper => Policy::paper(),
            budget => Policy::of(Budget::Blocks).with_budget(budget),
        };
        let policy = policy.with_fallback(Fallback::Never);
        let case = Case {
            attend: Attend::Policy(policy),
            ..case.clone()
        };
        let cpu = run_with(&Cpu::default(), &case, &qkv);
        for device in &devices {
            let cuda = check_with(&Cuda::new(device), &case, &qkv);
            assert_eq!(cuda.found.selection, cpu.found.selection, "{budget:?}");
        }
    }
}
