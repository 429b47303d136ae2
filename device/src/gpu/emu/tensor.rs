//! Tensor maps as the emulator encodes them, and the boxes that copies move through them.

use super::state::bulk::Patch;
use super::state::memory::{copy_in, copy_out};
use super::state::{At, Cta, FaultKind};
use crate::gpu::{Swizzle, TensorMap, TensorMapLayout};

/// Marks the emulator's own encoding, so that other bytes are not taken for a map.
const MAGIC: u64 = 0x5a4d_4150;

/// A tensor map for bulk tensor copies, as `cuTensorMapEncodeTiled` makes them for hardware.
///
/// # Errors
/// The rule of tensor maps that the layout breaks.
pub fn tensor_map(layout: &TensorMapLayout) -> Result<TensorMap, &'static str> {
    layout.check()?;
    Ok(encode(layout))
}

/// The layout as the emulator's kernels read it.
fn encode(layout: &TensorMapLayout) -> TensorMap {
    let mut words = [0; 16];
    words[0] = MAGIC << 32
        | u64::from(layout.rank) << 16
        | u64::from(layout.element_bytes) << 8
        | layout.swizzle as u64;
    words[1] = layout.base;
    words[2..7].copy_from_slice(&layout.dims);
    words[7..11].copy_from_slice(&layout.strides_bytes);
    for (word, pair) in words[11..14].iter_mut().zip(layout.box_dims.chunks(2)) {
        *word = u64::from(pair[0]) | u64::from(pair.get(1).copied().unwrap_or(0)) << 32;
    }
    TensorMap::from_words(words)
}

fn decode(words: &[u64; 16]) -> Option<TensorMapLayout> {
    if words[0] >> 32 != MAGIC {
        return None;
    }
    let box_dim = |i: usize| (words[11 + i / 2] >> (i % 2 * 32)) as u32;
    Some(TensorMapLayout {
        base: words[1],
        element_bytes: (words[0] >> 8) as u32 & 0xff,
        rank: (words[0] >> 16) as u32 & 0xff,
        dims: std::array::from_fn(|i| words[2 + i]),
        strides_bytes: std::array::from_fn(|i| words[7 + i]),
        box_dims: std::array::from_fn(box_dim),
        swizzle: match words[0] & 0xff {
            0 => Swizzle::None,
            1 => Swizzle::Bytes32,
            2 => Swizzle::Bytes64,
            _ => Swizzle::Bytes128,
        },
    })
}

impl Patch {
    pub(super) fn decode(
        cta: &mut Cta,
        op: &'static str,
        map: &TensorMap,
        coords: &[i32],
        at: At,
    ) -> Self {
        let layout = decode(map.words()).unwrap_or_else(|| {
            cta.fail(
                FaultKind::AsyncCopy,
                at,
                format!("`{op}`: the parameter is no tensor map"),
            )
        });
        if layout.rank as usize != coords.len() {
            let (rank, given) = (layout.rank, coords.len());
            cta.fail(
                FaultKind::AsyncCopy,
                at,
                format!("`{op}` with {given} coordinates on a tensor map of {rank} dimensions"),
            );
        }
        let mut padded = [0; 5];
        for (padded, &coord) in padded.iter_mut().zip(coords) {
            *padded = i64::from(coord);
        }
        Self {
            layout,
            coords: padded,
            op,
        }
    }

    pub(super) fn bytes(&self) -> u32 {
        self.layout.box_bytes()
    }

    /// Calls `row` for each row of the box in dimension 0: its byte offset in the box, and the
    /// global address of its first element unless another dimension is out of bounds.
    fn rows(&self, mut row: impl FnMut(u32, Option<i64>)) {
        let layout = &self.layout;
        let row_bytes = layout.box_dims[0] * layout.element_bytes;
        let rows = layout.box_bytes() / row_bytes;
        for index in 0..rows {
            let mut rest = index;
            let mut address = layout.base as i64 + self.coords[0] * i64::from(layout.element_bytes);
            let mut inside = true;
            for d in 1..layout.rank as usize {
                let coord = self.coords[d] + i64::from(rest % layout.box_dims[d]);
                rest /= layout.box_dims[d];
                inside &= (0..layout.dims[d] as i64).contains(&coord);
                address += coord * layout.strides_bytes[d - 1] as i64;
            }
            row(index * row_bytes, inside.then_some(address));
        }
    }

    /// The bytes of a row that are inside the tensor.
    fn inside(&self) -> std::ops::Range<i64> {
        let layout = &self.layout;
        let width = i64::from(layout.box_dims[0]);
        let first = (-self.coords[0]).clamp(0, width);
        let last = (layout.dims[0] as i64 - self.coords[0]).clamp(first, width);
        let bytes = i64::from(layout.element_bytes);
        first * bytes..last * bytes
    }

    /// Calls `piece` for the part of each 16-byte chunk that is inside: shared address, global
    /// address, bytes. `outside` gets the chunks that are not wholly inside first.
    fn pieces(
        &self,
        shared: u32,
        mut outside: impl FnMut(u32),
        mut piece: impl FnMut(u32, u64, u32),
    ) {
        let inside = self.inside();
        let row_bytes = i64::from(self.layout.box_dims[0] * self.layout.element_bytes);
        self.rows(|offset, address| {
            for chunk in (0..row_bytes).step_by(16) {
                let to = self.layout.swizzle.apply(shared + offset + chunk as u32);
                let range = match address {
                    Some(_) => chunk.max(inside.start)..(chunk + 16).min(inside.end),
                    None => 0..0,
                };
                if range != (chunk..chunk + 16) {
                    outside(to);
                }
                if let Some(address) = address
                    && !range.is_empty()
                {
                    let skip = (range.start - chunk) as u32;
                    let bytes = (range.end - range.start) as u32;
                    piece(to + skip, (address + range.start) as u64, bytes);
                }
            }
        });
    }

    pub(super) fn load(&self, cta: &mut Cta, shared: u32, at: At) {
        let cta = std::cell::RefCell::new(cta);
        let (op, element) = (self.op, self.layout.element_bytes);
        self.pieces(
            shared,
            |to| {
                let host = cta.borrow_mut().shared(to, 16, 16, op, at);
                // SAFETY: `shared` checked 16 bytes.
                unsafe { host.write_bytes(0, 16) };
            },
            |to, from, bytes| {
                let mut cta = cta.borrow_mut();
                let from = cta.global(from, bytes, element, op, at);
                let to = cta.shared(to, bytes, 1, op, at);
                // SAFETY: both ranges are checked.
                unsafe { copy_in(from, to, bytes) };
            },
        );
    }

    pub(super) fn store(&self, cta: &mut Cta, shared: u32, at: At) {
        let (op, element) = (self.op, self.layout.element_bytes);
        self.pieces(
            shared,
            |_| {},
            |from, to, bytes| {
                let to = cta.global_write(to, bytes, element, op, at);
                let from = cta.shared(from, bytes, 1, op, at);
                // SAFETY: both ranges are checked.
                unsafe { copy_out(from, to, bytes) };
            },
        );
    }
}
