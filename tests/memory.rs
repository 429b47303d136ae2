//! What a run costs in memory: the workspace that the plan states, and next to nothing besides.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use sample_attention::{
    Budget, Dtype, Fallback, Inputs, Outputs, Plan, Policy, Problem, TensorView, TensorViewMut,
};

/// Counts what is live, and remembers the peak.
struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let live = LIVE.fetch_add(layout.size(), Relaxed) + layout.size();
        PEAK.fetch_max(live, Relaxed);
        // SAFETY: the caller's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the caller's.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

use testkit::random::Random;

const MIB: usize = 1 << 20;

fn policies() -> [Policy; 4] {
    [
        Budget::Rows,
        Budget::Blocks,
        Budget::Residual,
        Budget::Paper,
    ]
    .map(|budget| Policy::of(budget).with_fallback(Fallback::Never))
}

#[test]
fn a_thread_needs_less_than_64_mib_at_128k_tokens() {
    for policy in policies() {
        for threads in [1, 2, 16] {
            let problem = Problem::causal(131_072, 128, Dtype::Bf16).with_heads(32, 8);
            let plan = Plan::new(problem, policy).unwrap();
            let plan = plan.with_threads(threads).unwrap();
            let bytes = plan.workspace_bytes();
            assert!(
                bytes < threads * 64 * MIB,
                "{:?} on {threads} threads: {bytes} bytes",
                policy.budget
            );
        }
    }
}

#[test]
fn the_workspace_never_shrinks_when_keys_or_queries_are_added() {
    let mut random = Random::new(8);
    for _ in 0..3000 {
        let policy = Policy::default()
            .with_budget(
                [
                    Budget::Rows,
                    Budget::Blocks,
                    Budget::Residual,
                    Budget::Paper,
                ][random.below(4)],
            )
            .with_row_stride(1 + random.below(300))
            .with_stride_doubles_from([usize::MAX, 8192][random.below(2)])
            .with_tail(random.below(2) * random.below(5000), 1 + random.below(9))
            .with_fallback(Fallback::Never);
        let most = 1 << (5 + random.below(14));
        let k_len = 1 + random.below(most);
        let q_len = if random.chance(0.5) {
            k_len
        } else {
            1 + random.below(k_len)
        };
        let more = [1, 7, 128, 512, 8192, 40_000][random.below(6)];
        let chunk = random.chance(0.5);
        let threads = [1, 2, 16][random.below(3)];
        let bytes = |q_len: usize, k_len: usize| {
            let problem = Problem::causal(k_len, 64, Dtype::Bf16)
                .with_heads(32, 8)
                .with_q_len(q_len);
            let plan = Plan::new(problem, policy).unwrap();
            plan.with_threads(threads).unwrap().workspace_bytes()
        };
        let longer = bytes(if chunk { q_len } else { q_len + more }, k_len + more);
        assert!(
            bytes(q_len, k_len) <= longer,
            "{q_len} {k_len}, {more} more: {policy:?}, {threads} threads"
        );
    }
}

#[test]
fn a_run_allocates_next_to_nothing_beside_its_workspace() {
    let problem = Problem::causal(16_384, 64, Dtype::F32).with_heads(2, 1);
    let q = vec![0.5f32; 2 * 16_384 * 64];
    let kv = vec![0.25f32; 16_384 * 64];
    let mut o = vec![0f32; q.len()];
    let mut lse = vec![0f32; problem.lse_len()];
    let inputs = Inputs::new(
        TensorView::bhsd(&q, problem.q_shape()).unwrap(),
        TensorView::bhsd(&kv, problem.kv_shape()).unwrap(),
        TensorView::bhsd(&kv, problem.kv_shape()).unwrap(),
    );
    for policy in policies() {
        let plan = Plan::new(problem, policy).unwrap();
        let mut workspace = vec![0; plan.workspace_bytes()];
        let before = LIVE.load(Relaxed);
        PEAK.store(before, Relaxed);
        let outputs = Outputs::new(TensorViewMut::bhsd(&mut o, problem.q_shape()).unwrap())
            .with_lse(&mut lse);
        plan.run(&inputs, outputs, &mut workspace).unwrap();
        let beside = PEAK.load(Relaxed) - before;
        assert!(beside < MIB, "{:?}: {beside} bytes", policy.budget);
    }
}
