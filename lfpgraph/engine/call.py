"""One run of a unit: what its rule sees (`registry.Call`), and what the walk and those who observe it read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from .. import registry
from ..errors import RuleError
from ..graph.graph import is_float
from ..registry import Signals
from .signals import reward_of, share_of
from .static import RESIZES
from .units import Unit

__all__ = ["Call", "execute"]

aten = torch.ops.aten


def _bilinear(x: Tensor, y: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
    z = torch.einsum("...i,oij,...j->...o", x, w, y)
    return z if b is None else z + b


def _hardshrink(x: Tensor, bound: Any = 0.5) -> Tensor:
    return torch.where(x.abs() <= bound, 0, x)


def _softshrink(x: Tensor, bound: Any = 0.5) -> Tensor:
    return torch.where(x > bound, x - bound, torch.where(x < -bound, x + bound, x * 0))


def _by_size(packet: Any) -> Callable[..., Any]:
    """An interpolation that takes factors, as the one that takes sizes: its kernel asks for the numbers of open sizes."""

    def resized(x: Tensor, size: Sequence[int] | None, *rest: Any) -> Any:
        *options, factors = rest  # align_corners, of those that have it
        if size is None:
            size = [torch.sym_int(n * factor) for n, factor in zip(x.shape[2:], factors)]
        return packet.default(x, size, *options, *(factors or [None] * len(size)))

    return resized


# What torch cannot run or differentiate while sizes are open, as other operations with the same result.
_INSTEAD: dict[Any, Callable[..., Any]] = {
    aten.bilinear.default: _bilinear,
    aten.hardshrink.default: _hardshrink,
    aten.softshrink.default: _softshrink,
    **{packet.vec: _by_size(packet) for packet in (getattr(aten, name) for name in RESIZES)},
}


class Call(registry.Call):
    """One unit's run: what its rule sees, and beside that:

    Attributes:
        unit: of the plan.
        form: the epsilon of the signal that has arrived, where that is in stabilized form (Note [Two forms of a signal]);
            None where it is not.
        answered: the same of the rule's answers.
        arrived: the reward that has arrived, in float64, where somebody observes.
    """

    def __init__(self, unit: Unit, values: Mapping[fx.Node, Any]) -> None:
        self.unit, self._values = unit, values
        self.op = unit.node.target
        self.nodes, self.sources, self.is_region = unit.nodes, unit.inputs, unit.is_region
        self.active, self.weightlike, self.wanted = unit.active, unit.weightlike, unit.wanted
        self.epsilon, self.rectified = unit.option_epsilon, unit.rectified is not None
        self.stabilized, self.given, self.direction = False, [], 1
        self.form: float | None = None
        self.answered: float | None = None
        self.arrived: Any = None
        self.inputs = [values[node] for node in unit.inputs]
        tape = unit.rule is not None and unit.rule.needs_vjp
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
            arguments: Any = (unit.node.args, unit.node.kwargs)
            self.args, self.kwargs = fx.node.map_arg(arguments, values.__getitem__)

    @property
    def reference(self) -> list[Any]:
        nodes = self.unit.references[:-1]
        return [self._values[node] for node in nodes] if nodes else super().reference

    @property
    def reference_output(self) -> Any:
        return self._values[self.unit.references[-1]] if self.unit.references else super().reference_output

    def reward(self, s: Tensor) -> Tensor:
        return reward_of(s, self.output, self.form)

    def share(self, s: Tensor, total: Tensor, stabilizer: float) -> Tensor:
        return share_of(s, self.output, self.form, total, stabilizer)

    def run(self, tensors: Sequence[Any], first: int | None = None) -> Any:
        return execute(self.unit, self._values, tensors, first)

    def vjp(self, s: Any, again: bool = False) -> Signals:
        outputs = self._tape if isinstance(self._tape, list | tuple) else [self._tape]
        signals = s if isinstance(s, list | tuple) else [s]
        pairs = [(z, g) for z, g in zip(outputs, signals) if g is not None and is_float(z) and z.requires_grad]
        places = [i for i, leaf in enumerate(self._leaves) if is_float(leaf) and leaf.requires_grad]
        result: Signals = [None] * len(self._leaves)
        if pairs and places:
            zs, gs = zip(*pairs)
            leaves = [self._leaves[i] for i in places]
            for i, g in zip(places, torch.autograd.grad(zs, leaves, gs, retain_graph=again, allow_unused=True)):
                result[i] = g
        return result


def as_signals(answers: Any, unit: Unit, describe: Callable[[fx.Node], str]) -> list[Tensor | None]:
    """What a rule has answered, as a list of a signal for each of its unit's tensor arguments.

    Raises:
        RuleError: it is none.
    """
    count = len(unit.inputs)
    if not isinstance(answers, list | tuple):
        raise RuleError(
            f"the rule of {describe(unit.node)} answered {type(answers).__name__}; return a list of {count} signals, one for "
            "each tensor argument, None for none"
        )
    if len(answers) != count:
        raise RuleError(
            f"the rule of {describe(unit.node)} answered {len(answers)} signals for {count} tensor arguments; return one for "
            "each, None for none"
        )
    for i, answer in enumerate(answers):
        if answer is not None and not isinstance(answer, Tensor):
            raise RuleError(
                f"the rule of {describe(unit.node)} answered {type(answer).__name__} for tensor argument {i}; return a "
                "tensor of its shape, or None"
            )
    return list(answers)


def execute(unit: Unit, values: Mapping[fx.Node, Any], tensors: Sequence[Any], first: int | None = None) -> Any:
    """Run the unit's nodes with these tensors in place of its tensor arguments; what is no tensor comes from `values`.

    Args:
        first: how many of its nodes; None for all.
    """
    if not unit.is_region:  # a tensor that is an argument twice comes twice
        given, inputs = iter(tensors), set(unit.inputs)
        return _run_node(unit.node, lambda n: next(given) if n in inputs else values[n])
    local = dict(zip(unit.inputs, tensors))
    constants = unit.rule.constants if unit.rule is not None else ()
    for node in unit.nodes[:first]:
        local[node] = _run_node(node, lambda n: local[n] if n in local else values[n])
        if node.target in constants:
            local[node] = local[node].detach()
    return local[node]


def _run_node(node: fx.Node, lookup: Callable[[fx.Node], Any]) -> Any:
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lookup)
    return _INSTEAD.get(node.target, node.target)(*args, **kwargs)  # type: ignore[operator]


def _detached(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, list | tuple):
        return type(value)([_detached(item) for item in value])
    return value
