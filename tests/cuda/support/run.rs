//! Runs whose memory stays: contiguous bf16 or f16 tensors that can be written anew.

use half::{bf16, f16};
use sample_attention::cuda::{Buffer, Device, Stream};
use sample_attention::pipeline::{DeviceTensor, GpuPlan, Operands, Outcome};
use sample_attention::{Dtype, Result, StageTimes};
use testkit::tensor::{Qkv, Tensor};

/// A plan with memory of its own.
pub struct Run<'a> {
    pub device: &'a Device,
    pub plan: GpuPlan,
    pub q: Buffer<'a>,
    pub k: Buffer<'a>,
    pub v: Buffer<'a>,
    o: Buffer<'a>,
    lse: Buffer<'a>,
    workspace: Buffer<'a>,
}

/// What a run left, as bits.
#[derive(Debug, PartialEq)]
pub struct Bits {
    pub o: Vec<u8>,
    pub lse: Vec<u8>,
}

impl<'a> Run<'a> {
    /// Memory for a plan; all bits of outputs and workspace are set.
    pub fn new(device: &'a Device, plan: GpuPlan) -> Self {
        Self::try_new(device, plan).unwrap()
    }

    /// As [`Run::new`], where the memory may be too much.
    pub fn try_new(device: &'a Device, plan: GpuPlan) -> Result<Self> {
        let problem = *plan.problem();
        let alloc = |bytes: usize| poisoned(device, bytes as u64);
        let elements = |shape: [usize; 4]| shape.iter().product::<usize>();
        Ok(Run {
            q: alloc(2 * elements(problem.q_shape()))?,
            k: alloc(2 * elements(problem.kv_shape()))?,
            v: alloc(2 * elements(problem.kv_shape()))?,
            o: alloc(2 * elements(problem.q_shape()))?,
            lse: alloc(4 * problem.lse_len())?,
            workspace: alloc(plan.workspace_bytes() as usize)?,
            device,
            plan,
        })
    }

    pub fn operands(&self) -> Operands {
        let problem = self.plan.problem();
        let tensor = |buffer: &Buffer<'_>, shape| {
            DeviceTensor::bhsd(buffer, problem.dtype, shape).expect("made for it")
        };
        Operands::new(
            tensor(&self.q, problem.q_shape()),
            tensor(&self.k, problem.kv_shape()),
            tensor(&self.v, problem.kv_shape()),
            tensor(&self.o, problem.q_shape()),
            self.lse.memory(),
            self.workspace.memory(),
        )
    }

    /// New inputs.
    pub fn write(&mut self, qkv: &Qkv) {
        let dtype = self.plan.problem().dtype;
        for (buffer, tensor) in [
            (&mut self.q, &qkv.q),
            (&mut self.k, &qkv.k),
            (&mut self.v, &qkv.v),
        ] {
            buffer.write(0, &bytes(dtype, tensor)).unwrap();
        }
    }

    /// Puts the run into a stream.
    pub fn enqueue(&self, stream: &Stream<'_>) {
        // SAFETY: the operands are this run's buffers, which nothing else uses until the stream was waited for.
        unsafe { self.device.run(stream, &self.plan, &self.operands()) }.unwrap();
    }

    /// Runs, and waits.
    pub fn execute(&self, stream: &Stream<'_>) {
        self.enqueue(stream);
        stream.synchronize().unwrap();
    }

    /// What the last run found, once it has ended.
    pub fn outcome(&self, stream: &Stream<'_>) -> Outcome {
        let times = StageTimes::default();
        // SAFETY: the workspace is this run's.
        unsafe {
            self.device
                .outcome(stream, &self.plan, &self.workspace, times)
        }
        .unwrap()
    }

    /// What the last run wrote, once it has ended.
    pub fn bits(&self) -> Bits {
        Bits {
            o: read(&self.o),
            lse: read(&self.lse),
        }
    }

    /// As many of those bits as `like` has, the `index`th time.
    pub fn part(&self, index: usize, like: &Bits) -> Bits {
        let part = |buffer: &Buffer<'_>, len: usize| {
            let mut bytes = vec![0; len];
            buffer.read((index * len) as u64, &mut bytes).unwrap();
            bytes
        };
        Bits {
            o: part(&self.o, like.o.len()),
            lse: part(&self.lse, like.lse.len()),
        }
    }

    /// Sets every bit of outputs and workspace again.
    pub fn poison(&mut self) {
        for buffer in [&mut self.o, &mut self.lse, &mut self.workspace] {
            buffer.fill(0xff).unwrap();
        }
    }
}

/// Memory whose bits are all set: NaN, as floats.
pub fn poisoned(device: &Device, bytes: u64) -> Result<Buffer<'_>> {
    let mut buffer = device.alloc(bytes)?;
    buffer.fill(0xff)?;
    Ok(buffer)
}

pub fn read(buffer: &Buffer<'_>) -> Vec<u8> {
    let mut bytes = vec![0; buffer.memory().bytes as usize];
    buffer.read(0, &mut bytes).unwrap();
    bytes
}

/// The elements in their own type, in logical order.
pub fn bytes(dtype: Dtype, tensor: &Tensor) -> Vec<u8> {
    let bits = |x: &f32| match dtype {
        Dtype::Bf16 => bf16::from_f32(*x).to_bits(),
        Dtype::F16 => f16::from_f32(*x).to_bits(),
        other => panic!("the kernels take no {other}"),
    };
    tensor
        .values
        .iter()
        .flat_map(|x| bits(x).to_ne_bytes())
        .collect()
}
