"""One explanation walked step by step, for reports that look at every operation on the way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..composites.composite import Composite, get_composite
from ..engine.options import Options
from ..engine.plan import make_plan
from ..engine.propagate import run_backward, run_forward
from ..engine.signals import reward_of, wide
from ..errors import AttributionError
from ..explain.batch_norms import merge_norms
from ..explain.readings import readings_of
from ..explain.targets import target_signals
from ..graph.calls import arguments_of, check_module
from ..graph.graph import OpGraph
from ..tracing.tracer import trace

__all__ = ["Walked", "reward_at", "walk"]


@dataclass
class Walked:
    """What a walk began with and where it ended.

    Attributes:
        graph: what was walked, batch norms merged where the composite says so.
        starts: the relevance handed to each output node.
        stopped: the relevance handed to outputs from which none can go on to an input.
        ends: the relevance that has arrived at each input (for token ids: at their embedding), None where none has.
    """

    graph: OpGraph
    starts: dict[fx.Node, Tensor]
    stopped: list[Tensor]
    ends: dict[fx.Node, Tensor | None]


def walk(
    model: nn.Module,
    inputs: Any,
    target: Any,
    composite: str | Composite,
    observe: Callable[..., None],
    *,
    on_missing: str,
    fallback: str,
) -> Walked:
    """The walk of `attribute`, not traced but run; `observe(unit, call, s, answers)` is called at every unit.

    The other arguments and the exceptions are those of `attribute`.
    """
    options = Options(on_missing, fallback, error=AttributionError)
    check_module(model, "an explanation", AttributionError)
    args, kwargs = arguments_of(inputs, AttributionError)
    rules = get_composite(composite)
    with torch.no_grad():
        graph = trace(model, args, kwargs, dynamic=False, fallback=options.fallback)
        if rules.merge_norms:
            merge_norms(graph)
        wanted = {reading.node for reading in readings_of(graph)}
        plan = make_plan(graph, rules, wanted, options.on_missing)
        outputs, calls, env = run_forward(plan, graph.values_of_call(model, args, kwargs))
        signals = target_signals(target, graph.user_outputs(outputs), graph.rebuild)
        starts: dict[fx.Node, Tensor] = {}
        for node, s in zip(graph.user_output_nodes, signals):
            if s is not None and isinstance(node, fx.Node):  # a node may be an output twice
                starts[node] = starts[node] + s if node in starts else s
        stopped = [reward_at(starts.pop(node), env[node], None) for node in list(starts) if node not in plan.wanted]
        ends: dict[fx.Node, Any] = dict.fromkeys(wanted)
        run_backward(plan, calls, env, starts, record=ends, observe=observe)
    return Walked(graph, {n: reward_at(s, env[n], None) for n, s in starts.items()}, stopped, ends)


def reward_at(s: Tensor, value: Tensor, form: float | None) -> Tensor:
    """The reward in float64; zero where the signal is zero, also where the value is infinite, as in masks."""
    return torch.where(s == 0, 0.0, reward_of(wide(s), wide(value), form))
