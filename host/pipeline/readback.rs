//! What a run left in its workspace, read by the host.
//!
//! Every executor brings a closure that copies bytes of the workspace, from an offset on, into a slice, once what was launched
//! has ended.

use bytemuck::Pod;
use sample_attention_device::geometry::Units;
use sample_attention_device::reduction::MASS_ONE;
use sample_attention_device::tile::scale;
use sample_attention_device::top_k;

use super::{Call, GpuPlan, Launch, Lists, Region};
use crate::cpu::{SampledRow, UnitMass};
use crate::error::{Error, Result};
use crate::policy::Budget;
use crate::report::{Report, SelectedHead, Stage, StageTimes};
use crate::selection::Selection;

/// What a run found.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Outcome {
    /// What each head kept.
    pub report: Report,
    /// What was selected; `None` where the plan runs dense.
    pub selection: Option<Selection>,
}

/// Told of every launch that ended, and of what its stage left in memory.
pub trait Watch {
    /// `done` of `total` launches have ended.
    fn launched(&mut self, _stage: Stage, _done: usize, _total: usize) {}

    /// A wave's rows were sampled.
    fn sampled(&mut self, _rows: Vec<SampledRow>) {}

    /// A unit's masses were added up.
    fn reduced(&mut self, _unit: UnitMass<'_>) {}
}

/// Watches nothing.
impl Watch for () {}

/// A whole region, on the host.
fn region<T: Pod, E>(
    region: &Region<T>,
    read: &mut impl FnMut(u64, &mut [u8]) -> Result<(), E>,
) -> Result<Vec<T>, E> {
    let mut elements = vec![T::zeroed(); region.len as usize];
    if !elements.is_empty() {
        read(region.offset_bytes, bytemuck::cast_slice_mut(&mut elements))?;
    }
    Ok(elements)
}

impl GpuPlan {
    /// Report and selection of a run whose launches have all ended. `times` go into the report as they are.
    ///
    /// # Errors
    /// Those of `read`, and [`Error::SelectionIndex`] where the workspace does not hold what a run of this plan leaves.
    pub fn outcome<E: From<Error>>(
        &self,
        times: StageTimes,
        mut read: impl FnMut(u64, &mut [u8]) -> Result<(), E>,
    ) -> Result<Outcome, E> {
        let Some(units) = self.units() else {
            return Ok(Outcome {
                report: Report::new(self.plan(), times, |_| None),
                selection: None,
            });
        };
        let regions = self.workspace();
        let lists = Lists {
            lists: region(&regions.lists, &mut read)?,
            list_counts: region(&regions.list_counts, &mut read)?,
            stripes: region(&regions.stripes, &mut read)?,
            stripe_counts: region(&regions.stripe_counts, &mut read)?,
            dense: region(&regions.dense, &mut read)?,
        };
        let kept = region(&regions.kept, &mut read)?;
        let selection = lists.selection(self.problem(), units.sinks as usize)?;
        let q_heads = self.problem().q_heads;
        let report = Report::new(self.plan(), times, |head| {
            let per_head = units.per_head();
            let of_head = head as u32 * per_head..(head as u32 + 1) * per_head;
            let rows: u64 = of_head
                .clone()
                .map(|unit| u64::from(units.rows(units.unit(unit)).len()))
                .sum();
            let kept: u64 = of_head.map(|unit| kept[unit as usize]).sum();
            Some(SelectedHead {
                mask: selection.head(head / q_heads, head % q_heads),
                sampled_coverage: (rows > 0).then(|| kept as f64 / (rows as f64 * MASS_ONE as f64)),
                non_finite_rows: None,
                least_covered_row: None,
                last_row_coverage: None,
            })
        });
        Ok(Outcome {
            report,
            selection: Some(selection),
        })
    }

