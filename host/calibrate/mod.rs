//! Calibration: which policy each head of a model should have, found on texts like those that the model will read.
//!
//! A head's *cost* is the share of the causal area that it attends to and what its selection costs
//! ([`HeadPolicy::sampling_cost`]), dense attention being 1; a model's is the mean over its heads. A profile's *divergence* is the mean
//! Kullback-Leibler divergence of the model's predictions from those with dense attention, in bits. The search minimises divergence +
//! price · Σ cost over the heads, so that a price is what making one dense head free is worth; over a list of candidates for each head:
//!
//! 1. **Each head alone** ([`Search::heads_by_divergence`]): what every candidate costs and how far it takes the model from dense
//!    attention when all other heads are dense. Or the way that needs no run of the whole model ([`Search::heads_by_error`]): the error of
//!    the head's output through the layer's output projection, which [`Search::fit_heads`] turns into bits by one run a head.
//! 2. **Choice** ([`HeadTable::choose`]): for each head by itself, as if divergences added up. They do not, so the whole model is run with
//!    the choices at several prices.
//! 3. **Coordinate descent** ([`Search::descend`]): from the best of them, heads are made cheaper or dearer, one at a time, for as long as that lowers the
//!    same for the whole model.
//!
//! What the texts ask for is what the profile keeps: texts for models that answer questions hold questions. A profile keeps too little
//! of texts that are longer than those it was found on. An engine implements [`Engine`], [`HeadErrors`] or both. The result depends on
//! nothing but the engine's answers; those already in a [`Memo`] are not asked for again, so a search that was cut short goes on.
//!
//! ```
//! use sample_attention::calibrate::{Engine, Memo, Run, Search, default_candidates};
//! use sample_attention::profile::Profile;
//! use sample_attention::HeadPolicy;
//!
//! /// Stands for a model of one layer with two heads, of which the first must be dense.
//! struct Toy;
//! impl Engine for Toy {
//!     type Error = std::convert::Infallible;
//!     fn layers(&self) -> usize { 1 }
//!     fn q_heads(&self) -> usize { 2 }
//!     fn texts(&self) -> usize { 1 }
//!     fn run(&mut self, heads: &[Vec<HeadPolicy>], _text: usize) -> Result<Run, Self::Error> {
//!         let costs = heads[0].iter().map(|head| if *head == HeadPolicy::Dense { 1.0 } else { 0.2 });
//!         let p: f32 = if heads[0][0] == HeadPolicy::Dense { 0.9 } else { 0.5 };
//!         Ok(Run::new(vec![p.ln(), (1.0 - p).ln()], 2, costs.sum::<f64>() / 2.0))
//!     }
//! }
//!
//! let mut search = Search::new(default_candidates(), Memo::in_memory());
//! let table = search.heads_by_divergence(&mut Toy)?;
//! let found = search.descend(&mut Toy, &table, 0.05, 100)?;
//! assert_eq!(found.heads[0][0], HeadPolicy::Dense);
//! assert_ne!(found.heads[0][1], HeadPolicy::Dense);
//! let profile = Profile::new("toy", found.heads)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod candidates;
mod descent;
mod divergence;
mod memo;
mod search;
mod table;

pub use candidates::default_candidates;
pub use memo::{Memo, MemoError};
pub use search::{CalibrateError, Found, Search, Step};
pub use table::{HeadTable, Measured};

use crate::head_policy::HeadPolicy;

/// A model that can be run with any profile.
pub trait Engine {
    /// What can go wrong in a run.
    type Error;

    /// Layers of the model.
    fn layers(&self) -> usize;

    /// Query heads of each layer.
    fn q_heads(&self) -> usize;

    /// Texts to calibrate on.
    fn texts(&self) -> usize;

    /// Runs the model over text `text`, query head `h` of layer `l` treated as `heads[l][h]`. The same call gives the same answer.
    ///
    /// # Errors
    /// The engine's own; the search ends with it.
    fn run(&mut self, heads: &[Vec<HeadPolicy>], text: usize) -> Result<Run, Self::Error>;

    /// Says that the runs to come differ from `heads` in few heads, most of them in one: an engine may keep each layer's inputs for
    /// it, and run only the layers from the first one that differs.
    fn adopt(&mut self, heads: &[Vec<HeadPolicy>]) {
        let _ = heads;
    }
}

/// One run of a model.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Run {
    /// Natural logarithms of the probabilities of what comes next, [positions, outcomes]: of all positions or some of them, always
    /// the same of a text.
    pub log_probabilities: Vec<f32>,
    /// How many things may come next: the vocabulary.
    pub outcomes: usize,
    /// Mean over all heads of density and [`HeadPolicy::sampling_cost`].
    pub cost: f64,
}

impl Run {
    /// All of it.
    pub fn new(log_probabilities: Vec<f32>, outcomes: usize, cost: f64) -> Self {
        Run {
            log_probabilities,
            outcomes,
            cost,
        }
    }
}

/// A model whose layers can be looked at one by one, with dense attention before them.
pub trait HeadErrors {
    /// What can go wrong.
    type Error;

    /// Layers of the model.
    fn layers(&self) -> usize;

    /// Query heads of each layer.
    fn q_heads(&self) -> usize;

    /// Texts to calibrate on.
    fn texts(&self) -> usize;

    /// For every query head of `layer` on text `text`, treated by `policy`: its cost, and as its divergence the mean over rows of
    /// ‖(o − dense o) · w_o‖², with the head's columns of the output projection, over the mean square of what the layer adds to.
    /// Asked for text by text, layer by layer, upwards.
    ///
    /// # Errors
    /// The engine's own; the search ends with it.
    fn layer_errors(
        &mut self,
        text: usize,
        layer: usize,
        policy: &HeadPolicy,
    ) -> Result<Vec<Measured>, Self::Error>;
}
