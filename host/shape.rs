//! Shapes of tensors, and their memory orders.

/// Heads and length exchanged: a shape or strides in the other of the two memory orders.
pub(crate) fn swap_middle([a, b, c, d]: [usize; 4]) -> [usize; 4] {
    [a, c, b, d]
}
