"""Figures of an evaluation by name: functions of all outputs and all labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from ..errors import TrainingError

__all__ = ["METRICS", "Metric", "named_metrics"]

Metric = Callable[[Tensor, Tensor], Any]


def accuracy(outputs: Tensor, labels: Tensor) -> float:
    """Share of rows whose largest output [n, ..., c] is at the label [n, ...]; for one output, whose sign is right."""
    if outputs.dim() == labels.dim() and outputs.shape[-1] == 1:
        return ((outputs > 0) == (labels > 0.5)).float().mean().item()
    counted = labels >= 0  # -100 marks what the loss leaves out
    return (outputs.argmax(-1) == labels)[counted].float().mean().item()


def mean_absolute_error(outputs: Tensor, labels: Tensor) -> float:
    """Mean distance from the labels, in their units."""
    return (outputs.reshape(labels.shape) - labels).abs().float().mean().item()


def r2(outputs: Tensor, labels: Tensor) -> float:
    """Share of the labels' variance that the outputs explain."""
    labels = labels.float()
    error = (outputs.float().reshape(labels.shape) - labels).square().sum()
    return 1 - (error / (labels - labels.mean(0)).square().sum()).item()


METRICS: dict[str, Metric] = {"accuracy": accuracy, "mean_absolute_error": mean_absolute_error, "r2": r2}


def named_metrics(given: Sequence[str] | Mapping[str, Metric]) -> dict[str, Metric]:
    """Metrics by name: from a list of known names, or of your own.

    Raises:
        TrainingError: an unknown name; the message lists the known ones.
    """
    if isinstance(given, Mapping):
        return dict(given)
    unknown = [name for name in given if name not in METRICS]
    if unknown:
        raise TrainingError(f"no metric {unknown[0]!r}; known: {', '.join(METRICS)}; or give {{name: function}}")
    return {name: METRICS[name] for name in given}
