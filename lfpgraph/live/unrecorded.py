"""What a run computes where no gradients are recorded: features of a frozen encoder under `no_grad`, say.

Such a value is a leaf of the recorded run. If it was made of the model's input it is an activation like the input itself;
otherwise it is a constant (a table of angles made of positions, or what is made of weights alone).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

__all__ = ["Unrecorded"]


class Unrecorded:
    """Float tensors that were made of the model's input without being recorded."""

    def __init__(self) -> None:
        self._made: dict[int, weakref.ref[Tensor]] = {}

    def __contains__(self, x: Tensor) -> bool:
        found = self._made.get(id(x))
        return found is not None and found() is x

    def note(self, args: tuple[Any, ...], out: Any, is_activation: Callable[[Tensor], bool]) -> None:
        """Note what an operation has made of its arguments.

        Args:
            is_activation: says of a float tensor that was not made here whether it is an input or was made of one.
        """
        for value in args:
            for x in value if isinstance(value, list | tuple) else (value,):
                if isinstance(x, Tensor) and _is_float(x) and (x in self or is_activation(x)):
                    for result in pytree.tree_leaves(out):
                        if isinstance(result, Tensor) and _is_float(result):
                            self._made[id(result)] = weakref.ref(result)
                    return


def _is_float(x: Tensor) -> bool:
    return x.is_floating_point() or x.is_complex()
