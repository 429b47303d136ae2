//! The GPU kernels on a GPU.
//!
//! Everything that a run gets lies between red zones of its own: poison around and between inputs, what the runner put into the
//! outputs' gaps, and all bits set in the workspace. Whatever may not be written is read back and compared.

mod memory;

use sample_attention::cuda::{Device, Stream};
use sample_attention::pipeline::{self, GPU_BREAK_EVEN_TOKENS, GpuPlan, Launch, Operands, Watch};
use sample_attention::{Inputs, Outputs, Problem, Result, StageTimes};

use super::{Attend, Backend, Found, gpu_kernels};
use memory::{WRITTEN, Zoned, ZonedTensor};

/// A GPU under given circumstances, none of which may change a result.
#[derive(Clone, Copy, Debug)]
pub struct Cuda<'a> {
    /// The GPU.
    pub device: &'a Device,
    /// Bytes of the buffers of one wave; few for many waves.
    pub wave_bytes: Option<u64>,
    /// Whether to stop after each launch to read what it left: the masses are checked only so. Otherwise the launches go into
    /// the stream back to back.
    pub watched: bool,
}

impl<'a> Cuda<'a> {
    /// The GPU, watched.
    pub fn new(device: &'a Device) -> Self {
        Cuda {
            device,
            wave_bytes: None,
            watched: true,
        }
    }

    /// Runs the plan, and waits.
    fn execute(
        &self,
        stream: &Stream<'_>,
        plan: &GpuPlan,
        operands: &Operands,
        found: &mut Found,
    ) -> Result<StageTimes> {
        if !self.watched {
            // SAFETY: the operands are buffers of this device, which outlive the wait; nobody else uses them.
            return unsafe { self.device.run_timed(stream, plan, operands) };
        }
        // SAFETY: as above.
        let mut executor = unsafe { self.device.executor(stream) };
        let launches = plan.launches(&mut executor, &plan.arguments(operands)?)?;
        for launch in launches {
            pipeline::Device::launch(&mut executor, &launch)?;
            self.tell(stream, plan, operands, &launch, found)?;
        }
        stream.synchronize()?;
        Ok(StageTimes::default())
    }

    fn tell(
        &self,
        stream: &Stream<'_>,
        plan: &GpuPlan,
        operands: &Operands,
        launch: &Launch,
        watch: &mut dyn Watch,
    ) -> Result<()> {
        let read = |offset_bytes, to: &mut [u8]| {
            let address = operands.workspace.address + offset_bytes;
            // SAFETY: the plan's regions lie in the workspace, which only this stream uses.
            unsafe { self.device.read(stream, address, to) }
        };
        plan.tell(launch, read, watch)
    }
}

impl Backend for Cuda<'_> {
    fn name(&self) -> String {
        format!("{self:?}")
    }

    fn supports(&self, problem: &Problem) -> bool {
        gpu_kernels::support(problem)
    }

    fn break_even_tokens(&self) -> usize {
        GPU_BREAK_EVEN_TOKENS
    }

    fn keeps_f32(&self) -> bool {
        false
    }

    fn run(
        &self,
        problem: &Problem,
        attend: &Attend,
        inputs: &Inputs<'_>,
        outputs: Outputs<'_>,
    ) -> Result<Found> {
        let plan = gpu_kernels::plan(problem, attend, self.wave_bytes)?;
        let device = self.device;
        let stream = device.stream()?;
        let Outputs {
            o: mut to_o,
            lse: Some(to_lse),
            ..
        } = outputs
        else {
            panic!("the runner wants LSE")
        };
        let q = ZonedTensor::upload(device, "q", &inputs.q)?;
        let k = ZonedTensor::upload(device, "k", &inputs.k)?;
        let v = ZonedTensor::upload(device, "v", &inputs.v)?;
        let o = ZonedTensor::upload_output(device, "o", &mut to_o)?;
        let lse = Zoned::upload(device, "lse", WRITTEN, &bytes_of(to_lse))?;
        let workspace = vec![0xff; plan.workspace_bytes() as usize];
        let workspace = Zoned::upload(device, "the workspace", WRITTEN, &workspace)?;
        let operands = Operands::new(
            q.tensor()?,
            k.tensor()?,
            v.tensor()?,
            o.tensor()?,
            lse.memory(),
            workspace.memory(),
        );
        if let Attend::Own(selection) = attend {
            // SAFETY: the workspace is this run's own.
            unsafe { device.write_selection(&stream, &plan, selection, workspace.memory()) }?;
        }
        let mut found = Found::default();
        let times = self.execute(&stream, &plan, &operands, &mut found)?;
        if !matches!(attend, Attend::Own(_)) {
            // SAFETY: the workspace is this run's own.
            let outcome = unsafe { device.outcome(&stream, &plan, workspace.memory(), times) }?;
            found.report = Some(outcome.report);
            found.selection = outcome.selection;
        }
        for input in [&q, &k, &v] {
            input.assert_unchanged()?;
        }
        workspace.download()?;
        o.download(&mut to_o)?;
        copy_to(to_lse, &lse.download()?);
        Ok(found)
    }
}

fn bytes_of(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|x| x.to_ne_bytes()).collect()
}

fn copy_to(values: &mut [f32], bytes: &[u8]) {
    for (x, bytes) in values.iter_mut().zip(bytes.chunks_exact(4)) {
        *x = f32::from_ne_bytes(bytes.try_into().expect("four bytes"));
    }
}
