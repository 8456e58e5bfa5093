"""A program of a wrapped model, and the calls it is right for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..engine.program import Program
from ..graph.graph import OpGraph
from ..graph.sizes import Sizes

__all__ = ["Entry", "key_of"]


class Entry:
    """A program, the sizes it is right for, and the module it was traced from; None where no other module can come by it."""

    def __init__(self, graph: OpGraph, owner: nn.Module | None = None) -> None:
        self.graph = graph
        self.owner = owner
        self.program: Program | None = None
        self.sizes = Sizes(graph)

    def values(self, tensors: Sequence[Tensor], state: Mapping[str, Tensor]) -> list[Any]:
        """The placeholders' values for this call."""
        return self.graph.values(tensors, state)


def key_of(modes: tuple[bool, ...], leaves: Sequence[Any], spec: Any, state: Mapping[str, Tensor]) -> Any:
    """What a program depends on, sizes apart."""
    described = tuple(
        (leaf.dtype, leaf.dim(), leaf.device, leaf.requires_grad) if isinstance(leaf, Tensor) else _static(leaf)
        for leaf in leaves
    )
    params = tuple((name, t.dtype, t.device, t.requires_grad, t.shape) for name, t in state.items())
    casts = tuple((torch.is_autocast_enabled(d), torch.get_autocast_dtype(d)) for d in ("cpu", "cuda"))
    return (str(spec), described, modes, params, casts)


def _static(leaf: Any) -> Any:
    return leaf if leaf is None or isinstance(leaf, bool | int | float | str) else repr(leaf)
