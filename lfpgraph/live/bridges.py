"""Where autograd stops and reward goes on, and activations that are made again in the backward pass.

Autograd stops at a step function's output, made of values that have a signal to come. And of an activation whose rule takes
the place of its derivative, autograd need not save anything, nor work out that derivative; where its result is large, what
reads it need not save that either.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from .values import Values, tensor_of

__all__ = [
    "LARGE",
    "Bridge",
    "Remade",
    "Sources",
    "bridge",
    "goes_on",
    "is_bridge",
    "nothing",
    "slots_of",
    "sparing",
    "wake",
]

LARGE = 1 << 18  # entries from which on less is kept


class Bridge(torch.autograd.Function):
    """The identity, with edges to other values.

    Nothing goes along them, as without the bridge, until `wake` has been called on the autograd node: then backward gives
    each source zeros in the shape of a signal, for a rule to put its answers in their place.

    Args:
        function: makes x of the one source, where there is a true derivative: that is handed back until `wake` is called,
            and wherever a derivative is itself differentiated.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, function: Callable[[Tensor], Tensor] | None, *sources: Tensor) -> Tensor:
        ctx.kinds = [(s.shape, s.dtype, s.device) for s in sources]
        ctx.awake, ctx.function = False, function
        if function is not None:
            ctx.save_for_backward(*sources)
        return x.detach()  # no view of x, so it can be written to

    @staticmethod
    def backward(ctx: Any, s: Tensor) -> Any:
        own = s if ctx.needs_input_grad[0] else None  # of a lookup, which autograd follows to what it looks up in
        saved = ctx.saved_tensors  # looked at in any case, since autograd then tells of a write to it
        if not ctx.awake or torch.is_grad_enabled():
            return (own, None, *(_true(ctx.function, saved[0], s) if saved else (None,) * len(ctx.kinds)))
        zeros = [torch.zeros((), dtype=dtype, device=device).expand(shape) for shape, dtype, device in ctx.kinds]
        return (own, None, *zeros)


def _true(function: Callable[[Tensor], Tensor], x: Tensor, s: Tensor) -> tuple[Tensor, ...]:
    """The true derivative's signal; to be differentiated itself, if that is asked for."""
    again = torch.is_grad_enabled()
    x = x if again else x.detach().requires_grad_()
    with torch.enable_grad():
        return torch.autograd.grad(function(x), x, s, create_graph=again)


def bridge(x: Tensor, sources: Sequence[Tensor], function: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    """x, with the gradient edges of its sources; no signals go along them unless a rule says so (see `Bridge`)."""
    return Bridge.apply(x, function, *sources)


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


def is_bridge(node: Any) -> bool:
    """Whether an autograd node is a bridge's."""
    return isinstance(node, Bridge._backward_cls)  # type: ignore[attr-defined]


def wake(node: Any) -> None:
    """Let an autograd node, if it is a bridge's, hand signals to its sources."""
    if is_bridge(node):
        node.awake = True


def slots_of(
    exits: dict[Any, Any], inputs: dict[tuple[Any, int], int], values: Values, inside: frozenset[int]
) -> tuple[dict[Any, list[tuple[int, int]]], set[Any]]:
    """Where autograd's nodes of a unit hand something to its inputs: for each node, slots and inputs; and all its nodes.

    Args:
        exits: the nodes of the unit's outputs.
        inputs: the edges of its inputs.
        values: the run; the way back ends at its values, but for those `inside` the unit.
    """
    edges, covering = values.edges, values.covering
    found: dict[Any, list[tuple[int, int]]] = {}
    stack, seen = list(exits), set(exits)
    while stack:
        node = stack.pop()
        for slot, (source, index) in enumerate(node.next_functions):
            if source is None or (slot == 0 and node in covering):
                continue
            place = inputs.get((source, index))
            if place is not None:
                found.setdefault(node, []).append((slot, place))
            elif source not in seen and edges.get((source, index), -1) in (-1, *inside):
                seen.add(source)
                stack.append(source)
    return found, seen


def goes_on(slot: int) -> bool:
    """Whether this backward pass goes on from the node at hand along one of its edges, so that a signal must not be lost."""
    source = torch._C._current_autograd_node().next_functions[slot][0]
    return source is not None and not hasattr(source, "variable") and torch._C._will_engine_execute_node(source)


class Sources:
    """Which values that autograd follows those were made of that it does not follow."""

    def __init__(self, values: Values) -> None:
        self._values = values
        self._of: dict[int, frozenset[int]] = {}
        self._tensors: dict[int, Tensor] = {}

    def note(self, ins: Sequence[int], outs: Sequence[int], args: Any) -> None:
        """Note what the results of an operation were made of."""
        follows = self._values.follows
        if all(n < 0 or follows[n] for n in outs):
            return
        if found := self._found(ins, args):
            for n in outs:
                if n >= 0 and not follows[n]:
                    self._of[n] = found

    def bridge(self, ins: Sequence[int], results: list[Any], args: Any, looks_up: bool) -> bool:
        """Let autograd hand signals over a step: from floats that it does not follow to the values they were made of.

        With `looks_up`, also from a float that it follows to what the places were made of, by which it was looked up.
        """
        changed = False
        for i, x in enumerate(results):
            if not isinstance(x, Tensor) or not (x.is_floating_point() or x.is_complex()):
                continue
            if x.requires_grad and not looks_up:
                continue
            sources = self._of_places(ins) if x.requires_grad else self._found(ins, args)
            tensors = [self._tensors[n] for n in sorted(sources)]
            tensors = [t for t in tensors if self._values.known(t) in sources]  # a source written over is out of reach
            if tensors:
                results[i] = bridge(x, tensors)
                changed = True
        return changed

    def _of_places(self, ins: Sequence[int]) -> frozenset[int]:
        found = (self._of.get(n, frozenset()) for n in ins if not self._values.follows[n])
        return frozenset[int]().union(*found)

    def close(self) -> None:
        """Let go of all tensors."""
        self._of.clear()
        self._tensors.clear()

    def _found(self, ins: Sequence[int], args: Any) -> frozenset[int]:
        values, found = self._values, set[int]()
        for n in ins:
            if not values.follows[n]:
                found |= self._of.get(n, frozenset())
            elif n not in values.aliases:
                found.add(n)
                self._tensors.setdefault(n, tensor_of(args, values, n))
        return frozenset(found)


def nothing(s: Tensor) -> Tensor:
    """A signal of zero in the shape of s, whatever s holds: infinity times a share of zero is none."""
    return torch.zeros((), dtype=s.dtype, device=s.device).expand(s.shape)
