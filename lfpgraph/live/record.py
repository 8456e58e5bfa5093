"""One run of a model, operation by operation.

Nothing here keeps a model's own tensors alive after the run: `Record.close` lets go of all but detached copies.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from ..tracing.written.inverse_views import UNDO, given_back
from .bridges import Shadows, Sources
from .interception import paused
from .kept import Kept, is_apart, is_followed, is_unfollowed, write, write_out
from .notes import NameLeaf, Ref, is_batched, only_if_reached, storage_of, tensors_among, user_line
from .operations import SIZE, STATIC, TENSOR, TENSORS, OpInfo, autocast_of, has_no_derivative, info_of
from .repeats.checkpoints import record_again
from .repeats.steps import ANOTHER, Quick

__all__ = ["Record"]

_EMPTY = torch.ops.aten.empty.memory_format  # what `torch.tensor` fills unseen: as good as a tensor found


class Record(Kept):
    """A run while it is recorded; what `interception.Recorder` asks for.

    As long as the run repeats the one that is expected, its steps are only compared with those, and noted once it parts.

    Args:
        name_leaf: says of a tensor that no operation made what it is, as (kind, name).
        expected: the schedule of the run that this one is likely to repeat; None to keep everything.
        keep_all: keep the results of all steps while the run lasts, in case it does not repeat that one.

    Attributes:
        parted: whether the run took another way than the expected one.
        keys: of each step the operation, its arguments, what came out; but no sizes.
        templates: of steps where somebody is going to look at them, the arguments.
        casts: of steps under autocast the kind of device, and the type.
        path, root: the module whose call is running, and the one whose run this is.
    """

    def __init__(self, name_leaf: NameLeaf, expected: Any = None, root: str = "", keep_all: bool = False) -> None:
        super().__init__(name_leaf, expected, keep_all)
        self.parted = False
        self.keys: list[Any] = []
        self.steps: list[tuple[OpOverload, tuple[int, ...]]] = []
        self.templates: dict[int, Any] = {}
        self.casts: dict[int, tuple[str, torch.dtype] | None] = {}
        self._known: list[Any] = []  # the templates of the run that this one was expected to repeat
        self.paths: dict[int, str] = {}
        self.lines: dict[int, str] = {}
        self.path = self.root = root
        self.sources, self.shadows = Sources(self, self.saved), Shadows(self)
        self._bridged = False  # whether the result of the step at hand is followed over a bridge alone
        self._quick: list[Quick | None] = [] if expected is None or keep_all else expected.quick or []

    # What the recorder is called for

    def run(self, op: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an operation and note it."""
        quick = self._quick[self.steps_done] if self.steps_done < len(self._quick) else None
        transformed = torch._C._functorch.peek_interpreter_stack() is not None or is_batched(args)
        plain = torch.is_grad_enabled() and not transformed
        if (
            plain
            and quick is not None
            and quick.op is op
            and not (kwargs or self.shadows.noted or torch._C._is_any_autocast_enabled())
        ):
            out = quick.run(self, args)
            if out is not ANOTHER:
                return out
        if not plain:
            self._look_at(args)
            info = info_of(op)
            overwritten = self.written_by(info, args) if info.writes else []
            out = op._op(*args, **kwargs)
            self.changed(overwritten)
            self.unrecorded.note(args, out, self._sources_of)
            return out
        if op is _EMPTY:
            return op._op(*args, **kwargs)
        if "out" in kwargs:
            return write_out(self, op, args, kwargs)
        if self.shadows.noted:
            shadowed = self.shadows.given(args, kwargs, info_of(op).writes)
            if shadowed is not None:
                self.again(args, kwargs)
                out = self.run(op, *shadowed)
                for x in tensors_among((out,), {}):
                    if x.grad_fn is not None:
                        self.saved.add_operation(x.grad_fn)
                return self.shadows.seen(out, args, kwargs)
        info = info_of(op)
        if info.open is not None:
            return info.open(*args, **kwargs)
        if info.rewrites and is_apart(info, args, kwargs):
            return write(self, op, info, args, kwargs)
        if info.rewrites and self.sources.point(args[1:]) and is_unfollowed(args[0]):
            written = write(self, op, info, (self.shadows.of(args[0], True), *args[1:]), kwargs)
            return self.shadows.seen(written, args, kwargs)
        if info.parts is not None and not info.writes and is_followed(args, kwargs):
            return info.parts(*args, **kwargs)
        out = self.step(op, info, args, kwargs)
        return self.shadows.hide(out) if self._bridged else out

    def again(self, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> None:
        """Let a checkpoint around the step at hand record what it runs again."""
        record_again(self, partial(Record, self.name_leaf), args, kwargs or {})

    def note(self, op: OpOverload, args: tuple[Any, ...], out: Any) -> Any:
        """Note an operation that has run with these arguments."""
        ins, key = list[int](), list[Any]([op])
        self._read(args, info_of(op).kinds, ins, key)
        out = self._note(info_of(op), key, ins, args, {}, out, None)
        return self.shadows.hide(out) if self._bridged else out

    def step(self, op: OpOverload, info: OpInfo, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an operation as one step of the record."""
        if torch._C._is_any_autocast_enabled():
            self.casts[self.steps_done] = autocast_of(args)
        ins: list[int] = []
        key: list[Any] = [op]
        given = self._read(args, info.kinds, ins, key)
        if kwargs:
            key.append(tuple(kwargs))
            kinds = tuple(info.kwarg_kinds.get(name, STATIC) for name in kwargs)
            named = dict(zip(kwargs, self._read(tuple(kwargs.values()), kinds, ins, key)))
        else:
            named = kwargs
        overwritten = self.written_by(info, args) if info.writes else []
        before = self._template(args, kwargs) if info.writes else None  # an argument is another value afterwards
        expected = self.expected
        if expected is None or self.keep_all or self.steps_done not in expected.spared:
            out = op._op(*given, **named)
        else:
            out = self._spare(op, given, named, ins)
        out = self._note(info, key, ins, args, kwargs, out, before)
        self.changed(overwritten)
        return out

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
            elif kind == TENSOR and type(value) in (int, float):  # `x * 0.5`: of a number that may change, its sign
                key.append((type(value), (value > 0) - (value < 0)))
            else:
                key.append(value if type(value) is not list else tuple(value))
        return args if given is None else tuple(given)

    def _note(self, info: OpInfo, key: list[Any], ins: list[int], args: Any, kwargs: Any, out: Any, before: Any) -> Any:
        self._bridged = False
        if isinstance(out, Tensor):
            if (not info.writes or out.requires_grad) and self.known(out) is not None:
                return out  # what came in, as `x.contiguous()` and dropout that drops nothing may be
            if info.node in UNDO and (given := given_back(info.node, args, kwargs, out, self)) is not None:
                self.equate(out, given)
                return out
            results: list[Any] = [out]
        elif isinstance(out, list | tuple) and any(isinstance(x, Tensor) for x in out):
            results = list(out)
            if not info.writes:  # likewise, as of `broadcast_tensors`
                results = [None if isinstance(x, Tensor) and self.known(x) is not None else x for x in results]
                if not any(isinstance(x, Tensor) for x in results):
                    return out
        else:
            return out
        followed = any(isinstance(x, Tensor) and x.requires_grad for x in results)
        changed = has_no_derivative(info, results)
        if changed:
            results = [x.detach() if isinstance(x, Tensor) else x for x in results]
        if not info.forgets and (not info.writes or args[0] is self.written) and self.name_leaf.bridges(self.path):
            if self.sources.bridge(ins, results, (*args, *kwargs.values()), info.looks_up):
                changed, self._bridged = True, not followed
                while self.own_nodes:
                    only_if_reached(self.own_nodes.pop())
                self.again(args, kwargs)
        if changed:
            single = isinstance(out, Tensor)
            out = results[0] if single else type(out)(x if r is None else r for x, r in zip(out, results))
        outs = tuple(self._new(x) if isinstance(x, Tensor) else -1 for x in results)
        if info.writes and outs[0] >= 0 and not self.follows[outs[0]]:
            self.writers[storage_of(results[0])] = outs[0]
        shapes = self.shapes
        first = shapes[ins[0]] if ins else None
        shaped = info.shaped or (info.shaped_mask and not any(n >= 0 and self.follows[n] for n in outs))
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
        if not info.forgets:
            self.sources.note(ins, outs, (*args, *kwargs.values()))
        step = self._noted((info.node, outs), tuple(key))
        every = self.expected is None or self.keep_all
        if every or step in self.expected.templates:
            self.templates[step] = before or self._template(args, kwargs)
        if every or step in self.expected.keeps:
            for number, x in zip(outs, results):
                if number >= 0:
                    self.keep(number, x)
        return out

    def _noted(self, step: tuple[OpOverload, tuple[int, ...]], key: Any) -> int:
        """Count a step, and say which it was; from one that is not the expected one, note and keep everything."""
        done = self.steps_done
        if self.expected is not None and not self.expected.repeats(done, key):
            self.recall()
            self.parted = True
        if self.expected is None:
            self.keys.append(key)
            self.steps.append(step)
            self.paths[done] = self.path.removeprefix(self.root).removeprefix(".")
            self.lines[done] = user_line()
        self.steps_done += 1
        return done

    def made_unseen(self, op: OpOverload, sources: list[int], x: Tensor, args: tuple[Any, ...] | None = None) -> int:
        number = self._new(x)
        key = (None, op, tuple(sources), self.look(number), self.shapes[sources[0]] == x.shape)
        step = self._noted((op, (number,)), key)
        self.templates[step] = args or ([Ref(n) for n in sources], Ref(sources[0])), {}
        if self.expected is None or self.keep_all or step in self.expected.keeps:
            with paused():
                self.keep(number, x)
        return number

    def recall(self) -> None:
        """Note the steps taken so far, which are those of the expected run; from here on this run notes its own."""
        expected, done = self.expected, self.steps_done
        if expected is None:
            return
        self.keys, self.steps = expected.keys[:done], expected.steps[:done]
        self.paths |= expected.notes.paths
        self.lines |= expected.notes.lines
        self._known = expected.notes.templates[:done]
        self.expected, self.wanted, self._quick = None, None, []
        for leaf in self.leaves:
            if self.kept[leaf.value] is None and leaf.value not in self._overwritten:
                self.kept[leaf.value] = leaf.tensor.detach()

    def all_templates(self) -> list[Any]:
        """The arguments of all steps: which values they were, but numbers and sizes may be those of an earlier run."""
        self.recall()
        return [self.templates.get(i) or self._known[i] for i in range(self.steps_done)]

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
        self.shadows.close()
        self._alive.clear()
        for leaf in self.leaves:
            if leaf.kind == "constant" and leaf.tensor.requires_grad:  # written to since
                leaf.tensor = leaf.tensor.detach()

    def close(self) -> None:
        """Let go of all: the run's own tensors, its autograd nodes and the call's arguments."""
        self.sources.close()
        self.shadows.close()
        vars(self).clear()
