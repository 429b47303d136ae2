//! How each query head is treated, as the kernels have it.

use sample_attention_device::abi::{HeadEntry, HeadKind, HeadPolicies, HeadPolicy};
use sample_attention_device::gpu::Global;
use sample_attention_device::sampling::heads::{ENTRIES, WriteHeadsParams};

use super::limits::GPU_BREAK_EVEN_TOKENS;
use crate::error::{Error, Result};
use crate::geometry::{BLOCK, row_offset, stride_within};
use crate::head_policy;
use crate::policy::{Budget, Fallback, Policy};

/// The policies of all query heads, and which of them are sampled.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Heads {
    /// By head.
    policies: Vec<HeadPolicy>,
    /// Policies of the sampled heads, each once, without offsets: no bound on a block's rows depends on them. Kept, like what follows
    /// from them, because there may be thousands of heads, and slices and passes ask for each.
    distinct: Vec<HeadPolicy>,
    are_alike: bool,
    /// The head of each slot: those that select key blocks first, those that select single keys after them, by how they rank them.
    sampled: Vec<u32>,
    /// Slots of the former.
    of_blocks: usize,
    /// The slot after those that rank keys by the mass that window and sinks leave.
    of_residual_keys: usize,
}

impl Heads {
    /// One policy for all heads of problems with `k_len` keys.
    pub(super) fn alike(policy: &Policy, q_heads: usize, k_len: usize) -> Self {
        Heads::new(vec![of_policy(policy, k_len); q_heads])
    }

    /// A policy for each, for problems with `k_len` keys; and the sinks, which those that are not dense have in common.
    ///
    /// # Errors
    /// Those of invalid policies, and [`Error::HeadSinks`].
    pub(super) fn each(
        policies: &[head_policy::HeadPolicy],
        k_len: usize,
    ) -> Result<(Self, usize)> {
        let mut sinks = None;
        let mut agree = |of_head: usize| match *sinks.get_or_insert(of_head) {
            expected if expected != of_head => Err(Error::HeadSinks {
                expected,
                given: of_head,
            }),
            _ => Ok(()),
        };
        let mut of_heads = Vec::new();
        for policy in policies {
            of_heads.push(match policy {
                head_policy::HeadPolicy::Dense => DENSE,
                head_policy::HeadPolicy::Local { window, sinks } => {
                    let policy = Policy::default().with_window(*window);
                    policy.validate()?;
                    agree(*sinks)?;
                    HeadPolicy {
                        kind: HeadKind::Local,
                        ..of_policy(&policy, k_len)
                    }
                }
                head_policy::HeadPolicy::Selected(policy) => {
                    policy.validate()?;
                    agree(policy.sinks)?;
                    let is_short = k_len < GPU_BREAK_EVEN_TOKENS;
                    match policy.fallback {
                        Fallback::Auto if is_short => DENSE,
                        Fallback::Auto | Fallback::Never => of_policy(policy, k_len),
                    }
                }
            });
        }
        Ok((Heads::new(of_heads), sinks.unwrap_or(0)))
    }

    fn new(policies: Vec<HeadPolicy>) -> Self {
        let of = |wanted: &dyn Fn(HeadKind) -> bool| -> Vec<u32> {
            let heads = (0..).zip(&policies);
            let wanted = heads.filter(|(_, policy)| wanted(policy.kind));
            wanted.map(|(head, _)| head).collect()
        };
        let mut sampled = of(&|kind| matches!(kind, HeadKind::Rows | HeadKind::Blocks));
        let of_blocks = sampled.len();
        let residual = of(&|kind| kind == HeadKind::Residual);
        let keys_end = of_blocks + residual.len();
        sampled.extend(residual);
        sampled.extend(of(&|kind| kind == HeadKind::Paper));
        let mut distinct: Vec<HeadPolicy> = Vec::new();
        for &head in &sampled {
            let policy = policies[head as usize].without_offset();
            if !distinct.contains(&policy) {
                distinct.push(policy);
            }
        }
        Heads {
            are_alike: policies.iter().all(|policy| *policy == policies[0]),
            policies,
            distinct,
            sampled,
            of_blocks,
            of_residual_keys: keys_end,
        }
    }

    pub(super) fn policies(&self) -> &[HeadPolicy] {
        &self.policies
    }

    /// Sampled heads.
    pub(super) fn sampled(&self) -> u32 {
        self.sampled.len() as u32
    }

