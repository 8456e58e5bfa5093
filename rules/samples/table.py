"""Sample arguments for every operation in the registry, from which the suite generates its tests."""

from __future__ import annotations

import zlib

import torch
from torch._ops import OpOverload

from . import copies as samples_copies
from . import elementwise as samples_elementwise
from . import indexing as samples_indexing
from . import linear as samples_linear
from . import matrices as samples_matrices
from . import special as samples_special
from . import statistics as samples_statistics
from . import sums as samples_sums
from . import views as samples_views
from .base import TABLE, Maker, Sample

__all__ = [
    "Sample",
    "samples",
    "samples_copies",
    "samples_elementwise",
    "samples_indexing",
    "samples_linear",
    "samples_matrices",
    "samples_special",
    "samples_statistics",
    "samples_sums",
    "samples_views",
]


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
