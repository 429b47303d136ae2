//! The attention kernel in the emulator, against the definition of attention.

use sample_attention_device::gpu::emu::Mode;

mod attention;

use attention::case::listed;
use attention::{Case, Dtype, HeadMask, Layout, check};

#[test]
fn dense_small() {
    check(&Case::causal(129, 129), Mode::Fast);
    check(
        &Case::causal(129, 129).head_dim(128).dtype(Dtype::F16),
        Mode::Checked { seed: 1 },
    );
}
