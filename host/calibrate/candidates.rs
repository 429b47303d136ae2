//! What a head may become.

use crate::head_policy::HeadPolicy;
use crate::policy::{Budget, Policy, Window};

/// Candidates that suit prompts of some thousand tokens on: local windows of 128 to 2048 tokens, `rows` of coverage 0.70 to 0.95 at one
/// row in 8, 16 and 32 with a window of 128 and a tail of 256 rows, 1 in 4, and `blocks` of 0.95 and 0.98. [`Search`](super::Search) adds
/// dense attention. All have the default's sinks, as the GPU kernels ask.
pub fn default_candidates() -> Vec<HeadPolicy> {
    let sinks = Policy::default().sinks;
    let local = [128, 256, 512, 1024, 2048].map(|tokens| HeadPolicy::Local {
        window: Window::Tokens(tokens),
        sinks,
    });
    let rows = [8, 16, 32].into_iter().flat_map(|stride| {
        [0.70, 0.75, 0.80, 0.85, 0.90, 0.95].map(|coverage| {
            let policy = Policy::of(Budget::Rows).with_coverage(coverage);
            HeadPolicy::Selected(policy.with_row_stride(stride).with_tail(256, 4))
        })
    });
    let blocks = [0.95, 0.98]
        .map(|coverage| HeadPolicy::Selected(Policy::of(Budget::Blocks).with_coverage(coverage)));
    local.into_iter().chain(rows).chain(blocks).collect()
}
