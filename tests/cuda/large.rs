//! Addresses beyond 2^31 elements, by strides and by size.

use sample_attention::cuda::Device;
use sample_attention::pipeline::GpuPlan;
use sample_attention::{Budget, CudaError, Dtype, Error, Fallback, Policy, Problem};
use testkit::runner::{Attend, Case, Data};

use crate::support::run::{Run, bytes};
use crate::support::spread::{self, Places};
use crate::support::{every_target, skip, tell};

/// One more than indices of 31 bits hold.
const BEYOND: usize = 1 << 31;

fn plan(problem: Problem, budget: Budget) -> GpuPlan {
    let policy = Policy::of(Budget::Blocks)
        .with_budget(budget)
        .with_coverage(0.9)
        .with_fallback(Fallback::Never);
    GpuPlan::new(problem, policy).unwrap()
}

/// `None`, having said why, where the GPU has too little memory.
fn if_it_fits<T>(result: sample_attention::Result<T>) -> Option<T> {
    match result {
        Ok(value) => Some(value),
        Err(Error::Cuda(CudaError::OutOfMemory { .. })) => {
            skip("this GPU has no 10 GiB to spare");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

/// Each stride in turn takes the last sequence, head or token beyond 2^31 elements, in 4 GiB for all tensors together.
#[test]
fn strides_reach_beyond_31_bits() {
    let problem = Problem::causal(1100, 128, Dtype::Bf16)
        .with_batch(2)
        .with_heads(2, 2);
    let case = Case {
        data: Data::Structured,
        ..Case::new(problem, Attend::Dense)
    };
    let qkv = case.inputs();
    let row = 128;
    let head = 1100 * row;
    let tensor = 4 * head;
    // Between the tokens there is room for the four tensors' other rows.
    let token = (BEYOND / 1099).next_multiple_of(16 * row);
    let spreads = [
        [BEYOND, head, row],
        [2 * head, BEYOND, row],
        [2 * row, row, token],
    ];
    for device in every_target() {
        let stream = device.stream().unwrap();
        for budget in [Budget::Blocks, Budget::Paper] {
            let plan = plan(problem, budget);
            let mut packed = Run::new(device, plan.clone());
            packed.write(&qkv);
            packed.execute(&stream);
            for strides in spreads {
                tell(format_args!(
                    "{strides:?}, {budget:?}, {:?}",
                    device.target()
                ));
                let [batch, heads, tokens] = strides;
                let gap = if tokens == row { tensor } else { 4 * row };
                let last = batch + heads + 1099 * tokens + row;
                let places = Places {
                    strides,
                    first: [0, 1, 2, 3].map(|which| which * gap),
                    len: last + 3 * gap,
                };
                assert!(places.len > BEYOND);
                let spread = spread::run(device, &stream, &plan, &qkv, &places);
                let Some(spread) = if_it_fits(spread) else {
                    return;
                };
                assert!(spread == packed.bits(), "{strides:?}, {budget:?}");
            }
        }
    }
}

/// Heads that each get the same inputs as the one 64 before them: so do the outputs, however far behind.
#[test]
fn queries_and_outputs_of_more_than_31_bits_repeat() {
    const PERIOD: usize = 64;
    const TOKENS: usize = 2048;
    let one_period = Problem::causal(TOKENS, 128, Dtype::Bf16).with_heads(PERIOD, 1);
    let periods = BEYOND / (PERIOD * TOKENS * 128) + 1;
    let all = one_period.with_heads(periods * PERIOD, 1);
    let qkv = Case {
        data: Data::Structured,
        ..Case::new(one_period, Attend::Dense)
    }
    .inputs();
    for device in every_target() {
        tell(format_args!(
            "{} heads of {TOKENS} tokens, {:?}",
            all.q_heads,
            device.target()
        ));
        let stream = device.stream().unwrap();
        let mut small = Run::new(device, plan(one_period, Budget::Blocks));
        small.write(&qkv);
        small.execute(&stream);
        let expected = small.bits();
        let Some(run) = if_it_fits(repeated(device, plan(all, Budget::Blocks), &qkv, periods))
        else {
            return;
        };
        run.execute(&stream);
        for period in [0, 1, periods / 2, periods - 2, periods - 1] {
            let found = run.part(period, &expected);
            assert!(found == expected, "period {period} of {periods}");
        }
    }
}

fn repeated<'a>(
    device: &'a Device,
    plan: GpuPlan,
    qkv: &testkit::tensor::Qkv,
    periods: usize,
) -> sample_attention::Result<Run<'a>> {
    let mut run = Run::try_new(device, plan)?;
    let q = bytes(Dtype::Bf16, &qkv.q);
    for period in 0..periods {
        run.q.write((period * q.len()) as u64, &q)?;
    }
    run.k.write(0, &bytes(Dtype::Bf16, &qkv.k))?;
    run.v.write(0, &bytes(Dtype::Bf16, &qkv.v))?;
    Ok(run)
}
