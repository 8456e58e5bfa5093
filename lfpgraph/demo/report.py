"""The closing table in the terminal, and the self-contained HTML report with learning curves."""

from __future__ import annotations

import base64
import io
from collections import Counter
from pathlib import Path
from typing import Any

from ..pages import rendered
from ..reports.table import table_of
from .training import Result, Run

__all__ = ["closing_table", "write_report"]


def _format(run: Run | None, metric: str) -> str:
    if run is None or not run.metric:
        return "-"
    return f"{run.metric[-1] * 100:.1f} %" if metric == "accuracy" else f"{run.metric[-1]:.4f}"


def _origins(result: Result) -> Counter[str]:
    counts: Counter[str] = Counter()
    for row in result.operations:
        counts[row["origin"]] += row["count"]
    return counts


def rows_of(results: list[Result]) -> list[dict[str, str]]:
    """The closing table's rows as text."""
    rows = []
    for result in results:
        counts = _origins(result)
        back = result.backprop
        rows.append(
            {
                "model": result.name,
                f"held-out {result.metric}, LFP": _format(result.lfp, result.metric),
                "backprop": _format(back, result.metric),
                "ms a step, LFP": f"{result.lfp.median_step * 1e3:.1f}",
                "ms, backprop": f"{back.median_step * 1e3:.1f}" if back else "-",
                "ratio": f"{result.ratio:.2f}" if back else "-",
                "parameters rewarded": "{} of {}".format(*result.lfp.rewarded),
                "with gradient": "{} of {}".format(*back.rewarded) if back else "-",
                "operations": ", ".join(f"{n} {origin}" for origin, n in counts.most_common()),
            }
        )
    return rows


def closing_table(results: list[Result]) -> Any:
    """A rich table of the results, a column for each model."""
    rows = rows_of(results)
    table = table_of(
        "LFP beside backprop: same start, same batches, steps in turn", "", *(row["model"] for row in rows)
    )
    for key in list(rows[0])[1:]:
        table.add_row(key, *(row[key] for row in rows))
    return table


def _curves(result: Result) -> str:
    """Learning curves as a base64 PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import MaxNLocator

    figure, axes = pyplot.subplots(figsize=(6, 3.2), dpi=110)
    scale = 100 if result.metric == "accuracy" else 1
    for run, colour in ((result.lfp, "#0b6e4f"), (result.backprop, "#b5541c")):
        if run is not None:
            epochs = range(1, len(run.metric) + 1)
            label = "LFP" if run is result.lfp else "backprop"
            axes.plot(epochs, [scale * v for v in run.metric], "o-", ms=3, color=colour, label=label)
    axes.set(
        xlabel="epoch",
        ylabel=f"held-out {result.metric}" + (" (%)" if scale == 100 else ""),
        title=result.name,
    )
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", bbox_inches="tight")
    pyplot.close(figure)
    return base64.b64encode(buffer.getvalue()).decode()


def write_report(results: list[Result], path: Path, title: str) -> Path:
    """Write one HTML file with the curves, the closing table and each model's operations."""
    import torch

    models = [{"name": r.name, "curves": _curves(r), "operations": r.operations} for r in results]
    page = rendered(
        "lfpgraph.demo", "report.html", title=title, rows=rows_of(results), models=models, torch=torch.__version__
    )
    path.write_text(page, encoding="utf-8")
    return path
