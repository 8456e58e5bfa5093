"""Training data: which rows each process gets in which order, and a position in them that can be taken up again."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler

from ..errors import DataError, LfpGraphError, one_line
from ..optional import need
from ..randomness import random_state, set_random_state

__all__ = ["Batches", "call_of", "rows_of"]


class _Rows(Sampler[list[int]]):
    """Rows of this process's part of every batch; the order depends on seed and epoch alone."""

    def __init__(self, count: int, size: int, shuffle: bool, seed: int, rank: int, world: int) -> None:
        self.count, self.size, self.shuffle, self.seed, self.rank, self.world = count, size, shuffle, seed, rank, world
        self.epoch = self.skip = 0

    def __len__(self) -> int:
        return -(-self.count // self.size) - self.skip

    def __iter__(self) -> Iterator[list[int]]:
        order = torch.arange(self.count)
        if self.shuffle:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
            order = torch.randperm(self.count, generator=generator)
        for rows in order.split(self.size)[self.skip :]:
            start, end = (len(rows) * rank // self.world for rank in (self.rank, self.rank + 1))
            yield rows[start:end].tolist() or rows[:1].tolist()  # a process without rows takes one; see `weight`

    def weight(self, batch: int) -> int:
        """How many of a batch's rows on this process count: 0 where it has one only to take part in the step."""
        rows = min(self.size, self.count - batch * self.size)
        return rows * (self.rank + 1) // self.world - rows * self.rank // self.world


class _Pair(Dataset[Any]):
    """Inputs and labels; a batch is taken at once, not row by row."""

    def __init__(self, inputs: Tensor, labels: Tensor) -> None:
        self.inputs, self.labels = inputs, labels

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
        return self.inputs[row], self.labels[row]

    def __getitems__(self, rows: list[int]) -> tuple[Tensor, Tensor]:
        return self.inputs[rows], self.labels[rows]


def _length(data: Sized, what: str) -> int:
    try:
        return len(data)
    except Exception as error:  # of somebody else's __len__
        raise DataError(f"{what}: its length cannot be had: {type(error).__name__}: {one_line(error)}") from error


def _told(data: Any) -> str:
    name = type(data).__name__
    return f"{name} of {', '.join(type(part).__name__ for part in data[:4])}" if isinstance(data, tuple) else name


def _as_is(batch: Any) -> Any:
    return batch


class Batches:
    """The batches of a dataset or a DataLoader, from any position of any epoch on.

    A dataset's rows are drawn in an order that depends on the seed and the epoch alone, and each batch is split among
    the processes, so that any number of processes does what one does. A DataLoader keeps its own order; with several
    processes accelerate splits its batches.
    """

    def __init__(
        self,
        data: Any,
        what: str,
        *,
        batch_size: int,
        shuffle: bool,
        seed: int,
        workers: int,
        collate: Callable[..., Any] | None,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.what = what
        self.rows: _Rows | None = None
        if isinstance(data, tuple | list) and len(data) == 2 and all(isinstance(part, Tensor) for part in data):
            if len(data[0]) != len(data[1]):
                raise DataError(f"{what}: {len(data[0])} inputs and {len(data[1])} labels; they must be equally many")
            data, collate = _Pair(*data), collate or _as_is
        if isinstance(data, str | bytes) or (isinstance(data, tuple) and any(hasattr(part, "shape") for part in data)):
            raise DataError(f"{what} must be a Dataset, a DataLoader or a pair of tensors, not {_told(data)}")
        if isinstance(data, DataLoader):
            self.loader: Iterable[Any] = data
            if world > 1:
                prepare = need("accelerate.data_loader", "trainer", "lfpgraph.Trainer").prepare_data_loader
                self.loader = prepare(data, num_processes=world, process_index=rank, split_batches=True)
        elif isinstance(data, IterableDataset):
            if world > 1:
                raise DataError(f"{what}: give an IterableDataset to several processes as a DataLoader of your own")
            self.loader = DataLoader(data, batch_size, num_workers=workers, collate_fn=collate)
        elif hasattr(data, "__getitem__") and isinstance(data, Sized):
            if count := _length(data, what):
                self.rows = _Rows(count, batch_size, shuffle, seed, rank, world)
                dataset: Dataset[Any] = data  # type: ignore[assignment]
                self.loader = DataLoader(dataset, batch_sampler=self.rows, num_workers=workers, collate_fn=collate)
            else:
                self.loader = []
        else:
            raise DataError(f"{what} must be a Dataset, a DataLoader or a pair of tensors, not {_told(data)}")
        if self.count == 0:
            raise DataError(f"{what}: there is nothing in it, not one batch")

    @property
    def count(self) -> int | None:
        """Batches of an epoch, if that is known."""
        try:
            return len(self.loader) if self.rows is None else len(self.rows) + self.rows.skip  # type: ignore[arg-type]
        except TypeError:
            return None

    @property
    def facts(self) -> dict[str, Any]:
        """What a position in the data depends on."""
        rows = getattr(self.loader, "dataset", None)
        counted = len(rows) if isinstance(rows, Sized) else None
        size = self.rows.size if self.rows is not None else getattr(self.loader, "batch_size", None)
        return {"batch_size": size, "rows": counted, "batches": self.count}

    def start(self, epoch: int, skip: int = 0, state: Any = None) -> tuple[Iterator[tuple[Any, int]], Any]:
        """Batches of an epoch, each with the number of its rows that count; and the `state` that starts the epoch again.

        Args:
            skip: batches that are done already. state: as returned for this epoch, if it was begun before.
        """
        if state is not None:
            self._set_state(state)
        state = self.state()
        if self.rows is not None:
            self.rows.epoch, self.rows.skip = epoch, skip
        batches = iter(self.loader)
        if self.rows is None:
            for done in range(skip):  # now, as it draws from the generators
                if next(batches, None) is None:
                    raise DataError(f"{self.what} has ended after {done} batches, of which {skip} were done already")
        return self._counted(batches, skip), state

    def _counted(self, batches: Iterator[Any], skip: int) -> Iterator[tuple[Any, int]]:
        for i in itertools.count(skip):
            try:
                batch = next(batches)
            except StopIteration:
                return
            except LfpGraphError:
                raise
            except Exception as error:  # of the dataset's own, or rows that do not go together
                raise DataError(
                    f"{self.what}: batch {i + 1} of the epoch cannot be made: {type(error).__name__}: {one_line(error)}"
                ) from error
            yield batch, rows_of(batch) if self.rows is None else self.rows.weight(i)

    def _generators(self) -> list[torch.Generator]:
        found: list[torch.Generator] = []
        holders: list[Any] = [self.loader]
        for holder in holders:
            for name in ("generator", "synchronized_generator"):
                generator = getattr(holder, name, None)
                if isinstance(generator, torch.Generator) and generator not in found:
                    found.append(generator)
            holders += [h for h in (getattr(holder, n, None) for n in ("batch_sampler", "sampler")) if h is not None]
        return found

    def state(self) -> Any:
        """The states of all random generators, the loader's own as well."""
        return {"random": random_state(), "generators": [g.get_state() for g in self._generators()]}

    def _set_state(self, state: Any) -> None:
        set_random_state(state["random"])
        for generator, saved in zip(self._generators(), state["generators"]):
            generator.set_state(saved)


def rows_of(batch: Any) -> int:
    """Length of the first tensor in a batch, its number of samples; 1 without a tensor."""
    tensors = (leaf for leaf in torch.utils._pytree.tree_leaves(_plain(batch)) if isinstance(leaf, Tensor))
    first = next(tensors, None)
    return 1 if first is None or first.dim() == 0 else first.shape[0]


def _plain(batch: Any) -> Any:
    return dict(batch) if isinstance(batch, Mapping) else batch


def call_of(batch: Any, labels: str | None) -> tuple[tuple[Any, ...], dict[str, Any], Any]:
    """A batch as positional and keyword arguments of the model, and the labels.

    Args:
        batch: a mapping, or a sequence whose last entry is the labels.
        labels: the key of the labels in a mapping; None leaves them to the model.

    Raises:
        DataError: neither, or no such key.
    """
    if isinstance(batch, Mapping):
        kwargs = dict(batch)
        if labels is None:
            return (), kwargs, None
        if labels not in kwargs:
            raise DataError(f"the batch has no {labels!r}; it has {', '.join(map(str, kwargs))}; name them by labels=")
        found = kwargs.pop(labels)
        return (), kwargs, found
    if isinstance(batch, list | tuple) and len(batch) > 1:
        return tuple(batch[:-1]), {}, batch[-1]
    raise DataError(
        f"a batch must be (inputs, ..., labels) or a mapping, not {type(batch).__name__}; for others give the Trainer a "
        "function step=(model, batch) that returns the loss"
    )
