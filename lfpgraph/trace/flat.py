"""A model as a function of flat tensors, whatever its arguments and outputs are made of."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

__all__ = ["FlatModel", "fill_slots", "flatten_output", "original_forward"]


def original_forward(model: nn.Module) -> Callable[..., Any]:
    """The model's own forward, also where lfpgraph has replaced it."""
    forward = model.forward
    return getattr(forward, "original", forward)


class _Record:
    """Where a run notes its outputs; an object of its own, since torch.export undoes what a module sets on itself."""

    out_spec: Any = None
    out_leaves: list[Any] = []


class FlatModel(nn.Module):
    """A model that takes its tensor leaves as positional arguments and returns a flat list of tensors.

    `record.out_spec` and `record.out_leaves` describe the true output after a run (see `flatten_output`).
    """

    def __init__(self, model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        super().__init__()
        self.model = model
        leaves, self.in_spec = pytree.tree_flatten((tuple(args), dict(kwargs)))
        self.leaves = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        self.slots = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        self.record = _Record()

    def forward(self, *tensors: Tensor) -> list[Tensor]:
        leaves = list(self.leaves)
        for slot, tensor in zip(self.slots, tensors):
            leaves[slot] = tensor
        args, kwargs = pytree.tree_unflatten(leaves, self.in_spec)
        output = original_forward(self.model)(*args, **kwargs)
        tensors_out, self.record.out_leaves, self.record.out_spec = flatten_output(output)
        return tensors_out


def flatten_output(output: Any) -> tuple[list[Tensor], list[Any], Any]:
    """The tensors of a model's output, what each leaf is ("tensor", position) or ("value", anything), and the pytree."""
    flat, spec = pytree.tree_flatten(output)
    tensors: list[Tensor] = []
    described: list[Any] = []
    for leaf in flat:
        if isinstance(leaf, Tensor):
            described.append(("tensor", len(tensors)))
            tensors.append(leaf)
        else:
            described.append(("value", _opaque(leaf, tensors)))
    return tensors, described, spec


class _TensorSlot:
    """Stands for a tensor inside an output object that is no pytree, such as a key-value cache."""

    def __init__(self, position: int) -> None:
        self.position = position


def _opaque(value: Any, tensors: list[Tensor]) -> Any:
    """A copy of an arbitrary object with its tensors moved to `tensors` and replaced by slots."""
    if isinstance(value, Tensor):
        tensors.append(value)
        return _TensorSlot(len(tensors) - 1)
    if isinstance(value, list | tuple):
        return type(value)([_opaque(item, tensors) for item in value])
    if isinstance(value, dict):
        return {key: _opaque(item, tensors) for key, item in value.items()}
    if hasattr(value, "__dict__") and not isinstance(value, type | nn.Module) and not callable(value):
        if not any(_holds_tensor(item) for item in vars(value).values()):
            return value
        twin = copy.copy(value)
        twin.__dict__ = {key: _opaque(item, tensors) for key, item in vars(value).items()}
        return twin
    return value


def _holds_tensor(value: Any, depth: int = 0) -> bool:
    if isinstance(value, Tensor):
        return True
    if depth > 4 or isinstance(value, type | nn.Module):
        return False
    if isinstance(value, list | tuple):
        return any(_holds_tensor(item, depth + 1) for item in value)
    if isinstance(value, dict):
        return any(_holds_tensor(item, depth + 1) for item in value.values())
    return hasattr(value, "__dict__") and any(_holds_tensor(item, depth + 1) for item in vars(value).values())


def fill_slots(value: Any, tensors: Sequence[Tensor]) -> Any:
    """Undo `_opaque` with this call's tensors."""
    if isinstance(value, _TensorSlot):
        return tensors[value.position]
    if isinstance(value, list | tuple):
        return type(value)([fill_slots(item, tensors) for item in value])
    if isinstance(value, dict):
        return {key: fill_slots(item, tensors) for key, item in value.items()}
    if hasattr(value, "__dict__") and not isinstance(value, type | nn.Module) and not callable(value):
        twin = copy.copy(value)
        twin.__dict__ = {key: fill_slots(item, tensors) for key, item in vars(value).items()}
        return twin
    return value