    /// Tells what a launch left, before the next wave overwrites it: the rows that it sampled, or the masses that it added up.
    ///
    /// # Errors
    /// Those of `read`.
    pub fn tell<E>(
        &self,
        launch: &Launch,
        read: impl FnMut(u64, &mut [u8]) -> Result<(), E>,
        watch: &mut (impl Watch + ?Sized),
    ) -> Result<(), E> {
        match &launch.call {
            Call::Sampling(_, params) => self.tell_sampled(&params.units, read, watch),
            Call::SamplingHopper(_, params) => {
                self.tell_sampled(&params.sampling.units, read, watch)
            }
            Call::ReductionBlocks(_, params) => self.tell_reduced(&params.units, read, watch),
            Call::ReductionKeys(_, params) => self.tell_reduced(&params.units, read, watch),
            _ => Ok(()),
        }
    }

    fn tell_sampled<E>(
        &self,
        units: &Units,
        mut read: impl FnMut(u64, &mut [u8]) -> Result<(), E>,
        watch: &mut (impl Watch + ?Sized),
    ) -> Result<(), E> {
        let sizes = units.sizes;
        let row_lse = region(&self.workspace().row_lse, &mut read)?;
        let of_unit = row_lse.chunks(2 * units.row_capacity as usize);
        // References are products with the sign of the scale; one of 0 has the magnitude 1.
        let scale = f64::from(scale::magnitude(self.scale_log2()));
        let rows = (0..units.count)
            .zip(of_unit)
            .flat_map(|(slot, row_lse)| {
                let unit = units.unit(units.first + slot);
                let rows = units.rows(unit);
                let of_rows = row_lse
                    .chunks(2)
                    .map(|parts| [parts[0], parts[1]].map(f64::from));
                (0..rows.len())
                    .zip(of_rows)
                    .map(move |(rank, [reference, log2_sum])| {
                        let row = rows.position(rank) + sizes.q_len - sizes.k_len;
                        SampledRow {
                            batch: (unit.head / sizes.q_heads) as usize,
                            q_head: (unit.head % sizes.q_heads) as usize,
                            row: row as usize,
                            lse: (reference * scale + log2_sum) * std::f64::consts::LN_2,
                        }
                    })
            })
            .collect();
        watch.sampled(rows);
        Ok(())
    }

    fn tell_reduced<E>(
        &self,
        units: &Units,
        mut read: impl FnMut(u64, &mut [u8]) -> Result<(), E>,
        watch: &mut (impl Watch + ?Sized),
    ) -> Result<(), E> {
        let Some(policy) = self.plan().policy() else {
            return Ok(());
        };
        let mass = region(&self.workspace().mass, &mut read)?;
        let covered = region(&self.workspace().covered, &mut read)?;
        let (candidates, candidates_per_row, tasks) = match policy.budget {
            Budget::Rows | Budget::Blocks => (
                units.pair_capacity(),
                units.sizes.key_blocks(),
                units.unit_blocks,
            ),
            Budget::Residual | Budget::Paper => (
                units.key_capacity(),
                units.key_capacity(),
                units.sizes.key_blocks(),
            ),
        };
        let of_units = mass
            .chunks(candidates as usize)
            .zip(covered.chunks(tasks as usize));
        for (slot, (mass, covered)) in (0..units.count).zip(of_units) {
            let unit = units.unit(units.first + slot);
            let rows = units.rows(unit).len();
            let covered = covered.iter().sum();
            let goal = top_k::goal(policy.coverage, rows);
            watch.reduced(UnitMass {
                batch: (unit.head / units.sizes.q_heads) as usize,
                q_head: (unit.head % units.sizes.q_heads) as usize,
                first_query_block: unit.first_block as usize,
                rows: rows as usize,
                covered,
                need: match policy.budget {
                    Budget::Paper => goal,
                    Budget::Rows | Budget::Blocks | Budget::Residual => {
                        goal.saturating_sub(covered)
                    }
                },
                candidates_per_row: candidates_per_row as usize,
                mass,
            });
        }
        Ok(())
    }
}
