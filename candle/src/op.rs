//! One custom op for all functions, on whichever device.

use candle_core::op::BackpropOp;
use candle_core::{CpuStorage, CudaStorage, CustomOp3, Layout, Result, Shape, Tensor, bail};

use crate::call::{Attention, LseSlot};
use crate::cpu;
use crate::policies::Visible;
use crate::workspace::Workspace;

impl Attention {
    /// Shape of the log-sum-exp: [batch, heads, tokens], or [heads, tokens] of packed sequences.
    fn lse_shape(&self, q: &Tensor) -> Result<Shape> {
        Ok(match self.packed {
            None => {
                let (batch, tokens, heads, _) = q.dims4()?;
                (batch, heads, tokens).into()
            }
            Some(_) => {
                let (tokens, heads, _) = q.dims3()?;
                (heads, tokens).into()
            }
        })
    }

    /// The output, as q.
    ///
    /// # Errors
    /// What the call cannot compute.
    pub(crate) fn run(self, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
        q.apply_op3(k, v, Op::new(self, None))
    }

    /// The same, and the natural log-sum-exp of each row, f32.
    ///
    /// # Errors
    /// As [`Attention::run`].
    pub(crate) fn run_with_lse(
        self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
    ) -> Result<(Tensor, Tensor)> {
        let shape = self.lse_shape(q)?;
        let lse = LseSlot::default();
        let o = q.apply_op3(k, v, Op::new(self, Some(lse.clone())))?;
        let Some(lse) = lse.take() else {
            bail!("the backend returned no log-sum-exp")
        };
        let lse = Tensor::from_storage(lse, shape, BackpropOp::none(), false);
        Ok((o, lse))
    }
}

struct Op {
    attention: Attention,
    workspace: Workspace,
    lse: Option<LseSlot>,
}

impl Op {
    fn new(attention: Attention, lse: Option<LseSlot>) -> Self {
        Op {
            attention,
            workspace: Workspace::current(),
            lse,
        }
    }
}

impl CustomOp3 for Op {
    fn name(&self) -> &'static str {
        match self.attention.visible {
            Visible::Dense { .. } => "flash-attn",
            Visible::Same(_) | Visible::PerHead(_) => "sample-attn",
        }
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        q_layout: &Layout,
        k: &CpuStorage,
        k_layout: &Layout,
        v: &CpuStorage,
        v_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let views = self.attention.views(q_layout, k_layout, v_layout)?;
        let lse = self.lse.as_ref();
        let o = cpu::forward(&self.attention, &self.workspace, lse, (q, k, v), &views)?;
        Ok((o, q_layout.shape().clone()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        q: &CudaStorage,
        q_layout: &Layout,
        k: &CudaStorage,
        k_layout: &Layout,
        v: &CudaStorage,
        v_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let views = self.attention.views(q_layout, k_layout, v_layout)?;
        let lse = self.lse.as_ref();
        let o = crate::cuda::forward(&self.attention, &self.workspace, lse, (q, k, v), &views)?;
        Ok((o, q_layout.shape().clone()))
    }

    #[cfg(not(feature = "cuda"))]
    fn cuda_fwd(
        &self,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        bail!("candle-sample-attention was built without its feature \"cuda\"")
    }
}
