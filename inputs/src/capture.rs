//! Attention inputs that own their memory, and the safetensors files that hold them.
//!
//! A capture file has three tensors of one type (bf16, f16 or f32): `q` [batch, query heads, queries, head_dim], `k` and
//! `v` [batch, key/value heads, keys, head_dim], with any rotary embedding already applied. Other tensors in the file are
//! ignored. [`Layout::Bshd`] reads files whose heads come after the tokens. Reading trusts nothing in the file: sizes are checked against the file's length before memory is taken.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};
use std::path::Path;

use half::{bf16, f16};
use safetensors::tensor::{Dtype as FileDtype, Metadata, TensorInfo};
use sample_attention::{Dtype, Inputs, Problem, TensorView};

/// The capture that comes with this crate, two heads of a layer that is easily sparse: 4096 tokens, head_dim 128, bf16.
static CARRIED: &[u8] = include_bytes!("../data/qkv-layer3-4096.safetensors");

/// Name of the file that [`Capture::carried`] reads.
pub const CARRIED_NAME: &str = "qkv-layer3-4096.safetensors";

/// Order of the dimensions in a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Layout {
    /// [batch, heads, length, head_dim], which [`Capture`] holds.
    #[default]
    Bhsd,
    /// [batch, length, heads, head_dim], as FlashAttention's interfaces take it.
    Bshd,
}

impl Layout {
    /// The dimensions in words.
    pub fn dimensions(self) -> &'static str {
        match self {
            Layout::Bhsd => "[batch, heads, length, head_dim]",
            Layout::Bshd => "[batch, length, heads, head_dim]",
        }
    }

    /// Sizes in this order as [batch, heads, length, head_dim].
    fn canonical(self, [batch, second, third, head_dim]: [usize; 4]) -> [usize; 4] {
        match self {
            Layout::Bhsd => [batch, second, third, head_dim],
            Layout::Bshd => [batch, third, second, head_dim],
        }
    }
}

/// Why a capture could not be read, written or made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CaptureError {
    /// The file cannot be opened, read or written.
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// A directory, pipe or device.
    #[error("it is not a regular file")]
    NotAFile,
    /// The length of the header is not credible.
    #[error(
        "it is not a safetensors file: its header claims {claimed} bytes, but {available} follow and at most {MAX_HEADER_BYTES} are read"
    )]
    HeaderLength {
        /// Header length that the file states.
        claimed: u64,
        /// Bytes after the statement.
        available: u64,
    },
    /// Too short to state the length of its header.
    #[error(
        "it is not a safetensors file: it has {len} bytes, and the header's length alone takes 8"
    )]
    TooShort {
        /// Length of the file in bytes.
        len: u64,
    },
    /// The header does not describe tensors that lie one after the other.
    #[error("its safetensors header is invalid: {0}")]
    Header(#[from] serde_json::Error),
    /// The tensors do not fill the file.
    #[error(
        "it is truncated or has extra bytes: its tensors take {needed} bytes, but {available} follow the header"
    )]
    BodyLength {
        /// Bytes that the header describes.
        needed: u64,
        /// Bytes after the header.
        available: u64,
    },
    /// One of the three tensors is missing.
    #[error("it has no tensor `{name}`; q, k and v are needed (this file has: {present})")]
    Missing {
        /// The missing tensor.
        name: &'static str,
        /// Names of the file's tensors.
        present: String,
    },
    /// An element type that attention is not computed in.
    #[error("tensor `{name}` is {dtype:?}; bf16, f16 or f32 is needed")]
    DtypeUnsupported {
        /// The tensor.
        name: &'static str,
        /// Its type in the file.
        dtype: FileDtype,
    },
    /// The three tensors are not of one type.
    #[error("tensor `{name}` is {given}, but `q` is {expected}; q, k and v need one type")]
    DtypeMismatch {
        /// The tensor.
        name: &'static str,
        /// Type of q.
        expected: Dtype,
        /// Type of the tensor.
        given: Dtype,
    },
    /// Not four dimensions.
    #[error("tensor `{name}` has {rank} dimensions; {} is needed", layout.dimensions())]
    Rank {
        /// The tensor.
        name: &'static str,
        /// Its number of dimensions.
        rank: usize,
        /// The order that it was to be read in.
        layout: Layout,
    },
    /// Two tensors disagree about a size that they share.
    #[error("`{left}` and `{right}` differ in {size}: {left_size} and {right_size}")]
    Mismatch {
        /// The size that they should share.
        size: &'static str,
        /// A tensor.
        left: &'static str,
        /// Its size.
        left_size: usize,
        /// Another tensor.
        right: &'static str,
        /// Its size.
        right_size: usize,
    },
    /// The shapes agree with each other, but are not a problem that the library takes.
    #[error(transparent)]
    Problem(#[from] sample_attention::Error),
    /// The allocator refused.
    #[error("tensor `{name}` needs {bytes} bytes, more memory than this machine gives")]
    OutOfMemory {
        /// The tensor.
        name: &'static str,
        /// Its size.
        bytes: usize,
    },
}

