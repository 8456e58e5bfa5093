"""docs/sweep.md: what the rows of a sweep add up to, every miss with its reason, and a line for every type."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

import torch

__all__ = ["CLOSE", "miss", "summary", "table"]

CLOSE = 1e-4
Row = dict[str, Any]


def is_built(row: Row) -> bool:
    """Whether there was a model to measure."""
    return not row.get("error", "").startswith("build")


def is_covered(row: Row) -> bool:
    return "nodes" in row and not row["nodes"].get("uncovered")


def miss(row: Row) -> str | None:
    """What is wrong with a row; None where nothing is."""
    if (problem := row.get("error")) is not None:
        return str(problem)
    if not is_covered(row):
        return f"uncovered: {', '.join(row['kinds']['uncovered'])}"
    if not row["gradient_error"] <= CLOSE:
        return f"gradient differs from autograd's by {row['gradient_error']:.2g}"
    if not row["finite"]:
        return "LFP feedback is not finite"
    if not row.get("wrap_error", 0.0) <= CLOSE:
        return f"the wrapped model's gradient differs from autograd's by {row['wrap_error']:.2g}"
    return None


def summary(rows: list[Row]) -> list[str]:
    """The counts, as the lines of a Markdown table."""
    built = [row for row in rows if is_built(row)]
    traced = [row for row in built if "tracer" in row]
    wrapped = [row for row in built if "wrap_error" in row]
    tracers = Counter(row["tracer"] for row in traced)
    counts = {
        "asked for": len(rows),
        "built and run without lfpgraph": len(built),
        "traced": len(traced),
        "- by torch.export": tracers["export"],
        "- by the fallback, on real values": tracers["values"],
        "every operation that carries reward covered": sum(map(is_covered, traced)),
        f"gradient composite equal to autograd (within {CLOSE:g} of the largest gradient)": sum(
            row.get("gradient_error", 1.0) <= CLOSE for row in traced
        ),
        "LFP feedback finite": sum(row.get("finite", False) for row in traced),
    }
    if wrapped:
        right = sum(row["wrap_error"] <= CLOSE for row in wrapped)
        counts[f"wrapped as well, `.grad` equal to autograd's (of {len(wrapped)}, chosen by name)"] = right
    return ["| | model types |", "|---|---|", *(f"| {what} | {n} |" for what, n in counts.items())]


def _operations(rows: list[Row]) -> str:
    totals = Counter[str]()
    for row in rows:
        totals.update(row.get("nodes", {}))
    bearing = sum(n for name, n in totals.items() if name != "none")
    shown = ", ".join(f"{n} {name}" for name, n in sorted(totals.items()) if name != "none")
    return f"Operations that carry reward: {bearing} ({shown}); {totals['none']} others."


def table(rows: list[Row], builder: str) -> str:
    """The whole page."""
    built = [row for row in rows if is_built(row)]
    traced = [row for row in built if "tracer" in row]
    seconds = sorted(row["trace_s"] for row in traced) or [0.0]
    lines = [
        "# Sweep over transformers",
        "",
        f"Made by `make sweep` ({time.strftime('%Y-%m-%d')}, torch {torch.__version__}, transformers "
        f"{_transformers_version()}, 2 cores; {builder}). Small random instances in eval mode, float32. Each is traced at "
        "its sizes and walked once forward and twice back: by the gradient composite, which is compared with autograd for "
        "every parameter, and by LFP-epsilon. Every float output gets a random signal.",
        "",
        *summary(rows),
        "",
        _operations(traced)
        + f" Tracing took {seconds[len(seconds) // 2]:.1f} s in the median and {seconds[-1]:.0f} s at most.",
        "",
        "## Misses",
        "",
        *_misses(built),
        "",
        "## Every type",
        "",
        "Tracer: e is torch.export, v the fallback on real values. Operations: all in the graph, then those of them that carry "
        "reward. Error: the largest difference from autograd over the largest gradient; a second number is that of the "
        "wrapped model.",
        "",
        "| type | tracer | operations | carry reward | error | trace s |",
        "|---|---|---|---|---|---|",
        *map(_line, traced),
        "",
        *_not_built([row for row in rows if not is_built(row)]),
    ]
    return "\n".join(lines)


def _misses(rows: list[Row]) -> list[str]:
    found = [(row["type"], what) for row in rows if (what := miss(row)) is not None]
    if not found:
        return ["None."]
    return ["| type | what |", "|---|---|", *(f"| {name} | {what.replace('|', '/')} |" for name, what in found)]


def _line(row: Row) -> str:
    nodes = row.get("nodes", {})
    total = sum(nodes.values())
    errors = [f"{row[key]:.0e}" if row[key] else "0" for key in ("gradient_error", "wrap_error") if key in row]
    cells = [row["type"], row["tracer"][0], total, total - nodes.get("none", 0), ", ".join(errors), row["trace_s"]]
    return "| " + " | ".join(map(str, cells)) + " |"


def _not_built(rows: list[Row]) -> list[str]:
    """The types that gave no model, by the kind of reason."""
    if not rows:
        return []
    kinds: dict[str, list[str]] = {}
    for row in rows:
        kinds.setdefault(row["error"].split(":")[1].strip(), []).append(row["type"])
    listed = [f"- {kind} ({len(names)}): {', '.join(names)}" for kind, names in sorted(kinds.items())]
    return [
        f"## Not built ({len(rows)})",
        "",
        "The builder of instances has none of these that runs, before anything is traced:",
        "",
        *listed,
        "",
    ]


def _transformers_version() -> str:
    from importlib.metadata import version

    return version("transformers")
