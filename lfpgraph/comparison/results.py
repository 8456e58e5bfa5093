"""What `compare` found: as a table, as JSON, and as one HTML page."""

from __future__ import annotations

import base64
import io
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ..pages import rendered
from .runs import Run

__all__ = ["Comparison", "WayResult"]


_PAGE_ALONE = ("steps", "s of training", "s to prepare")


@dataclass
class WayResult:
    """One way: the rate that was chosen, what each rate tried reached, a run for each seed; or why it cannot train this model.

    Attributes:
        kept_bytes: of all that is kept between steps: weights, heads, the optimizer's state.
        peak_bytes: the most bytes of tensors that a whole step makes and that are alive at once: activations, gradients, the
            optimizer's own.
    """

    way: str
    rate: float = math.nan
    tried: dict[float, float] = field(default_factory=dict)
    runs: list[Run] = field(default_factory=list)
    prepare_seconds: float = math.nan
    kept_bytes: int = 0
    peak_bytes: int = 0
    failure: str = ""

    @property
    def qualities(self) -> list[float]:
        """The score at the end, of each seed."""
        return [run.quality for run in self.runs]

    def angles(self, point: int) -> dict[str, float | None]:
        """Degrees by layer at a point of the run, the first seed's."""
        return self.runs[0].angles[point] if self.runs else {}

    def mean_angle(self, point: int) -> float | None:
        """The mean over the layers that have one."""
        found = [degrees for degrees in self.angles(point).values() if degrees is not None]
        return statistics.fmean(found) if found else None


@dataclass
class Comparison:
    """The ways in the order that was asked for. `metric` is "accuracy" or "loss"."""

    name: str
    metric: str
    budget: str
    batch_size: int
    ways: list[WayResult]

    def rows(self) -> list[dict[str, str]]:
        """The table as text, a row for each way."""
        return [self._row(way) for way in self.ways]

    def _row(self, way: WayResult) -> dict[str, str]:
        row = {"way": way.way}
        if way.failure:
            return row | {f"held-out {self.metric}": f"cannot train this model: {way.failure}"}
        run = way.runs[0]
        angles = [way.mean_angle(0), way.mean_angle(-1)]
        return row | {
            f"held-out {self.metric}": self._quality(way.qualities),
            "rate": f"{way.rate:g}",
            "ms a step": f"{1e3 * statistics.median(r.step_seconds for r in way.runs):.1f}",
            "steps": str(run.curve[-1][0]),
            "s of training": f"{run.curve[-1][1]:.1f}",
            "s to prepare": f"{way.prepare_seconds:.1f}",
            "MiB kept": f"{way.kept_bytes / 2**20:.2f}",
            "MiB of a step": f"{way.peak_bytes / 2**20:.2f}",
            "angle to the gradient, start, end": ", ".join("none" if a is None else f"{a:.0f}°" for a in angles),
        }

    def _quality(self, values: Sequence[float]) -> str:
        if not all(map(math.isfinite, values)):
            return "diverged"
        scale, unit, digits = (100, " %", 1) if self.metric == "accuracy" else (1, "", 4)
        spread = f" ± {scale * statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
        return f"{scale * statistics.fmean(values):.{digits}f}{spread}{unit}"

    @staticmethod
    def _columns(rows: list[dict[str, str]]) -> list[str]:
        """Those of a way that has been trained; others have fewer."""
        longest = max(rows, key=len)
        return list(longest)

    def table(self) -> Any:
        """A rich table, without the columns of seconds and steps, so that it fits a terminal. Below it, why ways cannot train."""
        from rich.markup import escape

        from ..reports.table import table_of

        rows = self.rows()
        columns = [name for name in self._columns(rows) if name not in _PAGE_ALONE]
        table = table_of(f"{self.name}: {self.budget} each, at its best rate", *columns)
        for way, row in zip(self.ways, rows):
            cells = [row.get(column, "") for column in columns]
            table.add_row(*([way.way, "cannot"] + [""] * (len(cells) - 2) if way.failure else cells))
        if reasons := [f"{way.way} cannot train this model: {way.failure}" for way in self.ways if way.failure]:
            table.caption, table.caption_justify = escape("\n".join(reasons)), "left"
        return table

    def to_json(self) -> dict[str, Any]:
        """Everything that was measured; numbers that are not finite are null."""
        ways = [
            {
                "way": way.way,
                "failure": way.failure or None,
                "rate": _number(way.rate),
                "tried": {f"{rate:g}": _number(value) for rate, value in way.tried.items()},
                "prepare_s": _number(way.prepare_seconds),
                "kept_bytes": way.kept_bytes,
                "peak_bytes": way.peak_bytes,
                "runs": [
                    {
                        "seed": run.seed,
                        self.metric: _number(run.quality),
                        "step_s": _number(run.step_seconds),
                        "curve": [[steps, seconds, _number(score)] for steps, seconds, score in run.curve],
                        "angles": run.angles,
                    }
                    for run in way.runs
                ],
            }
            for way in self.ways
        ]
        return {
            "name": self.name,
            "metric": self.metric,
            "budget": self.budget,
            "batch_size": self.batch_size,
            "torch": torch.__version__,
            "ways": ways,
        }

    def to_html(self) -> str:
        """One page that needs no other file: the table, curves by steps and by seconds, angles layer by layer."""
        trained = [way for way in self.ways if way.runs]
        layers = {name: None for way in trained for name in way.angles(0)}
        angles = {
            name: ["{} → {}".format(*(_degrees(way.angles(p).get(name)) for p in (0, -1))) for way in trained]
            for name in layers
        }
        rows = self.rows()
        return rendered(
            "lfpgraph.comparison",
            "comparison.html",
            result=self,
            rows=rows,
            columns=self._columns(rows),
            trained=[way.way for way in trained],
            angles=angles,
            curves=self._drawing(trained) if trained else "",
            torch=torch.__version__,
        )

    def _drawing(self, trained: Sequence[WayResult]) -> str:
        """The first seed's curves as a PNG in base64."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(13, 4), layout="constrained")
        FigureCanvasAgg(figure)
        by_steps, by_seconds, by_angle = figure.subplots(1, 3)
        for way in trained:
            steps, seconds, scores = zip(*way.runs[0].curve)
            by_steps.plot(steps, scores, "o-", ms=3, label=way.way)
            by_seconds.plot(seconds, scores, "o-", ms=3)
            means = [way.mean_angle(point) for point in range(len(way.runs[0].angles))]
            by_angle.plot(steps[: len(means)], [math.nan if a is None else a for a in means], "o-", ms=3)
        by_steps.set(xlabel="steps", ylabel=f"held-out {self.metric}")
        by_seconds.set(xlabel="seconds of training")
        by_angle.set(xlabel="steps", ylabel="angle to the gradient, degrees, mean of the layers")
        by_steps.legend(fontsize=8)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=110)
        return base64.b64encode(buffer.getvalue()).decode()


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _degrees(value: float | None) -> str:
    return "none" if value is None else f"{value:.0f}°"
