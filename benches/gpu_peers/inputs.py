"""Inputs in the GPU's memory: made up from a seed, or captured; and random block lists."""

import json
import math
import struct

import torch

BLOCK = 128
DEVICE = "cuda"
DTYPES = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}
FILE_DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}

# What `local` gives a query's own token over a far one, in nats, and how far that reaches in tokens.
LOCAL_NATS = 24.0
LOCAL_REACH = 32.0


class Inputs:
    """q [batch, q_heads, q_len, d], k and v [batch, kv_heads, n, d], contiguous; the last query sees the last key."""

    def __init__(self, name, q, k, v):
        self.name, self.q, self.k, self.v = name, q, k, v
        self.batch, self.q_heads, self.q_len, self.d = q.shape
        self.kv_heads, self.n = k.shape[1:3]
        self.dtype = {dtype: name for name, dtype in DTYPES.items()}[q.dtype]

    def problem(self):
        return {
            "batch": self.batch,
            "q_heads": self.q_heads,
            "kv_heads": self.kv_heads,
            "q_len": self.q_len,
            "k_len": self.n,
            "head_dim": self.d,
            "dtype": self.dtype,
        }

    def visible_pairs(self):
        before = self.n - self.q_len
        return self.batch * self.q_heads * (self.q_len * before + self.q_len * (self.q_len + 1) // 2)

    def kv_bytes(self):
        return 2 * self.k.numel() * self.k.element_size()

    def last(self, q_len):
        """The last queries over all keys: a chunk of the prompt."""
        q = self.q[:, :, -q_len:].contiguous()
        return Inputs(f"{self.name}, last {q_len}", q, self.k, self.v)


def uniform(n, d, q_heads, kv_heads, dtype, seed, q_len=None, batch=1):
    """Standard normal: attention is spread over all keys, and nothing can be left out."""
    generator = torch.Generator(DEVICE).manual_seed(seed)

    def normal(heads, tokens):
        return torch.randn(batch, heads, tokens, d, device=DEVICE, dtype=DTYPES[dtype], generator=generator)

    return Inputs("uniform", normal(q_heads, q_len or n), normal(kv_heads, n), normal(kv_heads, n))


def local(n, d, q_heads, kv_heads, dtype, seed):
    """Normal, plus one direction that all tokens share, turned by rotary embedding: attention falls off with the distance."""
    made = uniform(n, d, q_heads, kv_heads, dtype, seed)
    half = d // 2
    # The high frequencies alone: they cancel out beyond the reach.
    frequencies = torch.logspace(0, -math.log10(LOCAL_REACH), half, device=DEVICE)
    # |q||k| / sqrt(d) is LOCAL_NATS where both stand at the same place; each of the d/2 pairs has an equal share.
    amplitude = math.sqrt(LOCAL_NATS * math.sqrt(d) / half)
    angles = torch.arange(n, device=DEVICE, dtype=torch.float32)[:, None] * frequencies
    turned = (amplitude * torch.cat([angles.cos(), angles.sin()], dim=-1)).to(made.q.dtype)
    made.q.add_(turned)
    made.k.add_(turned)
    return Inputs("local", made.q, made.k, made.v)


def captured(path):
    """q, k and v of a safetensors file."""
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
        body = 8 + length
        tensors = []
        for name in "qkv":
            if name not in header:
                raise ValueError(f"{path} has no tensor {name}")
            info = header[name]
            start, end = info["data_offsets"]
            file.seek(body + start)
            flat = torch.frombuffer(bytearray(file.read(end - start)), dtype=FILE_DTYPES[info["dtype"]])
            tensors.append(flat.reshape(info["shape"]).to(DEVICE))
    q, k, v = tensors
    if q.shape[0] != 1 or q.shape[2] != k.shape[2] or q.dtype == torch.float32:
        raise ValueError(f"{path} has q {tuple(q.shape)} and k {tuple(k.shape)} of {q.dtype}: "
                         "one 16-bit sequence with as many queries as keys is needed")
    stem = str(path).rsplit("/", 1)[-1].removesuffix(".safetensors")
    return Inputs(stem, q.contiguous(), k.contiguous(), v.contiguous())


def random_lists(q_heads, n, density, window_blocks, seed):
    """Key blocks of each query block: a window, and others drawn at random up to a share of the causal area.

    Returns lists [q_heads, blocks, blocks] int32, ascending, and counts [q_heads, blocks] int32.
    """
    generator = torch.Generator(DEVICE).manual_seed(seed)
    blocks = -(-n // BLOCK)
    index = torch.arange(blocks, device=DEVICE)
    visible = index[None, :] <= index[:, None]
    window = visible & (index[None, :] > index[:, None] - window_blocks)
    want = torch.maximum((density * (index + 1)).round(), (index + 1).clamp(max=window_blocks)).long()
    draw = torch.rand(q_heads, blocks, blocks, device=DEVICE, generator=generator)
    draw = draw.masked_fill(window, 2.0).masked_fill(~visible, -1.0)
    rank = draw.argsort(dim=-1, descending=True).argsort(dim=-1)
    kept = rank < want[None, :, None]
    counts = kept.sum(-1, dtype=torch.int32)
    # Kept blocks first, both parts ascending.
    lists = (~kept).to(torch.int8).argsort(dim=-1, stable=True).to(torch.int32)
    return lists.contiguous(), counts


def kept_blocks(lists, counts):
    """Lists as booleans [heads, query blocks, key blocks]."""
    blocks = lists.shape[-1]
    listed = torch.arange(blocks, device=lists.device) < counts[..., None]
    kept = torch.zeros(lists.shape, dtype=torch.bool, device=lists.device)
    head, query_block, _ = listed.nonzero(as_tuple=True)
    # What follows a list's end may be any number.
    kept[head, query_block, lists[listed].long()] = True
    return kept


def kept_pairs(kept, n, sinks=0, dense=None):
    """Pairs (query, key) that the mask keeps, causal triangle and sinks included: one number a head, on the host."""
    blocks = kept.shape[-1]
    rows = torch.full((blocks,), BLOCK, dtype=torch.int64, device=kept.device)
    rows[-1] = n - (blocks - 1) * BLOCK
    pairs = rows[:, None] * rows[None, :]
    pairs = torch.tril(pairs, -1) + torch.diag(rows * (rows + 1) // 2)
    listed = (kept * pairs).sum((-1, -2))
    # A sink counts where the list does not cover it already; in the first query block its own block always does.
    for first in range(0, min(sinks, n), BLOCK):
        width = min(sinks - first, BLOCK)
        alone = ~kept[:, :, first // BLOCK]
        alone[:, : first // BLOCK + 1] = False
        listed = listed + width * (alone * rows).sum(-1)
    if dense is not None:
        listed = torch.where(dense != 0, torch.full_like(listed, n * (n + 1) // 2), listed)
    return listed.tolist()
