"""One model of the sweep: traced, covered, one step taken, against autograd."""

from __future__ import annotations

import copy
import math
import time
import warnings
import zlib
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

import lfpgraph
from lfpgraph.composites.composite import get_composite
from lfpgraph.engine.plan import make_plan
from lfpgraph.engine.propagate import run_backward, run_forward
from lfpgraph.errors import one_line
from lfpgraph.graph.calls import flatten_output, input_tensors, state_tensors
from lfpgraph.graph.graph import OpGraph, is_float
from lfpgraph.reports.classes import arrivals, classify_nodes
from lfpgraph.tracing.flat import FlatModel
from lfpgraph.tracing.tracer import trace

__all__ = ["default_builder", "is_wrapped_too", "measure"]

Signals = list[tuple[int, Tensor]]


def is_wrapped_too(model_type: str) -> bool:
    """Whether the type is of the tenth that is wrapped as well (always the same tenth)."""
    return zlib.crc32(model_type.encode()) % 10 == 0


def default_builder(model_type: str) -> tuple[nn.Module, dict[str, Any]]:
    """A small random instance of a model type of transformers with inputs, from the library's own means."""
    from lfpgraph.models_zoo.small_configs import shrink

    from lfpgraph.cli.models import builders_of, transformers_library
    from lfpgraph.inputs.examples import example_inputs

    transformers = transformers_library()
    config = shrink(transformers.CONFIG_MAPPING[model_type](), {}, {})
    error: Exception | None = None
    for build in builders_of(config, model_type):
        try:
            torch.manual_seed(0)
            model = build(config)
            args, kwargs = example_inputs(model)
            return model, kwargs
        except Exception as caught:
            error = error or caught
    raise error if error is not None else LookupError(f"{model_type} has no model")


def measure(model_type: str, builder: Any) -> dict[str, Any]:
    """The row of one model type; `error` holds the stage and the message where something fails."""
    row: dict[str, Any] = {"type": model_type}
    stage = "build"
    start = time.perf_counter()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model, inputs = builder(model_type)[:2]
            model.eval()
            with torch.no_grad():
                model(**inputs)
            stage, start = "trace", time.perf_counter()
            graph = trace(model, (), inputs, dynamic=False, fallback="retrace")
            row |= {"tracer": graph.tracer, "trace_s": round(time.perf_counter() - start, 2)}
            stage, start = "step", time.perf_counter()
            row |= _coverage(graph)
            row |= _step(graph, model, inputs)
            row["step_s"] = round(time.perf_counter() - start, 2)
            if is_wrapped_too(model_type):
                stage, start = "wrap", time.perf_counter()
                row |= _wrapped(model, inputs)
                row["wrap_s"] = round(time.perf_counter() - start, 2)
    except Exception as error:
        row["error"] = f"{stage}: {type(error).__name__}: {one_line(error, 300)}"
    return row


def _wanted(graph: OpGraph) -> set[fx.Node]:
    pairs = zip(graph.placeholder_nodes, graph.placeholders)
    return {n for n, p in pairs if p.kind in ("parameter", "input") and is_float(n.meta.get("val"))}


def _coverage(graph: OpGraph) -> dict[str, Any]:
    plan = make_plan(graph, get_composite("lfp-epsilon"), _wanted(graph), on_missing="report")
    classes = classify_nodes(plan, arrivals(plan))
    kinds = {
        name: sorted({str(n.target) for n, c in classes.items() if c.name == name}) for name in ("derived", "uncovered")
    }
    return {"nodes": dict(Counter(c.name for c in classes.values())), "kinds": kinds}


