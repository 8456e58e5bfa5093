"""Bytes that are kept from forward to backward; the tests count by it too."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

__all__ = ["kept_bytes"]


def kept_bytes(run: Callable[[], Any], known: Iterable[torch.Tensor]) -> int:
    """Bytes of the storages that `run` has kept for backward, those of the tensors `known` apart."""
    storages: dict[int, tuple[int, Any]] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        storages[storage._cdata] = (storage.nbytes(), storage)
        return tensor

    for tensor in known:
        pack(tensor)
    before = sum(size for size, _ in storages.values())
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run()
    return sum(size for size, _ in storages.values()) - before
