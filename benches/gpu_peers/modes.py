"""The comparisons: each takes a case, and adds a row to its record."""

import torch

from gpu_peers import inputs as make
from gpu_peers.cases import WINDOW_BLOCKS
from gpu_peers.contenders import Flex, sdpa
from gpu_peers.measure import Contender, Stages, alternate
from gpu_peers.ours import Ours
from gpu_peers.reference import Rows, keeps_of
from gpu_peers.report import Chart, Table

SELECTION = ("sampling", "reduction", "top_k")


def tables(heads, policy="default"):
    """Table and chart of each mode."""
    what = f"{heads}, causal"
    return {
        "dense": (
            Table(
                "Dense",
                f"{what}. TFLOP/s: 4 · visible pairs · head_dim.",
                ("head_dim", "dtype", "tokens", "ours, ms", "ours, TFLOP/s", "cuDNN, TFLOP/s", "FA2, TFLOP/s",
                 "Flex, TFLOP/s", "ours / cuDNN", "ours / FA2", "ours / earlier", "± ours", "± cuDNN", "check"),
            ),
            Chart("Dense: speed of ours over PyTorch's", ("over cuDNN", "over FlashAttention-2", "over FlexAttention")),
        ),
        "sparse": (
            Table(
                "Attention over given block lists",
                f"{what}, random lists with a window of {WINDOW_BLOCKS} blocks. TFLOP/s: 4 · kept pairs · head_dim.",
                ("head_dim", "dtype", "tokens", "asked", "density", "ours, ms", "ours, TFLOP/s", "Flex, TFLOP/s",
                 "ours / Flex", "cuDNN dense, ms", "over cuDNN dense", "over our dense", "over earlier", "± ours", "check"),
            ),
            Chart("Given block lists: TFLOP/s on kept pairs over dense TFLOP/s", ("over cuDNN dense", "over our dense")),
        ),
        "pipeline": (
            Table(
                "The whole pipeline",
                f"Causal, policy {policy}. Selection: sampling + reduction + top-k. Coverage: of the sampled rows (least of "
                "all heads), and of random rows (mean and least).",
                ("input", "tokens", "queries", "density", "sampled coverage", "true coverage", "least", "sampling, ms", "reduction",
                 "top-k", "sparse_flash", "selection / our dense", "pipeline, ms", "our dense, ms", "cuDNN dense, ms",
                 "over cuDNN dense", "over our dense", "over earlier", "workspace, MiB", "check"),
            ),
            Chart("Pipeline: speed-up", ("over cuDNN dense", "over our dense")),
        ),
        "decode": (
            Table(
                "Few queries over many keys",
                f"{heads}, all keys visible to the last query. TB/s: keys and values read once; copy: a device-to-device copy of "
                "as many bytes, read and written, in the same run.",
                ("head_dim", "dtype", "batch", "queries", "keys", "ours, µs", "ours, TB/s", "copy, TB/s", "of the copy rate",
                 "cuDNN, µs", "FA2, µs", "cuDNN / ours", "FA2 / ours", "± ours", "check"),
            ),
            Chart("Few queries: speed-up", ("over cuDNN", "over FlashAttention-2")),
        ),
    }