/// Headers of captures take a few hundred bytes; this leaves room for files that hold a whole model's tensors.
const MAX_HEADER_BYTES: u64 = 8 << 20;

/// Bytes that are read and converted at a time.
const CHUNK_BYTES: usize = 1 << 20;

/// A contiguous tensor that owns its memory.
#[derive(Clone, Debug, PartialEq)]
pub enum Tensor {
    /// IEEE binary32.
    F32(Vec<f32>),
    /// IEEE binary16.
    F16(Vec<f16>),
    /// bfloat16.
    Bf16(Vec<bf16>),
}

impl Tensor {
    /// `values`, rounded to `dtype`.
    pub fn from_f32(dtype: Dtype, values: &[f32]) -> Self {
        let mut tensor = Tensor::empty(dtype);
        tensor.extend(values);
        tensor
    }

    pub(crate) fn empty(dtype: Dtype) -> Self {
        match dtype {
            Dtype::F32 => Tensor::F32(Vec::new()),
            Dtype::F16 => Tensor::F16(Vec::new()),
            Dtype::Bf16 => Tensor::Bf16(Vec::new()),
            other => unimplemented!("{other}"),
        }
    }

    /// Makes room for `elements` more, where the allocator has it.
    pub(crate) fn reserve(
        &mut self,
        name: &'static str,
        elements: usize,
    ) -> Result<(), CaptureError> {
        let bytes = elements.saturating_mul(self.dtype().bytes());
        match self {
            Tensor::F32(data) => data.try_reserve_exact(elements),
            Tensor::F16(data) => data.try_reserve_exact(elements),
            Tensor::Bf16(data) => data.try_reserve_exact(elements),
        }
        .map_err(|_| CaptureError::OutOfMemory { name, bytes })
    }

    /// Appends `values`, rounded to the tensor's type.
    pub(crate) fn extend(&mut self, values: &[f32]) {
        match self {
            Tensor::F32(data) => data.extend_from_slice(values),
            Tensor::F16(data) => data.extend(values.iter().copied().map(f16::from_f32)),
            Tensor::Bf16(data) => data.extend(values.iter().copied().map(bf16::from_f32)),
        }
    }

    fn extend_le_bytes(&mut self, bytes: &[u8]) {
        let wide = bytes.as_chunks::<4>().0.iter().copied();
        let narrow = bytes.as_chunks::<2>().0.iter().copied();
        match self {
            Tensor::F32(data) => data.extend(wide.map(f32::from_le_bytes)),
            Tensor::F16(data) => data.extend(narrow.map(f16::from_le_bytes)),
            Tensor::Bf16(data) => data.extend(narrow.map(bf16::from_le_bytes)),
        }
    }

    fn to_le_bytes(&self) -> Vec<u8> {
        match self {
            Tensor::F32(data) => data.iter().flat_map(|x| x.to_le_bytes()).collect(),
            Tensor::F16(data) => data.iter().flat_map(|x| x.to_le_bytes()).collect(),
            Tensor::Bf16(data) => data.iter().flat_map(|x| x.to_le_bytes()).collect(),
        }
    }

    /// Element type.
    pub fn dtype(&self) -> Dtype {
        match self {
            Tensor::F32(_) => Dtype::F32,
            Tensor::F16(_) => Dtype::F16,
            Tensor::Bf16(_) => Dtype::Bf16,
        }
    }

