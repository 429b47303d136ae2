//! Coordinate descent over the heads of a whole model.

use super::Engine;
use super::search::{CalibrateError, Found, Search, Step};
use super::table::{HeadTable, Measured};

/// Prices that are tried on each side of the given one.
const MOST_DOUBLINGS: usize = 6;

/// Which way along a head's ladder.
#[derive(Clone, Copy)]
enum Way {
    Cheaper,
    Dearer,
}

/// A descent on its way.
struct Descent<'d, 'w, E> {
    search: &'d mut Search<'w>,
    engine: &'d mut E,
    table: &'d HeadTable,
    price: f64,
    most_trials: usize,
    /// Candidates of all heads, and what they measure together.
    chosen: Vec<Vec<usize>>,
    best: Measured,
    trials: usize,
}

impl Search<'_> {
    /// Starts from [`HeadTable::choose`] at the price, at half of it, a quarter and so on, or at twice the price and so on, whichever the
    /// whole model says is best, since divergences do not add up; then moves single heads along the candidates that the table calls worth their cost, cheaper or
    /// dearer, as long as that lowers the whole model's divergence + price · Σ cost, in at most `most_trials` trials of a run a text
    /// each. From the last layer to the first: what follows a changed layer is all that an engine need run again.
    ///
    /// # Errors
    /// Any [`CalibrateError`].
    pub fn descend<E: Engine>(
        &mut self,
        engine: &mut E,
        table: &HeadTable,
        price: f64,
        most_trials: usize,
    ) -> Result<Found, CalibrateError<E::Error>> {
        if !(price.is_finite() && price >= 0.0) {
            return Err(CalibrateError::Price { price });
        }
        let chosen = table.chosen(price);
        engine.adopt(&table.policies(&chosen));
        let before = measure(self, engine, table, &chosen)?;
        let mut descent = Descent {
            search: self,
            engine,
            table,
            price,
            most_trials,
            chosen,
            best: before,
            trials: 0,
        };
        descent.start()?;
        let is_settled = descent.run()?;
        let found = Found {
            heads: table.policies(&descent.chosen),
            measured: descent.best,
            before,
            trials: descent.trials,
            is_settled,
        };
        self.flush()?;
        Ok(found)
    }
}

/// The whole model with these candidates.
fn measure<E: Engine>(
    search: &mut Search<'_>,
    engine: &mut E,
    table: &HeadTable,
    chosen: &[Vec<usize>],
) -> Result<Measured, CalibrateError<E::Error>> {
    search.measure_all(engine, &table.policies(chosen), &format!("{chosen:?}"))
}

impl<E: Engine> Descent<'_, '_, E> {
    /// Replaces the choice by that at another price, if the whole model is better with it.
    fn start(&mut self) -> Result<(), CalibrateError<E::Error>> {
        for factor in [2.0, 0.5] {
            let (mut price, mut moved) = (self.price, false);
            let mut last = self.chosen.clone();
            for _ in 0..MOST_DOUBLINGS {
                price *= factor;
                let chosen = self.table.chosen(price);
                if chosen == last {
                    continue;
                }
                last.clone_from(&chosen);
                if self.trials >= self.most_trials || !self.attempt(chosen)? {
                    break;
                }
                moved = true;
            }
            if moved {
                break;
            }
        }
        Ok(())
    }

    /// Whether the whole model is better with other candidates, which it then has.
    fn attempt(&mut self, chosen: Vec<Vec<usize>>) -> Result<bool, CalibrateError<E::Error>> {
        let tried = measure(self.search, self.engine, self.table, &chosen)?;
        self.trials += 1;
        let heads = self.chosen.iter().map(Vec::len).sum::<usize>() as f64;
        let objective = |one: Measured| one.divergence + self.price * heads * one.cost;
        let is_better = objective(tried) < objective(self.best);
        if is_better {
            self.best = tried;
            self.chosen = chosen;
            self.engine.adopt(&self.table.policies(&self.chosen));
        }
        self.search.tell(Step::Descent {
            trials: self.trials,
            most: self.most_trials,
            best: self.best,
        });
        Ok(is_better)
    }

    /// Sweeps until no step helps, and whether that came before the trials were used up.
    fn run(&mut self) -> Result<bool, CalibrateError<E::Error>> {
        loop {
            let mut moved = false;
            for layer in (0..self.chosen.len()).rev() {
                for head in 0..self.chosen[layer].len() {
                    moved |= self.walk(layer, head, Way::Cheaper)?
                        || self.walk(layer, head, Way::Dearer)?;
                }
            }
            if self.trials >= self.most_trials {
                return Ok(false);
            }
            if !moved {
                return Ok(true);
            }
        }
    }

    /// Steps one way as long as that helps; whether it did.
    fn walk(
        &mut self,
        layer: usize,
        head: usize,
        way: Way,
    ) -> Result<bool, CalibrateError<E::Error>> {
        let ladder = self.table.ladder(layer, head);
        let mut moved = false;
        while self.trials < self.most_trials {
            let now = self.chosen[layer][head];
            // A choice is always on its ladder, but for ties.
            let Some(rung) = ladder.iter().position(|&candidate| candidate == now) else {
                break;
            };
            let next = match way {
                Way::Cheaper => rung.checked_sub(1),
                Way::Dearer => Some(rung + 1).filter(|&next| next < ladder.len()),
            };
            let Some(next) = next else { break };
            let mut chosen = self.chosen.clone();
            chosen[layer][head] = ladder[next];
            if !self.attempt(chosen)? {
                break;
            }
            moved = true;
        }
        Ok(moved)
    }
}
