"""What sample tables are written with: `Maker` draws tensors, `case` adds a row, `call` spells a call.

Every tensor holds distinct multiples of a power of two, exact in bfloat16 too: no ties, the same values in
every dtype, mixed signs, one entry exactly zero.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

__all__ = ["TABLE", "Case", "Maker", "Sample", "call", "case"]


@dataclass(frozen=True)
class Sample:
    """Arguments to try a rule with.

    Attributes:
        name: part of the test's id.
        args, kwargs: of the operation.
        active, weight, bias: places, among the tensor arguments in order, of those that carry reward as
            activations, as weights, and as weights that are added. The others are constants.
    """

    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)
    active: tuple[int, ...] = (0,)
    weight: tuple[int, ...] = ()
    bias: tuple[int, ...] = ()


class Maker:
    """Draws the tensors of one sample. `n` is the batch size (0 for an empty batch)."""

    def __init__(self, dtype: torch.dtype, n: int, seed: int, strided: bool = False) -> None:
        self.dtype, self.n, self.strided = dtype, n, strided
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, *shape: int) -> Tensor:
        """Both signs and a zero, steps of 1/4."""
        return self._finish((self._permutation(shape) - _size(shape) // 2) / 4)

    def inside(self, *shape: int) -> Tensor:
        """Between -1 and 1, a zero included, steps of 1/64."""
        return self._finish((self._permutation(shape) - _size(shape) // 2) / 64)

    def nonzero(self, *shape: int) -> Tensor:
        """Both signs, none of them zero."""
        return self._finish((self._permutation(shape) - _size(shape) // 2 + 0.5) / 8)

    def positive(self, *shape: int) -> Tensor:
        """Above zero."""
        return self._finish((self._permutation(shape) + 1) / 8)

    def above_one(self, *shape: int) -> Tensor:
        return self._finish((self._permutation(shape) + 9) / 8)

    def index(self, high: int, *shape: int) -> Tensor:
        """Integers from 0 to high - 1."""
        return torch.randint(high, shape, generator=self.generator)

    def mask(self, *shape: int) -> Tensor:
        """Every other entry true, in random order."""
        return self._permutation(shape) % 2 == 0

    def _permutation(self, shape: Sequence[int]) -> Tensor:
        size = _size(shape)
        return torch.randperm(size, generator=self.generator).view(tuple(shape))

    def _finish(self, x: Tensor) -> Tensor:
        x = x.to(self.dtype)
        return torch.stack([x, x + 3], -1)[..., 0] if self.strided else x


def _size(shape: Sequence[int]) -> int:
    size = 1
    for length in shape:
        size *= length
    return size


Arguments = tuple[tuple[Any, ...], dict[str, Any]]


def call(*args: Any, **kwargs: Any) -> Arguments:
    """The arguments of a call, as written."""
    return args, kwargs


@dataclass(frozen=True)
class Case:
    """A row of the tables: how to draw a sample, and the roles of its tensors (see `Sample`).

    `empty` and `strided`: whether torch takes an empty batch, and non-contiguous tensors, in this call.
    """

    name: str
    make: Callable[[Maker], Arguments]
    active: tuple[int, ...]
    weight: tuple[int, ...]
    bias: tuple[int, ...]
    empty: bool
    strided: bool

    def sample(self, suffix: str, maker: Maker) -> Sample:
        """Draw the tensors."""
        args, kwargs = self.make(maker)
        name = "-".join(part for part in (self.name, suffix) if part) or "base"
        return Sample(name, args, kwargs, self.active, self.weight, self.bias)


TABLE: dict[OpOverload, list[Case]] = {}


def case(
    ops: OpOverload | Sequence[OpOverload],
    make: Callable[[Maker], Arguments],
    name: str = "",
    active: tuple[int, ...] = (0,),
    weight: tuple[int, ...] = (),
    bias: tuple[int, ...] = (),
    empty: bool = True,
    strided: bool = True,
) -> None:
    """Add a row for one operation or several."""
    for op in [ops] if isinstance(ops, OpOverload) else ops:
        TABLE.setdefault(op, []).append(Case(name, make, active, weight, bias, empty, strided))
