//! Which positions of a context stay outside of clusters.

use super::options::IndexOptions;

/// Which positions of a context of some length are clustered; the others stay outside.
#[derive(Clone, Copy)]
pub(super) struct Division {
    pub(super) sinks: usize,
    pub(super) window_start: usize,
    pub(super) len: usize,
}

impl Division {
    /// Of a context of `len`.
    pub(super) fn new(options: &IndexOptions, len: usize) -> Self {
        let sinks = options.sinks.min(len);
        Division {
            sinks,
            window_start: len.saturating_sub(options.window).max(sinks),
            len,
        }
    }

    /// Positions outside.
    pub(super) fn outside(&self) -> usize {
        self.sinks + self.len - self.window_start
    }

    /// Positions outside, ascending: the first rows of every head.
    pub(super) fn outside_positions(&self) -> impl Iterator<Item = usize> + Clone + use<> {
        (0..self.sinks).chain(self.window_start..self.len)
    }

    /// Row of a position outside.
    pub(super) fn row(&self, position: usize) -> usize {
        if position < self.sinks {
            position
        } else {
            self.sinks + position - self.window_start
        }
    }
}
