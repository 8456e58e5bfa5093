"""`feedback`: the feedback of one reward as plain tensors. The walk is run step by step, without autograd or a program."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from ..composites.composite import Composite, get_composite
from ..composites.unmoved import log_idle
from ..errors import InputError, NonFiniteError, RewardError
from ..graph.calls import arguments_of
from ..graph.graph import is_float
from ..numerics import ZERO_REWARD, stabilize
from ..tracing.tracer import trace
from .options import Options
from .plan import make_plan
from .propagate import run_backward, run_forward

__all__ = ["feedback"]

log = logging.getLogger("lfpgraph")


def feedback(
    model: nn.Module,
    inputs: Any,
    reward: Any,
    composite: str | Composite = "lfp",
    *,
    on_missing: str = "derive",
    fallback: str = "error",
    check: bool = False,
) -> dict[str, Tensor]:
    """Feedback of every parameter and reward of every float input, without side effects.

    Args:
        model: any module, wrapped or not; its mode, buffers and gradients stay as they are.
        inputs: a tensor, a tuple of positional arguments, or a dict of keyword arguments.
        reward: a tensor of the shape of the model's first float output that is no scalar, or a function of that output
            that returns one.
        composite: the rules to use.
        on_missing: as for `wrap`. fallback: as for `lfpgraph.trace`.
        check: raise NonFiniteError at the first NaN or infinity, naming the operation.

    Returns:
        Parameter names to feedback (`abs(w) * s_w`, to be added), and input names (`input_0` or the keyword) to reward.

    Raises:
        RewardError: the reward does not fit. InputError: an unknown option, or as for `wrap`, like TraceError and NoRuleError.
    """
    options = Options(on_missing, fallback, check=check)
    args, kwargs = arguments_of(inputs, InputError)
    graph = trace(model, args, kwargs, fallback=options.fallback)
    written = sorted({p.target for p in graph.placeholders if p.kind == "parameter"} & set(graph.mutations))
    if written:
        log.warning(
            "forward writes to %s, whose feedback a trace does not have; wrap(model) gives it, live", ", ".join(written)
        )
    values = graph.values_of_call(model, args, kwargs)
    kinds = list(zip(graph.placeholder_nodes, graph.placeholders))
    wanted = {n for n, p in kinds if p.kind == "parameter" or (p.kind == "input" and is_float(n.meta.get("val")))}
    chosen = get_composite(composite)
    log_idle(chosen, model)
    plan = make_plan(graph, chosen, wanted, options.on_missing, values)
    node = graph.rewarded_node
    if node is None:
        raise RewardError("the model has no float output with at least one dimension to give the reward to.")
    with torch.no_grad():
        _, calls, env = run_forward(plan, values)
        given = _reward(reward, env[node], check)
        epsilon = chosen.default.epsilon or 1e-12
        signal = given / torch.where(env[node] == 0, ZERO_REWARD, stabilize(env[node], epsilon))
        rewards: dict[fx.Node, Any] = dict.fromkeys(n for n, p in kinds if p.kind == "input")
        found = run_backward(plan, calls, env, {node: signal}, check=check, stabilized=epsilon, record=rewards)
    answer: dict[str, Tensor] = {}
    names = _input_names(args, kwargs)
    for (placeholder_node, placeholder), value in zip(kinds, values):
        s = found.get(placeholder_node)
        if s is None:
            continue
        if placeholder.kind == "parameter":
            own = plan.feedback(placeholder_node, value, s)
            answer[placeholder.target] = answer[placeholder.target] + own if placeholder.target in answer else own
        else:
            answer[names[placeholder.target]] = rewards[placeholder_node]
    return answer


def _input_names(args: Any, kwargs: Any) -> list[str]:
    names = []
    for path, leaf in pytree.tree_flatten_with_path((args, kwargs))[0]:
        if isinstance(leaf, Tensor):
            place = path[1:]
            first = getattr(place[0], "key", getattr(place[0], "idx", 0))
            name = f"input_{first}" if isinstance(first, int) else str(first)
            names.append(name + "".join(str(part) for part in place[1:]))
    return names


def _reward(reward: Any, output: Tensor, check: bool) -> Tensor:
    given = reward(output) if callable(reward) and not isinstance(reward, Tensor) else reward
    given = torch.as_tensor(given, dtype=output.dtype, device=output.device).detach()
    if given.shape != output.shape:
        raise RewardError(
            f"reward of shape {list(given.shape)} does not fit the output of shape {list(output.shape)}; give one for each"
        )
    if check and not bool(torch.isfinite(given).all() and torch.isfinite(output).all()):
        raise NonFiniteError("the reward or the model's output holds NaN or infinity")
    return given
