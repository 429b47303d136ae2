//! Look-up: what a block of queries of one key/value head keeps of the clusters.
//!
//! ```text
//! for each query of each query head of the group, 32 of them a panel:
//!     score[c] = q·μ[c] + ½ ln 2 · Σ q²σ²[c]                                     log2 of the weight of one key
//!     total    = Σ keys[c] · 2^score[c]  +  sinks, window and own tokens exactly
//!     share[head][c] += 2^(score[c] - total) / queries of the block
//! score[c] of the block = the largest share[head][c]
//! keep by threshold, by share of the keys, or by coverage: ascending clusters
//! ```
//!
//! With two levels the coarse clusters are scored first. Clusters below those that are dropped are neither scored nor kept, and the dropped ones'
//! estimates stay in the total.

use std::ops::Range;

use super::index::{Head, Index};
use super::kernels::{Panel, ScoreClusters, Shares, SumWeights};
use super::level::Level;
use super::rows::read;
use super::rule::{Centroids, Denominator, Keep, Score};
use crate::cpu::{InstructionSet, KEY_GROUP, Lanes, PANEL};
use crate::tensor::TensorView;

/// Queries that share one list: some rows of the query heads of one key/value head.
#[derive(Clone, Copy)]
pub(super) struct Block<'a> {
    pub(super) q: &'a TensorView<'a>,
    pub(super) batch: usize,
    pub(super) kv_head: usize,
    /// Query heads of the group.
    pub(super) group: usize,
    pub(super) first_row: usize,
    pub(super) rows: usize,
    /// Natural log-sum-exp of what is attended to anyway, [group, rows].
    pub(super) known: &'a [f32],
}

/// What a look-up works in and leaves behind.
pub(super) struct LookUp {
    panel: Panel,
    row: Vec<f32>,
    scores: Vec<Lanes>,
    coarse_scores: Vec<Lanes>,
    /// Mean share of one key of each cluster, [group, clusters].
    shares: Vec<f32>,
    coarse_shares: Vec<f32>,
    /// The largest of the group, of each cluster; 0 where it was not looked at.
    pub(super) estimates: Vec<f32>,
    pub(super) coarse_estimates: Vec<f32>,
    /// Runs of fine clusters that are looked at.
    runs: Vec<Range<usize>>,
    coarse_dropped: Vec<u32>,
    order: Vec<u32>,
    /// Share of what is attended to anyway, of each query head: mean over the block.
    pub(super) known_share: Vec<f64>,
    /// Clusters kept, ascending.
    pub(super) kept: Vec<u32>,
}

/// What was kept.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Kept {
    pub(super) keys: usize,
    /// Clusters that were scored.
    pub(super) scored: usize,
    /// Estimated coverage, mean over the queries of the block and the heads of the group.
    pub(super) coverage: f64,
}

impl LookUp {
    /// For the largest head of an index.
    pub(super) fn new(index: &Index, group: usize) -> Self {
        let clusters = index.heads.iter().map(|head| head.fine.len()).max();
        let coarse = index.heads.iter().filter_map(|head| head.coarse.as_ref());
        let (clusters, coarse) = (
            clusters.unwrap_or(0),
            coarse.map(Level::len).max().unwrap_or(0),
        );
        let dim = index.head_dim();
        LookUp {
            panel: Panel {
                queries: vec![Lanes::ZERO; dim],
                squares: vec![Lanes::ZERO; dim],
                bend: Lanes::ZERO,
            },
            row: vec![0.0; dim],
            scores: vec![Lanes::ZERO; clusters + KEY_GROUP],
            coarse_scores: vec![Lanes::ZERO; coarse + KEY_GROUP],
            shares: vec![0.0; group * clusters],
            coarse_shares: vec![0.0; group * coarse],
            estimates: vec![0.0; clusters],
            coarse_estimates: vec![0.0; coarse],
            runs: Vec::with_capacity(coarse.max(1)),
            coarse_dropped: Vec::with_capacity(coarse),
            order: Vec::with_capacity(clusters),
            known_share: vec![0.0; group],
            kept: Vec::with_capacity(clusters),
        }
    }

