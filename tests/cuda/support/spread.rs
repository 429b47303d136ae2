//! Tensors whose elements lie far apart in one buffer.

use std::ops::Range;

use sample_attention::cuda::{Buffer, Device, Stream};
use sample_attention::pipeline::{DeviceTensor, GpuPlan, Operands};
use sample_attention::{Dtype, Problem};
use testkit::tensor::{Qkv, Tensor};

use super::run::{Bits, bytes, poisoned, read};

/// Strides of q, k, v and o, and where each of them begins, in elements of 2 bytes.
#[derive(Clone, Copy, Debug)]
pub struct Places {
    /// Of [batch, heads, length].
    pub strides: [usize; 3],
    /// First elements of q, k, v and o.
    pub first: [usize; 4],
    /// All elements.
    pub len: usize,
}

impl Places {
    /// Bytes of every row, in logical order.
    fn rows(&self, which: usize, shape: [usize; 4]) -> impl Iterator<Item = Range<usize>> + use<> {
        let ([stride_batch, stride_head, stride_token], first) = (self.strides, self.first[which]);
        let [batch, heads, tokens, dim] = shape;
        (0..batch * heads * tokens).map(move |row| {
            let element = first
                + row / tokens / heads * stride_batch
                + row / tokens % heads * stride_head
                + row % tokens * stride_token;
            2 * element..2 * (element + dim)
        })
    }

    fn tensor(
        &self,
        buffer: &Buffer<'_>,
        which: usize,
        dtype: Dtype,
        shape: [usize; 4],
    ) -> DeviceTensor {
        let first = 2 * self.first[which] as u64;
        let memory = buffer.part(first, buffer.memory().bytes - first);
        let [batch, head, token] = self.strides;
        DeviceTensor::new(memory, dtype, shape, [batch, head, token, 1]).expect("made for it")
    }
}

/// Runs the plan on the inputs with all four tensors in one buffer of that many elements, whose bits are all set first: NaN,
/// wherever no element lies.
///
/// # Errors
/// What the driver says where the memory cannot be had.
pub fn run(
    device: &Device,
    stream: &Stream<'_>,
    plan: &GpuPlan,
    qkv: &Qkv,
    places: &Places,
) -> sample_attention::Result<Bits> {
    let problem: &Problem = plan.problem();
    let mut buffer = poisoned(device, 2 * places.len as u64)?;
    let inputs: [&Tensor; 3] = [&qkv.q, &qkv.k, &qkv.v];
    for (which, tensor) in inputs.into_iter().enumerate() {
        let data = bytes(problem.dtype, tensor);
        let rows = data.chunks_exact(2 * problem.head_dim);
        for (row, data) in places.rows(which, tensor.shape).zip(rows) {
            buffer.write(row.start as u64, data)?;
        }
    }
    let lse = poisoned(device, 4 * problem.lse_len() as u64)?;
    let workspace = poisoned(device, plan.workspace_bytes())?;
    let tensor = |which, shape| places.tensor(&buffer, which, problem.dtype, shape);
    let operands = Operands::new(
        tensor(0, problem.q_shape()),
        tensor(1, problem.kv_shape()),
        tensor(2, problem.kv_shape()),
        tensor(3, problem.q_shape()),
        lse.memory(),
        workspace.memory(),
    );
    // SAFETY: the operands are this function's own buffers, and it waits for the run. Rows of o overlap nothing.
    unsafe { device.run(stream, plan, &operands) }?;
    stream.synchronize()?;
    let mut o = vec![0; 2 * problem.q_shape().iter().product::<usize>()];
    let to = o.chunks_exact_mut(2 * problem.head_dim);
    for (row, to) in places.rows(3, problem.q_shape()).zip(to) {
        buffer.read(row.start as u64, to)?;
    }
    Ok(Bits { o, lse: read(&lse) })
}
