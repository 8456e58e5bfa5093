"""What modules hold besides tensors, put back after a trace: torch.export leaves copies of it behind, or what forward wrote."""

from __future__ import annotations

import contextlib
import operator
from collections import OrderedDict, deque
from collections.abc import Iterator
from typing import Any

from torch import nn

__all__ = ["attributes_kept"]

_OWN = frozenset(vars(nn.Module()))  # what every module holds: tables of parameters, modules and hooks
_CONTAINERS: tuple[Any, ...] = (OrderedDict, dict, list, set, deque)


@contextlib.contextmanager
def attributes_kept(model: nn.Module) -> Iterator[None]:
    """Put back the very lists and dictionaries that modules hold, as they were: torch.export leaves copies of them behind."""
    tables = [(held, dict(held)) for held in map(vars, model.modules())]
    containers: dict[int, tuple[Any, list[Any]]] = {}
    for _, before in tables:
        for name, value in before.items():
            if name not in _OWN:
                _add_containers(value, containers)
    try:
        yield
    finally:
        for table, before in tables:
            table.update(before)
        for container, content in containers.values():
            kind, now = _kind_of(container), _content_of(container)
            if len(now) != len(content) or not all(map(_same, now, content)):
                kind.clear(container)
                (kind.extend if issubclass(kind, list | deque) else kind.update)(container, content)


def _add_containers(value: Any, found: dict[int, tuple[Any, list[Any]]]) -> None:
    """Note the content of each list, dictionary and set inside a value."""
    if id(value) in found or not isinstance(value, (tuple, *_CONTAINERS)):
        return
    content = list(tuple.__iter__(value)) if isinstance(value, tuple) else _content_of(value)
    if not isinstance(value, tuple):
        found[id(value)] = value, content
    for item in content:
        _add_containers(item, found)


def _kind_of(container: Any) -> Any:
    """Whose methods read and write a container as it is: a subclass's may count, or refuse."""
    return next(kind for kind in _CONTAINERS if isinstance(container, kind))


def _content_of(container: Any) -> list[Any]:
    kind = _kind_of(container)
    return list(kind.items(container) if issubclass(kind, dict) else kind.__iter__(container))


def _same(now: Any, before: Any) -> bool:
    pair = isinstance(now, tuple) and isinstance(before, tuple) and len(now) == len(before) == 2
    return all(map(operator.is_, now, before)) if pair else now is before
