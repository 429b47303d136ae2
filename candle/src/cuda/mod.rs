//! CUDA tensors: the library's launches in candle's stream.
//!
//! Nothing is copied, nobody waits, and no memory but the output is allocated once the workspace has grown, so a graph may capture a
//! call whose like has run before.

mod executor;
mod lengths;
mod plans;
mod streams;
mod tensor_map;

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::CudaDType;
use candle_core::cuda_backend::cudarc::driver::{
    CudaSlice, CudaStream, CudaView, DevicePtr, DevicePtrMut, DeviceRepr, DeviceSlice,
    ValidAsZeroBits,
};
use candle_core::{CudaDevice, CudaStorage, DType, Error, Result, Storage, bail};
use half::{bf16, f16};
use sample_attention::Dtype;
use sample_attention::pipeline::{
    Arguments, DeviceMemory, DeviceTensor, GpuPlan, Operands, PackedOperands, PageTable,
};

use lengths::Integers;
use plans::Key;
use streams::StreamState;
pub(crate) use streams::Streams;

use crate::call::{Attention, LseSlot, Packed, Views};
use crate::view::View;
use crate::workspace::Workspace;

/// Attends, and leaves the log-sum-exp in `lse`.
///
/// # Errors
/// What the call cannot compute, and the driver's.
pub(crate) fn forward(
    attention: &Attention,
    workspace: &Workspace,
    lse: Option<&LseSlot>,
    (q, k, v): (&CudaStorage, &CudaStorage, &CudaStorage),
    views: &Views,
) -> Result<CudaStorage> {
    for (name, other) in [("k", k), ("v", v)] {
        if other.device().id() != q.device().id() {
            bail!("q and {name} are on different devices: move them to one")
        }
    }
    let tensors = (q, k, v);
    match q.dtype() {
        DType::F16 => forward_in::<f16>(attention, workspace, lse, tensors, views, Dtype::F16),
        DType::BF16 => forward_in::<bf16>(attention, workspace, lse, tensors, views, Dtype::Bf16),
        other => {
            bail!("attention takes f16 and bf16 on CUDA devices, not {other:?}: convert q, k and v")
        }
    }
}

fn forward_in<T: CudaDType + DeviceRepr + ValidAsZeroBits>(
    attention: &Attention,
    workspace: &Workspace,
    lse_slot: Option<&LseSlot>,
    (q, k, v): (&CudaStorage, &CudaStorage, &CudaStorage),
    views: &Views,
    dtype: Dtype,
) -> Result<CudaStorage> {
    let device = q.device();
    let [batch, heads, tokens, head_dim] = views.q.shape;
    let rows = batch * heads * tokens;
    let is_empty = rows * head_dim == 0
        || views.k.len() == 0
        || attention
            .packed
            .as_ref()
            .is_some_and(|packed| packed.max_seqlen_q == 0 || packed.max_seqlen_k == 0);
    if is_empty {
        if let Some(slot) = lse_slot {
            let lse = device.clone_htod(&vec![f32::NEG_INFINITY; rows])?;
            slot.put(Storage::Cuda(CudaStorage::wrap_cuda_slice(
                lse,
                device.clone(),
            )));
        }
        let o = device.alloc_zeros::<T>(rows * head_dim)?;
        return Ok(CudaStorage::wrap_cuda_slice(o, device.clone()));
    }
    let mut o = match attention.packed {
        // SAFETY: a run writes every row of a batch.
        None => unsafe { device.alloc::<T>(rows * head_dim)? },
        // Rows of no sequence are written by nobody.
        Some(_) => device.alloc_zeros::<T>(rows * head_dim)?,
    };
    let mut lse = match lse_slot {
        // SAFETY: as above; what rows of no sequence hold is not said.
        Some(_) => Some(unsafe { device.alloc::<f32>(rows)? }),
        None => None,
    };
    let run = Run {
        attention,
        views,
        dtype,
        device,
        stream: &device.cuda_stream(),
    };
    let inputs = [
        (q.as_cuda_slice::<T>()?, &views.q),
        (k.as_cuda_slice::<T>()?, &views.k),
        (v.as_cuda_slice::<T>()?, &views.v),
    ];
    workspace.gpu(|streams| run.launch(streams, inputs, &mut o, lse.as_mut()))?;
    if let (Some(slot), Some(lse)) = (lse_slot, lse) {
        slot.put(Storage::Cuda(CudaStorage::wrap_cuda_slice(
            lse,
            device.clone(),
        )));
    }
    Ok(CudaStorage::wrap_cuda_slice(o, device.clone()))
}

