//! How a CTA divides its panel and its tiles.

use crate::params::BLOCK;
use crate::tile::warpgroup::{GROUP_ROWS, TILE_ROWS};

/// Warpgroups that consume.
pub(super) const CONSUMERS: u32 = 4;
/// Rows of a consumer: those of one product.
pub(super) const GROUP: u32 = GROUP_ROWS;
/// Rows that share the tiles in shared memory.
pub(super) const PANEL: u32 = CONSUMERS * GROUP;
/// Rows of a warp.
pub(super) const WARP_ROWS: u32 = 16;
/// Keys of a tile. A whole key block, so that a tile's sums are a statistic.
pub(super) const TILE: u32 = BLOCK;
const _: () = assert!(TILE == TILE_ROWS);
