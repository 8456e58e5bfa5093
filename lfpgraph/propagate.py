"""The walk: run the units forward, then hand signals back from the outputs. Everything else serves this file.

The same code runs on real tensors (step through it with a debugger) and under make_fx (`program` traces it once).

Note [Two forms of a signal]: a signal is the reward per unit of activation, `s = r / a`, which no activation of zero
has. An activation function reads a reward and divides by its input stabilized, `r / (x + eps * sign(x))`: that is
already what the epsilon rule of the layer before makes of it. So such a signal is *stabilized* and takes no second
epsilon factor; views pass the form on. At a fan-out where both forms meet, the other one is multiplied by
`x / (x + eps * sign(x))`.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from .errors import NonFiniteError, RuleError
from .plan import Plan
from .sums import Sum, reward_of, wide
from .trace.graph import is_float, module_path
from .units import Unit

__all__ = ["Call", "execute", "run_backward", "run_forward"]


class Call:
    """One unit's run: what its rule sees as `node`.

    Attributes:
        op, name, module_path: which operation this is, and where.
        inputs: its tensor arguments; `output`: what it returned.
        active, weightlike, wanted: for each tensor argument.
        epsilon: the ruleset's stabilizer.
        stabilized: a rule sets it when its answer is in stabilized form (Note [Two forms of a signal]): True, or the
            epsilon where that is not the ruleset's.
        form: the epsilon of the signal that has arrived, where that is in stabilized form; None where it is not.
        answered: the same of the rule's answers.
        arrived: the reward that has arrived, in float64, where somebody observes.
        given: the signals at the model's outputs, for rules that need them.
        direction: 1 where signals are rewards, -1 where they are gradients (in `.backward()`).
    """

    given: list[Tensor]
    direction: int

    def __init__(self, unit: Unit, values: Mapping[fx.Node, Any]) -> None:
        self.unit = unit
        self.op = unit.node.target
        self.name = unit.node.name
        self.active, self.weightlike, self.wanted = unit.active, unit.weightlike, unit.wanted
        self.epsilon = unit.option_epsilon
        self.stabilized: bool | float = False
        self.form: float | None = None
        self.answered: float | None = None
        self.arrived: Any = None
        self.inputs = [values[node] for node in unit.inputs]
        tape = unit.handler is not None and unit.needs_vjp
        self._leaves = [
            x.detach().requires_grad_() if tape and want and is_float(x) else x
            for x, want in zip(self.inputs, unit.wanted)
        ]
        with torch.enable_grad() if tape else torch.no_grad():
            self._tape = execute(unit, values, self._leaves)
        self.output = _detached(self._tape) if tape else self._tape
        self.args: tuple[Any, ...] = ()
        self.kwargs: dict[str, Any] = {}
        if not unit.is_region:
            self.args, self.kwargs = _arguments(unit.node, values)

    @property
    def module_path(self) -> str:
        return module_path(self.unit.node)

    def reward(self, s: Tensor) -> Tensor:
        """The reward of an output that holds the signal s."""
        return reward_of(s, self.output, self.form)

    def run(self, tensors: Sequence[Any]) -> Any:
        """The operation's result with other tensor arguments, in the order of `inputs`."""
        position = iter(range(len(self.inputs)))
        old = list(self.inputs)

        def replace(value: Any) -> Any:
            return tensors[next(position)] if any(value is x for x in old) else value

        args, kwargs = pytree.tree_map_only(Tensor, replace, (self.args, self.kwargs))
        return self.op(*args, **kwargs)  # type: ignore[operator]

    def vjp(self, s: Any, again: bool = False) -> list[Tensor | None]:
        """The true vector-Jacobian product: one signal for each wanted tensor argument, None for the others.

        Every call but the last says that there will be one `again`.
        """
        outputs = self._tape if isinstance(self._tape, list | tuple) else [self._tape]
        signals = s if isinstance(s, list | tuple) else [s]
        pairs = [(z, g) for z, g in zip(outputs, signals) if g is not None and is_float(z) and z.requires_grad]
        places = [i for i, leaf in enumerate(self._leaves) if is_float(leaf) and leaf.requires_grad]
        result: list[Tensor | None] = [None] * len(self._leaves)
        if pairs and places:
            zs, gs = zip(*pairs)
            leaves = [self._leaves[i] for i in places]
            for i, g in zip(places, torch.autograd.grad(zs, leaves, gs, retain_graph=again, allow_unused=True)):
                result[i] = g
        return result


def execute(unit: Unit, values: Mapping[fx.Node, Any], leaves: Sequence[Any]) -> Any:
    """Run the unit's nodes with its tensor arguments replaced by `leaves`."""
    if not unit.is_region:
        return _apply(unit.node, values, iter(leaves), set(unit.inputs))
    local = dict(zip(unit.inputs, leaves))
    for node in unit.nodes:
        lookup = lambda n: local[n] if n in local else values[n]  # noqa: E731
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lookup)
        local[node] = node.target(*args, **kwargs)  # type: ignore[operator]
        if node in unit.constants:
            local[node] = local[node].detach()
    return local[unit.node]


