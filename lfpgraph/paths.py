"""Relevance against a reference point: signals times the way from a baseline, at the inputs or averaged along the path.

Integrated gradients (Sundararajan et al. 2017) are the case where the signals are gradients.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from .composites import Composite
from .errors import AttributionError
from .explainer import Found, explainer_of
from .trace.flat import flatten_input

__all__ = ["along_path"]

Call = tuple[Sequence[Any], Mapping[str, Any]]


def along_path(
    model: nn.Module,
    call: Call,
    target: Any,
    composite: str | Composite,
    baseline: float | Call,
    steps: int | None,
    options: Mapping[str, Any],
) -> Found:
    """Relevance `(x - x0) * mean_k s(x0 + a_k (x - x0))` for the signals s of a composite, `a_k = (k + 1/2) / steps`.

    Args:
        call: positional and keyword arguments of the model, x among them.
        baseline: x0, one number or a call whose float tensors broadcast to those of `call`.
        steps: how many points of the path, k = 0 to steps - 1; None for one point, the inputs themselves.
        options: of `Explainer`.

    Raises:
        AttributionError: no float input, fewer than one step, or a baseline that does not fit.
    """
    if steps is not None and (isinstance(steps, bool) or not isinstance(steps, int) or steps < 1):
        raise AttributionError(f"steps must be a whole number and at least 1, not {steps!r}")
    leaves, spec = flatten_input(*call)
    tensors = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
    floats = {n: i for n, i in enumerate(tensors) if leaves[i].is_floating_point()}  # by position among the tensors
    if not floats:
        raise AttributionError("a path needs float inputs; token ids cannot be half there (pass inputs_embeds)")
    starts = _starts(baseline, call, [leaves[i].detach() for i in floats.values()])
    ways = [leaves[i].detach() - start for i, start in zip(floats.values(), starts)]
    explainer = explainer_of(model, composite, (), False, {**options, "signals": True})
    found = explainer.explain(*call, target)
    signals = found.inputs
    if steps is not None:
        if isinstance(target, str) and target == "predicted":
            target = next(o for o in found.outputs if isinstance(o, Tensor) and o.dim() > 0).argmax(-1)
        signals = {n: torch.zeros_like(s) for n, s in signals.items()}
        for step in range(steps):
            point = list(leaves)
            for i, start, way in zip(floats.values(), starts, ways):
                point[i] = start + (step + 0.5) / steps * way
            args, kwargs = pytree.tree_unflatten(point, spec)
            for n, s in explainer.explain(args, kwargs, target).inputs.items():
                signals[n] += s / steps
    found.inputs = {n: signals[n] * way for n, way in zip(floats, ways) if n in signals}
    return found


def _starts(baseline: float | Call, call: Call, inputs: Sequence[Tensor]) -> list[Tensor]:
    """The baseline as tensors of the float inputs' shapes."""
    if isinstance(baseline, int | float):
        return [torch.full_like(x, baseline) for x in inputs]
    args, kwargs = baseline
    kwargs = {name: kwargs[name] for name in call[1] if name in kwargs}  # in the order of the inputs
    given = [b for b in flatten_input(args, kwargs)[0] if isinstance(b, Tensor) and b.is_floating_point()]
    try:
        return [b.detach().to(x).expand_as(x) for b, x in zip(given, inputs, strict=True)]
    except (RuntimeError, ValueError):
        raise AttributionError(
            "baseline must be one number, or float tensors that broadcast to the float inputs, in their structure; the "
            f"inputs are {[list(x.shape) for x in inputs]}, the baseline's {[list(b.shape) for b in given]}"
        ) from None
