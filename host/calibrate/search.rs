//! The search: each head alone, then all of them together.

use super::divergence::mean_divergence;
use super::memo::{Memo, MemoError};
use super::table::{HeadTable, Measured};
use super::{Engine, HeadErrors, Run};
use crate::error::Error;
use crate::head_policy::HeadPolicy;

/// A calibration that cannot go on. What was measured is in the memo's file.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum CalibrateError<E> {
    /// The engine failed.
    #[error("{0}")]
    Engine(E),
    /// The memo's file.
    #[error(transparent)]
    Memo(#[from] MemoError),
    /// A candidate is out of range.
    #[error("candidate {index}: {error}")]
    Candidate {
        /// Its place in the list.
        index: usize,
        /// What is wrong with it.
        error: Error,
    },
    /// The engine has no layers, heads or texts, or gives answers of other sizes than before.
    #[error("the engine {0}")]
    Answers(&'static str),
    /// A price that is NaN, infinite or negative.
    #[error("the price is {price}; it must be a finite number from 0 on, in bits")]
    Price {
        /// The given price.
        price: f64,
    },
}

/// What a search does, for a progress bar.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Step {
    /// Candidates measured in single heads, or in all heads of a layer.
    Alone {
        /// So many.
        done: usize,
        /// Of so many.
        total: usize,
    },
    /// Heads measured once each, to turn errors into bits.
    Fit {
        /// So many.
        done: usize,
        /// Of so many.
        total: usize,
    },
    /// Trials of whole profiles.
    Descent {
        /// So many.
        trials: usize,
        /// At most.
        most: usize,
        /// The best profile so far.
        best: Measured,
    },
}

/// What a search found.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Found {
    /// By layer and head.
    pub heads: Vec<Vec<HeadPolicy>>,
    /// Of the whole model, on the texts of the calibration.
    pub measured: Measured,
    /// The same with each head as [`HeadTable::choose`] has it at the price.
    pub before: Measured,
    /// Profiles that were tried.
    pub trials: usize,
    /// Whether no single step lowers divergence + price · Σ cost any more; else the trials were used up.
    pub is_settled: bool,
}

/// A search over candidates. [The module](super) says what it does.
pub struct Search<'a> {
    candidates: Vec<HeadPolicy>,
    memo: Memo,
    watch: Box<dyn FnMut(Step) + 'a>,
    /// Of each text with dense attention, once it is asked for.
    dense: Vec<Option<Run>>,
}

impl<'a> Search<'a> {
    /// A search over these candidates and dense attention, for every head.
    pub fn new(candidates: impl IntoIterator<Item = HeadPolicy>, memo: Memo) -> Self {
        let mut all = vec![HeadPolicy::Dense];
        for candidate in candidates {
            if !all.contains(&candidate) {
                all.push(candidate);
            }
        }
        Search {
            candidates: all,
            memo,
            watch: Box::new(|_| {}),
            dense: Vec::new(),
        }
    }

    /// The same, watched.
    pub fn watched(self, watch: impl FnMut(Step) + 'a) -> Self {
        Search {
            watch: Box::new(watch),
            ..self
        }
    }

    fn begin<E>(&mut self, sizes: [usize; 3]) -> Result<(), CalibrateError<E>> {
        if sizes.contains(&0) {
            return Err(CalibrateError::Answers("has no layers, heads or texts"));
        }
        for (index, candidate) in self.candidates.iter().enumerate() {
            let named = |error| CalibrateError::Candidate { index, error };
            candidate.validate().map_err(named)?;
        }
        // Debug text has every field, and f32s by their shortest digits.
        let candidates = format!("{:?}", self.candidates);
        Ok(self.memo.of_candidates(&candidates)?)
    }