class Bench:
    """What the modes share: the GPU, and the options."""

    def __init__(self, gpu, options, earlier=None):
        self.gpu, self.options, self.earlier = gpu, options, earlier
        self.flex = Flex() if options.flex else None
        self.wrong = False

    def inputs(self, case):
        options = self.options
        shape = (case.n, case.d, options.q_heads, options.kv_heads, case.dtype, options.seed)
        if case.mode == "decode":
            return make.uniform(*shape, q_len=case.q_len, batch=case.batch)
        if case.input not in ("uniform", "local"):
            made = make.captured(case.input)
        else:
            made = (make.uniform if case.input == "uniform" else make.local)(*shape)
        return made.last(case.q_len) if case.q_len else made

    def against_earlier(self, inputs, work, lists=None):
        """The same on an earlier build's kernels, if there is one: no contender, or one."""
        if self.earlier is None:
            return []
        return [Contender("earlier", Ours(self.earlier, inputs, work, lists).run)]

    def checked(self, ours, rows):
        """Runs on poisoned outputs, twice, and compares with the reference and with itself."""
        ours.run()
        first, first_lse = ours.o.clone(), ours.lse.clone()
        ours.poison()
        ours.run()
        if rows is None:
            finite = bool(ours.o.isfinite().all() and ours.lse.isfinite().all())
            verdict = "every element written, same bits twice" if finite else "WRONG: elements that are not finite"
        else:
            verdict = rows.check(ours.o, ours.lse)
        if not (torch.equal(first, ours.o) and torch.equal(first_lse, ours.lse)):
            verdict = f"WRONG: two runs differ; {verdict}"
        self.wrong |= verdict.startswith("WRONG")
        return verdict

    def dense(self, case, seconds, record):
        inputs = self.inputs(case)
        ours, rows = Ours(self.gpu, inputs, "dense"), Rows(inputs)
        verdict = self.checked(ours, rows)
        contenders = [Contender("ours", ours.run)]
        contenders += [Contender(name, sdpa(name, inputs)) for name in ("cuDNN", "FlashAttention-2")]
        theirs = rows.check(contenders[1].run())
        if self.flex:
            contenders.append(Contender("Flex", self.flex.run(inputs, all_blocks(inputs))))
        contenders += self.against_earlier(inputs, "dense")
        alternate(contenders, seconds)
        flop = 4 * inputs.visible_pairs() * inputs.d
        rate = {c.name: flop / c.ms / 1e9 for c in contenders}
        flex = rate.get("Flex")
        ratios = [rate["ours"] / rate["cuDNN"], rate["ours"] / rate["FlashAttention-2"], flex and rate["ours"] / flex]
        record.add(
            (f"{case.n // 1024}K D{case.d} {case.dtype}", *ratios),
            {"case": str(case), "check": verdict, "cuDNN check": theirs, **samples(contenders)},
            **{
                "head_dim": case.d, "dtype": case.dtype, "tokens": case.n, "ours, ms": contenders[0].ms,
                "ours, TFLOP/s": rate["ours"], "cuDNN, TFLOP/s": rate["cuDNN"],
                "FA2, TFLOP/s": rate["FlashAttention-2"], "Flex, TFLOP/s": flex, "ours / cuDNN": ratios[0],
                "ours / FA2": ratios[1], "ours / earlier": over_earlier(contenders), "± ours": percent(contenders[0].spread),
                "± cuDNN": percent(contenders[1].spread), "check": verdict,
            },
        )

    def sparse(self, case, seconds, record):
        inputs = self.inputs(case)
        lists = make.random_lists(inputs.q_heads, inputs.n, case.density, WINDOW_BLOCKS, self.options.seed)
        kept = make.kept_blocks(*lists)
        ours = Ours(self.gpu, inputs, {"given": {"sinks": 0}}, lists)
        dense = Ours(self.gpu, inputs, "dense")
        verdict = self.checked(ours, Rows(inputs, keeps_of(kept)))
        contenders = [
            Contender("ours", ours.run),
            Contender("our dense", dense.run),
            Contender("cuDNN dense", sdpa("cuDNN", inputs)),
        ]
        if self.flex:
            contenders.append(Contender("Flex", self.flex.run(inputs, lists)))
        contenders += self.against_earlier(inputs, {"given": {"sinks": 0}}, lists)
        alternate(contenders, seconds)
        ms = {c.name: c.ms for c in contenders}
        pairs = sum(make.kept_pairs(kept, inputs.n))
        density = pairs / inputs.visible_pairs()
        rate = 4 * pairs * inputs.d / ms["ours"] / 1e9
        flex = 4 * pairs * inputs.d / ms["Flex"] / 1e9 if self.flex else None
        over = [density * ms[name] / ms["ours"] for name in ("cuDNN dense", "our dense")]
        record.add(
            (f"{case.n // 1024}K {100 * density:.0f} %", *over),
            {"case": str(case), "check": verdict, "pairs": pairs, **samples(contenders)},
            **{
                "head_dim": case.d, "dtype": case.dtype, "tokens": case.n, "asked": case.density, "density": density,
                "ours, ms": ms["ours"], "ours, TFLOP/s": rate, "Flex, TFLOP/s": flex, "ours / Flex": flex and rate / flex,
                "cuDNN dense, ms": ms["cuDNN dense"], "over cuDNN dense": ms["cuDNN dense"] / ms["ours"],
                "over our dense": ms["our dense"] / ms["ours"], "over earlier": over_earlier(contenders), "± ours": percent(contenders[0].spread), "check": verdict,
            },
        )

    def pipeline(self, case, seconds, record):
        inputs = self.inputs(case)
        ours = Ours(self.gpu, inputs, {"policy": self.options.policy})
        dense = Ours(self.gpu, inputs, "dense")
        ours.run()
        coverage = [None, None, None]
        rows, density = None, None
        if ours.is_dense():
            rows, density = Rows(inputs), 1.0
        elif ours.keeps_all_lists():
            kept, sinks, dense_heads = ours.selected()
            rows = Rows(inputs, keeps_of(kept, sinks, dense_heads))
            density = sum(make.kept_pairs(kept, inputs.n, sinks, dense_heads)) / inputs.visible_pairs()
            coverage = [ours.least_sampled_coverage(), rows.coverage().mean().item(), rows.coverage().min().item()]
        ours.poison()
        verdict = self.checked(ours, rows)
        stages = Stages(ours)
        contenders = [
            Contender("ours", ours.run),
            stages,
            Contender("our dense", dense.run),
            Contender("cuDNN dense", sdpa("cuDNN", inputs)),
        ]
        contenders += self.against_earlier(inputs, {"policy": {}})
        alternate(contenders, seconds)
        ms = {c.name: c.ms for c in contenders}
        selection = sum(stages.stage_ms(stage) for stage in SELECTION)
        over = [ms[name] / ms["ours"] for name in ("cuDNN dense", "our dense")]
        record.add(
            (f"{inputs.name} {inputs.n // 1024}K", *over),
            {"case": str(case), "check": verdict, "density": density, "coverage": coverage, "stages": stages.stages,
             **samples(contenders)},
            **{
                "input": f"{inputs.name}, {inputs.q_heads}/{inputs.kv_heads} heads, D {inputs.d}", "tokens": inputs.n,
                "queries": inputs.q_len, "density": density, "sampled coverage": coverage[0], "true coverage": coverage[1], "least": coverage[2],
                "sampling, ms": stages.stage_ms("sampling"), "reduction": stages.stage_ms("reduction"),
                "top-k": stages.stage_ms("top_k"), "sparse_flash": stages.stage_ms("sparse_flash"),
                "selection / our dense": percent(selection / ms["our dense"]), "pipeline, ms": ms["ours"],
                "our dense, ms": ms["our dense"], "cuDNN dense, ms": ms["cuDNN dense"], "over cuDNN dense": over[0],
                "over our dense": over[1], "over earlier": over_earlier(contenders),
                "workspace, MiB": ours.workspace.numel() / 2**20, "check": verdict,
            },
        )

    def decode(self, case, seconds, record):
        inputs = self.inputs(case)
        ours, rows = Ours(self.gpu, inputs, "dense"), Rows(inputs)
        verdict = self.checked(ours, rows)
        source = torch.empty(inputs.kv_bytes(), dtype=torch.uint8, device=inputs.q.device)
        target = torch.empty_like(source)
        contenders = [Contender("ours", ours.run)]
        contenders += [Contender(name, sdpa(name, inputs)) for name in ("cuDNN", "FlashAttention-2")]
        contenders.append(Contender("copy", lambda: target.copy_(source)))
        alternate(contenders, seconds)
        ms = {c.name: c.ms for c in contenders}
        rate = inputs.kv_bytes() / ms["ours"] / 1e9
        copy = 2 * inputs.kv_bytes() / ms["copy"] / 1e9
        over = [ms[name] / ms["ours"] for name in ("cuDNN", "FlashAttention-2")]
        record.add(
            (f"{case.batch} × {case.q_len} over {case.n // 1024}K", *over),
            {"case": str(case), "check": verdict, **samples(contenders)},
            **{
                "head_dim": case.d, "dtype": case.dtype, "batch": case.batch, "queries": case.q_len, "keys": case.n,
                "ours, µs": 1e3 * ms["ours"], "ours, TB/s": rate, "copy, TB/s": copy, "of the copy rate": rate / copy,
                "cuDNN, µs": 1e3 * ms["cuDNN"], "FA2, µs": 1e3 * ms["FlashAttention-2"], "cuDNN / ours": over[0],
                "FA2 / ours": over[1], "± ours": percent(contenders[0].spread), "check": verdict,
            },
        )

    def once(self, case):
        """One run, for a profiler: nothing else is launched after the inputs were made."""
        inputs = self.inputs(case)
        lists = None
        if case.mode == "sparse":
            lists = make.random_lists(inputs.q_heads, inputs.n, case.density, WINDOW_BLOCKS, self.options.seed)
        work = {
            "dense": "dense",
            "decode": "dense",
            "sparse": {"given": {"sinks": 0}},
            "pipeline": {"policy": self.options.policy},
        }[case.mode]
        ours = Ours(self.gpu, inputs, work, lists)
        torch.cuda.synchronize()
        ours.run()
        torch.cuda.synchronize()
        print(f"{case}: {', '.join(ours.kernels)}")


def all_blocks(inputs):
    """Lists of every visible block."""
    blocks = -(-inputs.n // make.BLOCK)
    index = torch.arange(blocks, dtype=torch.int32, device=inputs.q.device)
    return index.expand(inputs.q_heads, blocks, blocks).contiguous(), (index + 1).expand(inputs.q_heads, blocks).contiguous()


def over_earlier(contenders):
    """How many times as fast as the earlier build; None without one."""
    ms = {c.name: c.ms for c in contenders}
    return ms["earlier"] / ms["ours"] if "earlier" in ms else None


def percent(share):
    return f"{100 * share:.1f} %"


def samples(contenders):
    return {"ms": {c.name: [round(sample, 5) for sample in c.samples] for c in contenders}}
