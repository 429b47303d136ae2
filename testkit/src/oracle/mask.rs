//! The mask M(i,j) = j ≤ p(i) and (⌊j/128⌋ ∈ L[⌊p(i)/128⌋] or j ∈ I or j < sinks).

use sample_attention::{Problem, Selection};

use super::{query_block, sees};

/// What every head attends to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mask {
    /// All visible keys.
    Dense,
    /// One entry a (batch, query head).
    Heads(Vec<HeadMask>),
}

/// The lists of one head.
#[derive(Clone, PartialEq, Eq)]
pub struct HeadMask {
    /// Every visible key, whatever the lists say.
    pub dense: bool,
    /// First keys that all rows keep.
    pub sinks: usize,
    /// L, as [query block][key block].
    pub blocks: Vec<Vec<bool>>,
    /// I, one flag a key.
    pub stripes: Vec<bool>,
}

impl std::fmt::Debug for HeadMask {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let listed =
            |flags: &[bool]| -> Vec<usize> { (0..flags.len()).filter(|&i| flags[i]).collect() };
        f.debug_struct("HeadMask")
            .field("dense", &self.dense)
            .field("sinks", &self.sinks)
            .field(
                "blocks",
                &self
                    .blocks
                    .iter()
                    .map(|row| listed(row))
                    .collect::<Vec<_>>(),
            )
            .field("stripes", &listed(&self.stripes))
            .finish()
    }
}

impl Mask {
    /// The lists of a selection, as its plain accessors tell them.
    pub fn of(problem: &Problem, selection: &Selection) -> Self {
        let blocks = problem.k_len.div_ceil(128);
        // In causal problems query blocks are counted from position 0 of the keys; those that hold no row have no use.
        let query_blocks = if problem.causal {
            blocks
        } else {
            problem.q_len.div_ceil(128)
        };
        let heads = (0..problem.batch * problem.q_heads).map(|head| {
            let lists = selection.head(head / problem.q_heads, head % problem.q_heads);
            let mut mask = HeadMask {
                dense: lists.is_dense(),
                sinks: selection.sinks(),
                blocks: vec![vec![false; blocks]; query_blocks],
                stripes: vec![false; problem.k_len],
            };
            for (query_block, row) in mask.blocks.iter_mut().enumerate() {
                for block in lists.blocks(query_block) {
                    row[block] = true;
                }
            }
            for &key in lists.stripes() {
                mask.stripes[key as usize] = true;
            }
            mask
        });
        Mask::Heads(heads.collect())
    }

    /// M(row, key) of head `head` = batch · q_heads + query head.
    pub fn keeps(&self, problem: &Problem, head: usize, row: usize, key: usize) -> bool {
        sees(problem, row, key)
            && match self {
                Mask::Dense => true,
                Mask::Heads(heads) => heads[head].keeps(problem, row, key),
            }
    }

    /// Keys that a row keeps, ascending.
    pub fn kept_keys(&self, problem: &Problem, head: usize, row: usize) -> Vec<usize> {
        (0..problem.k_len)
            .filter(|&key| self.keeps(problem, head, row, key))
            .collect()
    }

    /// Kept pairs over visible pairs of one head; 1 where nothing is visible.
    pub fn density(&self, problem: &Problem, head: usize) -> f64 {
        let (mut visible, mut kept) = (0u64, 0u64);
        for row in 0..problem.q_len {
            for key in (0..problem.k_len).filter(|&key| sees(problem, row, key)) {
                visible += 1;
                kept += u64::from(self.keeps(problem, head, row, key));
            }
        }
        if visible == 0 {
            1.0
        } else {
            kept as f64 / visible as f64
        }
    }
}

impl HeadMask {
    fn keeps(&self, problem: &Problem, row: usize, key: usize) -> bool {
        self.dense
            || key < self.sinks
            || self.stripes[key]
            || self.blocks[query_block(problem, row)][key / 128]
    }
}
