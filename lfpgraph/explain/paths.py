"""Relevance against a reference point: signals times the difference from a baseline, at the inputs or averaged on the path.

Integrated gradients (Sundararajan et al. 2017) are the case where the signals are gradients.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ..composites.composite import Composite
from ..engine.options import Options
from ..errors import AttributionError, NonFiniteError
from ..graph.calls import flatten_input
from .explainer import explainer_of
from .found import Found
from .lookups import Point
from .readings import of_tokens
from .targets import Targets, as_they_stand

__all__ = ["along_path"]

Call = tuple[Sequence[Any], Mapping[str, Any]]


def along_path(
    model: nn.Module,
    call: Call,
    target: Any,
    composite: str | Composite,
    baseline: float | Call,
    steps: int | None,
    options: Options,
    condition: Mapping[str, Any] | None = None,
    differentiable: bool = False,
) -> Found:
    """Relevance `(x - x0) * mean_k s(x0 + a_k (x - x0))` for the signals s of a composite, `a_k = (k + 1/2) / steps`.

    For token ids, x is their embedding, and the relevance is summed over its features.

    Args:
        call: positional and keyword arguments of the model, x among them.
        baseline: x0, one number, or a call whose float tensors and token ids broadcast to those of `call`. Where it has no
            token ids, the embedding starts from zero.
        steps: how many points of the path, k = 0 to steps - 1; None for one point, the inputs themselves.
        options: how the model is traced. condition, differentiable: as for `lfpgraph.attribute`.

    Raises:
        AttributionError: fewer than one step, or a baseline that does not fit. Those of `Explainer.explain`.
        NonFiniteError: a baseline that is NaN or infinite, or at which the model is so, where the composite compares two runs.
    """
    if steps is not None and (isinstance(steps, bool) or not isinstance(steps, int) or steps < 1):
        raise AttributionError(f"steps must be a whole number and at least 1, not {steps!r}")
    leaves, spec = flatten_input(*call)
    tensors = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
    floats = {n: i for n, i in enumerate(tensors) if leaves[i].is_floating_point()}  # by position among the tensors
    starts, references = _starts(baseline, call, leaves, list(floats.values()))
    ways = [(leaves[i] if differentiable else leaves[i].detach()) - start for i, start in zip(floats.values(), starts)]
    several = isinstance(target, Targets)
    explainer = explainer_of(
        model,
        composite,
        options,
        signals=True,
        condition=condition,
        differentiable=differentiable,
        several=several,
    )
    if explainer.composite.compares and steps is not None:
        raise AttributionError(
            f"composite {explainer.composite.name!r} compares the input with the baseline in one pass; leave steps out"
        )
    found = explainer.explain(model, *call, target, Point(1.0, references, starts), condition)
    signals = found.inputs
    if explainer.composite.compares and not _finite(signals.values()) and _finite(leaves[i] for i in floats.values()):
        raise NonFiniteError(
            f"composite {explainer.composite.name!r} gives NaN or infinite relevance, though what is explained is finite: does "
            "the model divide by what is zero at the baseline (a mask, say)? Give a baseline= at which it runs; without one "
            "it is zero for every float input"
        )
    if steps is not None:
        target = as_they_stand(target, found.explained)
        signals = {n: torch.zeros_like(s) for n, s in signals.items()}
        for step in range(steps):
            portion, point = (step + 0.5) / steps, list(leaves)
            for i, start, way in zip(floats.values(), starts, ways):
                point[i] = start + portion * way
            args, kwargs = pytree.tree_unflatten(point, spec)
            here = Point(portion, references)
            for n, s in explainer.explain(model, args, kwargs, target, here, condition).inputs.items():
                signals[n] = signals[n] + s / steps
    found.inputs = {n: signals[n] * way for n, way in zip(floats, ways) if n in signals}
    for n, (lookup, way) in found.ways.items():
        if n in signals:  # token ids may be looked up in several embeddings
            each = [of_tokens(lookup.slot, s * way) for s in (signals[n] if several else [signals[n]])]
            found.inputs[lookup.ids] = found.inputs.get(lookup.ids, 0) + (torch.stack(each) if several else each[0])
    return found


def _starts(
    baseline: float | Call, call: Call, leaves: Sequence[Any], floats: Sequence[int]
) -> tuple[list[Tensor], dict[int, Tensor]]:
    """The baseline as tensors of the float inputs' shapes, and its token ids by position among the call's tensors."""
    inputs = [leaves[i].detach() for i in floats]
    if any(x.layout != torch.strided for x in inputs):
        raise AttributionError(
            "a sparse float input has no difference from a baseline; give it dense (.to_dense()), or choose a composite that "
            'looks at one run, such as "attnlrp", without baseline and steps'
        )
    if isinstance(baseline, int | float):
        _refuse_nan(all(abs(baseline) <= torch.finfo(x.dtype).max for x in inputs))
        return [torch.full_like(x, baseline) for x in inputs], {}
    args, kwargs = baseline
    kwargs = {name: kwargs[name] for name in call[1] if name in kwargs}  # in the order of the inputs
    given = [b for b in flatten_input(args, kwargs)[0] if isinstance(b, Tensor)]
    try:
        starts = [
            b.detach().to(x).expand_as(x)
            for b, x in zip((b for b in given if b.is_floating_point()), inputs, strict=True)
        ]
        references = _references(args, kwargs, call)
    except (RuntimeError, ValueError):
        raise AttributionError(
            "baseline must be one number, or tensors that broadcast to the inputs, in their structure; the float inputs are "
            f"{[list(x.shape) for x in inputs]}, the baseline's tensors {[list(b.shape) for b in given]}"
        ) from None
    _refuse_nan(_finite(starts))
    return starts, references


def _finite(tensors: Iterable[Tensor]) -> bool:
    return all(bool(t.isfinite().all()) for t in tensors)


def _refuse_nan(finite: bool) -> None:
    if not finite:
        raise NonFiniteError(
            "the baseline holds NaN or infinity, or a number too large for the inputs, so no difference from it is a number"
        )


def _references(args: Sequence[Any], kwargs: Mapping[str, Any], call: Call) -> dict[int, Tensor]:
    """The integer tensors of a baseline, in their inputs' shapes, by position among the call's tensors."""
    found: dict[int, Tensor] = {}
    position = 0
    wholes = [(given, args[i] if i < len(args) else None) for i, given in enumerate(call[0])]
    for given, start in [*wholes, *((given, kwargs.get(name)) for name, given in call[1].items())]:
        tensors, starts = (
            [t for t in flatten_input((value,), {})[0] if isinstance(t, Tensor)] for value in (given, start)
        )
        if starts:
            for i, (tensor, begin) in enumerate(zip(tensors, starts, strict=True)):
                if not begin.is_floating_point():
                    found[position + i] = begin.to(tensor).expand_as(tensor)
        position += len(tensors)
    return found
