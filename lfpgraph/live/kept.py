"""What a record keeps of a run's values: detached copies of those that somebody is going to look at, or less than that.

Of an activation whose rule takes the place of its derivative, autograd need not save anything, nor work out that derivative;
where its result is large, what reads it need not save that either: it is made again in the backward pass.

Note [Writes to a view]: autograd hangs a write to a view into the history of the tensor that the view is of: the operation's
node lies within a node that copies slices, where no hook reaches it. So what is written is computed first, by a step like
any other, and then copied; the copy hands on its signal as it is.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from ..kernels import halved
from .arrivals.saved import Saved
from .bridges import LARGE, bridge, tensor_of
from .notes import NameLeaf, Ref, storage_of, tensors_among
from .operations import OWN_VIEW, OpInfo, covers, without_out
from .values import Values

__all__ = ["Kept", "Remade", "is_alone", "is_apart", "is_followed", "is_unfollowed", "sparing", "write", "write_out"]

_COPY = torch.ops.aten.copy_.default
_EXPAND = torch.ops.aten.expand.default


class Remade:
    """The result of an activation, made again when it is asked for.

    Args:
        function: makes the result of x.
        x: detached. number: which value of the run it is.
    """

    def __init__(self, function: Callable[[Tensor], Tensor], x: Tensor, number: int) -> None:
        self.function, self.x, self.number = function, x, number
        self._made: Tensor | None = None

    def make(self) -> Tensor:
        """The result; stays in memory until `take` is called."""
        if self._made is None:
            with torch.no_grad(), torch.autocast(self.x.device.type, enabled=False):
                self._made = self.function(self.x)
        return self._made

    def take(self) -> Tensor:
        """The result, which nobody else will ask for soon."""
        made, self._made = self.make(), None
        return made


@contextlib.contextmanager
def sparing(tensors: Sequence[tuple[Tensor, Remade]]) -> Iterator[None]:
    """Let autograd save nothing of what lies in the memory of these tensors: it is made again."""
    places = {x.untyped_storage()._cdata: (x, remade) for x, remade in tensors}

    def pack(saved: Tensor) -> Any:
        found = places.get(saved.untyped_storage()._cdata)
        if found is None or not found[0].is_contiguous():
            return saved, saved._version, None
        return None, 0, (found[1], saved.size(), saved.stride(), saved.storage_offset() - found[0].storage_offset())

    def unpack(packed: Any) -> Tensor:
        saved, version, made = packed
        if made is not None:
            remade, size, stride, offset = made
            return remade.make().contiguous().as_strided(size, stride, offset)
        if saved._version != version:
            raise RuntimeError(
                "one of the variables needed for gradient computation has been modified by an inplace operation: "
                f"a tensor of shape {list(saved.shape)} is at version {saved._version}; expected version {version} instead."
            )
        return saved  # type: ignore[no-any-return]

    try:
        with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
            yield
    finally:
        places.clear()


class Kept(Values):
    """The values of a run, and which of them are kept.

    Args:
        name_leaf: see `Values`.
        expected: the schedule of the run that this one is likely to repeat; None to keep everything.
        keep_all: keep the results of all steps while the run lasts, in case it does not repeat that one.

    Attributes:
        remade: values that are made again in the backward pass.
        halved: values kept in half of their memory, and for which epsilon.
        steps_done: how many steps the run has taken.
        written: a copy that a step writes to, which the model does not see.
        saved: what autograd has saved for nodes that only bridges lead to.
    """

    def __init__(self, name_leaf: NameLeaf, expected: Any = None, keep_all: bool = False) -> None:
        super().__init__(name_leaf)
        self.expected, self.keep_all = expected, keep_all
        if expected is not None and not keep_all:
            self.wanted = expected.kept_values
        self.steps_done = 0
        self.written: Tensor | None = None
        self.remade: dict[int, Remade] = {}
        self.halved: dict[int, float] = {}
        self.saved = Saved(self.edges, self.started)
        self._overwritten: set[int] = set()  # values whose memory holds something else by now
        self._stored: dict[
            int, list[tuple[Tensor, int]]
        ] = {}  # by storage: what lies there, as far as `_lying` was read

    def keep(self, number: int, x: Tensor) -> None:
        """Keep a detached copy of a value, or less than that."""
        if number in self.remade:
            return
        expected = None if self.keep_all else self.expected
        if expected is not None and number in expected.unshared and _is_large(x):
            self.halved[number] = epsilon = expected.factors_alone[number]
            self.kept[number] = halved(x.detach(), epsilon)
            return
        self.kept[number] = kept = x.detach()
        self._lying.append((kept, number))

    def keep_only(self, numbers: set[int]) -> None:
        """Let go of all but these values, at the end of a run that has kept everything."""
        self.kept = [x if n in numbers else None for n, x in enumerate(self.kept)]
        self._lying.clear()
        self._stored.clear()

    def save_before_write(self, written: Tensor) -> None:
        """Copy what is kept of the memory that an operation is about to write to."""
        self.saved.copy(storage_of(written))
        for x, number in self._lying:
            if x.layout is torch.strided:
                self._stored.setdefault(storage_of(x), []).append((x, number))
        self._lying.clear()
        for x, number in self._stored.pop(storage_of(written), ()):
            self._overwritten.add(number)
            if self.aliases.pop(number, None) is not None:
                self._ids.pop(id(x), None)  # what is written to is another value, to be taken anew
            kept = self.kept[number]
            if kept is None:
                continue
            self.kept[number] = copy = kept.clone()
            for remade in self.remade.values():
                if remade.number == number:
                    remade.x = copy

    def written_by(self, info: OpInfo, args: tuple[Any, ...]) -> list[Tensor]:
        """What an operation is about to write to; what is kept of that memory is copied."""
        given = [args[i] for i in info.written if i < len(args)]
        found = [x for x in tensors_among(given, {}) if x.layout is torch.strided]
        for x in found:
            self.save_before_write(x)
        return found

    def changed(self, written: list[Tensor]) -> None:
        """Note what has other values since a write, while autograd follows it as it did: under no_grad, or a detached tensor."""
        if not written or torch._C._functorch.peek_interpreter_stack() is not None:
            return
        unseen = [x for x in written if not (torch.is_grad_enabled() and x.requires_grad)]
        places = {storage_of(x) for x in unseen if x.requires_grad or not is_alone(x)}
        for number, ref in [*self.seen.items()] if places else ():
            if (x := ref()) is not None and storage_of(x) in places and self.known(x) == number:
                self.made_unseen(OWN_VIEW, [number], x)

    def _spare(self, op: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any], ins: list[int]) -> Any:
        """Run an operation so that autograd saves less: no activation's derivative, or not what can be made again."""
        made = {n for n in ins if n in self.remade}
        if made and _saves_freely():
            with sparing([(tensor_of(args, self, n), self.remade[n]) for n in made]):
                return op._op(*args, **kwargs)
        x = args[0]
        alike = len(ins) == 1 and op is self.expected.remade.get(self.steps_done)
        forward_mode = torch.autograd.forward_ad._current_level >= 0
        if not alike or not _is_large(x) or torch._C._is_any_autocast_enabled() or forward_mode:
            return op._op(*args, **kwargs)

        rest = args[1:]  # without x, which the function must not hold

        def function(x: Tensor) -> Tensor:
            return op._op(x, *rest, **kwargs)  # type: ignore[no-any-return]

        with torch.no_grad():
            out = function(x)
        self.remade[len(self.shapes)] = Remade(function, x.detach(), ins[0])
        return bridge(out, [x], function)


