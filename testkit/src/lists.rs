//! Masks that no policy selected.

use sample_attention::{Problem, Selection};

use crate::random::Random;

/// Query blocks that a selection for the problem has lists for.
pub fn query_blocks(problem: &Problem) -> usize {
    let len = if problem.causal {
        problem.k_len
    } else {
        problem.q_len
    };
    len.div_ceil(128)
}

/// Random blocks, stripes and sinks, each head its own.
///
/// # Panics
/// For an invalid problem.
pub fn random_selection(problem: &Problem, seed: u64) -> Selection {
    let mut random = Random::new(seed);
    let mut selection = Selection::new(problem).expect("the problem is valid");
    selection.set_sinks(random.below(40));
    for batch in 0..problem.batch {
        for head in 0..problem.q_heads {
            let share = random.uniform() * 0.1;
            let stripes: Vec<u32> = (0..problem.k_len as u32)
                .filter(|_| random.chance(share))
                .collect();
            let set = selection.set_stripes(batch, head, &stripes);
            set.expect("they ascend");
            for query_block in 0..query_blocks(problem) {
                let blocks: Vec<usize> = (0..problem.k_len.div_ceil(128))
                    .filter(|_| random.chance(0.3))
                    .collect();
                let set = selection.set_blocks(batch, head, query_block, &blocks);
                set.expect("they are in range");
            }
        }
    }
    selection
}
