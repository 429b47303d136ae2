"""What is measured: nothing here needs PyTorch or a GPU."""

from dataclasses import dataclass

LENGTHS = (4096, 8192, 16384, 32768, 65536, 131072)
SPARSE_LENGTHS = (16384, 65536, 131072)
PIPELINE_LENGTHS = (8192, 32768, 65536, 131072)
QUICK_LENGTHS = (16384, 65536)
# Batch, queries, keys.
DECODE_SHAPES = (
    *((1, queries, keys) for keys in (32768, 131072) for queries in (1, 16, 64, 512)),
    (8, 1, 32768),
    (32, 1, 8192),
)
DENSITIES = (0.05, 0.1, 0.2, 0.4)
WINDOW_BLOCKS = 3  # what 256 tokens need


@dataclass(frozen=True)
class Case:
    """One row of a table. `input` is uniform, local or a file."""

    mode: str
    n: int
    d: int
    dtype: str
    input: str = "uniform"
    density: float = 1.0
    batch: int = 1
    q_len: int = 0  # 0: as many as keys

    def __str__(self):
        density = f" {100 * self.density:.0f} %" if self.mode == "sparse" else ""
        queries = f" {self.batch} x {self.q_len} over" if self.q_len else ""
        return f"{self.mode} {self.input}{queries} {self.n} x {self.d} {self.dtype}{density}"


def cases(options):
    """The cases of the chosen modes, in the order in which they are measured."""
    found = []
    if "dense" in options.modes:
        lengths = options.lengths or (QUICK_LENGTHS if options.quick else LENGTHS)
        dims = options.head_dims or ((128,) if options.quick else (128, 64))
        dtypes = options.dtypes or (("bf16",) if options.quick else ("bf16", "f16"))
        found += [Case("dense", n, d, dtype) for d in dims for dtype in dtypes for n in lengths]
    if "sparse" in options.modes:
        lengths = options.lengths or (QUICK_LENGTHS[-1:] if options.quick else SPARSE_LENGTHS)
        densities = options.densities or ((0.1,) if options.quick else DENSITIES)
        found += [
            Case("sparse", n, d, dtype, density=density)
            for d in options.head_dims or (128,)
            for dtype in options.dtypes or ("bf16",)
            for n in lengths
            for density in densities
        ]
    if "pipeline" in options.modes:
        lengths = options.lengths or (QUICK_LENGTHS[-1:] if options.quick else PIPELINE_LENGTHS)
        found += [
            Case("pipeline", n, d, dtype, name, q_len=q_len)
            for d in options.head_dims or (128,)
            for dtype in options.dtypes or ("bf16",)
            for n in lengths
            for name in ("uniform", "local")
            for q_len in options.chunks or (0,)
        ]
        found += [Case("pipeline", 0, 0, "", file, q_len=q_len) for file in options.files for q_len in options.chunks or (0,)]
    if "decode" in options.modes:
        shapes = DECODE_SHAPES[4:6] if options.quick else DECODE_SHAPES
        found += [
            Case("decode", keys, d, dtype, batch=batch, q_len=queries)
            for d in options.head_dims or (128,)
            for dtype in options.dtypes or ("bf16",)
            for batch, queries, keys in shapes
            if not options.lengths or keys in options.lengths
        ]
    return found