    /// Bytes of one.
    pub(super) fn bytes(&self) -> usize {
        let lanes = 2 * self.row.len() + 1 + self.scores.len() + self.coarse_scores.len();
        let words = self.row.len()
            + self.shares.len()
            + self.coarse_shares.len()
            + 3 * self.estimates.len()
            + 2 * self.coarse_estimates.len()
            + 2 * self.known_share.len();
        lanes * size_of::<Lanes>() + 4 * words + self.runs.capacity() * size_of::<Range<usize>>()
    }

    /// Scores the clusters for a block, and leaves the estimates; nothing is kept yet. `softmax_scale` is that of q·k.
    pub(super) fn score(
        &mut self,
        index: &Index,
        rule: &Centroids,
        block: &Block<'_>,
        scale_log2: f64,
        set: InstructionSet,
    ) {
        let head = &index.heads[block.kv_head];
        let level_rule = LevelRule::new(index, rule, scale_log2, set);
        self.runs.clear();
        self.coarse_dropped.clear();
        self.runs.push(0..head.fine.len());
        if let (Some(threshold), Some(coarse)) = (rule.coarse_threshold, &head.coarse) {
            self.score_coarse(coarse, &level_rule, block);
            self.runs.clear();
            for (cluster, &estimate) in self.coarse_estimates[..coarse.len()].iter().enumerate() {
                let children =
                    coarse.children[cluster] as usize..coarse.children[cluster + 1] as usize;
                if estimate > threshold {
                    match self.runs.last_mut() {
                        Some(run) if run.end == children.start => run.end = children.end,
                        _ => self.runs.push(children),
                    }
                } else {
                    self.coarse_dropped.push(cluster as u32);
                }
            }
        }
        self.score_fine(head, &level_rule, block);
    }

    /// Scores the coarse clusters alone.
    pub(super) fn score_coarse(&mut self, coarse: &Level, rule: &LevelRule, block: &Block<'_>) {
        let clusters = coarse.len();
        self.coarse_shares[..block.group * clusters].fill(0.0);
        for first in (0..block.group * block.rows).step_by(PANEL) {
            self.load_panel(block, first, &coarse.profile, rule);
            let known = rule.known(block, first);
            let scores = &mut self.coarse_scores[..clusters.next_multiple_of(KEY_GROUP)];
            rule.scores(&self.panel, coarse, 0..clusters, scores);
            let scores = &mut scores[..clusters];
            let mut sums = (Lanes::NEG_INFINITY, Lanes::ZERO);
            rule.sum(scores, &coarse.log2_counts, &mut sums);
            let total = total(&sums, &known);
            rule.set.run(Shares {
                scores,
                total: &total,
            });
            let shares = &mut self.coarse_shares[..block.group * clusters];
            add_shares(block, first, scores, shares, 0..clusters);
        }
        largest(
            &self.coarse_shares,
            block,
            clusters,
            &mut self.coarse_estimates,
        );
    }

    fn score_fine(&mut self, head: &Head, rule: &LevelRule, block: &Block<'_>) {
        let fine = &head.fine;
        let clusters = fine.len();
        self.shares[..block.group * clusters].fill(0.0);
        self.known_share.fill(0.0);
        for first in (0..block.group * block.rows).step_by(PANEL) {
            let mut sums = (Lanes::NEG_INFINITY, Lanes::ZERO);
            if let (Some(coarse), false) = (&head.coarse, self.coarse_dropped.is_empty())
                && rule.denominator == Denominator::Everything
            {
                self.load_panel(block, first, &coarse.profile, rule);
                let all = &mut self.coarse_scores[..coarse.len().next_multiple_of(KEY_GROUP)];
                rule.scores(&self.panel, coarse, 0..coarse.len(), all);
                for &cluster in &self.coarse_dropped {
                    let at = cluster as usize..cluster as usize + 1;
                    rule.sum(&all[at.clone()], &coarse.log2_counts[at], &mut sums);
                }
            }
            self.load_panel(block, first, &fine.profile, rule);
            let known = rule.known(block, first);
            let mut at = 0;
            for run in &self.runs {
                let scores = &mut self.scores[at..];
                let padded = run.len().next_multiple_of(KEY_GROUP);
                rule.scores(&self.panel, fine, run.clone(), &mut scores[..padded]);
                rule.sum(
                    &scores[..run.len()],
                    &fine.log2_counts[run.clone()],
                    &mut sums,
                );
                at += run.len();
            }
            let total = total(&sums, &known);
            let scores = &mut self.scores[..at];
            rule.set.run(Shares {
                scores,
                total: &total,
            });
            let mut scores = &scores[..];
            for run in &self.runs {
                let (of_run, rest) = scores.split_at(run.len());
                let shares = &mut self.shares[..block.group * clusters];
                add_shares(block, first, of_run, shares, run.clone());
                scores = rest;
            }
            for (lane, head) in lanes(block, first) {
                let share = (f64::from(known.0[lane]) - f64::from(total.0[lane])).exp2();
                self.known_share[head] += share / block.rows as f64;
            }
        }
        largest(&self.shares, block, clusters, &mut self.estimates);
    }

