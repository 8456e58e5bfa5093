"""Inputs and labels for any model: rows of tensors that are put into batches here, or batches that stay as they are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader

from ..errors import InputError

__all__ = ["IGNORED", "Batch", "Examples", "held_back"]

Batch = tuple[Any, Tensor]  # what the model is given (a tensor, a tuple or a dict), and labels
IGNORED = -100  # the label of a row that does not count, as in torch's cross_entropy


@dataclass(frozen=True)
class Examples:
    """What is learnt from, or tested on.

    Attributes:
        whole: batches, each of inputs and labels. A single one holds rows, which may be put together anew, if `rows`.
    """

    whole: tuple[Batch, ...]
    rows: bool

    @classmethod
    def of(cls, data: Any, what: str) -> Examples:
        """Examples of a pair (inputs, labels), or of a DataLoader of such pairs, whose batches then stay as they are.

        Raises:
            InputError: neither; nothing in it; inputs of a pair whose rows are not as many as the labels.
        """
        if isinstance(data, Examples):
            return data
        given = list(data) if isinstance(data, DataLoader) else [data]
        batches = [_batch(batch, what) for batch in given]
        if not batches:
            raise InputError(f"{what}: there is nothing in it")
        if isinstance(data, DataLoader):
            return cls(tuple(batches), rows=False)
        inputs, labels = batches[0]
        sizes = {len(x) if x.dim() else 0 for x in pytree.tree_leaves(inputs) if isinstance(x, Tensor)}
        if sizes != {len(labels)} or not len(labels):
            raise InputError(
                f"{what}: inputs and labels must be equally many and not none: {sorted(sizes)} and {len(labels)}. What belongs "
                "together as a whole (a graph and its edges) goes into torch.utils.data.DataLoader([(inputs, labels)], "
                f"batch_size=None); label {IGNORED} marks rows that do not count"
            )
        return cls(tuple(batches), rows=True)

    def __len__(self) -> int:
        """How many rows, or whole batches."""
        return len(self.whole[0][1]) if self.rows else len(self.whole)

    @property
    def has_classes(self) -> bool:
        """Whether the labels are numbers of classes."""
        return not any(y.is_floating_point() or y.is_complex() or y.dtype == torch.bool for _, y in self.whole)

    def batches(self, seed: int, size: int) -> Iterator[Batch]:
        """Batches without end, the same for the same seed."""
        generator = torch.Generator().manual_seed(seed)
        while True:
            order = torch.randperm(len(self), generator=generator)
            if self.rows:
                yield from (_rows(self.whole[0], part) for part in order.split(size))
            else:
                yield from (self.whole[i] for i in order.tolist())

    def parts(self, size: int) -> Iterator[Batch]:
        """Everything once, in order."""
        if not self.rows:
            yield from self.whole
            return
        for rows in torch.arange(len(self)).split(size):
            yield _rows(self.whole[0], rows)

    def held_back(self, share: float = 0.25) -> tuple[Examples, Examples]:
        """In two: what is still trained on, and the validation part. Of a single whole batch labels are held back.

        Raises:
            InputError: nothing would be left of one of the two.
        """
        single = not self.rows and len(self) == 1
        inputs, labels = self.whole[0]
        if single and not self.has_classes:
            raise InputError("one batch, with numbers as labels: no rate can be chosen on a part of it, give one rate")
        places = (labels != IGNORED).nonzero() if single else torch.arange(len(self))
        order = torch.randperm(len(places), generator=torch.Generator().manual_seed(1))
        count = round(len(places) * share)
        validation, rest = order[:count], order[count:]
        if not len(validation) or not len(rest):
            raise InputError(f"{len(places)} samples leave none to choose a rate on: give one rate")
        if single:
            chosen = (places[rest], places[validation])
            kept = [torch.full_like(labels, IGNORED).index_put(tuple(p.T), labels[tuple(p.T)]) for p in chosen]
            return tuple(Examples(((inputs, y),), False) for y in kept)  # type: ignore[return-value]
        if self.rows:
            return tuple(Examples((_rows(self.whole[0], part),), True) for part in (rest, validation))  # type: ignore[return-value]
        return tuple(Examples(tuple(self.whole[i] for i in p.tolist()), False) for p in (rest, validation))  # type: ignore[return-value]


def held_back(data: tuple[Tensor, Tensor], share: float = 0.25) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """A training set of tensors in two, as `Examples.held_back`. The split is the same at every call."""
    rest, validation = Examples((data,), rows=True).held_back(share)
    return rest.whole[0], validation.whole[0]


def _batch(batch: Any, what: str) -> Batch:
    if not isinstance(batch, tuple | list) or len(batch) != 2 or not isinstance(batch[1], Tensor):
        raise InputError(
            f"{what} must be a pair (inputs, labels) or a DataLoader of such pairs, not {type(batch).__name__}"
        )
    inputs = dict(batch[0]) if isinstance(batch[0], Mapping) else batch[0]
    return (tuple(inputs) if isinstance(inputs, list) else inputs), batch[1]


def _rows(batch: Batch, rows: Tensor) -> Batch:
    inputs, labels = batch
    return pytree.tree_map(lambda x: x[rows] if isinstance(x, Tensor) else x, inputs), labels[rows]
