//! What is refused before anything is launched.

use sample_attention::pipeline::{DeviceMemory, DeviceTensor, GpuPlan, Operands};
use sample_attention::{
    CudaError, Dtype, Error, Fallback, Policy, Problem, Result, Selection, StageTimes,
};

use crate::support::run::Run;
use crate::support::{device, skip};

fn problem() -> Problem {
    Problem::causal(600, 64, Dtype::Bf16)
}

fn plan() -> GpuPlan {
    let policy = Policy::of(sample_attention::Budget::Blocks).with_fallback(Fallback::Never);
    GpuPlan::new(problem(), policy).unwrap()
}

/// The run's operands, changed.
fn with(run: &Run<'_>, change: impl FnOnce(&mut Operands)) -> Operands {
    let mut operands = run.operands();
    change(&mut operands);
    operands
}

#[test]
fn host_memory_is_refused_by_name() {
    let Some(device) = device() else { return };
    let stream = device.stream().unwrap();
    let run = Run::new(device, plan());
    let host = vec![0u64; 600 * 64];
    let bytes = 2 * 600 * 64;
    let memory = DeviceMemory {
        address: (host.as_ptr() as u64).next_multiple_of(256),
        bytes,
    };
    let tensor = DeviceTensor::bhsd(memory, Dtype::Bf16, problem().q_shape()).unwrap();
    let workspace = DeviceMemory {
        bytes: run.plan.workspace_bytes(),
        ..memory
    };
    for (operand, operands) in [
        ("q", with(&run, |operands| operands.q = tensor)),
        ("k", with(&run, |operands| operands.k = tensor)),
        ("v", with(&run, |operands| operands.v = tensor)),
        ("o", with(&run, |operands| operands.o = tensor)),
        ("lse", with(&run, |operands| operands.lse = memory)),
        (
            "the workspace",
            with(&run, |operands| operands.workspace = workspace),
        ),
    ] {
        // SAFETY: it is refused, as the test checks.
        let error = unsafe { device.run(&stream, &run.plan, &operands) }.unwrap_err();
        let is_foreign = matches!(
            &error,
            Error::Cuda(CudaError::ForeignAddress { operand: named, owner: None, .. }) if *named == operand
        );
        assert!(is_foreign, "{error}");
    }
}

#[test]
fn a_workspace_is_checked_at_every_door() {
    let Some(device) = device() else { return };
    let stream = device.stream().unwrap();
    let run = Run::new(device, plan());
    let whole = run.operands().workspace;
    let short = DeviceMemory {
        bytes: whole.bytes - 1,
        ..whole
    };
    let odd = DeviceMemory {
        address: whole.address + 16,
        ..whole
    };
    let given = GpuPlan::given(problem(), 0).unwrap();
    let selection = Selection::dense(&problem()).unwrap();
    let doors: [&dyn Fn(DeviceMemory) -> Result<()>; 3] = [
        &|workspace| {
            let operands = with(&run, |operands| operands.workspace = workspace);
            // SAFETY: it is refused, as the test checks.
            unsafe { device.run(&stream, &run.plan, &operands) }
        },
        &|workspace| {
            let times = StageTimes::default();
            // SAFETY: as above.
            unsafe { device.outcome(&stream, &run.plan, workspace, times) }.map(drop)
        },
        &|workspace| {
            let workspace = DeviceMemory {
                bytes: given.workspace_bytes() - (whole.bytes - workspace.bytes),
                ..workspace
            };
            // SAFETY: as above.
            unsafe { device.write_selection(&stream, &given, &selection, workspace) }
        },
    ];
    for door in doors {
        let error = door(short).unwrap_err();
        assert!(matches!(error, Error::WorkspaceTooSmall { .. }), "{error}");
        let error = door(odd).unwrap_err();
        assert!(matches!(error, Error::Misaligned { .. }), "{error}");
    }
}

#[test]
fn memory_that_cannot_be_had_is_named() {
    let Some(device) = device() else { return };
    let error = device.alloc(1 << 50).map(drop).unwrap_err();
    let expected = CudaError::OutOfMemory { call: "cuMemAlloc" };
    assert_eq!(error, expected.into());
}

#[test]
fn a_selection_belongs_to_a_plan_that_takes_one() {
    let Some(device) = device() else { return };
    let stream = device.stream().unwrap();
    let run = Run::new(device, plan());
    let workspace = run.operands().workspace;
    let mut selection = Selection::dense(&problem()).unwrap();
    // SAFETY: it is refused, as the test checks.
    let error = unsafe { device.write_selection(&stream, &run.plan, &selection, workspace) };
    assert_eq!(error.unwrap_err(), Error::NoLists);
    selection.set_sinks(3);
    let given = GpuPlan::given(problem(), 4).unwrap();
    // SAFETY: as above.
    let error = unsafe { device.write_selection(&stream, &given, &selection, workspace) };
    let expected = Error::SelectionSinks {
        expected: 4,
        given: 3,
    };
    assert_eq!(error.unwrap_err(), expected);
}

#[test]
fn memory_and_streams_of_another_gpu_are_refused() {
    let Some(device) = device() else { return };
    if sample_attention::cuda::Device::count() == Ok(1) {
        skip("this machine has one GPU");
        return;
    }
    let other = sample_attention::cuda::Device::new(1).unwrap();
    let stream = device.stream().unwrap();
    let run = Run::new(device, plan());
    let there = Run::new(&other, plan());
    let operands = with(&run, |operands| operands.k = there.operands().k);
    // SAFETY: it is refused, as the test checks.
    let error = unsafe { device.run(&stream, &run.plan, &operands) }.unwrap_err();
    let is_foreign = matches!(
        &error,
        Error::Cuda(CudaError::ForeignAddress {
            operand: "k",
            owner: Some(1),
            ..
        })
    );
    assert!(is_foreign, "{error}");
    let foreign_stream = other.stream().unwrap();
    // SAFETY: as above.
    let error = unsafe { device.run(&foreign_stream, &run.plan, &run.operands()) }.unwrap_err();
    let is_launch = matches!(&error, Error::Cuda(CudaError::Launch { .. }));
    assert!(is_launch, "{error}");
    assert!(
        error.to_string().contains("belongs to another device"),
        "{error}"
    );
}
