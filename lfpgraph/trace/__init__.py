"""trace: model and example inputs to an `OpGraph`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from .capture import capture
from .classify import classify
from .graph import NodeInfo, OpGraph, Placeholder
from .values import capture_values

__all__ = ["NodeInfo", "OpGraph", "Placeholder", "trace"]


def trace(
    model: nn.Module,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    dynamic: bool = True,
    fallback: str = "error",
) -> OpGraph:
    """Trace an unmodified model into an operation graph.

    Args:
        model: any module, on any device, also on fake or meta tensors.
        args: positional example inputs; a single tensor is allowed too.
        kwargs: keyword example inputs.
        dynamic: leave batch and sequence sizes open, so that the graph serves other sizes.
        fallback: "error", or "retrace" to trace real values where torch.export cannot (right for this call only).

    Raises:
        TraceError: the model cannot be traced (DataDependentError: because it branches on data).
        InputError: no tensor goes in, or no float tensor comes out.
    """
    from torch import Tensor

    from ..errors import TraceError

    if isinstance(args, Tensor):
        args = (args,)
    try:
        graph = capture(model, args, kwargs or {}, dynamic)
    except TraceError:
        if fallback != "retrace":
            raise
        graph = capture_values(model, args, kwargs or {})
    return classify(graph)
