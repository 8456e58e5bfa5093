"""What an explanation has found: relevance by what it belongs to, of one target or of several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .lookups import Lookup
from .readings import Reading, of_tokens

__all__ = ["Found", "sorted_rewards", "stacked"]


@dataclass
class Found:
    """Relevance by what it belongs to.

    Attributes:
        inputs: by position among the call's tensors; of token ids [n, length], else of the input's shape.
        nodes: by the names asked for; parameters: by name, of the parameter's shape.
        outputs: the model's tensor outputs; signals: what each was given.
        ways: where signals are wanted, each embedding of token ids, and the way to it [n, length, features],
            by the position that the embedding's signals have among inputs.
    """

    inputs: dict[int, Tensor] = field(default_factory=dict)
    nodes: dict[str, Tensor] = field(default_factory=dict)
    parameters: dict[str, Tensor] = field(default_factory=dict)
    outputs: list[Any] = field(default_factory=list)
    signals: list[Any] = field(default_factory=list)
    ways: dict[int, tuple[Lookup, Tensor]] = field(default_factory=dict)

    @property
    def explained(self) -> Tensor:
        """The output that is explained, the first of them if there are several."""
        return next(o for o, s in zip(self.outputs, self.signals) if s is not None)


def sorted_rewards(readings: Sequence[Reading], rewards: Sequence[Tensor | None], found: Found) -> Found:
    """Write rewards down by what they belong to."""
    for reading, reward in zip(readings, rewards):
        if reward is None:
            continue
        if reading.kind == "parameter":
            found.parameters[reading.name] = _sum(found.parameters.get(reading.name), reward)
        elif reading.kind == "node":
            found.nodes[reading.name] = reward
        elif reading.kind == "positions":
            ids, dim = reading.name
            by_token = reward.sum([i for i in range(1, reward.dim()) if i != dim])
            found.inputs[ids] = _sum(found.inputs.get(ids), by_token)
        else:
            value = of_tokens(reading.slot, reward) if reading.kind == "tokens" else reward
            found.inputs[reading.name] = _sum(found.inputs.get(reading.name), value)
    return found


def stacked(founds: Sequence[Found]) -> Found:
    """What was found for several targets, as tensors with a first dimension of targets."""
    first = founds[0]

    def stack(name: str) -> dict[Any, Tensor]:
        return {key: torch.stack([getattr(found, name)[key] for found in founds]) for key in getattr(first, name)}

    signals = [
        None if all(s is None for s in each) else torch.stack([torch.zeros_like(o) if s is None else s for s in each])
        for o, each in zip(first.outputs, zip(*(found.signals for found in founds)))
    ]
    return Found(stack("inputs"), stack("nodes"), stack("parameters"), first.outputs, signals, first.ways)


def _sum(before: Tensor | None, value: Tensor) -> Tensor:
    return value if before is None else before + value
