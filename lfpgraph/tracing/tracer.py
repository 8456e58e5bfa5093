"""trace: model and example inputs to an `OpGraph`."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from ..errors import DataDependentError, InputError, TraceError, check_choice
from ..graph.calls import check_module, input_tensors
from ..graph.classes import classify
from ..graph.copies import copy_for_the_idle, copy_shared_comparisons
from ..graph.graph import NodeInfo, OpGraph, Placeholder
from ..graph.masks import simplify_masks
from ..graph.regions import let_entries_give_sizes
from ..graph.sizes import Sizes
from ..threads.turns import alone
from .export import capture
from .fallback import capture_values
from .verify import disagreement, draws_numbers, is_real, refusal

__all__ = ["FALLBACKS", "NodeInfo", "OpGraph", "Placeholder", "refuse_difference", "trace"]

log = logging.getLogger("lfpgraph")
FALLBACKS = ("error", "retrace")


def trace(
    model: nn.Module,
    args: Sequence[Any] | Mapping[str, Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    dynamic: bool = True,
    fallback: str = "error",
    compare: bool = True,
) -> OpGraph:
    """Trace an unmodified model into an operation graph.

    Args:
        model: any module, on any device, also on fake or meta tensors.
        args: positional example inputs; a single tensor, or a dict of keyword inputs, is allowed too.
        kwargs: keyword example inputs.
        dynamic: leave batch and sequence sizes open, so that the graph serves other sizes.
        compare: run the graph and the model once on the example, and compare.
        fallback: "error", or "retrace" to trace real values where torch.export cannot (right for this call only).

    Raises:
        TraceError: no module, the model cannot be traced (DataDependentError: because it branches on data), or the graph does not
            give its outputs (checked once, on the example, where tensors have values).
        InputError: no tensor goes in, no float tensor comes out, the model itself does not run on the example, or an
            unknown `fallback`.
    """
    check_choice("fallback", fallback, FALLBACKS, InputError)
    check_module(model, "trace", TraceError)
    if isinstance(args, Mapping):
        kwargs = {**args, **(kwargs or {})}
        args = ()
    elif isinstance(args, Tensor):
        args = (args,)
    with alone(model):
        return _traced(model, args, kwargs or {}, dynamic, fallback, compare)


def _traced(
    model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], dynamic: bool, fallback: str, compare: bool
) -> OpGraph:
    try:
        graph = capture(model, args, kwargs, dynamic)
        if not Sizes(graph).accepts(input_tensors(args, kwargs)):
            log.warning(
                "%s takes another way for a batch of one or of none, which is traced for itself", type(model).__name__
            )
            graph = capture(model, args, kwargs, dynamic, enlarge=False)
        simplify_masks(graph)
        if compare and is_real(model, args, kwargs):
            refuse_difference(graph, model, args, kwargs, disagreement(graph, model, args, kwargs))
    except InputError:
        raise
    except Exception as error:
        refused = None if isinstance(error, DataDependentError) else refusal(model, args, kwargs)
        if refused is not None:
            raise refused from refused.__cause__
        if not isinstance(error, TraceError) or fallback != "retrace" or not is_real(model, args, kwargs):
            raise
        log.info("%s", error)
        graph = capture_values(model, args, kwargs)
    copy_for_the_idle(graph)
    copy_shared_comparisons(graph)
    classify(graph)
    let_entries_give_sizes(graph)
    return graph


def refuse_difference(
    graph: OpGraph, model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], distance: float
) -> None:
    """Raise a TraceError where a graph's outputs are too far from the model's, unless that may be chance.

    Args:
        distance: as `verify.disagreement` gives it.
    """
    if distance <= 1:
        return
    name = type(model).__name__
    if draws_numbers(model, args, kwargs, graph.mutations):
        log.warning("%s and its graph give different outputs; they draw random numbers, so this may be chance", name)
        return
    raise TraceError(
        f"torch.export's graph of {name} gives other outputs than {name} itself ({distance:.3g} times what rounding "
        'explains): the model takes another way while it is traced. wrap(model, engine="live") runs the model itself; '
        'elsewhere, fallback="retrace" records what it does.'
    )
