//! A matrix product by the `gemm` crate: what the same cores reach on plain dense arithmetic.

/// c = a·b for column-major square matrices of `size` rows, on the threads of the current rayon pool.
///
/// # Panics
/// When a slice is shorter than size².
pub fn square(size: usize, a: &[f32], b: &[f32], c: &mut [f32]) {
    let elements = size * size;
    assert!(a.len() >= elements && b.len() >= elements && c.len() >= elements);
    let (column, row) = (size as isize, 1);
    // SAFETY: each matrix has size² elements, and these strides reach no further; c is borrowed alone.
    unsafe {
        gemm::gemm(
            size,
            size,
            size,
            c.as_mut_ptr(),
            column,
            row,
            false,
            a.as_ptr(),
            column,
            row,
            b.as_ptr(),
            column,
            row,
            0.0,
            1.0,
            false,
            false,
            false,
            gemm::Parallelism::Rayon(0),
        );
    }
}
