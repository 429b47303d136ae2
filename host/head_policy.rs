//! How one query head is treated, apart from the rest of its layer.

use crate::error::Result;
use crate::geometry::row_offset;
use crate::policy::{Budget, Policy, Window};
use crate::problem::Problem;

/// How one query head is treated.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum HeadPolicy {
    /// Attends to every visible key. Nothing is sampled.
    Dense,
    /// Attends to a local window and the sinks. Nothing is sampled.
    Local {
        /// Most recent keys that every query keeps, in whole blocks as with a [`Policy`].
        window: Window,
        /// First keys of the sequence that every query keeps.
        sinks: usize,
    },
    /// Attends to what a policy selects.
    Selected(Policy),
}

impl HeadPolicy {
    /// The policy for a problem of one head that samples the rows which this one samples in query head `q_head`.
    pub(crate) fn at_head(self, q_head: usize) -> Self {
        match self {
            HeadPolicy::Selected(policy)
                if policy.budget == Budget::Rows && policy.row_stride > 0 =>
            {
                let offset = row_offset(policy.row_stride, policy.row_offset, q_head);
                HeadPolicy::Selected(policy.with_row_offset(offset))
            }
            _ => self,
        }
    }

    /// The head's kind in reports and profiles: `dense`, `local` or the budget's name.
    pub fn kind(&self) -> &'static str {
        match self {
            HeadPolicy::Dense => "dense",
            HeadPolicy::Local { .. } => "local",
            HeadPolicy::Selected(policy) => policy.budget.name(),
        }
    }

    /// Whether every field is in its range, as each plan that takes the policy asks.
    ///
    /// # Errors
    /// What is out of range.
    pub fn validate(&self) -> Result<()> {
        match self {
            HeadPolicy::Dense => Ok(()),
            HeadPolicy::Local { window, .. } => Policy::default().with_window(*window).validate(),
            HeadPolicy::Selected(policy) => policy.validate(),
        }
    }

    /// What selecting costs one head of a causal `problem` by its arithmetic, dense attention being 1: 1.3 / (2 · row stride) and what
    /// the tail brings besides, 0 for a head that is not sampled. Scores are half of attention's arithmetic, and a selection takes 1.3
    /// times as long as the scores of its rows alone, as measured on a GPU. Budgets of single keys compute the scores twice, which this
    /// does not count, nor does it know of [`Fallback`](crate::Fallback). A head's *cost* is this and its
    /// [`density`](crate::HeadReport::density).
    ///
    /// ```
    /// use sample_attention::{Dtype, HeadPolicy, Policy, Problem};
    /// let problem = Problem::causal(8192, 128, Dtype::Bf16);
    /// let cost = HeadPolicy::Selected(Policy::default()).sampling_cost(&problem);
    /// assert!((cost - 1.3 / 16.0).abs() < 1e-3);
    /// assert_eq!(HeadPolicy::Dense.sampling_cost(&problem), 0.0);
    /// ```
    pub fn sampling_cost(&self, problem: &Problem) -> f64 {
        let HeadPolicy::Selected(policy) = self else {
            return 0.0;
        };
        let (q_len, k_len) = (problem.q_len, problem.k_len);
        let tail = match policy.budget {
            Budget::Rows => policy.tail,
            Budget::Blocks | Budget::Residual | Budget::Paper => 0,
        };
        let stride_at = |end: usize| match end + tail > k_len {
            true => policy.tail_stride,
            false => policy.row_stride,
        };
        // Rows by the keys that they see, up to and with their own.
        let ends = k_len.saturating_sub(q_len) + 1..=k_len;
        let is_sampled = |&end: &usize| end.is_multiple_of(stride_at(end).max(1)) || end == k_len;
        let pairs = |ends: &mut dyn Iterator<Item = usize>| ends.map(|end| end as f64).sum::<f64>();
        let sampled = pairs(&mut ends.clone().filter(is_sampled));
        SELECTION_OVER_SCORES / 2.0 * sampled / pairs(&mut ends.clone())
    }
}

/// Time of a selection over the time of its rows' scores.
const SELECTION_OVER_SCORES: f64 = 1.3;
