#!/usr/bin/env python3
"""Our GPU kernels beside PyTorch's, alternately in one run, on the same tensors, on a hot chip.

    cargo build --release --features ptx --example launches
    python3 benches/peers.py --dense --sparse --pipeline --seconds 480 --out benches/record/gpu

Needs a GPU, PyTorch with CUDA, and the example `launches`, whose launches it hands to the driver itself. Every result is
checked against f64 on sampled rows, from poisoned outputs, before it is timed; exit status 1 says that a check failed.
Nothing of the GPU's settings is changed.

    ncu --kernel-name regex:sparse_flash -c 2 python3 benches/peers.py --once dense --lengths 16384
"""

import argparse
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from gpu_peers import launches  # noqa: E402
from gpu_peers.cases import cases  # noqa: E402


def parse(arguments):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for mode, words in (
        ("dense", "dense attention, 4K to 128K tokens, head_dim 64 and 128, bf16 and f16"),
        ("sparse", "attention over given random block lists of several densities"),
        ("pipeline", "selection and attention, on uniform, local and captured inputs"),
        ("decode", "1 to 512 queries over many keys, beside the rate of a copy"),
    ):
        parser.add_argument(f"--{mode}", dest="modes", action="append_const", const=mode, help=words)
    parser.add_argument("--once", metavar="MODE", choices=("dense", "sparse", "pipeline", "decode"),
                        help="run the first case of a mode once, for a profiler")
    parser.add_argument("--quick", action="store_true", help="few cases")
    parser.add_argument("--flex", action="store_true", help="FlexAttention too, which compiles for each shape")
    parser.add_argument("--seconds", type=float, default=420, help="for everything (default %(default)s)")
    parser.add_argument("--lengths", type=int, nargs="+", metavar="N", help="in tokens")
    parser.add_argument("--head-dims", type=int, nargs="+", choices=(64, 128))
    parser.add_argument("--dtypes", nargs="+", choices=("bf16", "f16"))
    parser.add_argument("--densities", type=float, nargs="+", metavar="SHARE", help="of the causal area, for --sparse")
    parser.add_argument("--q-heads", type=int, default=32)
    parser.add_argument("--kv-heads", type=int, default=8)
    parser.add_argument("--files", nargs="+", default=[], metavar="FILE", help="captured q, k, v (safetensors), for --pipeline")
    parser.add_argument("--chunks", type=int, nargs="+", metavar="N", help="for --pipeline: the last N queries alone, over all keys")
    parser.add_argument("--policy", type=json.loads, default={}, metavar="JSON",
                        help='for --pipeline: fields of the policy, such as {"budget": "rows", "coverage": 0.8}')
    parser.add_argument("--earlier", metavar="PATH", help="the example `launches` of an earlier build, to compare with in the same run")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--target", choices=("sm_80", "sm_90a"), help="kernels to use (default: the GPU's)")
    parser.add_argument("--launches", metavar="PATH", help="the example `launches`")
    parser.add_argument("--out", metavar="FOLDER", help="write peers-MODE.md, .svg and .json there")
    parser.add_argument("--dry-run", action="store_true", help="print what would be measured; needs no GPU and no PyTorch")
    options = parser.parse_args(arguments)
    options.modes = [options.once] if options.once else options.modes or ["dense", "sparse", "pipeline", "decode"]
    if options.q_heads % options.kv_heads:
        parser.error("--q-heads is a multiple of --kv-heads")
    return options


def dry_run(options):
    """The cases with what the library plans for them."""
    library = launches.Launches(launches.find(options.launches), lambda layout: [0] * 16)
    target = options.target or "sm_90a"
    base = 1 << 40
    for case in cases(options):
        if not case.n:
            print(f"{case.mode} {case.input}")
            continue
        heads = {"q_heads": options.q_heads, "kv_heads": options.kv_heads}
        queries = case.q_len or case.n
        problem = heads | {"batch": case.batch, "q_len": queries, "k_len": case.n, "head_dim": case.d, "dtype": case.dtype}
        work = {
            "dense": "dense",
            "decode": "dense",
            "sparse": {"given": {"sinks": 0}},
            "pipeline": {"policy": options.policy},
        }[case.mode]
        plan = library.plan(problem, work)

        def tensor(place, count, length, case=case):
            strides = [count * length * case.d, length * case.d, case.d, 1]
            return {"address": base * place, "bytes": 2 * case.batch * strides[0], "dtype": case.dtype,
                    "shape": [case.batch, count, length, case.d], "strides": strides}

        operands = {name: tensor(place, *((options.q_heads, queries) if name in "qo" else (options.kv_heads, case.n)))
                    for place, name in enumerate("qkvo", 1)}
        operands["lse"] = {"address": 5 * base, "bytes": 4 * case.batch * options.q_heads * queries}
        operands["workspace"] = {"address": 6 * base, "bytes": plan["workspace_bytes"]}
        made = library.launches(plan["plan"], target, 132, operands)
        kernels = ", ".join(f"{launch['kernel']} {launch['grid']}" for launch in made[:6])
        kernels += f" and {len(made) - 6} more" if len(made) > 6 else ""
        pairs = queries * (case.n - queries) + queries * (queries + 1) // 2
        flop = 4 * case.batch * options.q_heads * pairs * case.d * case.density
        print(f"{case}: {flop / 1e12:.3g} TFLOP, {plan['workspace_bytes'] / 2**20:.1f} MiB of workspace; {kernels}")
    library.close()


def measure(options):
    try:
        import torch
    except ImportError:
        sys.exit("peers.py needs PyTorch with CUDA: there is none in this Python (--dry-run needs neither)")
    if not torch.cuda.is_available():
        sys.exit("peers.py needs an NVIDIA GPU: PyTorch sees none here (--dry-run needs neither)")
    from gpu_peers.driver import DriverError
    from gpu_peers.modes import Bench, tables
    from gpu_peers.ours import Gpu
    from gpu_peers.report import Record, device_facts

    started = time.monotonic()
    gpu = Gpu(launches.find(options.launches), options.target)
    earlier = Gpu(options.earlier, options.target) if options.earlier else None
    bench = Bench(gpu, options, earlier)
    found = cases(options)
    if options.once:
        bench.once(found[-1] if options.files else found[0])
        return 0

    before = device_facts()
    heading = "\n".join((
        "# Beside PyTorch's kernels",
        "",
        f"{before}; PyTorch {torch.__version__}, cuDNN {torch.backends.cudnn.version()}; kernels of {gpu.target}.",
        "Alternating rounds on a hot chip, medians; ±: half of what lies between the quartiles. Check: of the largest error "
        "that the rule allows (twice a 16-bit reference's), on sampled rows against f64.",
    ))
    print(heading, flush=True)
    heads = f"{options.q_heads} query and {options.kv_heads} key/value heads"
    records, skipped = {}, []
    for index, case in enumerate(found):
        left = options.seconds - (time.monotonic() - started)
        if left <= 0:
            skipped.append(str(case))
            continue
        if case.mode not in records:
            table, chart = tables(heads, json.dumps(options.policy) if options.policy else "default")[case.mode]
            records[case.mode] = Record(case.mode, options.out, table, chart, heading)
        try:
            getattr(bench, case.mode)(case, left / (len(found) - index), records[case.mode])
        except (RuntimeError, ValueError, OSError, launches.LaunchesError) as error:
            # One case that cannot be measured must not cost the others.
            bench.wrong = True
            print(f"{case}: FAILED: {type(error).__name__}: {error}", flush=True)
            if "CUDA error" in str(error) or isinstance(error, DriverError):
                break  # the context is lost
        torch.cuda.empty_cache()
    footer = f"Before: {before}.\nAfter: {device_facts()}.\n"
    if skipped:
        footer += f"Out of time, not measured: {'; '.join(skipped)}.\n"
    print(f"\n{footer}", flush=True)
    for record in records.values():
        record.write(footer)
    gpu.launches.close()
    return 1 if bench.wrong else 0


def main():
    options = parse(sys.argv[1:])
    try:
        if options.dry_run:
            dry_run(options)
            return 0
        return measure(options)
    except launches.LaunchesError as error:
        print(f"peers.py: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