    /// Elements.
    pub fn len(&self) -> usize {
        match self {
            Tensor::F32(data) => data.len(),
            Tensor::F16(data) => data.len(),
            Tensor::Bf16(data) => data.len(),
        }
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The elements as f32, exactly.
    pub fn to_f32(&self) -> Vec<f32> {
        match self {
            Tensor::F32(data) => data.clone(),
            Tensor::F16(data) => data.iter().map(|x| x.to_f32()).collect(),
            Tensor::Bf16(data) => data.iter().map(|x| x.to_f32()).collect(),
        }
    }

    /// How many elements are no numbers, and how many are infinite.
    pub fn non_finite(&self) -> NonFinite {
        fn count<T: Copy>(
            data: &[T],
            is_nan: fn(T) -> bool,
            is_finite: fn(T) -> bool,
        ) -> NonFinite {
            let nan = data.iter().filter(|&&x| is_nan(x)).count();
            let non_finite = data.iter().filter(|&&x| !is_finite(x)).count();
            NonFinite {
                nan,
                infinite: non_finite - nan,
            }
        }
        match self {
            Tensor::F32(data) => count(data, f32::is_nan, f32::is_finite),
            Tensor::F16(data) => count(data, f16::is_nan, f16::is_finite),
            Tensor::Bf16(data) => count(data, bf16::is_nan, bf16::is_finite),
        }
    }

    /// A tensor [batch, length, heads, head_dim] with its heads before the tokens; `shape` is that of the result.
    fn with_heads_first(
        &self,
        name: &'static str,
        shape: [usize; 4],
    ) -> Result<Tensor, CaptureError> {
        fn gather<T: Copy>(from: &[T], to: &mut Vec<T>, [batch, heads, len, dim]: [usize; 4]) {
            for sequence in 0..batch {
                for head in 0..heads {
                    for token in 0..len {
                        let row = (sequence * len + token) * heads + head;
                        to.extend_from_slice(&from[row * dim..(row + 1) * dim]);
                    }
                }
            }
        }
        let mut to = Tensor::empty(self.dtype());
        to.reserve(name, self.len())?;
        match (self, &mut to) {
            (Tensor::F32(from), Tensor::F32(to)) => gather(from, to, shape),
            (Tensor::F16(from), Tensor::F16(to)) => gather(from, to, shape),
            (Tensor::Bf16(from), Tensor::Bf16(to)) => gather(from, to, shape),
            _ => unreachable!("made of the same type"),
        }
        Ok(to)
    }

    /// A view in memory order [batch, heads, length, head_dim].
    ///
    /// # Errors
    /// A shape of more elements than the tensor has.
    pub fn view(&self, shape: [usize; 4]) -> sample_attention::Result<TensorView<'_>> {
        match self {
            Tensor::F32(data) => TensorView::bhsd(data, shape),
            Tensor::F16(data) => TensorView::bhsd(data, shape),
            Tensor::Bf16(data) => TensorView::bhsd(data, shape),
        }
    }
}

/// Elements of a tensor that are not finite.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NonFinite {
    /// NaN.
    pub nan: usize,
    /// +∞ and −∞.
    pub infinite: usize,
}

/// Q, K and V with the problem that they pose.
#[derive(Clone, Debug, PartialEq)]
pub struct Capture {
    /// What to compute: causal, with softmax_scale 1/√head_dim where a file gave the shapes.
    pub problem: Problem,
    /// Queries [batch, q_heads, q_len, head_dim].
    pub q: Tensor,
    /// Keys [batch, kv_heads, k_len, head_dim].
    pub k: Tensor,
    /// Values [batch, kv_heads, k_len, head_dim].
    pub v: Tensor,
    /// Free text of the file, such as `layer` and `q_heads`.
    pub metadata: BTreeMap<String, String>,
}

impl Capture {
    /// The capture that comes with this crate.
    pub fn carried() -> Self {
        Capture::from_bytes(CARRIED).expect("the file in `data/` is a capture")
    }

    /// Reads a safetensors file.
    ///
    /// # Errors
    /// Whatever is wrong with the file; never a panic, whatever it holds.
    pub fn read(path: impl AsRef<Path>) -> Result<Self, CaptureError> {
        Capture::read_as(path, Layout::Bhsd)
    }

    /// Reads a safetensors file whose dimensions come in the order of `layout`.
    ///
    /// # Errors
    /// As [`Capture::read`].
    pub fn read_as(path: impl AsRef<Path>, layout: Layout) -> Result<Self, CaptureError> {
        let (mut file, len) = open(path.as_ref())?;
        Capture::from_reader(&mut file, len, layout)
    }

    /// The problem that a file poses, from its header alone.
    ///
    /// # Errors
    /// As [`Capture::read`], as far as the header shows it.
    pub fn problem_of(path: impl AsRef<Path>, layout: Layout) -> Result<Problem, CaptureError> {
        let (mut file, len) = open(path.as_ref())?;
        let (metadata, _) = read_header(&mut file, len)?;
        Ok(entries(&metadata, layout)?.0)
    }

