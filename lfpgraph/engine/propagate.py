"""The walk: run the units forward, then hand signals back from the outputs. Everything else serves this file.

The same code runs on real tensors (step through it with a debugger) and under make_fx (`program` traces it once).

Note [Two forms of a signal]: a signal is the reward per unit of activation, `s = r / a`, which does not exist where the
activation a is zero. So the rule of an activation function divides the reward by its stabilized input, `r / (x + eps *
sign(x))`. That is already what the epsilon rule of the layer before would make of the reward, so such a signal is called
*stabilized* and takes no second epsilon factor. Views pass the form on. Where signals of both forms meet at a node, the plain
one is multiplied by `x / (x + eps * sign(x))`, which makes it stabilized.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from ..errors import NonFiniteError, RuleError
from .call import Call, as_signals
from .plan import Plan
from .signals import Sum, wide
from .units import Unit

__all__ = ["fit", "hand_back", "run_backward", "run_forward"]


def run_forward(plan: Plan, inputs: Sequence[Any]) -> tuple[list[Any], list[Call], dict[fx.Node, Any]]:
    """Run the graph on the values of its placeholders.

    Returns:
        The graph's outputs (updated buffers first), and the calls and the value of each node, for `run_backward`.
    """
    values: dict[fx.Node, Any] = dict(zip(plan.graph.placeholder_nodes, inputs))
    for node in plan.graph.graph.nodes:
        if node.op == "get_attr":
            values[node] = getattr(plan.graph.module, node.target)
    calls = []
    for unit in plan.units:
        call = Call(unit, values)
        values[unit.node] = call.output
        calls.append(call)
    outputs = [values[out] if isinstance(out, fx.Node) else out for out in plan.graph.output_nodes]
    return outputs, calls, values


def run_backward(
    plan: Plan,
    calls: Sequence[Call],
    values: Mapping[fx.Node, Any],
    signals: Mapping[fx.Node, Tensor | None],
    check: bool = False,
    observe: Any = None,
    stabilized: float | None = None,
    record: dict[fx.Node, Any] | None = None,
    direction: int = 1,
    read: Callable[[Sum, Any], Any] = Sum.reward,
) -> dict[fx.Node, Tensor | None]:
    """Hand signals back from graph nodes to the wanted placeholders.

    Args:
        plan: what `run_forward` has run; `calls` and `values` are what it returned.
        signals: the signal at each output node (same shape as the output).
        check: raise NonFiniteError at the first operation that hands on NaN or infinity.
        observe: called as `observe(unit, call, s, answers)` at every unit that a signal arrives at, for reports.
        stabilized: the epsilon of `signals`, where they are in stabilized form (Note [Two forms of a signal]).
        record: its keys are nodes; what `read` makes of what arrives at each and of the node's value is put in as its value.
        direction: 1 where the signals come from rewards, -1 where they are gradients of a loss.
        read: for `record`; the reward by default.

    Returns:
        The signal of every wanted placeholder, None where none arrived.
    """
    pending: dict[fx.Node, Sum] = {}
    record = {} if record is None else record
    for node, s in signals.items():
        if s is not None:
            pending.setdefault(node, Sum()).add(s, stabilized)
    given = [s for s in signals.values() if s is not None]
    for call in reversed(calls):
        unit = call.unit
        call.given, call.direction = given, direction
        arrived = pending.pop(unit.node, None)
        if arrived is None:
            continue
        if unit.node in record:
            record[unit.node] = read(arrived, call.output)
        if unit.node.target is operator.getitem:
            source, index = unit.node.args
            pending.setdefault(source, Sum()).add_item(index, arrived)  # type: ignore[arg-type]
            continue
        if unit.rule is None:
            continue
        if observe is not None:
            call.arrived = arrived.reward(wide(call.output))
        s, answers, form = hand_back(plan, call, arrived, values)
        for i, (node, answer) in enumerate(zip(unit.inputs, answers)):
            if answer is not None and unit.wanted[i]:
                pending.setdefault(node, Sum()).add(fit(plan, call, i, answer), form, call.inputs[i])
                if check and not bool(torch.isfinite(answer).all()):
                    raise NonFiniteError(f"{plan.graph.describe(unit.node)} hands on a signal that is NaN or infinite")
        if observe is not None:
            observe(unit, call, s, answers)
    wanted = [node for node in plan.graph.placeholder_nodes if node in plan.wanted]
    for node in wanted:
        if node in pending and node in record:
            record[node] = read(pending[node], values[node])
    return {node: pending[node].total() if node in pending else None for node in wanted}


def hand_back(
    plan: Plan, call: Call, arrived: Sum, values: Mapping[fx.Node, Any]
) -> tuple[Any, list[Tensor | None], float | None]:
    """Ask a unit's rule for the signals of its inputs.

    Returns:
        The signal that the rule was handed, its answers, and their epsilon if they are in stabilized form.
    """
    unit = call.unit
    s, form = arrived.settle(_measure(unit, call, values), unit)
    call.form = form
    answers = as_signals(_ask(call, s), unit, plan.graph.describe)
    if call.stabilized is not False:
        form = unit.option_epsilon if call.stabilized is True else call.stabilized
    elif not (unit.family.passes_form or unit.ends_layer):
        form = None
    call.answered = form
    return s, answers, form


def _measure(unit: Unit, call: Call, values: Mapping[fx.Node, Any]) -> Any:
    """The output as the epsilon factor is to see it.

    That is the relu behind it, where the plan says so; and infinity, which lets the whole signal pass, where the output is zero
    only because a weight is wholly zero.
    """
    alone = isinstance(call.output, Tensor)
    output = call.output if alone else call.output[0]  # the others are statistics, which carry no signal
    if unit.rectified is not None:
        output = values[unit.rectified]
    if unit.option_epsilon:
        for weight in unit.zeroed_by:
            output = torch.where(values[weight].any(), output, torch.inf)
    return output if alone else [output, *call.output[1:]]


def _ask(call: Call, s: Any) -> Sequence[Tensor | None]:
    assert call.unit.rule is not None
    call.stabilized = False
    return call.unit.rule.handler(call, s, *call.args, **call.kwargs)


def fit(plan: Plan, call: Call, i: int, answer: Tensor) -> Tensor:
    """Sum a broadcast answer to its argument's shape and cast it to its dtype."""
    x = call.inputs[i]
    if answer.shape != x.shape:
        try:
            answer = answer.sum_to_size(x.shape)
        except RuntimeError:
            raise RuleError(
                f"the rule of {plan.graph.describe(call.unit.node)} answered a signal of shape {list(answer.shape)} for "
                f"tensor argument {i} of shape {list(x.shape)}"
            ) from None
    return answer.to(x.dtype) if answer.dtype != x.dtype else answer
