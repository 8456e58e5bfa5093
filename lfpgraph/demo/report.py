"""The closing table in the terminal, and the self-contained HTML report with learning curves."""

from __future__ import annotations

import base64
import io
from collections import Counter
from pathlib import Path
from typing import Any

from ..pages import rendered
from ..reports.table import table_of
from ..writing import write_text
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


WAYS = {"lfp": ("LFP", "#0b6e4f"), "backprop": ("backprop", "#b5541c")}


def _runs(result: Result) -> list[Run]:
    return [run for run in (result.lfp, result.backprop) if run is not None]


def _curves(result: Result) -> str:
    """Held-out metric, loss and rate, the sizes of feedback and the silent units, as a base64 PNG."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(12, 6.4), dpi=100, layout="constrained")
    (quality, loss), (sizes, silent) = figure.subplots(2, 2)
    scale = 100 if result.metric == "accuracy" else 1
    unit = " (%)" if scale == 100 else ""
    for run in _runs(result):
        label, colour = WAYS[run.way]
        quality.plot(
            range(1, len(run.metric) + 1), [scale * v for v in run.metric], "o-", ms=3, color=colour, label=label
        )
        loss.plot(range(1, len(run.losses) + 1), run.losses, lw=0.8, color=colour, label=label)
        for values in run.layers.silent.values():
            line = silent.plot(range(1, len(values) + 1), [100 * v for v in values], lw=0.9, color=colour)[0]
            line.set_linestyle("-" if run.way == "lfp" else "--")
    for i, (name, values) in enumerate(result.lfp.layers.norms.items()):
        shade = (0.04, 0.43 + 0.5 * i / max(1, len(result.lfp.layers.norms)), 0.31)
        sizes.plot(range(1, len(values) + 1), values, lw=1, color=shade, label=name)
    if result.lfp.rates:
        rate = loss.twinx()
        rate.plot(range(1, len(result.lfp.rates) + 1), result.lfp.rates, ":", lw=1, color="#555")
        rate.set_ylabel("rate (dotted)")
    quality.set(xlabel="epoch", ylabel=f"held-out {result.metric}{unit}", title=f"held-out {result.metric}")
    loss.set(xlabel="step", ylabel="loss", title="loss in training, and the rate")
    sizes.set(
        xlabel="epoch", ylabel="norm", yscale="log", title="LFP: feedback of each matrix, light towards the output"
    )
    silent.set(
        xlabel="epoch",
        ylabel="units (%)",
        ylim=(-4, 104),
        title="silent units of each matrix: LFP solid, backprop dashed",
    )
    for axis in (quality, sizes, silent):
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axis in (quality, loss, sizes, silent):
        axis.grid(alpha=0.3)
    quality.legend()
    if 0 < len(result.lfp.layers.norms) <= 8:
        sizes.legend(fontsize=7)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return base64.b64encode(buffer.getvalue()).decode()


def _layers(result: Result) -> list[dict[str, str]]:
    """Rows of matrix, size of what it was handed and share of silent units, first epoch and last."""
    rows = []
    for name in dict.fromkeys(name for run in _runs(result) for name in run.layers.norms):
        row = {"matrix": name}
        for run in _runs(result):
            norms, silent = run.layers.norms.get(name, []), run.layers.silent.get(name, [])
            row[f"norm, {WAYS[run.way][0]}"] = f"{norms[0]:.3g} → {norms[-1]:.3g}" if norms else "none"
            row[f"silent, {WAYS[run.way][0]}"] = f"{silent[0]:.0%} → {silent[-1]:.0%}" if silent else "all"
        rows.append(row)
    return rows


def write_report(results: list[Result], path: Path, title: str) -> Path:
    """Write one HTML file with the curves, the closing table and each model's operations."""
    import torch

    models = [{"name": r.name, "curves": _curves(r), "layers": _layers(r), "operations": r.operations} for r in results]
    page = rendered(
        "lfpgraph.demo", "report.html", title=title, rows=rows_of(results), models=models, torch=torch.__version__
    )
    write_text(path, page)
    return path
