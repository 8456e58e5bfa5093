"""Who else holds a signal that a hook is given."""

from __future__ import annotations

import functools
import sys
from typing import Any

import torch
from torch import Tensor

from ..bridges import LARGE

__all__ = ["owned"]


def owned(signals: tuple[Any, ...], i: int) -> bool:
    """Whether a large signal that a hook is given is in nobody else's hands, so that it may be written over.

    Autograd hands one tensor to several nodes, users keep signals, and others hold views of them. All that shows in how
    often a tensor, its memory, and what it is a view of are referred to; compared with signals known to be new.
    """
    return signals[i].numel() >= LARGE and _references(signals, i) in _references_of_new()


def _references(signals: tuple[Any, ...], i: int) -> Any:
    s: Any = signals[i]
    storage = s.untyped_storage()
    if type(s) is not Tensor or s.numel() * s.element_size() != storage.nbytes():
        return None
    base: Any = s._base
    of_base = None if base is None else (base._use_count(), sys.getrefcount(base))
    return s._use_count(), sys.getrefcount(s), torch._C._storage_Use_Count(storage._cdata), of_base  # type: ignore[attr-defined]


@functools.cache
def _references_of_new() -> list[Any]:
    found: list[Any] = []
    with torch.enable_grad():
        x = torch.zeros(2, 3, requires_grad=True, device="cpu")
        for y in (x * 2, (x * 2).t()):
            node = y.grad_fn if y._base is None else y.grad_fn.next_functions[0][0]  # type: ignore[union-attr]
            node.register_prehook(lambda signals: found.append(_references(signals, 0)))  # type: ignore[union-attr]
            torch.autograd.grad(y.square().sum(), x)
    return found
