//! Everything that can be wrong with a call, each with its remedy.

mod cuda;
mod driver_code;

pub use cuda::CudaError;
pub use driver_code::DriverCode;

use crate::dtype::{Dtype, MAX_HEAD_DIM, MAX_SCALE};
use crate::shape::swap_middle;

/// The crate's result type.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Whether a shape is the expected one with heads and length exchanged: that of another memory order.
fn is_transposed(expected: [usize; 4], given: [usize; 4]) -> bool {
    given == swap_middle(expected)
}

const BSHD_REMEDY: &str = ": heads and length are exchanged; bhsd takes Problem::q_shape and kv_shape, bshd takes Problem::q_shape_bshd and kv_shape_bshd";

/// A call that cannot be carried out. Nothing has been written when one is returned.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A size of the problem is zero.
    #[error(
        "{name} is 0; every size of a problem must be at least 1 (skip the call when there is nothing to attend)"
    )]
    ZeroSize {
        /// Field of [`Problem`](crate::Problem).
        name: &'static str,
    },
    /// Query heads do not divide evenly among key/value heads.
    #[error(
        "q_heads ({q_heads}) is not a multiple of kv_heads ({kv_heads}); each key/value head serves the same number of query heads"
    )]
    HeadsNotDivisible {
        /// Query heads.
        q_heads: usize,
        /// Key/value heads.
        kv_heads: usize,
    },
    /// The head dimension has no kernel.
    #[error(
        "head_dim {head_dim} is not supported: use a multiple of 8 up to {MAX_HEAD_DIM}, padding q, k and v with zeros"
    )]
    HeadDim {
        /// The given head_dim.
        head_dim: usize,
    },
    /// The softmax scale is NaN, infinite, or too large.
    #[error(
        "softmax_scale is {scale}; it must be finite, at most {max:e} in magnitude (usually 1/sqrt(head_dim))",
        max = MAX_SCALE
    )]
    Scale {
        /// The given scale.
        scale: f32,
    },
    /// The softcap is NaN, infinite, or not positive.
    #[error("softcap is {softcap}; it must be positive and finite (50 in Gemma 2), or None")]
    Softcap {
        /// The given softcap.
        softcap: f32,
    },
    /// Not one sink logit a query head.
    #[error(
        "{given} sink logits for {q_heads} query heads; give one for each query head of a sequence"
    )]
    SinkLogits {
        /// Logits given.
        given: usize,
        /// Query heads of the problem.
        q_heads: usize,
    },
    /// A model's own window in a problem that is not causal, with the caller's own selection.
    #[error(
        "own selections with a window_left are for causal problems only; use Plan::dense and run, or set causal"
    )]
    SelectionWindow,
    /// What the GPU kernels do not have of a model's attention.
    #[error("the GPU kernels have no {what}: use the CPU backend")]
    KernelModel {
        /// Which part.
        what: &'static str,
    },
    /// A length exceeds what the indices hold.
    #[error(
        "{name} is {len}; at most {max} tokens are supported, so split the sequence into chunks"
    )]
    TooLong {
        /// Field of [`Problem`](crate::Problem).
        name: &'static str,
        /// The given length.
        len: usize,
        /// The limit.
        max: usize,
    },
    /// A tensor of this shape does not fit the address space.
    #[error(
        "a tensor of shape {shape:?} overflows the address space; split the batch or the heads"
    )]
    SizeOverflow {
        /// Shape as [batch, heads, length, head_dim].
        shape: [usize; 4],
    },
    /// The lists of a selection do not fit the address space, or the memory that there is.
    #[error(
        "a selection of {heads} heads over {k_len} keys does not fit in memory; split the batch, the heads or the sequence"
    )]
    SelectionTooLarge {
        /// Sequences times query heads.
        heads: usize,
        /// Keys of each.
        k_len: usize,
    },
    /// What a plan works in does not fit the address space.
    #[error(
        "the workspace for {heads} heads over {k_len} keys on {threads} threads overflows the address space; use fewer threads, or split the batch or the heads"
    )]
    WorkspaceTooLarge {
        /// Sequences times query heads.
        heads: usize,
        /// Keys of each.
        k_len: usize,
        /// Tasks at a time.
        threads: usize,
    },
    /// Sparse selection of a problem that is not causal.
    #[error(
        "sparse selection is defined for causal problems only; use Plan::dense, or bring your own Selection, when causal is false"
    )]
    SparseNeedsCausal,
    /// Coverage outside (0, 1].
    #[error("coverage is {coverage}; it must be above 0 and at most 1 (0.75 by default)")]
    Coverage {
        /// The given coverage.
        coverage: f32,
    },
    /// A row stride of zero.
    #[error("row_stride is 0; use 1 to sample every row, 8 by default")]
    RowStride,
    /// A stride of zero for the tail.
    #[error(
        "tail_stride is 0; use 1 to sample every row of the tail, 4 by default; tail = 0 has none"
    )]
    TailStride,
    /// Row strides that double from position 0 on.
    #[error(
        "stride_doubles_from is 0; it must be at least 1; usize::MAX, the default, never doubles the row stride"
    )]
    StrideDoublesFrom,
    /// An empty window.
    #[error("the window has 0 tokens; a query always sees itself, so use at least 1")]
    WindowTokens,
    /// Window ratio outside (0, 1].
    #[error("the window ratio is {ratio}; it must be above 0 and at most 1 (the paper uses 0.08)")]
    WindowRatio {
        /// The given ratio.
        ratio: f32,
    },
    /// A stage before the one that it needs the results of.
    #[error("{stage} of wave {wave} needs {needed} first; Plan::run calls the stages in order")]
    StageOrder {
        /// What was asked for.
        stage: &'static str,
        /// The wave that it was asked of.
        wave: usize,
        /// What has to be called before.
        needed: &'static str,
    },
    /// Not one policy a query head.
    #[error(
        "{given} head policies for {q_heads} query heads; give one for each query head of a sequence"
    )]
    HeadPolicies {
        /// Policies given.
        given: usize,
        /// Query heads of the problem.
        q_heads: usize,
    },
    /// A plan for no threads.
    #[error("a plan needs at least 1 thread")]
    NoThreads,
    /// The machine lacks the vector instructions.
    #[error(
        "this machine has no {instruction_set} instructions; InstructionSet::available lists what it has"
    )]
    NoSuchInstructionSet {
        /// The given set.
        instruction_set: &'static str,
    },
    /// A tensor does not have the shape that the problem says.
    #[error(
        "{tensor} has shape {given:?}, but the problem needs {expected:?} (batch, heads, length, head_dim){}",
        if is_transposed(*expected, *given) { BSHD_REMEDY } else { "" }
    )]
    Shape {
        /// Which tensor.
        tensor: &'static str,
        /// Shape that the problem needs.
        expected: [usize; 4],
        /// Shape of the view.
        given: [usize; 4],
    },
    /// A tensor does not have the element type that the problem says.
    #[error(
        "{tensor} is {given}, but the problem says {expected}; set Problem::dtype or convert the tensor"
    )]
    Dtype {
        /// Which tensor.
        tensor: &'static str,
        /// Element type that the problem needs.
        expected: Dtype,
        /// Element type of the view.
        given: Dtype,
    },
    /// Elements of one query, key or value do not lie side by side.
    #[error(
        "the stride of head_dim is {stride}; elements of one row must lie side by side (stride 1), so copy or transpose the tensor"
    )]
    InnerStride {
        /// The given stride.
        stride: usize,
    },
    /// A view reaches beyond its buffer.
    #[error(
        "a view of shape {shape:?} and strides {strides:?} reaches element {last}, but the buffer has {len}; check the strides (in elements) or pass a longer slice"
    )]
    OutOfBounds {
        /// Shape of the view.
        shape: [usize; 4],
        /// Strides in elements.
        strides: [usize; 4],
        /// Highest element index that the view reaches.
        last: usize,
        /// Length of the buffer in elements.
        len: usize,
    },
    /// Index arithmetic of a view overflows.
    #[error("a view of shape {shape:?} and strides {strides:?} overflows the address space")]
    ViewOverflow {
        /// Shape of the view.
        shape: [usize; 4],
        /// Strides in elements.
        strides: [usize; 4],
    },
    /// Two elements of an output share an address.
    #[error(
        "the output view of shape {shape:?} and strides {strides:?} overlaps itself; every element of an output needs its own address"
    )]
    OverlappingOutput {
        /// Shape of the view.
        shape: [usize; 4],
        /// Strides in elements.
        strides: [usize; 4],
    },
    /// The log-sum-exp output has another length than batch · q_heads · q_len.
    #[error("lse has {given} elements, but batch x q_heads x q_len is {expected}")]
    LseLen {
        /// Needed elements.
        expected: usize,
        /// Given elements.
        given: usize,
    },
    /// The workspace is shorter than the plan needs.
    #[error(
        "the workspace has {given} bytes, but this plan needs {needed}: pass as many as its workspace_bytes says"
    )]
    WorkspaceTooSmall {
        /// Needed bytes.
        needed: usize,
        /// Given bytes.
        given: usize,
    },
    /// A selection for a problem of other sizes.
    #[error(
        "the selection is for {given:?} (batch, q_heads, q_len, k_len, causal as 0 or 1), but the problem has {expected:?}"
    )]
    SelectionShape {
        /// Sizes of the problem.
        expected: [usize; 5],
        /// Sizes of the selection.
        given: [usize; 5],
    },
    /// A selection with other sinks than the plan of [`GpuPlan::given`](crate::pipeline::GpuPlan::given).
    #[error(
        "the selection keeps {given} sinks, but the plan was made for {expected}: pass Selection::sinks to GpuPlan::given"
    )]
    SelectionSinks {
        /// Sinks of the plan.
        expected: usize,
        /// Sinks of the selection.
        given: usize,
    },
    /// A plan of [`GpuPlan::given`](crate::pipeline::GpuPlan::given) was run without the lists that it attends to.
    #[error(
        "this plan attends to the caller's lists, and none were given: use Emulator::attend, or GpuPlan::new or GpuPlan::dense for a plan without them"
    )]
    ListsMissing,
    /// Lists for a plan that takes none.
    #[error("this plan has no room for the caller's lists: make it with GpuPlan::given")]
    NoLists,
    /// A head, block or key index of a selection is out of range.
    #[error("{what} {index} of the selection is out of range: there are {count}")]
    SelectionIndex {
        /// What the index counts.
        what: &'static str,
        /// The given index.
        index: usize,
        /// How many there are.
        count: usize,
    },
    /// Stripes that do not ascend.
    #[error(
        "stripes must ascend without repeats, but {next} follows {previous}; sort and deduplicate them"
    )]
    StripesNotAscending {
        /// A stripe.
        previous: u32,
        /// The one after it.
        next: u32,
    },
    /// The GPU kernels have no entry for this element type.
    #[error(
        "the GPU kernels take f16 and bf16, but the problem says {dtype}: convert q, k and v, or use the CPU backend"
    )]
    KernelDtype {
        /// Element type of the problem.
        dtype: Dtype,
    },
    /// The GPU kernels have no entry for this head dimension.
    #[error(
        "head_dim {head_dim} has no GPU kernel, only 64 and 128: pad q, k and v with zeros, or use the CPU backend"
    )]
    KernelHeadDim {
        /// The given head_dim.
        head_dim: usize,
    },
    /// More heads than one launch of the GPU kernels takes.
    #[error(
        "batch x q_heads is {heads}; the GPU kernels take at most {max} at once, so split the batch"
    )]
    KernelHeads {
        /// Sequences times query heads.
        heads: usize,
        /// The limit.
        max: usize,
    },
    /// Operands without lengths for a plan of [`GpuPlan::for_bounds`](crate::pipeline::GpuPlan::for_bounds).
    #[error("the plan takes its lengths from the device: use GpuPlan::packed_arguments")]
    LengthsMissing,
    /// Operands with lengths for a plan of equal ones.
    #[error(
        "the plan is for equal lengths: use GpuPlan::arguments, or plan with GpuPlan::for_bounds"
    )]
    LengthsUnexpected,
    /// An entry of the block table that is in use and names no page.
    #[error(
        "entry {slot} of the block table of sequence {sequence} is {page}, but there are {pages} pages"
    )]
    PageNumber {
        /// The sequence.
        sequence: usize,
        /// The entry, counted from the sequence's first.
        slot: usize,
        /// The page number.
        page: i64,
        /// Pages.
        pages: usize,
    },
    /// Fewer entries of the block table than a sequence has pages.
    #[error(
        "sequence {sequence} lies in {needed} pages, but its row of the block table has {given} entries"
    )]
    BlockTableShort {
        /// The sequence.
        sequence: usize,
        /// Pages that its keys take.
        needed: usize,
        /// Entries of its row.
        given: usize,
    },
    /// Not as many lengths as the batch has sequences.
    #[error(
        "{name} has {given} entries, but the plan needs {expected}: one for each sequence, and one more where they are cumulative"
    )]
    SeqlensCount {
        /// Which lengths.
        name: &'static str,
        /// Entries needed.
        expected: usize,
        /// Entries given.
        given: usize,
    },
    /// Lengths that are negative, or cumulative ones that fall.
    #[error(
        "{name} goes from {from} to {to} at sequence {sequence}: lengths must not be negative, and cumulative ones must not fall"
    )]
    SeqlensFall {
        /// Which lengths.
        name: &'static str,
        /// The sequence.
        sequence: usize,
        /// Where it begins.
        from: i64,
        /// Where it ends.
        to: i64,
    },
    /// A sequence that is longer than the plan's bound.
    #[error(
        "sequence {sequence} has {len} tokens by {name}, but the plan was made for {bound} = {max}: plan with larger bounds"
    )]
    SeqlensLong {
        /// Which lengths.
        name: &'static str,
        /// The sequence.
        sequence: usize,
        /// Its tokens.
        len: usize,
        /// Which bound.
        bound: &'static str,
        /// The bound.
        max: usize,
    },
    /// Sequences that reach beyond the tensor, or beyond the plan's `total_q`.
    #[error("{name} ends at token {end}, but the tensor and the plan's bounds have {tokens}")]
    SeqlensEnd {
        /// Which lengths.
        name: &'static str,
        /// Where the last sequence ends.
        end: usize,
        /// Tokens that there are.
        tokens: usize,
    },
    /// Lengths that are not cumulative, or beyond the bounds of the plan or the tensors.
    #[error(
        "{name} of sequence {sequence} is {given}: it must not fall, and be within the plan's bounds and the tensor's tokens"
    )]
    PackedLength {
        /// Which lengths.
        name: &'static str,
        /// The sequence.
        sequence: usize,
        /// The number.
        given: u32,
    },
    /// A page of a number of tokens that the kernels do not take.
    #[error("pages of {given} tokens: use 16, 32, 64 or 128")]
    PageTokens {
        /// Tokens of a page.
        given: usize,
    },
    /// Heads of one plan of the GPU kernels that keep different sinks.
    #[error("heads keep {expected} and {given} sinks: give all heads of a GpuPlan the same number")]
    HeadSinks {
        /// Of the first head that has any.
        expected: usize,
        /// Of another.
        given: usize,
    },
    /// A kernel broke a rule of the hardware, as the emulator found.
    #[error(
        "{fault} (a mistake in a kernel of sample-attention, not in the call: please report it)"
    )]
    KernelFault {
        /// The emulator's diagnosis.
        fault: String,
    },
    /// Memory of a device at an address that is not aligned.
    #[error(
        "{operand} begins at {address:#x}; it must begin at a multiple of {align} bytes, as an allocation of a GPU does"
    )]
    Misaligned {
        /// Which operand.
        operand: &'static str,
        /// The given address.
        address: u64,
        /// What it must be a multiple of.
        align: u64,
    },
    /// A tensor on a device whose rows the kernels cannot take where they lie.
    #[error(
        "rows of {tensor} do not all begin at multiples of 16 bytes (address {address:#x}, strides {strides:?} elements): use strides that are multiples of 16 bytes, or copy the tensor"
    )]
    RowAlignment {
        /// Which tensor.
        tensor: &'static str,
        /// Address of the first element.
        address: u64,
        /// Strides in elements.
        strides: [usize; 4],
    },
    /// A failure of the CUDA executor.
    #[error(transparent)]
    Cuda(#[from] CudaError),
    /// A wave was asked for that the run does not have.
    #[error(
        "there is no wave {wave}: this run selects in {waves} (a dense plan in none; Plan::new with Fallback::Never always selects)"
    )]
    NoSuchWave {
        /// The given wave.
        wave: usize,
        /// How many there are.
        waves: usize,
    },
}