/// One call, apart from its memory.
struct Run<'a> {
    attention: &'a Attention,
    views: &'a Views,
    dtype: Dtype,
    device: &'a CudaDevice,
    stream: &'a CudaStream,
}

impl Run<'_> {
    fn launch<T: DeviceRepr>(
        &self,
        streams: &mut Streams,
        [(q, q_view), (k, k_view), (v, v_view)]: [(&CudaSlice<T>, &View); 3],
        o: &mut CudaSlice<T>,
        lse: Option<&mut CudaSlice<f32>>,
    ) -> Result<()> {
        let state = streams.of(self.device)?;
        let plan = state.plan(&Key::new(self.attention, self.views, self.dtype)?)?;
        let [batch, heads, tokens, head_dim] = self.views.q.shape;
        let lse_bytes = (4 * batch * heads * tokens) as u64;
        let (workspace, own_lse) = state.memory(plan.workspace_bytes(), lse_bytes)?;

        // The guards record that the stream uses the memory, when they go: after the launches.
        let (q_part, k_part, v_part) = (after(q, q_view), after(k, k_view), after(v, v_view));
        let (q_address, _q) = q_part.device_ptr(self.stream);
        let (k_address, _k) = k_part.device_ptr(self.stream);
        let (v_address, _v) = v_part.device_ptr(self.stream);
        let o_bytes = o.num_bytes() as u64;
        let (o_address, _o) = o.device_ptr_mut(self.stream);
        let lse = lse.map(|lse| lse.device_ptr_mut(self.stream));
        let lse_memory = DeviceMemory {
            address: lse.as_ref().map_or(own_lse, |(address, _)| *address),
            bytes: lse_bytes,
        };
        let input = |address, part: &CudaView<'_, T>, view: &View| {
            let bytes = part.num_bytes() as u64;
            DeviceTensor::new(
                DeviceMemory { address, bytes },
                self.dtype,
                view.shape,
                view.strides,
            )
            .map_err(Error::wrap)
        };
        let o_memory = DeviceMemory {
            address: o_address,
            bytes: o_bytes,
        };
        let o_shape = [batch, tokens, heads, head_dim];
        let operands = Operands::new(
            input(q_address, &q_part, q_view)?,
            input(k_address, &k_part, k_view)?,
            input(v_address, &v_part, v_view)?,
            DeviceTensor::bshd(o_memory, self.dtype, o_shape).map_err(Error::wrap)?,
            lse_memory,
            workspace,
        );
        match &self.attention.packed {
            None => {
                let arguments = plan.arguments(&operands).map_err(Error::wrap)?;
                self.run(state, &plan, &arguments)
            }
            Some(packed) => self.launch_packed(state, &plan, &operands, packed),
        }
    }

    fn launch_packed(
        &self,
        state: &mut StreamState,
        plan: &GpuPlan,
        operands: &Operands,
        packed: &Packed,
    ) -> Result<()> {
        let seqlens_q = Integers::new("seqlens_q", &packed.seqlens_q)?;
        let seqlens_k = Integers::new("seqlens_k", &packed.seqlens_k)?;
        let table = packed
            .pages
            .as_ref()
            .map(|pages| Integers::new("block_table", &pages.block_table))
            .transpose()?;
        let (cu_q, _cu_q) = seqlens_q.memory(self.device, self.stream)?;
        let (cu_k, _cu_k) = seqlens_k.memory(self.device, self.stream)?;
        let table = match &table {
            Some(table) => Some((table.memory(self.device, self.stream)?, table.row_stride()?)),
            None => None,
        };
        let pages = table.as_ref().map(|((table, _), stride)| PageTable {
            table: *table,
            stride: *stride,
            starts: None,
        });
        let operands = PackedOperands {
            q: operands.q,
            k: operands.k,
            v: operands.v,
            o: operands.o,
            lse: operands.lse,
            cu_q,
            cu_k,
            k_lens_each: false,
            pages,
            workspace: operands.workspace,
        };
        let arguments = plan.packed_arguments(&operands).map_err(Error::wrap)?;
        self.run(state, plan, &arguments)
    }

    fn run(&self, state: &mut StreamState, plan: &GpuPlan, arguments: &Arguments) -> Result<()> {
        let mut executor = state.executor(self.device, self.stream);
        plan.run(&mut executor, arguments)
    }
}

/// The memory from a view's first element on.
fn after<'a, T>(slice: &'a CudaSlice<T>, view: &View) -> CudaView<'a, T> {
    slice.slice(view.start.min(slice.len())..)
}
