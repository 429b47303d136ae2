//! The true attention mass of one head, from q and k: exact for the rows that are read, which are all rows of short inputs
//! and evenly spread ones of long inputs.

use rayon::prelude::*;
use sample_attention::{BLOCK, HeadSelection, Problem};

/// Rows that are read of a head at most.
const MAX_ROWS: usize = 4096;
/// (row, key) pairs that are read of a head at most, as far as that leaves rows enough to draw.
const MAX_PAIRS: usize = 1 << 28;
const MIN_ROWS: usize = 256;

/// The attention mass of one head.
pub struct Mass {
    /// Blocks of a side.
    pub side: usize,
    /// Mass summed over the read rows, [query blocks, key blocks], blocks counted from key position 0.
    pub blocks: Vec<f32>,
    /// The part of it that sinks and stripes keep, where the block is not kept.
    pub loose: Vec<f32>,
    /// Rows read of each query block.
    pub rows: Vec<u32>,
    /// Visible pairs of the read rows, [query blocks, key blocks].
    pub pairs: Vec<u32>,
    /// Position among the keys of each read row, and the share of its mass that the mask keeps.
    pub coverage: Vec<(usize, f64)>,
    /// One row in this many was read.
    pub stride: usize,
}

/// Which rows a head of this shape is read at.
fn stride(problem: &Problem) -> usize {
    let rows = (2 * MAX_PAIRS / problem.k_len).clamp(MIN_ROWS, MAX_ROWS);
    problem.q_len.div_ceil(rows)
}

/// Mass of one head; `q` is the head's [q_len, head_dim], `k` its [k_len, head_dim], and without a mask all is kept.
pub fn of_head(
    problem: &Problem,
    q: &[f32],
    k: &[f32],
    mask: Option<HeadSelection<'_>>,
    sinks: usize,
) -> Mass {
    let stride = stride(problem);
    let side = problem.k_len.div_ceil(BLOCK);
    // The first row that sees a key, and the position of row 0, which may lie before the first key.
    let first_row = problem.q_len.saturating_sub(problem.k_len);
    let position = |row: usize| row + problem.k_len - problem.q_len;
    let read: Vec<Row> = (first_row + (stride - 1) / 2..problem.q_len)
        .step_by(stride)
        .collect::<Vec<_>>()
        .into_par_iter()
        .map_init(Vec::new, |scores, row| {
            let position = position(row);
            let q = &q[row * problem.head_dim..(row + 1) * problem.head_dim];
            let k = &k[..(position + 1) * problem.head_dim];
            Row::read(problem, q, k, mask, sinks, scores)
        })
        .collect();
    let mut mass = Mass {
        side,
        blocks: vec![0.0; side * side],
        loose: vec![0.0; side * side],
        rows: vec![0; side],
        pairs: vec![0; side * side],
        coverage: Vec::with_capacity(read.len()),
        stride,
    };
    for row in read {
        let query_block = row.position / BLOCK;
        mass.rows[query_block] += 1;
        mass.coverage.push((row.position, row.kept));
        let first = query_block * side;
        for (key_block, (share, loose)) in row.blocks.into_iter().zip(row.loose).enumerate() {
            let visible = row.position + 1 - key_block * BLOCK;
            mass.blocks[first + key_block] += share;
            mass.loose[first + key_block] += loose;
            mass.pairs[first + key_block] += visible.min(BLOCK) as u32;
        }
    }
    mass
}

struct Row {
    position: usize,
    /// Share of the row's mass in each key block that it sees.
    blocks: Vec<f32>,
    /// The part of it that sinks and stripes hold outside the kept blocks.
    loose: Vec<f32>,
    kept: f64,
}

