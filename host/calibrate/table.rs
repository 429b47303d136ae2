//! What each candidate does to each head.

use crate::head_policy::HeadPolicy;

/// How far something takes the model from dense attention, and what it costs: means over the texts.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Measured {
    /// In bits, or in the unit of [`HeadErrors`](super::HeadErrors).
    pub divergence: f64,
    /// Dense attention being 1.
    pub cost: f64,
}

impl Measured {
    /// Both.
    pub const fn new(divergence: f64, cost: f64) -> Self {
        Measured { divergence, cost }
    }

    pub(super) fn mean(of: &[Measured]) -> Self {
        let count = of.len() as f64;
        Measured {
            divergence: of.iter().map(|one| one.divergence).sum::<f64>() / count,
            cost: of.iter().map(|one| one.cost).sum::<f64>() / count,
        }
    }
}

/// Every head alone with every candidate, of which the first is dense.
#[derive(Clone, Debug, PartialEq)]
pub struct HeadTable {
    pub(super) candidates: Vec<HeadPolicy>,
    /// By layer, head and candidate.
    pub(super) measured: Vec<Vec<Vec<Measured>>>,
}

impl HeadTable {
    /// The candidates, dense first.
    pub fn candidates(&self) -> &[HeadPolicy] {
        &self.candidates
    }

    /// Each candidate's divergence and cost in one head.
    ///
    /// # Panics
    /// Where there is no such head.
    pub fn head(&self, layer: usize, head: usize) -> &[Measured] {
        &self.measured[layer][head]
    }

    /// For each head the candidate with the least divergence + price · cost, as if divergences added up over heads.
    pub fn choose(&self, price: f64) -> Vec<Vec<HeadPolicy>> {
        self.policies(&self.chosen(price))
    }

    /// Divergence and cost of the whole model with [`HeadTable::choose`]'s heads, as if divergences added up.
    pub fn estimate(&self, price: f64) -> Measured {
        let chosen = self.chosen(price);
        let heads = self.measured.iter().flatten().zip(chosen.iter().flatten());
        let (mut sum, mut count) = (Measured::new(0.0, 0.0), 0.0);
        for (measured, &candidate) in heads {
            sum.divergence += measured[candidate].divergence;
            sum.cost += measured[candidate].cost;
            count += 1.0;
        }
        Measured::new(sum.divergence, sum.cost / count)
    }

    /// The same as indices of candidates.
    pub(super) fn chosen(&self, price: f64) -> Vec<Vec<usize>> {
        let of_head = |measured: &Vec<Measured>| {
            let objective = |one: &Measured| one.divergence + price * one.cost;
            let mut best = 0;
            for (candidate, one) in measured.iter().enumerate() {
                // NaN is never better.
                if objective(one) < objective(&measured[best]) {
                    best = candidate;
                }
            }
            best
        };
        let of_layer = |layer: &Vec<Vec<Measured>>| layer.iter().map(of_head).collect();
        self.measured.iter().map(of_layer).collect()
    }

    pub(super) fn policies(&self, chosen: &[Vec<usize>]) -> Vec<Vec<HeadPolicy>> {
        let of_layer = |layer: &Vec<usize>| layer.iter().map(|&at| self.candidates[at]).collect();
        chosen.iter().map(of_layer).collect()
    }

    /// The candidates that no other one beats in both, from the cheapest to the dearest, for one head.
    pub(super) fn ladder(&self, layer: usize, head: usize) -> Vec<usize> {
        let measured = &self.measured[layer][head];
        let mut by_cost: Vec<usize> = (0..measured.len()).collect();
        by_cost.sort_by(|&a, &b| {
            let (a, b) = (&measured[a], &measured[b]);
            a.cost
                .total_cmp(&b.cost)
                .then(a.divergence.total_cmp(&b.divergence))
        });
        let mut least = f64::INFINITY;
        by_cost.retain(|&candidate| {
            let keeps = measured[candidate].divergence < least;
            least = least.min(measured[candidate].divergence);
            keeps
        });
        by_cost
    }

    /// The middle of a head's ladder.
    pub(super) fn middling(&self, layer: usize, head: usize) -> usize {
        let ladder = self.ladder(layer, head);
        ladder.get(ladder.len() / 2).copied().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{Policy, Window};

    fn table() -> HeadTable {
        let local = HeadPolicy::Local {
            window: Window::Tokens(128),
            sinks: 16,
        };
        let rows = HeadPolicy::Selected(Policy::default());
        let of = |rows: &[(f64, f64)]| -> Vec<Measured> {
            rows.iter().map(|&(d, c)| Measured::new(d, c)).collect()
        };
        HeadTable {
            candidates: vec![HeadPolicy::Dense, local, rows, rows],
            measured: vec![vec![
                of(&[(0.0, 1.0), (0.001, 0.1), (0.002, 0.2), (0.0005, 0.3)]),
                of(&[(0.0, 1.0), (0.5, 0.1), (0.02, 0.2), (f64::NAN, 0.05)]),
            ]],
        }
    }

    #[test]
    fn a_choice_follows_the_price() {
        let table = table();
        assert_eq!(table.chosen(0.5), [[1, 2]]);
        assert_eq!(table.chosen(0.0), [[0, 0]]);
        assert_eq!(table.chosen(0.002), [[3, 0]]);
        assert_eq!(table.chosen(1e9), [[1, 1]]);
        assert_eq!(table.estimate(0.5).cost, (0.1 + 0.2) / 2.0);
    }

    #[test]
    fn a_ladder_has_only_what_nothing_beats() {
        assert_eq!(table().ladder(0, 0), [1, 3, 0]);
        assert_eq!(table().ladder(0, 1), [1, 2, 0]);
    }
}
