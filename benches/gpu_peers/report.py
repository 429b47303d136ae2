"""Tables in Markdown, charts in SVG, and what machine it was."""

import json
import subprocess
from pathlib import Path
from xml.sax.saxutils import escape

FACTS = ("name", "driver_version", "clocks.sm", "clocks.mem", "power.draw", "temperature.gpu")
COLOURS = ("#4878a8", "#e08830", "#6aa84f", "#a05aa0", "#888888")


def device_facts():
    """What nvidia-smi says of the GPU now; it only asks."""
    command = ["nvidia-smi", f"--query-gpu={','.join(FACTS)}", "--format=csv,noheader", "--id=0"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout
    except (OSError, subprocess.SubprocessError) as error:
        return f"nvidia-smi: {error}"
    return ", ".join(f"{name} {value.strip()}" for name, value in zip(FACTS, answer.strip().split(",")))


class Table:
    """Rows of values under named columns; a value is text, a number or None for 'not measured'."""

    def __init__(self, title, note, columns):
        self.title, self.note, self.columns, self.rows = title, note, columns, []

    def add(self, **values):
        unknown = set(values) - set(self.columns)
        if unknown:
            raise KeyError(f"{self.title} has no column {unknown}")
        self.rows.append(values)

    @staticmethod
    def _text(value):
        if value is None:
            return "–"
        if isinstance(value, float):
            return f"{value:.3g}" if abs(value) < 1 else f"{value:.2f}" if abs(value) < 100 else f"{value:.0f}"
        return str(value)

    def line(self, row):
        return "| " + " | ".join(self._text(row.get(column)) for column in self.columns) + " |"

    def header(self):
        return "| " + " | ".join(self.columns) + " |\n|" + "---|" * len(self.columns)

    def markdown(self):
        lines = [f"## {self.title}", "", self.note, "", self.header(), *map(self.line, self.rows)]
        return "\n".join(lines) + "\n"


class Chart:
    """Groups of bars that stand for ratios; a line marks 1."""

    def __init__(self, title, series):
        self.title, self.series, self.groups = title, series, []

    def add(self, group, *ratios):
        self.groups.append((group, ratios))

    def svg(self):
        bar, gap, height, left, top = 16, 18, 260, 46, 46
        group_width = bar * len(self.series) + gap
        end = left + group_width * len(self.groups)
        # Labels lean to the right.
        label = 5 * max((len(group) for group, _ in self.groups), default=0)
        width = max(end + label + 10, left + 8 * len(self.title), 480)
        most = max((ratio for _, ratios in self.groups for ratio in ratios if ratio), default=1.0)
        scale = height / max(1.15 * most, 1.2)
        base = top + height
        parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{base + 92}" '
            'font-family="sans-serif" font-size="11">',
            '<rect width="100%" height="100%" fill="white"/>',
            f'<text x="{left}" y="18" font-size="14">{escape(self.title)}</text>',
        ]
        for index, name in enumerate(self.series):
            x = left + 150 * index
            parts.append(f'<rect x="{x}" y="26" width="10" height="10" fill="{COLOURS[index % len(COLOURS)]}"/>')
            parts.append(f'<text x="{x + 14}" y="35">{escape(name)}</text>')
        step = next(step for step in (0.25, 0.5, 1, 2, 5, 10, 20, 50, 1e9) if 1.15 * most / step <= 8)
        for index in range(int(height / scale / step) + 1):
            y = base - index * step * scale
            parts.append(f'<line x1="{left}" x2="{end}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>')
            parts.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{index * step:g}</text>')
        for index, (group, ratios) in enumerate(self.groups):
            x = left + gap / 2 + index * group_width
            for place, ratio in enumerate(ratios):
                if ratio is None:
                    continue
                colour = COLOURS[place % len(COLOURS)]
                parts.append(
                    f'<rect x="{x + place * bar:.1f}" y="{base - ratio * scale:.1f}" width="{bar - 2}" '
                    f'height="{ratio * scale:.1f}" fill="{colour}"><title>{escape(group)}: {ratio:.2f}</title></rect>'
                )
            middle = x + bar * len(self.series) / 2
            parts.append(f'<text transform="translate({middle:.1f} {base + 10}) rotate(40)">{escape(group)}</text>')
        y = base - scale
        parts.append(f'<line x1="{left}" x2="{end}" y1="{y:.1f}" y2="{y:.1f}" stroke="#c00" stroke-dasharray="4 3"/>')
        return "\n".join([*parts, "</svg>"]) + "\n"


class Record:
    """A mode's table and chart, printed as they grow and written after every row."""

    def __init__(self, name, folder, table, chart, heading):
        self.name, self.folder, self.table, self.chart, self.heading = name, folder, table, chart, heading
        self.raw = []
        print(f"\n## {table.title}\n\n{table.note}\n\n{table.header()}", flush=True)

    def add(self, bars, raw, **values):
        self.table.add(**values)
        self.chart.add(*bars)
        self.raw.append(raw)
        print(self.table.line(values), flush=True)
        self.write()

    def write(self, footer=""):
        if self.folder is None:
            return
        folder = Path(self.folder)
        folder.mkdir(parents=True, exist_ok=True)
        text = f"{self.heading}\n\n{self.table.markdown()}\n{footer}".rstrip() + "\n"
        (folder / f"peers-{self.name}.md").write_text(text)
        (folder / f"peers-{self.name}.svg").write_text(self.chart.svg())
        (folder / f"peers-{self.name}.json").write_text(json.dumps(self.raw, indent=1) + "\n")
