"""The most frequent amendment, with little around it: the epsilon factor of a small output where nothing else is to be done."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
from torch import Tensor

__all__ = ["USUAL", "Factor", "LoneFactor", "is_usual", "must_be_true"]

_grad, _keeps = torch.is_grad_enabled, torch._C._autograd._get_current_graph_task_keep_graph
USUAL = (torch.float32, torch.float64)


@dataclass
class Factor:
    """What a signal is multiplied by when it has arrived at an output.

    Attributes:
        epsilon: of the epsilon factor; 0 for none.
        measure: the number of the value that the factor looks at.
        positive: whether that value has no negative entry.
        mixed: whether signals of both forms meet there, so that the guarded factor is needed.
        restated: from which epsilon a stabilized signal has to be restated as one of `epsilon`; None if it need not be.
    """

    epsilon: float
    measure: int = -1
    positive: bool = False
    mixed: bool = False
    restated: float | None = None


def is_usual(value: Tensor | None, large: int) -> TypeGuard[Tensor]:
    """Whether an epsilon factor that looks at this value is the plain formula.

    Of a large one less than all may be kept, and a GPU has one kernel for the whole.
    """
    usual = type(value) is Tensor and value.dtype in USUAL and value.numel() < large and not value.is_cuda
    return usual and value.layout is torch.strided  # type: ignore[union-attr]


@functools.cache
def _number(x: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A number as a tensor, which torch adds in half of the time that it takes for Python's."""
    return torch.tensor(x, dtype=dtype, device=device)


class LoneFactor:
    """A hook that multiplies a signal by the epsilon factor before autograd goes on; see `amendments`.

    Args:
        slot: of the signal among those of the autograd node. value: what the factor looks at. positive: it has no negative entry.
        watch: is told of a second derivative.
    """

    __slots__ = ("slot", "value", "epsilon", "added", "positive", "watch", "told")

    def __init__(self, slot: int, value: Tensor, epsilon: float, positive: bool, watch: Any) -> None:
        self.slot, self.epsilon, self.positive, self.watch = slot, epsilon, positive, watch
        self.value: Tensor | None = value
        self.told: list[Any] = []  # hooks of parameters whose feedback is on its way with the signal
        self.added = _number(epsilon, value.dtype, value.device)

    def __call__(self, signals: tuple[Any, ...]) -> tuple[Any, ...] | None:
        s = self.of_one(signals[self.slot])
        if s is None:
            return None
        return (s,) if len(signals) == 1 else (*signals[: self.slot], s, *signals[self.slot + 1 :])

    def of_one(self, s: Tensor | None) -> Tensor | None:
        """The same as a hook on the tensor."""
        value = self.value
        if s is None or _grad() or value is None:
            if s is None or must_be_true(value is not None, self.watch):
                return None
        assert value is not None
        for arrival in self.told:
            arrival.tell()
        size = torch.add(value if self.positive else value.abs(), self.added)
        if not _keeps():
            self.value = None
        return torch.addcdiv(s, s, size, value=-self.epsilon)


def must_be_true(has_values: bool, watch: Any) -> bool:
    """Whether this backward pass gives the true gradient; otherwise what the hooks look at must still be there."""
    if torch.is_grad_enabled():
        if watch is not None:
            watch.second()
        return True
    if not has_values:
        raise RuntimeError(
            "Trying to backward through the graph a second time, but what it saved has been freed; pass "
            "retain_graph=True to the first backward call."
        )
    return False