    /// Each head alone by the engine's [`HeadErrors`]: needs no run of the whole model. The divergences are errors, which
    /// [`Search::fit_heads`] turns into bits.
    ///
    /// # Errors
    /// Any [`CalibrateError`].
    pub fn heads_by_error<E: HeadErrors>(
        &mut self,
        engine: &mut E,
    ) -> Result<HeadTable, CalibrateError<E::Error>> {
        let (layers, q_heads, texts) = (engine.layers(), engine.q_heads(), engine.texts());
        self.begin([layers, q_heads, texts])?;
        let total = texts * layers * (self.candidates.len() - 1);
        let mut done = 0;
        let mut of_texts = vec![vec![vec![Vec::new(); self.candidates.len()]; q_heads]; layers];
        for text in 0..texts {
            for (layer, of_layer) in of_texts.iter_mut().enumerate() {
                for candidate in 1..self.candidates.len() {
                    let key = |head: usize| format!("error {text} {layer} {head} {candidate}");
                    let known: Option<Vec<Measured>> =
                        (0..q_heads).map(|head| self.memo.get(&key(head))).collect();
                    let measured = match known {
                        Some(known) => known,
                        None => {
                            let policy = &self.candidates[candidate];
                            let measured = engine
                                .layer_errors(text, layer, policy)
                                .map_err(CalibrateError::Engine)?;
                            if measured.len() != q_heads {
                                let why = "gave errors of another number of heads";
                                return Err(CalibrateError::Answers(why));
                            }
                            for (head, &one) in measured.iter().enumerate() {
                                self.memo.insert(key(head), one)?;
                            }
                            measured
                        }
                    };
                    for (of_head, one) in of_layer.iter_mut().zip(measured) {
                        of_head[candidate].push(one);
                    }
                    done += 1;
                    (self.watch)(Step::Alone { done, total });
                }
            }
        }
        self.memo.write()?;
        Ok(self.table(of_texts))
    }

    /// Each head alone, all others dense, by the divergence of the whole model: layers · heads · candidates runs a text.
    ///
    /// # Errors
    /// Any [`CalibrateError`].
    pub fn heads_by_divergence<E: Engine>(
        &mut self,
        engine: &mut E,
    ) -> Result<HeadTable, CalibrateError<E::Error>> {
        let (layers, q_heads, texts) = (engine.layers(), engine.q_heads(), engine.texts());
        self.begin([layers, q_heads, texts])?;
        let total = texts * layers * q_heads * (self.candidates.len() - 1);
        let mut done = 0;
        let mut of_texts = vec![vec![vec![Vec::new(); self.candidates.len()]; q_heads]; layers];
        let candidates = self.candidates.clone();
        let mut heads = vec![vec![HeadPolicy::Dense; q_heads]; layers];
        engine.adopt(&heads);
        for text in 0..texts {
            for layer in 0..layers {
                for head in 0..q_heads {
                    for (candidate, policy) in candidates.iter().enumerate().skip(1) {
                        heads[layer][head] = *policy;
                        let key = format!("alone {text} {layer} {head} {candidate}");
                        let mut measured = self.measure(engine, &heads, text, key)?;
                        // The head's own cost: the model's is a mean in which all others are 1.
                        let count = (layers * q_heads) as f64;
                        measured.cost = measured.cost * count - (count - 1.0);
                        of_texts[layer][head][candidate].push(measured);
                        done += 1;
                        (self.watch)(Step::Alone { done, total });
                    }
                    heads[layer][head] = HeadPolicy::Dense;
                }
            }
        }
        self.memo.write()?;
        Ok(self.table(of_texts))
    }

