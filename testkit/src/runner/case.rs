//! What to compute, on what data: all that is needed to replay a failure.

use std::path::Path;

use sample_attention::{Dtype, Policy, Problem, Selection};

use super::Layout;
use crate::capture::{self, Capture};
use crate::random::Random;
use crate::tensor::{Qkv, Tensor};

/// (Sq, Sk) that other libraries publish as their test shapes.
pub const PUBLISHED_SHAPES: [(usize, usize); 17] = [
    (113, 203),
    (128, 217),
    (113, 211),
    (108, 256),
    (256, 512),
    (512, 256),
    (1024, 1024),
    (1023, 1024),
    (1024, 1023),
    (2048, 2048),
    (1, 1),
    (64, 128),
    (239, 1),
    (799, 3),
    (1023, 2049),
    (65, 65),
    (129, 129),
];

/// What to attend to.
#[derive(Clone, Debug)]
pub enum Attend {
    /// Every visible key.
    Dense,
    /// What a policy selects.
    Policy(Policy),
    /// The caller's own lists.
    Own(Selection),
}

/// One test of a backend.
#[derive(Clone, Debug)]
pub struct Case {
    /// Sizes, scale, mask kind and element type of the inputs.
    pub problem: Problem,
    /// What to attend to.
    pub attend: Attend,
    /// Element type of O.
    pub output: Dtype,
    /// Layout of q, k, v and o.
    pub layout: Layout,
    /// What kind of numbers.
    pub data: Data,
    /// Which numbers.
    pub seed: u64,
    /// The oracle checks every row whose index is a multiple of this, and the last one.
    pub row_step: usize,
}

/// Kinds of inputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Data {
    /// Independent standard normal numbers: attention spread over everything.
    Normal,
    /// Sinks, stripes and a local window, as trained heads have them.
    Structured,
    /// Every key the same: all masses tie.
    Flat,
    /// Scores far apart, so that most weights vanish, and values over many orders of magnitude.
    Spiky,
}

impl Case {
    /// A case on contiguous normal inputs, with O in the inputs' element type, all rows checked.
    pub fn new(problem: Problem, attend: Attend) -> Self {
        Case {
            problem,
            attend,
            output: problem.dtype,
            layout: Layout::Bhsd,
            data: Data::Normal,
            seed: 1,
            row_step: 1,
        }
    }

    /// What a file captured, to be attended to densely, with O in f32 and some rows checked; and its inputs.
    ///
    /// # Panics
    /// With the path, when it cannot be read.
    pub fn captured(path: &Path) -> (Self, Qkv) {
        let capture =
            Capture::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        Case::of_capture(&capture)
    }

    /// The same of a capture in memory.
    pub fn of_capture(capture: &Capture) -> (Self, Qkv) {
        let problem = capture.problem;
        let tensor = |shape, values: &capture::Tensor| Tensor {
            shape,
            values: values.to_f32(),
        };
        let qkv = Qkv {
            q: tensor(problem.q_shape(), &capture.q),
            k: tensor(problem.kv_shape(), &capture.k),
            v: tensor(problem.kv_shape(), &capture.v),
        };
        let case = Case {
            output: Dtype::F32,
            row_step: 67,
            ..Case::new(problem, Attend::Dense)
        };
        (case, qkv)
    }

    /// The inputs that the seed gives.
    pub fn inputs(&self) -> Qkv {
        let problem = &self.problem;
        let mut random = Random::new(self.seed);
        let mut tensor = |shape: [usize; 4]| {
            let mut tensor = Tensor::filled(shape, 0.0);
            tensor.values.fill_with(|| random.normal() as f32);
            tensor
        };
        let mut q = tensor(problem.q_shape());
        let mut k = tensor(problem.kv_shape());
        let mut v = tensor(problem.kv_shape());
        match self.data {
            Data::Normal => {}
            Data::Structured => self.structure(&mut q, &mut k),
            Data::Flat => {
                let row = k.row(0, 0, 0).to_vec();
                k.values
                    .chunks_exact_mut(row.len())
                    .for_each(|key| key.copy_from_slice(&row));
            }
            Data::Spiky => {
                q.values.iter_mut().for_each(|x| *x *= 20.0);
                for (index, x) in v.values.iter_mut().enumerate() {
                    *x *= 10f32.powi(index as i32 % 7 - 3);
                }
            }
        }
        Qkv::rounded(problem, q, k, v)
    }

    /// Adds to q and k: a direction that the first keys and a few keys of each head share with all queries, and slow
    /// rotations by position, whose products fade with distance.
    fn structure(&self, q: &mut Tensor, k: &mut Tensor) {
        let problem = &self.problem;
        let mut random = Random::new(self.seed ^ 0x5eed);
        // Enough that structure adds about 6 to a score, whatever the scale and head_dim.
        let strength = (6.0 / f64::from(problem.softmax_scale.abs()).max(1e-3)).sqrt();
        let first_position = problem.k_len as f64 - problem.q_len as f64;
        let rotate = |row: &mut [f32], position: f64| {
            let angles = [position / 60.0, position / 400.0];
            for (pair, angle) in row[2..6].chunks_exact_mut(2).zip(angles) {
                pair[0] = (strength * 0.7 * angle.cos()) as f32;
                pair[1] = (strength * 0.7 * angle.sin()) as f32;
            }
        };
        for batch in 0..problem.batch {
            for head in 0..problem.q_heads {
                for row in 0..problem.q_len {
                    let query = q.row_mut(batch, head, row);
                    query[0] = strength as f32;
                    rotate(query, first_position + row as f64);
                }
            }
            for head in 0..problem.kv_heads {
                for key in 0..problem.k_len {
                    let heavy = key < 4 || random.chance(0.01);
                    let row = k.row_mut(batch, head, key);
                    row[0] = if heavy { strength as f32 } else { 0.0 };
                    rotate(row, key as f64);
                }
            }
        }
    }
}
