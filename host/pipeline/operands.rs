//! Tensors in the memory of a GPU, checked against a plan before their addresses go into a launch.

use sample_attention_device::abi::KvTensor;
use sample_attention_device::gpu::Global;
use sample_attention_device::params::TensorArg;

use super::{Arguments, GpuPlan, Lengths, WORKSPACE_ALIGN_BYTES};
use crate::error::{Error, Result};
use crate::problem::Dtype;
use crate::shape::swap_middle;
use crate::tensor::{Layout, check_shape};

/// A range of a GPU's memory: an address of any driver, and the bytes from there on.
///
/// It holds nothing alive; whoever launches promises that the memory is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceMemory {
    /// Address of the first byte.
    pub address: u64,
    /// How many there are.
    pub bytes: u64,
}

impl DeviceMemory {
    fn check_aligned(&self, operand: &'static str, align: u64) -> Result<()> {
        if !self.address.is_multiple_of(align) {
            return Err(Error::Misaligned {
                operand,
                address: self.address,
                align,
            });
        }
        Ok(())
    }
}

/// A tensor [batch, heads, length, head_dim] in a GPU's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceTensor {
    address: u64,
    dtype: Dtype,
    layout: Layout,
}

impl DeviceTensor {
    /// A tensor with explicit strides, in elements, of [batch, heads, length, head_dim]; the last must be 1.
    ///
    /// # Errors
    /// [`Error::InnerStride`], [`Error::OutOfBounds`] and [`Error::ViewOverflow`].
    pub fn new(
        memory: impl Into<DeviceMemory>,
        dtype: Dtype,
        shape: [usize; 4],
        strides: [usize; 4],
    ) -> Result<Self> {
        let memory = memory.into();
        let len = memory.bytes as usize / dtype.bytes();
        Ok(DeviceTensor {
            address: memory.address,
            dtype,
            layout: Layout::new(shape, strides, len)?,
        })
    }

    /// A contiguous tensor in memory order [batch, heads, length, head_dim].
    ///
    /// # Errors
    /// As [`DeviceTensor::new`].
    pub fn bhsd(memory: impl Into<DeviceMemory>, dtype: Dtype, shape: [usize; 4]) -> Result<Self> {
        Self::new(memory, dtype, shape, Layout::dense(shape)?)
    }

    /// A contiguous tensor in memory order [batch, length, heads, head_dim], which is also the order of `shape`.
    ///
    /// # Errors
    /// As [`DeviceTensor::new`].
    pub fn bshd(memory: impl Into<DeviceMemory>, dtype: Dtype, shape: [usize; 4]) -> Result<Self> {
        let strides = Layout::dense(shape)?;
        Self::new(memory, dtype, swap_middle(shape), swap_middle(strides))
    }

    /// Address of the first element.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Shape as [batch, heads, length, head_dim].
    pub fn shape(&self) -> [usize; 4] {
        self.layout.shape
    }

    /// Element type.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// What the kernels take, where all rows begin at multiples of 16 bytes.
    fn argument(&self, tensor: &'static str) -> Result<TensorArg> {
        let Layout { shape, strides } = self.layout;
        // A stride over a single element is never taken.
        let taken = |dimension: usize| match shape[dimension] {
            1 => 0,
            _ => strides[dimension] as u64,
        };
        let [stride_batch, stride_head, stride_token] = [0, 1, 2].map(taken);
        let row_bytes = [stride_batch, stride_head, stride_token]
            .map(|stride| stride * self.dtype.bytes() as u64);
        if row_bytes.iter().chain([&self.address]).any(|n| n % 16 != 0) {
            return Err(Error::RowAlignment {
                tensor,
                address: self.address,
                strides,
            });
        }
        Ok(TensorArg {
            address: Global::from_address(self.address),
            stride_batch,
            stride_head,
            stride_token,
        })
    }

    fn input(&self, tensor: &'static str, shape: [usize; 4], dtype: Dtype) -> Result<TensorArg> {
        check_shape(tensor, shape, self.shape())?;
        if self.dtype != dtype {
            return Err(Error::Dtype {
                tensor,
                expected: dtype,
                given: self.dtype,
            });
        }
        self.argument(tensor)
    }

    /// An output takes the inputs' element type or f32, and has an address for each element.
    fn output(
        &self,
        tensor: &'static str,
        shape: [usize; 4],
        dtype_of_inputs: Dtype,
    ) -> Result<TensorArg> {
        let dtype = match self.dtype {
            Dtype::F32 => Dtype::F32,
            _ => dtype_of_inputs,
        };
        let argument = self.input(tensor, shape, dtype)?;
        if !self.layout.is_injective() {
            return Err(Error::OverlappingOutput {
                shape: self.layout.shape,
                strides: self.layout.strides,
            });
        }
        Ok(argument)
    }
}