    /// Turns the errors of [`Search::heads_by_error`] into bits, by a factor for each head: one run a text in which the head has a
    /// middling candidate and all others are dense gives its divergence, and its error is known.
    ///
    /// # Errors
    /// Any [`CalibrateError`].
    pub fn fit_heads<E: Engine>(
        &mut self,
        engine: &mut E,
        table: &HeadTable,
    ) -> Result<HeadTable, CalibrateError<E::Error>> {
        let (layers, q_heads) = (engine.layers(), engine.q_heads());
        let mut heads = vec![vec![HeadPolicy::Dense; q_heads]; layers];
        engine.adopt(&heads);
        let mut factors = vec![vec![None; q_heads]; layers];
        let total = layers * q_heads;
        for head in 0..total {
            // From the last layer on, whose runs are short where an engine keeps what goes before.
            let (layer, head) = (layers - 1 - head / q_heads, head % q_heads);
            let candidate = table.middling(layer, head);
            heads[layer][head] = self.candidates[candidate];
            let named = format!("fit {layer} {head} {candidate}");
            let measured = self.measure_all(engine, &heads, &named)?;
            heads[layer][head] = HeadPolicy::Dense;
            let error = table.measured[layer][head][candidate].divergence;
            factors[layer][head] = (error > 0.0).then(|| measured.divergence / error);
            let done = (layers - 1 - layer) * q_heads + head + 1;
            self.tell(Step::Fit { done, total });
        }
        let known: Vec<f64> = factors.iter().flatten().copied().flatten().collect();
        let mean = known.iter().sum::<f64>() / known.len().max(1) as f64;
        let mut table = table.clone();
        let rows = table.measured.iter_mut().flatten();
        for (row, factor) in rows.zip(factors.into_iter().flatten()) {
            // A head whose middling candidate makes no error is scaled as a mean head.
            let factor = factor.unwrap_or(mean);
            row.iter_mut().for_each(|one| one.divergence *= factor);
        }
        self.memo.write()?;
        Ok(table)
    }

    fn table(&self, of_texts: Vec<Vec<Vec<Vec<Measured>>>>) -> HeadTable {
        let of_head = |candidates: Vec<Vec<Measured>>| {
            let candidates = candidates.into_iter().map(|texts| match &*texts {
                [] => Measured::new(0.0, 1.0),
                texts => Measured::mean(texts),
            });
            candidates.collect()
        };
        let of_layer = |heads: Vec<Vec<Vec<Measured>>>| heads.into_iter().map(of_head).collect();
        HeadTable {
            candidates: self.candidates.clone(),
            measured: of_texts.into_iter().map(of_layer).collect(),
        }
    }

    /// Mean over all texts.
    pub(super) fn measure_all<E: Engine>(
        &mut self,
        engine: &mut E,
        heads: &[Vec<HeadPolicy>],
        named: &str,
    ) -> Result<Measured, CalibrateError<E::Error>> {
        let of_texts = (0..engine.texts())
            .map(|text| self.measure(engine, heads, text, format!("{named} text {text}")))
            .collect::<Result<Vec<_>, _>>()?;
        Ok(Measured::mean(&of_texts))
    }

    fn measure<E: Engine>(
        &mut self,
        engine: &mut E,
        heads: &[Vec<HeadPolicy>],
        text: usize,
        key: String,
    ) -> Result<Measured, CalibrateError<E::Error>> {
        if let Some(known) = self.memo.get(&key) {
            return Ok(known);
        }
        self.dense.resize(engine.texts(), None);
        if self.dense[text].is_none() {
            let all = vec![vec![HeadPolicy::Dense; engine.q_heads()]; engine.layers()];
            let run = engine.run(&all, text).map_err(CalibrateError::Engine)?;
            self.dense[text] = Some(run);
        }
        let run = engine.run(heads, text).map_err(CalibrateError::Engine)?;
        let dense = self.dense[text]
            .as_ref()
            .filter(|dense| dense.outcomes == run.outcomes);
        let divergence = dense.and_then(|dense| {
            mean_divergence(
                &dense.log_probabilities,
                &run.log_probabilities,
                run.outcomes,
            )
        });
        let divergence = divergence.ok_or(CalibrateError::Answers(
            "gave no probabilities, or those of other positions than with dense attention",
        ))?;
        let measured = Measured::new(divergence, run.cost);
        self.memo.insert(key, measured)?;
        Ok(measured)
    }

    /// Writes what the memo's file lacks.
    pub(super) fn flush(&mut self) -> Result<(), MemoError> {
        self.memo.write()
    }

    pub(super) fn tell(&mut self, step: Step) {
        (self.watch)(step);
    }
}