    /// Reads safetensors from memory.
    ///
    /// # Errors
    /// As [`Capture::read`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, CaptureError> {
        let mut source = std::io::Cursor::new(bytes);
        Capture::from_reader(&mut source, bytes.len() as u64, Layout::Bhsd)
    }

    fn from_reader<R: Read + Seek>(
        source: &mut R,
        len: u64,
        layout: Layout,
    ) -> Result<Self, CaptureError> {
        let (metadata, body_start) = read_header(source, len)?;
        let (problem, [q, k, v]) = entries(&metadata, layout)?;
        let mut read = |entry: &Entry<'_>| {
            let tensor = entry.read(source, body_start)?;
            match layout {
                Layout::Bhsd => Ok(tensor),
                Layout::Bshd => tensor.with_heads_first(entry.name, entry.shape),
            }
        };
        Ok(Capture {
            problem,
            q: read(&q)?,
            k: read(&k)?,
            v: read(&v)?,
            metadata: metadata
                .metadata()
                .iter()
                .flatten()
                .map(|(key, value)| (key.clone(), value.clone()))
                .collect(),
        })
    }

    /// The file's bytes.
    ///
    /// # Errors
    /// Tensors of other lengths than the problem's shapes.
    pub fn to_bytes(&self) -> Result<Vec<u8>, CaptureError> {
        let mut bytes = Vec::new();
        self.write_to(&mut bytes)?;
        Ok(bytes)
    }

    /// Writes a safetensors file.
    ///
    /// # Errors
    /// As [`Capture::to_bytes`], and those of the file system.
    pub fn write(&self, path: impl AsRef<Path>) -> Result<(), CaptureError> {
        let mut file = BufWriter::new(File::create(path)?);
        self.write_to(&mut file)?;
        Ok(file.flush()?)
    }

    fn write_to(&self, to: &mut impl Write) -> Result<(), CaptureError> {
        let problem = &self.problem;
        let tensors = [
            ("q", &self.q, problem.q_shape()),
            ("k", &self.k, problem.kv_shape()),
            ("v", &self.v, problem.kv_shape()),
        ];
        let mut infos = Vec::new();
        let mut end = 0;
        for (name, tensor, shape) in tensors {
            tensor.view(shape)?;
            let start = end;
            end += tensor.len() * tensor.dtype().bytes();
            let info = TensorInfo {
                dtype: match tensor.dtype() {
                    Dtype::F32 => FileDtype::F32,
                    Dtype::F16 => FileDtype::F16,
                    Dtype::Bf16 => FileDtype::BF16,
                    other => unimplemented!("{other}"),
                },
                shape: shape.to_vec(),
                data_offsets: (start, end),
            };
            infos.push((name.to_owned(), info));
        }
        let free_text =
            (!self.metadata.is_empty()).then(|| self.metadata.clone().into_iter().collect());
        let header = Metadata::new(free_text, infos).map_err(std::io::Error::other)?;
        // Through a value, whose keys are sorted: the same capture is the same file.
        let mut header = serde_json::to_value(&header)?.to_string().into_bytes();
        // The format aligns the tensors with spaces.
        header.resize(header.len().next_multiple_of(8), b' ');
        to.write_all(&(header.len() as u64).to_le_bytes())?;
        to.write_all(&header)?;
        for (_, tensor, _) in tensors {
            to.write_all(&tensor.to_le_bytes())?;
        }
        Ok(())
    }

    /// Views of the three tensors.
    ///
    /// # Errors
    /// Tensors of other lengths than the problem's shapes.
    pub fn inputs(&self) -> sample_attention::Result<Inputs<'_>> {
        Ok(Inputs::new(
            self.q.view(self.problem.q_shape())?,
            self.k.view(self.problem.kv_shape())?,
            self.v.view(self.problem.kv_shape())?,
        ))
    }
}

/// A regular file and its length.
fn open(path: &Path) -> Result<(File, u64), CaptureError> {
    // Asked before opening: opening a pipe would wait for its writer.
    let stated = std::fs::metadata(path)?;
    if !stated.is_file() {
        return Err(CaptureError::NotAFile);
    }
    Ok((File::open(path)?, stated.len()))
}

