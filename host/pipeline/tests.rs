use super::*;
use crate::policy::{Budget, Fallback, Policy};
use crate::problem::{Dtype, Problem};

const WORKSPACE: u64 = 1 << 40;

fn arguments() -> Arguments {
    let tensor = TensorArg {
        address: Global::from_address(256),
        stride_batch: 0,
        stride_head: 0,
        stride_token: 128,
    };
    Arguments {
        q: tensor,
        k: tensor,
        v: tensor,
        o: tensor,
        o_dtype: Dtype::Bf16,
        lse: Global::from_address(256),
        workspace: Global::from_address(WORKSPACE),
    }
}

/// Takes launches for either target.
struct Paper {
    target: Target,
}

impl Device for Paper {
    type Error = std::convert::Infallible;

    fn target(&self) -> Target {
        self.target
    }

    fn multiprocessors(&self) -> u32 {
        132
    }

    fn tensor_map(&mut self, layout: &TensorMapLayout) -> Result<TensorMap, Self::Error> {
        layout.check().expect("a map that hardware takes");
        Ok(TensorMap::from_words([layout.base; 16]))
    }

    fn launch(&mut self, _launch: &Launch) -> Result<(), Self::Error> {
        Ok(())
    }
}

fn launches(plan: &GpuPlan) -> Vec<Launch> {
    let target = Target::Sm80;
    let Ok(launches) = plan.launches(&mut Paper { target }, &arguments());
    launches
}

fn long_problem() -> Problem {
    Problem {
        q_heads: 32,
        kv_heads: 8,
        ..Problem::causal(1 << 17, 128, Dtype::Bf16)
    }
}

fn policy(budget: Budget, fallback: Fallback) -> Policy {
    Policy {
        budget,
        fallback,
        ..Policy::of(Budget::Blocks)
    }
}

/// First and last byte of every region that has any.
fn regions(workspace: &Workspace) -> Vec<(u64, u64)> {
    macro_rules! bounds {
        ($($name:ident: $type:ty),*) => {
            [$((workspace.$name.offset_bytes, workspace.$name.len * size_of::<$type>() as u64)),*]
        };
    }
    let all = bounds!(
        row_lse: f32, stats: f32, sink_stats: f32, mass: u64, outside: u64, covered: u64, kept: u64,
        lists: u32, list_counts: u32, stripes: u32, stripe_counts: u32, dense: u32, taken: u32, order: u32
    );
    let mut some: Vec<(u64, u64)> = all
        .into_iter()
        .filter(|&(_, bytes)| bytes > 0)
        .map(|(offset, bytes)| (offset, offset + bytes))
        .collect();
    some.sort_unstable();
    some
}

#[test]
fn regions_are_aligned_disjoint_and_fill_the_workspace() {
    for budget in [Budget::Blocks, Budget::Residual, Budget::Paper] {
        for fallback in [Fallback::Auto, Fallback::Never] {
            let plan = GpuPlan::new(long_problem(), policy(budget, fallback)).unwrap();
            let regions = regions(plan.workspace());
            let mut end = 0;
            for &(offset, next) in &regions {
                assert_eq!(offset, end, "{budget:?}");
                end = next.next_multiple_of(256);
            }
            assert_eq!(regions.last().unwrap().1, plan.workspace_bytes());
        }
    }
}

#[test]
fn waves_bound_the_workspace_and_hold_every_unit_once() {
    let budget = Budget::Blocks;
    let plan = GpuPlan::new(long_problem(), policy(budget, Fallback::Auto)).unwrap();
    let units = *plan.units().unwrap();
    for plan in [
        plan.clone(),
        plan.clone().with_wave_bytes(0),
        plan.with_wave_bytes(u64::MAX),
    ] {
        let launches = launches(&plan);
        let names: Vec<&str> = launches.iter().map(|launch| launch.call.name()).collect();
        let waves = plan.waves() as usize;
        let wave = ["sampling_bf16_d128", "reduction_blocks", "top_k_blocks"];
        let mut expected = wave.repeat(waves);
        expected.extend(["choose_dense", "sparse_flash_bf16_d128"]);
        assert_eq!(names, expected);
        let mut next = 0;
        for launch in &launches {
            if let Call::Sampling(_, params) = &launch.call {
                assert_eq!(params.units.first, next);
                next += params.units.count;
            }
        }
        assert_eq!(next, units.count);
    }
    let plan = GpuPlan::new(long_problem(), policy(budget, Fallback::Auto)).unwrap();
    let wave_bytes = plan.workspace().kept.offset_bytes;
    assert!((2..10).contains(&plan.waves()), "{}", plan.waves());
    // Each of five regions may begin up to 255 bytes after the one before it.
    assert!(
        wave_bytes <= WAVE_BYTES + 5 * 256,
        "{wave_bytes} bytes in a wave"
    );
}

