"""Plots that several experiments share, on matplotlib's axes or on a whole figure."""

from __future__ import annotations

from typing import Any

from .harness import Case, Report

__all__ = ["COLOURS", "bars", "curves", "draw_bars", "draw_curves"]

COLOURS = {"LFP": "tab:blue", "backprop": "tab:orange"}


def _colour(way: str, position: int) -> str:
    return COLOURS.get(way, f"C{position + 2}")


def _scale(metric: str) -> float:
    return 100.0 if metric == "accuracy" else 1.0


def _label(metric: str) -> str:
    return "accuracy, %" if metric == "accuracy" else metric


def bars(axes: Any, cases: list[Case], metric: str) -> None:
    """A group of bars for each model, a bar for each way, spread as a whisker."""
    ways = list(dict.fromkeys(case.way for case in cases))
    models = list(dict.fromkeys(case.model for case in cases))
    width = 0.8 / len(ways)
    for i, way in enumerate(ways):
        own = [case for case in cases if case.way == way]
        places = [models.index(case.model) + (i - (len(ways) - 1) / 2) * width for case in own]
        heights = [_scale(metric) * case.mean for case in own]
        whiskers = [_scale(metric) * case.spread for case in own]
        axes.bar(places, heights, width, yerr=whiskers, label=way, color=_colour(way, i), capsize=2)
    axes.set_xticks(range(len(models)), models, rotation=20 if len(models) > 5 else 0)
    axes.set_ylabel(_label(metric))
    axes.legend(loc="lower right")


def curves(axes: Any, cases: list[Case], metric: str) -> None:
    """The metric after every epoch: a thin line for each seed, a thick one for their mean."""
    for i, case in enumerate(cases):
        colour = _colour(case.way, i)
        scaled = [[_scale(metric) * v for v in curve] for curve in case.curves]
        for curve in scaled:
            axes.plot(range(1, len(curve) + 1), curve, color=colour, alpha=0.3, linewidth=0.8)
        mean = [sum(values) / len(values) for values in zip(*scaled)]
        axes.plot(range(1, len(mean) + 1), mean, color=colour, label=case.way)
    axes.set_xlabel("epoch")
    axes.set_ylabel(_label(metric))
    axes.legend()


def draw_bars(figure: Any, report: Report) -> None:
    bars(figure.subplots(), report.cases, report.metric)


def draw_curves(figure: Any, report: Report) -> None:
    """A panel of curves for each model."""
    models = list(dict.fromkeys(case.model for case in report.cases))
    panels = figure.subplots(1, len(models), squeeze=False, sharey=report.metric == "accuracy")[0]
    for axes, model in zip(panels, models):
        curves(axes, [case for case in report.cases if case.model == model], report.metric)
        axes.set_title(model)