    /// Share of attention that cluster `cluster` is expected to have, of one query head: mean over the block.
    pub(super) fn mass(&self, fine: &Level, head: usize, cluster: usize) -> f64 {
        f64::from(self.shares[head * fine.len() + cluster]) * f64::from(fine.count(cluster))
    }

    /// Keeps clusters by the estimates of the last [`LookUp::score`].
    pub(super) fn keep(&mut self, fine: &Level, rule: &Centroids, group: usize) -> Kept {
        self.kept.clear();
        match rule.keep {
            Keep::Uncalibrated => {}
            Keep::Threshold(threshold) => {
                let above = |&cluster: &u32| self.estimates[cluster as usize] > threshold;
                self.kept.extend((0..fine.len() as u32).filter(above));
            }
            Keep::Share(share) => {
                let clustered = fine.rows.last().unwrap_or(&0) - fine.rows.first().unwrap_or(&0);
                let wanted = f64::from(share) * f64::from(clustered);
                let mut keys = 0.0;
                self.keep_ranked(|_, cluster| {
                    let more = keys < wanted;
                    keys += f64::from(fine.count(cluster));
                    more
                });
            }
            Keep::Coverage(coverage) => {
                let mut covered = self.known_share[..group].to_vec();
                let wanted = f64::from(coverage);
                self.keep_ranked(|this, cluster| {
                    let more = covered.iter().any(|&covered| covered < wanted);
                    for (head, covered) in covered.iter_mut().enumerate() {
                        *covered += this.mass(fine, head, cluster);
                    }
                    more
                });
            }
        }
        self.kept.sort_unstable();
        let keys = self
            .kept
            .iter()
            .map(|&cluster| fine.count(cluster as usize) as usize);
        let covered = (0..group).map(|head| {
            let masses = self.kept.iter().map(|&c| self.mass(fine, head, c as usize));
            (self.known_share[head] + masses.sum::<f64>()).min(1.0)
        });
        Kept {
            keys: keys.sum(),
            scored: self.runs.iter().map(Range::len).sum(),
            coverage: covered.sum::<f64>() / group as f64,
        }
    }

    /// Keeps clusters by descending estimate, the first of equals, for as long as `wants` says so.
    fn keep_ranked(&mut self, mut wants: impl FnMut(&Self, usize) -> bool) {
        let mut order = std::mem::take(&mut self.order);
        order.clear();
        order.extend(
            self.runs
                .iter()
                .flat_map(|run| run.start as u32..run.end as u32),
        );
        let estimate = |cluster: u32| self.estimates[cluster as usize];
        order.sort_unstable_by(|&a, &b| estimate(b).total_cmp(&estimate(a)).then(a.cmp(&b)));
        let mut kept = std::mem::take(&mut self.kept);
        kept.extend(
            order
                .iter()
                .take_while(|&&cluster| wants(self, cluster as usize)),
        );
        (self.order, self.kept) = (order, kept);
    }

    /// Rows `first..` of the block, head by head, into the panel.
    fn load_panel(&mut self, block: &Block<'_>, first: usize, profile: &[f32], rule: &LevelRule) {
        self.panel.queries.fill(Lanes::ZERO);
        self.panel.squares.fill(Lanes::ZERO);
        self.panel.bend = Lanes::ZERO;
        for (lane, head) in lanes(block, first) {
            let token = block.first_row + (first + lane) % block.rows;
            let q_head = block.kv_head * block.group + head;
            read(block.q, (block.batch, q_head, token), &mut self.row);
            let mut bend = 0.0;
            for (d, &x) in self.row.iter().enumerate() {
                let x = f64::from(x) * rule.scale_log2;
                self.panel.queries[d].0[lane] = x as f32;
                // exp(½ x² σ²) of natural x is 2^(½ ln 2 · x² σ²) of log2 x.
                let square = 0.5 * std::f64::consts::LN_2 * x * x;
                self.panel.squares[d].0[lane] = square as f32;
                bend += match rule.score {
                    Score::Mean => 0.0,
                    Score::SecondOrder => square * f64::from(profile[d]),
                    Score::Isotropic => square,
                };
            }
            self.panel.bend.0[lane] = bend as f32;
        }
    }
}

