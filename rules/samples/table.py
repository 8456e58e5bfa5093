"""The samples of an operation, drawn from the tables of the files beside this one."""

from __future__ import annotations

import zlib

import torch
from torch._ops import OpOverload

from . import copies, elementwise, indexing, linear, matrices, recurrent, special, statistics, sums, views  # noqa: F401  (fill TABLE)
from .base import TABLE, Maker, Sample

__all__ = ["Sample", "samples"]


def samples(op: OpOverload, dtype: torch.dtype = torch.float64) -> list[Sample]:
    """The samples of an operation, the same at every call; none if its table row is missing.

    Each row gives one; the first also an empty batch and non-contiguous tensors, where torch takes them.
    """
    found: list[Sample] = []
    for i, row in enumerate(TABLE.get(op, [])):
        seed = zlib.crc32(f"{op} {row.name}".encode())
        found.append(row.sample("", Maker(dtype, 2, seed)))
        if i == 0 and row.empty:
            found.append(row.sample("empty_batch", Maker(dtype, 0, seed)))
        if i == 0 and row.strided:
            found.append(row.sample("noncontiguous", Maker(dtype, 2, seed, strided=True)))
    return found
