"""One run of a model, operation by operation.

Nothing here keeps a model's own tensors alive after the run: `Record.close` lets go of all but detached copies.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from .bridges import Sources
from .interception import paused
from .notes import Ref, user_line
from .operations import SIZE, STATIC, TENSOR, TENSORS, OpInfo, autocast_of, has_no_derivative, info_of
from .values import NameLeaf, Values, storage_of
from .writes import is_apart, is_followed, write

__all__ = ["Record"]


_EMPTY = torch.ops.aten.empty.memory_format  # what `torch.tensor` fills unseen: as good as a tensor found


class Record(Values):
    """A run while it is recorded; what `interception.Recorder` asks for.

    Args:
        name_leaf: says of a tensor that no operation made what it is, as (kind, name).
        expected: `keeps` (steps whose results are needed) and `templates` (steps whose arguments are) of the run that
            this one is likely to repeat, by the steps' keys; None to keep everything.
        keep_all: keep the results of all steps while the run lasts, in case it does not repeat that one.

    Attributes:
        parted: whether the run took another way than the expected one.
    """

    def __init__(self, name_leaf: NameLeaf, expected: Any = None, root: str = "", keep_all: bool = False) -> None:
        super().__init__(name_leaf)
        self.expected, self.keep_all = expected, keep_all
        self.parted = False
        self.keys: list[Any] = []  # of each step: the operation, its arguments, what came out; but no sizes
        self.steps: list[tuple[OpOverload, tuple[int, ...]]] = []
        self.templates: list[Any] = []  # of each step, its arguments, where somebody is going to look at them
        self.casts: dict[
            int, tuple[str, torch.dtype] | None
        ] = {}  # steps under autocast: the kind of device, and the type
        self._overwritten: set[int] = set()  # values whose memory holds something else by now
        self._known: list[Any] = []  # the same of the run that this one was expected to repeat
        self.paths: dict[int, str] = {}
        self.lines: dict[int, str] = {}
        self.path = self.root = root  # the module whose call is running, and the one whose run this is
        self.sources = Sources(self)

    # What the recorder is called for

    def run(self, op: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an operation and note it."""
        if not torch.is_grad_enabled() or torch._C._functorch.peek_interpreter_stack() is not None:
            self._look_at(args)
            if info_of(op).writes:
                self.save_before_write(args)
            out = op._op(*args, **kwargs)
            self.unrecorded.note(args, out, self._is_activation)
            return out
        if op is _EMPTY:
            return op._op(*args, **kwargs)
        info = info_of(op)
        if info.open is not None:
            return info.open(*args, **kwargs)
        if info.rewrites and is_apart(info, args, kwargs):
            return write(self, op, info, args, kwargs)
        if info.parts is not None and not info.writes and is_followed(args, kwargs):
            return info.parts(*args, **kwargs)
        return self.step(op, info, args, kwargs)

    def step(self, op: OpOverload, info: OpInfo, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an operation as one step of the record."""
        if torch._C._is_any_autocast_enabled():
            self.casts[len(self.steps)] = autocast_of(args)
        ins: list[int] = []
        key: list[Any] = [op]
        given = self._read(args, info.kinds, ins, key)
        if kwargs:
            key.append(tuple(kwargs))
            kinds = tuple(info.kwarg_kinds.get(name, STATIC) for name in kwargs)
            named = dict(zip(kwargs, self._read(tuple(kwargs.values()), kinds, ins, key)))
        else:
            named = kwargs
        before = None
        if info.writes:
            self.save_before_write(args)
            before = self._template(args, kwargs)  # an argument is another value once it has been written to
        out = op._op(*given, **named)
        return self._note(info, key, ins, args, kwargs, out, before)

    def _read(self, args: tuple[Any, ...], kinds: Iterable[int], ins: list[int], key: list[Any]) -> tuple[Any, ...]:
        """The arguments to run with: each parameter by the one alias that this run takes it through."""
        given: list[Any] | None = None
        for i, (value, kind) in enumerate(zip(args, kinds)):
            if kind == TENSOR and isinstance(value, Tensor):
                number = self.number(value)
                ins.append(number)
                key.append(number)
                alias = self.aliases.get(number)
                if alias is not None:
                    given = list(args) if given is None else given
                    given[i] = alias
            elif kind == TENSORS and isinstance(value, list | tuple):
                numbers = [self.number(x) if isinstance(x, Tensor) else None for x in value]
                ins.extend(n for n in numbers if n is not None)
                key.append(tuple(numbers))
                if any(n in self.aliases for n in numbers):
                    given = list(args) if given is None else given
                    given[i] = [self.aliases.get(n, x) if n is not None else x for n, x in zip(numbers, value)]
            elif kind == SIZE:
                key.append(value is None)
            else:
                key.append(value if type(value) is not list else tuple(value))
        return args if given is None else tuple(given)

    def _note(self, info: OpInfo, key: list[Any], ins: list[int], args: Any, kwargs: Any, out: Any, before: Any) -> Any:
        if isinstance(out, Tensor):
            if not info.writes and self.known(out) is not None:
                return out  # what came in, as `x.contiguous()` may be
            results: list[Any] = [out]
        elif isinstance(out, list | tuple) and any(isinstance(x, Tensor) for x in out):
            results = list(out)
            if not info.writes:  # likewise, as of `broadcast_tensors`
                results = [None if isinstance(x, Tensor) and self.known(x) is not None else x for x in results]
                if not any(isinstance(x, Tensor) for x in results):
                    return out
        else:
            return out
        changed = False
        if has_no_derivative(info, results):
            results = [x.detach() if isinstance(x, Tensor) else x for x in results]
            changed = True
        if not info.writes and not info.forgets:
            changed |= self.sources.bridge(ins, results, (*args, *kwargs.values()))
        if changed and isinstance(out, Tensor):
            out = results[0]
        elif changed:
            out = type(out)(x if r is None else r for x, r in zip(out, results))
        step = len(self.steps)
        outs = tuple(self._new(x) if isinstance(x, Tensor) else -1 for x in results)
        shapes = self.shapes
        first = shapes[ins[0]] if ins else None
        shaped = info.shaped or not any(n >= 0 and self.follows[n] for n in outs)  # masks select by their shape
        for n in outs:
            if n >= 0:
                key.append(self.look(n))
                if shaped:
                    key.append(shapes[n] == first)
            else:
                key.append(None)
        if shaped and len(ins) > 1:
            alike = tuple(shapes[n] == first for n in ins[1:])
            key.append(None if all(alike) else alike)
        self.keys.append(tuple(key))
        self.steps.append((info.node, outs))
        if not info.forgets:
            self.sources.note(ins, outs, (*args, *kwargs.values()))
        self._check_expected(step, self.keys[-1])
        every = self.expected is None or self.keep_all
        wanted = every or step in self.expected.templates
        self.templates.append((before or self._template(args, kwargs)) if wanted else None)
        if every or step in self.expected.keeps:
            for number, x in zip(outs, results):
                if number >= 0:
                    self._keep(number, x)
        return out

    def _check_expected(self, step: int, key: Any) -> None:
        """Whether the run still repeats the one it is likely to repeat; from a step that does not, keep everything."""
        if self.expected is not None and not self.expected.repeats(step, key):
            self.recall(step)
            self.parted = True
        if self.expected is None:
            self.paths[step] = self.path.removeprefix(self.root).removeprefix(".")
            self.lines[step] = user_line()

    def _wants_leaf(self, number: int) -> bool:
        return self.expected is None or self.keep_all or number in self.expected.kept_values

    def made_unseen(self, op: OpOverload, sources: list[int], x: Tensor) -> int:
        number = self._new(x)
        key = (op, tuple(sources), self.look(number), self.shapes[sources[0]] == x.shape)
        step = len(self.steps)
        self.keys.append(key)
        self.steps.append((op, (number,)))
        self._check_expected(step, key)
        self.templates.append((([Ref(n) for n in sources], Ref(sources[0])), {}))
        if self.expected is None or self.keep_all or step in self.expected.keeps:
            with paused():
                self._keep(number, x)
        return number

    def recall(self, step: int) -> None:
        """The run has left the way it was expected to go: what was not noted so far is as it was on that way."""
        self.paths |= self.expected.notes.paths
        self.lines |= self.expected.notes.lines
        self._known = self.expected.notes.templates[:step]
        self.expected = None
        for leaf in self.leaves:
            if self.kept[leaf.value] is None and leaf.value not in self._overwritten:
                self.kept[leaf.value] = leaf.tensor.detach()

    def all_templates(self) -> list[Any]:
        """The arguments of all steps: which values they were, but numbers and sizes may be those of an earlier run."""
        if self.expected is not None:
            self.recall(len(self.steps))
        return [self._known[i] if t is None else t for i, t in enumerate(self.templates)]

    # Values that are kept

    def _keep(self, number: int, x: Tensor) -> None:
        self.kept[number] = kept = x.detach()
        if kept.layout is torch.strided:
            self._stored.setdefault(storage_of(kept), []).append(number)

    def save_before_write(self, args: tuple[Any, ...]) -> None:
        """Copy what is kept of the memory that an operation is about to write to."""
        for x in args:
            if isinstance(x, Tensor) and x.layout is torch.strided:
                storage = storage_of(x)
                for parameter, number in self._aliased.pop(storage, ()):
                    self._overwritten.add(number)
                    self._ids.pop(id(parameter), None)  # what is written to is another value, to be taken anew
                    self.aliases.pop(number, None)
                for number in self._stored.pop(storage, ()):
                    kept = self.kept[number]
                    self.kept[number] = None if kept is None else kept.clone()
                    self._overwritten.add(number)
                break

    def _template(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return tuple(map(self._ref, args)), {name: self._ref(value) for name, value in kwargs.items()}

    def _ref(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            number = self.known(value)
            return value.detach() if number is None else Ref(number)
        if isinstance(value, list | tuple):
            return type(value)([self._ref(item) for item in value])
        return value

    def release(self) -> None:
        """Let go of tensors that nobody else may hold any more: those are no ends of the run."""
        self.sources.close()
        self._alive.clear()
        for leaf in self.leaves:
            if leaf.kind == "constant" and leaf.tensor.requires_grad:  # written to since
                leaf.tensor = leaf.tensor.detach()

    def close(self) -> None:
        """Let go of the run's own tensors and autograd nodes."""
        super().close()
        self.sources.close()
        self.templates = []
