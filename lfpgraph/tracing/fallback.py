"""The fallback tracer: records one run on real values. The graph is right for that call only."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call

from ..errors import TraceError, one_line
from ..graph.calls import input_tensors
from ..graph.graph import OpGraph, Placeholder
from .export import export_flat
from .flat import FlatModel
from .origins import note_lines, noting_places, restore_places
from .recorder import record

__all__ = ["capture_values"]

log = logging.getLogger("lfpgraph")


def capture_values(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> OpGraph:
    """Trace a model whose forward branches on data, for this call's values alone.

    The run is recorded operation by operation, numbers read from tensors and all; what comes out branches on nothing,
    and is exported like any other model.

    Raises:
        TraceError: the model does not run, or what it does cannot be recorded.
    """
    flat = FlatModel(model, args, kwargs)
    tensors = [t.detach() for t in input_tensors(args, kwargs)]
    parameters, buffers = dict(model.named_parameters()), dict(model.named_buffers())
    names = [*parameters, *buffers]
    state = [t.detach() for t in (*parameters.values(), *buffers.values())]

    def run(*values: Tensor) -> list[Tensor]:
        bound = {f"model.{name}": value for name, value in zip(names, values)}
        return functional_call(flat, bound, tuple(values[len(names) :]))

    placeholders = [Placeholder("parameter", name) for name in parameters]
    placeholders += [Placeholder("buffer", name) for name in buffers]
    placeholders += [Placeholder("input", i) for i in range(len(tensors))]
    errors: list[Exception] = []
    for whole in (True, False):  # composite operations whole, then taken apart
        try:
            with _plain_experts(model), noting_places(model):
                recorded = record(run, [*state, *tensors], whole, dict(enumerate(state)))
            out_spec, out_leaves = flat.record.out_spec, list(flat.record.out_leaves)
            note_lines(recorded)
            graph = export_flat(recorded, [*state, *tensors], None, flat.record, placeholders)
            restore_places(graph.module)
            graph.out_spec, graph.out_leaves, graph.tracer = out_spec, out_leaves, "values"
            log.warning("%s traced on real values: one call's graph, traced anew at every step", type(model).__name__)
            return graph
        except Exception as error:
            errors.append(error)
    message = f"{type(model).__name__} could not be traced on real values: {one_line(errors[0], 300)}"
    raise TraceError(message) from errors[0]


@contextlib.contextmanager
def _plain_experts(model: nn.Module) -> Iterator[None]:
    """Let the expert layers of transformers multiply by plain matrix products, which every tracer knows."""
    config, choose = getattr(model, "config", None), getattr(model, "set_experts_implementation", None)
    before = getattr(config, "_experts_implementation", None)
    if choose is None or before is None:
        yield
        return
    choose("batched_mm")
    try:
        yield
    finally:
        choose(before)
