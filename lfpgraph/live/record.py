"""One run of a model, as the recorder saw it: values by number, and the operations that made them.

A value that autograd follows is known by its gradient edge (the autograd node that made it, and which of its results it
is), so what is written in place, or through a view, is a new value as it is for autograd. Other values are known by their
tensor. Nothing here keeps a model's own tensors alive after the run: `Record.close` lets go of all but detached copies.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from .bridge import bridge
from .interception import paused
from .operations import OWN_BACKWARD, OWN_VIEW, SIZE, STATIC, TENSOR, TENSORS, OpInfo, info_of

__all__ = ["Leaf", "Record", "Ref"]

_MOST = 100_000  # autograd nodes looked through to find where an unknown value comes from


class Ref(int):
    """The number of a value, where a tensor stood among an operation's arguments."""


@dataclass
class Leaf:
    """A value that the run found: a parameter, a buffer, an input, or another tensor ("constant")."""

    value: int
    kind: str
    name: Any
    tensor: Tensor


class Record:
    """A run while it is recorded; what `interception.Recorder` asks for.

    Args:
        name_leaf: says of a tensor that no operation made what it is, as (kind, name).
        expected: `keeps` (steps whose results are needed) and `templates` (steps whose arguments are) of the run that
            this one is likely to repeat, by the steps' keys; None to keep everything.
    """

    def __init__(self, name_leaf: Callable[[Tensor], tuple[str, Any]], expected: Any = None) -> None:
        self.name_leaf, self.expected = name_leaf, expected
        self.keys: list[Any] = []  # of each step: the operation, its arguments, what came out; but no sizes
        self.steps: list[tuple[OpOverload, tuple[int, ...]]] = []
        self.templates: list[Any] = []
        self.paths: dict[int, str] = {}
        self.lines: dict[int, str] = {}
        self.diverged = 0  # the first step that was not as expected
        self.path = ""
        self.shapes: list[torch.Size] = []
        self.dtypes: list[torch.dtype] = []
        self.devices: list[torch.device] = []
        self.follows: list[bool] = []  # whether autograd follows the value
        self.kept: list[Tensor | None] = []
        self.edges: dict[tuple[Any, int], int] = {}
        self.edge_of: dict[int, tuple[Any, int]] = {}
        self.leaves: list[Leaf] = []
        self.own: list[str] = []  # custom backward functions that were met
        self._ids: dict[int, int] = {}
        self._alive: list[Any] = []
        self._aliases: dict[int, Tensor] = {}
        self._sources: dict[int, frozenset[int]] = {}  # of values autograd does not follow: the followed ones before them
        self._source_tensors: dict[int, Tensor] = {}
        self._stored: dict[int, list[int]] = {}  # by storage: values kept that lie there
        self.own_reads: list[tuple[int, tuple[Any, int]]] = []  # parameters that custom functions read themselves

    # What the recorder is called for

    def run(self, op: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an operation and note it."""
        if not torch.is_grad_enabled() or torch._C._functorch.peek_interpreter_stack() is not None:
            return op._op(*args, **kwargs)
        info = info_of(op)
        if info.open is not None:
            return info.open(*args, **kwargs)
        ins: list[int] = []
        key: list[Any] = [op]
        given = self._read(args, info.kinds, ins, key)
        if kwargs:
            key.append(tuple(kwargs))
            kinds = tuple(info.kwarg_kinds.get(name, STATIC) for name in kwargs)
            named = dict(zip(kwargs, self._read(tuple(kwargs.values()), kinds, ins, key)))
        else:
            named = kwargs
        if info.writes and self._stored:
            self._save_before_write(args)
        out = op._op(*given, **named)
        return self._note(info, key, ins, args, kwargs, out)

    def _read(self, args: tuple[Any, ...], kinds: Iterable[int], ins: list[int], key: list[Any]) -> tuple[Any, ...]:
        """The arguments to run with: each parameter by the one alias that this run takes it through."""
        given: list[Any] | None = None
        for i, (value, kind) in enumerate(zip(args, kinds)):
            if kind == TENSOR and isinstance(value, Tensor):
                number = self.number(value)
                ins.append(number)
                key.append(number)
                alias = self._aliases.get(number)
                if alias is not None:
                    given = list(args) if given is None else given
                    given[i] = alias
            elif kind == TENSORS and isinstance(value, list | tuple):
                numbers = [self.number(x) if isinstance(x, Tensor) else None for x in value]
                ins.extend(n for n in numbers if n is not None)
                key.append(tuple(numbers))
                if any(n in self._aliases for n in numbers):
                    given = list(args) if given is None else given
                    given[i] = [self._aliases.get(n, x) if n is not None else x for n, x in zip(numbers, value)]
            elif kind == SIZE:
                key.append(value is None)
            else:
                key.append(value if type(value) is not list else tuple(value))
        return args if given is None else tuple(given)

    def _note(self, info: OpInfo, key: list[Any], ins: list[int], args: Any, kwargs: Any, out: Any) -> Any:
        if isinstance(out, Tensor):
            if not info.writes and self._is_known(out):
                return out  # what came in, as `x.contiguous()` may be
            results: list[Any] = [out]
        elif isinstance(out, list | tuple) and any(isinstance(x, Tensor) for x in out):
            results = list(out)
        else:
            return out
        if not info.writes and self._bridge(info, ins, results, args):
            out = results[0] if isinstance(out, Tensor) else type(out)(results)
        step = len(self.steps)
        outs = tuple(self._new(x) if isinstance(x, Tensor) else -1 for x in results)
        key.extend((self._look(n), self.shapes[ins[0]] == self.shapes[n] if ins else None) for n in outs if n >= 0)
        if len(ins) > 1:
            first = self.shapes[ins[0]]
            key.append(tuple(self.shapes[n] == first for n in ins[1:]))
        self.keys.append(tuple(key))
        self.steps.append((info.node, outs))
        self._trace_sources(info, ins, outs, args)
        self._check_expected(step, self.keys[-1])
        every = self.expected is None
        self.templates.append(self._template(args, kwargs) if every or step in self.expected.templates else None)
        if every or step in self.expected.keeps:
            for number, x in zip(outs, results):
                if number >= 0:
                    self._keep(number, x)
        return out

    def _check_expected(self, step: int, key: Any) -> None:
        """Whether the run still repeats the one it is likely to repeat; from a step that does not, keep everything."""
        if self.expected is not None and not self.expected.repeats(step, key):
            self.expected = None
            self.diverged = step
        if self.expected is None:
            self.paths[step] = self.path
            self.lines[step] = _user_line()

    # Numbers of values

    def number(self, x: Tensor) -> int:
        """The number of a tensor's present value; a new leaf where the run has not met it."""
        if x.requires_grad and (node := x.grad_fn) is not None:
            edge = (node, x.output_nr)
            found = self.edges.get(edge)
            return self._unknown(x, edge) if found is None else found
        found = self._ids.get(id(x))
        return self._leaf(x) if found is None else found

    def known(self, x: Tensor) -> int | None:
        """The number of a tensor's present value if the run has met it."""
        if x.requires_grad and x.grad_fn is not None:
            return self.edges.get((x.grad_fn, x.output_nr))
        return self._ids.get(id(x))

    def _is_known(self, x: Tensor) -> bool:
        return self.known(x) is not None

    def _new(self, x: Tensor) -> int:
        number = len(self.shapes)
        self.shapes.append(x.shape)
        self.dtypes.append(x.dtype)
        self.devices.append(x.device)
        follows = x.requires_grad
        self.follows.append(follows)
        self.kept.append(None)
        if follows and (node := x.grad_fn) is not None:
            self.edges[node, x.output_nr] = number
            self.edge_of[number] = (node, x.output_nr)
        else:
            self._ids[id(x)] = number
            self._alive.append(x)  # its identity must not pass on to another tensor
        return number

    def _leaf(self, x: Tensor) -> int:
        kind, name = self.name_leaf(x)
        number = self._new(x)
        self.leaves.append(Leaf(number, kind, name, x))
        self.kept[number] = x.detach()
        if kind == "parameter" and x.requires_grad:
            alias = x.view_as(x)
            self._aliases[number] = alias
            self.edges[alias.grad_fn, 0] = number
            self.edge_of[number] = (alias.grad_fn, 0)
        return number

    def _unknown(self, x: Tensor, edge: tuple[Any, int]) -> int:
        """A value that no recorded operation made: by a custom function, through a view, or outside of the run."""
        found: list[int] = []
        names: set[str] = set()
        seen: set[Any] = set()
        stack = [edge[0]]
        while stack and len(seen) < _MOST:
            node = stack.pop()
            if node in seen:
                continue
            seen.add(node)
            names.add(node.name())
            for slot, (source, index) in enumerate(node.next_functions):
                if source is None:
                    continue
                number = self.edges.get((source, index))
                if number is None and hasattr(source, "variable"):
                    number = self._own_leaf(source.variable, node, slot)
                if number is None:
                    stack.append(source)
                elif number not in found:
                    found.append(number)
        self._alive.append(seen)
        if not found:
            return self._leaf(x)
        is_view = all(name.startswith(("CopySlices", "AsStrided")) or "View" in name for name in names)
        op = OWN_VIEW if is_view else OWN_BACKWARD
        if not is_view:
            self.own.append(edge[0].name())
        number = self._new(x)
        key = (op, tuple(found), self._look(number), self.shapes[found[0]] == x.shape)
        self.keys.append(key)
        step = len(self.steps)
        self.steps.append((op, (number,)))
        self._check_expected(step, key)
        self.templates.append((([Ref(n) for n in found], Ref(found[0])), {}))
        if self.expected is None or step in self.expected.keeps:
            with paused():
                self._keep(number, x)
        return number

    def _own_leaf(self, x: Tensor, node: Any, slot: int) -> int | None:
        """A parameter that a custom function reads itself: what its backward gives is scaled as all feedback is."""
        number = self._ids.get(id(x))
        if number is None:
            with paused():
                number = self._leaf(x)
        leaf = next(leaf for leaf in self.leaves if leaf.value == number)
        if leaf.kind == "parameter":
            self.own_reads.append((number, (node, slot)))
        return number

    # Values that are kept

    def _keep(self, number: int, x: Tensor) -> None:
        self.kept[number] = kept = x.detach()
        if kept.layout is torch.strided:
            self._stored.setdefault(kept.untyped_storage()._cdata, []).append(number)

    def _save_before_write(self, args: tuple[Any, ...]) -> None:
        """Copy what is kept of the memory that an operation is about to write to."""
        for x in args:
            if isinstance(x, Tensor) and x.layout is torch.strided:
                for number in self._stored.pop(x.untyped_storage()._cdata, ()):
                    kept = self.kept[number]
                    self.kept[number] = None if kept is None else kept.clone()
                break

    def _template(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        def ref(value: Any) -> Any:
            if isinstance(value, Tensor):
                number = self.known(value)
                return value.detach() if number is None else Ref(number)
            if isinstance(value, list | tuple):
                return type(value)([ref(item) for item in value])
            return value

        return tuple(ref(value) for value in args), {name: ref(value) for name, value in kwargs.items()}

    def _look(self, number: int) -> Any:
        return self.dtypes[number], len(self.shapes[number]), self.follows[number]

    # Ways that autograd does not follow

    def _trace_sources(self, info: OpInfo, ins: list[int], outs: tuple[int, ...], args: Any) -> None:
        if info.forgets or all(n < 0 or self.follows[n] for n in outs):
            return
        found: set[int] = set()
        for n in ins:
            if self.follows[n]:
                if n not in self._aliases:
                    found.add(n)
                    self._source_tensors.setdefault(n, _tensor_of(args, self, n))
            else:
                found |= self._sources.get(n, frozenset())
        if found:
            sources = frozenset(found)
            for n in outs:
                if n >= 0 and not self.follows[n]:
                    self._sources[n] = sources

    def _bridge(self, info: OpInfo, ins: list[int], results: list[Any], args: Any) -> bool:
        """Let autograd hand signals over a step: from floats that it does not follow to the values they were made of."""
        if info.forgets:
            return False
        changed = False
        for i, x in enumerate(results):
            if not isinstance(x, Tensor) or x.requires_grad or not (x.is_floating_point() or x.is_complex()):
                continue
            sources: set[int] = set()
            for n in ins:
                if self.follows[n] and n not in self._aliases:
                    sources.add(n)
                    self._source_tensors.setdefault(n, _tensor_of(args, self, n))
                else:
                    sources |= self._sources.get(n, frozenset())
            tensors = [self._source_tensors[n] for n in sorted(sources)]
            tensors = [t for t in tensors if self.known(t) in sources]  # a source written over since is out of reach
            if tensors:
                results[i] = bridge(x, tensors)
                changed = True
        return changed

    # The end

    def close(self) -> None:
        """Let go of the run's own tensors and autograd nodes."""
        self.edges.clear()
        self.edge_of.clear()
        self._ids.clear()
        self._alive.clear()
        self._aliases.clear()
        self._sources.clear()
        self._source_tensors.clear()
        self._stored.clear()
        self.own_reads.clear()
        self.leaves = []


def _tensor_of(args: Any, record: Record, number: int) -> Tensor:
    """The argument that holds a value."""
    for value in args:
        for x in value if isinstance(value, list | tuple) else (value,):
            if isinstance(x, Tensor) and record.known(x) == number:
                return x
    raise AssertionError("an operation's input is among its arguments")


def _user_line() -> str:
    """`File "...", line N` of the innermost frame outside torch and lfpgraph, as torch writes it in stack traces."""
    frame = sys._getframe(2)
    while frame is not None:
        file = frame.f_code.co_filename
        if "/torch/" not in file and "/lfpgraph/" not in file and not file.startswith("<"):
            return f'File "{file}", line {frame.f_lineno}, in {frame.f_code.co_name}'
        frame = frame.f_back  # type: ignore[assignment]
    return ""
