"""The fallback tracer: records one run on real values. The graph is right for that call only."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, functionalize
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

from ..errors import TraceError
from .capture import _quiet, tracing
from .flat import FlatModel
from .graph import OpGraph, Placeholder

__all__ = ["capture_values"]

log = logging.getLogger("lfpgraph")


def capture_values(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> OpGraph:
    """Trace a model whose forward branches on data, for this call's values alone.

    Raises:
        TraceError: the model does not run, or what it does cannot be recorded.
    """
    flat = FlatModel(model, args, kwargs)
    tensors = [t.detach() for t in pytree.tree_leaves((tuple(args), dict(kwargs))) if isinstance(t, Tensor)]
    parameters = dict(model.named_parameters())
    buffers = dict(model.named_buffers())
    names = [*parameters, *buffers]
    state = [t.detach() for t in (*parameters.values(), *buffers.values())]

    def run(*values: Tensor) -> list[Tensor]:
        bound = {f"model.{name}": value for name, value in zip(names, values)}
        before = {name: bound[f"model.{name}"] for name in buffers}
        outputs = functional_call(flat, bound, tuple(values[len(names) :]))
        return [before[name] for name in buffers] + outputs

    rng = torch.get_rng_state()
    backup = [value.clone() for value in buffers.values()]
    try:
        with tracing(), _quiet():
            traced = make_fx(
                functionalize(run, remove="mutations_and_views"),
                tracing_mode="real",
                _error_on_data_dependent_ops=False,
            )(*state, *tensors)
    except Exception as error:
        raise TraceError(f"{type(model).__name__} could not be traced on real values: {error}") from error
    finally:
        torch.set_rng_state(rng)
        for value, old in zip(buffers.values(), backup):
            value.data.copy_(old)
    log.warning("%s traced on real values: one call's graph, traced anew at every step", type(model).__name__)
    placeholders = [Placeholder("parameter", name) for name in parameters]
    placeholders += [Placeholder("buffer", name) for name in buffers]
    placeholders += [Placeholder("input", i) for i in range(len(tensors))]
    output = next(node for node in reversed(traced.graph.nodes) if node.op == "output")
    output.args = (tuple(output.args[0]),)
    traced.recompile()
    return OpGraph(
        module=traced,
        placeholders=placeholders,
        mutations=list(buffers),
        out_spec=flat.record.out_spec,
        out_leaves=list(flat.record.out_leaves),
        constants={},
        dynamic=False,
        tracer="values",
    )