    /// Those that select key blocks, which have the first slots.
    pub(super) fn of_blocks(&self) -> u32 {
        self.of_blocks as u32
    }

    /// The slots of those that select single keys, by how they rank them.
    pub(super) fn of_keys(&self) -> [std::ops::Range<u32>; 2] {
        let residual_end = self.of_residual_keys as u32;
        [self.of_blocks()..residual_end, residual_end..self.sampled()]
    }

    /// The head of a slot.
    pub(super) fn head_of(&self, slot: u32) -> u32 {
        self.sampled[slot as usize]
    }

    /// The policy of a head, with its own offset of sampled rows.
    pub(super) fn policy(&self, q_head: u32) -> HeadPolicy {
        self.policies[q_head as usize].of_head(q_head)
    }

    /// Policies of the sampled heads, each once, without offsets.
    pub(super) fn distinct(&self) -> &[HeadPolicy] {
        &self.distinct
    }

    /// Whether a head is of one of these kinds.
    pub(super) fn any(&self, is: impl Fn(HeadKind) -> bool) -> bool {
        self.policies.iter().any(|policy| is(policy.kind))
    }

    /// Whether all heads have the same policy, so that kernels need no table.
    pub(super) fn are_alike(&self) -> bool {
        self.are_alike
    }

    /// What kernels take, with a table at these addresses.
    pub(super) fn at(&self, table: Global<HeadEntry>, sampled_heads: Global<u32>) -> HeadPolicies {
        let alike = self.are_alike;
        HeadPolicies {
            all: self.policies[0],
            table: if alike { Global::NULL } else { table },
            sampled_heads: if alike { Global::NULL } else { sampled_heads },
            sampled: self.sampled(),
        }
    }

    /// The same for what depends on no address.
    pub(super) fn at_nowhere(&self) -> HeadPolicies {
        self.at(Global::NULL, Global::NULL)
    }

    /// Launches that write the table; none where it is not needed.
    pub(super) fn writes(
        &self,
        table: Global<HeadEntry>,
        sampled_heads: Global<u32>,
    ) -> impl Iterator<Item = WriteHeadsParams> {
        let mut slots = vec![HeadEntry::NO_SLOT; self.policies.len()];
        for (slot, &head) in (0..).zip(&self.sampled) {
            slots[head as usize] = slot;
        }
        let entries = if self.are_alike {
            Vec::new()
        } else {
            let pairs = self.policies.iter().zip(slots);
            pairs
                .map(|(&policy, slot)| HeadEntry { policy, slot })
                .collect::<Vec<_>>()
        };
        let launches: Vec<WriteHeadsParams> = entries
            .chunks(ENTRIES)
            .zip((0..).step_by(ENTRIES))
            .map(|(chunk, first)| {
                let mut entries = [WriteHeadsParams::UNUSED; ENTRIES];
                entries[..chunk.len()].copy_from_slice(chunk);
                WriteHeadsParams {
                    table,
                    sampled_heads,
                    first,
                    count: chunk.len() as u32,
                    entries,
                }
            })
            .collect();
        launches.into_iter()
    }
}

/// Of a head that attends to everything.
const DENSE: HeadPolicy = WriteHeadsParams::UNUSED.policy;

/// A policy as kernels have it, for problems with `k_len` keys.
fn of_policy(policy: &Policy, k_len: usize) -> HeadPolicy {
    let row_stride = stride_within(policy.row_stride, k_len);
    let is_rows = policy.budget == Budget::Rows;
    HeadPolicy {
        kind: match policy.budget {
            Budget::Rows => HeadKind::Rows,
            Budget::Blocks => HeadKind::Blocks,
            Budget::Residual => HeadKind::Residual,
            Budget::Paper => HeadKind::Paper,
        },
        coverage: policy.coverage,
        window_blocks: ((policy.window_tokens(k_len) - 1).div_ceil(BLOCK) + 1) as u32,
        row_stride,
        tail: if is_rows {
            policy.tail.min(k_len) as u32
        } else {
            0
        },
        tail_stride: stride_within(policy.tail_stride, k_len),
        row_offset: (policy.row_offset % row_stride as usize) as u32,
        offset_step: row_offset(row_stride as usize, 0, 1) as u32,
        // No position is beyond the largest u32.
        stride_doubles_from: u32::try_from(policy.stride_doubles_from).unwrap_or(u32::MAX),
    }
}
