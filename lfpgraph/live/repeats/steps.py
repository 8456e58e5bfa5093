"""Steps of an expected run, made ready for comparison with the operations that come."""

from __future__ import annotations

import weakref
from collections.abc import Container, Sequence
from typing import Any

import torch
from torch import Tensor

from ..bridges import LARGE
from ..notes import Ref, version_of
from ..operations import SIZE, TENSOR, TENSORS, info_of
from .aliases import Met
from .factors import is_usual

__all__ = ["ANOTHER", "Quick", "note_made", "quick_steps"]

ANOTHER = object()  # what `Quick.run` answers if an operation is not its step
_NO_TENSOR = -1


class Quick:
    """A step of an expected run with one result that autograd follows.

    Args:
        key: the step's key. args: its arguments; all of them are positional. number: of its result.
        keep: whether the result is kept.
    """

    def __init__(self, key: tuple[Any, ...], args: Sequence[Any], number: int, keep: bool) -> None:
        self.op, self.count, self.number, self.keep = key[0], len(args), number, keep
        info, count = info_of(self.op), len(args)
        tests = [
            (i, _NO_TENSOR if kind == TENSOR and not isinstance(arg, Ref) else kind, want)
            for i, (kind, arg, want) in enumerate(zip(info.kinds, args, key[1:]))
        ]
        self.tensors = [(i, want) for i, kind, want in tests if kind == TENSOR]
        self.rest = [test for test in tests if test[1] != TENSOR]
        ins = [want for _, want in self.tensors]
        rest = key[1 + count :]
        (self.dtype, self.dims, _), self.shape_is_first = rest[0], rest[1] if info.shaped else None
        self.first, self.others = (ins[0] if ins else None), ins[1:] if info.shaped else []
        self.alike = (rest[2] or (True,) * len(self.others)) if self.others else ()
        self.inner: list[tuple[int, int]] = []
        self.outer: list[tuple[int, int]] = []
        self.own: list[tuple[int, int]] = []
        self.foreign: list[tuple[int, int]] = []
        self.met: list[Met] | None = None  # the parameters of its own, as the last run has met them

    def sort(self, leaves: Container[int], own: Container[int]) -> None:
        """Say which values the run finds: the others are those of earlier steps; and which of them only this step reads."""
        self.inner = [(i, n) for i, n in self.tensors if n not in leaves]
        self.outer = [(i, n) for i, n in self.tensors if n in leaves]
        self.own = [(i, n) for i, n in self.outer if n in own]
        self.foreign = [(i, n) for i, n in self.outer if n not in own]

    def _is_another(self, args: tuple[Any, ...]) -> bool:
        """Whether arguments that are no tensors differ."""
        if len(args) != self.count:
            return True
        for i, kind, want in self.rest:
            value = args[i]
            if kind == SIZE:
                if (value is None) is not want:
                    return True
            elif (kind == _NO_TENSOR and isinstance(value, Tensor)) or (
                value if type(value) is not list else tuple(value)
            ) != want:
                return True
        return False

    def _has_another_shape(self, shapes: Any) -> bool:
        """Whether other arguments than before have the shape of the first."""
        first = shapes[self.first]
        return any((shapes[n] == first) is not alike for n, alike in zip(self.others, self.alike))

    def run(self, record: Any, args: tuple[Any, ...]) -> Any:
        """Run and note the operation, if it is this step as far as can be seen before it runs; else only say that it is not."""
        if self._is_another(args):
            return ANOTHER
        given: Any = args
        edge_of, aliases, shapes = record.edge_of, record.aliases, record.shapes
        for i, want in self.tensors:
            x = args[i]
            if not isinstance(x, Tensor):
                return ANOTHER
            edge = edge_of.get(want)
            if edge is None or x.grad_fn is not edge[0] or x.output_nr != edge[1]:
                if record.number(x) != want:
                    return ANOTHER
                if want in aliases:
                    given = list(args) if given is args else given
                    given[i] = aliases[want]
        if self.others and self._has_another_shape(shapes):
            return ANOTHER
        out = self.op._op(*given)
        node = out.grad_fn if isinstance(out, Tensor) else None
        if node is None or out.dtype is not self.dtype or len(shapes) != self.number:
            return record.note(self.op, args, out)
        edge, shape = (node, out.output_nr), out.shape
        if edge in record.edges or len(shape) != self.dims:
            return record.note(self.op, args, out)
        if self.shape_is_first is not None and (shape == shapes[self.first]) is not self.shape_is_first:
            return record.note(self.op, args, out)
        note_made(record, weakref.ref(out), shape, self.dtype, edge)
        record.steps_done += 1
        if self.keep:
            record.keep(self.number, out)
        return out

    def _met_again(self, run: Any, args: tuple[Any, ...], met: list[Met]) -> Any:
        """The arguments with what this step's own parameters are given as; as they are if one is not what it was."""
        tensors, shapes, given = run.tensors, run.shapes, list(args)
        for i, n, x, shape, same, alias in met:
            if args[i] is not x or not x.requires_grad or x.grad_fn is not None or not same.is_set_to(x):
                for _, m, *_ in met:
                    tensors[m] = None
                return args
            given[i], tensors[n], shapes[n] = alias, x, shape
        run.met.append(met)
        return given

    def again(self, run: Any, args: tuple[Any, ...], function: Any = None) -> Any:
        """The same in a run that has been this one so far (`Replay`); run by a function of torch, if one is given."""
        if self.rest and self._is_another(args) or len(args) != self.count:
            return ANOTHER
        edges, tensors = run.edges, run.tensors
        for i, want in self.inner:
            x, edge = args[i], edges[want]
            if not isinstance(x, Tensor) or x.grad_fn is not edge[0] or x.output_nr != edge[1]:
                return ANOTHER
        given: Any = args
        outer, met = self.outer, self.met
        if met is not None:
            given = self._met_again(run, args, met)
            if given is args:
                met = None
            else:
                outer = self.foreign
        for i, want in outer:
            x = args[i]
            if x is not tensors[want]:
                if tensors[want] is not None or not isinstance(x, Tensor) or not run.meet(want, x):
                    return ANOTHER
            elif x.grad_fn is not None or x.requires_grad is not run.simple.leaves[want][3]:
                return ANOTHER
            elif want in run.aliases and not run.aliases[want].is_set_to(x):  # it has other memory since
                return ANOTHER
            elif want in run.versions and version_of(x) != run.versions[want]:
                return ANOTHER
            if want in run.aliases:
                given = list(args) if given is args else given
                given[i] = run.aliases[want]
        if self.others and self._has_another_shape(run.shapes):
            return ANOTHER
        out = (function or self.op._op)(*given)
        node = out.grad_fn if isinstance(out, Tensor) else None
        if node is None or out.dtype is not self.dtype or len(shape := out.shape) != self.dims:
            return run.record().note(self.op, args, out)
        for _, n in self.inner:  # what came in, and no value of its own
            if edges[n][0] is node:
                return run.record().note(self.op, args, out)
        if self.shape_is_first is not None and (shape == run.shapes[self.first]) is not self.shape_is_first:
            return run.record().note(self.op, args, out)
        number = self.number
        if met is None and self.own:
            self.met = run.hold(args, self.own)
        if self.keep:
            if not is_usual(out, LARGE):  # of which less may be kept, and what is saved otherwise does not count
                run.schedule.simple = None
                return run.record().note(self.op, args, out)
            run.kept[number] = out.detach()
        edges[number], tensors[number], run.shapes[number] = (node, out.output_nr), weakref.ref(out), shape
        run.done += 1
        return out


