"""What becomes of the signals that reach parameters: feedback, and a word where something else arrives."""

from __future__ import annotations

import functools
import logging
import sys
import weakref
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from ..engine.plan import How, Plan
from ..errors import NonFiniteError, WrapError
from ..kernels import scale_small
from .bridges import LARGE

__all__ = ["Scale", "Watch", "feed", "is_differentiated", "owned", "refuse_batched", "replaced", "tap", "watching"]


log = logging.getLogger("lfpgraph")
_COMPARED = 2  # gradients of each parameter that are compared in value
_is_batched = torch._C._dispatch_tls_is_dispatch_key_included
_VMAP: Any = torch._C._parse_dispatch_key("VmapMode")


class Watch:
    """Hooks on a model's parameters that compare what arrives with what the engine has handed on.

    A gradient reaches a parameter by other ways where the loss uses the parameter itself (`F.linear(h, model.head.weight)`),
    or where modules run that are not wrapped. The first two gradients of each parameter are compared in value, later ones
    only for whether anything came through feedback at all.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._watched: dict[int, weakref.ref[Tensor]] = {}
        self._said: set[str] = set()
        self._said_else: set[str] = set()
        self._handles: list[Any] = []
        self.away = 0  # more than 0 while a model runs
        self.inside: set[int] = set()  # parameters that have had feedback in a run inside this backward pass
        self.differentiated = False  # whether a second derivative has been asked for

    def __getstate__(self) -> dict[str, Any]:
        return vars(Watch(self.name))

    def add(self, parameters: Iterable[tuple[str, Tensor]]) -> None:
        """Watch these parameters, as far as they are not watched yet."""
        for name, parameter in parameters:
            found = self._watched.get(id(parameter))
            if is_lazy(parameter):
                continue
            if parameter.requires_grad and parameter.is_leaf and (found is None or found() is not parameter):
                self._watched[id(parameter)] = weakref.ref(parameter)
                arrival = _Arrival(self, name, parameter)
                self._handles.append(parameter.register_hook(arrival))
                key = id(parameter)
                _ARRIVALS.setdefault(key, []).append(weakref.ref(arrival, functools.partial(_forget, key)))

    def close(self) -> None:
        """Stop watching."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._watched.clear()

    def second(self) -> None:
        """Say that a backward pass is itself to be differentiated, and so gives no feedback."""
        self.differentiated = True
        self._say_once(
            "a second derivative is asked for (create_graph=True). Such a backward pass hands back the true gradient; feedback "
            "flows when the loss itself is propagated."
        )

    def transformed(self) -> None:
        """Say that a transform of torch.func runs the model."""
        self._say_once("inside transforms of torch.func (grad, vmap) the model gives its gradient, not feedback.")

    def begin(self) -> None:
        """A run begins."""
        if torch._C._current_graph_task_id() == -1:
            self.inside.clear()

    def _say_once(self, what: str) -> None:
        if what not in self._said_else:
            self._said_else.add(what)
            log.warning("%s: %s", self.name, what)

    def say(self, name: str, what: str) -> None:
        """Say once that a parameter's gradient is no feedback."""
        if not self._said:
            log.warning(
                "%s: the parameter %s %s. The loss uses it, or a module that holds it, other than through the call of a "
                "wrapped module: call the module itself, or wrap the module whose call computes the loss.",
                self.name, name, what,
            )  # fmt: skip
        self._said.add(name)


