"""Something that is read at each look at a snapshot: how, what it held, and in which words a change is told."""

from __future__ import annotations

import random
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from operator import is_
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

__all__ = ["GENERATORS", "MISSING", "PLAIN", "Found", "Item", "Quick", "random_state_of", "table_item", "ties_item"]


_END = object()


class _Missing:
    def __repr__(self) -> str:
        return "missing"


MISSING, MOVED = _Missing(), _Missing()
GENERATORS = (random.Random, np.random.Generator, np.random.RandomState, torch.Generator)
PLAIN = (int, float, complex, str, bytes, bool, type(None), type(...), torch.dtype, torch.device, torch.Size)


def same_value(old: Any, new: Any) -> bool:
    """Whether two values are the same object, or equal plain values of one type (1, 1.0 and True differ)."""
    if old is new:
        return True
    if type(old) is not type(new):
        return False
    if isinstance(old, float):
        return old.hex() == new.hex()
    if isinstance(old, tuple):
        return tuple.__len__(old) == tuple.__len__(new) and all(
            map(same_value, tuple.__iter__(old), tuple.__iter__(new))
        )
    return isinstance(old, PLAIN) and bool(old == new)


def _words(old: Any, new: Any) -> str:
    if isinstance(old, PLAIN) and isinstance(new, PLAIN):
        return f"was {old!r} and is {new!r}"
    if new is MOVED:
        return "has another place among the others"
    return "is gone" if new is MISSING else "is new" if old is MISSING else "has been replaced or changed"


@dataclass(slots=True)
class Item:
    """Something that is read at each look: how, what it held, and the name of each value.

    Attributes:
        read: gives the values.
        held: the values it gave.
        name: says of the values at a place what they are.
        keyed: the first half of the values are keys, and the others belong to them in any order.
        root: the attribute of a module that this was reached through, if any.
        made: the values are made at each look, so they are compared by value.
        table: the dictionary whose keys and values these are.
        named: the keys that count; None for all. attributes: of objects of which class the keys are the attributes.
    """

    read: Callable[[], Iterable[Any]]
    held: tuple[Any, ...]
    name: Callable[[Any], str]
    keyed: bool = False
    root: str | None = None
    made: bool = False
    table: dict[Any, Any] | None = None
    named: Container[Any] | None = None
    attributes: type | None = None

    def strings(self) -> Iterable[Any]:
        """What it held that may be the name of something, its own attributes' names apart."""
        return self.held[len(self.held) // 2 :] if self.attributes else self.held

    def differences(self) -> Iterator[tuple[str, str]]:
        """What has changed, as (name, how); values that are equal though not the same are taken over."""
        now = tuple(self.read())
        if len(now) == len(self.held) and all(map(is_, now, self.held)):
            return
        pairs = self._pairs(now)
        changed = [
            pair for pair in pairs if not same_value(*pair[1:]) and (self.named is None or pair[0] in self.named)
        ]
        if not changed and self.keyed and self.attributes is None:
            before = self.held[: len(self.held) // 2]  # the order of a dictionary is that in which code goes through it
            changed = [(key, key, MOVED) for i, key in enumerate(now[: len(now) // 2]) if key != before[i]][:1]
        self.held = now if not changed else self.held
        for key, old, new in changed:
            yield self.name(key), _words(old, new)

    def _pairs(self, now: tuple[Any, ...]) -> list[tuple[Any, Any, Any]]:
        if not self.keyed:
            longest = range(max(len(now), len(self.held)))
            old, new = (dict(enumerate(values)) for values in (self.held, now))
            return [(i, old.get(i, MISSING), new.get(i, MISSING)) for i in longest]
        old, new = (dict(zip(v[: len(v) // 2], v[len(v) // 2 :])) for v in (self.held, now))
        return [(key, old.get(key, MISSING), new.get(key, MISSING)) for key in {**old, **new}]


def table_item(table: dict[Any, Any], name: Callable[[Any], str], root: str | None) -> Item:
    """The keys and values of a dictionary, whatever a subclass makes of its methods."""

    def read() -> tuple[Any, ...]:
        return (*dict.__iter__(table), *dict.values(table))

    return Item(read, read(), name, keyed=True, root=root, table=table)


def ties_item(modules: Mapping[nn.Module, str]) -> Item | None:
    """Which names hold one and the same parameter or buffer: a program has one argument for both; None if there are none."""
    places: dict[int, list[tuple[dict[str, Any], str, str]]] = {}
    for module, path in modules.items():
        for table in (module._parameters, module._buffers):
            for name, tensor in table.items():
                if tensor is not None:
                    places.setdefault(id(tensor), []).append((table, name, f"{path}.{name}".strip(".")))
    ties = [(found[0], other) for found in places.values() for other in found[1:]]

    def read() -> list[bool]:
        return [a[0].get(a[1]) is b[0].get(b[1]) for a, b in ties]

    def name_of(place: int) -> str:
        return f"{ties[place][1][2]}, one tensor with {ties[place][0][2]},"

    return Item(read, tuple(read()), name_of) if ties else None


class Quick:
    """The look at a snapshot's items that finds nothing, with no step in Python for each item.

    Tables that were empty are only asked whether they still are; those of a module's hooks nearly always are.
    """

    def __init__(self, items: list[Item]) -> None:
        tables = [item.table for item in items if item.table is not None]
        self.empty = [table for table in tables if not dict.__len__(table)]
        self.tables = [table for table in tables if dict.__len__(table)]
        self.reads = [item.read for item in items if item.table is None and not item.made]
        self.made = [item for item in items if item.made]
        held = [item.held for item in items if item.table is None and not item.made]
        filled = [item.held for item in items if item.table is not None and dict.__len__(item.table)]
        keys, values = ([v[: len(v) // 2] for v in filled], [v[len(v) // 2 :] for v in filled])
        self.held = (*chain.from_iterable((*keys, *values, *held)), _END)

    def unchanged(self) -> bool:
        """Whether everything is the same object, in the same order, as when this was made."""
        if any(map(dict.__len__, self.empty)):
            return False
        now = chain(
            chain.from_iterable(map(dict.__iter__, self.tables)),
            chain.from_iterable(map(dict.values, self.tables)),
            chain.from_iterable([read() for read in self.reads]),
            (_END,),
        )
        return all(map(is_, now, self.held)) and all([tuple(item.read()) == item.held for item in self.made])


class Found(NamedTuple):
    """An object that is not simply watched.

    Attributes:
        kind: "tensor"; "own", a parameter of the model found elsewhere than in its module; "generator" of random numbers;
            "cache", a function with an lru_cache; "unwatched", an object whose state cannot be watched, such as an iterator.
        root: the attribute of a module that it was reached through, if any.
        state: that of a random generator when it was met.
    """

    kind: str
    name: str
    value: Any
    root: str | None
    state: Any


def random_state_of(generator: Any) -> Any:
    """The state of a random generator of torch, numpy or Python."""
    if isinstance(generator, torch.Generator):
        return generator.get_state().tolist()
    if isinstance(generator, random.Random):
        return generator.getstate()
    bits = generator.bit_generator if isinstance(generator, np.random.Generator) else generator._bit_generator
    return repr(bits.state)
