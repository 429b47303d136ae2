//! A plan on a GPU, with memory that stays from one run to the next.

use sample_attention::cuda::{Buffer, Device, Stream};
use sample_attention::pipeline::{DeviceTensor, GpuPlan, Operands};
use sample_attention::{Dtype, Inputs, Outputs, Report, Result, Selection, TensorView};

/// The plan with its tensors on the device.
pub struct GpuRun<'a> {
    device: &'a Device,
    stream: Stream<'a>,
    plan: GpuPlan,
    q: GpuTensor<'a>,
    k: GpuTensor<'a>,
    v: GpuTensor<'a>,
    o: Buffer<'a>,
    lse: Buffer<'a>,
    workspace: Buffer<'a>,
}

/// An input as it lies on the host.
struct GpuTensor<'a> {
    buffer: Buffer<'a>,
    dtype: Dtype,
    shape: [usize; 4],
    strides: [usize; 4],
}

impl<'a> GpuTensor<'a> {
    fn upload(device: &'a Device, view: &TensorView<'_>) -> Result<Self> {
        let bytes = view.as_bytes();
        let mut buffer = device.alloc(bytes.len() as u64)?;
        buffer.write(0, bytes)?;
        Ok(GpuTensor {
            buffer,
            dtype: view.dtype(),
            shape: view.shape(),
            strides: view.strides(),
        })
    }

    fn tensor(&self) -> Result<DeviceTensor> {
        DeviceTensor::new(&self.buffer, self.dtype, self.shape, self.strides)
    }
}

impl<'a> GpuRun<'a> {
    /// Uploads the inputs, and takes memory for everything else.
    pub fn new(device: &'a Device, plan: GpuPlan, inputs: &Inputs<'_>) -> Result<Self> {
        let problem = plan.problem();
        let elements: usize = problem.q_shape().iter().product();
        Ok(GpuRun {
            stream: device.stream()?,
            q: GpuTensor::upload(device, &inputs.q)?,
            k: GpuTensor::upload(device, &inputs.k)?,
            v: GpuTensor::upload(device, &inputs.v)?,
            o: device.alloc(4 * elements as u64)?,
            lse: device.alloc(4 * problem.lse_len() as u64)?,
            workspace: device.alloc(plan.workspace_bytes())?,
            device,
            plan,
        })
    }

    /// One run; the report's times are the device's own, of each stage.
    pub fn run(&self, mut outputs: Outputs<'_>) -> Result<(Report, Option<Selection>)> {
        let shape = self.plan.problem().q_shape();
        let operands = Operands::new(
            self.q.tensor()?,
            self.k.tensor()?,
            self.v.tensor()?,
            DeviceTensor::bhsd(&self.o, Dtype::F32, shape)?,
            self.lse.memory(),
            self.workspace.memory(),
        );
        // SAFETY: the operands are this value's own buffers on this device, and the call waits for the run.
        let times = unsafe { self.device.run_timed(&self.stream, &self.plan, &operands) }?;
        // SAFETY: the workspace is this value's own, and the run has ended.
        let outcome = unsafe {
            self.device
                .outcome(&self.stream, &self.plan, &self.workspace, times)
        }?;
        self.o.read(0, outputs.o.as_bytes_mut())?;
        if let Some(lse) = outputs.lse {
            self.lse.read(0, bytemuck::cast_slice_mut(lse))?;
        }
        Ok((outcome.report, outcome.selection))
    }
}
