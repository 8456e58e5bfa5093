"""What autograd has saved for nodes that plain autograd would not run, where the model writes to that memory.

Over a bridge reward arrives at nodes that the plain model's backward pass never reaches: those of operations that read a
shadow, and those that lead to values of which nothing but a mask, say, was made (`x >= x.amax()`: the maximum's node). To
what these have saved the plain model may write. They get a copy of it before.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Container, Iterable
from typing import Any

import torch
from torch import Tensor

from ..notes import is_older, storage_of

__all__ = ["Saved"]


class Saved:
    """The nodes of one run that only bridges lead to, and what they have saved.

    Args:
        edges: of the run's values.
        started: nodes with a smaller number are older than the run.
    """

    def __init__(self, edges: Container[tuple[Any, int]], started: int) -> None:
        self._edges, self._started = edges, started
        self._new: list[tuple[Any, bool]] = []  # nodes, and whether what leads to them counts as well
        self._seen: dict[Any, bool] = {}  # and whether what leads to them was counted
        # by storage: autograd's records of what lies there
        self._places: defaultdict[int, list[Any]] = defaultdict(list)

    def add_operation(self, node: Any) -> None:
        """Count the nodes of one operation: this one, and those that lead to it from the run's values."""
        self._new.append((node, False))

    def add_ways(self, nodes: Iterable[Any]) -> None:
        """Count nodes and all those of the run that lead to them."""
        self._new += [(node, True) for node in nodes]

    def copy(self, storage: int) -> None:
        """Let them have copies of what they have saved in some memory, which is about to be written to."""
        while self._new:
            node, whole = self._new.pop()
            before = self._seen.get(node)
            if before or before is whole or is_older(node, self._started):
                continue
            self._seen[node] = whole
            for place in _places(node) if before is None else ():
                if place.unpack_hook is None and (saved := place.data) is not None:  # else others have a say in it
                    self._places[storage_of(saved)].append(place)
            for source, index in node.next_functions:
                if source is not None and (whole or (source, index) not in self._edges):
                    self._new.append((source, whole))
        for place in self._places.pop(storage, ()):
            place.register_hooks(torch.clone, _as_it_is)


def _as_it_is(copy: Tensor) -> Tensor:
    return copy


def _places(node: Any) -> list[Any]:
    """Autograd's records of what a node has saved; none where a backward pass has freed it."""
    names = ("_raw_saved_tensors",) if isinstance(node, torch._C._FunctionBase) else _names(node.__class__)
    try:
        found = [getattr(node, name) for name in names]
    except RuntimeError:
        return []
    return [place for one in found for place in (one if isinstance(one, tuple) else (one,)) if place is not None]


@functools.cache
def _names(kind: type) -> tuple[str, ...]:
    """Of a kind of torch's own nodes."""
    return tuple(name for name in dir(kind) if name.startswith("_raw_saved_"))
