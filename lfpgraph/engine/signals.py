"""What has arrived at a node: signals of both forms, summed (see the note in `propagate`)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..numerics import epsilon_factor, stabilize
from .units import Unit

__all__ = ["Sum", "reward_of", "wide"]


class Sum:
    """Signals that have arrived at a node from its users, each form on its own; items of a tuple apart."""

    def __init__(self) -> None:
        self.raw: Tensor | None = None
        self.stabilized: Tensor | None = None
        self.epsilon = 0.0  # of the stabilized part
        self.items: dict[int, Sum] = {}

    def add(self, s: Tensor, form: float | None, value: Tensor | None = None) -> None:
        """Add a signal; `form` is its epsilon if it is in stabilized form, `value` what the node holds."""
        if form is None:
            self.raw = s if self.raw is None else self.raw + s
        elif self.stabilized is None:
            self.stabilized, self.epsilon = s, form
        else:
            self.stabilized = self.stabilized + _restated(s, value, form, self.epsilon)

    def add_item(self, index: int, other: Sum) -> None:
        item = self.items.setdefault(index, Sum())
        if other.raw is not None:
            item.add(other.raw, None)
        if other.stabilized is not None:
            item.add(other.stabilized, other.epsilon)

    def settle(self, output: Any, unit: Unit) -> tuple[Any, float | None]:
        """The one signal (or tuple of signals) at the unit's output; its epsilon if it is in stabilized form."""
        if self.items:
            mixed = any(item.stabilized is not None for item in self.items.values())
            settled = {i: item.settle(output[i], unit) for i, item in self.items.items()}
            if mixed and unit.option_epsilon:
                for i, (s, form) in settled.items():
                    plain = form is None
                    settled[i] = (epsilon_factor(s, output[i], unit.option_epsilon) if plain else s), 0.0
            form = unit.option_epsilon if mixed else None
            return [settled[i][0] if i in settled else None for i in range(len(output))], form
        if self.raw is None:
            return _restated(self.stabilized, output, self.epsilon, unit.epsilon or self.epsilon), (
                unit.epsilon or self.epsilon
            )
        if unit.epsilon:
            raw = epsilon_factor(self.raw, output, unit.epsilon, unit.rectified is not None)
            if self.stabilized is not None:
                raw = raw + _restated(self.stabilized, output, self.epsilon, unit.epsilon)
            return raw, unit.epsilon
        if self.stabilized is None:
            return self.raw, None
        return epsilon_factor(self.raw, output, self.epsilon) + self.stabilized, self.epsilon

    def total(self, value: Tensor) -> Tensor | None:
        """The plain sum, where the walk ends."""
        if self.raw is None or self.stabilized is None:
            return self.raw if self.stabilized is None else self.stabilized
        return self.raw + self.stabilized

    def reward(self, value: Any) -> Any:
        """The reward that has arrived; of a tuple, a list with None where none has."""
        if self.items:
            return [self.items[i].reward(value[i]) if i in self.items else None for i in range(len(value))]
        parts = [] if self.raw is None else [reward_of(self.raw, value, None)]
        if self.stabilized is not None:
            parts.append(reward_of(self.stabilized, value, self.epsilon))
        return sum(parts[1:], parts[0])


def reward_of(s: Tensor, value: Tensor, form: float | None) -> Tensor:
    """The reward of a value that holds the signal s, of the epsilon `form` if in stabilized form; [shape of value]."""
    if s.is_complex() or value.is_complex():
        return (value.conj() * s).real
    return s * (stabilize(value, form) if form else value)


def wide(value: Any) -> Any:
    """A tensor, or a list of them, in float64 or complex128; integers as they are."""
    if isinstance(value, list | tuple):
        return [wide(item) for item in value]
    if not isinstance(value, Tensor) or not (value.is_floating_point() or value.is_complex()):
        return value
    return value.to(torch.complex128 if value.is_complex() else torch.float64)


def _restated(s: Tensor | None, value: Tensor | None, epsilon: float, wanted: float) -> Any:
    """A signal stabilized with one epsilon as one stabilized with another: the same reward."""
    if s is None or value is None or epsilon == wanted or not epsilon or not wanted or s.is_complex():
        return s
    return s * stabilize(value, epsilon) / stabilize(value, wanted)
