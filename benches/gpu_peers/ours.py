"""The library's kernels on PyTorch's tensors."""

import torch

from gpu_peers.driver import Driver
from gpu_peers.inputs import kept_blocks
from gpu_peers.launches import Launches

DTYPE_NAMES = {torch.bfloat16: "bf16", torch.float16: "f16", torch.float32: "f32"}
TORCH_DTYPES = {4: torch.int32, 8: torch.int64}
# What earlier builds, which `--baseline` may name, call a region.
EARLIER_NAMES = {"kv_indices": "lists", "kv_num_blocks": "list_counts", "num_keys": "stripe_counts"}


class Gpu:
    """The current device of PyTorch with the library's kernels loaded."""

    def __init__(self, launches_path, target=None):
        torch.zeros(1, device="cuda")  # makes the primary context current
        properties = torch.cuda.get_device_properties(0)
        self.multiprocessors = properties.multi_processor_count
        is_hopper = (properties.major, properties.minor) == (9, 0)
        self.target = target or ("sm_90a" if is_hopper else "sm_80")
        self.driver = Driver(torch.cuda.current_device())
        self.launches = Launches(launches_path, self.driver.encode)
        self.module = self.driver.load(self.launches.ptx(self.target))


def memory(tensor):
    return {"address": tensor.data_ptr(), "bytes": tensor.numel() * tensor.element_size()}


def operand(tensor):
    return memory(tensor) | {
        "dtype": DTYPE_NAMES[tensor.dtype],
        "shape": list(tensor.shape),
        "strides": list(tensor.stride()),
    }


class Ours:
    """One plan on one set of tensors: `work` is "dense", {"given": {}} with lists, or {"policy": {...}}."""

    def __init__(self, gpu, inputs, work, lists=None):
        self.inputs, self.lists = inputs, lists
        self.plan = gpu.launches.plan(inputs.problem(), work)
        self.o = torch.empty_like(inputs.q)
        self.lse = torch.empty(inputs.batch, inputs.q_heads, inputs.q_len, dtype=torch.float32, device=inputs.q.device)
        bytes_needed = max(self.plan["workspace_bytes"], 256)
        self.workspace = torch.empty(bytes_needed, dtype=torch.uint8, device=inputs.q.device)
        operands = {name: operand(tensor) for name, tensor in
                    (("q", inputs.q), ("k", inputs.k), ("v", inputs.v), ("o", self.o))}
        operands |= {"lse": memory(self.lse), "workspace": memory(self.workspace)}
        made = gpu.launches.launches(self.plan["plan"], gpu.target, gpu.multiprocessors, operands)
        self.steps = [(launch["stage"], gpu.module.prepare(launch)) for launch in made]
        self.kernels = [launch["kernel"] for launch in made]
        self.poison()

    def poison(self):
        """Outputs that nobody wrote are NaN, and the workspace holds no zero that a kernel could rely on."""
        self.o.fill_(float("nan"))
        self.lse.fill_(float("nan"))
        self.workspace.fill_(0xFF)
        if self.lists is not None:
            lists, counts = self.lists
            self.region("kv_indices").copy_(lists.flatten())
            self.region("kv_num_blocks").copy_(counts.flatten())
            self.region("num_keys").zero_()
            self.region("dense").zero_()

    def region(self, name):
        """A region of the workspace, as signed integers of its elements' size."""
        regions = self.plan["regions"]
        region = regions.get(name) or regions[EARLIER_NAMES[name]]
        start, size = region["offset_bytes"], region["element_bytes"]
        return self.workspace[start : start + region["len"] * size].view(TORCH_DTYPES[size])

    def run(self):
        stream = torch.cuda.current_stream().cuda_stream
        for _, launch in self.steps:
            launch(stream)

    def run_stages(self):
        """A run with an event wherever another stage begins: [(stage, event)], the last one with None."""
        stream, events = torch.cuda.current_stream().cuda_stream, []
        for stage, launch in self.steps:
            if not events or events[-1][0] != stage:
                events.append((stage, recorded()))
            launch(stream)
        return [*events, (None, recorded())]

    def selected(self):
        """What the last run selected: kept blocks [heads, query blocks, key blocks], sinks, dense flags or None."""
        blocks = -(-self.inputs.n // 128)
        lists = self.region("kv_indices").view(self.inputs.q_heads, blocks, blocks)
        counts = self.region("kv_num_blocks").view(self.inputs.q_heads, blocks)
        dense = self.region("dense") if self.plan["regions"]["dense"]["len"] else None
        return kept_blocks(lists, counts), self.plan["selection"]["sinks"], dense

    def is_dense(self):
        """Whether nothing is selected."""
        return self.plan["selection"] is None

    def keeps_all_lists(self):
        """Whether the lists of the whole call lie in the workspace after a run, square and of one sequence."""
        blocks = -(-self.inputs.n // 128)
        region = self.plan["regions"].get("kv_indices") or self.plan["regions"]["lists"]
        return self.inputs.q_len == self.inputs.n and region["len"] == self.inputs.q_heads * blocks * blocks

    def least_sampled_coverage(self):
        """The least share of the sampled mass that a head's selection keeps."""
        selection = self.plan["selection"]
        kept = self.region("kept").view(self.inputs.q_heads, -1).double().sum(-1)
        rows = torch.tensor(selection["rows_by_head"], dtype=torch.float64, device=kept.device)
        return (kept / (rows * selection["mass_one"])).min().item()


def recorded():
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event
