#!/usr/bin/env python3
"""Draws the README's charts of the GPU, docs/gpu-*.svg, from the tables in benches/record/gpu.

    python3 benches/readme_charts.py
"""

from pathlib import Path

from gpu_peers.report import Chart

ROOT = Path(__file__).resolve().parent.parent
RECORD = ROOT / "benches" / "record" / "gpu"


def rows(name):
    """The rows of a record's table, by column."""
    lines = [line for line in (RECORD / f"peers-{name}.md").read_text().splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [dict(zip(cells[0], row)) for row in cells[2:]]


def kilo(tokens):
    return f"{int(tokens) // 1024}K"


def ratios(row, *columns):
    return [float(row[column]) for column in columns]


def dense():
    chart = Chart("Dense on an H200, head_dim 128, bf16: speed-up", ("over cuDNN", "over FlashAttention-2"))
    for row in rows("dense"):
        if (row["head_dim"], row["dtype"]) == ("128", "bf16"):
            chart.add(kilo(row["tokens"]), *ratios(row, "ours / cuDNN", "ours / FA2"))
    return chart


def pipeline():
    chart = Chart("On an H200: speed-up over dense attention of the same length", ("over cuDNN dense", "over our dense"))
    columns = ("over cuDNN dense", "over our dense")
    for row in rows("sparse"):
        if row["tokens"] == "131072":
            chart.add(f"128K, {float(row['asked']):.0%} kept".replace("%", " %"), *ratios(row, *columns))
    for row in rows("pipeline"):
        chart.add(f"pipeline, {row['input'].split(',')[0]}, {kilo(row['tokens'])}", *ratios(row, *columns))
    return chart


def main():
    for name, chart in (("gpu-dense", dense()), ("gpu-pipeline", pipeline())):
        (ROOT / "docs" / f"{name}.svg").write_text(chart.svg())


if __name__ == "__main__":
    main()