def _apply(node: fx.Node, values: Mapping[fx.Node, Any], leaves: Any, tensors: set[fx.Node]) -> Any:
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: next(leaves) if n in tensors else values[n])
    return node.target(*args, **kwargs)  # type: ignore[operator]


def _arguments(node: fx.Node, values: Mapping[fx.Node, Any]) -> tuple[Any, Any]:
    return fx.node.map_arg((node.args, node.kwargs), lambda n: values[n])


def _detached(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, list | tuple):
        return type(value)([_detached(item) for item in value])
    return value


def run_forward(plan: Plan, inputs: Sequence[Any]) -> tuple[list[Any], list[Call], dict[fx.Node, Any]]:
    """Execute the graph on the values of its placeholders.

    Returns the graph's outputs (updated buffers first), and the calls and values that `run_backward` needs.
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
) -> dict[fx.Node, Tensor | None]:
    """Hand signals back from graph nodes to the wanted placeholders.

    Args:
        plan, calls, values: from `run_forward`.
        signals: the signal at each output node (same shape as the output).
        check: raise NonFiniteError at the first operation that hands on NaN or infinity.
        stabilized: the epsilon of signals in stabilized form (Note [Two forms of a signal]), as `r / stabilize(o)` is.
        record: the reward that arrives at a node is put here, for the nodes that are its keys.
        direction: 1 where the signals are rewards, -1 where they are gradients.
        observe: called as `observe(unit, call, s, answers)` at every unit, for reports.

    Returns:
        The signal of every wanted placeholder, None where none arrived.
    """
    pending: dict[fx.Node, Sum] = {}
    for node, s in signals.items():
        if s is not None:
            pending.setdefault(node, Sum()).add(s, stabilized)
    given = [s for s in signals.values() if s is not None]
    for call in reversed(calls):
        unit = call.unit
        call.given, call.direction = given, direction
        arrived = pending.pop(unit.node, None)
        if arrived is not None and record is not None and unit.node in record:
            record[unit.node] = arrived.reward(call.output)
        if arrived is None or (unit.handler is None and unit.node.target is not operator.getitem):
            continue
        if unit.node.target is operator.getitem:
            source, index = unit.node.args
            holder = pending.setdefault(source, Sum())  # type: ignore[arg-type]
            holder.add_item(index, arrived)  # type: ignore[arg-type]
            continue
        if observe is not None:
            call.arrived = arrived.reward(wide(call.output))
        s, form = arrived.settle(_measure(unit, call, values), unit)
        call.form = form
        answers = list(_ask(call, s))
        if len(answers) != len(unit.inputs):
            raise RuleError(
                f"the rule of {plan.graph.describe(unit.node)} answered {len(answers)} signals for {len(unit.inputs)} "
                "tensor arguments; return one for each, None for none"
            )
        if call.stabilized is not False:
            form = unit.option_epsilon if call.stabilized is True else call.stabilized
        elif not (unit.family.passes_form or unit.ends_layer):
            form = None
        call.answered = form
        for i, (node, answer) in enumerate(zip(unit.inputs, answers)):
            if answer is not None and unit.wanted[i]:
                pending.setdefault(node, Sum()).add(_fit(plan, call, i, answer), form, call.inputs[i])
                if check and not bool(torch.isfinite(answer).all()):
                    raise NonFiniteError(f"{plan.graph.describe(unit.node)} hands on a signal that is NaN or infinite")
        if observe is not None:
            observe(unit, call, s, answers)
    wanted = [node for node in plan.graph.placeholder_nodes if node in plan.wanted]
    for node in wanted if record is not None else ():
        if node in pending and node in record:  # type: ignore[operator]
            record[node] = pending[node].reward(values[node])  # type: ignore[index]
    return {node: pending[node].total(values[node]) if node in pending else None for node in wanted}


def _measure(unit: Unit, call: Call, values: Mapping[fx.Node, Any]) -> Any:
    """The output that the epsilon factor looks at; infinite, so that all of s passes, where a zero weight makes it zero."""
    output = call.output
    if unit.rectified is not None:
        relu = values[unit.rectified]
        output = relu if isinstance(output, Tensor) else [relu, *output[1:]]
    if isinstance(output, Tensor) and unit.option_epsilon:
        for weight in unit.zeroed_by:
            output = torch.where(values[weight].any(), output, torch.inf)
    return output


def _ask(call: Call, s: Any) -> Sequence[Tensor | None]:
    assert call.unit.handler is not None
    call.stabilized = False
    return call.unit.handler(call, s, *call.args, **call.kwargs)


def _fit(plan: Plan, call: Call, i: int, answer: Tensor) -> Tensor:
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
