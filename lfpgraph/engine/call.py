"""One run of a unit: what its rule sees."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from ..graph.graph import is_float, module_path
from .signals import reward_of
from .units import Unit

__all__ = ["Call", "execute"]


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
        if self.unit.is_region:
            return execute(self.unit, {}, tensors)
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