class _Arrival:
    """A hook of one parameter; does not keep the watch alive by more than the parameter.

    Attributes:
        fed: what is on its way as feedback, of a parameter whose gradients are still compared; afterwards only that there is.
        compared: how many gradients have been compared in value; compares: whether further ones are.
    """

    __torch_unserializable__ = True  # a pickle goes without it, and nobody need be warned

    def __init__(self, watch: Watch, name: str, parameter: Tensor) -> None:
        self.watch, self.name, self.parameter = weakref.ref(watch), name, weakref.ref(parameter)
        self.fed: tuple[Tensor, ...] | bool = False
        self.compared, self.compares = 0, True

    def __call__(self, gradient: Tensor | None) -> None:
        """Compare a gradient that has arrived with the feedback that was on its way; None is no gradient at all."""
        watch = self.watch()
        if gradient is None or watch is None or watch.away:
            return
        fed, self.fed = self.fed, False
        if not fed:
            watch.say(self.name, "has received a gradient that is no feedback")
        elif self.compares:
            parameter = self.parameter()
            # the user's hooks may have changed it before
            if parameter is not None and len(parameter._backward_hooks or ()) == 1:
                self.compared += 1
                self.compares = self.compared < _COMPARED
                if isinstance(fed, tuple) and not gradient.is_sparse and not _equal(gradient, fed):
                    watch.say(self.name, "has received a gradient that is feedback only in part")


_ARRIVALS: dict[int, list[weakref.ref[_Arrival]]] = {}  # by the identity of a parameter


def watching(parameter: Tensor) -> list[_Arrival]:
    """The hooks of all who watch a parameter: a wrapped model may be inside another one."""
    return [arrival for ref in _ARRIVALS.get(id(parameter), ()) if (arrival := ref()) is not None]


def feed(parameter: Tensor, feedback: Tensor) -> None:
    """Note feedback that is on its way to a parameter, for all who watch it."""
    for arrival in watching(parameter):
        if arrival.compares:
            before = arrival.fed if isinstance(arrival.fed, tuple) else ()
            arrival.fed = (*before, feedback.detach())
        else:
            arrival.fed = True


def _forget(key: int, ref: weakref.ref[_Arrival]) -> None:
    _ARRIVALS[key].remove(ref)
    if not _ARRIVALS[key]:
        del _ARRIVALS[key]


def _equal(gradient: Tensor, parts: Sequence[Tensor]) -> bool:
    if gradient.is_meta or (len(parts) == 1 and type(gradient) is Tensor and gradient.is_set_to(parts[0])):
        return True
    with torch.no_grad():
        total = parts[0] if len(parts) == 1 else torch.stack([p.to(gradient.dtype) for p in parts]).sum(0)
        scale = float(gradient.abs().max()) if gradient.numel() else 0.0
        return bool(((gradient - total).abs() <= 1e-2 * scale + 1e-12).all()) or not bool(
            torch.isfinite(gradient).all()
        )


def tap(record: Any, number: int, given: list[Any], place: int, check: bool, watch: Watch | None) -> None:
    """Note the signal at one of the outputs, `given[place]`, when it arrives."""
    edge = record.edge_of.get(number)
    if edge is None:
        return
    node, index = edge

    def note(signals: tuple[Any, ...]) -> None:
        given[place] = s = signals[index]
        if watch is not None and is_differentiated():
            watch.second()
        if check and s is not None and not bool(torch.isfinite(s).all()):
            raise NonFiniteError("the signal given to the outputs holds NaN or infinity")

    node.register_prehook(note)


