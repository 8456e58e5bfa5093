"""How fast: accuracy of a CNN on digits after each epoch, per step and per second."""

from __future__ import annotations

from typing import Any

from torch.nn.functional import cross_entropy

from ..demo.data import digits
from ..models_zoo.digits import cnn
from .common.harness import Report, Settings, Way
from .common.models import seeded
from .common.rates import tuned

__all__ = ["run"]

RATES = (1e-3, 2e-3, 5e-3, 1e-2)
_TARGET = 0.95


def run(settings: Settings) -> Report:
    """The same CNN by LFP and by backprop; steps and seconds to 95 %."""
    train, test = digits()
    ways = [Way("LFP", "lfp", cross_entropy), Way("backprop", None, cross_entropy)]
    start = seeded(cnn)
    cases, notes = tuned(start(0), ways, RATES, train, test, settings, epochs=15, name="CNN", start=start)
    per_epoch = -(-len(train[0]) // 64)
    for case in cases:
        case.more["steps_per_epoch"] = per_epoch
        reached = [_first(curve) for curve in case.curves]
        if all(reached):
            steps = [epoch * per_epoch for epoch in reached]
            seconds = [n * s for n, s in zip(steps, case.step_seconds)]
            notes.append(
                f"{case.model}, {case.way}: {_TARGET:.0%} after {min(steps)} to {max(steps)} steps, "
                f"{min(seconds):.2f} to {max(seconds):.2f} s "
                f"(a step {1e3 * min(case.step_seconds):.1f} to {1e3 * max(case.step_seconds):.1f} ms)"
            )
        else:
            notes.append(f"{case.model}, {case.way}: {_TARGET:.0%} was not reached by every seed")
    return Report("convergence", "accuracy", cases, _draw, (9, 4), notes)


def _first(curve: list[float]) -> int:
    """The first epoch, from 1, at the target; 0 for never."""
    return next((i + 1 for i, value in enumerate(curve) if value >= _TARGET), 0)


def _draw(figure: Any, report: Report) -> None:
    panels = figure.subplots(1, 2, sharey=True)
    for i, case in enumerate(case for case in report.cases if case.model == report.cases[0].model):
        for axes, unit in zip(panels, ("steps", "seconds")):
            for seed, curve in enumerate(case.curves):
                steps = [case.more["steps_per_epoch"] * (e + 1) for e in range(len(curve))]
                x = steps if unit == "steps" else [n * case.step_seconds[seed] for n in steps]
                axes.plot(x, [100 * v for v in curve], color=f"C{i}", alpha=0.8, label=case.way if not seed else None)
            axes.set_xlabel(unit)
    panels[0].set_ylabel("accuracy, %")
    panels[0].legend()
