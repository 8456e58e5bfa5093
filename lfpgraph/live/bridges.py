"""Where autograd stops and reward goes on: at a step function's output, made of values that have a signal to come.

Note [Shadows]: what a model sees is what plain PyTorch makes: the output of a step requires no gradient, so `.numpy()` takes
it, and a buffer may count it without holding on to the run. The operations that are recorded are given its *shadow* in its
place, a tensor in the same memory that autograd follows over a bridge. Outputs of the run are given that history at its end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .arrivals.saved import Saved
from .notes import tensors_among
from .values import Values

__all__ = ["LARGE", "Bridge", "Shadows", "Sources", "bridge", "is_bridge", "nothing", "tensor_of", "wake"]

LARGE = 1 << 18  # entries from which on less is kept


class Bridge(torch.autograd.Function):
    """The identity of one value, or of all results of an operation, with edges to other values.

    Nothing goes along them, as without the bridge, until `wake` has been called on the autograd node: then backward gives
    each source zeros in the shape of a signal, for a rule to put its answers in their place.

    Args:
        count: how many of the tensors are handed out; the others are the sources.
        function: makes x of the one source, where there is a true derivative: that is handed back until `wake` is called,
            and wherever a derivative is itself differentiated.
    """

    @staticmethod
    def forward(ctx: Any, count: int, function: Callable[[Tensor], Tensor] | None, *tensors: Tensor) -> Any:
        sources = tensors[count:]
        ctx.kinds = [(s.shape, s.dtype, s.device) for s in sources]
        ctx.awake, ctx.function = False, function
        ctx.set_materialize_grads(False)
        if function is not None:
            ctx.save_for_backward(*sources)
        results = tuple(x.detach() for x in tensors[:count])  # no views, so they can be written to
        return results if count > 1 else results[0]

    @staticmethod
    def backward(ctx: Any, *signals: Tensor | None) -> Any:
        nothing_comes = all(s is None for s in signals)
        if nothing_comes and not ctx.awake:
            return (None,) * len(ctx.needs_input_grad)
        # of a lookup, which autograd follows to what it looks up in
        own = [s if needed else None for s, needed in zip(signals, ctx.needs_input_grad[2:])]
        saved = ctx.saved_tensors  # looked at in any case, since autograd then tells of a write to it
        if ctx.awake and not torch.is_grad_enabled():
            zeros = [torch.zeros((), dtype=dtype, device=device).expand(shape) for shape, dtype, device in ctx.kinds]
            return (None, None, *own, *zeros)
        if nothing_comes or not saved:
            return (None, None, *own, *(None for _ in ctx.kinds))
        return (None, None, *own, *_true(ctx.function, saved[0], signals[0]))


def _true(function: Callable[[Tensor], Tensor], x: Tensor, s: Tensor | None) -> tuple[Tensor, ...]:
    """The true derivative's signal; to be differentiated itself, if that is asked for."""
    again = torch.is_grad_enabled()
    x = x if again else x.detach().requires_grad_()
    with torch.enable_grad():
        return torch.autograd.grad(function(x), x, s, create_graph=again)


