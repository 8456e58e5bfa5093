"""What a rule does with autograd's signals, found by asking it once on tensors without data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from ..engine.call import execute
from ..engine.units import Unit
from ..graph.graph import is_float
from ..registry import Call
from ..rules.views import vjp

__all__ = ["Multiple", "answers_of"]


def answers_of(unit: Unit) -> tuple[list[Any] | None, bool | float]:
    """A rule's answers: multiples of autograd's signals, or tensors, or None if it needs data; and their form.

    The form is False for plain signals, True or an epsilon for stabilized ones (Note [Two forms of a signal]).
    """
    if unit.handler is vjp or (unit.rule is not None and unit.rule.is_vjp):
        return [Multiple() if wanted else None for wanted in unit.wanted], False
    return _ask(unit)


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
        self.stabilized, self.given, self.direction = False, [], -1
        self.inputs = [node.meta["val"] for node in unit.inputs]
        self.output = unit.node.meta["val"]
        self.signal: Any = None
        self.args, self.kwargs = fx.node.map_arg((unit.node.args, unit.node.kwargs), lambda n: n.meta["val"])

    def reward(self, s: Tensor) -> Tensor:
        return torch.empty_like(self.output)

    def run(self, tensors: Sequence[Any]) -> Any:
        values = {n: n.meta["val"] for node in self.nodes for n in node.all_input_nodes}
        return execute(self._unit, values, tensors)

    def vjp(self, s: Any, again: bool = False) -> list[Any]:
        """A multiple of autograd's signals, if they are those of the signal that has arrived; tensors for another one."""
        of_arrived = s is self.signal
        return [
            (Multiple() if of_arrived else torch.empty_like(x)) if wanted else None
            for x, wanted in zip(self.inputs, self.wanted)
        ]


def _ask(unit: Unit) -> tuple[list[Any] | None, bool | float]:
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
        return answers if len(answers) == len(unit.inputs) else None, asked.stabilized
    except AttributeError:
        raise
    except Exception:  # whatever a rule says of tensors without data, it will be asked again with them
        return None, True if asked.stabilized is True else asked.stabilized