/// Everything that one run of a plan reads, writes and works in.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Operands {
    /// Queries [batch, q_heads, q_len, head_dim].
    pub q: DeviceTensor,
    /// Keys [batch, kv_heads, k_len, head_dim].
    pub k: DeviceTensor,
    /// Values [batch, kv_heads, k_len, head_dim].
    pub v: DeviceTensor,
    /// Output [batch, q_heads, q_len, head_dim], in the inputs' element type or f32. Rows that see no key become 0.
    pub o: DeviceTensor,
    /// Output: natural log-sum-exp of each row's kept, scaled scores, f32, contiguous [batch, q_heads, q_len] or longer.
    /// Rows that see no key become −∞.
    pub lse: DeviceMemory,
    /// [`GpuPlan::workspace_bytes`] bytes or more, at a multiple of [`WORKSPACE_ALIGN_BYTES`], with any contents.
    pub workspace: DeviceMemory,
}

impl Operands {
    /// The operands of a run, each of which the field of its name describes.
    pub fn new(
        q: DeviceTensor,
        k: DeviceTensor,
        v: DeviceTensor,
        o: DeviceTensor,
        lse: DeviceMemory,
        workspace: DeviceMemory,
    ) -> Self {
        Operands {
            q,
            k,
            v,
            o,
            lse,
            workspace,
        }
    }
}

/// Everything that one run of a plan of [`GpuPlan::for_bounds`] reads, writes and works in. Lengths and page numbers are read on the
/// device: the host does not see whether they are what they should be. Lengths beyond the plan's bounds are cut to them.
#[derive(Clone, Copy, Debug)]
pub struct PackedOperands {
    /// Queries [1, q_heads, total_q, head_dim]: one sequence after the other.
    pub q: DeviceTensor,
    /// Keys [1, kv_heads, total_k, head_dim]; or, with `pages`, [pages, kv_heads, page tokens, head_dim].
    pub k: DeviceTensor,
    /// Values, as the keys.
    pub v: DeviceTensor,
    /// Output, as the queries, in the inputs' element type or f32.
    pub o: DeviceTensor,
    /// Output: natural log-sum-exp, f32, contiguous [q_heads, total_q].
    pub lse: DeviceMemory,
    /// \[sequences + 1\] of u32: cumulative queries.
    pub cu_q: DeviceMemory,
    /// \[sequences + 1\] of u32: cumulative keys; with `k_lens_each` \[sequences\], one length each, for pages alone.
    pub cu_k: DeviceMemory,
    /// Whether `cu_k` holds one length a sequence.
    pub k_lens_each: bool,
    /// Where the tokens of each sequence lie, if keys and values are paged.
    pub pages: Option<PageTable>,
    /// As in [`Operands`].
    pub workspace: DeviceMemory,
}

/// The page numbers of each sequence, u32 (or i32): entries beyond a sequence's length are never read.
#[derive(Clone, Copy, Debug)]
pub struct PageTable {
    /// The page numbers.
    pub table: DeviceMemory,
    /// Entries from a sequence's to the next's.
    pub stride: u32,
    /// \[sequences + 1\] of u32: where each sequence's begin, in place of the stride.
    pub starts: Option<DeviceMemory>,
}

impl GpuPlan {
    /// The operands as launches take them.
    ///
    /// # Errors
    /// Tensors that do not fit the problem, [`Error::RowAlignment`], [`Error::OverlappingOutput`],
    /// [`Error::WorkspaceTooSmall`] and [`Error::Misaligned`].
    pub fn arguments(&self, operands: &Operands) -> Result<Arguments> {
        let problem = self.problem();
        let Operands {
            q,
            k,
            v,
            o,
            lse,
            workspace,
        } = operands;
        let lse_len = (lse.bytes / 4) as usize;
        problem.check_lse(lse_len.min(problem.lse_len()))?;
        lse.check_aligned("lse", 4)?;
        self.check_workspace(workspace)?;
        if self.is_ragged() {
            return Err(Error::LengthsMissing);
        }
        let sizes = self.sizes();
        Ok(Arguments {
            q: q.input("q", problem.q_shape(), problem.dtype)?,
            k: KvTensor::strided(k.input("k", problem.kv_shape(), problem.dtype)?),
            v: KvTensor::strided(v.input("v", problem.kv_shape(), problem.dtype)?),
            kv_extents: [sizes.batch, sizes.kv_heads, sizes.k_len],
            q_tokens: sizes.q_len,
            o: o.output("o", problem.q_shape(), problem.dtype)?,
            o_dtype: o.dtype(),
            lse: Global::from_address(lse.address),
            lengths: Lengths::EQUAL,
            workspace: Global::from_address(workspace.address),
        })
    }

