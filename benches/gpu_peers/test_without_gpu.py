"""What of the comparisons can be wrong without a GPU: masks, counts, the rule for errors, the record.

    python3 -m unittest discover -s benches/gpu_peers -t benches -p 'test_*.py'     needs PyTorch, of any kind
"""

import math
import tempfile
import unittest
from pathlib import Path

import torch

from gpu_peers import inputs as make
from gpu_peers.reference import Rows, keeps_of
from gpu_peers.report import Chart, Record, Table

make.DEVICE = "cpu"
N, HEADS = 1000, 3


def mask_of(kept, sinks, dense):
    """The mask, from its definition."""
    mask = kept.repeat_interleave(make.BLOCK, 1).repeat_interleave(make.BLOCK, 2)[:, :N, :N].clone()
    mask[:, :, :sinks] = True
    mask[dense != 0] = True
    return mask & torch.ones(N, N, dtype=torch.bool).tril()


class Lists(unittest.TestCase):
    def setUp(self):
        self.lists, self.counts = make.random_lists(HEADS, N, 0.5, 3, seed=1)
        self.kept = make.kept_blocks(self.lists, self.counts)
        self.dense = torch.tensor([0, 0, 1])

    def test_lists_ascend_hold_the_window_and_are_as_long_as_asked(self):
        for head in range(HEADS):
            for block in range(8):
                listed = self.lists[head, block, : self.counts[head, block]].tolist()
                self.assertEqual(listed, sorted(set(listed)))
                self.assertEqual(listed[-1], block)
                self.assertLessEqual(set(range(max(0, block - 2), block + 1)), set(listed))
                self.assertEqual(len(listed), max(round(0.5 * (block + 1)), min(3, block + 1)))

    def test_what_follows_a_list_does_not_count(self):
        beyond = torch.arange(8) >= self.counts[..., None]
        self.assertTrue(torch.equal(make.kept_blocks(self.lists.masked_fill(beyond, -1), self.counts), self.kept))

    def test_pairs_are_those_of_the_mask(self):
        for sinks in (0, 16, 128, 200):
            pairs = make.kept_pairs(self.kept, N, sinks, self.dense)
            self.assertEqual(pairs, mask_of(self.kept, sinks, self.dense).sum((1, 2)).tolist())

    def test_rows_of_the_mask_are_those_of_the_mask(self):
        rows = torch.tensor([0, 5, 127, 128, 500, 999])
        for head in range(HEADS):
            found = keeps_of(self.kept, 16, self.dense)(head, rows)[:, :N]
            self.assertTrue(torch.equal(found, mask_of(self.kept, 16, self.dense)[head, rows]))


class Rule(unittest.TestCase):
    def setUp(self):
        self.inputs = make.uniform(N, 64, 4, 2, "bf16", seed=1)
        q, k, v = self.inputs.q.float(), self.inputs.k.float(), self.inputs.v.float()
        k, v = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
        scores = (q @ k.mT / math.sqrt(64)).masked_fill(~torch.ones(N, N, dtype=torch.bool).tril(), -math.inf)
        self.o, self.lse = (scores.softmax(-1) @ v).bfloat16(), scores.logsumexp(-1)
        self.rows = Rows(self.inputs)

    def test_attention_passes(self):
        self.assertFalse(self.rows.check(self.o, self.lse).startswith("WRONG"))

    def test_an_unwritten_row_fails(self):
        self.o[0, 3, -1] = math.nan
        self.assertIn(f"row {N - 1}", self.rows.check(self.o, self.lse))

    def test_one_wrong_element_fails(self):
        self.o[0, 0, 0, 5] += 0.1
        self.assertIn("head 0, row 0", self.rows.check(self.o, self.lse))

    def test_a_wrong_lse_fails(self):
        self.lse[0, 2, 0] += 1e-3
        self.assertIn("lse", self.rows.check(self.o, self.lse))

    def test_dropping_a_block_that_the_mask_keeps_fails(self):
        kept = torch.ones(4, 8, 8, dtype=torch.bool).tril()
        kept[:, 7, 0] = False
        rows = Rows(self.inputs, keeps_of(kept))
        self.assertTrue(rows.check(self.o, self.lse).startswith("WRONG"))
        self.assertLess(rows.coverage().min().item(), 0.95)


class Writing(unittest.TestCase):
    def test_a_record_holds_its_rows(self):
        with tempfile.TemporaryDirectory() as folder:
            record = Record("dense", folder, Table("T", "n", ("a", "b")), Chart("C", ("x",)), "# H")
            record.add(("4K", 1.07), {"case": 1}, a=1.0, b=None)
            text = (Path(folder) / "peers-dense.md").read_text()
            self.assertIn("| 1.00 | – |", text)
            self.assertIn("1.07", (Path(folder) / "peers-dense.svg").read_text())


if __name__ == "__main__":
    unittest.main()
