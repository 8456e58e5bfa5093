"""Steps of an expected run, made ready for comparison with the operations that come."""

from __future__ import annotations

import weakref
from collections.abc import Container, Sequence
from typing import Any

import torch
from torch import Tensor

from ..bridges import LARGE
from ..notes import Ref
from ..operations import OWN_BACKWARD, OWN_VIEW, SIZE, TENSOR, TENSORS, info_of

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

    def sort(self, leaves: Container[int]) -> None:
        """Say which values the run finds: the others are those of earlier steps."""
        self.inner = [(i, n) for i, n in self.tensors if n not in leaves]
        self.outer = [(i, n) for i, n in self.tensors if n in leaves]

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

    def again(self, run: Any, args: tuple[Any, ...]) -> Any:
        """The same in a run that has been this one so far (`Replay`)."""
        if self.rest and self._is_another(args) or len(args) != self.count:
            return ANOTHER
        edges, tensors = run.edges, run.tensors
        for i, want in self.inner:
            x, edge = args[i], edges[want]
            if not isinstance(x, Tensor) or x.grad_fn is not edge[0] or x.output_nr != edge[1]:
                return ANOTHER
        given: Any = args
        for i, want in self.outer:
            x = args[i]
            if x is not tensors[want]:
                if tensors[want] is not None or not isinstance(x, Tensor) or not run.meet(want, x):
                    return ANOTHER
            elif x.requires_grad is not run.simple.leaves[want][3] or x.grad_fn is not None:
                return ANOTHER
            if want in run.aliases:
                given = list(args) if given is args else given
                given[i] = run.aliases[want]
        if self.others and self._has_another_shape(run.shapes):
            return ANOTHER
        out = self.op._op(*given)
        node = out.grad_fn if isinstance(out, Tensor) else None
        if node is None or out.dtype is not self.dtype or len(shape := out.shape) != self.dims:
            return run.record().note(self.op, args, out)
        for _, n in self.inner:  # what came in, and no value of its own
            if edges[n][0] is node:
                return run.record().note(self.op, args, out)
        if self.shape_is_first is not None and (shape == run.shapes[self.first]) is not self.shape_is_first:
            return run.record().note(self.op, args, out)
        number = self.number
        if self.keep:
            if shape.numel() >= LARGE:  # of which less may be kept, and what is saved otherwise does not count
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


def quick_steps(
    keys: Sequence[Any], steps: Sequence[Any], templates: Sequence[Any], follows: Sequence[bool], schedule: Any
) -> list[Quick | None]:
    """For each step of a run what is quickly compared, None where the step has to be noted in full."""
    found: list[Quick | None] = []
    for i, (key, (_, outs), (args, kwargs)) in enumerate(zip(keys, steps, templates)):
        op = key[0]
        plain = (
            op not in (OWN_BACKWARD, OWN_VIEW) and not kwargs and len(outs) == 1 and outs[0] >= 0 and follows[outs[0]]
        )
        info = info_of(op)
        plain = plain and not info.writes and info.open is None and TENSORS not in info.kinds[: len(args)]
        if not plain or i in schedule.templates or i in schedule.spared:
            found.append(None)
        else:
            found.append(Quick(key, args, outs[0], i in schedule.keeps))
    return found