    /// The operands of a plan of [`GpuPlan::for_bounds`] as launches take them.
    ///
    /// # Errors
    /// As [`GpuPlan::arguments`], and [`Error::PageTokens`].
    pub fn packed_arguments(&self, operands: &PackedOperands) -> Result<Arguments> {
        let problem = self.problem();
        let Some(total_q) = self.total_q() else {
            return Err(Error::LengthsUnexpected);
        };
        let PackedOperands {
            q,
            k,
            v,
            o,
            lse,
            cu_q,
            cu_k,
            k_lens_each,
            pages,
            workspace,
        } = operands;
        let [_, _, q_tokens, _] = q.shape();
        if q_tokens < total_q {
            return Err(Error::LseLen {
                expected: total_q,
                given: q_tokens,
            });
        }
        let q_shape = [1, problem.q_heads, q_tokens, problem.head_dim];
        let lse_len = problem.q_heads * q_tokens;
        let given = (lse.bytes / 4) as usize;
        if given < lse_len {
            return Err(Error::LseLen {
                expected: lse_len,
                given,
            });
        }
        lse.check_aligned("lse", 4)?;
        cu_q.check_aligned("cu_q", 4)?;
        cu_k.check_aligned("cu_k", 4)?;
        self.check_workspace(workspace)?;
        let [kv_batch, _, kv_tokens, _] = k.shape();
        let kv_shape = [kv_batch, problem.kv_heads, kv_tokens, problem.head_dim];
        let page_log2 = match pages {
            None => 0,
            Some(_) if matches!(kv_tokens, 16 | 32 | 64 | 128) => kv_tokens.ilog2(),
            Some(_) => return Err(Error::PageTokens { given: kv_tokens }),
        };
        let keys = |rows| match pages {
            None => KvTensor::strided(rows),
            Some(pages) => KvTensor {
                rows,
                block_table: Global::from_address(pages.table.address),
                table_starts: pages
                    .starts
                    .map_or(Global::NULL, |starts| Global::from_address(starts.address)),
                table_stride: pages.stride,
                page_log2,
            },
        };
        Ok(Arguments {
            q: q.input("q", q_shape, problem.dtype)?,
            k: keys(k.input("k", kv_shape, problem.dtype)?),
            v: keys(v.input("v", kv_shape, problem.dtype)?),
            kv_extents: [kv_batch, problem.kv_heads, kv_tokens].map(|size| size as u32),
            q_tokens: q_tokens as u32,
            o: o.output("o", q_shape, problem.dtype)?,
            o_dtype: o.dtype(),
            lse: Global::from_address(lse.address),
            lengths: Lengths {
                cu_q: Global::from_address(cu_q.address),
                cu_k: Global::from_address(cu_k.address),
                k_lens_each: *k_lens_each,
            },
            workspace: Global::from_address(workspace.address),
        })
    }