def bridge(x: Tensor, sources: Sequence[Tensor], function: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    """x, with the gradient edges of its sources; no signals go along them unless a rule says so (see `Bridge`)."""
    return Bridge.apply(1, function, x, *sources)


def is_bridge(node: Any) -> bool:
    """Whether an autograd node is a bridge's."""
    return isinstance(node, Bridge._backward_cls)  # type: ignore[attr-defined]


def wake(node: Any) -> None:
    """Let an autograd node, if it is a bridge's, hand signals to its sources."""
    if is_bridge(node):
        node.awake = True


class Sources:
    """Which values that autograd follows those were made of that it does not follow."""

    def __init__(self, values: Values, saved: Saved) -> None:
        self._values, self._saved = values, saved
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
        floats = [
            (i, x) for i, x in enumerate(results) if isinstance(x, Tensor) and (x.is_floating_point() or x.is_complex())
        ]
        for i, x in floats if looks_up else ():
            if x.requires_grad and (tensors := self._reached(self._of_places(ins))):
                results[i] = bridge(x, tensors)
                changed = True
        ends = [(i, x) for i, x in floats if not x.requires_grad]
        if ends and (tensors := self._reached(self._found(ins, args))):  # one node for all: a rule asks for all signals
            found = Bridge.apply(len(ends), None, *(x for _, x in ends), *tensors)
            for (i, _), x in zip(ends, found if len(ends) > 1 else (found,)):
                results[i] = x
            changed = True
        return changed

    def _reached(self, sources: frozenset[int]) -> list[Tensor]:
        """The values of these numbers, but for those written over since, which are out of reach."""
        tensors = (self._tensors[n] for n in sorted(sources))
        return [t for t in tensors if self._values.known(t) in sources]

    def point(self, args: Any) -> bool:
        """Whether an argument that autograd does not follow was made of values that it follows."""
        return bool(self._of) and any(isinstance(x, Tensor) and self._values.known(x) in self._of for x in args)

    def _of_places(self, ins: Sequence[int]) -> frozenset[int]:
        found = (self._of.get(n, frozenset()) for n in ins if not self._values.follows[n])
        return frozenset[int]().union(*found)

    def has(self, x: Tensor) -> bool:
        """Whether autograd does not follow a tensor, but values that it was made of."""
        return self._values.known(x) in self._of

    def take_for_made(self, x: Tensor) -> None:
        """Take a tensor for one that was made of values that autograd follows."""
        source = torch.zeros((), dtype=x.dtype if x.is_floating_point() else None, requires_grad=True)
        number = self._values.number(source)
        self._tensors[number], self._of[self._values.number(x)] = source, frozenset({number})

    def close(self) -> None:
        self._of.clear()
        self._tensors.clear()

    def _found(self, ins: Sequence[int], args: Any) -> frozenset[int]:
        values, found = self._values, set[int]()
        for n in ins:
            if not values.follows[n]:
                found |= self._of.get(n, frozenset())
            elif n not in values.aliases:
                found.add(n)
                if n not in self._tensors:
                    self._tensors[n] = tensor_of(args, values, n)
                    self._saved.add_ways(node for node, _ in values.places(n))
        return frozenset(found)


class Shadows:
    """What recorded operations are given in place of tensors that carry reward but, to the model, no gradient."""

    def __init__(self, values: Values) -> None:
        self._values = values
        # by the identity of what the model sees: that, and its shadow; by that of a shadow: what the model sees
        self.noted: dict[int, tuple[Tensor, Tensor]] = {}
        self._seen: dict[int, Tensor] = {}

    def given(self, args: Any, kwargs: Any, writes: bool) -> tuple[Any, Any] | None:
        """The arguments with shadows in their places; None if there are none. What such values are written to gets one, too."""
        new, named = self._mapped(args), {name: self._mapped(value) for name, value in kwargs.items()}
        if all(a is b for a, b in zip(tensors_among(new, named), tensors_among(args, kwargs))):
            return None
        first = args[0] if args else None
        if writes and isinstance(first, Tensor) and not any(x.requires_grad for x in tensors_among(args, kwargs)):
            new = (self.of(first, True), *new[1:])
        return new, named

    def of(self, x: Tensor, made: bool = False) -> Tensor:
        """A tensor's shadow: its own, or that part of the shadow of what it is a view of; else one is made, or it is x."""
        found = self.noted.get(id(x))
        if x.requires_grad:
            if found is not None:  # the model has made it a leaf of its own
                self._forget(x)
                self._values.forget(x)
            return x
        if found is not None:
            return found[1]
        base = x._base
        if id(x if base is None else base) in self._seen:  # a shadow, or part of one that autograd does not follow yet
            return x
        if base is not None and (made or id(base) in self.noted):
            shadow = self.of(base, True).as_strided(x.size(), x.stride(), x.storage_offset())
        elif made:
            shadow = x.data
        else:
            return x
        if not shadow.requires_grad:
            self._values.equate(shadow, self._values.number(x))
        self._note(x, shadow)
        return shadow

    def hide(self, out: Any) -> Any:
        """What the model sees of results that it is not to see followed."""
        if isinstance(out, list | tuple):
            return type(out)(self.hide(x) for x in out)
        if not isinstance(out, Tensor):
            return out
        found = self._seen.get(id(out))
        if found is None and out.requires_grad:
            found, number = out.data, self._values.number(out)
            if _is_one_of_several(out):  # to which nothing may be written, but to another view of that place
                out = out._base.as_strided(out.size(), out.stride(), out.storage_offset())  # type: ignore[union-attr]
                self._values.equate(out, number)
            self._values.equate(found, number)
            self._note(found, out)
            return found
        return out if found is None else found

    def seen(self, out: Any, args: Any, kwargs: Any) -> Any:
        """What the model sees of the results of an operation that was given shadows in place of some of these arguments."""
        if not any(x.requires_grad for x in tensors_among(args, kwargs)):
            return self.hide(out)
        found = self._seen.get(id(out))
        if found is None:
            return out
        self.show([found])  # it was written to with something that autograd follows
        return found

    def show(self, tensors: Sequence[Any]) -> list[Tensor]:
        """From now on the model sees of these tensors, too, that autograd follows them; returns those that it follows."""
        for x in tensors if self.noted else ():
            found = self._forget(x)
            if found is not None and found[1].requires_grad and not x.requires_grad:
                _Shown.apply(x, found[1])
                self._values.equate(x, self._values.number(found[1]))
        return [x for x in tensors if isinstance(x, Tensor) and x.requires_grad]

    def take_for_followed(self, x: Tensor) -> None:
        """Give a tensor a shadow, as if autograd followed what it was made of."""
        self._note(x, x.data.requires_grad_())

    def close(self) -> None:
        self.noted.clear()
        self._seen.clear()

    def _note(self, x: Tensor, shadow: Tensor) -> None:
        self._forget(x)
        self.noted[id(x)], self._seen[id(shadow)] = (x, shadow), x

    def _forget(self, x: Tensor) -> tuple[Tensor, Tensor] | None:
        """What was noted of x, which is noted no longer: its shadow's identity may soon be another tensor's."""
        if (found := self.noted.pop(id(x), None)) is not None:
            self._seen.pop(id(found[1]), None)
        return found

    def _mapped(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self.of(value)
        return type(value)(map(self._mapped, value)) if isinstance(value, list | tuple) else value


class _Shown(torch.autograd.Function):
    """Gives a tensor the history of another one in the same memory."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, shadow: Tensor) -> Tensor:
        ctx.mark_dirty(x)
        return x

    @staticmethod
    def backward(ctx: Any, s: Tensor) -> Any:
        return None, s


def _is_one_of_several(x: Tensor) -> bool:
    several = torch._C._autograd.CreationMeta.MULTI_OUTPUT_NODE
    return x._is_view() and torch._C._autograd._get_creation_meta(x) == several


def nothing(s: Tensor) -> Tensor:
    """A signal of zero in the shape of s, whatever s holds: infinity times a share of zero is none."""
    if s.layout is not torch.strided:
        return torch.zeros_like(s)
    return torch.zeros((), dtype=s.dtype, device=s.device).expand(s.shape)


def tensor_of(args: Any, values: Values, number: int) -> Tensor:
    """The argument that holds a value."""
    for x in (x for value in args for x in (value if isinstance(value, list | tuple) else (value,))):
        if isinstance(x, Tensor) and values.known(x) == number:
            return x
    raise AssertionError("an operation's input is among its arguments")
