"""The tables of docs/performance.md and its plot, from the rows of `benchmarks.report`."""

from __future__ import annotations

from pathlib import Path
from statistics import geometric_mean
from typing import Any

from benchmarks.models import DEPTHS, MODELS, SERIES
from benchmarks.peers import PEER_MODELS
from tools.pages import put_table

__all__ = ["draw", "put"]

Rows = dict[str, dict[str, Any]]


def put(rows: Rows, page: Path) -> None:
    """Write the rows into the page's tables; what is written around them stays."""
    preparing = [*MODELS, *(f"{s}/{v}" for s, points in DEPTHS.items() for v in points)]
    tables = {
        "times": [
            '| model | backprop ms | lfpgraph ms | ratio | `memory="min"` | backprop compiled ms | lfpgraph compiled ms | ratio '
            "| measured |",
            "|---|---|---|---|---|---|---|---|---|",
            *(_times(name, rows) for name in MODELS),
        ],
        "means": _means(rows),
        "memory": [
            '| model | kept by backprop MB | lfpgraph | `memory="min"` | peak of backprop MB | lfpgraph | `memory="min"` |',
            "|---|---|---|---|---|---|---|",
            *(_memory(name, rows) for name in MODELS),
        ],
        "prepare": [
            "| model | aot_eager s | default s | ratio | static s | ratio | in parts s | ratio | measured |",
            "|---|---|---|---|---|---|---|---|---|",
            *(_prepare(name, rows) for name in preparing),
        ],
        "growth": [
            "| | | backprop ms | lfpgraph ms | ratio | kept, over backprop's | first step s |",
            "|---|---|---|---|---|---|---|",
            *(_point(series, value, rows) for series, points in SERIES.items() for value in points),
        ],
        "peers": [
            "| model | backprop ms | lfpgraph | lfprop | snntorch | spikingjelly | measured |",
            "|---|---|---|---|---|---|---|",
            *(_peers(name, rows) for name in PEER_MODELS if f"peers {name}" in rows),
        ],
        "notes": _notes(rows),
    }
    for mark, lines in tables.items():
        put_table(page, mark, lines)


def _measured(*found: dict[str, Any]) -> str:
    """When and how rows were measured, for the last column."""
    return ", ".join(dict.fromkeys(row["measured"] for row in found if "measured" in row))


def _cell(value: float | None, form: str = "{:.2f}") -> str:
    return "" if value is None else form.format(value)


def _step(rows: Rows, job: str, side: str) -> tuple[float | None, float | None]:
    """Milliseconds and ratio of a side."""
    row = rows.get(job, {})
    seconds = row.get("step_s", {}).get(side)
    return (None if seconds is None else seconds * 1e3), row.get("ratio", {}).get(side)


def _times(name: str, rows: Rows) -> str:
    eager, compiled = f"step {name}", f"compiled {name}"
    ours, theirs = _step(rows, eager, "lfp"), _step(rows, eager, "backprop")
    fast, base = _step(rows, compiled, "lfp-compiled"), _step(rows, compiled, "backprop-compiled")
    cells = [
        _cell(theirs[0], "{:.1f}"), _cell(ours[0], "{:.1f}"), _cell(ours[1]), _cell(_step(rows, eager, "lfp-min")[1]),
        _cell(base[0], "{:.1f}"), _cell(fast[0], "{:.1f}"), _cell(fast[1]),
    ]  # fmt: skip
    return f"| {name} | " + " | ".join([*cells, _measured(rows.get(eager, {}), rows.get(compiled, {}))]) + " |"


def _peers(name: str, rows: Rows) -> str:
    job = f"peers {name}"
    cells = [_cell(_step(rows, job, side)[1]) for side in ("lfp", "lfprop", "snntorch", "spikingjelly")]
    return f"| {name} | {_cell(_step(rows, job, 'backprop')[0], '{:.1f}')} | {' | '.join(cells)} | {_measured(rows[job])} |"


def _means(rows: Rows) -> list[str]:
    eager = [r for name in MODELS if (r := _step(rows, f"step {name}", "lfp")[1]) is not None]
    compiled = [r for name in MODELS if (r := _step(rows, f"compiled {name}", "lfp-compiled")[1]) is not None]
    parts = [
        f"{what} {geometric_mean(found):.2f}" for what, found in (("eager", eager), ("compiled", compiled)) if found
    ]
    return [f"Geometric means of the ratios: {', '.join(parts)}."] if parts else []


def _memory(name: str, rows: Rows) -> str:
    cells = []
    for key in ("saved", "peak"):
        base = rows.get(f"memory {name} backprop", {}).get(key)
        cells.append("" if base is None else f"{base / 2**20:.0f}")
        for side in ("lfp", "lfp-min"):
            value = rows.get(f"memory {name} {side}", {}).get(key)
            cells.append("" if value is None or not base else f"{value / base:.2f}")
    return f"| {name} | " + " | ".join(cells) + " |"


def _prepare(name: str, rows: Rows) -> str:
    row = rows.get(f"prepare {name}", {})
    seconds = row.get("prepare_s", {})
    cells = [_cell(seconds.get("aot_eager"), "{:.1f}")]
    for side in ("lfp-auto", "lfp", "lfp-regional"):
        cells += [_cell(seconds.get(side), "{:.1f}"), _cell(row.get("ratio", {}).get(side))]
    return f"| {name} | " + " | ".join([*cells, _measured(row)]) + " |"


def _point(series: str, value: str, rows: Rows) -> str:
    name = f"{series}/{value}"
    ours, theirs = _step(rows, f"step {name}", "lfp"), _step(rows, f"step {name}", "backprop")
    kept = [rows.get(f"memory {name} {side}", {}).get("saved") for side in ("lfp", "backprop")]
    first = rows.get(f"step {name}", {}).get("first_s", {}).get("lfp")
    share = kept[0] / kept[1] if kept[0] and kept[1] else None
    cells = [_cell(theirs[0], "{:.1f}"), _cell(ours[0], "{:.1f}"), _cell(ours[1]), _cell(share), _cell(first, "{:.1f}")]
    return f"| {series} | {value} | " + " | ".join(cells) + " |"


def _notes(rows: Rows) -> list[str]:
    """What was not measured, and why; what a model's figures mean."""
    lines = [f"- {name.removeprefix('step ')}: {row['notes']}." for name, row in rows.items() if row.get("notes")]
    lines += [f"- {name}: {row['error']}" for name, row in rows.items() if row.get("error")]
    for name, row in rows.items():
        lines += [f"- {name}, {side}: {error}" for side, error in row.get("errors", {}).items()]
    return list(dict.fromkeys(lines))


def draw(rows: Rows, path: Path) -> None:
    """Ratios of step time, eager and compiled, as bars."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 4))
    for shift, (kind, side, label) in enumerate((("step", "lfp", "eager"), ("compiled", "lfp-compiled", "compiled"))):
        values = [_step(rows, f"{kind} {name}", side)[1] or 0.0 for name in MODELS]
        axes.bar([i + 0.4 * shift for i in range(len(values))], values, 0.4, label=label)
    axes.axhline(1.0, color="black", linewidth=0.8)
    axes.set_xticks([i + 0.2 for i in range(len(MODELS))], list(MODELS), rotation=30, ha="right")
    axes.set_ylabel("step time over backprop's")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)