    pub(crate) fn check_workspace(&self, workspace: &DeviceMemory) -> Result<()> {
        let needed = self.workspace_bytes();
        if workspace.bytes < needed {
            return Err(Error::WorkspaceTooSmall {
                needed: needed as usize,
                given: workspace.bytes as usize,
            });
        }
        match needed {
            0 => Ok(()),
            _ => workspace.check_aligned("the workspace", WORKSPACE_ALIGN_BYTES),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{Budget, Policy};
    use crate::problem::Problem;

    const SHAPE: [usize; 4] = [2, 4, 300, 64];

    fn problem() -> Problem {
        Problem {
            batch: 2,
            q_heads: 4,
            kv_heads: 4,
            ..Problem::causal(300, 64, Dtype::Bf16)
        }
    }

    fn plan() -> GpuPlan {
        let never = crate::policy::Fallback::Never;
        let policy = Policy {
            fallback: never,
            ..Policy::of(Budget::Blocks)
        };
        GpuPlan::new(problem(), policy).unwrap()
    }

    fn memory(address: u64, bytes: u64) -> DeviceMemory {
        DeviceMemory { address, bytes }
    }

    fn tensor(address: u64) -> DeviceTensor {
        DeviceTensor::bhsd(memory(address, 2 * 4 * 300 * 64 * 2), Dtype::Bf16, SHAPE).unwrap()
    }

    fn operands() -> Operands {
        Operands {
            q: tensor(1 << 20),
            k: tensor(2 << 20),
            v: tensor(3 << 20),
            o: tensor(4 << 20),
            lse: memory(5 << 20, 2 * 4 * 300 * 4),
            workspace: memory(6 << 20, plan().workspace_bytes()),
        }
    }

    #[test]
    fn operands_that_fit_become_arguments() {
        let arguments = plan().arguments(&operands()).unwrap();
        let TensorArg {
            stride_batch,
            stride_head,
            stride_token,
            ..
        } = arguments.q;
        assert_eq!(
            [stride_batch, stride_head, stride_token],
            [4 * 300 * 64, 300 * 64, 64]
        );
        assert_eq!(arguments.workspace.address(), 6 << 20);
    }

    #[test]
    fn the_workspace_is_needed_to_the_last_byte_and_aligned() {
        let given = Operands {
            workspace: memory(6 << 20, plan().workspace_bytes() - 1),
            ..operands()
        };
        let error = plan().arguments(&given).unwrap_err();
        assert!(matches!(error, Error::WorkspaceTooSmall { .. }), "{error}");
        let given = Operands {
            workspace: memory((6 << 20) + 128, plan().workspace_bytes()),
            ..operands()
        };
        let error = plan().arguments(&given).unwrap_err();
        assert!(error.to_string().contains("multiple of 256"), "{error}");
    }

    #[test]
    fn rows_are_aligned_wherever_they_begin() {
        let odd = |address, strides| {
            DeviceTensor::new(memory(address, 1 << 24), Dtype::Bf16, SHAPE, strides).unwrap()
        };
        let dense = [4 * 300 * 64, 300 * 64, 64, 1];
        for q in [
            odd(1 << 20 | 8, dense),
            odd(1 << 20, [4 * 300 * 68, 300 * 68, 68, 1]),
            odd(1 << 20, [4 * 300 * 64 + 4, 300 * 64, 64, 1]),
        ] {
            let error = plan().arguments(&Operands { q, ..operands() }).unwrap_err();
            assert!(matches!(error, Error::RowAlignment { .. }), "{error}");
            assert!(error.to_string().contains("copy the tensor"), "{error}");
        }
        // f32 rows may be 4 elements apart from a multiple of 8.
        let o = DeviceTensor::new(
            memory(4 << 20, 1 << 24),
            Dtype::F32,
            SHAPE,
            [4 * 300 * 68, 300 * 68, 68, 1],
        );
        let given = Operands {
            o: o.unwrap(),
            ..operands()
        };
        assert_eq!(plan().arguments(&given).unwrap().o.stride_token, 68);
    }

    #[test]
    fn an_output_that_overlaps_itself_is_refused() {
        let o = DeviceTensor::new(
            memory(4 << 20, 1 << 24),
            Dtype::Bf16,
            SHAPE,
            [0, 300 * 64, 64, 1],
        );
        let given = Operands {
            o: o.unwrap(),
            ..operands()
        };
        let error = plan().arguments(&given).unwrap_err();
        assert!(matches!(error, Error::OverlappingOutput { .. }), "{error}");
    }

    #[test]
    fn types_shapes_and_lengths_are_those_of_the_problem() {
        let mut wrong = Vec::new();
        let short = DeviceTensor::bhsd(memory(1 << 20, 1 << 24), Dtype::Bf16, [2, 4, 299, 64]);
        let f16 = DeviceTensor::bhsd(memory(1 << 20, 1 << 24), Dtype::F16, SHAPE).unwrap();
        wrong.push((
            Operands {
                v: short.unwrap(),
                ..operands()
            },
            "v has shape",
        ));
        wrong.push((
            Operands {
                k: f16,
                ..operands()
            },
            "k is f16",
        ));
        wrong.push((
            Operands {
                o: f16,
                ..operands()
            },
            "o is f16",
        ));
        wrong.push((
            Operands {
                lse: memory(5 << 20, 2 * 4 * 300 * 4 - 1),
                ..operands()
            },
            "lse has",
        ));
        wrong.push((
            Operands {
                lse: memory((5 << 20) + 2, 1 << 20),
                ..operands()
            },
            "lse begins at 0x500002",
        ));
        for (operands, words) in wrong {
            let error = plan().arguments(&operands).unwrap_err();
            assert!(error.to_string().contains(words), "{error}");
        }
        let too_long = DeviceTensor::bhsd(memory(0, 2 * 4 * 300 * 64 * 2 - 1), Dtype::Bf16, SHAPE);
        assert!(matches!(too_long, Err(Error::OutOfBounds { .. })));
    }
}
