use super::block::{At, Block};
use super::memory::Access;
impl Block {
    pub(super) fn note_access(&mut self, _: u32, _: u32, _: Access, _: &'static str, _: At) {}
    pub(super) fn note_lane_access(
        &mut self,
        _: u32,
        _: u32,
        _: u32,
        _: Access,
        _: &'static str,
        _: At,
    ) {
    }
    pub(super) fn note_copy_issued(&mut self, _: u32, _: u32, _: u32, _: &'static str, _: At) {}
    pub(super) fn note_copies_landed(&mut self, _: u32) {}
    pub(super) fn note_warp_sync(&mut self, _: u32) {}
}
