//! A selection as the kernels have it: lists, stripes and flags in arrays.

use sample_attention_device::params::ProblemSizes;

use super::limits::sizes;
use super::{GpuPlan, Region, Workspace};
use crate::error::{Error, Result};
use crate::problem::Problem;
use crate::selection::Selection;

/// The contents of the workspace's regions of the same names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lists {
    /// \[q_heads, query tiles of all sequences, capacity\]; what follows a list's end says nothing.
    pub lists: Vec<u32>,
    /// \[q_heads, query tiles of all sequences\].
    pub list_counts: Vec<u32>,
    /// \[batch · q_heads, k_len\]; empty where no head has any.
    pub stripes: Vec<u32>,
    /// \[batch · q_heads\].
    pub stripe_counts: Vec<u32>,
    /// \[batch · q_heads\]; empty where none is dense.
    pub dense: Vec<u32>,
}

impl Lists {
    /// The lists of a selection, for a plan of [`GpuPlan::given`] with the selection's sinks.
    ///
    /// # Errors
    /// [`Error::SelectionShape`], [`Error::SelectionSinks`] and [`Error::NoLists`].
    pub fn of(plan: &GpuPlan, selection: &Selection) -> Result<Self> {
        selection.check(plan.problem())?;
        let expected = plan.given_sinks().ok_or(Error::NoLists)?;
        if expected != selection.sinks() {
            return Err(Error::SelectionSinks {
                expected,
                given: selection.sinks(),
            });
        }
        let sizes = plan.sizes();
        let key_blocks = sizes.key_blocks() as usize;
        let rows = sizes.q_heads as usize * sizes.sequences().query_tiles() as usize;
        let mut lists = Lists {
            lists: vec![u32::MAX; rows * key_blocks],
            list_counts: vec![0; rows],
            stripes: Vec::new(),
            stripe_counts: Vec::new(),
            dense: Vec::new(),
        };
        for head in 0..sizes.heads() {
            let [batch, q_head] = [head / sizes.q_heads, head % sizes.q_heads].map(|i| i as usize);
            let mask = selection.head(batch, q_head);
            for (query_block, row) in rows_of(sizes, head) {
                let mut count = 0;
                for block in mask.blocks(query_block) {
                    lists.lists[row * key_blocks + count] = block as u32;
                    count += 1;
                }
                lists.list_counts[row] = count as u32;
            }
            let stripes = mask.stripes();
            lists.stripes.extend(stripes);
            lists.stripe_counts.push(stripes.len() as u32);
            let end = (head as usize + 1) * sizes.k_len as usize;
            lists.stripes.resize(end, u32::MAX);
            lists.dense.push(u32::from(mask.is_dense()));
        }
        Ok(lists)
    }

    /// Where each of them belongs in a workspace.
    pub fn regions(&self, workspace: &Workspace) -> [(Region<u32>, &[u32]); 5] {
        [
            (workspace.lists, &self.lists),
            (workspace.list_counts, &self.list_counts),
            (workspace.stripes, &self.stripes),
            (workspace.stripe_counts, &self.stripe_counts),
            (workspace.dense, &self.dense),
        ]
    }

    /// The selection that the lists are.
    ///
    /// # Errors
    /// [`Error::SelectionIndex`] and [`Error::StripesNotAscending`] for what no kernel writes.
    pub(crate) fn selection(&self, problem: &Problem, sinks: usize) -> Result<Selection> {
        let mut selection = Selection::new(problem)?;
        selection.set_sinks(sinks);
        let sizes = sizes(problem)?;
        let heads = problem.batch * problem.q_heads;
        let capacity = self.lists.len() / self.list_counts.len().max(1);
        for head in 0..heads {
            let (batch, q_head) = (head / problem.q_heads, head % problem.q_heads);
            for (query_block, row) in rows_of(&sizes, head as u32) {
                let count = in_list(self.list_counts[row], capacity)?;
                let list = &self.lists[row * capacity..][..count];
                let list: Vec<usize> = list.iter().map(|&block| block as usize).collect();
                selection.set_blocks(batch, q_head, query_block, &list)?;
            }
            if let Some(&count) = self.stripe_counts.get(head) {
                let stripes = &self.stripes[head * problem.k_len..];
                let count = in_list(count, problem.k_len)?;
                selection.set_stripes(batch, q_head, &stripes[..count])?;
            }
            let is_dense = self.dense.get(head).is_some_and(|&dense| dense != 0);
            selection.set_dense(batch, q_head, is_dense)?;
        }
        Ok(selection)
    }
}

/// The query blocks of a head of all sequences' that hold a row which sees a key, and the rows of their lists.
fn rows_of(sizes: &ProblemSizes, head: u32) -> impl Iterator<Item = (usize, usize)> {
    let sequences = sizes.sequences();
    let sequence = sequences.get(head / sizes.q_heads);
    let of_head = (head % sizes.q_heads) as usize * sequences.query_tiles() as usize;
    let first_tile = sequences.first_query_tile(&sequence);
    let blocks = sequence.first_query_block()..sequence.end_query_block();
    blocks.map(move |block| {
        let tile = first_tile + sequence.place_of(block);
        (block as usize, of_head + tile as usize)
    })
}

/// A count that memory which no run wrote could hold too: an error where the list is not that long.
fn in_list(count: u32, capacity: usize) -> Result<usize> {
    let count = count as usize;
    if count > capacity {
        return Err(Error::SelectionIndex {
            what: "the length of a list",
            index: count,
            count: capacity + 1,
        });
    }
    Ok(count)
}