impl Row {
    /// `k` holds the keys that the row sees, at least its own.
    fn read(
        problem: &Problem,
        q: &[f32],
        k: &[f32],
        mask: Option<HeadSelection<'_>>,
        sinks: usize,
        scores: &mut Vec<f32>,
    ) -> Row {
        scores.clear();
        scores.extend(
            k.chunks_exact(problem.head_dim)
                .map(|k| dot(q, k) * problem.softmax_scale),
        );
        let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        scores
            .iter_mut()
            .for_each(|score| *score = (*score - max).exp());
        let blocks: Vec<f32> = scores
            .chunks(BLOCK)
            .map(|block| block.iter().sum())
            .collect();
        let total: f64 = blocks.iter().copied().map(f64::from).sum();
        let position = scores.len() - 1;
        let mut row = Row {
            position,
            loose: vec![0.0; blocks.len()],
            blocks: blocks
                .iter()
                .map(|&mass| (f64::from(mass) / total) as f32)
                .collect(),
            kept: 1.0,
        };
        if let Some(mask) = mask.filter(|mask| !mask.is_dense()) {
            let query_block = position / BLOCK;
            let stripes = mask.stripes().iter().map(|&key| key as usize);
            for key in (0..sinks)
                .chain(stripes.filter(|&key| key >= sinks))
                .take_while(|&key| key <= position)
                .filter(|&key| !mask.keeps_block(query_block, key / BLOCK))
            {
                row.loose[key / BLOCK] += (f64::from(scores[key]) / total) as f32;
            }
            let listed = mask
                .blocks(query_block)
                .filter_map(|block| row.blocks.get(block));
            let kept: f64 = listed.chain(&row.loose).copied().map(f64::from).sum();
            row.kept = kept.min(1.0);
        }
        row
    }
}

/// Eight sums side by side, which the compiler turns into vectors.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0f32; 8];
    for (a, b) in a.as_chunks::<8>().0.iter().zip(b.as_chunks::<8>().0) {
        for lane in 0..8 {
            sums[lane] += a[lane] * b[lane];
        }
    }
    sums.iter().sum()
}

impl Mass {
    /// Mean share of a row's mass that lies in a block; 0 where no row was read.
    pub fn share(&self, query_block: usize, key_block: usize) -> f64 {
        self.mean(&self.blocks, query_block, key_block)
    }

    /// The same without what sinks and stripes keep of it.
    pub fn dropped_share(&self, query_block: usize, key_block: usize) -> f64 {
        let kept = self.mean(&self.loose, query_block, key_block);
        (self.share(query_block, key_block) - kept).max(0.0)
    }

    fn mean(&self, sums: &[f32], query_block: usize, key_block: usize) -> f64 {
        let rows = self.rows[query_block].max(1);
        f64::from(sums[query_block * self.side + key_block]) / f64::from(rows)
    }

    /// Share of the area, and of the mass that it covers, as the blocks with the most mass for their area are added:
    /// what the best choice of blocks would reach. `points` points, from (0, 0) to (1, 1).
    pub fn best_curve(&self, points: usize) -> Vec<(f64, f64)> {
        let mut blocks: Vec<(f32, u32)> = self
            .blocks
            .iter()
            .copied()
            .zip(self.pairs.iter().copied())
            .filter(|&(_, pairs)| pairs > 0)
            .collect();
        // Poisoned inputs give NaN: last.
        blocks.sort_unstable_by(|a, b| (b.0 / b.1 as f32).total_cmp(&(a.0 / a.1 as f32)));
        let area: f64 = blocks.iter().map(|block| f64::from(block.1)).sum();
        let mass: f64 = blocks.iter().map(|block| f64::from(block.0)).sum();
        let mut curve = vec![(0.0, 0.0)];
        let mut so_far = (0.0, 0.0);
        for (block_mass, pairs) in blocks {
            so_far.0 += f64::from(pairs) / area;
            so_far.1 += f64::from(block_mass) / mass;
            if so_far.0 * points as f64 >= curve.len() as f64 {
                curve.push(so_far);
            }
        }
        curve.push((1.0, 1.0));
        curve
    }

    /// Mean coverage of the read rows.
    pub fn mean_coverage(&self) -> f64 {
        let sum: f64 = self.coverage.iter().map(|row| row.1).sum();
        sum / self.coverage.len().max(1) as f64
    }
}
