"""PyTorch's attention kernels."""

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

BACKENDS = {"cuDNN": SDPBackend.CUDNN_ATTENTION, "FlashAttention-2": SDPBackend.FLASH_ATTENTION}


def sdpa(name, inputs):
    """A function that runs dense attention with one backend: causal, or over all keys where queries are fewer.

    PyTorch aligns a causal mask with the first key. Over all keys a chunk has somewhat more to do than with its causal mask:
    half a query length for each query.
    """
    q, k, v = inputs.q, inputs.k, inputs.v
    causal = inputs.q_len == inputs.n

    def run():
        with sdpa_kernel(BACKENDS[name]):
            return scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=True)

    return run


class Flex:
    """FlexAttention, compiled once for each shape."""

    def __init__(self):
        from torch.nn.attention.flex_attention import flex_attention

        torch._dynamo.config.recompile_limit = 64
        self.compiled = torch.compile(flex_attention, dynamic=False)

    def run(self, inputs, lists):
        """A function that runs attention over lists and counts, whose last block is the query block's own."""
        from torch.nn.attention.flex_attention import BlockMask

        lists, counts = lists
        blocks = lists.shape[-1]
        own = torch.zeros_like(lists)
        own[..., 0] = torch.arange(blocks, device=lists.device)
        mask = BlockMask.from_kv_blocks(
            torch.ones_like(counts)[None],
            own[None],
            (counts - 1)[None],
            lists[None],
            BLOCK_SIZE=128,
            mask_mod=lambda batch, head, query, key: query >= key,
        )
        q, k, v, compiled = inputs.q, inputs.k, inputs.v, self.compiled
        return lambda: compiled(q, k, v, block_mask=mask, enable_gqa=True)
