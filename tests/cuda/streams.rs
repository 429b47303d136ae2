//! What a stream is given: the same bits however often and beside whatever it runs, and a graph that can be replayed.

use sample_attention::pipeline::{GpuPlan, Target};
use sample_attention::{Budget, Dtype, Fallback, Policy, Problem};
use testkit::runner::{Attend, Case, Cuda, Data, check_with, run_with};
use testkit::tensor::Qkv;

use crate::support::graph::Graph;
use crate::support::run::Run;
use crate::support::{device, every_target};

fn problem(budget: Budget) -> Problem {
    Problem::causal(
        2000,
        if budget == Budget::Paper { 64 } else { 128 },
        Dtype::Bf16,
    )
    .with_heads(4, 2)
    .with_q_len(1500)
}

fn policy(budget: Budget) -> Policy {
    Policy::of(Budget::Blocks)
        .with_budget(budget)
        .with_coverage(0.9)
        .with_fallback(Fallback::Never)
}

const BUDGETS: [Budget; 4] = [
    Budget::Rows,
    Budget::Blocks,
    Budget::Residual,
    Budget::Paper,
];

fn case(budget: Budget) -> Case {
    Case {
        data: Data::Structured,
        row_step: 53,
        ..Case::new(problem(budget), Attend::Policy(policy(budget)))
    }
}

fn inputs(budget: Budget, seed: u64) -> Qkv {
    Case {
        seed,
        ..case(budget)
    }
    .inputs()
}

fn plan(budget: Budget) -> GpuPlan {
    GpuPlan::new(problem(budget), policy(budget)).unwrap()
}

#[test]
fn a_hundred_repeats_are_bit_identical() {
    for device in every_target() {
        let stream = device.stream().unwrap();
        for budget in BUDGETS {
            let mut run = Run::new(device, plan(budget));
            run.write(&inputs(budget, 3));
            run.execute(&stream);
            let (first, outcome) = (run.bits(), run.outcome(&stream));
            for repeat in 1..100 {
                run.poison();
                run.execute(&stream);
                assert!(run.bits() == first, "{budget:?}, repeat {repeat}");
            }
            assert_eq!(run.outcome(&stream), outcome);
        }
    }
}

#[test]
fn a_captured_run_replays_on_new_data() {
    for device in every_target() {
        let stream = device.stream().unwrap();
        for budget in BUDGETS {
            let case = case(budget);
            // One unit a wave: a graph with every wave of the selection.
            let mut run = Run::new(device, plan(budget).with_wave_bytes(1));
            let graph = Graph::capture(&stream, || run.enqueue(&stream));
            // Hopper's attention is two launches: a schedule comes first.
            let attention = match device.target() {
                Target::Sm80 => 1,
                Target::Sm90a => 2,
            };
            let of_wave = if budget == Budget::Rows { 2 } else { 3 };
            let waves = run.plan.waves() as usize;
            assert_eq!(graph.nodes(), of_wave * waves + attention);
            for seed in [5, 6] {
                let qkv = inputs(budget, seed);
                run.poison();
                run.write(&qkv);
                graph.replay(&stream);
                let (replayed, outcome) = (run.bits(), run.outcome(&stream));
                run.poison();
                run.execute(&stream);
                assert!(run.bits() == replayed, "{budget:?}, seed {seed}");
                let checked = check_with(&Cuda::new(device), &case, &qkv);
                assert_eq!(checked.found.selection, outcome.selection);
            }
        }
    }
}

#[test]
fn two_streams_at_once_do_not_meet() {
    let Some(device) = device() else { return };
    let streams = [device.stream().unwrap(), device.stream().unwrap()];
    for budget in BUDGETS {
        let mut runs = [1, 2].map(|seed| {
            let mut run = Run::new(device, plan(budget));
            run.write(&inputs(budget, seed));
            run
        });
        let alone = [0, 1].map(|at| {
            runs[at].execute(&streams[at]);
            runs[at].bits()
        });
        assert!(alone[0] != alone[1]);
        for repeat in 0..20 {
            runs.iter_mut().for_each(Run::poison);
            std::thread::scope(|scope| {
                for (run, stream) in runs.iter().zip(&streams) {
                    scope.spawn(move || run.enqueue(stream));
                }
            });
            for (at, stream) in streams.iter().enumerate() {
                stream.synchronize().unwrap();
                assert!(runs[at].bits() == alone[at], "{budget:?}, repeat {repeat}");
            }
        }
    }
}

#[test]
fn stopping_between_launches_and_cutting_waves_changes_nothing() {
    let Some(device) = device() else { return };
    for budget in BUDGETS {
        let case = case(budget);
        let qkv = case.inputs();
        let watched = check_with(&Cuda::new(device), &case, &qkv);
        let at_once = Cuda {
            watched: false,
            ..Cuda::new(device)
        };
        let in_waves = Cuda {
            wave_bytes: Some(1),
            ..Cuda::new(device)
        };
        let at_once = run_with(&at_once, &case, &qkv);
        let times = at_once.found.report.as_ref().expect("it reports").times;
        assert!(!times.sampling.is_zero() && !times.sparse_flash.is_zero());
        let in_waves = run_with(&in_waves, &case, &qkv);
        assert_eq!(watched.found.units, in_waves.found.units);
        for other in [at_once, in_waves] {
            assert_eq!(watched.bits(), other.bits(), "{budget:?}");
            assert_eq!(watched.found.selection, other.found.selection);
        }
    }
}

#[test]
fn unchecked_arguments_run_as_checked_operands_do() {
    let Some(device) = device() else { return };
    let stream = device.stream().unwrap();
    let mut run = Run::new(device, plan(Budget::Blocks));
    run.write(&inputs(Budget::Blocks, 9));
    run.execute(&stream);
    let checked = run.bits();
    run.poison();
    let arguments = run.plan.arguments(&run.operands()).unwrap();
    // SAFETY: the arguments are the run's buffers, which nothing else uses until the stream was waited for.
    unsafe { device.enqueue(&stream, &run.plan, &arguments) }.unwrap();
    stream.synchronize().unwrap();
    assert!(run.bits() == checked);
}
