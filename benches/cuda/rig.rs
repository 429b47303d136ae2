//! A plan with its memory on the GPU, and the time of its launches.

use std::sync::OnceLock;
use std::time::Duration;

use criterion::Bencher;
use half::bf16;
use sample_attention::cuda::cust::event::{Event, EventFlags};
use sample_attention::cuda::cust::stream::{Stream, StreamFlags};
use sample_attention::cuda::{Buffer, Device};
use sample_attention::pipeline::{self, DeviceTensor, GpuPlan, Launch, Operands};
use sample_attention::{Problem, Report, Selection, Stage, StageTimes};

use crate::inputs::{self, Structure};

/// The GPU that is measured; `main` sets it.
pub static DEVICE: OnceLock<Device> = OnceLock::new();

fn device() -> &'static Device {
    DEVICE.get().expect("main opens the GPU first")
}

/// Q, K, V and the outputs of a problem on the GPU.
pub struct Tensors {
    problem: Problem,
    q: Buffer<'static>,
    k: Buffer<'static>,
    v: Buffer<'static>,
    o: Buffer<'static>,
    lse: Buffer<'static>,
}

impl Tensors {
    pub fn new(problem: Problem, structure: Structure) -> Self {
        let [q, k, v] = inputs::make(&problem, structure).map(|values| upload(&values));
        let o_bytes = problem.q_shape().iter().product::<usize>() * size_of::<bf16>();
        Tensors {
            problem,
            q,
            k,
            v,
            o: alloc(o_bytes as u64),
            lse: alloc((problem.lse_len() * size_of::<f32>()) as u64),
        }
    }

    fn operands(&self, workspace: &Buffer<'static>) -> Operands {
        let dtype = self.problem.dtype;
        let tensor = |buffer, shape| {
            DeviceTensor::bhsd(buffer, dtype, shape).expect("the buffer is as long as the shape")
        };
        let (q_shape, kv_shape) = (self.problem.q_shape(), self.problem.kv_shape());
        Operands::new(
            tensor(&self.q, q_shape),
            tensor(&self.k, kv_shape),
            tensor(&self.v, kv_shape),
            tensor(&self.o, q_shape),
            self.lse.memory(),
            workspace.memory(),
        )
    }
}

fn alloc(bytes: u64) -> Buffer<'static> {
    device().alloc(bytes).expect("the GPU has the memory")
}

fn upload(values: &[bf16]) -> Buffer<'static> {
    let bytes = bytemuck::cast_slice(values);
    let mut buffer = alloc(bytes.len() as u64);
    buffer.write(0, bytes).expect("the buffer is as long");
    buffer
}

/// A plan that has run once, so that every stage finds what the ones before it leave.
pub struct Rig<'a> {
    plan: GpuPlan,
    stream: Stream,
    launches: Vec<Launch>,
    workspace: Buffer<'static>,
    /// The launches hold its addresses.
    _tensors: &'a Tensors,
}

impl<'a> Rig<'a> {
    /// `lists` are those of a plan of [`GpuPlan::given`].
    pub fn new(plan: GpuPlan, tensors: &'a Tensors, lists: Option<&Selection>) -> Self {
        let stream = Stream::new(StreamFlags::NON_BLOCKING, None).expect("the GPU has streams");
        let workspace = alloc(plan.workspace_bytes());
        let operands = tensors.operands(&workspace);
        let arguments = plan.arguments(&operands).expect("the operands fit");
        // SAFETY: the executor encodes tensor maps here, and launches nothing.
        let mut executor = unsafe { device().executor(&stream) };
        let launches = plan.launches(&mut executor, &arguments);
        let rig = Rig {
            launches: launches.expect("the tensors have maps"),
            plan,
            stream,
            workspace,
            _tensors: tensors,
        };
        if let Some(lists) = lists {
            // SAFETY: the workspace is this rig's, and nothing runs yet.
            unsafe { device().write_selection(&rig.stream, &rig.plan, lists, &rig.workspace) }
                .expect("the lists are the plan's");
        }
        rig.enqueue(&Stage::ALL);
        rig.stream.synchronize().expect("the kernels run");
        rig
    }

    /// What the run selected.
    pub fn report(&self) -> Report {
        // SAFETY: the workspace is this rig's, and this its only stream.
        let outcome = unsafe {
            device().outcome(
                &self.stream,
                &self.plan,
                &self.workspace,
                StageTimes::default(),
            )
        };
        outcome.expect("the run left it there").report
    }

    /// Benchmarks the launches of some stages.
    pub fn bench(&self, bencher: &mut Bencher<'_>, stages: &[Stage]) {
        bencher.iter_custom(|iterations| self.time(iterations, stages));
    }

    /// The device's time of so many runs, one after the other.
    fn time(&self, iterations: u64, stages: &[Stage]) -> Duration {
        let [begin, end] =
            [(); 2].map(|()| Event::new(EventFlags::DEFAULT).expect("the GPU has events"));
        begin.record(&self.stream).expect("the event is new");
        for _ in 0..iterations {
            self.enqueue(stages);
        }
        end.record(&self.stream).expect("the event is new");
        end.synchronize().expect("the kernels run");
        let milliseconds = end.elapsed_time_f32(&begin).expect("both were recorded");
        Duration::from_secs_f64(f64::from(milliseconds) / 1e3)
    }

    fn enqueue(&self, stages: &[Stage]) {
        // SAFETY: the launches are the plan's, on buffers that outlive the rig's stream; `time` and `new` wait for them.
        let mut executor = unsafe { device().executor(&self.stream) };
        for launch in self
            .launches
            .iter()
            .filter(|launch| stages.contains(&launch.stage))
        {
            pipeline::Device::launch(&mut executor, launch).expect("the GPU takes the launch");
        }
    }
}
