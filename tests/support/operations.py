"""Which ATen operations really run, and how large what they give is."""

from __future__ import annotations

from collections import Counter
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["Operations"]


class Operations(TorchDispatchMode):
    """Records every operation that runs inside the `with` block.

    Attributes:
        counts: how often each ran, by its name without the overload ("aten::mm").
        calls: each run with its arguments, in order.
        largest: the number of elements of the largest tensor that each gave.
    """

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.calls: list[tuple[str, Any]] = []
        self.largest: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.name().partition(".")[0]
        self.counts[name] += 1
        self.calls.append((name, args))
        sizes = [leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        self.largest[name] = max(self.largest[name], *sizes, 0)
        return result