def note_made(
    record: Any, ref: weakref.ref[Tensor], shape: torch.Size, dtype: torch.dtype, edge: Any, kept: Any = None
) -> None:
    """Note a value that autograd follows, known by its edge, as the next one of a record."""
    number = len(record.shapes)
    record.shapes.append(shape)
    record.dtypes.append(dtype)
    record.follows.append(True)
    record.kept.append(kept)
    if kept is not None:
        record._lying.append((kept, number))
    record.edge_of[number] = edge
    record.edges[edge] = number
    record.seen[number] = ref


def quick_steps(schedule: Any, follows: Sequence[bool]) -> list[Quick | None]:
    """For each step of a planned run what is quickly compared, None where the step has to be noted in full."""
    found: list[Quick | None] = []
    for i, (key, (_, outs), (args, kwargs)) in enumerate(zip(schedule.keys, schedule.steps, schedule.notes.templates)):
        op = key[0]
        plain = op is not None and not kwargs and len(outs) == 1 and outs[0] >= 0 and follows[outs[0]]
        info = info_of(op) if plain else None  # None: it was made unseen
        plain = info is not None and not info.writes and info.open is None and TENSORS not in info.kinds[: len(args)]
        if not plain or i in schedule.templates or i in schedule.spared:
            found.append(None)
        else:
            found.append(Quick(key, args, outs[0], i in schedule.keeps))
    return found
