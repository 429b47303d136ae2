//! What a run left in its workspace, read by the host.
//!
//! Every executor brings a closure that copies bytes of the workspace, from an offset on, into a slice, once what was launched
//! has ended.

use bytemuck::Pod;
use sample_attention_device::abi::{HeadKind, TileSlice};
use sample_attention_device::params::{BLOCK, SEGMENT_BLOCKS};
use sample_attention_device::reduction::MASS_ONE;
use sample_attention_device::reduction::blocks::ReductionBlocksParams;
use sample_attention_device::reduction::keys::{ReductionKeysParams, WholeHeads};
use sample_attention_device::sampling::SamplingParams;
use sample_attention_device::sampling::hopper::HopperParams as HopperSampling;
use sample_attention_device::tile::scale;
use sample_attention_device::top_k::{self, rows::SelectRowsParams};

use super::selecting::Selecting;
use super::{GpuPlan, Launch, Lists, Region};
use crate::error::{Error, Result};
use crate::report::{KeptKeys, Report, SelectedHead, Stage, StageTimes};
use crate::selection::Selection;
use crate::stage::{SampledRow, UnitMass};

/// What a run found.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Outcome {
    /// What each head kept.
    pub report: Report,
    /// What was selected; `None` where the plan runs dense, where lengths are device data, and where the lists of all query tiles are not in the workspace at once: see
    /// [`GpuPlan::with_whole_lists`].
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
        let Some(selecting) = self.selection().filter(|_| !self.is_ragged()) else {
            return Ok(Outcome {
                report: Report::new(self.problem(), self.path().of_heads(), times, |_| None),
                selection: None,
            });
        };
        let regions = self.workspace();
        let selection = if self.has_whole_lists() {
            let lists = Lists {
                lists: region(&regions.lists, &mut read)?,
                list_counts: region(&regions.list_counts, &mut read)?,
                stripes: region(&regions.stripes, &mut read)?,
                stripe_counts: region(&regions.stripe_counts, &mut read)?,
                dense: region(&regions.dense, &mut read)?,
            };
            let mut selection = lists.selection(self.problem(), selecting.sinks as usize)?;
            self.list_windows_without_rows(selecting, &mut selection)?;
            Some(selection)
        } else {
            None
        };
        let kept = region(&regions.kept, &mut read)?;
        let listed = region(&regions.listed, &mut read)?;
        let finite_rows = region(&regions.finite_rows, &mut read)?;
        let sampled_rows = self.sampled_rows().unwrap_or_default();
        let q_heads = self.problem().q_heads;
        let report = Report::new(self.problem(), self.path().of_heads(), times, |head| {
            let (batch, q_head) = (head / q_heads, head % q_heads);
            let tiles = self.tiles_of(batch as u32, q_head);
            let of_tiles = |all: &[u32]| all[tiles.clone()].iter().map(|&n| u64::from(n)).sum();
            let is_by_rows = selecting.heads.policies()[q_head].kind == HeadKind::Rows;
            let sampled: u64 = sampled_rows[q_head];
            let rows = if is_by_rows {
                of_tiles(&finite_rows)
            } else {
                sampled
            };
            let kept: u64 = kept[tiles.clone()].iter().sum();
            Some(SelectedHead {
                kept: match &selection {
                    Some(selection) => KeptKeys::Mask(selection.head(batch, q_head)),
                    None => self.counted(batch as u32, &listed[tiles.clone()]),
                },
                sampled_coverage: (rows > 0).then(|| kept as f64 / (rows as f64 * MASS_ONE as f64)),
                non_finite_rows: None,
                least_covered_row: None,
                last_row_coverage: None,
            })
        });
        Ok(Outcome { report, selection })
    }

    /// Query blocks before the first row have no lists: on every backend they keep their window.
    fn list_windows_without_rows(
        &self,
        selecting: &Selecting,
        selection: &mut Selection,
    ) -> Result<()> {
        let problem = self.problem();
        let dead = self.sequences().get(0).first_query_block();
        for (q_head, policy) in selecting.heads.policies().iter().enumerate() {
            for query_block in 0..dead {
                let first = match policy.kind {
                    HeadKind::Dense => 0,
                    _ => policy.first_window_block(query_block),
                };
                let window: Vec<usize> =
                    (first..=query_block).map(|block| block as usize).collect();
                for batch in 0..problem.batch {
                    selection.set_blocks(batch, q_head, query_block as usize, &window)?;
                }
            }
        }
        Ok(())
    }

    /// Where a head's query tiles lie in regions of all.
    fn tiles_of(&self, batch: u32, q_head: usize) -> std::ops::Range<usize> {
        let sequences = self.sequences();
        let sequence = sequences.get(batch);
        let first = q_head * sequences.query_tiles() as usize
            + sequences.first_query_tile(&sequence) as usize;
        first..first + sequence.query_tiles() as usize
    }

    /// Key blocks and density of a head, from the lengths of its lists. Sinks that no list names are not counted.
    fn counted(&self, batch: u32, listed: &[u32]) -> KeptKeys<'static> {
        let sequence = self.sequences().get(batch);
        let (mut kept, mut visible, mut blocks) = (0, 0, 0);
        for (place, &listed) in (0..).zip(listed) {
            let Some(tile) = sequence.query_tile(place) else {
                continue;
            };
            let Some(query_block) = tile.query_block else {
                continue;
            };
            let positions = (query_block * BLOCK).max(sequence.first_position().max(0) as u32)
                ..((query_block + 1) * BLOCK).min(sequence.k_len);
            let rows = u64::from(positions.end - positions.start);
            let diagonal: u64 = positions.map(|p| u64::from(p % BLOCK + 1)).sum();
            kept += diagonal + rows * u64::from((listed.max(1) - 1) * BLOCK);
            visible += diagonal + rows * u64::from(query_block * BLOCK);
            blocks += listed as usize;
        }
        KeptKeys::Counted {
            blocks,
            density: if visible == 0 {
                1.0
            } else {
                kept as f64 / visible as f64
            },
        }
    }

    /// Tells what a launch left, before the next slice or pass overwrites it: the rows that were sampled, or the masses that were added up.
    ///
    /// # Errors
    /// Those of `read`.
    pub fn tell<E>(
        &self,
        launch: &Launch,
        mut read: impl FnMut(u64, &mut [u8]) -> Result<(), E>,
        watch: &mut (impl Watch + ?Sized),
    ) -> Result<(), E> {
        let Some(selecting) = self.selection().filter(|_| !self.is_ragged()) else {
            return Ok(());
        };
        let call = &launch.call;
        let sampling = call.params_of::<SamplingParams>();
        let sampling = sampling.or(call.params_of::<HopperSampling>().map(|p| &p.sampling));
        if let Some(params) = sampling.filter(|params| !params.row_lse.is_null()) {
            self.tell_sampled(selecting, &params.slice, &mut read, watch)
        } else if let Some(params) = call.params_of::<SelectRowsParams>() {
            self.tell_sampled(selecting, &params.slice, &mut read, watch)
        } else if let Some(params) = call.params_of::<ReductionBlocksParams>() {
            self.tell_sampled(selecting, &params.slice, &mut read, watch)?;
            self.tell_segments(selecting, &params.slice, &mut read, watch)
        } else if let Some(params) = call.params_of::<ReductionKeysParams>() {
            self.tell_units(selecting, &params.units, &mut read, watch)
        } else {
            Ok(())
        }
    }

    fn tell_sampled<E>(
        &self,
        selecting: &Selecting,
        slice: &TileSlice,
        read: &mut impl FnMut(u64, &mut [u8]) -> Result<(), E>,
        watch: &mut (impl Watch + ?Sized),
    ) -> Result<(), E> {
        let row_lse = region(&self.workspace().row_lse, read)?;
        // References are products with the sign of the scale; one of 0 has the magnitude 1.
        let scale = f64::from(scale::magnitude(self.scale_log2()));
        let mut told = Vec::new();
        for slot in slice.first_slot..slice.first_slot + slice.slots {
            let q_head = selecting.heads.head_of(slot);
            let policy = selecting.heads.policy(q_head);
            for number in slice.first_tile..slice.first_tile + slice.tiles {
                let Some(tile) = slice.sequences.query_tile(number) else {
                    continue;
                };
                let Some(query_block) = tile.query_block else {
                    continue;
                };
                let sequence = tile.sequence;
                let from = query_block * BLOCK;
                let rows =
                    policy
                        .in_segment_of(query_block)
                        .sampled_rows(&sequence, from, from + BLOCK);
                let first = slice.first_row(slot, number);
                for rank in 0..rows.len() {
                    let at = 2 * (first + rank) as usize;
                    let [reference, log2_sum] = [row_lse[at], row_lse[at + 1]].map(f64::from);
                    told.push(SampledRow {
                        batch: sequence.index as usize,
                        q_head: q_head as usize,
                        row: (rows.position(rank) + sequence.q_len - sequence.k_len) as usize,
                        lse: (reference * scale + log2_sum) * std::f64::consts::LN_2,
                    });
                }
            }
        }
        watch.sampled(told);
        Ok(())
    }

    /// The masses of the segments of a slice, by whole segments: query blocks without rows have none.
    fn tell_segments<E>(
        &self,
        selecting: &Selecting,
        slice: &TileSlice,
        read: &mut impl FnMut(u64, &mut [u8]) -> Result<(), E>,
        watch: &mut (impl Watch + ?Sized),
    ) -> Result<(), E> {
        let mass = region(&self.workspace().mass, read)?;
        let covered = region(&self.workspace().covered, read)?;
        let key_blocks = slice.sequences.max_key_blocks() as usize;
        let capacity = slice.block_capacity as usize;
        let unit_blocks = SEGMENT_BLOCKS.min(key_blocks as u32);
        for batch in 0..slice.sequences.count {
            let sequence = slice.sequences.get(batch);
            let first_tile = slice.sequences.first_query_tile(&sequence);
            for slot in 0..slice.slots {
                let q_head = selecting.heads.head_of(slot);
                let policy = selecting.heads.policy(q_head);
                if policy.kind != HeadKind::Blocks {
                    continue;
                }
                let mut first_block = 0;
                while first_block < sequence.key_blocks() {
                    let end_block = (first_block + unit_blocks).min(sequence.key_blocks());
                    let mut of_unit = vec![0; unit_blocks as usize * key_blocks];
                    let mut of_covered = 0;
                    let mut is_here = first_block < sequence.first_query_block()
                        && end_block <= sequence.first_query_block()
                        && slice.first_tile <= first_tile
                        && first_tile < slice.first_tile + slice.tiles;
                    for block in first_block.max(sequence.first_query_block())..end_block {
                        let tile = first_tile + sequence.place_of(block);
                        if !(slice.first_tile..slice.first_tile + slice.tiles).contains(&tile) {
                            continue;
                        }
                        is_here = true;
                        let place = slice.tile_row(slot, tile) as usize;
                        let row = (block - first_block) as usize * key_blocks;
                        let len = capacity.min(key_blocks);
                        of_unit[row..row + len]
                            .copy_from_slice(&mass[place * capacity..place * capacity + len]);
                        of_covered += covered[place];
                    }
                    if is_here {
                        let rows = policy.in_segment_of(first_block).sampled_rows(
                            &sequence,
                            first_block * BLOCK,
                            end_block * BLOCK,
                        );
                        let target_mass = top_k::target_mass(policy.coverage, rows.len());
                        watch.reduced(UnitMass {
                            batch: batch as usize,
                            q_head: q_head as usize,
                            first_query_block: first_block as usize,
                            rows: rows.len() as usize,
                            covered: of_covered,
                            need: target_mass.saturating_sub(of_covered),
                            candidates_per_row: key_blocks,
                            mass: &of_unit,
                        });
                    }
                    first_block = end_block;
                }
            }
        }
        Ok(())
    }

    fn tell_units<E>(
        &self,
        selecting: &Selecting,
        units: &WholeHeads,
        read: &mut impl FnMut(u64, &mut [u8]) -> Result<(), E>,
        watch: &mut (impl Watch + ?Sized),
    ) -> Result<(), E> {
        let mass = region(&self.workspace().mass, read)?;
        let covered = region(&self.workspace().covered, read)?;
        let candidates = units.key_capacity() as usize;
        let of_units = mass
            .chunks(candidates)
            .zip(covered.chunks(units.slice.block_capacity as usize));
        for (unit, (mass, covered)) in (0..units.units()).zip(of_units) {
            let (slot, sequence) = units.unit(unit);
            let q_head = selecting.heads.head_of(slot);
            let policy = selecting.heads.policy(q_head);
            let rows = policy.sampled_rows(&sequence, 0, sequence.k_len).len();
            let covered = covered.iter().sum();
            let target_mass = top_k::target_mass(policy.coverage, rows);
            watch.reduced(UnitMass {
                batch: sequence.index as usize,
                q_head: q_head as usize,
                first_query_block: 0,
                rows: rows as usize,
                covered,
                need: match policy.kind {
                    HeadKind::Paper => target_mass,
                    _ => target_mass.saturating_sub(covered),
                },
                candidates_per_row: candidates,
                mass,
            });
        }
        Ok(())
    }
}