class Scale:
    """Turns a parameter's signal into feedback: where all its uses come together, and where a custom function reads it.

    A custom function may call a part of the model again in its backward (the adjoint of a differential equation), and hand
    on what that run, which is one inside a backward pass, has given the parameter: that is feedback already.
    """

    __slots__ = ("plan", "how", "parameter", "shape", "watch", "is_inside")

    def __init__(self, plan: Plan, how: How, parameter: Tensor, shape: torch.Size, watch: Watch | None) -> None:
        self.plan, self.how, self.parameter, self.shape, self.watch = plan, how, parameter, shape, watch
        self.is_inside = torch._C._current_graph_task_id() != -1

    def feedback(self, s: Tensor, over: bool = False) -> Tensor:
        """The feedback of the signal s; written over it, if it may be."""
        if _is_batched(_VMAP):
            refuse_batched()
        parameter, how = self.parameter, self.how
        if self.is_inside and self.watch is not None:
            self.watch.inside.add(id(parameter))
        if how.plain:
            found = s
        elif parameter.shape != self.shape:
            raise WrapError(
                f"a parameter of shape {list(self.shape)} in forward has shape {list(parameter.shape)} when its feedback is "
                "worked out, so abs(w) * s cannot be: what takes its memory away must give it back before."
            )
        elif how.small and type(s) is Tensor and not s.is_cuda:
            found = scale_small(s, parameter.detach(), how.share, how.unit)
        else:
            found = self.plan.feedback(how.placeholder, parameter.detach(), s, over)
        if self.watch is not None:
            feed(parameter, found)
        return found

    def before(self, signals: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """A hook on the autograd node of the one alias that a run takes the parameter through."""
        if signals[0] is None or is_differentiated():
            return None
        over = owned(signals, 0)  # before anything here refers to the signal
        return (self.feedback(signals[0], over),)

    def at_alias(self, s: Tensor | None) -> Tensor | None:
        """The same as a hook on the alias itself."""
        return None if s is None or torch.is_grad_enabled() else self.feedback(s)

    def at(self, slot: int) -> Any:
        """A hook on a function that hands a gradient to the parameter itself."""

        def after(signals: tuple[Any, ...], _: Any) -> tuple[Any, ...] | None:
            if signals[slot] is None or is_differentiated():
                return None
            if self.watch is not None and id(self.parameter) in self.watch.inside:
                feed(self.parameter, signals[slot])
                return None
            return replaced(signals, {slot: self.feedback(signals[slot])})

        return after


def refuse_batched() -> None:
    """Refuse signals that stand for many at once, of which torch's batched tensors do not know every operation of a rule."""
    if _is_batched(_VMAP):
        raise WrapError(
            "many backward passes at once are asked for (is_grads_batched=True, vectorize=True), and the rules of feedback do "
            "not run on such a batch; ask for them one after the other."
        )


def is_differentiated() -> bool:
    """Whether this backward pass is itself recorded (`create_graph=True`), for a derivative that is a part of the loss.

    Such a derivative is the true one; feedback flows when the loss is propagated.
    """
    return torch.is_grad_enabled()


def replaced(signals: tuple[Any, ...], new: dict[int, Tensor]) -> tuple[Any, ...]:
    """The signals, some of them replaced."""
    return tuple(new.get(i, s) for i, s in enumerate(signals))


def owned(signals: tuple[Any, ...], i: int) -> bool:
    """Whether a large signal that a hook is given is in nobody else's hands, so that it may be written over.

    Autograd hands one tensor to several nodes, users keep signals, and others hold views of them. All that shows in how
    often a tensor, its memory, and what it is a view of are referred to; compared with signals known to be new.
    """
    return signals[i].numel() >= LARGE and _references(signals, i) in _references_of_new()


def _references(signals: tuple[Any, ...], i: int) -> Any:
    s: Any = signals[i]
    storage = s.untyped_storage()
    if type(s) is not Tensor or s.numel() * s.element_size() != storage.nbytes():
        return None
    base: Any = s._base
    of_base = None if base is None else (base._use_count(), sys.getrefcount(base))
    return s._use_count(), sys.getrefcount(s), torch._C._storage_Use_Count(storage._cdata), of_base  # type: ignore[attr-defined]


@functools.cache
def _references_of_new() -> list[Any]:
    found: list[Any] = []
    with torch.enable_grad():
        x = torch.zeros(2, 3, requires_grad=True, device="cpu")
        for y in (x * 2, (x * 2).t()):
            node = y.grad_fn if y._base is None else y.grad_fn.next_functions[0][0]  # type: ignore[union-attr]
            node.register_prehook(lambda signals: found.append(_references(signals, 0)))  # type: ignore[union-attr]
            torch.autograd.grad(y.square().sum(), x)
    return found
