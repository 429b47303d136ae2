//! What selection finds of a head.

/// What selection found of one head, over all its units.
#[derive(Clone, Copy, Debug, bytemuck::Zeroable, bytemuck::Pod)]
#[repr(C)]
pub(super) struct HeadTotals {
    /// Sampled rows whose softmax is finite, each of mass [`MASS_ONE`](super::MASS_ONE).
    pub(super) rows: u64,
    /// Mass that the mask keeps of them.
    pub(super) kept: u64,
    /// Sampled rows whose softmax is not finite.
    pub(super) non_finite: u64,
    /// Row and coverage of the sampled row of which the mask keeps the least; infinite where that is not known.
    pub(super) least_row: u64,
    pub(super) least: f64,
    /// Coverage of the last row; NaN where that is not known.
    pub(super) last: f64,
}

impl HeadTotals {
    pub(super) const EMPTY: HeadTotals = HeadTotals {
        rows: 0,
        kept: 0,
        non_finite: 0,
        least_row: 0,
        least: f64::INFINITY,
        last: f64::NAN,
    };

    /// Counts a row's coverage; the order of the rows does not matter.
    pub(super) fn add_row(&mut self, row: usize, coverage: f64, is_last: bool) {
        if (coverage, row as u64) < (self.least, self.least_row) {
            (self.least, self.least_row) = (coverage, row as u64);
        }
        if is_last {
            self.last = coverage;
        }
    }
}

impl HeadTotals {
    /// Counts the rows of other totals.
    pub(super) fn add_rows(&mut self, other: &HeadTotals) {
        self.add_row(other.least_row as usize, other.least, false);
        if !other.last.is_nan() {
            self.last = other.last;
        }
    }
}