/// The header of a source of `len` bytes, checked against that length, and where the tensors begin.
fn read_header<R: Read>(source: &mut R, len: u64) -> Result<(Metadata, u64), CaptureError> {
    let mut word = [0; 8];
    if len < word.len() as u64 {
        return Err(CaptureError::TooShort { len });
    }
    source.read_exact(&mut word)?;
    let claimed = u64::from_le_bytes(word);
    let available = len - word.len() as u64;
    if claimed > available.min(MAX_HEADER_BYTES) {
        return Err(CaptureError::HeaderLength { claimed, available });
    }
    let mut header = vec![0; claimed as usize];
    source.read_exact(&mut header)?;
    // Deserializing checks that the tensors lie one after the other and have the sizes that their shapes say.
    let metadata: Metadata = serde_json::from_slice(&header)?;
    let body_start = word.len() as u64 + claimed;
    let available = len - body_start;
    let needed = metadata
        .tensors()
        .values()
        .map(|info| info.data_offsets.1 as u64)
        .max()
        .unwrap_or(0);
    if needed != available {
        return Err(CaptureError::BodyLength { needed, available });
    }
    Ok((metadata, body_start))
}

/// q, k and v of a header, and the problem that they pose.
fn entries(metadata: &Metadata, layout: Layout) -> Result<(Problem, [Entry<'_>; 3]), CaptureError> {
    let [q, k, v] = ["q", "k", "v"].map(|name| Entry::find(metadata, name, layout));
    let (q, k, v) = (q?, k?, v?);
    Ok((problem_of(&q, &k, &v)?, [q, k, v]))
}

/// One of the three tensors, as the header describes it.
struct Entry<'a> {
    name: &'static str,
    info: &'a TensorInfo,
    dtype: Dtype,
    /// [batch, heads, length, head_dim], whatever the order in the file.
    shape: [usize; 4],
}

impl<'a> Entry<'a> {
    fn find(
        metadata: &'a Metadata,
        name: &'static str,
        layout: Layout,
    ) -> Result<Self, CaptureError> {
        let info = metadata.info(name).ok_or_else(|| {
            let mut names = metadata.offset_keys();
            names.truncate(8);
            CaptureError::Missing {
                name,
                present: names.join(", "),
            }
        })?;
        let dtype = match info.dtype {
            FileDtype::F32 => Dtype::F32,
            FileDtype::F16 => Dtype::F16,
            FileDtype::BF16 => Dtype::Bf16,
            dtype => return Err(CaptureError::DtypeUnsupported { name, dtype }),
        };
        let rank = info.shape.len();
        let shape = <[usize; 4]>::try_from(info.shape.as_slice())
            .map_err(|_| CaptureError::Rank { name, rank, layout })?;
        Ok(Entry {
            name,
            info,
            dtype,
            shape: layout.canonical(shape),
        })
    }

    fn read<R: Read + Seek>(
        &self,
        source: &mut R,
        body_start: u64,
    ) -> Result<Tensor, CaptureError> {
        let (start, end) = self.info.data_offsets;
        let bytes = end - start;
        let mut tensor = Tensor::empty(self.dtype);
        tensor.reserve(self.name, bytes / self.dtype.bytes())?;
        source.seek(SeekFrom::Start(body_start + start as u64))?;
        let mut chunk = vec![0; CHUNK_BYTES.min(bytes)];
        for at in (0..bytes).step_by(CHUNK_BYTES) {
            let chunk = &mut chunk[..CHUNK_BYTES.min(bytes - at)];
            source.read_exact(chunk)?;
            tensor.extend_le_bytes(chunk);
        }
        Ok(tensor)
    }
}

/// The problem that three shapes pose.
fn problem_of(q: &Entry<'_>, k: &Entry<'_>, v: &Entry<'_>) -> Result<Problem, CaptureError> {
    for entry in [k, v] {
        if entry.dtype != q.dtype {
            return Err(CaptureError::DtypeMismatch {
                name: entry.name,
                expected: q.dtype,
                given: entry.dtype,
            });
        }
    }
    const NAMES: [&str; 4] = ["batch", "heads", "length", "head_dim"];
    let shared = [
        (q, k, 0),
        (q, k, 3),
        (k, v, 0),
        (k, v, 1),
        (k, v, 2),
        (k, v, 3),
    ];
    for (left, right, dim) in shared {
        if left.shape[dim] != right.shape[dim] {
            return Err(CaptureError::Mismatch {
                size: NAMES[dim],
                left: left.name,
                left_size: left.shape[dim],
                right: right.name,
                right_size: right.shape[dim],
            });
        }
    }
    let [batch, q_heads, q_len, head_dim] = q.shape;
    // A head_dim of zero is refused below; its scale must not be what the message is about.
    let mut problem = Problem::causal(k.shape[2], head_dim.max(1), q.dtype)
        .with_batch(batch)
        .with_heads(q_heads, k.shape[1])
        .with_q_len(q_len);
    problem.head_dim = head_dim;
    problem.validate()?;
    Ok(problem)
}
