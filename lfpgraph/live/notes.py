"""What is noted of a run: of its steps the arguments with the values by number, the modules, the lines of the user's code;
what it finds; and what it computes where no gradients are recorded.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules._functions import BackwardHookFunction
from torch.utils import _pytree as pytree

from ..graph.calls import parts_of

__all__ = [
    "Leaf",
    "NameLeaf",
    "Notes",
    "Ref",
    "Unrecorded",
    "alias_of",
    "as_inputs",
    "as_met",
    "forget_oldest",
    "gives_feedback",
    "hands_on",
    "has_changed",
    "is_alive",
    "is_batched",
    "is_compressed",
    "is_older",
    "is_over",
    "only_if_reached",
    "refs_in",
    "storage_of",
    "tensors_among",
    "tensors_in",
    "told_of_errors",
    "user_line",
    "version_of",
    "with_parts",
]


log = logging.getLogger("lfpgraph")
_MOST = 256  # plans kept


class Ref(int):
    """The number of a value, where a tensor stood among an operation's arguments."""


class Notes(NamedTuple):
    """What is noted of each step of a run that is not expected: its arguments, and where in the model it is."""

    templates: list[Any]
    paths: dict[int, str]
    lines: dict[int, str]


def forget_oldest(kept: dict[Any, Any]) -> None:
    """Keep no more than so many: a model that takes a new way at every step must not fill the memory."""
    if len(kept) > _MOST:
        del kept[next(iter(kept))]


@contextlib.contextmanager
def told_of_errors() -> Iterator[None]:
    """Where a run has ended by an error, which goes on: say why what it made before that gives no feedback, if it does not."""
    try:
        yield
    except Exception as error:
        log.info("what a run made before it ended by an error gives no feedback, only gradients: %s", error)


def refs_in(value: Any) -> Iterator[int]:
    """The numbers of the values in an operation's arguments."""
    if isinstance(value, Ref):
        yield int(value)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from refs_in(item)
    elif isinstance(value, dict):
        yield from refs_in(list(value.values()))


def user_line() -> str:
    """`File "...", line N` of the innermost frame outside torch and lfpgraph, as torch writes it in stack traces."""
    frame = sys._getframe(2)
    while frame is not None:
        file = frame.f_code.co_filename
        if "/torch/" not in file and "/lfpgraph/" not in file and not file.startswith("<"):
            return f'File "{file}", line {frame.f_lineno}, in {frame.f_code.co_name}'
        frame = frame.f_back  # type: ignore[assignment]
    return ""


class Unrecorded:
    """Float tensors that were made of the model's input without being recorded: features of a frozen encoder, say.

    Such a value is a leaf of the recorded run. If it was made of the model's input it may be an activation (`graph.classes`);
    otherwise it is a constant (a table of angles made of positions, or what is made of weights alone). Whether a value that
    it was made of was itself made of the input is seen when the run is planned.
    """

    def __init__(self) -> None:
        self._made: dict[int, tuple[weakref.ref[Tensor], frozenset[int]]] = {}

    def __contains__(self, x: Tensor) -> bool:
        return bool(self.made_of(x))

    def made_of(self, x: Tensor) -> frozenset[int]:
        """The numbers of the values that x was made of and that may be activations; -1 for an input."""
        found = self._made.get(id(x))
        if found is not None and found[0]() is x:
            return found[1]
        return frozenset[int]().union(*(self.made_of(part) for part in parts_of(x) if part is not x))

    def note(self, args: tuple[Any, ...], out: Any, sources_of: Callable[[Tensor], frozenset[int]]) -> None:
        """Note what an operation has made of its arguments.

        Args:
            sources_of: the same as `made_of`, of a float tensor that was not made here.
        """
        floats = [x for x in tensors_among(args, {}) if _is_float(x)]
        sources = frozenset[int]().union(*(self.made_of(x) or sources_of(x) for x in floats))
        for result in pytree.tree_leaves(out) if sources else ():
            if isinstance(result, Tensor) and _is_float(result):
                self._made[id(result)] = weakref.ref(result), sources


def _is_float(x: Tensor) -> bool:
    return x.is_floating_point() or x.is_complex()


def is_compressed(x: Any) -> bool:
    """Whether a value is a sparse tensor of compressed rows or columns, which has no strides and no memory of its own."""
    return getattr(x, "layout", torch.strided) in (
        torch.sparse_csr,
        torch.sparse_csc,
        torch.sparse_bsr,
        torch.sparse_bsc,
    )


class NameLeaf(Protocol):
    """Says of a tensor that no operation made what it is, as (kind, name)."""

    def __call__(self, tensor: Tensor) -> tuple[str, Any]:
        """Its kind and name."""

    def givens(self) -> list[Tensor]:
        """The tensors that the run was given and that autograd follows."""

    def bridges(self, path: str) -> bool:
        """Whether a rule in this module may hand reward on where autograd stops."""

    def unused(self, known: Callable[[Tensor], int | None]) -> Tensor | None:
        """A float tensor that the run was given and that has no number yet."""


@dataclass(slots=True)
class Leaf:
    """A value that the run found; its kind is one of those of `graph.Placeholder`."""

    value: int
    kind: str
    name: Any
    tensor: Tensor


