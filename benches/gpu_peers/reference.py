"""Attention of some rows in f64, and the project's rule for what a 16-bit kernel may differ from it."""

import math

import torch

from gpu_peers.inputs import BLOCK

ROWS_PER_HEAD = 48
LSE_TOLERANCE = 1e-4


class Rows:
    """Some rows of some heads. `keeps(head, positions)` is None for dense, or booleans [rows, keys] within the causal area."""

    def __init__(self, inputs, keeps=None, seed=7):
        self.inputs = inputs
        generator = torch.Generator().manual_seed(seed)
        length = inputs.q_len
        drawn = torch.randint(0, length, (ROWS_PER_HEAD - 4,), generator=generator).tolist()
        edges = [0, min(BLOCK, length) - 1, max(length - BLOCK, 0), length - 1]
        rows = torch.tensor(sorted({*drawn, *edges}), device=inputs.q.device)
        heads = sorted({0, inputs.q_heads // 2, inputs.q_heads - 1})
        # The first and the last sequence.
        of_batch = sorted({0, inputs.batch - 1})
        self.rows = {(batch, head): self._row_set(batch, head, rows, keeps) for batch in of_batch for head in heads}

    def _row_set(self, batch, head, rows, keeps):
        q, k, v = self.inputs.q, self.inputs.k, self.inputs.v
        kv_head = head // (self.inputs.q_heads // self.inputs.kv_heads)
        keys, values = k[batch, kv_head].double(), v[batch, kv_head].double()
        scores = q[batch, head, rows].double() @ keys.T / math.sqrt(self.inputs.d)
        before = self.inputs.n - self.inputs.q_len
        visible = torch.arange(self.inputs.n, device=rows.device) <= rows[:, None] + before
        scores.masked_fill_(~visible, -math.inf)
        coverage = None
        if keeps is not None:
            mask = keeps(head, rows + before)[:, : self.inputs.n]
            coverage = (scores.softmax(-1) * mask).sum(-1)
            scores.masked_fill_(~mask, -math.inf)
        lse = scores.logsumexp(-1)
        exact = scores.softmax(-1) @ values
        # What 16 bits give: weights rounded before the product, and the result after it. Flash attention is free to take weights
        # relative to the maximum or to something near it, so the largest error of a few such references counts, as in testkit.
        maximum = scores.amax(-1, keepdim=True)
        allowed = 1e-5
        for reference in (maximum - math.log(2) * quarter / 4 for quarter in range(4)):
            weights = (scores - reference).exp()
            product = weights.to(q.dtype).double() @ values / weights.sum(-1, keepdim=True)
            error = (product.to(q.dtype).double() - exact).abs().max().item()
            allowed = max(allowed, 2 * error + 1e-5)
        return {"rows": rows, "o": exact, "lse": lse, "allowed": allowed, "coverage": coverage}

    def coverage(self):
        """Share of the whole attention of each row that is kept."""
        return torch.cat([row_set["coverage"] for row_set in self.rows.values()])

    def check(self, o, lse=None):
        """Words on how o and lse [1, heads, n(, d)] differ from the reference; they begin with `WRONG` where that is too much."""
        worst = (0.0, "")
        wrong = []
        for (batch, head), row_set in self.rows.items():
            error = (o[batch, head, row_set["rows"]].double() - row_set["o"]).abs().amax(-1)
            ratio = error / row_set["allowed"]
            at = int(ratio.nan_to_num(nan=math.inf).argmax())
            place = f"sequence {batch}, head {head}, row {int(row_set['rows'][at])}"
            if not ratio[at] <= 1:
                wrong.append(f"o differs by {error[at]:.2e} at {place}, {row_set['allowed']:.2e} is allowed")
            worst = max(worst, (float(ratio[at]), place))
            if lse is not None:
                lse_error = (lse[batch, head, row_set["rows"]].double() - row_set["lse"]).abs().max()
                if not lse_error <= LSE_TOLERANCE:
                    wrong.append(f"lse differs by {lse_error:.2e} in head {head}")
        return "WRONG: " + "; ".join(wrong) if wrong else f"{worst[0]:.2f} of the error allowed"


def keeps_of(kept, sinks=0, dense=None):
    """The mask of kept blocks [heads, query blocks, key blocks], for `Rows`."""

    def keeps(head, rows):
        keys = torch.arange(kept.shape[-1] * BLOCK, device=kept.device)
        mask = kept[head, rows // BLOCK].repeat_interleave(BLOCK, dim=-1)
        mask = mask | (keys < sinks)
        if dense is not None and dense[head] != 0:
            mask = torch.ones_like(mask)
        return mask & (keys <= rows[:, None])

    return keeps
