use super::*;
use sample_attention_device::abi::{HeadEntry, KvTensor};
use sample_attention_device::decode::DecodeParams;
use sample_attention_device::sampling::SamplingParams;
use sample_attention_device::sampling::heads::WriteHeadsParams;
use sample_attention_device::sparse_flash::SparseFlashParams;
use sample_attention_device::sparse_flash::hopper::HopperParams;
use sample_attention_device::top_k::keys::TopKKeysParams;
use sample_attention_device::top_k::rows::SelectRowsParams;

use crate::error::Error;
use crate::head_policy::HeadPolicy;
use crate::policy::{Budget, Fallback, Policy, Window};
use crate::problem::{Dtype, Problem};
use crate::varlen::VarlenBounds;

const WORKSPACE: u64 = 1 << 40;

/// The parameter of a launch whose kernel takes a `P`.
fn params_of<P: Copy + 'static>(launch: &Launch) -> &P {
    let params = launch.call.params_of();
    params.unwrap_or_else(|| panic!("{launch:?} has other parameters"))
}

fn arguments() -> Arguments {
    let tensor = TensorArg {
        address: Global::from_address(256),
        stride_batch: 0,
        stride_head: 0,
        stride_token: 128,
    };
    let kv = KvTensor::strided(tensor);
    Arguments {
        q: tensor,
        k: kv,
        v: kv,
        kv_extents: [1; 3],
        q_tokens: 1,
        o: tensor,
        o_dtype: Dtype::Bf16,
        lse: Global::from_address(256),
        lengths: Lengths::EQUAL,
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
        row_lse: f32, stats: f32, bases: f32, sink_stats: f32, mass: u64, outside: u64, covered: u64, kept: u64,
        listed: u32, finite_rows: u32, lists: u32, list_counts: u32, stripes: u32, stripe_counts: u32, dense: u32,
        heads: HeadEntry, sampled_heads: u32, taken: u32, order: u32, partial_o: f32, partial_sums: f32
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
    for budget in [
        Budget::Rows,
        Budget::Blocks,
        Budget::Residual,
        Budget::Paper,
    ] {
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

/// Query tiles of the slices that are sampled, in order.
fn sampled_slices(launches: &[Launch]) -> Vec<(u32, u32)> {
    let sampled = launches
        .iter()
        .filter_map(|launch| launch.call.params_of::<SamplingParams>());
    sampled
        .map(|params| (params.slice.first_tile, params.slice.tiles))
        .collect()
}

#[test]
fn waves_bound_the_workspace_and_hold_every_query_tile_once() {
    for (budget, wave) in [
        (Budget::Rows, &["sampling_bf16_d128", "select_rows"][..]),
        (
            Budget::Blocks,
            &["sampling_bf16_d128", "reduction_blocks", "top_k_blocks"],
        ),
    ] {
        let plan = GpuPlan::new(long_problem(), policy(budget, Fallback::Auto)).unwrap();
        for plan in [
            plan.clone(),
            plan.clone().with_wave_bytes(0),
            plan.with_wave_bytes(u64::MAX),
        ] {
            let launches = launches(&plan);
            let names: Vec<&str> = launches.iter().map(|launch| launch.call.name()).collect();
            let mut expected = wave.repeat(plan.waves() as usize);
            if budget == Budget::Blocks {
                expected.push("choose_dense");
            }
            expected.push("sparse_flash_bf16_d128");
            assert_eq!(names, expected);
            let mut next = 0;
            for (first, tiles) in sampled_slices(&launches) {
                assert_eq!(first, next);
                if budget == Budget::Blocks {
                    assert!(tiles.is_multiple_of(64), "whole segments");
                }
                next += tiles;
            }
            assert_eq!(next, 1024);
        }
    }
}

/// 32 query heads, 8 key/value heads, head_dim 128.
#[test]
fn the_workspace_of_any_length_fits_in_256_mib_and_of_few_queries_in_less() {
    let mib = |q_len: usize, k_len: usize, policy: Policy| {
        let problem = Problem {
            q_len,
            ..Problem::causal(k_len, 128, Dtype::Bf16).with_heads(32, 8)
        };
        let plan = GpuPlan::new(problem, policy).unwrap();
        plan.workspace_bytes() as f64 / f64::from(1 << 20)
    };
    let rows = policy(Budget::Rows, Fallback::Never).with_row_stride(8);
    for policy in [rows, rows.with_tail(512, 4)] {
        for k_len in [
            1 << 13,
            1 << 15,
            1 << 16,
            1 << 17,
            3 << 16,
            1 << 18,
            1 << 19,
            1 << 20,
        ] {
            let whole = mib(k_len, k_len, policy);
            assert!(whole <= 256.0, "{k_len} tokens: {whole} MiB");
            let chunk = mib(8192, k_len, policy);
            assert!(chunk <= 256.0, "8192 of {k_len} tokens: {chunk} MiB");
        }
        let chunk = mib(8192, 1 << 17, policy);
        assert!(chunk <= 96.0, "{chunk} MiB");
        let query = mib(1, 1 << 17, policy);
        assert!(query <= 4.0, "{query} MiB");
    }
    for budget in [Budget::Residual, Budget::Paper] {
        for k_len in [1 << 17, 1 << 20] {
            let whole = mib(k_len, k_len, policy(budget, Fallback::Never));
            assert!(whole <= 256.0, "{budget:?}, {k_len} tokens: {whole} MiB");
        }
    }
}

/// Where the lists of all query tiles are too large, attention follows each slice and reads its lists.
#[test]
fn attention_follows_the_slices_of_a_million_tokens() {
    let problem = Problem::causal(1 << 20, 128, Dtype::Bf16).with_heads(32, 8);
    let plan = GpuPlan::new(problem, policy(Budget::Rows, Fallback::Auto)).unwrap();
    let launches = launches(&plan);
    assert_eq!(launches.len() as u32, 3 * plan.waves());
    let mut next = 0;
    for slice in launches.chunks(3) {
        let sampling = params_of::<SamplingParams>(&slice[0]);
        let select = params_of::<SelectRowsParams>(&slice[1]);
        let attend = params_of::<SparseFlashParams>(&slice[2]);
        let tiles = (next, sampling.slice.tiles);
        assert_eq!((sampling.slice.first_tile, sampling.slice.tiles), tiles);
        for mask in [&select.output.mask, &attend.mask] {
            assert_eq!((mask.first_tile, mask.tiles), tiles);
        }
        next += tiles.1;
    }
    assert_eq!(next, 8192);
    let whole = plan.with_whole_lists();
    assert!(whole.workspace_bytes() > 8 << 30);
}

#[test]
fn heads_that_are_not_sampled_take_no_part_of_sampling() {
    let rows = HeadPolicy::Selected(policy(Budget::Rows, Fallback::Never).with_row_stride(8));
    let local = HeadPolicy::Local {
        window: Window::Tokens(128),
        sinks: 16,
    };
    let mut heads = vec![local; 32];
    heads[3] = rows;
    heads[7] = HeadPolicy::Dense;
    heads[20] = rows;
    let plan = GpuPlan::per_head(long_problem(), &heads).unwrap();
    let launches = launches(&plan);
    let table = params_of::<WriteHeadsParams>(&launches[0]);
    assert_eq!(table.count, 32);
    assert_eq!((table.entries[3].slot, table.entries[20].slot), (0, 1));
    assert_eq!(table.entries[7].slot, HeadEntry::NO_SLOT);
    let sampled = launches.iter().filter_map(|launch| {
        let params = launch.call.params_of::<SamplingParams>()?;
        Some((params.slice.slots, launch.shape.grid[0]))
    });
    let of_all = GpuPlan::per_head(long_problem(), &[rows; 32]).unwrap();
    let all: u32 = self::launches(&of_all)
        .iter()
        .filter(|launch| launch.call.params_of::<SamplingParams>().is_some())
        .map(|launch| launch.shape.grid[0])
        .sum();
    let mut ctas = 0;
    for (slots, grid) in sampled {
        assert_eq!(slots, 2);
        ctas += grid;
    }
    assert!(ctas * 6 < all, "{ctas} CTAs of {all}");

    heads[4] = HeadPolicy::Local {
        window: Window::Tokens(128),
        sinks: 17,
    };
    let error = GpuPlan::per_head(long_problem(), &heads).unwrap_err();
    assert!(matches!(error, Error::HeadSinks { .. }), "{error}");
    heads.pop();
    let error = GpuPlan::per_head(long_problem(), &heads).unwrap_err();
    assert!(matches!(error, Error::HeadPolicies { .. }), "{error}");
}

/// Each backend has index arithmetic of its own.
#[test]
fn every_head_samples_as_many_rows_as_on_the_cpu() {
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
            for budget in [Budget::Rows, Budget::Blocks, Budget::Residual] {
                let problem = Problem {
                    q_len,
                    k_len,
                    ..Problem::causal(1, 64, Dtype::Bf16)
                };
                let policy = Policy {
                    row_stride,
                    stride_doubles_from,
                    ..policy(budget, Fallback::Never)
                }
                .with_tail(700, 3);
                let plan = GpuPlan::new(problem, policy).unwrap();
                let of_cpu = crate::cpu::Units::new(&problem, &policy, 1);
                let rows: usize = (0..of_cpu.per_head)
                    .map(|segment| of_cpu.rows(crate::cpu::Unit { head: 0, segment }).len())
                    .sum();
                assert_eq!(plan.sampled_rows().unwrap(), [rows as u64], "{policy:?}");
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
        let params = params_of::<SparseFlashParams>(launch);
        assert_eq!(launch.call.name(), "sparse_flash_f16_d64");
        assert!(params.mask.is_dense());

        let target = Target::Sm90a;
        let Ok(launches) = plan.launches(&mut Paper { target }, &arguments());
        let names: Vec<&str> = launches.iter().map(|launch| launch.call.name()).collect();
        let expected = ["sparse_flash_schedule", "sparse_flash_sm90_f16_d64"];
        assert_eq!(names, expected);
        let params = params_of::<HopperParams>(&launches[1]);
        assert_eq!(params.schedule.taken.address(), WORKSPACE);
        assert!(params.schedule.order.is_null());
    }
}

#[test]
fn few_queries_split_the_keys_alike_on_all_targets_in_4_mib() {
    let few = |q_len, k_len| {
        let problem = Problem::causal(k_len, 128, Dtype::Bf16).with_heads(32, 8);
        problem.with_q_len(q_len)
    };
    let policy = policy(Budget::Rows, Fallback::Auto);
    for (plan, names, most_bytes) in [
        (
            GpuPlan::dense(few(1, 1 << 17)),
            &["decode_bf16_d128_m16", "decode_combine_bf16"][..],
            4 << 20,
        ),
        (
            GpuPlan::dense(few(16, 1 << 17)),
            &["decode_bf16_d128_m64", "decode_combine_bf16"],
            16 << 20,
        ),
        (
            GpuPlan::new(few(4, 4095), policy),
            &["decode_bf16_d128_m16", "decode_combine_bf16"],
            4 << 20,
        ),
        // So few keys that one block is as fast.
        (GpuPlan::dense(few(1, 300)), &["decode_bf16_d128_m16"], 4),
        // More rows than a tile has.
        (
            GpuPlan::dense(few(17, 1 << 17)),
            &["sparse_flash_bf16_d128"],
            4,
        ),
    ] {
        let plan = plan.unwrap();
        let launches = launches(&plan);
        let of = |launches: &[Launch]| -> Vec<_> {
            launches.iter().map(|launch| launch.call.name()).collect()
        };
        assert_eq!(of(&launches), names);
        let bytes = plan.workspace_bytes();
        assert!(bytes <= most_bytes, "{names:?}: {bytes} bytes");
        assert!(
            launches
                .iter()
                .all(|launch| launch.stage == Stage::SparseFlash)
        );
        let Some(params) = launches[0].call.params_of::<DecodeParams>() else {
            continue;
        };
        // No buffer but for splits, and all that they need.
        let workspace = plan.workspace();
        let (o, sums) = (workspace.partial_o, workspace.partial_sums);
        let at = arguments().workspace;
        assert_eq!(params.partial_o.address(), o.at(at).address());
        assert_eq!(params.partial_sums.address(), sums.at(at).address());
        assert_eq!(params.splits.partial_o_len(&params.attention), o.len);
        assert_eq!(params.splits.partial_sums_len(&params.attention), sums.len);
        let regions = regions(workspace);
        assert!(regions.windows(2).all(|pair| pair[0].1 <= pair[1].0));
        assert_eq!(regions.last().unwrap().1, bytes);

        let target = Target::Sm90a;
        let Ok(on_hopper) = plan.launches(&mut Paper { target }, &arguments());
        assert_eq!(of(&on_hopper), names);
        for (launch, other) in launches.iter().zip(&on_hopper) {
            assert_eq!(launch.shape, other.shape);
        }
    }
}

/// A sequence of a packed batch has the bits of any other batch: where its keys are split would depend on the bounds.
#[test]
fn bounds_of_a_batch_split_no_keys() {
    let bounds = VarlenBounds::causal(8, 1 << 17, 128, Dtype::F16)
        .with_heads(32, 8)
        .with_max_seqlen_q(1);
    let plan = GpuPlan::for_bounds(bounds, None).unwrap();
    assert_eq!(plan.workspace_bytes(), 4);
    let names: Vec<_> = launches(&plan).iter().map(|l| l.call.name()).collect();
    assert_eq!(names, ["sparse_flash_f16_d128"]);
}

#[test]
fn the_parameter_is_the_struct_that_the_call_holds() {
    let plan = GpuPlan::dense(long_problem()).unwrap();
    let launch = launches(&plan)[0];
    let params = params_of::<SparseFlashParams>(&launch);
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
        if let Some(params) = launch.call.params_of::<TopKKeysParams>() {
            assert_eq!(params.output.mask.key_indices.address(), stripes);
            assert!(!params.masses.outside.is_null());
            written += params.units.units();
        } else if let Some(params) = launch.call.params_of::<SparseFlashParams>() {
            assert_eq!(params.mask.key_indices.address(), stripes);
            assert_eq!(params.mask.key_capacity, 1 << 17);
            assert!(params.mask.dense.is_null());
        }
    }
    assert_eq!(written, 32);
}
