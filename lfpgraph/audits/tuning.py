"""`tune`: the composite that explains a model most faithfully, found on training samples."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..composites.composite import Composite, get_composite
from ..errors import AttributionError, NonFiniteError, check_choice, first_line
from ..explain.attribution import attribute
from ..explain.targets import weights_of
from ..graph.calls import check_module
from .faithfulness import perturbation_curves

__all__ = ["Tuned", "tune"]

Metric = Callable[[nn.Module, Any, Any, Any], Any]
CANDIDATES = ("deeplift", "attnlrp", "cp-lrp", "lrp-0", "gamma", "epsilon-plus", "epsilon-alpha2-beta1")
PARTS = ((0, 1), (0, -1), (-1, None))  # the first layer, all but the last, the last


@dataclass
class Tuned:
    """What `tune` found.

    Attributes:
        composite: the best; score: its metric, mean over the data. scores: of all that were tried, best first, by name.
        failed: composites that the model cannot be explained with, and why.
    """

    composite: Composite
    score: float
    scores: dict[str, float]
    failed: dict[str, str]

    def table(self) -> str:
        """Lines of text, the best first."""
        lines = [f"{score:12.5g}  {name}" for name, score in self.scores.items()]
        return "\n".join(lines + [f"{'-':>12s}  {name}: {why}" for name, why in self.failed.items()])


def tune(
    model: nn.Module,
    data: Iterable[tuple[Any, Any]],
    metric: str | Metric = "abpc",
    candidates: Sequence[str | Composite] = CANDIDATES,
    *,
    baseline: Any = None,
    by_depth: bool = True,
    **how: Any,
) -> Tuned:
    """Search for the composite whose explanations score best; take training samples, and judge on others.

    All candidates are tried. Then the best one that looks at a single run is changed part by part (the first layer, all but the
    last, the last) to the rules of the others, and a change that scores better stays.

    Args:
        model: in the mode it shall run in (`model.eval()`).
        data: batches (inputs, target) as for `attribute`.
        metric: `metric(model, inputs, target, relevance)`, a number or one for each sample, more is better; or "abpc", the area
            between perturbation curves of the target's value for one float input, whose entries are replaced by the baseline.
        candidates: composites.
        baseline: as for `attribute`; "abpc" takes one number.
        by_depth: whether to go on part by part.
        how: further arguments of `attribute`.

    Raises:
        AttributionError: no data, no candidate that works, or inputs that "abpc" cannot replace entries of.
    """
    check_module(model, "tune", AttributionError)
    batches = list(data) if isinstance(data, Iterable) and not isinstance(data, Tensor | Mapping | str) else []
    pairs = all(isinstance(batch, list | tuple) and len(batch) == 2 for batch in batches)
    if not batches or not pairs or isinstance(candidates, str) or not candidates:
        raise AttributionError(
            "tune needs a list of batches (inputs, target) and a list of candidates, at least one of each"
        )
    if isinstance(metric, str):
        check_choice("metric", metric, ("abpc",), AttributionError)
        if baseline is not None and not isinstance(baseline, int | float):
            raise AttributionError(
                'metric="abpc" replaces entries by one number; give baseline= a number, or a function as metric'
            )
    measure = _abpc(0.0 if baseline is None else baseline) if isinstance(metric, str) else metric
    found: dict[str, tuple[float, Composite]] = {}
    failed: dict[str, str] = {}

    def score(composite: Composite) -> float | None:
        total, count = 0.0, 0
        try:
            for inputs, target in batches:
                relevance = attribute(model, inputs, target, composite, baseline=baseline, **how)
                values = torch.as_tensor(measure(model, inputs, target, relevance), dtype=torch.float64)
                if not bool(values.isfinite().all()):
                    raise NonFiniteError("the metric is NaN or infinite")
                total, count = total + float(values.sum()), count + values.numel()
        except Exception as error:  # of a composite that does not suit this model; the report says so
            failed[composite.name] = f"{type(error).__name__}: {first_line(error)}"
            return None
        found[composite.name] = total / max(count, 1), composite
        return total / max(count, 1)

    rules = [get_composite(candidate) for candidate in candidates]
    for composite in rules:
        score(composite)
    single = [(value, composite) for value, composite in found.values() if not composite.compares]
    if by_depth and single:
        best, chosen = max(single, key=lambda pair: pair[0])
        for start, stop in PARTS:
            for other in rules:
                if other.compares or other.name == chosen.name or other.name in failed:
                    continue
                name = f"{chosen.name}, {other.name} in layers {start} to {'the last' if stop is None else stop}"
                changed = replace(chosen.at_depth(start, stop, other), name=name)
                value = score(changed)
                if value is not None and value > best:
                    best, chosen = value, changed
    if not found:
        reasons = {why: [n for n in failed if failed[n] == why] for why in failed.values()}
        told = "; ".join(f"{', '.join(names)}: {why}" for why, names in reasons.items())
        raise AttributionError(f"no candidate explains this model: {told}")
    ordered = sorted(found.values(), key=lambda pair: -pair[0])
    return Tuned(copy.copy(ordered[0][1]), ordered[0][0], {c.name: s for s, c in ordered}, failed)


def _abpc(black: float) -> Metric:
    """The area between perturbation curves of what is explained."""

    def measure(model: nn.Module, inputs: Any, target: Any, relevance: Any) -> Tensor:
        if not isinstance(inputs, Tensor) or not inputs.is_floating_point():
            raise AttributionError(
                'metric="abpc" is for one float tensor; give a function (model, inputs, target, relevance)'
            )
        with torch.no_grad():
            first = model(inputs)
            weights = None if callable(target) and not isinstance(target, Tensor) else weights_of(target, first)

            def value(x: Tensor) -> Tensor:
                out = model(x)
                return target(out).reshape(len(x)) if weights is None else (out * weights).flatten(1).sum(1)

            count = inputs[0].numel() // (inputs.shape[1] if inputs.dim() == 4 else 1)
            return perturbation_curves(value, inputs, relevance, steps=min(16, count), replace=black).abpc

    return measure