def _is_large(x: Any) -> bool:
    """Whether it pays to keep less of a tensor than all."""
    return type(x) is Tensor and x.requires_grad and x.dtype == torch.float32 and x.numel() >= LARGE


def _saves_freely() -> bool:
    """Whether nobody else has a say in what autograd saves."""
    graph: Any = torch._C._autograd
    return graph._saved_tensors_hooks_is_enabled() and graph._top_saved_tensors_default_hooks(False) is None


def is_alone(kept: Tensor | None) -> bool:
    """Whether nobody else holds the memory of a value that is kept, autograd for example."""
    if kept is None or kept.layout is not torch.strided:
        return False
    return torch._C._storage_Use_Count(kept.untyped_storage()._cdata) == 2  # the tensor, and this


def is_followed(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether autograd follows an argument."""
    return any(
        isinstance(x, Tensor) and x.requires_grad
        for value in (*args, *kwargs.values())
        for x in (value if isinstance(value, list | tuple) else (value,))
    )


def is_unfollowed(x: Any) -> bool:
    """Whether an argument holds floats that autograd does not follow."""
    return isinstance(x, Tensor) and x.layout is torch.strided and x.is_floating_point() and not x.requires_grad


def is_apart(info: OpInfo, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether an operation that writes to its first argument is to be recorded as a value and a copy."""
    x = args[0] if args else None
    if not isinstance(x, Tensor) or x.layout is not torch.strided or not is_followed(args, kwargs):
        return False
    return x._is_view() or info.parts is not None or (info.node is OWN_VIEW and _is_like(args[1], x))


def _is_like(source: Tensor, x: Tensor) -> bool:
    """Whether what is copied to a tensor is followed, and need not be cast."""
    return source.requires_grad and source.dtype == x.dtype and source.device == x.device


def write(record: Any, op: OpOverload, info: OpInfo, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Run an operation that writes to its first argument (Note [Writes to a view]).

    Other views of the same memory are known by what autograd makes of them: made of the tensor that all are views of.
    """
    x: Tensor = args[0]
    if op is _COPY and not x._is_view():
        return _fill(record, args, kwargs)
    base = x._base
    if info.parts is not None:
        value = info.parts(*args, **kwargs)
    elif op is _COPY:
        value = args[1]
    else:
        record.written = value = x.clone()
        record.equate(value, record.number(x))
        value = record.step(op, info, (value, *args[1:]), kwargs)
    number = record.number(value)
    covered = base is not None and covers(x, base)
    before = None if base is None or covered else record.number(base)
    record.save_before_write(x)
    x.copy_(value)
    of_both = [number] if before is None else [before, number]
    if covered and base is not None and base.requires_grad:
        record.covering.add(base.grad_fn)
    if base is not None and base.requires_grad and (before is not None or not record.follows[number]):  # zeros, say
        record.made_unseen(OWN_VIEW, [record.made_unseen(OWN_VIEW, of_both, base)], x)
    elif record.follows[number] == x.requires_grad:
        record.equate(x, number)
        if number in record.seen:
            record.seen[number] = weakref.ref(x)
    else:
        record.made_unseen(OWN_VIEW, [number], x)
    return x


def _fill(record: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Run a copy to a whole tensor, of which it leaves nothing: in the graph its source, expanded, as in a trace."""
    x: Tensor = args[0]
    number = record.number(args[1])
    record.save_before_write(x)
    x.copy_(record.aliases.get(number, args[1]), *args[2:], **kwargs)
    record.made_unseen(_EXPAND, [number], x, (Ref(number), list(x.shape)))
    return x


def write_out(record: Any, op: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run an operation that writes to a tensor it is given, to which autograd writes nothing that it follows."""
    plain = without_out(op)
    out = kwargs["out"]
    if plain is None or not isinstance(out, Tensor):
        return op._op(*args, **kwargs)
    value = record.run(plain, args, {name: x for name, x in kwargs.items() if name != "out"})
    if out.shape != value.shape:
        out.resize_(value.shape)
    return record.run(_COPY, (out, value), {})
