"""A call taken apart: the tensors among its arguments and outputs, whatever objects they stand in, and put together again."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from ..errors import LfpGraphError, TraceError

__all__ = [
    "alias_among",
    "are_tensors",
    "arguments_of",
    "check_module",
    "fill_slots",
    "flatten_input",
    "flatten_output",
    "input_tensors",
    "parts_of",
    "state_tensor",
    "state_tensors",
]


def check_module(model: Any, function: str, error: type[LfpGraphError]) -> None:
    """Raise `error` unless the model that a function was given is an `nn.Module`."""
    if not isinstance(model, nn.Module):
        raise error(f"{function} takes an nn.Module, not {type(model).__name__}")


def arguments_of(
    inputs: Any, error: type[LfpGraphError], what: str = "inputs"
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments of a call, from a tensor, a tuple or a mapping; `error` is raised for anything else."""
    if isinstance(inputs, Tensor):
        return (inputs,), {}
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    if isinstance(inputs, Sequence) and not isinstance(inputs, str | bytes):
        return tuple(inputs), {}
    raise error(f"{what} must be a tensor, a tuple or a dict, not {type(inputs).__name__}")


def flatten_input(args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[list[Any], Any]:
    """The leaves of a call's arguments and their pytree; a dataclass that holds tensors counts as a container."""
    if are_tensors(args, kwargs):
        return [*args, *kwargs.values()], _spec_of_tensors(len(args), tuple(kwargs))
    leaves, spec = pytree.tree_flatten((tuple(args), dict(kwargs)))
    unknown = {type(leaf) for leaf in leaves if _is_container(leaf)}
    if not unknown:
        return leaves, spec
    for cls in unknown:
        pytree.register_dataclass(cls)
    return flatten_input(args, kwargs)


def are_tensors(args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether all arguments of a call are plain tensors."""
    return all(type(x) is Tensor for x in args) and all(type(x) is Tensor for x in kwargs.values())


@functools.lru_cache(256)
def _spec_of_tensors(count: int, names: tuple[str, ...]) -> Any:
    return pytree.tree_structure(((0,) * count, dict.fromkeys(names, 0)))


def _is_container(leaf: Any) -> bool:
    """Whether a leaf is an object of a dataclass with tensors among its fields, and can be made of its fields."""
    if not dataclasses.is_dataclass(leaf) or isinstance(leaf, type) or type(leaf) in pytree.SUPPORTED_NODES:
        return False
    fields = dataclasses.fields(leaf)
    return all(f.init for f in fields) and any(_holds_tensor(getattr(leaf, f.name)) for f in fields)


def input_tensors(args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """The tensors among a call's arguments, in order."""
    return [leaf for leaf in flatten_input(args, kwargs)[0] if isinstance(leaf, Tensor)]


def state_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by dotted name, a tied one under each of its names."""
    return dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))


def state_tensor(state: Mapping[str, Tensor], name: str) -> Tensor:
    """A parameter or buffer by the name that a trace has for it.

    torch.export takes a weight apart that is made of other tensors (a quantised one), and names these
    `parametrizations.weight.original0` and so on.

    Raises:
        TraceError: there is no such tensor.
    """
    if name in state:
        return state[name]
    module, _, rest = name.rpartition("parametrizations.")
    own, _, place = rest.rpartition(".original")
    parts = parts_of(state[module + own]) if module + own in state and place.isdecimal() else []
    if not place.isdecimal() or int(place) >= len(parts):
        raise TraceError(f"the trace has a tensor {name}, which the model has not under that name")
    return parts[int(place)]


def parts_of(tensor: Any) -> list[Tensor]:
    """The plain tensors that a tensor is made of: several of a quantised one, one process's share of a distributed one."""
    if not is_traceable_wrapper_subclass(tensor):
        return [tensor]
    return [part for name in tensor.__tensor_flatten__()[0] for part in parts_of(getattr(tensor, name))]


def alias_among(tensor: Tensor, others: Iterable[Any]) -> Tensor | None:
    """Of some tensors that autograd does not follow, the one of which this one is an alias, made without an operation.

    `x.as_subclass(Image)` is such a one. `x.data` is not: it is meant to be apart.
    """
    if not _is_plain(tensor):
        return None
    with torch._C.DisableTorchFunctionSubclass():
        base = tensor._base if tensor._is_view() else None
        likely = (
            x for x in others if base is not None or type(x) is not type(tensor)
        )  # few, and asked first: quick to say
        return next((x for x in likely if _is_plain(x) and _is_same(x, tensor, base)), None)


def _is_plain(x: Any) -> bool:
    """Whether a value is a tensor with memory of its own that is neither trained nor a parameter (whose `data` is a tensor)."""
    if not isinstance(x, Tensor) or isinstance(x, nn.Parameter) or x.requires_grad:
        return False
    return x.layout is torch.strided and type(x).__torch_dispatch__ is Tensor.__torch_dispatch__


def _is_same(x: Tensor, alias: Tensor, base: Tensor | None) -> bool:
    viewed = base is not None and (x is base or x._base is base)
    return (viewed or type(x) is not type(alias)) and x.is_set_to(alias)


def flatten_output(output: Any) -> tuple[list[Tensor], list[Any], Any]:
    """The tensors of a model's output, what each leaf is ("tensor", position) or ("value", anything), and the pytree.

    A number that a tracer does not know yet (a size, or read from a tensor) becomes a tensor, to be read again.
    """
    if type(output) is Tensor:
        return [output], [("tensor", 0)], _ONE
    flat, spec = pytree.tree_flatten(output)
    tensors: list[Tensor] = []
    described: list[Any] = []
    twins: dict[int, Any] = {}
    for leaf in flat:
        if isinstance(leaf, Tensor):
            described.append(("tensor", len(tensors)))
            tensors.append(leaf)
        else:
            described.append(("value", _opaque(leaf, tensors, twins)))
    return tensors, described, spec


_ONE = pytree.tree_structure(0)


class _TensorSlot:
    """Stands for a tensor inside an output object that is no pytree, such as a key-value cache; or for its number."""

    def __init__(self, position: int, number: bool = False) -> None:
        self.position = position
        self.number = number


_SYMBOLS = {torch.SymInt: torch.int64, torch.SymFloat: torch.float64, torch.SymBool: torch.bool}


def _opaque(value: Any, tensors: list[Tensor], twins: dict[int, Any]) -> Any:
    """A copy of an arbitrary object with its tensors moved to `tensors` and replaced by slots.

    `twins` are the copies made so far, by identity: objects may hold each other, as a tree's nodes do.
    """
    if isinstance(value, Tensor):
        tensors.append(value)
        return _TensorSlot(len(tensors) - 1)
    if type(value) in _SYMBOLS:
        tensors.append(torch.scalar_tensor(value, dtype=_SYMBOLS[type(value)]))
        return _TensorSlot(len(tensors) - 1, number=True)
    if isinstance(value, list | tuple | dict):
        return _container_like(value, lambda item: _opaque(item, tensors, twins))
    if id(value) in twins:
        return twins[id(value)]
    if hasattr(value, "__dict__") and not isinstance(value, type | nn.Module) and not callable(value):
        if not any(_holds_tensor(item) for item in vars(value).values()):
            return value
        return _twin(value, twins, lambda item: _opaque(item, tensors, twins))
    return value


def _container_like(value: Any, change: Callable[[Any], Any]) -> Any:
    """A dictionary, list or tuple of the same class with other content, and with other attributes where it has some.

    Of a class of the user's, `__new__`, `__init__` and `__setitem__` may do more, or refuse.
    """
    kind: Any = type(value)
    items = {k: change(x) for k, x in value.items()} if isinstance(value, dict) else [change(x) for x in value]
    if kind in (dict, list, tuple):
        return items if kind is not tuple else tuple(items)
    if isinstance(value, tuple):
        try:
            twin = tuple.__new__(kind, items)
        except TypeError:  # of C's, such as what `torch.max` returns
            twin = kind(items)
    elif isinstance(value, list):
        twin = copy.copy(value)
        list.__setitem__(twin, slice(None), items)
    else:
        ordered = isinstance(value, OrderedDict)
        twin = OrderedDict.__new__(kind) if ordered else copy.copy(value)
        for key, item in items.items():  # type: ignore[union-attr]
            (OrderedDict.__setitem__ if ordered else dict.__setitem__)(twin, key, item)
    for name, item in getattr(value, "__dict__", {}).items():
        object.__setattr__(twin, name, change(item))
    return twin


def _twin(value: Any, twins: dict[int, Any], change: Callable[[Any], Any]) -> Any:
    """A copy of an object with other attributes; of frozen ones too, and of namespaces, whose dict may not be replaced."""
    twin = twins[id(value)] = copy.copy(value)
    state = {key: change(item) for key, item in vars(value).items()}
    try:
        object.__setattr__(twin, "__dict__", state)
    except AttributeError:
        vars(twin).update(state)
    return twin


def _holds_tensor(value: Any, depth: int = 0) -> bool:
    """Whether there is a tensor in an object, or what stands for one."""
    if isinstance(value, Tensor | _TensorSlot) or type(value) in _SYMBOLS:
        return True
    if depth > 4 or isinstance(value, type | nn.Module):
        return False
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    if any(_holds_tensor(item, depth + 1) for item in items):
        return True
    return hasattr(value, "__dict__") and any(_holds_tensor(item, depth + 1) for item in vars(value).values())


def fill_slots(value: Any, tensors: Sequence[Tensor], twins: dict[int, Any] | None = None) -> Any:
    """Undo `_opaque` with this call's tensors; `twins` are the copies made so far."""
    twins = {} if twins is None else twins
    if isinstance(value, _TensorSlot):
        tensor = tensors[value.position]
        return tensor.item() if value.number else tensor
    if id(value) in twins:
        return twins[id(value)]
    if not _holds_tensor(value):
        return value
    if isinstance(value, list | tuple | dict):
        return _container_like(value, lambda item: fill_slots(item, tensors, twins))
    return _twin(value, twins, lambda item: fill_slots(item, tensors, twins))
