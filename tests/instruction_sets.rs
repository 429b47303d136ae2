//! Every instruction set of the machine computes the whole pipeline correctly; one that it lacks is refused.

use sample_attention::cpu::InstructionSet;
use sample_attention::{Budget, Dtype, Error, Fallback, Plan, Policy, Problem};
use testkit::refused;
use testkit::runner::{Attend, Case, Cpu, Data, check};

#[test]
fn the_whole_pipeline_is_right_on_every_instruction_set() {
    for instruction_set in InstructionSet::available() {
        let backend = Cpu {
            instruction_set,
            coverage: true,
            ..Cpu::default()
        };
        for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
            let problem = Problem::causal(523, 64, dtype)
                .with_heads(4, 2)
                .with_q_len(333);
            let policies = [Budget::Blocks, Budget::Residual, Budget::Paper].map(|budget| {
                Attend::Policy(
                    Policy::default()
                        .with_budget(budget)
                        .with_coverage(0.8)
                        .with_fallback(Fallback::Never),
                )
            });
            for attend in policies.into_iter().chain([Attend::Dense]) {
                let case = Case {
                    data: Data::Structured,
                    ..Case::new(problem, attend)
                };
                check(&backend, &case);
            }
        }
    }
}

#[test]
fn a_set_that_the_machine_lacks_is_refused() {
    let problem = Problem::causal(100, 16, Dtype::F32);
    for instruction_set in [InstructionSet::Avx512, InstructionSet::Avx2] {
        let plan = Plan::dense(problem).unwrap();
        let result = plan.with_instruction_set(instruction_set);
        if instruction_set.is_available() {
            assert!(result.is_ok());
        } else {
            refused!(
                result,
                Error::NoSuchInstructionSet { .. },
                "has no",
                "InstructionSet::available"
            );
        }
    }
}
