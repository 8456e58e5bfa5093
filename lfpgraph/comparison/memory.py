"""How much memory a step takes: the bytes of the tensors that are alive at once, on any device."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["LiveBytes", "held_bytes"]


def held_bytes(tensors: Iterable[Tensor]) -> int:
    """The bytes of the storages of tensors, each once."""
    storages = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


class LiveBytes(TorchDispatchMode):
    """Counts the storages that are made inside; `peak` is the most bytes of them at once.

    What a kernel takes for itself and gives back is not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[int, int] = {}
        self.now = self.peak = 0

    @classmethod
    def is_infra_mode(cls) -> bool:
        """It only counts: whose operations it sees is all the same to it."""
        return True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        inputs: set[int] | None = None
        for tensor in tree_leaves(result):
            if not isinstance(tensor, Tensor):
                continue
            storage = tensor.untyped_storage()
            if storage._cdata in self.sizes:
                continue
            if inputs is None:
                given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
                inputs = {x.untyped_storage()._cdata for x in given}
            if storage._cdata not in inputs:  # a view of what was there before, or written in place, is nothing new
                self.sizes[storage._cdata] = storage.nbytes()
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._gone, storage._cdata)
        return result

    def _gone(self, place: int) -> None:
        self.now -= self.sizes.pop(place, 0)
