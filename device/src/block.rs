//! How tokens are grouped.

/// Tokens of a query block and of a key block.
pub const BLOCK: u32 = 128;

/// Query blocks of a segment, the unit of the budget of key blocks.
pub const SEGMENT_BLOCKS: u32 = 64;