/// What does not change between the panels and levels of a look-up.
pub(super) struct LevelRule {
    score: Score,
    denominator: Denominator,
    use_variances: bool,
    scale_log2: f64,
    set: InstructionSet,
}

impl LevelRule {
    pub(super) fn new(
        index: &Index,
        rule: &Centroids,
        scale_log2: f64,
        set: InstructionSet,
    ) -> Self {
        LevelRule {
            score: rule.score,
            denominator: rule.denominator,
            use_variances: rule.uses_variances(index),
            scale_log2,
            set,
        }
    }

    fn scores(&self, panel: &Panel, level: &Level, clusters: Range<usize>, scores: &mut [Lanes]) {
        self.set.run(ScoreClusters {
            panel,
            level,
            clusters,
            use_variances: self.use_variances,
            scores,
        });
    }

    fn sum(&self, scores: &[Lanes], log2_counts: &[f32], sums: &mut (Lanes, Lanes)) {
        self.set.run(SumWeights {
            scores,
            log2_counts,
            max: &mut sums.0,
            sum: &mut sums.1,
        });
    }

    /// log2 of what each lane's query is known to sum up to.
    fn known(&self, block: &Block<'_>, first: usize) -> Lanes {
        let mut known = Lanes::NEG_INFINITY;
        if self.denominator == Denominator::Everything {
            for (lane, _) in lanes(block, first) {
                let lse = f64::from(block.known[first + lane]);
                known.0[lane] = (lse * std::f64::consts::LOG2_E) as f32;
            }
        }
        known
    }
}

/// Lanes of the panel that begins at packed row `first`, each with its query head within the group.
fn lanes(block: &Block<'_>, first: usize) -> impl Iterator<Item = (usize, usize)> + use<> {
    let (rows, all) = (block.rows, block.group * block.rows);
    (0..PANEL.min(all - first)).map(move |lane| (lane, (first + lane) / rows))
}

/// log2 of each lane's total.
fn total((max, sum): &(Lanes, Lanes), known: &Lanes) -> Lanes {
    Lanes(std::array::from_fn(|lane| {
        let (max, sum, known) = (max.0[lane], sum.0[lane], known.0[lane]);
        let reference = max.max(known);
        if reference == f32::NEG_INFINITY {
            return 0.0;
        }
        let sum = f64::from(sum) * f64::from(max - reference).exp2();
        let sum = sum + f64::from(known - reference).exp2();
        (f64::from(reference) + sum.log2()) as f32
    }))
}

/// Adds the lanes of each head to its shares [group, clusters], as a mean over the block's queries; `scores` are those of `run`.
fn add_shares(
    block: &Block<'_>,
    first: usize,
    scores: &[Lanes],
    shares: &mut [f32],
    run: Range<usize>,
) {
    let clusters = shares.len() / block.group;
    let end = PANEL.min(block.group * block.rows - first);
    let mut lane = 0;
    while lane < end {
        let head = (first + lane) / block.rows;
        let last = end.min((head + 1) * block.rows - first);
        let part = 1.0 / block.rows as f32;
        let shares = &mut shares[head * clusters..][run.clone()];
        for (share, lanes) in shares.iter_mut().zip(scores) {
            *share += lanes.0[lane..last].iter().sum::<f32>() * part;
        }
        lane = last;
    }
}

/// The largest share over the heads of the group, of each cluster.
fn largest(shares: &[f32], block: &Block<'_>, clusters: usize, estimates: &mut [f32]) {
    let estimates = &mut estimates[..clusters];
    estimates.fill(0.0);
    for shares in shares.chunks_exact(clusters.max(1)).take(block.group) {
        for (estimate, &share) in estimates.iter_mut().zip(shares) {
            *estimate = estimate.max(share);
        }
    }
}
