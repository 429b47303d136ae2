//! The arithmetic of a decoder layer but for attention: products, norms, the rotary embedding, the gate.

use gemm::Parallelism;

use super::weights::Matrix;

/// y = x · wᵀ for the rows of `x`.
pub fn project(x: &[f32], w: &Matrix, y: &mut [f32]) {
    product(x, w, y, Destination::Overwrite);
}

/// y += x · wᵀ for the rows of `x`.
pub fn project_onto(x: &[f32], w: &Matrix, y: &mut [f32]) {
    product(x, w, y, Destination::Add);
}

#[derive(Clone, Copy, PartialEq)]
enum Destination {
    Overwrite,
    Add,
}

fn product(x: &[f32], w: &Matrix, y: &mut [f32], destination: Destination) {
    let (outputs, inputs) = (w.outputs, w.inputs);
    let rows = x.len() / inputs;
    assert_eq!(x.len(), rows * inputs);
    assert_eq!(y.len(), rows * outputs);
    assert_eq!(w.data.len(), outputs * inputs);
    // SAFETY: row-major `y` is rows x outputs and `x` is rows x inputs; `w` is outputs x inputs and read as its transpose.
    // The assertions above make the three slices exactly that long.
    unsafe {
        gemm::gemm(
            rows,
            outputs,
            inputs,
            y.as_mut_ptr(),
            1,
            outputs as isize,
            destination == Destination::Add,
            x.as_ptr(),
            1,
            inputs as isize,
            w.data.as_ptr(),
            inputs as isize,
            1,
            1.0,
            1.0,
            false,
            false,
            false,
            Parallelism::Rayon(0),
        );
    }
}

/// Each row of `x` over its root mean square, times `weight`.
pub fn rms_norm(x: &[f32], weight: &[f32], epsilon: f32, y: &mut [f32]) {
    let rows = x
        .chunks_exact(weight.len())
        .zip(y.chunks_exact_mut(weight.len()));
    for (x, y) in rows {
        let mean_square = x.iter().map(|x| x * x).sum::<f32>() / x.len() as f32;
        let scale = 1.0 / (mean_square + epsilon).sqrt();
        for ((y, x), weight) in y.iter_mut().zip(x).zip(weight) {
            *y = x * scale * weight;
        }
    }
}

/// gate = silu(gate) · value: the gate of SwiGLU.
pub fn gate(gate: &mut [f32], value: &[f32]) {
    for (gate, value) in gate.iter_mut().zip(value) {
        *gate = *gate / (1.0 + (-*gate).exp()) * value;
    }
}

/// The rotary embedding in the half-split form: element i turns with element i + head_dim / 2, by
/// position · theta^(−2i / head_dim).
pub struct Rotary {
    half: usize,
    /// Cosine and sine of [position, half].
    turns: Vec<(f32, f32)>,
}

impl Rotary {
    /// Turns of the `len` positions from `first` on.
    pub fn new(first: usize, len: usize, head_dim: usize, theta: f32) -> Self {
        let half = head_dim / 2;
        let frequencies: Vec<f32> = (0..half)
            .map(|i| 1.0 / theta.powf(i as f32 / half as f32))
            .collect();
        let turns = (first..first + len)
            .flat_map(|position| {
                // Angles are rounded to f32, as the model was trained.
                frequencies
                    .iter()
                    .map(move |frequency| position as f32 * frequency)
            })
            .map(|angle| (angle.cos(), angle.sin()))
            .collect();
        Rotary { half, turns }
    }

    /// Turns `x`, which is [position, heads, head_dim].
    pub fn apply(&self, x: &mut [f32], heads: usize) {
        let half = self.half;
        let positions = x.chunks_exact_mut(heads * 2 * half);
        for (x, turns) in positions.zip(self.turns.chunks_exact(half)) {
            for head in x.chunks_exact_mut(2 * half) {
                let (first, second) = head.split_at_mut(half);
                for ((a, b), (cos, sin)) in first.iter_mut().zip(second).zip(turns) {
                    (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_product_takes_the_weight_transposed() {
        let w = Matrix {
            outputs: 2,
            inputs: 3,
            data: vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0],
        };
        let mut y = vec![f32::NAN; 4];
        project(&[1.0, 0.0, 0.0, 1.0, 1.0, 1.0], &w, &mut y);
        assert_eq!(y, [1.0, 4.0, 6.0, 15.0]);
        project_onto(&[0.0, 1.0, 0.0, 0.0, 0.0, 1.0], &w, &mut y);
        assert_eq!(y, [3.0, 9.0, 9.0, 21.0]);
    }

    #[test]
    fn a_norm_has_unit_mean_square_before_its_weight() {
        let mut y = [0.0; 4];
        rms_norm(&[3.0, -1.0, 0.5, 0.5], &[1.0, 2.0], 0.0, &mut y);
        let (big, small) = (3.0 / 5f32.sqrt(), 1.0 / 5f32.sqrt());
        for (y, expected) in y.iter().zip([big, -2.0 * small, 1.0, 2.0]) {
            assert!((y - expected).abs() < 1e-6, "{y} {expected}");
        }
        rms_norm(&[0.0; 4], &[1.0, 2.0], 1e-5, &mut y);
        assert_eq!(y, [0.0; 4]);
    }

    #[test]
    fn the_gate_is_silu() {
        let mut x = [0.0, 1.0, -20.0];
        gate(&mut x, &[5.0, 2.0, 1.0]);
        assert_eq!(x[0], 0.0);
        assert!((x[1] - 2.0 / (1.0 + (-1f32).exp())).abs() < 1e-6);
        assert!(x[2].abs() < 1e-7);
    }

    #[test]
    fn rotary_turns_halves_and_keeps_relative_positions() {
        let rotary = Rotary::new(0, 9, 4, 100.0);
        let turned = |position: usize, x: [f32; 4]| {
            let mut rows = vec![0.0; 9 * 4];
            rows[position * 4..][..4].copy_from_slice(&x);
            rotary.apply(&mut rows, 1);
            <[f32; 4]>::try_from(&rows[position * 4..][..4]).unwrap()
        };
        assert_eq!(turned(0, [1.0, 2.0, 3.0, 4.0]), [1.0, 2.0, 3.0, 4.0]);
        // Element 0 turns with element 2 by one radian a position, element 1 with element 3 by a tenth.
        let [a, b, c, d] = turned(3, [1.0, 1.0, 0.0, 0.0]);
        for (x, expected) in [
            (a, 3f32.cos()),
            (b, 0.3f32.cos()),
            (c, 3f32.sin()),
            (d, 0.3f32.sin()),
        ] {
            assert!((x - expected).abs() < 1e-6, "{x} {expected}");
        }
        let dot = |a: [f32; 4], b: [f32; 4]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
        let (q, k) = ([0.3, -1.0, 0.7, 0.2], [1.1, 0.4, -0.6, 0.9]);
        let near = dot(turned(3, q), turned(1, k));
        let far = dot(turned(8, q), turned(6, k));
        assert!((near - far).abs() < 1e-5, "{near} {far}");
    }
}
