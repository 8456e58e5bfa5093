"""Several targets of one batch, and what holds for a target whatever it is made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ...errors import AttributionError
from .weights import Contrast

__all__ = ["Targets", "as_they_stand", "has_function"]


@dataclass(frozen=True)
class Targets:
    """Several targets of the same inputs: the model runs forward once, and reward goes back once for each of them.

    Relevance has one dimension more, the first, with an entry for each target.

    Attributes:
        each: any targets of `lfpgraph.attribute` but this: `Targets([3, 7, "predicted"])`.

    Raises:
        AttributionError: it is no list or tuple, an empty one, or holds `Targets`.
    """

    each: Sequence[Any]

    def __post_init__(self) -> None:
        if not isinstance(self.each, list | tuple | range) or not self.each:
            raise AttributionError(f"Targets takes a list of one target or more, such as [3, 7]; got {self.each!r}")
        if any(isinstance(target, Targets) for target in self.each):
            raise AttributionError("Targets within Targets; give all targets in one list")
        object.__setattr__(self, "each", tuple(self.each))

    def __len__(self) -> int:
        return len(self.each)


def as_they_stand(target: Any, output: Tensor) -> Any:
    """A target with "predicted" replaced by the classes that are predicted in this output."""
    if isinstance(target, Targets):
        return Targets([as_they_stand(t, output) for t in target.each])
    if isinstance(target, Contrast):
        return Contrast(as_they_stand(target.a, output), as_they_stand(target.b, output))
    return output.argmax(-1) if isinstance(target, str) and target == "predicted" else target


def has_function(target: Any) -> bool:
    """Whether a target is a function of the output, or one of several is."""
    each: Sequence[Callable[..., Any]] = target.each if isinstance(target, Targets) else [target]
    return any(callable(t) and not isinstance(t, Tensor) for t in each)
