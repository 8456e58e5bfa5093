"""What a rule sees of a unit of a live run: the values it had, and its true derivative on demand.

And what it sees before the run is amended, when it is asked on tensors without data what it does with autograd's signals.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from ..engine.call import execute
from ..engine.signals import reward_of, share_of
from ..engine.units import Unit
from ..graph.graph import is_float
from ..registry import Call
from ..rules.views import vjp
from .notes import Ref

__all__ = ["LiveCall", "Multiple", "answers_of", "answers_of_vjp", "likeness_of", "ways_back"]

Templates = Mapping[fx.Node, tuple[Any, Any]]


class _Places(list[Any]):
    """The tensors for one value, in the order of the places where an operation takes it; the last serves all others."""


class LiveCall(Call):
    """As `engine.call.Call`, of values that a run has left; the operation runs again only if its derivative is asked for.

    Args:
        unit: the unit.
        values: by number, what was kept of the run.
        numbers: the number of each node's value.
        templates: the arguments of the unit's operations, values by number.

    Attributes:
        beside_gradient: the rule is asked right before autograd works out the operation's own gradient, which its answers
            replace.
    """

    beside_gradient = True

    def __init__(
        self, unit: Unit, values: Mapping[int, Any], numbers: Mapping[fx.Node, int], templates: Templates
    ) -> None:
        self.unit = unit
        self.op: Any = unit.node.target
        self.nodes, self.sources, self.is_region = unit.nodes, unit.inputs, unit.is_region
        self.rectified = unit.rectified is not None
        self.active, self.weightlike, self.wanted = unit.active, unit.weightlike, unit.wanted
        self.epsilon = unit.option_epsilon
        self.stabilized: bool | float = False
        self.form: float | None = None
        self.given: list[Tensor] = []
        self.direction = -1
        self._values, self._numbers, self._templates = values, numbers, templates
        self.inputs = [values[numbers[node]] for node in unit.inputs]
        self.args: tuple[Any, ...] = ()
        self.kwargs: dict[str, Any] = {}
        if not unit.is_region:
            args, kwargs = templates[unit.node]
            self.args, self.kwargs = self._filled(args, {}), self._filled(kwargs, {})
        self._tape: tuple[list[Any], Any] | None = None
        self.output: Any = None

    def reward(self, s: Tensor) -> Tensor:
        """The reward of an output that holds the signal s."""
        return reward_of(s, self.output, self.form)

    def share(self, s: Tensor, total: Tensor, stabilizer: float) -> Tensor:
        return share_of(s, self.output, self.form, total, stabilizer)

    def run(self, tensors: Sequence[Any], first: int | None = None) -> Any:
        unit = self.unit
        constants = unit.rule.constants if unit.rule is not None else frozenset()
        replaced: dict[int, Any] = {}
        for node, x in zip(unit.inputs, tensors):
            number = self._numbers[node]
            replaced[number] = _Places([*replaced[number], x]) if number in replaced else _Places([x])
        for node in unit.nodes[:first]:
            args, kwargs = self._templates[node]
            out = node.target(*self._filled(args, replaced), **self._filled(kwargs, replaced))  # type: ignore[operator]
            if node.target in constants:
                out = out.detach()
            if node in self._numbers:
                replaced[self._numbers[node]] = out
        return out

    def _filled(self, template: Any, replaced: Mapping[int, Any]) -> Any:
        if isinstance(template, Ref):
            number = int(template)
            found = replaced[number] if number in replaced else self._values[number]
            if isinstance(found, _Places):
                found = found.pop(0) if len(found) > 1 else found[0]
            return found
        if isinstance(template, list | tuple):
            return type(template)([self._filled(item, replaced) for item in template])
        if isinstance(template, dict):
            return {key: self._filled(item, replaced) for key, item in template.items()}
        return template

    def vjp(self, s: Any, again: bool = False) -> list[Tensor | None]:
        """The true vector-Jacobian product: one signal for each wanted tensor argument, None for the others."""
        if self._tape is None:
            leaves = [
                x.detach().requires_grad_() if want and is_float(x) else x
                for x, want in zip(self.inputs, self.unit.wanted)
            ]
            with torch.enable_grad():
                self._tape = leaves, self.run(leaves)
        leaves, out = self._tape
        outputs = out if isinstance(out, list | tuple) else [out]
        signals = s if isinstance(s, list | tuple) else [s]
        pairs = [(z, g) for z, g in zip(outputs, signals) if g is not None and is_float(z) and z.requires_grad]
        places = [i for i, leaf in enumerate(leaves) if is_float(leaf) and leaf.requires_grad]
        result: list[Tensor | None] = [None] * len(leaves)
        if pairs and places:
            zs, gs = zip(*pairs)
            found = torch.autograd.grad(zs, [leaves[i] for i in places], gs, retain_graph=True, allow_unused=True)
            for i, g in zip(places, found):
                result[i] = g
        return result


def answers_of(unit: Unit) -> tuple[list[Any] | None, bool | float, bool]:
    """A rule's answers: multiples of autograd's signals, or tensors, or None if it needs data; their form; and one thing more.

    The form is False for plain signals, True or an epsilon for stabilized ones (Note [Two forms of a signal]). The other
    thing is whether the rule may look at the signals at the model's outputs.
    """
    return answers_of_vjp(unit) or _ask(unit)


def answers_of_vjp(unit: Unit) -> tuple[list[Any] | None, bool | float, bool] | None:
    """The same where the rule is the derivative, so that nobody need ask."""
    if unit.handler is vjp or (unit.rule is not None and unit.rule.is_vjp):
        return [Multiple() if wanted else None for wanted in unit.wanted], False, False
    return None


def ways_back(unit: Unit, arrivals: Mapping[fx.Node, Any]) -> list[bool]:
    """Of each input, whether a signal at the unit's results reaches it: of several results some may be read by nobody.

    What `broadcast_tensors` makes of one of its tensors holds nothing of the others. An operation that says nothing without
    data is taken to make all of all.
    """
    outputs = unit.node.meta["val"]
    items = {n.args[1] for n in unit.node.users if n.target is operator.getitem and arrivals.get(n)}
    if not isinstance(outputs, list) or sum(unit.wanted) < 2 or len(items) == len(outputs):
        return [True] * len(unit.inputs)
    values = {n: n.meta["val"] for node in unit.nodes for n in node.all_input_nodes}
    own = [x.detach().requires_grad_() if is_float(x) else x for x in (n.meta["val"] for n in unit.inputs)]
    try:
        with torch.enable_grad():
            made = execute(unit, values, own)
        ends = [made[i] for i in _floats(made) if i in items and made[i].requires_grad]
        signals = [torch.ones_like(z) for z in ends]
        found = iter(torch.autograd.grad(ends, [x for x in own if is_float(x)], signals, allow_unused=True))
        return [not is_float(x) or next(found) is not None for x in own]
    except Exception:  # whatever an operation says of tensors without data
        return [True] * len(own)


def _floats(values: Sequence[Any]) -> list[int]:
    return [i for i, x in enumerate(values) if is_float(x)]


def likeness_of(unit: Unit) -> Any:
    """What a rule sees of a unit without data, so that units in which it is the same need be asked once; None if each must be.

    A model of twelve blocks has most of its units twelve times.
    """
    seen: dict[fx.Node, Any] = {
        n: (i, n.meta["val"].shape, n.meta["val"].dtype, n.meta["val"].stride())
        for i, n in enumerate(unit.inputs)
        if is_float(n.meta["val"])
    }
    if len(seen) != len(set(unit.inputs)):
        return None
    arguments = []
    for i, node in enumerate(unit.nodes):
        if not {*node.all_input_nodes} <= {*seen} and unit.is_region:
            return None
        arguments.append((node.target, fx.node.map_arg((node.args, node.kwargs), lambda n: seen.get(n))))  # type: ignore[arg-type]
        seen[node] = -1 - i
    how = (
        None if unit.rule is None else (unit.rule.is_vjp, unit.rule.constants),
        _made_of(unit.handler),
        unit.wanted,
        unit.active,
        unit.weightlike,
        unit.option_epsilon,
        unit.rectified is None,
    )
    return how, repr(arguments)


def _made_of(function: Any) -> Any:
    """A function; of a partial one what it is made of, so that two that are made alike are equal."""
    if not isinstance(function, functools.partial):
        return function
    made = function.func, tuple(map(_made_of, function.args)), tuple(function.keywords.items())
    try:
        hash(made)
    except TypeError:  # a list, say, which may be another one by the next time
        return function
    return made


class Multiple:
    """Stands for autograd's signal while a rule is asked what it does with it."""

    def __init__(self, factor: float = 1.0) -> None:
        self.factor = factor

    def __mul__(self, other: Any) -> Multiple:
        return Multiple(self.factor * other) if isinstance(other, int | float) else NotImplemented

    __rmul__ = __mul__

    def __truediv__(self, other: Any) -> Multiple:
        return Multiple(self.factor / other) if isinstance(other, int | float) else NotImplemented

    def __neg__(self) -> Multiple:
        return Multiple(-self.factor)