/// Each backend has index arithmetic of its own.
#[test]
fn the_rows_of_every_unit_are_the_cpu_backends() {
    for (q_len, k_len) in [(100_000, 100_000), (30_001, 70_003), (1, 40_000)] {
        for (row_stride, stride_doubles_from) in [
            (16, 65_536),
            (16, 8192),
            (16, usize::MAX),
            (20, 1),
            (1, 10_000),
            (63, 20_000),
            (64, 8192),
            (100, 8192),
            (usize::MAX, 1),
        ] {
            for budget in [Budget::Blocks, Budget::Residual] {
                let problem = Problem {
                    q_len,
                    k_len,
                    ..Problem::causal(1, 64, Dtype::Bf16)
                };
                let policy = Policy {
                    row_stride,
                    stride_doubles_from,
                    ..policy(budget, Fallback::Never)
                };
                let plan = GpuPlan::new(problem, policy).unwrap();
                let of_plan = plan.units().unwrap();
                let of_cpu = crate::cpu::Units::new(&problem, &policy, 1);
                assert_eq!(of_plan.per_head() as usize, of_cpu.per_head);
                for segment in 0..of_plan.per_head() {
                    let rows = of_plan.rows(of_plan.unit(segment));
                    let positions: Vec<usize> = (0..rows.len())
                        .map(|rank| rows.position(rank) as usize)
                        .collect();
                    let rows = of_cpu.rows(segment as usize);
                    let expected: Vec<usize> =
                        (0..rows.len()).map(|rank| rows.position(rank)).collect();
                    assert_eq!(positions, expected, "{policy:?}, segment {segment}");
                    assert!(positions.len() <= of_plan.row_capacity as usize);
                }
            }
        }
    }
}

#[test]
fn a_dense_plan_is_one_launch_and_on_hopper_its_schedule_before() {
    let short = Problem::causal(1000, 64, Dtype::F16);
    for plan in [
        GpuPlan::dense(short).unwrap(),
        GpuPlan::new(short, Policy::of(Budget::Blocks)).unwrap(),
    ] {
        // Hopper's counter of tasks alone.
        assert_eq!((plan.workspace_bytes(), plan.waves()), (4, 0));
        let launches = launches(&plan);
        let [launch] = &launches[..] else {
            panic!("{launches:?}")
        };
        let Call::SparseFlash(kernel, params) = &launch.call else {
            panic!("{launch:?}")
        };
        assert_eq!(kernel.name(), "sparse_flash_f16_d64");
        assert!(params.mask.is_dense());

        let target = Target::Sm90a;
        let Ok(launches) = plan.launches(&mut Paper { target }, &arguments());
        let names: Vec<&str> = launches.iter().map(|launch| launch.call.name()).collect();
        let expected = ["sparse_flash_schedule", "sparse_flash_sm90_f16_d64"];
        assert_eq!(names, expected);
        let Call::SparseFlashHopper(_, params) = &launches[1].call else {
            panic!("{launches:?}")
        };
        assert_eq!(params.schedule.taken.address(), WORKSPACE);
        assert!(params.schedule.order.is_null());
    }
}

#[test]
fn the_parameter_is_the_struct_that_the_call_holds() {
    let plan = GpuPlan::dense(long_problem()).unwrap();
    let launch = launches(&plan)[0];
    let Call::SparseFlash(_, params) = &launch.call else {
        panic!("{launch:?}")
    };
    let address = std::ptr::from_ref(params).cast();
    assert_eq!(launch.call.params(), (address, size_of_val(params)));
}

#[test]
fn budgets_of_keys_hand_the_stripes_from_kernel_to_kernel() {
    let plan = GpuPlan::new(long_problem(), policy(Budget::Paper, Fallback::Never)).unwrap();
    let stripes = plan.workspace().stripes.at(arguments().workspace).address();
    assert!(stripes > WORKSPACE);
    let mut written = 0;
    for launch in launches(&plan) {
        match &launch.call {
            Call::TopKKeys(_, params) => {
                assert_eq!(params.stripes.address(), stripes);
                assert!(!params.masses.outside.is_null());
                written += params.units.count;
            }
            Call::SparseFlash(_, params) => {
                assert_eq!(params.mask.key_indices.address(), stripes);
                assert_eq!(params.mask.key_capacity, 1 << 17);
                assert!(params.mask.dense.is_null());
            }
            _ => {}
        }
    }
    assert_eq!(written, 32);
}
