"""Where autograd stops and reward goes on: a step function's output, made of values that have a signal to come."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .values import Values

__all__ = ["Bridge", "Sources", "bridge", "is_bridge", "wake"]


class Bridge(torch.autograd.Function):
    """The identity, with edges to other values.

    Nothing goes along them, as without the bridge, until `wake` has been called on the autograd node: then backward gives
    each source zeros in the shape of a signal, for a rule to put its answers in their place.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, *sources: Tensor) -> Tensor:
        ctx.kinds = [(s.shape, s.dtype, s.device) for s in sources]
        ctx.awake = False
        return x.detach()  # no view of x, so it can be written to

    @staticmethod
    def backward(ctx: Any, s: Tensor) -> Any:
        if not ctx.awake or torch.is_grad_enabled():  # a derivative that is itself differentiated is the true one
            return (None,) * (1 + len(ctx.kinds))
        zeros = [torch.zeros((), dtype=dtype, device=device).expand(shape) for shape, dtype, device in ctx.kinds]
        return (None, *zeros)


def bridge(x: Tensor, sources: Sequence[Tensor]) -> Tensor:
    """x, with the gradient edges of its sources; no signals go along them unless a rule says so."""
    return Bridge.apply(x, *sources)


def is_bridge(node: Any) -> bool:
    """Whether an autograd node is a bridge's."""
    return isinstance(node, Bridge._backward_cls)  # type: ignore[attr-defined]


def wake(node: Any) -> None:
    """Let an autograd node, if it is a bridge's, hand signals to its sources."""
    if is_bridge(node):
        node.awake = True


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

    def bridge(self, ins: Sequence[int], results: list[Any], args: Any) -> bool:
        """Let autograd hand signals over a step: from floats that it does not follow to the values they were made of."""
        changed = False
        for i, x in enumerate(results):
            if not isinstance(x, Tensor) or x.requires_grad or not (x.is_floating_point() or x.is_complex()):
                continue
            sources = self._found(ins, args)
            tensors = [self._tensors[n] for n in sorted(sources)]
            tensors = [t for t in tensors if self._values.known(t) in sources]  # a source written over is out of reach
            if tensors:
                results[i] = bridge(x, tensors)
                changed = True
        return changed

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
                self._tensors.setdefault(n, _tensor_of(args, values, n))
        return frozenset(found)


def _tensor_of(args: Any, values: Values, number: int) -> Tensor:
    """The argument that holds a value."""
    for value in args:
        for x in value if isinstance(value, list | tuple) else (value,):
            if isinstance(x, Tensor) and values.known(x) == number:
                return x
    raise AssertionError("an operation's input is among its arguments")
