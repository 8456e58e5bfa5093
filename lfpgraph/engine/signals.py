"""What has arrived at a node: signals of both forms, summed (Note [Two forms of a signal] in `propagate`)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..numerics import epsilon_factor, identity_signal, stabilize
from .units import Unit

__all__ = ["Sum", "reward_of", "wide"]


class Sum:
    """The sum of the signals that have arrived at a node from its users.

    Attributes:
        raw, stabilized: the sum of the signals of each form.
        epsilon: that of the stabilized sum.
        items: for a node that returns a tuple, the sum at each of its items; the others are empty then.
    """

    def __init__(self) -> None:
        self.raw: Tensor | None = None
        self.stabilized: Tensor | None = None
        self.epsilon = 0.0
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
        """What the unit's rule is handed: both forms as one signal (of a tuple, a list of them), with the epsilon factor.

        Args:
            output: what the unit returned.

        Returns:
            The signal, and its epsilon if it is in stabilized form.
        """
        if self.items:
            return self._settle_items(output, unit)
        if self.raw is None:
            form = unit.epsilon or self.epsilon
            return _restated(self.stabilized, output, self.epsilon, form), form
        if unit.epsilon:
            raw = epsilon_factor(self.raw, output, unit.epsilon, unit.rectified is not None)
            if self.stabilized is not None:
                raw = raw + _restated(self.stabilized, output, self.epsilon, unit.epsilon)
            return raw, unit.epsilon
        if self.stabilized is None:
            return self.raw, None
        return epsilon_factor(self.raw, output, self.epsilon) + self.stabilized, self.epsilon

    def _settle_items(self, output: Any, unit: Unit) -> tuple[list[Any], float | None]:
        """The same for a tuple; if one item is in stabilized form, all are brought to it."""
        settled = {i: item.settle(output[i], unit) for i, item in self.items.items()}
        form = None
        if any(item.stabilized is not None for item in self.items.values()):
            form = unit.option_epsilon
            for i, (s, own) in settled.items():
                if own is None and form:
                    settled[i] = epsilon_factor(s, output[i], form), form
        return [settled[i][0] if i in settled else None for i in range(len(output))], form

    def total(self) -> Tensor | None:
        """The sum of both forms as they are, for a placeholder, where no epsilon factor follows."""
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
    """The reward that the signal s means at a value, of its shape; `form` is the epsilon of a stabilized signal, else None."""
    if s.is_complex() or value.is_complex():
        return (value.conj() * s).real
    return s * (stabilize(value, form) if form else value)


def share_of(s: Tensor, value: Tensor, form: float | None, total: Tensor, stabilizer: float) -> Tensor:
    """`reward_of(s, value, form) / stabilize(total, stabilizer)`, in one pass over memory where the signal is a plain one."""
    if form or not stabilizer or any(t.is_complex() for t in (s, value, total)):
        return reward_of(s, value, form) / stabilize(total, stabilizer)
    return identity_signal(s, total, value, stabilizer)


def wide(value: Any) -> Any:
    """A tensor, or a list of them, in float64 or complex128; integers as they are."""
    if isinstance(value, list | tuple):
        return [wide(item) for item in value]
    if not isinstance(value, Tensor) or not (value.is_floating_point() or value.is_complex()):
        return value
    return value.to(torch.complex128 if value.is_complex() else torch.float64)


def _restated(s: Tensor | None, value: Tensor | None, epsilon: float, wanted: float) -> Any:
    """A signal stabilized with one epsilon as a signal of the same reward stabilized with another."""
    if s is None or value is None or epsilon == wanted or not epsilon or not wanted or s.is_complex():
        return s
    return s * stabilize(value, epsilon) / stabilize(value, wanted)