class _Asked(Call):
    """What a rule sees of a unit when it is asked on tensors without data."""

    def __init__(self, unit: Unit) -> None:
        self._unit = unit
        self.op, self.sources, self.nodes, self.is_region = unit.node.target, unit.inputs, unit.nodes, unit.is_region
        self.active, self.weightlike, self.wanted = unit.active, unit.weightlike, unit.wanted
        self.epsilon, self.rectified = unit.option_epsilon, unit.rectified is not None
        self.stabilized, self.direction, self.looked = False, -1, False
        self.inputs = [node.meta["val"] for node in unit.inputs]
        self.output = unit.node.meta["val"]
        self.signal: Any = None
        self.args, self.kwargs = fx.node.map_arg((unit.node.args, unit.node.kwargs), lambda n: n.meta["val"])

    @property
    def given(self) -> list[Tensor]:  # type: ignore[override]
        self.looked = True
        return []

    def reward(self, s: Tensor) -> Tensor:
        return torch.empty_like(self.output)

    def run(self, tensors: Sequence[Any], first: int | None = None) -> Any:
        as_it_was = first is None and not torch.is_grad_enabled()
        if as_it_was and all(_alike(x, given) for x, given in zip(tensors, self.inputs)):
            return pytree.tree_map_only(Tensor, torch.empty_like, self.output)
        values = {n: n.meta["val"] for node in self.nodes for n in node.all_input_nodes}
        return execute(self._unit, values, tensors, first)

    def vjp(self, s: Any, again: bool = False) -> list[Any]:
        """A multiple of autograd's signals, if they are those of the signal that has arrived; tensors for another one.

        Autograd does not know of operations that count as constants within a region.
        """
        rule = self._unit.rule
        of_arrived = s is self.signal and not (self.is_region and rule is not None and rule.constants)
        return [
            (Multiple() if of_arrived else torch.empty_like(x)) if wanted else None
            for x, wanted in zip(self.inputs, self.wanted)
        ]


def _alike(x: Any, y: Any) -> bool:
    return isinstance(x, Tensor) and isinstance(y, Tensor) and x.shape == y.shape and x.dtype == y.dtype


def _ask(unit: Unit) -> tuple[list[Any] | None, bool | float, bool]:
    """The rule's answers on tensors without data, None if it needs data; and whether they are in stabilized form."""
    asked = _Asked(unit)
    output = asked.output
    s = [torch.zeros_like(z) if is_float(z) else None for z in output] if isinstance(output, list) else output
    asked.signal = s
    args, kwargs = ((), {}) if unit.is_region else (asked.args, asked.kwargs)
    assert unit.handler is not None
    try:
        with torch.no_grad():
            answers = list(unit.handler(asked, s, *args, **kwargs))
        known = len(answers) == len(unit.inputs) and all(isinstance(a, Tensor | Multiple | None) for a in answers)
        return answers if known else None, asked.stabilized, asked.looked  # what else it says is refused with data
    except AttributeError:
        raise
    except Exception:  # whatever a rule says of tensors without data, it will be asked again with them
        return None, True if asked.stabilized is True else asked.stabilized, True