def as_met(x: Tensor, shape: torch.Size) -> Tensor:
    """A leaf in the shape in which the run has met it; without memory, where that has been taken away since."""
    if x.shape != shape:
        x = x.new_empty(shape)
        x.untyped_storage().resize_(0)
    return x


def as_inputs(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """A call's arguments; one of the model's own parameters is as an input another value than as a weight."""
    own = {id(p) for p in model.parameters()}
    named = {name: x.view_as(x) if id(x) in own else x for name, x in kwargs.items()}
    return [x.view_as(x) if id(x) in own else x for x in args], named


def tensors_among(args: Any, kwargs: Any) -> list[Tensor]:
    """The tensors of a call, those in its lists as well."""
    values = [
        x for value in (*args, *kwargs.values()) for x in (value if isinstance(value, list | tuple) else (value,))
    ]
    return [x for x in values if isinstance(x, Tensor)]


def tensors_in(value: Any, depth: int = 0, seen: set[int] | None = None) -> list[Tensor]:
    """The tensors in a value, through containers and the attributes of any objects but modules."""
    seen = set() if seen is None else seen
    if isinstance(value, Tensor):
        return [value]
    if depth > 6 or id(value) in seen or isinstance(value, nn.Module | type | str | bytes):
        return []
    seen.add(id(value))
    if isinstance(value, Mapping):
        return [t for item in list(value.values()) for t in tensors_in(item, depth + 1, seen)]
    if isinstance(value, list | tuple | set):
        return [t for item in value for t in tensors_in(item, depth + 1, seen)]
    held = getattr(value, "__dict__", None)
    return tensors_in(held, depth + 1, seen) if isinstance(held, dict) else []


def with_parts(tensor: Tensor) -> list[Tensor]:
    """A tensor, and where it is made of others (a quantised weight: of whole numbers and scales) these, which operations read."""
    if type(tensor) in (Tensor, nn.Parameter) or not hasattr(tensor, "__tensor_flatten__"):
        return [tensor]
    inner = [getattr(tensor, name) for name in tensor.__tensor_flatten__()[0]]
    return [tensor, *(part for t in inner for part in with_parts(t))]


def alias_of(x: Tensor) -> Tensor:
    """x again, as a result of autograd's; its derivative may be sparse, that of a view may not."""
    found = x[...] if x.layout is torch.strided else x.clone()
    if found.grad_fn is None:  # met inside an operation that is made of others and runs below autograd
        nothing = torch._C.DispatchKeySet(torch._C.DispatchKey.Undefined)
        with torch._C._ForceDispatchKeyGuard(nothing, nothing), torch.enable_grad():
            found = x[...]
    return found


def is_alive(node: Any) -> bool:
    """Whether autograd still has a node. Before torch 2.12, one of a custom Function goes with its outputs, and refuses all."""
    try:
        return not isinstance(node, torch._C._FunctionBase) or node.metadata is not None
    except RuntimeError:
        return False


def storage_of(x: Tensor) -> int:
    """What tells the memory of a tensor from that of others."""
    while torch._C._functorch.is_functorch_wrapped_tensor(x):
        x = torch._C._functorch.get_unwrapped(x)
    return x.untyped_storage()._cdata if x.layout is torch.strided else 0


def only_if_reached(node: Any) -> None:
    """Leave out a custom function's own backward where no signal arrives at all, as where no bridge leads to it."""
    reached, this = [True], weakref.ref(node)

    def before(signals: tuple[Any, ...]) -> None:
        reached[0] = any(s is not None for s in signals)

    def apply(*signals: Any) -> Any:
        node = this()  # which would otherwise hold itself
        return type(node).apply(node, *signals) if reached[0] else (None,) * len(node.next_functions)  # type: ignore[union-attr]

    node.register_prehook(before)
    node.apply = apply  # which torch looks up on the node


def is_batched(args: tuple[Any, ...]) -> bool:
    """Whether an operation is one of many backward passes that run as one (`is_grads_batched`), of which values tell nothing."""
    if torch._C._current_graph_task_id() == -1:
        return False
    return any(map(torch._C._functorch.is_legacy_batchedtensor, tensors_among(args, {})))


def version_of(x: Tensor) -> int:
    """How often a tensor's memory has been written to; of those made for inference torch does not count it."""
    return 0 if x.is_inference() else x._version


def is_over(x: Tensor) -> bool:
    """Whether a tensor is the wrapper of another in a transform of torch.func that has ended."""
    return torch._C._functorch.is_dead_tensor_wrapper(x)  # type: ignore[attr-defined, no-any-return]


def gives_feedback(node: Any) -> bool:
    """Whether an autograd node is that of a traced program."""
    return getattr(getattr(node, "_forward_cls", None), "gives_feedback", False) is True


def hands_on(node: Any) -> bool:
    """Whether an autograd node, that of a module's backward hooks, hands on each signal as it came in."""
    return getattr(node, "_forward_cls", None) is BackwardHookFunction


def is_older(node: Any, started: int) -> bool:
    """Whether an autograd node was made before a run began; nodes of leaves have no time."""
    return not hasattr(node, "variable") and bool(node._sequence_nr() < started)


def has_changed(parameter: Tensor, alias: Tensor) -> bool:
    """Whether a parameter has other memory than when its alias was made (`.data = ...`), or has been frozen since."""
    return not parameter.requires_grad or (parameter.layout is torch.strided and not alias.is_set_to(parameter))
