//! Several GPUs in one process.

use sample_attention::cuda::Device;
use sample_attention::pipeline::GpuPlan;
use sample_attention::{Dtype, Fallback, Policy, Problem};
use testkit::runner::{Attend, Case, Cuda, Data, check};

use crate::support::run::{Bits, Run};
use crate::support::{device, skip};

fn case() -> Case {
    let policy = Policy::of(sample_attention::Budget::Blocks)
        .with_coverage(0.9)
        .with_fallback(Fallback::Never);
    let problem = Problem::causal(1500, 128, Dtype::Bf16).with_heads(4, 2);
    Case {
        data: Data::Structured,
        row_step: 53,
        ..Case::new(problem, Attend::Policy(policy))
    }
}

/// Every GPU, where there are several.
fn all() -> Option<Vec<Device>> {
    device()?;
    let count = Device::count().unwrap();
    if count == 1 {
        skip("this machine has one GPU");
        return None;
    }
    Some(
        (0..count)
            .map(|ordinal| Device::new(ordinal).unwrap())
            .collect(),
    )
}

#[test]
fn every_gpu_computes_what_the_oracle_says() {
    let Some(devices) = all() else { return };
    for device in &devices {
        check(&Cuda::new(device), &case());
    }
}

#[test]
fn gpus_work_at_once_and_one_may_go_before_the_others() {
    let Some(mut devices) = all() else { return };
    let case = case();
    let Attend::Policy(policy) = case.attend else {
        unreachable!("the case has a policy")
    };
    let plan = GpuPlan::new(case.problem, policy).unwrap();
    let qkv = case.inputs();
    let repeats = |device: &Device| -> Vec<Bits> {
        let stream = device.stream().unwrap();
        let mut run = Run::new(device, plan.clone());
        run.write(&qkv);
        let once = |_| {
            run.poison();
            run.execute(&stream);
            run.bits()
        };
        (0..20).map(once).collect()
    };
    let alone: Vec<Vec<Bits>> = devices.iter().map(repeats).collect();
    let together: Vec<Vec<Bits>> = std::thread::scope(|scope| {
        let threads: Vec<_> = devices
            .iter()
            .map(|device| scope.spawn(|| repeats(device)))
            .collect();
        let join = |thread: std::thread::ScopedJoinHandle<'_, _>| thread.join().unwrap();
        threads.into_iter().map(join).collect()
    });
    for (alone, together) in alone.iter().zip(&together) {
        assert!(alone.iter().chain(together).all(|bits| *bits == alone[0]));
    }
    // Kernels, streams and contexts of the others stay.
    let last = devices.pop().expect("there are several");
    drop(devices);
    assert!(repeats(&last)[0] == alone[alone.len() - 1][0]);
}