def _step(graph: OpGraph, model: nn.Module, inputs: dict[str, Any]) -> dict[str, Any]:
    """The largest difference between our gradients and autograd's, relative to the largest gradient; is LFP finite?"""
    tensors = input_tensors((), inputs)
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    signals, expected = _autograd(model, inputs, tensors, parameters)
    state, values = state_tensors(model), graph.values_of_call(model, (), inputs)
    found = _walk(graph, "gradient", values, signals, state)
    worst = _difference({name: found.get(id(p)) for name, p in parameters.items()}, expected, parameters)
    feedback = _walk(graph, "lfp-epsilon", values, signals, state)
    finite = all(bool(torch.isfinite(s).all()) for s in feedback.values())
    given = {"parameters": len(parameters), "with_gradient": len(expected), "with_feedback": len(feedback)}
    return {"gradient_error": worst, "finite": finite, **given}


def _difference(
    found: Mapping[str, Tensor | None], expected: Mapping[str, Tensor], parameters: Mapping[str, Tensor]
) -> float:
    """The largest difference of a parameter's gradient, relative to the largest gradient; a missing one is zero."""
    scale = max((float(g.abs().max()) for g in expected.values() if g.numel()), default=0.0) or 1.0
    worst = 0.0
    for name, parameter in parameters.items():
        ours, theirs = found.get(name), expected.get(name)
        if parameter.numel() and (ours is not None or theirs is not None):
            zero = torch.zeros_like(parameter)
            difference = float(((zero if ours is None else ours) - (zero if theirs is None else theirs)).abs().max())
            worst = max(worst, difference / scale) if math.isfinite(difference) else math.inf
    return worst


def _wrapped(model: nn.Module, inputs: dict[str, Any]) -> dict[str, Any]:
    """The same difference for the wrapped model: open sizes where they go, the program's two graphs, `.grad`."""
    tensors = input_tensors((), inputs)
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    signals, expected = _autograd(model, inputs, tensors, parameters)
    if not signals:
        return {"wrap_error": 0.0}
    twin = lfpgraph.wrap(copy.deepcopy(model), "gradient", engine="static")
    twin.zero_grad()
    torch.manual_seed(0)
    outputs = flatten_output(twin(**inputs))[0]
    torch.autograd.backward([outputs[i] for i, _ in signals], [s for _, s in signals])
    found = {name: p.grad for name, p in twin.named_parameters()}
    return {"wrap_error": _difference(found, expected, parameters)}


def _autograd(
    model: nn.Module, inputs: dict[str, Any], tensors: list[Tensor], parameters: dict[str, Any]
) -> tuple[Signals, dict[str, Tensor]]:
    """Random signals at the outputs (all finite floats that have a gradient), and the gradients that follow."""
    torch.manual_seed(0)
    outputs = FlatModel(model, (), inputs)(*tensors)
    generator = torch.Generator().manual_seed(1)
    signals: Signals = []
    for i, out in enumerate(outputs):
        if is_float(out) and out.requires_grad and bool(torch.isfinite(out).all()):
            signals.append((i, torch.randn(out.shape, generator=generator).to(out.dtype)))
    if not signals:
        return [], {}
    outs = [outputs[i] for i, _ in signals]
    found = torch.autograd.grad(outs, list(parameters.values()), [s for _, s in signals], allow_unused=True)
    return signals, {name: g for name, g in zip(parameters, found) if g is not None}


def _walk(
    graph: OpGraph, composite: str, values: list[Any], signals: Signals, state: dict[str, Tensor]
) -> dict[int, Tensor]:
    """Signals of the parameters, by the parameter's id, tied ones summed."""
    plan = make_plan(graph, get_composite(composite), _wanted(graph), on_missing="report")
    torch.manual_seed(0)
    at: dict[fx.Node, Tensor | None] = {}
    with torch.no_grad():
        _, calls, env = run_forward(plan, values)
        for i, s in signals:
            node = graph.user_output_nodes[i]
            if isinstance(node, fx.Node):
                before = at.get(node)
                at[node] = s if before is None else before + s
        found = run_backward(plan, calls, env, at)
    result: dict[int, Tensor] = {}
    for node, placeholder in zip(graph.placeholder_nodes, graph.placeholders):
        s = found.get(node)
        if placeholder.kind == "parameter" and s is not None:
            key = id(state[placeholder.target])
            result[key] = s if key not in result else result[key] + s
    return result
